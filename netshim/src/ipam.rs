//! Who has which addresses, without a master.
//!
//! IPv6 needs no agreement: `ULA/48 of the flock ‖ 48-bit hash of the node's name ‖ 32-bit pod`. IPv4 is too narrow for a
//! hash alone (12 % collide at 64 nodes): a node hashes its name to a /24, probes past those that others claim, writes a
//! claim `p/<idx>` into the replicated map and uses the prefix after it stood for [`SETTLE_US`].
//!
//! ```text
//!   Waiting --Synced--> Claiming(idx) --settled--> Holding(idx)
//!                          |  ^                        |
//!                          |  +---- next probe --------+   a better claim for idx is in the map: Lost, claim again
//!                          +-- a better claim: next probe
//! ```
//!
//! Between two claims for one prefix every node decides alike: the higher epoch wins (it was taken over after the other
//! was removed), then the lower name. The map keeps one record a key, whichever write it orders last; so a node whose better
//! claim was overwritten writes it again, and the other one gives way when it reads that.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

pub use crate::addr::{BadPrefix, OVERLAY4, PREFIX4_COUNT, Prefix4, Prefix6};

mod pods;

pub use pods::{PODS_MAX, PodAddresses, REUSE_AFTER_US};

/// How long a new claim stands unopposed before its prefix is used: several gossip rounds. A conflict that shows up later costs
/// the loser new pod addresses.
pub const SETTLE_US: u64 = 1_000_000;
/// Names longer than this are no node names; such records are ignored.
pub const NODE_NAME_MAX_BYTES: usize = 63;

/// The body of a claim record `p/<idx>` (postcard). Fields are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// How often the prefix has changed hands.
    pub epoch: u32,
    /// The claiming node.
    pub node: String,
}

impl Claim {
    /// The record body.
    pub fn encode(&self) -> Vec<u8> {
        // A u32 and a String into a Vec: postcard has no way to fail here.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Parses a record body; `None` for anything that is no claim.
    pub fn decode(body: &[u8]) -> Option<Self> {
        let (claim, _newer_fields) = postcard::take_from_bytes::<Claim>(body).ok()?;
        (!claim.node.is_empty() && claim.node.len() <= NODE_NAME_MAX_BYTES).then_some(claim)
    }

    /// Whether this claim beats `other` for the same prefix.
    fn beats(&self, other: &Claim) -> bool {
        (other.epoch, &self.node) < (self.epoch, &other.node)
    }
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// The map was synchronised with a peer, or there is nobody to ask: claiming may begin.
    Synced,
    /// A record `p/<idx>` appeared, changed or was deleted (`None`). Other keys are ignored.
    Record {
        /// The map key.
        key: &'a str,
        /// The record's body, `None` for a tombstone.
        body: Option<&'a [u8]>,
    },
    /// `next_deadline` has passed.
    Timer,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Write this record into the map.
    Put {
        /// The map key.
        key: String,
        /// A [`Claim`].
        body: Vec<u8>,
    },
    /// The prefix is ours to use: allocate pods from it, tell the overlay, gossip it in the node record.
    Usable(Prefix4),
    /// The prefix belongs to another node: its pods need new addresses. A new claim is under way.
    Lost {
        /// What was lost.
        prefix: Prefix4,
        /// To whom.
        to: String,
    },
    /// Every prefix is claimed; nothing more is tried until a record is deleted.
    Exhausted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Claiming { index: u16, since_us: u64 },
    Holding { index: u16 },
    Exhausted,
}

/// One node's claim to an IPv4 prefix. Pure: the map's records come in, records to write go out.
#[derive(Debug)]
pub struct Ipam {
    node: String,
    prefix6: Prefix6,
    state: State,
    my_epoch: u32,
    synced: bool,
    /// Every claim of the map, bounded by `PREFIX4_COUNT` keys.
    claims: BTreeMap<u16, Claim>,
    /// The highest epoch seen for a prefix whose claim was deleted.
    past_epochs: BTreeMap<u16, u32>,
}

impl Ipam {
    /// A node without a prefix. `flock_id` is the same on all nodes of a flock and different between flocks.
    pub fn new(node: &str, flock_id: &[u8]) -> Self {
        Self {
            node: node.to_owned(),
            prefix6: prefix6(flock_id, node),
            state: State::Waiting,
            my_epoch: 0,
            synced: false,
            claims: BTreeMap::new(),
            past_epochs: BTreeMap::new(),
        }
    }

    /// Takes back the prefix that this node used before a restart (its pods may still run): usable at once, written into the map again if
    /// it is not there. Call it before any other input. A prefix that is no node prefix is ignored.
    pub fn restore(&mut self, prefix: Prefix4, epoch: u32, out: &mut Vec<Output>) {
        let Some(index) = prefix.node_index() else { return };
        self.my_epoch = epoch;
        self.hold(index, out);
    }

    /// The flock's IPv6 prefix (/48).
    pub fn overlay6(&self) -> Prefix6 {
        Prefix6::new(self.prefix6.network(), 48).unwrap_or(self.prefix6)
    }

    /// This node's IPv6 prefix (/96): needs no agreement.
    pub fn prefix6(&self) -> Prefix6 {
        self.prefix6
    }

    /// This node's IPv4 prefix (/24), once it may be used.
    pub fn prefix4(&self) -> Option<Prefix4> {
        match self.state {
            State::Holding { index } => Prefix4::node(index),
            _ => None,
        }
    }

    /// The epoch of the held or attempted claim; persist it beside the prefix for [`Ipam::restore`].
    pub fn epoch(&self) -> u32 {
        self.my_epoch
    }

