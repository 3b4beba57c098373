//! A flock on virtual time: one thread, one seed, no sockets.
#![allow(dead_code, unreachable_pub)] // Each test file uses its own part of this module.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use gossip::{Config, Event, Gossip, Identity, Input, KeyRing, Output, Profile, SecretKey, State};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

pub const MS: u64 = 1_000;
pub const S: u64 = 1_000_000;

pub struct Node {
    pub gossip: Gossip,
    pub name: String,
    pub up: bool,
    pub paused: bool,
    pub events: Vec<(u64, Event)>,
    pub sent_bytes: u64,
    pub sent: u64,
    pub wall_skew_ms: i64,
    rng: Xoshiro256PlusPlus,
    inbox: Vec<(SocketAddr, Vec<u8>)>,
    deadline: Option<u64>,
    generation: u64,
    cfg: Config,
}

pub struct World {
    pub now: u64,
    pub nodes: Vec<Node>,
    /// Lost datagrams in 1/1000.
    pub loss: u64,
    pub latency_us: (u64, u64),
    /// Measured latencies to draw from instead; empty: none.
    pub latencies_us: Vec<u64>,
    /// Boot counter of who starts first.
    pub generation: u64,
    /// Drops what goes from the first to the second.
    pub cut: Box<dyn Fn(usize, usize) -> bool>,
    pub recording: Option<Vec<(usize, SocketAddr, Vec<u8>)>>,
    /// Longest datagram that gets from the first to the second; a longer one vanishes.
    pub carries: Box<dyn Fn(usize, usize) -> usize>,
    /// Longest datagram a node's own link takes; a longer one is refused.
    pub link_bytes: usize,
    /// Longest datagram that arrived, and how many were too long to.
    pub longest: usize,
    pub vanished: usize,
    wire: BTreeMap<(u64, u64), (usize, SocketAddr, Vec<u8>)>,
    due: BTreeSet<(u64, usize)>,
    order: u64,
    rng: Xoshiro256PlusPlus,
}

pub fn keys() -> KeyRing {
    KeyRing::new(&SecretKey::new(1, [7; 32]))
}

pub fn addr(node: usize) -> SocketAddr {
    let [_, b, c, d] = (node as u32).to_be_bytes();
    SocketAddr::new(Ipv4Addr::new(10, b, c, d).into(), 7946)
}

pub fn name(node: usize) -> String {
    format!("node-{node:05}")
}

const WALL_MS: u64 = 1_700_000_000_000;

