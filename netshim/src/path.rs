//! Where an inner packet goes: a pure function of who sent it, its addresses and the tables.
//!
//! ```text
//!   pod ──own source?──┐                        ┌─▶ pod of this node
//!   host ─own source?──┼─▶ destination, TTL ────┼─▶ host
//!   peer ─in its prefix?┘   (peer: only mine)    └─▶ peer
//!                                                    else: drop, counted, with an ICMP error where the sender may know
//! ```
//!
//! Invariants: a source is checked twice, where the packet enters (against the pod) and where it arrives (against the peer's prefix);
//! what came from a peer is never sent to a peer; the tables are replaced whole, never edited under a packet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::addr::{OVERLAY4, PREFIX4_COUNT, Prefix4, Prefix6, node_index};
use crate::counters::DropReason;
use crate::ipam::PodAddr;
use crate::session::PeerId;
use crate::wire::{self, Inner};

pub mod icmp;

/// Pods of one node.
pub const PODS_MAX: usize = crate::ipam::PODS_MAX;
/// The host number of the node itself in its prefixes.
const GATEWAY: u32 = 1;

/// A pod's number on this node: the last byte of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodId(pub u8);

/// Where a packet comes from or goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// A pod of this node.
    Pod(PodId),
    /// This node, through `mesh0`.
    Host,
    /// Another node.
    Peer(PeerId),
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on; TTL first, unless it came from a peer (whose node did that).
    Forward(End),
    /// Drop and count it.
    Drop(DropReason),
    /// Drop and count it, and tell the sender.
    Refuse(DropReason, icmp::Reason),
}

/// Addresses of this node and of its peers. Built once for each change.
#[derive(Debug, Clone)]
pub struct Routes {
    prefix4: Option<Prefix4>,
    prefix6: Prefix6,
    overlay6: Prefix6,
    egress: bool,
    /// The peer of each IPv4 node prefix.
    by_index: Vec<Option<PeerId>>,
    /// The peer of each IPv6 node prefix (/96), sorted by its first address.
    by_prefix6: Vec<(u128, PeerId)>,
}

/// The prefixes of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerPrefixes {
    /// The peer.
    pub id: PeerId,
    /// A /24 of [`OVERLAY4`].
    pub prefix4: Option<Prefix4>,
    /// A /96 of the flock's prefix.
    pub prefix6: Prefix6,
}

/// This node's part of [`Routes`].
#[derive(Debug, Clone, Copy)]
pub struct OwnPrefixes {
    /// A /24 of [`OVERLAY4`], once claimed.
    pub prefix4: Option<Prefix4>,
    /// A /96 of `overlay6`.
    pub prefix6: Prefix6,
    /// The flock's /48.
    pub overlay6: Prefix6,
    /// Whether pods may send outside of the overlay, through the host.
    pub egress: bool,
}

impl Routes {
    /// Builds the tables. Prefixes that are no node prefixes, or are ours or an earlier peer's, are left out.
    pub fn new(own: OwnPrefixes, peers: &[PeerPrefixes]) -> Self {
        let my_index = own.prefix4.and_then(Prefix4::node_index);
        let mut by_index = Vec::new();
        let mut by_prefix6 = BTreeMap::new();
        for peer in peers {
            if let Some(index) = peer.prefix4.and_then(Prefix4::node_index)
                && Some(index) != my_index
            {
                if by_index.is_empty() {
                    by_index = vec![None; usize::from(PREFIX4_COUNT)];
                }
                if let Some(slot @ None) = by_index.get_mut(usize::from(index)) {
                    *slot = Some(peer.id);
                }
            }
            if is_node_prefix6(peer.prefix6, own.overlay6) && peer.prefix6 != own.prefix6 {
                by_prefix6.entry(peer.prefix6.network().to_bits()).or_insert(peer.id);
            }
        }
        Self {
            prefix4: own.prefix4,
            prefix6: own.prefix6,
            overlay6: own.overlay6,
            egress: own.egress,
            by_index,
            by_prefix6: by_prefix6.into_iter().collect(),
        }
    }

    /// This node's address of the family of `like`.
    pub fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => Some(self.prefix4?.gateway().into()),
            IpAddr::V6(_) => Some(self.prefix6.gateway().into()),
        }
    }

    fn in_overlay(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => OVERLAY4.contains(a),
            IpAddr::V6(a) => self.overlay6.contains(a),
        }
    }

    fn is_mine(&self, addr: IpAddr) -> bool {
        match addr {
            IpAddr::V4(a) => self.prefix4.is_some_and(|p| p.contains(a)),
            IpAddr::V6(a) => self.prefix6.contains(a),
        }
    }

    /// The peer whose prefix holds an address.
    pub fn peer_of(&self, addr: IpAddr) -> Option<PeerId> {
        match addr {
            IpAddr::V4(a) => *self.by_index.get(usize::from(node_index(a)?))?,
            IpAddr::V6(a) => {
                let prefix = a.to_bits() & !0xffff_ffff;
                let at = self.by_prefix6.binary_search_by_key(&prefix, |(p, _)| *p).ok()?;
                Some(self.by_prefix6.get(at)?.1)
            }
        }
    }
}

/// Whether `prefix` is a node's in this flock.
pub fn is_node_prefix6(prefix: Prefix6, overlay6: Prefix6) -> bool {
    prefix.len() == 96 && overlay6.contains(prefix.network())
}

