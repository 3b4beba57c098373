//! A flock of foca 2 nodes on virtual time, on the network model of `world`.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};

use foca::{AccumulatingRuntime, Foca, Identity, OwnedNotification, PostcardCodec, Timer};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::world::{MS, S};

/// What our frames add to a payload, so that bytes compare: foca seals nothing.
const SEAL_BYTES: usize = 30;

/// Address and boot, of the size of an IPv4 socket address and a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    ip: [u8; 4],
    port: u16,
    bump: u32,
}

impl Id {
    fn new(node: usize, bump: u32) -> Id {
        let [_, b, c, d] = (node as u32).to_be_bytes();
        Id { ip: [10, b, c, d], port: 7946, bump }
    }

    fn node(self) -> usize {
        let [_, b, c, d] = self.ip;
        u32::from_be_bytes([0, b, c, d]) as usize
    }
}

impl Identity for Id {
    type Addr = [u8; 4];

    fn renew(&self) -> Option<Id> {
        Some(Id { bump: self.bump + 1, ..*self })
    }

    fn addr(&self) -> [u8; 4] {
        self.ip
    }

    fn win_addr_conflict(&self, adversary: &Id) -> bool {
        self.bump > adversary.bump
    }
}

type Core = Foca<Id, PostcardCodec, Xoshiro256PlusPlus, foca::NoCustomBroadcast>;

enum Item {
    Data(Vec<u8>),
    Timer(u32, Timer<Id>),
}

struct Node {
    core: Core,
    bump: u32,
    /// Timers of an earlier life are dropped.
    life: u32,
    up: bool,
    left: bool,
    paused: bool,
    held: Vec<Item>,
    sent_bytes: u64,
    downs: Vec<(u64, usize)>,
}

/// The flock.
pub struct FocaWorld {
    pub now: u64,
    /// Lost datagrams in 1/1000.
    pub loss: u64,
    pub latency_us: (u64, u64),
    /// Drops what goes from the first to the second.
    pub cut: Box<dyn Fn(usize, usize) -> bool>,
    nodes: Vec<Node>,
    queue: BTreeMap<(u64, u64), (usize, Item)>,
    order: u64,
    size: u32,
    rng: Xoshiro256PlusPlus,
}

impl FocaWorld {
    /// `size`: what foca is told to tune itself for.
    pub fn new(seed: u64, size: usize) -> FocaWorld {
        FocaWorld {
            now: 5 * S,
            loss: 0,
            latency_us: (100, 500),
            cut: Box::new(|_, _| false),
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            order: 0,
            size: size as u32,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
        }
    }

    fn core(&mut self, node: usize, bump: u32) -> Core {
        let size = NonZeroU32::new(self.size).expect("a flock");
        let mut config = foca::Config::new_lan(size);
        let packet = gossip::PACKET_SAFE_BYTES - SEAL_BYTES;
        config.max_packet_size = NonZeroUsize::new(packet).expect("not zero");
        let rng = Xoshiro256PlusPlus::seed_from_u64(self.rng.next_u64());
        Foca::new(Id::new(node, bump), config, rng, PostcardCodec)
    }

    /// Starts nodes that announce themselves to the first.
    pub fn spawn(&mut self, count: usize) {
        for _ in 0..count {
            let index = self.nodes.len();
            let core = self.core(index, 1);
            self.nodes.push(Node {
                core,
                bump: 1,
                life: 0,
                up: true,
                left: false,
                paused: false,
                held: Vec::new(),
                sent_bytes: 0,
                downs: Vec::new(),
            });
            self.announce(index);
        }
    }

    /// As a cluster that has been up for long: everybody is told of everybody.
    pub fn introduce(&mut self) {
        for node in 0..self.nodes.len() {
            let all: Vec<foca::Member<Id>> = (0..self.nodes.len())
                .filter(|n| *n != node)
                .map(|n| foca::Member::alive(Id::new(n, 1)))
                .collect();
            self.act(node, |core, runtime| core.apply_many(all.into_iter(), false, runtime));
        }
    }

    fn announce(&mut self, node: usize) {
        if node > 0 {
            let seed = Id::new(0, self.nodes[0].bump);
            self.act(node, |core, runtime| core.announce(seed, runtime));
        }
    }

    pub fn kill(&mut self, node: usize) {
        self.nodes[node].up = false;
        self.nodes[node].life += 1;
        self.nodes[node].held.clear();
    }

