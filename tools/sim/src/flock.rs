//! Gossip alone: the knowledge cores of a large flock on virtual time, with faults and without scheduling.
//!
//! Up to [`WHOLE_MAX`] nodes each one is the real core with its own member table. Beyond that a hundred million table
//! entries would be needed, so all maps share one table in which everybody lives ([`gossip::rig::MapFlock`]): records and
//! their spreading are the real thing, membership is not simulated.
//!
//! Invariants: a member's (generation, incarnation) never goes back at an observer; a record that most nodes held is never
//! lost; after the heal all views and all maps become equal.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use gossip::{Event, Expect, Gossip, Identity, Input, KeyRing, Output, Profile, SecretKey, State};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use serde::Serialize;

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
/// Mean time between faults at pace 1.
const FAULT_EVERY_US: u64 = 4 * S;
/// Mean time between writes.
const PUT_EVERY_US: u64 = S;
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
        maps_alone(options)
    } else {
        Flock::new(options.clone()).run()
    };
    report.bench = "sim_gossip";
    report.seed = options.seed;
    report.nodes = options.nodes;
    report.pace = options.pace;
    report.node_hours = options.nodes as f64 * report.virtual_s / 3600.0;
    report.wall_s = started.elapsed().as_secs_f64();
    report.cpu_s = crate::report::cpu_s();
    report
}

/// Writes one record after another and waits for each to be everywhere.
fn maps_alone(options: &Options) -> Report {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let mut flock = gossip::rig::MapFlock::new(options.seed, options.nodes);
    let mut report = Report::default();
    flock.run(5 * S);
    let mut spent_us = 5 * S;
    while spent_us < options.minutes * 60 * S && report.violations.is_empty() {
        let node = rng.random_range(0..options.nodes);
        report.puts += 1;
        flock.put(node, &format!("t/node-{node:05}"), format!("{}", report.puts).as_bytes());
        match flock.until_equal(LIVENESS_US) {
            Some(us) => {
                report.acked += 1;
                report.agreed_ms = report.agreed_ms.max(us / 1000);
                spent_us += us;
            }
            None => report.violations.push(format!("write {} is not everywhere", report.puts)),
        }
        flock.run(S);
        spent_us += S;
    }
    report.virtual_s = spent_us as f64 / 1e6;
    report.trace = format!("{:016x}", flock.sent_bytes);
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
    Calm(u64),
    Fault,
    Put,
    Ack { key: usize, value: u64 },
}

