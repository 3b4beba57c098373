//! Gossip alone: the knowledge cores of a large flock on virtual time, with faults and without scheduling.
//!
//! Up to [`WHOLE_MAX`] nodes each one is the real core with its own member table. Beyond that a hundred million table
//! entries would be needed, so all maps share one table in which everybody lives ([`gossip::rig::MapFlock`]): records and
//! their spreading are the real thing, membership is not simulated.
//!
//! Invariants: a member's (generation, incarnation) never goes back at an observer; a record that most nodes held is never
//! lost; after the heal all views and all maps become equal.

mod faults;
mod healing;
mod maps;
mod nodes;
mod records;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use faults::Wide;
use gossip::{Gossip, Input, Output};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use serde::Serialize;

use crate::clock::Clock;
use crate::marks::Marks;
use crate::net::Net;
use crate::queue::Queue;
use crate::report::VIOLATIONS_MAX;

/// Most nodes with a member table of their own.
pub const WHOLE_MAX: usize = 2_000;
/// One second of virtual time.
const S: u64 = 1_000_000;
/// Faults begin after the flock has had this long to form.
const WARM_US: u64 = 10 * S;
/// Mean time between faults of the whole flock at pace 1, seconds.
pub const WIDE_S: u64 = 240;
/// Mean time between writes.
const PUT_EVERY_US: u64 = 2 * S;
/// A write has to be with most nodes so soon to count as acknowledged.
const ACK_US: u64 = 3 * S;
/// The flock must agree so long after the heal.
const LIVENESS_US: u64 = 60 * S;
/// Datagrams that wait for a paused node; more are dropped, as a socket buffer does.
const INBOX_MAX: usize = 512;
/// Wall clock at the start of every run.
const WALL_MS: u64 = 1_800_000_000_000;

/// What is asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Length of the phase with faults, virtual minutes.
    pub minutes: u64,
    /// How many times rarer than usual faults are.
    pub pace: u64,
    /// Mean time between faults of the whole flock at pace 1, seconds; usually [`WIDE_S`].
    pub wide_s: u64,
    /// Print faults.
    #[serde(skip)]
    pub verbose: bool,
}

/// What a run came to, as `--json` prints it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Always `sim_gossip`.
    pub bench: &'static str,
    /// The seed.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// How many times rarer than usual faults were.
    pub pace: u64,
    /// Mean time between faults of the whole flock at pace 1, seconds.
    pub wide_s: u64,
    /// Whether membership was simulated too.
    pub membership: bool,
    /// Virtual time, seconds.
    pub virtual_s: f64,
    /// Nodes times virtual hours.
    pub node_hours: f64,
    /// Events handled; 0 where they are not counted.
    pub events: u64,
    /// Faults injected.
    pub faults: u64,
    /// Of those, how many were of the whole flock.
    pub wide_faults: u64,
    /// Records written.
    pub puts: u64,
    /// Of those, how many most nodes held soon after.
    pub acked: u64,
    /// From the heal (or a write, without membership) until all agree, milliseconds; the longest.
    pub agreed_ms: u64,
    /// Invariants that did not hold; empty is good.
    pub violations: Vec<String>,
    /// Equal for equal seeds.
    pub trace: String,
    /// Seconds on the wall.
    pub wall_s: f64,
    /// Seconds of the processors, of the whole process so far.
    pub cpu_s: f64,
    /// What was met.
    pub marks: BTreeMap<&'static str, u64>,
}

/// Runs one flock.
#[must_use]
pub fn run(options: &Options) -> Report {
    let started = Instant::now();
    let mut report = if options.nodes > WHOLE_MAX {
        maps::run(options)
    } else {
        Flock::new(options.clone()).run()
    };
    report.bench = "sim_gossip";
    report.seed = options.seed;
    report.nodes = options.nodes;
    report.pace = options.pace;
    report.wide_s = options.wide_s;
    report.node_hours = options.nodes as f64 * report.virtual_s / 3600.0;
    report.wall_s = started.elapsed().as_secs_f64();
    report.cpu_s = crate::report::cpu_s();
    report
}

enum Ev {
    Datagram { to: usize, from: usize, bytes: Vec<u8> },
    Wake(usize),
    Boot(usize),
    Resume(usize),
    Clog(usize),
    Unclog(usize),
    Cut(usize, usize),
    Whole(u64),
    Rejoin(usize, u64),
    Calm(u64),
    Steady(usize),
    Fault,
    WideFault,
    Put,
    Ack { key: usize, value: u64 },
}

struct Slot {
    gossip: Option<Gossip>,
    rng: Xoshiro256PlusPlus,
    generation: u64,
    paused: bool,
    inbox: Vec<(usize, Vec<u8>)>,
    /// In true time, as everything in the queue.
    wake_at: Option<u64>,
    /// What it takes for the time.
    clock: Clock,
    /// How far its calendar is off, milliseconds.
    wall_offset_ms: i64,
    /// The newest (generation, incarnation) seen of each member.
    seen: Vec<(u64, u64)>,
}

struct Flock {
    options: Options,
    now: u64,
    rng: Xoshiro256PlusPlus,
    queue: Queue<Ev>,
    slots: Vec<Slot>,
    net: Net,
    /// Of the newest partition, and of the newest burst: an older one's end is none.
    side_token: u64,
    burst_token: u64,
    /// Kinds of faults of the whole flock whose turn is still to come.
    deck: Vec<Wide>,
    written: u64,
    acked: BTreeMap<usize, u64>,
    calm: bool,
    marks: Marks,
    trace: u64,
    out: Vec<Output>,
    report: Report,
}