    /// A new boot that announces itself to the first node that is up.
    pub fn restart(&mut self, node: usize) {
        let bump = self.nodes[node].core.identity().bump + 1;
        let core = self.core(node, bump);
        let n = &mut self.nodes[node];
        n.life += 1;
        (n.core, n.bump, n.up, n.left, n.paused) = (core, bump, true, false, false);
        let seed = self.up().find(|n| *n != node).map(|n| *self.nodes[n].core.identity());
        if let Some(seed) = seed {
            self.act(node, |core, runtime| core.announce(seed, runtime));
        }
    }

    pub fn leave(&mut self, node: usize) {
        self.act(node, |core, runtime| core.leave_cluster(runtime));
        self.nodes[node].up = false;
        self.nodes[node].left = true;
        self.nodes[node].life += 1;
    }

    pub fn pause(&mut self, node: usize) {
        self.nodes[node].paused = true;
    }

    pub fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
        for item in std::mem::take(&mut self.nodes[node].held) {
            self.handle(node, item);
        }
    }

    fn act(
        &mut self,
        node: usize,
        what: impl FnOnce(&mut Core, &mut AccumulatingRuntime<Id>) -> Result<(), foca::Error>,
    ) {
        let mut runtime = AccumulatingRuntime::new();
        // Errors of foca here are packets it does not like: silence, as on a network.
        let _ = what(&mut self.nodes[node].core, &mut runtime);
        while let Some((to, data)) = runtime.to_send() {
            self.send(node, to.node(), data.to_vec());
        }
        let life = self.nodes[node].life;
        while let Some((after, timer)) = runtime.to_schedule() {
            self.order += 1;
            let at = self.now + after.as_micros() as u64;
            self.queue.insert((at, self.order), (node, Item::Timer(life, timer)));
        }
        while let Some(said) = runtime.to_notify() {
            if let OwnedNotification::MemberDown(id) = said {
                let now = self.now;
                self.nodes[node].downs.push((now, id.node()));
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, data: Vec<u8>) {
        self.nodes[from].sent_bytes += (data.len() + SEAL_BYTES) as u64;
        if to >= self.nodes.len() || (self.cut)(from, to) {
            return;
        }
        if self.rng.next_u64() % 1000 < self.loss {
            return;
        }
        let (low, high) = self.latency_us;
        let at = self.now + low + self.rng.next_u64() % (high - low + 1);
        self.order += 1;
        self.queue.insert((at, self.order), (to, Item::Data(data)));
    }

    fn handle(&mut self, node: usize, item: Item) {
        if !self.nodes[node].up {
            return;
        }
        if self.nodes[node].paused {
            let held = &mut self.nodes[node].held;
            if held.len() < 4096 || matches!(item, Item::Timer(..)) {
                held.push(item);
            }
            return;
        }
        match item {
            Item::Data(data) => self.act(node, |core, runtime| core.handle_data(&data, runtime)),
            Item::Timer(life, timer) if life == self.nodes[node].life => {
                self.act(node, |core, runtime| core.handle_timer(timer, runtime));
            }
            Item::Timer(..) => {}
        }
    }

    pub fn run(&mut self, time: u64) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry().filter(|e| e.key().0 <= end) {
            let ((at, _), (node, item)) = entry.remove_entry();
            self.now = self.now.max(at);
            self.handle(node, item);
        }
        self.now = end;
    }

    pub fn until(&mut self, limit: u64, done: impl Fn(&FocaWorld) -> bool) -> Option<u64> {
        let start = self.now;
        let mut met = done(self);
        while !met && self.now < start + limit {
            self.run(50 * MS);
            met = done(self);
        }
        met.then(|| self.now - start)
    }

    pub fn up(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].up)
    }

    /// Whom a node takes for active, itself included.
    pub fn live(&self, node: usize) -> BTreeSet<usize> {
        let members = self.nodes[node].core.iter_members().map(|m| m.id().node());
        members.chain([node]).collect()
    }

    fn counts(&self, node: usize) -> usize {
        self.nodes[node].core.num_members() + 1
    }

    pub fn agreed(&self) -> bool {
        let up = self.up().count();
        self.up().all(|n| self.counts(n) == up)
    }

    pub fn knows_dead(&self, at: usize, of: usize) -> bool {
        !self.nodes[at].core.iter_members().any(|m| m.id().node() == of)
    }

    /// (when, who, whom) of every member declared down.
    pub fn deaths(&self) -> Vec<(u64, usize, usize)> {
        let all = self.nodes.iter().enumerate();
        all.flat_map(|(who, n)| n.downs.iter().map(move |(at, whom)| (*at, who, *whom))).collect()
    }

    pub fn sent_bytes(&self) -> u64 {
        self.nodes.iter().map(|n| n.sent_bytes).sum()
    }

    pub fn clear(&mut self) {
        for node in &mut self.nodes {
            node.sent_bytes = 0;
            node.downs.clear();
        }
    }
}
