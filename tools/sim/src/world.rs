//! The world of one run: machines, network, virtual time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gossip::{Identity, KeyRing, Profile, SecretKey};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use sched::hash::stable;
use sched::record::spec_key;
use sched::{NodeRecord, Observed};

use crate::check::{self, Seen};
use crate::kernel::{Disk, Kernel, ip, start_us, stop_us};
use crate::marks::Marks;
use crate::net::Net;
use crate::node::{Boot, Effect, Node};
use crate::operator::Operator;
use crate::options::{Drawn, Options};
use crate::queue::Queue;
use crate::report::{Report, VIOLATIONS_MAX};

/// One second of virtual time.
pub(crate) const S: u64 = 1_000_000;
/// Faults begin after the flock has had this long to form.
const WARM_US: u64 = 6 * S;
/// Wall clock at the start of every run.
const WALL_MS: u64 = 1_800_000_000_000;
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

enum Waiting {
    Datagram(SocketAddr, Vec<u8>),
    Pod(String, Observed),
}

/// One machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    addr: SocketAddr,
    /// Its agent, while it runs.
    pub(crate) node: Option<Node>,
    pub(crate) disk: Disk,
    pub(crate) kernel: Kernel,
    record: NodeRecord,
    pub(crate) drain: bool,
    /// Boots of the machine: pods of an earlier one are gone.
    pub(crate) boots: u64,
    pub(crate) paused: bool,
    inbox: Vec<Waiting>,
    pub(crate) wall_offset_ms: i64,
    wake_at: Option<u64>,
    /// It will not come back.
    pub(crate) gone: bool,
    /// When it last booted or resumed.
    pub(crate) fresh_us: u64,
    /// The newest (generation, incarnation) it has seen of each member, since its boot.
    seen: BTreeMap<String, (u64, u64)>,
}