/// The pods of this node.
#[derive(Debug, Clone)]
pub struct Pods {
    by_host: Vec<Option<PodAddr>>,
}

impl Default for Pods {
    fn default() -> Self {
        Self { by_host: vec![None; 256] }
    }
}

impl Pods {
    /// The number that a pod with these addresses has; `None` if the two do not belong together.
    pub fn id(addr: PodAddr) -> Option<PodId> {
        let host = addr.ip4.octets()[3];
        let fits = addr.ip6.octets()[15] == host && u32::from(host) > GATEWAY && host != 255;
        fits.then_some(PodId(host))
    }

    /// Adds a pod, in place of one with the same number.
    pub fn insert(&mut self, addr: PodAddr) -> Option<PodId> {
        let id = Self::id(addr)?;
        *self.by_host.get_mut(usize::from(id.0))? = Some(addr);
        Some(id)
    }

    /// Removes the pod with this address.
    pub fn remove(&mut self, addr: IpAddr) -> Option<PodId> {
        let id = self.find(addr)?;
        *self.by_host.get_mut(usize::from(id.0))? = None;
        Some(id)
    }

    /// The pod with this address.
    pub fn find(&self, addr: IpAddr) -> Option<PodId> {
        let host = match addr {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(a) => a.octets()[15],
        };
        let pod = self.get(PodId(host))?;
        let same = match addr {
            IpAddr::V4(a) => pod.ip4 == a,
            IpAddr::V6(a) => pod.ip6 == a,
        };
        same.then_some(PodId(host))
    }

    fn get(&self, id: PodId) -> Option<PodAddr> {
        *self.by_host.get(usize::from(id.0))?
    }
}

/// All that a decision rests on.
#[derive(Debug, Clone)]
pub struct Path {
    /// Prefixes of this node and its peers.
    pub routes: Routes,
    /// Pods of this node.
    pub pods: Pods,
    /// Whether there is a host interface.
    pub host: bool,
    /// Largest packet, in bytes.
    pub mtu: u16,
}

impl Path {
    /// Decides about a packet of `len` bytes; `large` if it will be segmented (then its segments were checked against the MTU).
    pub fn decide(&self, from: End, inner: &Inner, len: usize, large: bool) -> Verdict {
        if let Err(why) = self.check_source(from, inner.source) {
            return Verdict::Drop(why);
        }
        if wire::is_martian(inner.destination) {
            return Verdict::Drop(DropReason::Martian);
        }
        let to = match self.destination(from, inner.destination) {
            Ok(to) => to,
            Err(verdict) => return verdict,
        };
        if matches!(from, End::Peer(_)) {
            return Verdict::Forward(to);
        }
        if inner.ttl <= 1 {
            return Verdict::Refuse(DropReason::TtlExceeded, icmp::Reason::TimeExceeded);
        }
        if !large && len > usize::from(self.mtu) {
            return Verdict::Refuse(DropReason::TooBig, icmp::Reason::TooBig { mtu: self.mtu });
        }
        Verdict::Forward(to)
    }

    fn check_source(&self, from: End, source: IpAddr) -> Result<(), DropReason> {
        let own = match from {
            End::Pod(id) => self.pods.get(id).is_some_and(|pod| match source {
                IpAddr::V4(a) => pod.ip4 == a,
                IpAddr::V6(a) => pod.ip6 == a,
            }),
            End::Host => {
                self.routes.gateway(source) == Some(source)
                    || (self.routes.egress
                        && !self.routes.in_overlay(source)
                        && !wire::is_martian(source))
            }
            End::Peer(id) => {
                return if self.routes.peer_of(source) == Some(id) {
                    Ok(())
                } else {
                    Err(DropReason::PeerSource)
                };
            }
        };
        match own {
            true => Ok(()),
            // Neighbour discovery and the like, which the kernel tries on any interface.
            false if wire::is_martian(source) => Err(DropReason::Martian),
            false => Err(DropReason::SpoofedSource),
        }
    }

    fn destination(&self, from: End, to: IpAddr) -> Result<End, Verdict> {
        let from_peer = matches!(from, End::Peer(_));
        if self.routes.is_mine(to) {
            if self.routes.gateway(to) == Some(to) {
                return match (from, self.host) {
                    (End::Host, _) => Err(Verdict::Drop(DropReason::NotMine)),
                    (_, true) => Ok(End::Host),
                    (_, false) => Err(Verdict::Refuse(DropReason::NoPod, icmp::Reason::NoHost)),
                };
            }
            return match self.pods.find(to) {
                Some(pod) => Ok(End::Pod(pod)),
                None => Err(Verdict::Refuse(DropReason::NoPod, icmp::Reason::NoHost)),
            };
        }
        if from_peer {
            return Err(Verdict::Drop(DropReason::NotMine));
        }
        if self.routes.in_overlay(to) {
            return match self.routes.peer_of(to) {
                Some(peer) => Ok(End::Peer(peer)),
                None => Err(Verdict::Refuse(DropReason::NoPeer, icmp::Reason::NoRoute)),
            };
        }
        match from {
            End::Pod(_) if self.routes.egress && self.host => Ok(End::Host),
            End::Pod(_) => Err(Verdict::Refuse(DropReason::NoEgress, icmp::Reason::Prohibited)),
            _ => Err(Verdict::Drop(DropReason::NoEgress)),
        }
    }
}

#[cfg(test)]
mod tests;
