//! The world of one run: machines, network, virtual time.

mod healing;
mod machine;
mod nodes;
mod operations;
mod pods;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use sched::Observed;
use sched::hash::stable;

use crate::check::{self, Seen};
use crate::clock::Clock;
use crate::marks::Marks;
use crate::net::Net;
use crate::node::Effect;
use crate::operator::Operator;
use crate::options::{Drawn, Fault, Options};
use crate::queue::Queue;
use crate::report::{Report, VIOLATIONS_MAX};
use machine::{Machine, machine};

/// One second of virtual time.
pub(crate) const S: u64 = 1_000_000;
/// Faults begin after the flock has had this long to form.
const WARM_US: u64 = 6 * S;
/// Wall clock at the start of every run.
const WALL_MS: u64 = 1_800_000_000_000;
/// Sources of randomness of their own: see [`World::drawing`].
const FAULTS: u64 = 1;
const OPERATIONS: u64 = 2;
const CLOCKS: u8 = 3;
/// How far a clock of a machine is off for all of its life, parts in a million.
const RATED_PPM: i64 = 500;
/// Datagrams that wait for a paused node; more are dropped, as a socket buffer does.
const INBOX_MAX: usize = 2048;
/// A side knows that it is one after this long without a boot or a resume on it.
const KNOWN_US: u64 = 15 * S;

/// What happens at a time.
pub(crate) enum Ev {
    Datagram { to: usize, from: SocketAddr, bytes: Vec<u8> },
    Wake { node: usize },
    Sync { node: usize },
    PodUp { node: usize, boot: u64, claim: String, start: u64, fail: Option<bool> },
    PodDown { node: usize, boot: u64, claim: String, start: u64 },
    PodExit { node: usize, boot: u64, claim: String, start: u64 },
    Fault,
    Operator,
    Heal(Heal),
    Boot { node: usize },
    Resume { node: usize },
    Clog { node: usize },
    Unclog { node: usize },
    DiskWell { node: usize },
    ClockSteady { node: usize },
    Forget { node: usize },
    Second,
}

/// A fault that ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Heal {
    Sides(u64),
    Cut(usize, usize),
    Loss(u64),
    Delay(u64),
}

/// The world.
pub struct World {
    pub(crate) options: Options,
    pub(crate) drawn: Drawn,
    pub(crate) now: u64,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) queue: Queue<Ev>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) net: Net,
    pub(crate) sides_since: Option<u64>,
    pub(crate) token: u64,
    pub(crate) marks: Marks,
    pub(crate) operator: Operator,
    pub(crate) forgotten: BTreeSet<String>,
    /// Submitted and not yet on most disks.
    pending: Vec<(String, u64)>,
    /// On most disks: must never be lost.
    acked: BTreeMap<String, u64>,
    violations: Vec<String>,
    trace: u64,
    events: u64,
    pub(crate) faults: u64,
    operations: u64,
    starts: u64,
    calm: bool,
    /// An empty list that keeps its room.
    spare: Vec<Effect>,
}

