//! Addresses for an isolated provisioning network, without IO: which machine has which, and until when.

use super::dhcp::Mac;
use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

/// Addresses one range may have. Larger ranges are refused.
pub const POOL_MAX: usize = 4096;
/// How long an address is lent.
pub const LEASE: Duration = Duration::from_secs(3600);
/// How long an offer is kept for the one it was made to.
pub const OFFER: Duration = Duration::from_secs(60);

/// The addresses that can be lent, and those that are.
#[derive(Debug, Clone)]
pub struct Pool {
    first: u32,
    last: u32,
    reserved: BTreeMap<Ipv4Addr, Mac>,
    lent: BTreeMap<Ipv4Addr, (Option<Mac>, Duration)>,
}

impl Pool {
    /// `10.0.0.100-10.0.0.199`.
    ///
    /// # Errors
    /// When it is no range, or has more than [`POOL_MAX`] addresses.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (first, last) = text
            .split_once('-')
            .and_then(|(a, b)| {
                Some((a.trim().parse::<Ipv4Addr>().ok()?, b.trim().parse::<Ipv4Addr>().ok()?))
            })
            .ok_or_else(|| format!("{text:?} is no range such as 10.0.0.100-10.0.0.199"))?;
        let (first, last) = (u32::from(first), u32::from(last));
        if first > last || (last - first) as usize >= POOL_MAX {
            return Err(format!("{text:?} must have 1 to {POOL_MAX} addresses, the lower first"));
        }
        Ok(Self { first, last, reserved: BTreeMap::new(), lent: BTreeMap::new() })
    }

    /// First and last address.
    #[must_use]
    pub fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        (self.first.into(), self.last.into())
    }

    /// Keeps an address, within the range or not, for one machine.
    pub fn reserve(&mut self, address: Ipv4Addr, mac: Mac) {
        self.reserved.insert(address, mac);
    }

    /// An address for a machine: its reserved one, the one it has or had, the one it wants, or a free one. The choice
    /// among free ones starts at a hash of the hardware address, so that a restarted server chooses the same again.
    pub fn offer(&mut self, now: Duration, mac: Mac, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let own = self.reserved.iter().find(|(_, m)| **m == mac).map(|(a, _)| *a);
        let had = || self.lent.iter().find(|(_, (m, _))| *m == Some(mac)).map(|(a, _)| *a);
        let chosen = own
            .or_else(had)
            .or_else(|| wanted.filter(|a| self.is_free(now, *a, mac)))
            .or_else(|| {
                let size = self.last - self.first + 1;
                let start = hash(mac) % size;
                let nth = |n: u32| Ipv4Addr::from(self.first + (start + n) % size);
                (0..size).map(nth).find(|a| self.is_free(now, *a, mac))
            })?;
        let until = self.lent.get(&chosen).map_or(now, |(_, until)| *until).max(now + OFFER);
        self.lent.insert(chosen, (Some(mac), until));
        Some(chosen)
    }

    /// Lends an address that was asked for; `false` when it is another's or not ours to lend.
    pub fn take(&mut self, now: Duration, mac: Mac, address: Ipv4Addr) -> bool {
        let fits = self.is_free(now, address, mac);
        if fits {
            self.lent.retain(|_, (m, _)| *m != Some(mac));
            self.lent.insert(address, (Some(mac), now + LEASE));
        }
        fits
    }

    /// Takes an address back.
    pub fn release(&mut self, mac: Mac) {
        self.lent.retain(|_, (m, _)| *m != Some(mac));
    }

    /// Somebody else was found to use an address: nobody is given it for a while.
    pub fn decline(&mut self, now: Duration, mac: Mac, address: Ipv4Addr) {
        if self.is_free(now, address, mac) {
            self.lent.insert(address, (None, now + LEASE));
        }
    }

    fn is_free(&self, now: Duration, address: Ipv4Addr, mac: Mac) -> bool {
        if let Some(own) = self.reserved.get(&address) {
            return *own == mac;
        }
        (self.first..=self.last).contains(&u32::from(address))
            && match self.lent.get(&address) {
                Some((holder, until)) => *holder == Some(mac) || *until < now,
                None => true,
            }
    }
}

/// FNV-1a.
fn hash(mac: Mac) -> u32 {
    mac.0.iter().fold(0x811c_9dc5, |h, byte| (h ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn each_has_its_own_and_keeps_it() {
        let mut pool = Pool::parse("10.0.0.10-10.0.0.12").unwrap();
        let three: Vec<_> = (1..=3).map(|n| pool.offer(s(0), mac(n), None).unwrap()).collect();
        assert!(three[0] != three[1] && three[1] != three[2] && three[0] != three[2]);
        assert_eq!(pool.offer(s(1), mac(4), None), None, "a full range offers nothing");
        assert!(pool.take(s(1), mac(1), three[0]));
        assert!(!pool.take(s(1), mac(4), three[0]), "another's");
        assert!(!pool.take(s(1), mac(4), Ipv4Addr::new(10, 0, 0, 13)), "not ours");
        // Offers that were not taken end; leases do not yet.
        let late = pool.offer(s(62), mac(4), None).unwrap();
        assert_ne!(late, three[0]);
        assert_eq!(pool.offer(s(3000), mac(1), None), Some(three[0]));
        pool.release(mac(1));
        assert!(pool.take(s(3000), mac(5), three[0]));
    }

    #[test]
    fn reserved_and_declined_addresses_are_nobody_elses() {
        let mut pool = Pool::parse("10.0.0.10-10.0.0.11").unwrap();
        pool.reserve(Ipv4Addr::new(10, 0, 0, 10), mac(9));
        pool.reserve(Ipv4Addr::new(10, 0, 0, 50), mac(8));
        assert_eq!(pool.offer(s(0), mac(8), None), Some(Ipv4Addr::new(10, 0, 0, 50)));
        let eleven = Ipv4Addr::new(10, 0, 0, 11);
        assert_eq!(pool.offer(s(0), mac(1), Some(Ipv4Addr::new(10, 0, 0, 10))), Some(eleven));
        pool.decline(s(1), mac(1), eleven);
        assert_eq!(pool.offer(s(2), mac(1), None), None);
        assert_eq!(pool.offer(s(4000), mac(1), None), Some(eleven));
    }

    #[test]
    fn bad_ranges_are_named() {
        for bad in ["", "10.0.0.1", "10.0.0.9-10.0.0.1", "10.0.0.0-10.1.0.0", "a-b"] {
            assert!(Pool::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_address_is_lent_twice(steps in proptest::collection::vec((0u8..6, 0u8..8, 0u64..100), 1..200)) {
            let mut pool = Pool::parse("10.0.0.10-10.0.0.13").unwrap();
            let mut held = std::collections::BTreeMap::<Ipv4Addr, (Mac, Duration)>::new();
            let mut now = Duration::ZERO;
            for (what, who, later) in steps {
                now += s(later);
                let who = mac(who);
                match what {
                    0 => { pool.release(who); held.retain(|_, (m, _)| *m != who); }
                    _ => if let Some(address) = pool.offer(now, who, None)
                        && pool.take(now, who, address) {
                        if let Some((other, until)) = held.get(&address) {
                            proptest::prop_assert!(*other == who || *until < now);
                        }
                        held.retain(|_, (m, _)| *m != who);
                        held.insert(address, (who, now + LEASE));
                    }
                }
            }
        }
    }
}