fn addr(node: usize) -> SocketAddr {
    let [_, b, c, d] = (node as u32 + 1).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, b, c, d), 7400))
}

fn index(addr: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = addr else { return usize::MAX };
    let [_, b, c, d] = v4.ip().octets();
    (u32::from_be_bytes([0, b, c, d]) as usize).wrapping_sub(1)
}

fn member(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse().ok()
}

impl Flock {
    fn new(options: Options) -> Self {
        let n = options.nodes.max(1);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
        let slot = |rng: &mut Xoshiro256PlusPlus| Slot {
            gossip: None,
            rng: Xoshiro256PlusPlus::seed_from_u64(rng.next_u64()),
            generation: 0,
            paused: false,
            inbox: Vec::new(),
            wake_at: None,
            clock: Clock::default(),
            wall_offset_ms: 0,
            seen: vec![(0, 0); n],
        };
        let slots = (0..n).map(|_| slot(&mut rng)).collect();
        let net = Net {
            side: vec![0; n],
            clogged: vec![false; n],
            loss: 1,
            duplicate: 1,
            corrupt: 1,
            latency_us: 1_000,
            jitter_us: 300,
            ..Net::default()
        };
        Self {
            options,
            now: S,
            rng,
            queue: Queue::new(),
            slots,
            net,
            side_token: 0,
            burst_token: 0,
            deck: Vec::new(),
            written: 0,
            acked: BTreeMap::new(),
            calm: false,
            marks: Marks::default(),
            trace: 0,
            out: Vec::new(),
            report: Report { membership: true, ..Report::default() },
        }
    }

    fn run(mut self) -> Report {
        for node in 0..self.slots.len() {
            let at = self.now + self.rng.next_u64() % S;
            self.queue.push(at, Ev::Boot(node));
        }
        self.queue.push(self.now + WARM_US, Ev::Fault);
        self.plan_wide();
        self.queue.push(self.now + WARM_US / 2, Ev::Put);
        self.advance(self.now + WARM_US + self.options.minutes * 60 * S);
        self.heal_all();
        let healed = self.now;
        while self.report.violations.is_empty() {
            if self.agree().is_ok() {
                self.report.agreed_ms = (self.now - healed) / 1000;
                break;
            }
            if self.now >= healed + LIVENESS_US {
                let wrong = self.agree().err().unwrap_or_default();
                self.violate(format!("no agreement {} s after the heal: {wrong}", LIVENESS_US / S));
                break;
            }
            self.advance(self.now + S / 10);
        }
        self.check_acked();
        self.report.virtual_s = self.now as f64 / 1e6;
        self.report.trace = format!("{:016x}", self.trace);
        self.marks.merge(&self.net.marks());
        self.report.marks = self.marks.0;
        self.report
    }

    fn advance(&mut self, end: u64) {
        while self.report.violations.is_empty() {
            let Some((at, ev)) = self.queue.pop(end) else { break };
            self.now = self.now.max(at);
            self.report.events += 1;
            self.handle(ev);
        }
        self.now = end;
    }

    fn handle(&mut self, ev: Ev) {
        match ev {
            Ev::Datagram { to, from, bytes } => self.datagram(to, from, bytes),
            Ev::Wake(node) => {
                let slot = &mut self.slots[node];
                if slot.wake_at == Some(self.now) && !slot.paused {
                    slot.wake_at = None;
                    let due = slot.gossip.as_ref().and_then(Gossip::next_deadline);
                    if due.is_some_and(|at| at <= slot.clock.at(self.now)) {
                        self.step(node, Input::Timer);
                    } else {
                        // What it was planned for has been cancelled.
                        self.plan(node);
                    }
                }
            }
            Ev::Boot(node) => self.boot(node),
            Ev::Resume(node) => self.resume(node),
            Ev::Clog(node) => self.net.clogged[node] |= !self.calm,
            Ev::Unclog(node) => self.unclog(node),
            Ev::Cut(from, to) => {
                self.net.cut.remove(&(from, to));
            }
            Ev::Whole(token) if token == self.side_token => self.net.side.fill(0),
            Ev::Calm(token) if token == self.burst_token => self.calm_net(),
            Ev::Whole(_) | Ev::Calm(_) => {}
            Ev::Steady(node) => self.steady(node),
            Ev::Rejoin(node, token) if token == self.side_token => self.net.side[node] = 0,
            Ev::Rejoin(..) => {}
            Ev::Fault if !self.calm => self.fault(),
            Ev::WideFault if !self.calm => self.wide_fault(),
            Ev::Put if !self.calm => {
                self.put();
                let after = self.rng.next_u64() % (2 * PUT_EVERY_US) + 1;
                self.queue.push(self.now + after, Ev::Put);
            }
            Ev::Fault | Ev::WideFault | Ev::Put => {}
            Ev::Ack { key, value } => self.acknowledge(key, value),
        }
    }

    fn violate(&mut self, text: String) {
        if self.report.violations.len() < VIOLATIONS_MAX {
            self.report.violations.push(format!("at {} ms: {text}", self.now / 1000));
        }
    }

    /// The end of a frame is its tag: it stands for all of it.
    fn note(&mut self, to: u64, bytes: &[u8]) {
        let tag = bytes.last_chunk().map_or(bytes.len() as u64, |tag| u64::from_le_bytes(*tag));
        let hash = (tag ^ to).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ self.now;
        self.trace = self.trace.rotate_left(7).wrapping_mul(0x0000_0100_0000_01b3) ^ hash;
    }
}
