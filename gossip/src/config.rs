//! What a node is told before it starts: keys, timing, seeds, limits.

use std::net::SocketAddr;

use crate::frame::KeyRing;

/// Largest UDP payload for a path that nothing is known of: 1,280 bytes (the IPv6 minimum MTU, RFC 8200 section 5) less 48
/// of headers.
pub const PACKET_SAFE_BYTES: usize = 1232;
/// Largest UDP payload at all: a jumbo frame less 48 of headers. Only to peers that have confirmed that it arrives.
pub const PACKET_MAX_BYTES: usize = 8952;
/// Longest unicast payload.
pub const UNICAST_MAX_BYTES: usize = 1100;
/// Longest record body.
pub const BODY_MAX_BYTES: usize = 16 * 1024;
/// Longest map key.
pub const KEY_MAX_BYTES: usize = 255;
/// Longest node name.
pub const NAME_MAX_BYTES: usize = 63;
/// Members held at most, dead ones included. Beyond it the longest dead is forgotten; if all live, the newcomer is ignored.
pub const MEMBERS_MAX: usize = 16 * 1024;
/// Seeds kept at most; later ones are ignored.
pub const SEEDS_MAX: usize = 64;

/// Which timing a node starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// One site: round trips well below 50 ms, a dead node known in two to three seconds.
    #[default]
    Lan,
    /// Between sites: memberlist's 1 s / 500 ms / 3 indirect.
    Wan,
}

/// The timing constants of a profile; all in microseconds unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Time from one probe to the next at full health.
    pub probe_us: u64,
    /// Shortest wait for an ack before help is asked; a measured RTT can only lengthen it.
    pub ack_min_us: u64,
    /// Shortest suspicion (all confirmations in).
    pub suspicion_min_us: u64,
    /// Longest suspicion (no confirmation).
    pub suspicion_max_us: u64,
    /// Added to both for each decade of members above ten.
    pub suspicion_decade_us: u64,
    /// Rumour round.
    pub gossip_us: u64,
    /// Delay of the first forwarding of news.
    pub eager_us: u64,
    /// Shortest time between two table comparisons this node starts.
    pub sync_us: u64,
    /// Time between two tries to join while alone.
    pub join_us: u64,
    /// Time between two tries to reach some dead member, flock-wide and per live member.
    pub reconnect_us: u64,
    /// A timer that fires this late means that this node stood still.
    pub stall_us: u64,
    /// Retry time of a map pull.
    pub pull_us: u64,
}

impl Timing {
    /// Constants of a profile.
    pub const fn of(profile: Profile) -> Timing {
        match profile {
            Profile::Lan => Timing {
                probe_us: 300_000,
                ack_min_us: 100_000,
                suspicion_min_us: 1_000_000,
                suspicion_max_us: 2_000_000,
                suspicion_decade_us: 100_000,
                gossip_us: 200_000,
                eager_us: 10_000,
                sync_us: 200_000,
                join_us: 500_000,
                reconnect_us: 50_000,
                stall_us: 400_000,
                pull_us: 250_000,
            },
            Profile::Wan => Timing {
                probe_us: 1_000_000,
                ack_min_us: 500_000,
                suspicion_min_us: 4_000_000,
                suspicion_max_us: 12_000_000,
                suspicion_decade_us: 2_000_000,
                gossip_us: 200_000,
                eager_us: 20_000,
                sync_us: 1_000_000,
                join_us: 1_000_000,
                reconnect_us: 100_000,
                stall_us: 1_000_000,
                pull_us: 1_000_000,
            },
        }
    }
}

impl Timing {
    /// How long a helper waits before it says that it hears nothing either. The last helpers are asked half of what is left
    /// of a probe after the first wait before its end: half of that for waiting, half for the way there and back.
    pub(crate) const fn nack_us(&self) -> u64 {
        self.probe_us.saturating_sub(self.ack_min_us) / 4
    }
}

/// Bounds of the map. What exceeds them is refused where it is written and ignored (and counted) where it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Records in all, tombstones included.
    pub records: usize,
    /// Bytes of keys and bodies in all.
    pub bytes: usize,
    /// Records of one writer.
    pub writer_records: usize,
    /// Bytes of keys and bodies of one writer.
    pub writer_bytes: usize,
    /// How long a deletion is remembered: longer than the longest partition that is to heal.
    pub tombstone_ms: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            records: 65_536,
            bytes: 64 << 20,
            writer_records: 8_192,
            writer_bytes: 16 << 20,
            tombstone_ms: 30 * 24 * 3600 * 1000,
        }
    }
}

/// Configuration of a node's gossip.
#[derive(Debug, Clone)]
pub struct Config {
    /// The flock's keys.
    pub keys: KeyRing,
    /// Timing, usually [`Timing::of`] a profile.
    pub timing: Timing,
    /// Where to look for the flock; at most [`SEEDS_MAX`]. Own addresses are ignored.
    pub seeds: Vec<SocketAddr>,
    /// Bounds of the map.
    pub limits: Limits,
    /// A multicast group of the link on which nodes without seeds look for the flock, and on which this node answers
    /// them; `None`: neither. Every node of the link has to name the same one.
    pub discover: Option<SocketAddr>,
}

impl Config {
    /// A configuration with the profile's timing, default limits and no seeds or discovery.
    pub fn new(keys: KeyRing, profile: Profile) -> Config {
        let (timing, limits) = (Timing::of(profile), Limits::default());
        Config { keys, timing, seeds: Vec::new(), limits, discover: None }
    }
}