    /// When [`Input::Timer`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        match self.state {
            State::Claiming { since_us, .. } => Some(since_us.saturating_add(SETTLE_US)),
            _ => None,
        }
    }

    /// Takes one input; appends what is to be done to `out`.
    pub fn step(&mut self, now_us: u64, input: Input<'_>, out: &mut Vec<Output>) {
        match input {
            Input::Synced => {
                self.synced = true;
                match self.state {
                    State::Waiting => self.claim_next(now_us, out),
                    State::Holding { index } => self.assert_claim(index, out),
                    State::Claiming { .. } | State::Exhausted => {}
                }
            }
            Input::Record { key, body } => self.on_record(now_us, key, body, out),
            Input::Timer => {
                if let State::Claiming { index, since_us } = self.state
                    && now_us >= since_us.saturating_add(SETTLE_US)
                {
                    self.hold(index, out);
                }
            }
        }
    }

    fn on_record(&mut self, now_us: u64, key: &str, body: Option<&[u8]>, out: &mut Vec<Output>) {
        let Some(index) = parse_key(key) else { return };
        match body.and_then(Claim::decode) {
            Some(claim) => {
                let mine = claim.node == self.node;
                self.claims.insert(index, claim.clone());
                match self.state {
                    // Ours from before a restart, found in the map: nobody else may have it.
                    State::Waiting if mine => {
                        self.my_epoch = claim.epoch;
                        self.hold(index, out);
                    }
                    State::Claiming { index: at, .. } | State::Holding { index: at }
                        if at == index && !mine =>
                    {
                        self.contested(now_us, index, claim, out);
                    }
                    _ => {}
                }
            }
            None => {
                if let Some(old) = self.claims.remove(&index) {
                    let past = self.past_epochs.entry(index).or_default();
                    *past = old.epoch.max(*past);
                }
                match self.state {
                    State::Claiming { index: at, .. } | State::Holding { index: at }
                        if at == index =>
                    {
                        self.assert_claim(index, out);
                    }
                    State::Exhausted => self.claim_next(now_us, out),
                    _ => {}
                }
            }
        }
    }

    /// Another node's claim to the prefix we claim or hold is in the map.
    fn contested(&mut self, now_us: u64, index: u16, theirs: Claim, out: &mut Vec<Output>) {
        let ours = Claim { epoch: self.my_epoch, node: self.node.clone() };
        if ours.beats(&theirs) {
            self.assert_claim(index, out);
            return;
        }
        if let State::Holding { .. } = self.state
            && let Some(prefix) = Prefix4::node(index)
        {
            out.push(Output::Lost { prefix, to: theirs.node });
        }
        self.state = State::Waiting;
        if self.synced {
            self.claim_next(now_us, out);
        }
    }

    fn assert_claim(&mut self, index: u16, out: &mut Vec<Output>) {
        let claim = Claim { epoch: self.my_epoch, node: self.node.clone() };
        if self.claims.get(&index) == Some(&claim) {
            return;
        }
        out.push(Output::Put { key: key(index), body: claim.encode() });
        self.claims.insert(index, claim);
    }

    fn hold(&mut self, index: u16, out: &mut Vec<Output>) {
        self.state = State::Holding { index };
        if let Some(prefix) = Prefix4::node(index) {
            out.push(Output::Usable(prefix));
        }
        if self.synced {
            self.assert_claim(index, out);
        }
    }

    fn claim_next(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let start = hash_index(&self.node);
        // A step that is odd is coprime to the power of two that is the table's size: every index is met once.
        let step = hash(&[b"quelea ipam step", self.node.as_bytes()])[0] | 1;
        let free = (0..PREFIX4_COUNT)
            .map(|n| start.wrapping_add(n.wrapping_mul(u16::from(step))) % PREFIX4_COUNT)
            .find(|index| self.claims.get(index).is_none_or(|claim| claim.node == self.node));
        let Some(index) = free else {
            self.state = State::Exhausted;
            out.push(Output::Exhausted);
            return;
        };
        let past = self.past_epochs.get(&index).copied().unwrap_or(0);
        let own = self.claims.get(&index).map_or(0, |claim| claim.epoch);
        self.my_epoch = own.max(past.saturating_add(1));
        self.state = State::Claiming { index, since_us: now_us };
        self.assert_claim(index, out);
    }
}

/// The map key of the claim to the node prefix with this index.
pub fn key(index: u16) -> String {
    format!("p/{index}")
}

fn parse_key(key: &str) -> Option<u16> {
    let digits = key.strip_prefix("p/")?;
    let index: u16 = digits.parse().ok()?;
    // One spelling a prefix: "p/007" would be a second record for it.
    (index < PREFIX4_COUNT && digits == index.to_string()).then_some(index)
}

/// The IPv6 prefix of a node: `fd ‖ 40 bits of the flock ‖ 48 bits of the node`, a /96.
pub fn prefix6(flock_id: &[u8], node: &str) -> Prefix6 {
    let flock = hash(&[b"quelea flock ula", flock_id]);
    let node = hash(&[b"quelea node ula", node.as_bytes()]);
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&flock[..5]);
    octets[6..12].copy_from_slice(&node[..6]);
    // 96 is a valid length.
    Prefix6::new(Ipv6Addr::from(octets), 96).unwrap_or_else(|| unreachable!())
}

fn hash_index(node: &str) -> u16 {
    let digest = hash(&[b"quelea ipam", node.as_bytes()]);
    u16::from_be_bytes([digest[0], digest[1]]) % PREFIX4_COUNT
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        // Lengths keep ("ab", "c") and ("a", "bc") apart.
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// The addresses of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PodAddr {
    /// Inside the node's IPv4 prefix.
    pub ip4: Ipv4Addr,
    /// Inside the node's IPv6 prefix.
    pub ip6: Ipv6Addr,
}

#[cfg(test)]
mod tests;
