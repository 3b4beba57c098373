//! Faults: often of a few nodes, now and then of the whole flock.
//!
//! At a thousand nodes a fault of the whole flock is a million things to learn, and with one every few seconds there is no
//! heal between them: that is one long outage, and only what holds in an outage is tested.

use rand::{Rng, RngExt};

use super::{Ev, Flock, S};
use crate::clock::Clock;

/// Mean time between faults of a few nodes, at pace 1.
const FEW_EVERY_US: u64 = 8 * S;
/// Most nodes in one of those.
const FEW_MAX: usize = 4;
/// How far a calendar may be off: beyond the life of what is deleted, too.
const JUMP_MS_MAX: i64 = 40 * 24 * 3_600_000;
/// How much a clock gains or loses at worst, parts in a million.
const DRIFT_PPM_MAX: i64 = 50_000;
/// Of so many nodes one is in a mass crash or a mass pause, at most, and two are behind a mass clog.
const MASS_SHARE: usize = 16;

/// What can happen to a few nodes.
#[derive(Clone, Copy, Debug)]
enum Few {
    Isolate,
    OneWay,
    Crash,
    Pause,
    Clog,
    ClockJump,
    ClockDrift,
}

/// What can happen to the flock.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wide {
    Partition,
    Loss,
    Delay,
    MassCrash,
    MassPause,
    MassClog,
}

const FEW: [Few; 7] =
    [Few::Isolate, Few::OneWay, Few::Crash, Few::Pause, Few::Clog, Few::ClockJump, Few::ClockDrift];
const WIDE: [Wide; 6] =
    [Wide::Partition, Wide::Loss, Wide::Delay, Wide::MassCrash, Wide::MassPause, Wide::MassClog];

impl Flock {
    pub(super) fn fault(&mut self) {
        let kind = FEW[self.rng.random_range(0..FEW.len())];
        let node = self.rng.random_range(0..self.slots.len());
        self.report.faults += 1;
        self.say(|| format!("{kind:?} n{node}"));
        match kind {
            Few::Isolate => self.isolate(node),
            Few::OneWay => self.one_way(node),
            Few::Crash => {
                self.marks.hit("fault crash");
                let nodes = self.some(FEW_MAX);
                self.crash(nodes);
            }
            Few::Pause => {
                self.marks.hit("fault pause");
                let nodes = self.some(FEW_MAX);
                self.pause(nodes);
            }
            Few::Clog => {
                self.marks.hit("fault swizzle clog");
                let nodes = self.some(FEW_MAX);
                self.swizzle(nodes);
            }
            Few::ClockJump => {
                self.marks.hit("fault clock jump");
                let jump_ms = self.rng.random_range(-JUMP_MS_MAX..=JUMP_MS_MAX);
                self.slots[node].wall_offset_ms = jump_ms;
            }
            Few::ClockDrift => {
                self.marks.hit("fault clock drift");
                let ppm = self.rng.random_range(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX);
                self.drift(node, |clock, now| clock.drift(now, ppm));
                let after = self.between(5, 60);
                self.queue.push(self.now + after, Ev::Steady(node));
            }
        }
        let every_us = FEW_EVERY_US * self.options.pace.max(1);
        let after = self.rng.next_u64() % (2 * every_us) + 1;
        self.queue.push(self.now + after, Ev::Fault);
    }

    /// Each kind has its turn before any has it twice.
    pub(super) fn wide_fault(&mut self) {
        if self.deck.is_empty() {
            self.deck = WIDE.to_vec();
        }
        let at = self.rng.random_range(0..self.deck.len());
        let kind = self.deck.swap_remove(at);
        self.report.faults += 1;
        self.report.wide_faults += 1;
        self.say(|| format!("{kind:?}"));
        let share = (self.slots.len() / MASS_SHARE).max(1);
        match kind {
            Wide::Partition => self.partition(),
            Wide::Loss => {
                self.marks.hit("fault loss burst");
                self.net.loss = self.rng.random_range(50..300);
                self.end_burst();
            }
            Wide::Delay => {
                self.marks.hit("fault delay burst");
                self.net.jitter_us = self.rng.random_range(10_000..200_000);
                self.end_burst();
            }
            Wide::MassCrash => {
                self.marks.hit("fault mass crash");
                let nodes = self.some(share);
                self.crash(nodes);
            }
            Wide::MassPause => {
                self.marks.hit("fault mass pause");
                let nodes = self.some(share);
                self.pause(nodes);
            }
            Wide::MassClog => {
                self.marks.hit("fault mass clog");
                let nodes = self.some(2 * share);
                self.swizzle(nodes);
            }
        }
        self.plan_wide();
    }