/// The world.
pub struct World {
    pub(crate) options: Options,
    pub(crate) drawn: Drawn,
    pub(crate) now: u64,
    pub(crate) rng: Xoshiro256PlusPlus,
    pub(crate) queue: Queue<Ev>,
    pub(crate) machines: Vec<Machine>,
    index: BTreeMap<SocketAddr, usize>,
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
    starts: u64,
    calm: bool,
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
            loss: drawn.loss,
            duplicate: drawn.duplicate,
            corrupt: drawn.corrupt,
            latency_us: drawn.latency_us,
            jitter_us: drawn.latency_us / 4,
            ..Net::default()
        };
        let machines: Vec<Machine> = (0..n).map(|i| machine(i, drawn.racks)).collect();
        let index = machines.iter().enumerate().map(|(i, m)| (m.addr, i)).collect();
        Self {
            options,
            drawn,
            now: S,
            rng,
            queue: Queue::new(),
            machines,
            index,
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
            starts: 0,
            calm: false,
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
            wrong = self.whole();
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
                    self.fault();
                    let after = self.rng.next_u64() % (2_000 * self.drawn.fault_every_ms) + 1;
                    self.queue.push(self.now + after, Ev::Fault);
                }
            }
            Ev::Operator => {
                if !self.calm {
                    self.operate();
                    let after = self.rng.next_u64() % (2_000 * self.drawn.operator_every_ms) + 1;
                    self.queue.push(self.now + after, Ev::Operator);
                }
            }
            Ev::Heal(heal) => self.heal(heal),
            Ev::Boot { node } => self.boot(node),
            Ev::Resume { node } => self.resume(node),
            Ev::Forget { node } => self.forget(node),
            Ev::Second => {
                self.acknowledge();
                self.queue.push(self.now + S, Ev::Second);
            }
        }
    }

    // ── nodes ────────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn wall_ms(&self, node: usize) -> u64 {
        (WALL_MS + self.now / 1000).saturating_add_signed(self.machines[node].wall_offset_ms)
    }

    fn boot(&mut self, node: usize) {
        let wall = self.wall_ms(node);
        let seeds: Vec<SocketAddr> = self.machines.iter().take(3).map(|m| m.addr).collect();
        let m = &mut self.machines[node];
        if m.node.is_some() || m.gone {
            return;
        }
        m.disk.generation += 1;
        m.fresh_us = self.now;
        m.seen.clear();
        let key = SecretKey::new(1, [7; 32]);
        let mut gossip = gossip::Config::new(KeyRing::new(&key), Profile::Lan);
        gossip.seeds = seeds;
        let survivors = m.kernel.survivors();
        if !survivors.is_empty() {
            self.marks.hit("sched adopted");
        }
        let boot = Boot {
            identity: Identity {
                name: m.name.clone(),
                generation: m.disk.generation,
                addr: m.addr,
            },
            gossip,
            restored: Some(m.disk.restored()),
            survivors,
            record: NodeRecord { boot: m.disk.generation, ..m.record.clone() },
            drain: m.drain,
            seed: self.rng.next_u64(),
        };
        let mut effects = Vec::new();
        m.node = Some(Node::boot(boot, self.now, wall, &mut effects));
        self.note(&[b"boot", &node.to_be_bytes()]);
        self.apply(node, effects);
    }

    fn datagram(&mut self, to: usize, from: SocketAddr, bytes: Vec<u8>) {
        let wall = self.wall_ms(to);
        let m = &mut self.machines[to];
        let Some(node) = &mut m.node else { return };
        if m.paused {
            if m.inbox.len() < INBOX_MAX {
                m.inbox.push(Waiting::Datagram(from, bytes));
            }
            return;
        }
        let mut effects = Vec::new();
        node.datagram(self.now, wall, from, &bytes, &mut effects);
        self.note(&[b"d", &to.to_be_bytes(), &bytes]);
        self.apply(to, effects);
    }

    fn wake(&mut self, node: usize) {
        let wall = self.wall_ms(node);
        let m = &mut self.machines[node];
        if m.wake_at.is_none_or(|at| at > self.now) || m.paused {
            return;
        }
        m.wake_at = None;
        let Some(n) = &mut m.node else { return };
        let mut effects = Vec::new();
        n.timer(self.now, wall, &mut effects);
        self.apply(node, effects);
    }

    fn resume(&mut self, node: usize) {
        let m = &mut self.machines[node];
        if !m.paused {
            return;
        }
        m.paused = false;
        m.fresh_us = self.now;
        m.wake_at = Some(self.now);
        // Timers are late now; what arrived meanwhile comes after them, as a poll loop would see it.
        let inbox = std::mem::take(&mut m.inbox);
        self.wake(node);
        for waiting in inbox {
            match waiting {
                Waiting::Datagram(from, bytes) => self.datagram(node, from, bytes),
                Waiting::Pod(claim, observed) => self.tell(node, claim, observed),
            }
        }
        self.plan_wake(node);
    }

    fn plan_wake(&mut self, node: usize) {
        let m = &mut self.machines[node];
        let Some(at) = m.node.as_ref().and_then(Node::next_deadline) else { return };
        let at = at.max(self.now);
        if m.wake_at.is_none_or(|planned| at < planned || planned < self.now) {
            m.wake_at = Some(at);
            self.queue.push(at, Ev::Wake { node });
        }
    }

    fn apply(&mut self, node: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.effect(node, effect);
        }
        self.plan_wake(node);
    }

    fn effect(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send { to, bytes } => {
                let Some(&to) = self.index.get(&to) else { return };
                let from = self.machines[node].addr;
                let arrive = self.net.carry(node, to, bytes, &mut self.rng, &mut self.marks);
                for (delay, bytes) in arrive {
                    self.queue.push(self.now + delay, Ev::Datagram { to, from, bytes });
                }
            }
            Effect::Persist(what) => {
                let wall = self.wall_ms(node);
                self.machines[node].disk.append(what, wall);
                self.queue.push(self.now + S, Ev::Sync { node });
            }
            Effect::Start(claim) => self.start(node, claim),
            Effect::Stop { claim } => {
                let boot = self.machines[node].boots;
                let Some(pod) = self.machines[node].kernel.pods.get_mut(&claim) else {
                    // The agent answers for a pod that it does not have.
                    return self.tell_later(node, claim);
                };
                let start = pod.start;
                pod.stopping = true;
                let at = self.now + stop_us(&mut self.rng);
                self.queue.push(at, Ev::PodDown { node, boot, claim, start });
            }
            Effect::Wrote { key, delete } => {
                let name = &self.machines[node].name;
                if let Err(wrong) = check::writer(name, &key, delete, &self.forgotten) {
                    self.violate(wrong);
                }
                let gone = key.split('/').nth(1).is_some_and(|n| self.forgotten.contains(n));
                if delete && gone {
                    self.marks.hit("sched forgotten swept");
                }
            }
            Effect::Sched(event) => self.sched_event(node, &event),
            Effect::Member(member) => {
                let place = (member.generation, member.incarnation);
                let seen = self.machines[node].seen.entry(member.name.to_string()).or_default();
                if place < *seen {
                    let text = format!("{} went back from {seen:?} to {place:?}", member.name);
                    self.violate(format!("{} saw: {text}", self.machines[node].name));
                    return;
                }
                *seen = place;
                if self.options.verbose {
                    let (at, me) = (self.now / 1000, &self.machines[node].name);
                    println!("{at:>8} {me}: {} is {}", member.name, member.state);
                }
            }
            Effect::Gossip(what) => {
                if self.options.verbose && what != "other" {
                    println!("{:>8} {}: gossip {what}", self.now / 1000, self.machines[node].name);
                }
            }
        }
    }

    fn tell_later(&mut self, node: usize, claim: String) {
        let boot = self.machines[node].boots;
        // No such pod: its start number is none that exists, so it is told through the same door.
        self.machines[node].inbox.retain(|w| !matches!(w, Waiting::Pod(c, _) if *c == claim));
        let at = self.now + stop_us(&mut self.rng);
        self.queue.push(at, Ev::PodDown { node, boot, claim, start: 0 });
    }

    // ── pods ─────────────────────────────────────────────────────────────────────────────────────

    fn start(&mut self, node: usize, claim: sched::Claim) {
        let id = claim.id.clone();
        let daemon = claim.record.daemon;
        if self.options.verbose {
            let (at, me, pod) = (self.now / 1000, &self.machines[node].name, claim.pod_name());
            println!("{at:>8} {me}: start {pod} ({id}) generation {}", claim.record.generation);
        }
        let Some(start) = self.machines[node].kernel.start(claim) else { return };
        self.starts += 1;
        self.note(&[b"start", &node.to_be_bytes(), id.as_bytes()]);
        let m = &self.machines[node];
        if let Err(wrong) = check::machine(&m.name, &m.record, &m.kernel) {
            self.violate(wrong);
        }
        if !daemon && self.in_minority(node) {
            self.violate(format!(
                "{} is in the minority and started {id}",
                self.machines[node].name
            ));
        }
        let fails = !self.calm && self.rng.next_u32() % 1000 < self.drawn.fail;
        let fail = fails.then(|| self.rng.random_bool(0.5));
        let boot = self.machines[node].boots;
        let at = self.now + start_us(&mut self.rng);
        self.queue.push(at, Ev::PodUp { node, boot, claim: id, start, fail });
    }

    /// The node is on a side that has been the smaller one for long enough to know.
    fn in_minority(&self, node: usize) -> bool {
        let Some(since) = self.sides_since else { return false };
        let side = self.net.side[node];
        let on_side = |i: &usize| self.net.side[*i] == side;
        let ours: Vec<usize> = (0..self.machines.len()).filter(on_side).collect();
        let fresh = ours.iter().map(|i| self.machines[*i].fresh_us).max().unwrap_or(0);
        let roster = self.machines.iter().filter(|m| !m.gone).count();
        let ours = ours.iter().filter(|i| !self.machines[**i].gone).count();
        self.now >= since.max(fresh) + KNOWN_US && ours * 2 <= roster
    }

    fn pod_is(&self, node: usize, boot: u64, claim: &str, start: u64) -> bool {
        let m = &self.machines[node];
        let here = m.kernel.pods.get(claim);
        m.boots == boot && here.map_or(start == 0, |p| p.start == start)
    }

    fn pod_up(&mut self, node: usize, claim: &str, fail: Option<bool>) {
        let Some(pod) = self.machines[node].kernel.pods.get_mut(claim) else { return };
        if pod.stopping {
            return;
        }
        let ip = ip(&pod.claim.record);
        let observed = match fail {
            Some(retryable) => {
                self.machines[node].kernel.pods.remove(claim);
                Observed::Failed { reason: "it does not start".into(), retryable }
            }
            None => {
                pod.running = true;
                Observed::Running { ip, ready: true }
            }
        };
        self.tell(node, claim.to_owned(), observed);
    }

    pub(crate) fn tell(&mut self, node: usize, claim: String, observed: Observed) {
        let wall = self.wall_ms(node);
        let m = &mut self.machines[node];
        let Some(n) = &mut m.node else { return };
        if m.paused {
            m.inbox.push(Waiting::Pod(claim, observed));
            return;
        }
        let mut effects = Vec::new();
        n.pod(self.now, wall, &claim, observed, &mut effects);
        self.note(&[b"pod", &node.to_be_bytes(), claim.as_bytes()]);
        self.apply(node, effects);
    }

    /// A power cut: the agent, its pods and what was not synced are gone.
    pub(crate) fn power_cut(&mut self, node: usize, wipe: bool) {
        let m = &mut self.machines[node];
        m.node = None;
        m.paused = false;
        m.inbox.clear();
        m.wake_at = None;
        m.kernel = Kernel::default();
        m.boots += 1;
        if m.disk.power_cut(&mut self.rng) > 0 {
            self.marks.hit("disk lost an unsynced record");
        }
        if wipe {
            m.disk.wipe();
        }
    }

    /// The agent alone dies; what it wrote is in the page cache and survives.
    pub(crate) fn agent_dies(&mut self, node: usize) {
        let wall = self.wall_ms(node);
        let m = &mut self.machines[node];
        m.node = None;
        m.paused = false;
        m.inbox.clear();
        m.wake_at = None;
        m.disk.sync(wall);
    }

    // ── operators ────────────────────────────────────────────────────────────────────────────────

    fn operate(&mut self) {
        let up: Vec<usize> =
            (0..self.machines.len()).filter(|i| self.machines[*i].node.is_some()).collect();
        let awake: Vec<usize> = up.into_iter().filter(|i| !self.machines[*i].paused).collect();
        let Some(&node) = awake.get(self.rng.random_range(0..awake.len().max(1))) else { return };
        let wall = self.wall_ms(node);
        let mut effects = Vec::new();
        if self.rng.random_bool(0.15) {
            // One drained node at a time, so that there is room.
            let on = !self.machines.iter().any(|m| m.drain);
            let draining = self.machines.iter().position(|m| m.drain).unwrap_or(node);
            if self.machines[draining].paused {
                return;
            }
            self.machines[draining].drain = on;
            self.marks.hit("operator drain");
            let wall = self.wall_ms(draining);
            if let Some(n) = &mut self.machines[draining].node {
                n.drain(self.now, wall, on, &mut effects);
                self.apply(draining, effects);
            }
            return;
        }
        let remain = self.machines.iter().filter(|m| !m.gone).count();
        let remain = remain.saturating_sub(self.machines.len() / 4);
        let submitted = self.operator.act(remain, &mut self.rng, &mut self.marks);
        let Some(n) = &mut self.machines[node].node else { return };
        let generation = n.submit(self.now, wall, &submitted, &mut effects);
        if self.options.verbose {
            let (at, text) = (self.now / 1000, submitted.text.replace('\n', " "));
            let name = &self.machines[node].name;
            let flags = (submitted.stopped, submitted.deleted);
            println!("{at:>8} {name}: submit generation {generation} {flags:?} {text}");
        }
        self.pending.push((spec_key(&submitted.namespace, &submitted.app), generation));
        self.apply(node, effects);
    }

    /// A spec counts as acknowledged once most disks hold it (or a newer one).
    fn acknowledge(&mut self) {
        let all = self.machines.iter().filter(|m| !m.gone).count();
        let machines = &self.machines;
        let acked = &mut self.acked;
        self.pending.retain(|(key, generation)| {
            let holders = machines.iter().filter(|m| !m.gone && m.disk.spec(key) >= *generation);
            if holders.count() * 2 <= all {
                return true;
            }
            let newest = acked.entry(key.clone()).or_default();
            *newest = (*newest).max(*generation);
            false
        });
    }

    /// Whether what was acknowledged would survive the loss of these disks.
    pub(crate) fn can_lose(&self, lost: &[usize]) -> bool {
        self.acked.iter().all(|(key, generation)| {
            let mut others = self.machines.iter().enumerate().filter(|(i, _)| !lost.contains(i));
            others.any(|(_, m)| !m.gone && m.disk.spec(key) >= *generation)
        })
    }

    fn forget(&mut self, dead: usize) {
        let name = self.machines[dead].name.clone();
        let knows = |m: &Machine| {
            let member = m.node.as_ref().and_then(|n| n.gossip.member(&name));
            !m.paused && member.is_some_and(|m| !m.state.is_live())
        };
        if let Some(node) = self.machines.iter().position(knows) {
            self.forgotten.insert(name.clone());
            let wall = self.wall_ms(node);
            let mut effects = Vec::new();
            if let Some(n) = &mut self.machines[node].node {
                n.forget(self.now, wall, &name, &mut effects);
            }
            self.apply(node, effects);
        }
        // Asked again until nobody lists it: a node that was away may bring it back.
        let lists = |m: &Machine| m.node.as_ref().is_some_and(|n| n.gossip.member(&name).is_some());
        if !self.calm || self.machines.iter().any(lists) {
            self.queue.push(self.now + 3 * S, Ev::Forget { node: dead });
        }
    }

    // ── the end of faults ────────────────────────────────────────────────────────────────────────

    fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Sides(token) if token == self.token => self.join_sides(),
            Heal::Cut(from, to) => {
                self.net.cut.remove(&(from, to));
            }
            Heal::Loss(token) if token == self.token => self.net.loss = self.drawn.loss,
            Heal::Delay(token) if token == self.token => {
                self.net.jitter_us = self.drawn.latency_us / 4;
            }
            _ => {}
        }
    }

    pub(crate) fn join_sides(&mut self) {
        self.net.side.fill(0);
        self.sides_since = None;
    }

    fn heal_all(&mut self) {
        self.calm = true;
        self.join_sides();
        self.net.cut.clear();
        self.net.loss = self.drawn.loss.min(10);
        self.net.jitter_us = self.drawn.latency_us / 4;
        if self.options.verbose {
            println!("{:>8} heal", self.now / 1000);
        }
        for node in 0..self.machines.len() {
            if self.machines[node].paused {
                self.resume(node);
            }
            if self.machines[node].drain {
                self.machines[node].drain = false;
                let wall = self.wall_ms(node);
                let mut effects = Vec::new();
                if let Some(n) = &mut self.machines[node].node {
                    n.drain(self.now, wall, false, &mut effects);
                    self.apply(node, effects);
                }
            }
            if self.machines[node].node.is_none() && !self.machines[node].gone {
                self.queue.push(self.now, Ev::Boot { node });
            }
        }
    }

    pub(crate) fn violate(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(format!("at {} ms: {text}", self.now / 1000));
        }
    }

    fn note(&mut self, parts: &[&[u8]]) {
        let hash = stable(parts) ^ self.now.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.trace = self.trace.rotate_left(7).wrapping_mul(0x0000_0100_0000_01b3) ^ hash;
    }

    fn sched_event(&mut self, node: usize, event: &sched::Event) {
        use sched::Event;
        if self.options.verbose {
            println!("{:>8} {}: {event:?}", self.now / 1000, self.machines[node].name);
        }
        let mark = match event {
            Event::TookOver { .. } => "sched took over",
            Event::Duplicate { .. } => "sched duplicate stopped",
            Event::Refused { reason, .. } if reason.contains("newer coordinator") => {
                "sched refused stale term"
            }
            Event::Refused { .. } => "sched refused",
            Event::Moving { reason, .. } if reason.contains("drains") => "sched moved drain",
            Event::Moving { reason, .. } if reason.contains("generation") => "sched moved update",
            Event::Moving { .. } => "sched moved failed",
            Event::Held { reason } if reason.contains("smaller side") => "sched held minority",
            Event::Held { reason } if reason.contains("within seconds") => "sched held mass loss",
            Event::Held { reason } if reason.contains("was lost") => "sched held recent loss",
            Event::Held { reason } if reason.contains("came back") => "sched held rejoin",
            Event::Malformed { from, error } => {
                let text = format!("{} got from {from}: {error}", self.machines[node].name);
                return self.violate(text);
            }
            _ => return,
        };
        self.marks.hit(mark);
    }
}

fn machine(i: usize, racks: usize) -> Machine {
    let (high, low) = (i / 250, i % 250);
    let rack = i % racks;
    // Rows of two racks; fits: nodes are bounded far below.
    let labels = [("rack", format!("r{rack}")), ("row", format!("row{}", rack / 2))];
    Machine {
        name: format!("n{i}"),
        addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, high as u8, low as u8 + 1)), 7946),
        node: None,
        disk: Disk::default(),
        kernel: Kernel::default(),
        record: NodeRecord {
            cpu_milli: 4_000,
            memory_bytes: 4 << 30,
            pods: 64,
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            ..NodeRecord::default()
        },
        drain: false,
        boots: 0,
        paused: false,
        inbox: Vec::new(),
        wall_offset_ms: 0,
        wake_at: None,
        gone: false,
        fresh_us: 0,
        seen: BTreeMap::new(),
    }
}