impl World {
    pub fn new(seed: u64) -> World {
        World {
            now: 5 * S,
            nodes: Vec::new(),
            loss: 0,
            latency_us: (100, 500),
            latencies_us: Vec::new(),
            generation: 1,
            cut: Box::new(|_, _| false),
            recording: None,
            carries: Box::new(|_, _| usize::MAX),
            link_bytes: usize::MAX,
            longest: 0,
            vanished: 0,
            wire: BTreeMap::new(),
            due: BTreeSet::new(),
            order: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    /// Starts `count` more nodes that join through the first node.
    pub fn spawn(&mut self, count: usize) {
        self.spawn_with(count, |_| {});
    }

    pub fn spawn_with(&mut self, count: usize, tune: impl Fn(&mut Config)) {
        for _ in 0..count {
            self.spawn_named(name(self.nodes.len()), &tune);
        }
    }

    /// One more node, of a name that may be taken.
    pub fn spawn_as(&mut self, name: String) {
        self.spawn_named(name, &|_| {});
    }

    /// One more node, whose socket is open, and that starts when it is resumed.
    pub fn spawn_waiting(&mut self, name: String) {
        let index = self.add(name, &|_| {});
        self.nodes[index].paused = true;
    }

    fn spawn_named(&mut self, name: String, tune: &dyn Fn(&mut Config)) {
        let index = self.add(name, tune);
        self.input(index, Input::Timer);
    }

    fn add(&mut self, name: String, tune: &dyn Fn(&mut Config)) -> usize {
        let mut cfg = Config::new(keys(), Profile::Lan);
        cfg.seeds = vec![addr(0)];
        tune(&mut cfg);
        let index = self.nodes.len();
        let node = Node {
            gossip: boot(index, &name, self.generation, cfg.clone()),
            name,
            up: true,
            paused: false,
            events: Vec::new(),
            sent_bytes: 0,
            sent: 0,
            wall_skew_ms: 0,
            rng: Xoshiro256PlusPlus::seed_from_u64(self.rng.next_u64()),
            inbox: Vec::new(),
            deadline: None,
            generation: self.generation,
            cfg,
        };
        self.nodes.push(node);
        index
    }

    pub fn kill(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.arm(node);
    }

    /// A new boot with an empty memory but for the boot counter.
    pub fn restart(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        n.generation += 1;
        n.up = true;
        n.paused = false;
        n.inbox.clear();
        n.gossip = boot(node, &n.name, n.generation, n.cfg.clone());
        self.input(node, Input::Timer);
    }

    /// A new boot that remembers.
    pub fn restart_with(&mut self, node: usize, restored: gossip::Restored) {
        let (now, wall) = (self.now, self.wall_ms(node));
        let n = &mut self.nodes[node];
        n.generation += 1;
        n.up = true;
        n.gossip = boot(node, &n.name, n.generation, n.cfg.clone());
        n.gossip.restore(now, wall, restored);
        self.input(node, Input::Timer);
    }

    pub fn wall_ms(&self, node: usize) -> u64 {
        (WALL_MS + self.now / 1000).saturating_add_signed(self.nodes[node].wall_skew_ms)
    }

    /// Its disk is gone.
    pub fn forget_generation(&mut self, node: usize) {
        self.nodes[node].generation = 0;
    }

    /// The process stands still; what arrives waits in the socket (4,096 datagrams).
    pub fn pause(&mut self, node: usize) {
        self.nodes[node].paused = true;
        self.arm(node);
    }

    pub fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
        for (from, bytes) in std::mem::take(&mut self.nodes[node].inbox) {
            self.input(node, Input::Datagram { from, bytes: &bytes });
        }
        self.input(node, Input::Timer);
    }

    pub fn input(&mut self, node: usize, input: Input<'_>) {
        let mut out = Vec::new();
        let wall = self.wall_ms(node);
        let n = &mut self.nodes[node];
        n.gossip.step(self.now, wall, input, &mut n.rng, &mut out);
        self.arm(node);
        for output in out {
            match output {
                Output::Send { to, bytes } => self.send(node, to, bytes),
                Output::Event(event) => self.nodes[node].events.push((self.now, event)),
                _ => {}
            }
        }
    }

    pub fn put(&mut self, node: usize, key: &str, body: &[u8]) {
        let expect = gossip::Expect::Any;
        self.input(node, Input::Put { key, body: body.to_vec(), expect });
    }

    fn send(&mut self, from: usize, to: SocketAddr, bytes: Vec<u8>) {
        assert!(bytes.len() <= gossip::PACKET_MAX_BYTES);
        self.nodes[from].sent_bytes += bytes.len() as u64;
        self.nodes[from].sent += 1;
        if bytes.len() > self.link_bytes {
            return self.input(from, Input::TooLong { to, len_bytes: bytes.len() });
        }
        let SocketAddr::V4(v4) = to else { return };
        if to.ip().is_multicast() {
            let hearers = (0..self.nodes.len()).filter(|n| self.nodes[*n].cfg.discover == Some(to));
            for target in hearers.collect::<Vec<_>>() {
                self.carry(from, target, bytes.clone());
            }
            return;
        }
        let [_, b, c, d] = v4.ip().octets();
        let target = u32::from_be_bytes([0, b, c, d]) as usize;
        if target < self.nodes.len() {
            self.carry(from, target, bytes);
        }
    }

    fn carry(&mut self, from: usize, target: usize, bytes: Vec<u8>) {
        if (self.cut)(from, target) {
            return;
        }
        if bytes.len() > (self.carries)(from, target) {
            self.vanished += 1;
            return;
        }
        self.longest = self.longest.max(bytes.len());
        if self.rng.next_u64() % 1000 < self.loss {
            return;
        }
        let (low, high) = self.latency_us;
        let drawn = self.rng.next_u64();
        let latency_us = match self.latencies_us.len() {
            0 => low + drawn % (high - low + 1),
            count => self.latencies_us[drawn as usize % count],
        };
        let at = self.now + latency_us;
        self.order += 1;
        if let Some(recording) = &mut self.recording {
            recording.push((target, addr(from), bytes.clone()));
        }
        self.wire.insert((at, self.order), (target, addr(from), bytes));
    }

    fn arm(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if let Some(old) = n.deadline.take() {
            self.due.remove(&(old, node));
        }
        if n.up && !n.paused {
            n.deadline = n.gossip.next_deadline();
            if let Some(at) = n.deadline {
                self.due.insert((at, node));
            }
        }
    }

    /// Runs for a time.
    pub fn run(&mut self, time: u64) {
        self.run_until(self.now + time, |_| false);
    }

    /// Runs until a condition holds, looked at every 10 ms; `None` when it never did.
    pub fn until(&mut self, limit: u64, done: impl Fn(&World) -> bool) -> Option<u64> {
        let start = self.now;
        let mut met = done(self);
        while !met && self.now < start + limit {
            self.run(10 * MS);
            met = done(self);
        }
        met.then(|| self.now - start)
    }

    fn run_until(&mut self, end: u64, stop: impl Fn(&World) -> bool) {
        while !stop(self) {
            let wire = self.wire.first_key_value().map(|(k, _)| k.0);
            let due = self.due.first().map(|d| d.0);
            let next = [wire, due].into_iter().flatten().min().unwrap_or(end);
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if wire.is_some_and(|w| w <= self.now)
                && let Some((_, (to, from, bytes))) = self.wire.pop_first()
            {
                let n = &mut self.nodes[to];
                if n.up && !n.paused {
                    self.input(to, Input::Datagram { from, bytes: &bytes });
                } else if n.paused && n.inbox.len() < 4096 {
                    n.inbox.push((from, bytes));
                }
            } else if let Some((at, node)) = self.due.first().copied() {
                if at > self.now {
                    break;
                }
                self.input(node, Input::Timer);
            } else {
                break;
            }
        }
        self.now = end;
    }

    /// Live members as a node sees them, itself included.
    pub fn live(&self, node: usize) -> usize {
        1 + self.nodes[node].gossip.members().filter(|m| m.state.is_live()).count()
    }

    pub fn up(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].up)
    }

    /// Everybody up sees exactly everybody up.
    pub fn agreed(&self) -> bool {
        let up = self.up().count();
        self.up().all(|n| self.live(n) == up)
    }

    pub fn roots_equal(&self) -> bool {
        let mut roots = self.up().map(|n| self.nodes[n].gossip.root());
        let first = roots.next();
        roots.all(|r| Some(r) == first)
    }

    pub fn state(&self, at: usize, of: usize) -> Option<State> {
        self.nodes[at].gossip.member(&name(of)).map(|m| m.state)
    }

    /// (when, who, whom) of every death noticed.
    pub fn deaths(&self) -> Vec<(u64, usize, String)> {
        let mut deaths = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for (at, event) in &node.events {
                if let Event::Member(m) = event
                    && m.state == State::Dead
                {
                    deaths.push((*at, index, m.name.to_string()));
                }
            }
        }
        deaths
    }

    pub fn clear_events(&mut self) {
        for node in &mut self.nodes {
            node.events.clear();
            node.sent_bytes = 0;
            node.sent = 0;
        }
    }
}

