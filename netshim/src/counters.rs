//! What the data thread counts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($(#[$doc:meta])* $kind:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum $kind { $($(#[$vdoc])* $variant,)* }

        impl $kind {
            /// All of them, in counter order.
            pub const ALL: &[$kind] = &[$($kind::$variant,)*];

            /// The name in metrics.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Why a packet was dropped.
    DropReason {
        /// Not IPv4 or IPv6, or a header that contradicts the length.
        Malformed = "malformed",
        /// A pod or the host sent with a source that is not its own.
        SpoofedSource = "spoofed_source",
        /// A peer sent with a source outside of its prefixes.
        PeerSource = "peer_source",
        /// A peer sent to an address that is not on this node; never forwarded again.
        NotMine = "not_mine",
        /// Multicast, broadcast, link-local, loopback or unspecified addresses.
        Martian = "martian",
        /// No node has the destination's prefix.
        NoPeer = "no_peer",
        /// The destination is ours, but no pod has it.
        NoPod = "no_pod",
        /// Outside of the overlay, and egress is off or there is no host interface.
        NoEgress = "no_egress",
        /// TTL or hop limit used up.
        TtlExceeded = "ttl_exceeded",
        /// Larger than the MTU.
        TooBig = "too_big",
        /// A large-packet header from a TUN or a peer that makes no sense.
        BadOffload = "bad_offload",
        /// An outer datagram that is too short, too long, or of no known type or version.
        OuterMalformed = "outer_malformed",
        /// A data packet for a session we do not have.
        UnknownSession = "unknown_session",
        /// Decryption failed.
        Unauthenticated = "unauthenticated",
        /// A counter seen before or too old.
        Replayed = "replayed",
        /// A handshake without the flock's key, or from no known peer. Never answered.
        BadHandshake = "bad_handshake",
        /// More handshakes than are worked on.
        HandshakeLimit = "handshake_limit",
        /// A session that is too old to send or receive with.
        Expired = "expired",
        /// The queue before a session is up was full.
        PendingFull = "pending_full",
        /// No session came up in time.
        NoSession = "no_session",
        /// The datagram is larger than the underlay's MTU: pods have too large a MTU for it.
        UnderlayMtu = "underlay_mtu",
        /// The UDP socket refused the datagram.
        SendFailed = "send_failed",
        /// A TUN refused the packet (interface down, bad packet).
        TunFailed = "tun_failed",
    }
}

counters! {
    /// What passed.
    Count {
        /// Packets read from pods and the host (a large packet counts once).
        TunRxPackets = "tun_rx_packets",
        /// Their bytes.
        TunRxBytes = "tun_rx_bytes",
        /// Packets written to pods and the host.
        TunTxPackets = "tun_tx_packets",
        /// Their bytes.
        TunTxBytes = "tun_tx_bytes",
        /// Datagrams received from peers.
        UdpRxDatagrams = "udp_rx_datagrams",
        /// Their bytes.
        UdpRxBytes = "udp_rx_bytes",
        /// Datagrams sent to peers.
        UdpTxDatagrams = "udp_tx_datagrams",
        /// Their bytes.
        UdpTxBytes = "udp_tx_bytes",
        /// System calls that sent them.
        UdpTxCalls = "udp_tx_calls",
        /// Handshakes completed, rekeys included.
        Handshakes = "handshakes",
        /// ICMP errors sent.
        IcmpSent = "icmp_sent",
        /// ICMP errors not sent because of their rate limit.
        IcmpLimited = "icmp_limited",
    }
}

/// Shared between the data thread, which adds, and readers.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    drops: [AtomicU64; DropReason::ALL.len()],
    counts: [AtomicU64; Count::ALL.len()],
}

impl Counters {
    pub(crate) fn dropped(&self, why: DropReason) {
        self.dropped_many(why, 1);
    }

    pub(crate) fn dropped_many(&self, why: DropReason, packets: u64) {
        if let Some(cell) = self.drops.get(why as usize) {
            cell.fetch_add(packets, Relaxed);
        }
    }

    pub(crate) fn add(&self, what: Count, value: u64) {
        if let Some(cell) = self.counts.get(what as usize) {
            cell.fetch_add(value, Relaxed);
        }
    }

    pub(crate) fn snapshot(&self) -> Stats {
        Stats {
            drops: DropReason::ALL
                .iter()
                .zip(&self.drops)
                .map(|(d, v)| (*d, v.load(Relaxed)))
                .collect(),
            counts: Count::ALL
                .iter()
                .zip(&self.counts)
                .map(|(c, v)| (*c, v.load(Relaxed)))
                .collect(),
            ..Stats::default()
        }
    }
}

/// Counters of an overlay since it was spawned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Dropped packets by reason.
    pub drops: Vec<(DropReason, u64)>,
    /// What passed.
    pub counts: Vec<(Count, u64)>,
    /// Peers with a session that can carry data now.
    pub sessions: u64,
    /// Whether UDP segmentation offload is in use.
    pub gso: bool,
}

impl Stats {
    /// How many packets were dropped for this reason.
    pub fn drops(&self, why: DropReason) -> u64 {
        self.drops.iter().find(|(d, _)| *d == why).map_or(0, |(_, v)| *v)
    }

    /// The value of one counter.
    pub fn count(&self, what: Count) -> u64 {
        self.counts.iter().find(|(c, _)| *c == what).map_or(0, |(_, v)| *v)
    }
}
