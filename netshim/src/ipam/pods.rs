//! Which pod has which host number of the node's prefixes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{PodAddr, Prefix4, Prefix6};
use crate::Error;

/// Pods of one node: host numbers 2 to 254 of its /24 (0 and 255 are misread by old software, 1 is the gateway).
pub const PODS_MAX: usize = 253;
/// A released address rests this long, so that a client's stale connection does not meet a stranger.
pub const REUSE_AFTER_US: u64 = 60_000_000;

const FIRST: u8 = 2;
const LAST: u8 = 254;

/// Hands out pod addresses: first those never used, then the longest released. The IPv6 address carries, above the host number, a
/// count of allocations, so that it is not used twice.
#[derive(Debug)]
pub struct PodAddresses {
    prefix4: Prefix4,
    prefix6: Prefix6,
    in_use: BTreeMap<u8, PodAddr>,
    free: VecDeque<Free>,
    generation: u32,
}

#[derive(Debug, Clone, Copy)]
struct Free {
    host: u8,
    from_us: u64,
}

impl PodAddresses {
    /// An empty table for the node's prefixes.
    pub fn new(prefix4: Prefix4, prefix6: Prefix6) -> Self {
        let free = (FIRST..=LAST).map(|host| Free { host, from_us: 0 }).collect();
        Self { prefix4, prefix6, in_use: BTreeMap::new(), free, generation: 0 }
    }

    /// Marks an address that a running pod has (after a restart of the agent). `false` if it is outside of the prefixes or already in use;
    /// nothing changes then.
    pub fn restore(&mut self, addr: PodAddr) -> bool {
        let host = addr.ip4.octets()[3];
        let number = low32(addr.ip6);
        let fits = self.prefix4.contains(addr.ip4)
            && self.prefix6.contains(addr.ip6)
            && (FIRST..=LAST).contains(&host)
            && number & 0xff == u32::from(host);
        if !fits || self.in_use.contains_key(&host) {
            return false;
        }
        self.free.retain(|free| free.host != host);
        self.generation = self.generation.max(number >> 8);
        self.in_use.insert(host, addr);
        true
    }

    /// Takes an address.
    ///
    /// # Errors
    /// [`Error::AddressesExhausted`] when all [`PODS_MAX`] are in use or released less than [`REUSE_AFTER_US`] ago.
    pub fn allocate(&mut self, now_us: u64) -> Result<PodAddr, Error> {
        let free_at_us = match self.free.front() {
            Some(free) if free.from_us <= now_us => None,
            Some(free) => Some(free.from_us),
            None => None,
        };
        let free = match self.free.pop_front() {
            Some(free) if free_at_us.is_none() => free,
            Some(early) => {
                self.free.push_front(early);
                return Err(Error::AddressesExhausted { free_at_us });
            }
            None => return Err(Error::AddressesExhausted { free_at_us: None }),
        };
        // 24 bits: wraps after 16 million pods on one node, to addresses long forgotten.
        self.generation = (self.generation + 1) & 0x00ff_ffff;
        let number = self.generation << 8 | u32::from(free.host);
        let addr = PodAddr {
            ip4: Ipv4Addr::from_bits(self.prefix4.network().to_bits() | u32::from(free.host)),
            ip6: Ipv6Addr::from_bits(self.prefix6.network().to_bits() | u128::from(number)),
        };
        self.in_use.insert(free.host, addr);
        Ok(addr)
    }

    /// Gives an address back. `false` if it was not in use.
    pub fn release(&mut self, now_us: u64, addr: PodAddr) -> bool {
        let host = addr.ip4.octets()[3];
        if self.in_use.get(&host) != Some(&addr) {
            return false;
        }
        self.in_use.remove(&host);
        self.free.push_back(Free { host, from_us: now_us.saturating_add(REUSE_AFTER_US) });
        true
    }

    /// The addresses in use, by host number.
    pub fn in_use(&self) -> impl Iterator<Item = PodAddr> + '_ {
        self.in_use.values().copied()
    }
}

fn low32(addr: Ipv6Addr) -> u32 {
    let o = addr.octets();
    u32::from_be_bytes([o[12], o[13], o[14], o[15]])
}