fn boot(index: usize, name: &str, generation: u64, cfg: Config) -> Gossip {
    let me = Identity { name: name.to_owned(), generation, addr: addr(index) };
    Gossip::new(cfg, me).expect("the name is valid")
}

/// Weather for a while (crashes, restarts, stalls, partitions, one-way cuts, loss, writes), then calm. Returns how long the
/// flock took to agree on members and map.
pub fn weather(seed: u64, count: usize, rounds: usize) -> (Option<u64>, Option<u64>) {
    let mut world = World::new(seed);
    world.spawn_with(count, |cfg| cfg.seeds = (0..3).map(addr).collect());
    world.until(20 * S, World::agreed);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5eed);
    let mut below = |n: usize| (rng.next_u64() % n as u64) as usize;
    for round in 0..rounds {
        let node = below(count);
        match below(9) {
            0 if world.up().count() > count / 2 => world.kill(node),
            1 => {
                for node in 0..count {
                    if !world.nodes[node].up {
                        world.restart(node);
                    }
                }
            }
            2 if world.nodes[node].up && !world.nodes[node].paused => world.pause(node),
            3 => {
                for node in 0..count {
                    if world.nodes[node].paused && world.nodes[node].up {
                        world.resume(node);
                    }
                }
            }
            4 => {
                let side = below(count);
                world.cut = Box::new(move |from, to| (from < side) != (to < side));
            }
            5 => {
                let (a, b) = (below(count), below(count));
                world.cut = Box::new(move |from, to| from == a && to == b);
            }
            6 => world.cut = Box::new(|_, _| false),
            7 => world.loss = [0, 50, 200, 500][below(4)],
            _ => {}
        }
        if world.nodes[node].up && !world.nodes[node].paused {
            let key = format!("s/{}", below(20));
            world.put(node, &key, format!("{round}").as_bytes());
        }
        world.run(below(3000) as u64 * MS);
    }
    world.loss = 0;
    world.cut = Box::new(|_, _| false);
    for node in 0..count {
        if world.nodes[node].paused {
            world.resume(node);
        }
        if !world.nodes[node].up {
            world.restart(node);
        }
    }
    let members = world.until(60 * S, World::agreed);
    let maps = world.until(60 * S, World::roots_equal);
    let views: BTreeSet<u32> = world.up().map(|n| world.nodes[n].gossip.view()).collect();
    assert!(
        members.is_none()
            || world
                .until(20 * S, |w| {
                    let mut views = w.up().map(|n| w.nodes[n].gossip.view());
                    let first = views.next();
                    views.all(|v| Some(v) == first)
                })
                .is_some(),
        "views stay different: {views:?}"
    );
    for node in 0..count {
        assert_eq!(world.nodes[node].gossip.members().count(), count - 1);
    }
    (members, maps)
}
