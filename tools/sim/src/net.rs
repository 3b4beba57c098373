//! The network: who hears whom, after what delay, and what is lost, doubled or damaged on the way.

use std::collections::BTreeSet;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt};

use crate::marks::Marks;

/// Datagrams that wait behind clogged links; more are dropped.
const HELD_MAX: usize = 65_536;

/// The network between nodes, by index.
#[derive(Debug, Default)]
pub struct Net {
    /// The side each node is on; nodes of different sides do not hear each other.
    pub side: Vec<u8>,
    /// Directions that are cut: (from, to).
    pub cut: BTreeSet<(usize, usize)>,
    /// Nodes whose links are clogged: what they send and what is sent to them waits. Empty: none ever.
    pub clogged: Vec<bool>,
    /// What waits behind clogged links: (from, to, bytes).
    pub held: Vec<(usize, usize, Vec<u8>)>,
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
    /// Datagrams lost, doubled and damaged so far.
    pub done: [u64; 3],
}

impl Net {
    /// Whether what `from` sends can reach `to`.
    #[must_use]
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        self.side[from] == self.side[to] && (self.cut.is_empty() || !self.cut.contains(&(from, to)))
    }

    fn is_clogged(&self, node: usize) -> bool {
        self.clogged.get(node) == Some(&true)
    }

    /// Opens a node's links; what has waited for it and for nobody else: (from, to, bytes).
    pub fn unclog(&mut self, node: usize) -> Vec<(usize, usize, Vec<u8>)> {
        if let Some(clogged) = self.clogged.get_mut(node) {
            *clogged = false;
        }
        let held = std::mem::take(&mut self.held);
        let (wait, free) = held
            .into_iter()
            .partition(|(from, to, _)| self.is_clogged(*from) || self.is_clogged(*to));
        self.held = wait;
        free
    }

    /// Carries a datagram: `arrive` gets the copies that arrive, with their delays.
    pub fn carry(
        &mut self,
        from: usize,
        to: usize,
        mut bytes: Vec<u8>,
        rng: &mut Xoshiro256PlusPlus,
        mut arrive: impl FnMut(u64, Vec<u8>),
    ) {
        if !self.reaches(from, to) {
            return;
        }
        if self.chance(self.loss, rng) {
            self.done[0] += 1;
            return;
        }
        if self.is_clogged(from) || self.is_clogged(to) {
            if self.held.len() < HELD_MAX {
                self.held.push((from, to, bytes));
            }
            return;
        }
        let delay = |rng: &mut Xoshiro256PlusPlus| {
            let base = self.latency_us / 4 + rng.next_u64() % (self.latency_us / 4 + 1);
            base + rng.next_u64() % (self.jitter_us + 1)
        };
        if self.chance(self.duplicate, rng) {
            self.done[1] += 1;
            arrive(delay(rng), bytes.clone());
        }
        if self.chance(self.corrupt, rng) && !bytes.is_empty() {
            self.done[2] += 1;
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << (rng.next_u32() % 8);
        }
        arrive(delay(rng), bytes);
    }

    /// What it did, for the coverage marks.
    #[must_use]
    pub fn marks(&self) -> Marks {
        let mut marks = Marks::default();
        for (name, n) in ["net loss", "net duplicate", "net corrupt"].into_iter().zip(self.done) {
            if n > 0 {
                marks.0.insert(name, n);
            }
        }
        marks
    }

    fn chance(&self, per_mille: u32, rng: &mut Xoshiro256PlusPlus) -> bool {
        per_mille > 0 && rng.next_u32() % 1000 < per_mille
    }
}
