//! The network: who hears whom, after what delay, and what is lost, doubled or damaged on the way.

use std::collections::BTreeSet;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt};

use crate::marks::Marks;

/// The network between nodes, by index.
#[derive(Debug, Default)]
pub struct Net {
    /// The side each node is on; nodes of different sides do not hear each other.
    pub side: Vec<u8>,
    /// Directions that are cut: (from, to).
    pub cut: BTreeSet<(usize, usize)>,
    /// Per mille.
    pub loss: u32,
    /// Per mille.
    pub duplicate: u32,
    /// Per mille.
    pub corrupt: u32,
    /// One way, at most, microseconds.
    pub latency_us: u64,
    /// Added at random to every datagram: they overtake each other, microseconds.
    pub jitter_us: u64,
}

impl Net {
    /// Whether what `from` sends can reach `to`.
    #[must_use]
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        self.side[from] == self.side[to] && !self.cut.contains(&(from, to))
    }

    /// Carries a datagram: the copies that arrive, with their delays.
    pub fn carry(
        &self,
        from: usize,
        to: usize,
        bytes: Vec<u8>,
        rng: &mut Xoshiro256PlusPlus,
        marks: &mut Marks,
    ) -> Vec<(u64, Vec<u8>)> {
        if !self.reaches(from, to) {
            return Vec::new();
        }
        if self.chance(self.loss, rng) {
            marks.hit("net loss");
            return Vec::new();
        }
        let mut copies = vec![bytes];
        if self.chance(self.duplicate, rng) {
            marks.hit("net duplicate");
            copies.push(copies[0].clone());
        }
        let delay = |rng: &mut Xoshiro256PlusPlus| {
            let base = self.latency_us / 4 + rng.next_u64() % (self.latency_us / 4 + 1);
            base + rng.next_u64() % (self.jitter_us + 1)
        };
        let mut arrive = Vec::new();
        for mut bytes in copies {
            if self.chance(self.corrupt, rng) && !bytes.is_empty() {
                marks.hit("net corrupt");
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << (rng.next_u32() % 8);
            }
            arrive.push((delay(rng), bytes));
        }
        arrive
    }

    fn chance(&self, per_mille: u32, rng: &mut Xoshiro256PlusPlus) -> bool {
        per_mille > 0 && rng.next_u32() % 1000 < per_mille
    }
}