struct Slot {
    gossip: Option<Gossip>,
    rng: Xoshiro256PlusPlus,
    generation: u64,
    paused: bool,
    inbox: Vec<(usize, Vec<u8>)>,
    wake_at: Option<u64>,
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
                    if due.is_some_and(|at| at <= self.now) {
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
            Ev::Fault if !self.calm => {
                self.fault();
                let every_us = FAULT_EVERY_US * self.options.pace.max(1);
                let after = self.rng.next_u64() % (2 * every_us) + 1;
                self.queue.push(self.now + after, Ev::Fault);
            }
            Ev::Put if !self.calm => {
                self.put();
                let after = self.rng.next_u64() % (2 * PUT_EVERY_US) + 1;
                self.queue.push(self.now + after, Ev::Put);
            }
            Ev::Fault | Ev::Put => {}
            Ev::Ack { key, value } => self.acknowledge(key, value),
        }
    }

    // ── nodes ────────────────────────────────────────────────────────────────────────────────────

    fn boot(&mut self, node: usize) {
        if self.slots[node].gossip.is_some() {
            return;
        }
        let key = SecretKey::new(1, [7; 32]);
        let mut config = gossip::Config::new(KeyRing::new(&key), Profile::Lan);
        config.seeds = (0..self.slots.len().min(3)).map(addr).collect();
        let slot = &mut self.slots[node];
        slot.generation += 1;
        slot.seen.fill((0, 0));
        let name = format!("n{node}");
        let identity = Identity { name, addr: addr(node), generation: slot.generation };
        slot.gossip = Gossip::new(config, identity).ok();
        self.step(node, Input::Timer);
    }

    fn datagram(&mut self, to: usize, from: usize, bytes: Vec<u8>) {
        let Some(slot) = self.slots.get_mut(to).filter(|slot| slot.gossip.is_some()) else {
            return;
        };
        if slot.paused {
            if slot.inbox.len() < INBOX_MAX {
                slot.inbox.push((from, bytes));
            }
            return;
        }
        self.note(to as u64, &bytes);
        self.step(to, Input::Datagram { from: addr(from), bytes: &bytes });
    }

    fn step(&mut self, node: usize, input: Input<'_>) {
        let mut out = std::mem::take(&mut self.out);
        let slot = &mut self.slots[node];
        let Some(gossip) = &mut slot.gossip else { return };
        gossip.step(self.now, WALL_MS + self.now / 1000, input, &mut slot.rng, &mut out);
        self.plan(node);
        for output in out.drain(..) {
            match output {
                Output::Send { to, bytes } => self.send(node, index(to), bytes),
                Output::Event(Event::Member(m)) => self.met(node, &m),
                Output::Event(Event::Forgotten { name }) => {
                    self.violate(format!("n{node} forgot {name}, which nobody asked for"));
                }
                _ => {}
            }
        }
        self.out = out;
    }

    fn plan(&mut self, node: usize) {
        let slot = &mut self.slots[node];
        let next = slot.gossip.as_ref().and_then(Gossip::next_deadline).map(|at| at.max(self.now));
        if let Some(at) = next.filter(|at| slot.wake_at.is_none_or(|planned| *at < planned)) {
            slot.wake_at = Some(at);
            self.queue.push(at, Ev::Wake(node));
        }
    }

    fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if to >= self.slots.len() {
            return;
        }
        let (now, queue) = (self.now, &mut self.queue);
        self.net.carry(from, to, bytes, &mut self.rng, |delay, bytes| {
            queue.push(now + delay, Ev::Datagram { to, from, bytes });
        });
    }

    fn met(&mut self, node: usize, m: &gossip::Member) {
        let place = (m.generation, m.incarnation);
        let Some(seen) = member(&m.name).and_then(|n| self.slots[node].seen.get_mut(n)) else {
            return self.violate(format!("n{node} knows {}, which is none of ours", m.name));
        };
        if place < *seen {
            let text = format!("n{node} saw {} go back from {seen:?} to {place:?}", m.name);
            return self.violate(text);
        }
        *seen = place;
        if m.state == State::Dead {
            self.marks.hit("member dead");
        }
    }

    fn resume(&mut self, node: usize) {
        let slot = &mut self.slots[node];
        if !std::mem::take(&mut slot.paused) || slot.gossip.is_none() {
            return;
        }
        // Timers are late now; what arrived meanwhile comes after them, as a poll loop would see it.
        slot.wake_at = None;
        let inbox = std::mem::take(&mut slot.inbox);
        self.step(node, Input::Timer);
        for (from, bytes) in inbox {
            self.datagram(node, from, bytes);
        }
    }

    // ── records ──────────────────────────────────────────────────────────────────────────────────

    fn put(&mut self) {
        let node = self.rng.random_range(0..self.slots.len());
        if self.slots[node].gossip.is_none() || self.slots[node].paused {
            return;
        }
        self.written += 1;
        self.report.puts += 1;
        let (key, body) = (format!("t/n{node}"), self.written.to_be_bytes().to_vec());
        self.step(node, Input::Put { key: &key, body, expect: Expect::Any });
        self.queue.push(self.now + ACK_US, Ev::Ack { key: node, value: self.written });
    }

    fn value(gossip: &Gossip, key: usize) -> u64 {
        let body = gossip.get(&format!("t/n{key}")).and_then(|r| r.body.as_deref());
        body.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
    }

    fn acknowledge(&mut self, key: usize, value: u64) {
        let up = self.slots.iter().filter_map(|slot| slot.gossip.as_ref());
        let holders = up.filter(|gossip| Self::value(gossip, key) >= value).count();
        if holders * 2 > self.slots.len() {
            self.report.acked += 1;
            let newest = self.acked.entry(key).or_default();
            *newest = (*newest).max(value);
        }
    }

    fn check_acked(&mut self) {
        let Some(first) = self.slots.iter().find_map(|slot| slot.gossip.as_ref()) else { return };
        let lost = self.acked.iter().filter(|(key, value)| Self::value(first, **key) < **value);
        let lost: Vec<String> = lost
            .map(|(key, value)| format!("t/n{key} = {value} was on most nodes and is lost"))
            .collect();
        lost.into_iter().for_each(|text| self.violate(text));
    }

    // ── faults ───────────────────────────────────────────────────────────────────────────────────

    fn fault(&mut self) {
        let n = self.slots.len();
        let node = self.rng.random_range(0..n);
        self.report.faults += 1;
        let kind = self.rng.random_range(0..8);
        if self.options.verbose {
            println!("{:>8} fault {kind} n{node}", self.now / 1000);
        }
        match kind {
            0 => {
                self.marks.hit("fault partition");
                let rng = &mut self.rng;
                self.net.side.iter_mut().for_each(|side| *side = u8::from(rng.random_bool(0.4)));
                self.end_sides(5, 30);
            }
            1 => {
                self.marks.hit("fault isolate");
                self.net.side.fill(0);
                self.net.side[node] = 1;
                self.end_sides(3, 30);
            }
            2 => {
                self.marks.hit("fault one way");
                let other = self.rng.random_range(0..n);
                self.net.cut.insert((node, other));
                let after = self.between(3, 60);
                self.queue.push(self.now + after, Ev::Cut(node, other));
            }
            3 => self.crash(),
            4 => {
                self.marks.hit("fault pause");
                for node in self.some(16) {
                    self.slots[node].paused = self.slots[node].gossip.is_some();
                    let after = self.between(1, 16);
                    self.queue.push(self.now + after, Ev::Resume(node));
                }
            }
            5 => {
                self.marks.hit("fault loss burst");
                self.net.loss = self.rng.random_range(50..300);
                self.end_burst();
            }
            6 => {
                self.marks.hit("fault delay burst");
                self.net.jitter_us = self.rng.random_range(10_000..200_000);
                self.end_burst();
            }
            _ => self.swizzle(),
        }
    }

    /// A few nodes, at most one in `share`.
    fn some(&mut self, share: usize) -> Vec<usize> {
        let n = self.slots.len();
        let count = self.rng.random_range(1..=(n / share).max(1));
        (0..count).map(|_| self.rng.random_range(0..n)).collect()
    }

    /// Power cuts of machines without a disk; most stay up, so that what was acknowledged is somewhere.
    fn crash(&mut self) {
        self.marks.hit("fault crash");
        for node in self.some(16) {
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

    /// Clogs some nodes one after another and unclogs them in another order.
    fn swizzle(&mut self) {
        self.marks.hit("fault swizzle clog");
        for node in self.some(8) {
            let closes = self.between(0, 4);
            let opens = closes + self.between(1, 10);
            self.queue.push(self.now + closes, Ev::Clog(node));
            self.queue.push(self.now + opens, Ev::Unclog(node));
        }
    }

    fn unclog(&mut self, node: usize) {
        for (from, to, bytes) in self.net.unclog(node) {
            let after = self.rng.next_u64() % self.net.latency_us;
            self.queue.push(self.now + after, Ev::Datagram { to, from, bytes });
        }
    }

    fn between(&mut self, min_s: u64, max_s: u64) -> u64 {
        self.rng.random_range(min_s * S..=max_s * S)
    }

    fn end_sides(&mut self, min_s: u64, max_s: u64) {
        self.side_token += 1;
        let after = self.between(min_s, max_s);
        self.queue.push(self.now + after, Ev::Whole(self.side_token));
    }

    fn end_burst(&mut self) {
        self.burst_token += 1;
        let after = self.between(3, 15);
        self.queue.push(self.now + after, Ev::Calm(self.burst_token));
    }

    fn calm_net(&mut self) {
        self.net.loss = 1;
        self.net.jitter_us = 300;
    }

    fn heal_all(&mut self) {
        self.calm = true;
        self.net.side.fill(0);
        self.net.cut.clear();
        self.calm_net();
        for node in 0..self.slots.len() {
            self.unclog(node);
            self.resume(node);
            self.boot(node);
        }
    }

    /// All views and all maps are equal.
    fn agree(&self) -> Result<(), String> {
        let mut first = None;
        for (n, slot) in self.slots.iter().enumerate() {
            let gossip = slot.gossip.as_ref().ok_or(format!("n{n} is down"))?;
            let here = (gossip.view(), gossip.root());
            let want = first.get_or_insert(here);
            if here.0 != want.0 {
                return Err(format!("n{n} sees other members than n0"));
            }
            if here.1 != want.1 {
                return Err(format!("n{n} holds another map than n0"));
            }
        }
        let Some(gossip) = self.slots.first().and_then(|slot| slot.gossip.as_ref()) else {
            return Ok(());
        };
        let alive = 1 + gossip.members().filter(|m| m.state == State::Alive).count();
        if alive == self.slots.len() { Ok(()) } else { Err(format!("n0 sees {alive} alive")) }
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