    /// The next one, after half to one and a half times the mean.
    pub(super) fn plan_wide(&mut self) {
        let every_us = self.options.wide_s.max(1) * S * self.options.pace.max(1);
        let after = every_us / 2 + self.rng.next_u64() % every_us;
        self.queue.push(self.now + after, Ev::WideFault);
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.options.verbose {
            let cpu_s = crate::report::cpu_s();
            println!("{:>8} ms, {cpu_s:.1} CPU-s: {}", self.now / 1000, what());
        }
    }

    pub(super) fn steady(&mut self, node: usize) {
        self.drift(node, |clock, now| {
            clock.steady(now);
        });
    }

    fn drift(&mut self, node: usize, change: impl FnOnce(&mut Clock, u64)) {
        change(&mut self.slots[node].clock, self.now);
        // What it waits for is nearer or farther now.
        self.slots[node].wake_at = None;
        if !self.slots[node].paused {
            self.plan(node);
        }
    }

    /// A few nodes, one to `most`.
    fn some(&mut self, most: usize) -> Vec<usize> {
        let n = self.slots.len();
        let count = self.rng.random_range(1..=most.min(n));
        (0..count).map(|_| self.rng.random_range(0..n)).collect()
    }

    fn partition(&mut self) {
        self.marks.hit("fault partition");
        let rng = &mut self.rng;
        self.net.side.iter_mut().for_each(|side| *side = u8::from(rng.random_bool(0.4)));
        self.side_token += 1;
        let after = self.between(5, 30);
        self.queue.push(self.now + after, Ev::Whole(self.side_token));
    }

    /// One node alone. A partition puts it on one of its sides.
    fn isolate(&mut self, node: usize) {
        self.marks.hit("fault isolate");
        // Two that are isolated at once do not hear each other either, mostly.
        self.net.side[node] = self.rng.random_range(2..=u8::MAX);
        let after = self.between(3, 30);
        self.queue.push(self.now + after, Ev::Rejoin(node, self.side_token));
    }

    fn one_way(&mut self, node: usize) {
        self.marks.hit("fault one way");
        let other = self.rng.random_range(0..self.slots.len());
        self.net.cut.insert((node, other));
        let after = self.between(3, 60);
        self.queue.push(self.now + after, Ev::Cut(node, other));
    }

    /// Power cuts of machines without a disk; most stay up, so that what was acknowledged is somewhere.
    fn crash(&mut self, nodes: Vec<usize>) {
        for node in nodes {
            let down = self.slots.iter().filter(|slot| slot.gossip.is_none()).count();
            if self.slots[node].gossip.is_none() || (down + 1) * 4 > self.slots.len() {
                continue;
            }
            let slot = &mut self.slots[node];
            slot.gossip = None;
            slot.paused = false;
            slot.inbox.clear();
            slot.wake_at = None;
            let after = self.between(1, 25);
            self.queue.push(self.now + after, Ev::Boot(node));
        }
    }

    fn pause(&mut self, nodes: Vec<usize>) {
        for node in nodes {
            self.slots[node].paused = self.slots[node].gossip.is_some();
            let after = self.between(1, 16);
            self.queue.push(self.now + after, Ev::Resume(node));
        }
    }

    /// Clogs nodes one after another and unclogs them in another order.
    fn swizzle(&mut self, nodes: Vec<usize>) {
        for node in nodes {
            let closes = self.between(0, 4);
            let opens = closes + self.between(1, 10);
            self.queue.push(self.now + closes, Ev::Clog(node));
            self.queue.push(self.now + opens, Ev::Unclog(node));
        }
    }

    pub(super) fn unclog(&mut self, node: usize) {
        for (from, to, bytes) in self.net.unclog(node) {
            let after = self.rng.next_u64() % self.net.latency_us;
            self.queue.push(self.now + after, Ev::Datagram { to, from, bytes });
        }
    }

    fn between(&mut self, min_s: u64, max_s: u64) -> u64 {
        self.rng.random_range(min_s * S..=max_s * S)
    }

    fn end_burst(&mut self) {
        self.burst_token += 1;
        let after = self.between(3, 15);
        self.queue.push(self.now + after, Ev::Calm(self.burst_token));
    }

    pub(super) fn calm_net(&mut self) {
        self.net.loss = 1;
        self.net.jitter_us = 300;
    }
}
