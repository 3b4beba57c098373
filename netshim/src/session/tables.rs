//! Bounded tables of the sessions: their indexes, and a rate limit.

use rand::{Rng, RngExt};

use super::PeerId;

/// Session indexes: the low 16 bits are a place in the table, the high ones are random, so that a stranger hits one by chance of 1 in 65,536.
#[derive(Default)]
pub(super) struct Indexes {
    pub(super) slots: Vec<Option<(u32, PeerId)>>,
    free: Vec<u16>,
}

impl Indexes {
    pub(super) fn allocate<R: Rng + ?Sized>(&mut self, peer: PeerId, rng: &mut R) -> Option<u32> {
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                // At most four for each of PEERS_MAX peers.
                let place = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(None);
                place
            }
        };
        let random: u16 = rng.random();
        let index = u32::from(random) << 16 | u32::from(place);
        *self.slots.get_mut(usize::from(place))? = Some((index, peer));
        Some(index)
    }

    pub(super) fn peer(&self, index: u32) -> Option<PeerId> {
        let (held, peer) = (*self.slots.get((index & 0xffff) as usize)?)?;
        (held == index).then_some(peer)
    }

    pub(super) fn free(&mut self, index: u32) {
        if self.peer(index).is_some()
            && let Some(slot) = self.slots.get_mut((index & 0xffff) as usize)
        {
            *slot = None;
            self.free.push((index & 0xffff) as u16);
        }
    }
}

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(super) per_s: u32,
    burst: u32,
    left: u32,
    filled_us: u64,
}

impl Bucket {
    pub(crate) fn new(per_s: u32, burst: u32, now_us: u64) -> Self {
        Self { per_s, burst, left: burst, filled_us: now_us }
    }

    pub(crate) fn left(&mut self, now_us: u64) -> u32 {
        let since_us = now_us.saturating_sub(self.filled_us);
        let new = since_us.saturating_mul(u64::from(self.per_s)) / 1_000_000;
        if new > 0 {
            self.left = u64::from(self.left).saturating_add(new).min(u64::from(self.burst)) as u32;
            self.filled_us = now_us;
        }
        self.left
    }

    pub(crate) fn take(&mut self, now_us: u64) -> bool {
        let left = self.left(now_us);
        self.left = left.saturating_sub(1);
        left > 0
    }
}