impl World {
    /// A world of machines that are not booted yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let drawn = Drawn::draw(&options);
        let rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
        let n = drawn.nodes;
        let net = Net {
            side: vec![0; n],
            clogged: vec![false; n],
            loss: drawn.loss,
            duplicate: drawn.duplicate,
            corrupt: drawn.corrupt,
            latency_us: drawn.latency_us,
            jitter_us: drawn.latency_us / 4,
            ..Net::default()
        };
        let clocks = clocks(&options, &drawn);
        let machines: Vec<Machine> =
            clocks.into_iter().enumerate().map(|(i, c)| machine(i, drawn.racks, c)).collect();
        Self {
            options,
            drawn,
            now: S,
            rng,
            queue: Queue::new(),
            machines,
            net,
            sides_since: None,
            token: 0,
            marks: Marks::default(),
            operator: Operator::default(),
            forgotten: BTreeSet::new(),
            pending: Vec::new(),
            acked: BTreeMap::new(),
            violations: Vec::new(),
            trace: 0,
            events: 0,
            faults: 0,
            operations: 0,
            starts: 0,
            calm: false,
            spare: Vec::new(),
        }
    }

    /// Runs all phases.
    #[must_use]
    pub fn run(mut self) -> Report {
        for node in 0..self.machines.len() {
            let at = self.now + self.rng.next_u64() % S;
            self.queue.push(at, Ev::Boot { node });
        }
        self.queue.push(self.now + WARM_US, Ev::Fault);
        self.queue.push(self.now + WARM_US / 2, Ev::Operator);
        self.queue.push(self.now + S, Ev::Second);
        let end = self.now + WARM_US + self.options.safety_s * S;
        self.advance(end);
        self.heal_all();
        let healed = self.now;
        let mut healed_ms = self.options.liveness_s * 1000;
        let mut wrong = Err(String::new());
        while self.now < healed + self.options.liveness_s * S && self.violations.is_empty() {
            self.advance(self.now + S / 4);
            let before = std::mem::replace(&mut wrong, self.whole());
            if let Err(wrong) = &wrong
                && self.options.verbose
                && before.as_ref().err() != Some(wrong)
            {
                println!("{:>8} not whole: {wrong}", self.now / 1000);
            }
            if wrong.is_ok() {
                healed_ms = (self.now - healed) / 1000;
                break;
            }
        }
        if !self.violations.is_empty() {
            // Said already.
        } else if let Err(wrong) = wrong {
            self.violate(format!(
                "not whole {} s after the heal: {wrong}",
                self.options.liveness_s
            ));
        } else {
            // Stops under way count nothing; starts do.
            let starts = self.starts;
            self.advance(self.now + self.options.rest_s * S);
            if self.starts != starts {
                self.violate(format!("{} pods started at rest", self.starts - starts));
            }
            // A lost probe may have made someone suspect for a moment.
            let mut wrong = self.whole();
            for _ in 0..20 {
                if wrong.is_err() {
                    self.advance(self.now + S / 2);
                    wrong = self.whole();
                }
            }
            if let Err(wrong) = wrong {
                self.violate(format!("whole, and then not any more: {wrong}"));
            }
        }
        self.marks.merge(&self.net.marks());
        Report {
            options: self.options,
            drawn: self.drawn,
            violations: self.violations,
            trace: self.trace,
            marks: self.marks,
            events: self.events,
            faults: self.faults,
            virtual_ms: self.now / 1000,
            healed_ms,
            starts: self.starts,
        }
    }

    fn whole(&self) -> Result<(), String> {
        let mut flock = Vec::new();
        for m in self.machines.iter().filter(|m| !m.gone) {
            let node =
                m.node.as_ref().filter(|_| !m.paused).ok_or(format!("{} is down", m.name))?;
            flock.push(Seen { name: &m.name, node, kernel: &m.kernel });
        }
        check::whole(&flock, &self.acked)
    }

    fn advance(&mut self, end: u64) {
        while self.violations.is_empty() {
            let Some((at, ev)) = self.queue.pop(end) else { break };
            self.now = self.now.max(at);
            self.events += 1;
            self.handle(ev);
        }
        self.now = end;
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::Datagram { to, from, bytes } => self.datagram(to, from, bytes),
            Ev::Wake { node } => self.wake(node),
            Ev::Sync { node } => {
                let wall = self.wall_ms(node);
                self.machines[node].disk.sync(wall);
            }
            Ev::PodUp { node, boot, claim, start, fail } => {
                if self.pod_is(node, boot, &claim, start) {
                    self.pod_up(node, &claim, fail);
                }
            }
            Ev::PodDown { node, boot, claim, start } => {
                if self.pod_is(node, boot, &claim, start) {
                    self.machines[node].kernel.pods.remove(&claim);
                    self.tell(node, claim, Observed::Gone);
                }
            }
            Ev::PodExit { node, boot, claim, start } => {
                if self.pod_is(node, boot, &claim, start) {
                    self.pod_up(node, &claim, None);
                }
            }
            Ev::Fault => {
                if !self.calm {
                    self.drawing(FAULTS, self.faults, |world| {
                        let after = world.rng.next_u64() % (2_000 * world.drawn.fault_every_ms) + 1;
                        world.queue.push(world.now + after, Ev::Fault);
                        world.fault();
                    });
                }
            }
            Ev::Operator => {
                if !self.calm {
                    self.operations += 1;
                    self.drawing(OPERATIONS, self.operations, |world| {
                        let every_us = 2_000 * world.drawn.operator_every_ms;
                        let after = world.rng.next_u64() % every_us + 1;
                        world.queue.push(world.now + after, Ev::Operator);
                        world.operate();
                    });
                }
            }
            Ev::Heal(heal) => self.heal(heal),
            Ev::Boot { node } => self.boot(node),
            Ev::Resume { node } => self.resume(node),
            Ev::Clog { node } => self.net.clogged[node] |= !self.calm,
            Ev::Unclog { node } => self.unclog(node),
            Ev::DiskWell { node } => self.machines[node].disk_slow = false,
            Ev::ClockSteady { node } => self.steady(node),
            Ev::Forget { node } => self.forget(node),
            Ev::Second => {
                self.acknowledge();
                self.queue.push(self.now + S, Ev::Second);
            }
        }
    }

    /// Does something that draws from a source of its own: the n-th fault and the n-th operation of a seed are the same
    /// whatever happened to datagrams before. A fix then meets the faults that it was made for.
    fn drawing(&mut self, stream: u64, n: u64, act: impl FnOnce(&mut Self)) {
        let seed = stable(&[&self.options.seed.to_be_bytes(), &[stream as u8], &n.to_be_bytes()]);
        let own = Xoshiro256PlusPlus::seed_from_u64(seed);
        let outer = std::mem::replace(&mut self.rng, own);
        act(self);
        self.rng = outer;
    }

    pub(crate) fn violate(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("at {} ms: {text}", self.now / 1000));
        }
    }

    pub(super) fn note_datagram(&mut self, to: usize, bytes: &[u8]) {
        // The end of a frame is its tag: it stands for all of it.
        let tag = bytes.last_chunk().map_or(bytes.len() as u64, |tag| u64::from_le_bytes(*tag));
        let hash = (tag ^ to as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.now;
        self.trace = self.trace.rotate_left(7).wrapping_mul(0x0000_0100_0000_01b3) ^ hash;
    }

    fn note(&mut self, parts: &[&[u8]]) {
        let hash = stable(parts) ^ self.now.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.trace = self.trace.rotate_left(7).wrapping_mul(0x0000_0100_0000_01b3) ^ hash;
    }
}

/// The machines' clocks: right, or as good as clocks of machines are in a run that knows of drift.
fn clocks(options: &Options, drawn: &Drawn) -> Vec<Clock> {
    let seed = stable(&[&options.seed.to_be_bytes(), &[CLOCKS]]);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let drifts = drawn.faults.contains(&Fault::ClockDrift);
    let clock = |_| {
        let ppm = if drifts { rng.random_range(-RATED_PPM..=RATED_PPM) } else { 0 };
        Clock::new(ppm)
    };
    (0..drawn.nodes).map(clock).collect()
}
