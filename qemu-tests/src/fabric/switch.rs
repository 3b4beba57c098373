//! The switch itself, without IO: frames in, frames out, at virtual times.
//!
//! Invariants: a frame never comes back out of the port it came in by; a cut pair exchanges nothing, learned
//! addresses or not; the same seed and inputs give the same losses.

use rand::{Rng, RngExt};
use std::collections::BTreeMap;

/// Most ports of one switch.
pub(super) const PORTS_MAX: usize = 64;
/// Most addresses learned; new ones are flooded when it is full.
pub(super) const ADDRESSES_MAX: usize = 1024;
/// Most frames waiting for their time; later ones are dropped, as a full queue does.
pub(super) const QUEUE_MAX: usize = 16_384;
/// Largest frame carried; larger ones are dropped.
pub(super) const FRAME_BYTES_MAX: usize = 65_550;

/// What happens to frames from one port to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    /// Nothing passes.
    pub cut: bool,
    /// Lost of a million.
    pub loss_ppm: u32,
    /// Added to each frame.
    pub delay_us: u64,
}

/// What a switch has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames delivered.
    pub delivered: u64,
    /// Frames lost by a rule.
    pub lost: u64,
    /// Frames dropped because the queue was full or the frame was no frame.
    pub dropped: u64,
}

/// A learning switch with faults between pairs of ports.
#[derive(Debug, Default)]
pub struct Switch {
    ports: usize,
    rules: BTreeMap<(usize, usize), Rule>,
    addresses: BTreeMap<[u8; 6], usize>,
    queue: BTreeMap<(u64, u64), (usize, Vec<u8>)>,
    sequence: u64,
    counters: Counters,
}

impl Switch {
    /// A switch of that many ports, at most `PORTS_MAX`.
    #[must_use]
    pub fn new(ports: usize) -> Self {
        Self { ports: ports.min(PORTS_MAX), ..Self::default() }
    }

    /// Sets what happens from `from` to `to`; the other direction is its own.
    pub fn set(&mut self, from: usize, to: usize, rule: Rule) {
        if rule == Rule::default() {
            self.rules.remove(&(from, to));
        } else {
            self.rules.insert((from, to), rule);
        }
    }

    /// The rule from `from` to `to`.
    #[must_use]
    pub fn rule(&self, from: usize, to: usize) -> Rule {
        self.rules.get(&(from, to)).copied().unwrap_or_default()
    }

    /// Forgets every rule. What waits in the queue still arrives late.
    pub fn heal(&mut self) {
        self.rules.clear();
    }

    /// What it has carried.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes a frame from a port; [`Switch::due`] gives it to the others.
    pub fn input<R: Rng + ?Sized>(&mut self, now_us: u64, from: usize, frame: &[u8], rng: &mut R) {
        let (Some(to), Some(source)) = (address(frame, 0), address(frame, 6)) else {
            self.counters.dropped += 1;
            return;
        };
        if frame.len() > FRAME_BYTES_MAX || from >= self.ports {
            self.counters.dropped += 1;
            return;
        }
        let known = self.addresses.len() < ADDRESSES_MAX || self.addresses.contains_key(&source);
        if source[0] & 1 == 0 && known {
            self.addresses.insert(source, from);
        }
        let one = self.addresses.get(&to).copied().filter(|_| to[0] & 1 == 0);
        for port in 0..self.ports {
            if port == from || one.is_some_and(|one| one != port) {
                continue;
            }
            let rule = self.rule(from, port);
            if rule.cut || (rule.loss_ppm > 0 && rng.random_range(0..1_000_000) < rule.loss_ppm) {
                self.counters.lost += 1;
            } else if self.queue.len() >= QUEUE_MAX {
                self.counters.dropped += 1;
            } else {
                self.sequence += 1;
                self.queue.insert((now_us + rule.delay_us, self.sequence), (port, frame.to_vec()));
            }
        }
    }

    /// The next frame whose time has come, with the port it leaves by.
    pub fn due(&mut self, now_us: u64) -> Option<(usize, Vec<u8>)> {
        let entry = self.queue.first_entry().filter(|entry| entry.key().0 <= now_us)?;
        self.counters.delivered += 1;
        Some(entry.remove())
    }

    /// When [`Switch::due`] has something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }
}

fn address(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{SeedableRng, rngs::SmallRng};

    fn frame(to: u8, from: u8) -> Vec<u8> {
        let mut f = vec![0; 60];
        (f[0], f[5], f[6], f[11]) = (if to == 255 { 255 } else { 2 }, to, 2, from);
        f
    }

    fn out(s: &mut Switch, now: u64) -> Vec<usize> {
        std::iter::from_fn(|| s.due(now).map(|(port, _)| port)).collect()
    }

    #[test]
    fn floods_then_learns() {
        let (mut s, mut rng) = (Switch::new(3), SmallRng::seed_from_u64(1));
        s.input(0, 0, &frame(9, 1), &mut rng);
        assert_eq!(out(&mut s, 0), [1, 2]);
        s.input(0, 2, &frame(1, 3), &mut rng);
        assert_eq!(out(&mut s, 0), [0]);
        s.input(0, 0, &frame(255, 1), &mut rng);
        assert_eq!(out(&mut s, 0), [1, 2]);
        s.input(0, 0, &[0; 5], &mut rng);
        assert_eq!(s.counters().dropped, 1);
    }

    #[test]
    fn one_way_cut_loss_delay_and_heal() {
        let (mut s, mut rng) = (Switch::new(2), SmallRng::seed_from_u64(1));
        s.set(0, 1, Rule { cut: true, ..Rule::default() });
        s.input(0, 0, &frame(255, 1), &mut rng);
        s.input(0, 1, &frame(255, 2), &mut rng);
        assert_eq!(out(&mut s, 0), [0]);
        s.set(0, 1, Rule { loss_ppm: 300_000, delay_us: 80, ..Rule::default() });
        for _ in 0..1000 {
            s.input(5, 0, &frame(255, 1), &mut rng);
        }
        assert_eq!(s.next_deadline(), Some(85));
        assert!(out(&mut s, 84).is_empty());
        let got = out(&mut s, 85).len();
        assert!((650..750).contains(&got), "{got} of 1000 arrived at 30 % loss");
        s.heal();
        s.input(90, 0, &frame(255, 1), &mut rng);
        assert_eq!(out(&mut s, 90), [1]);
    }

    #[test]
    fn a_full_queue_drops() {
        let (mut s, mut rng) = (Switch::new(2), SmallRng::seed_from_u64(1));
        for _ in 0..QUEUE_MAX + 5 {
            s.input(0, 0, &frame(255, 1), &mut rng);
        }
        assert_eq!(s.counters().dropped, 5);
    }
}
