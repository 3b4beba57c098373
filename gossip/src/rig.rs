//! A flock of maps without membership: what ten thousand nodes do with a record, in the memory of one machine.
//!
//! Ten thousand full member tables would be a hundred million entries. Here all replicas share one table in which everybody
//! lives; the rest is the real thing: the map's core, its messages, sealed frames, its timers. Probes are reduced to
//! what the map sees of them: now and then one node shows another its root.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

use crate::api::{Expect, Output};
use crate::config::{Limits, Profile, Timing};
pub use crate::disk::LogImage;
use crate::frame::{Binding, KeyRing, SecretKey};
use crate::map::{MapCtx, Replica};
use crate::member::{Member, Nid, State};
use crate::message::{Item, Message, RecordView};
use crate::outbox::{Dest, Outbox, Sender};
use crate::swim::table::{Table, below};
use crate::wire::Reader;

const GENERATION: u64 = 1;
const WALL_MS: u64 = 1_700_000_000_000;

struct Node {
    nid: Nid,
    map: Replica,
    net: Outbox,
    deadline: Option<u64>,
}

enum Due {
    Datagram { to: usize, from: usize, bytes: Vec<u8> },
    Timer(usize),
    Probe(usize),
    Root { to: usize, from: usize, root: u64 },
}

/// The flock.
pub struct MapFlock {
    now_us: u64,
    nodes: Vec<Node>,
    table: Table,
    keys: KeyRing,
    timing: Timing,
    due: BTreeMap<(u64, u64), Due>,
    order: u64,
    rng: Xoshiro256PlusPlus,
    /// Payload bytes sent by all nodes for the map.
    pub sent_bytes: u64,
}

fn addr(node: usize) -> SocketAddr {
    let [_, b, c, d] = (node as u32).to_be_bytes();
    SocketAddr::from(([10, b, c, d], 7400))
}

fn index(addr: SocketAddr) -> Option<usize> {
    let SocketAddr::V4(v4) = addr else { return None };
    let [_, b, c, d] = v4.ip().octets();
    Some(u32::from_be_bytes([0, b, c, d]) as usize)
}

fn member(name: &str, node: usize) -> Member {
    Member {
        name: name.into(),
        addr: addr(node),
        generation: GENERATION,
        incarnation: 0,
        state: State::Alive,
        rtt_us: 0,
    }
}

impl MapFlock {
    /// So many nodes that have known each other for long.
    pub fn new(seed: u64, count: usize) -> MapFlock {
        let timing = Timing::of(Profile::Lan);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        // The table's own node is nobody's: everybody else is in the list that peers are picked from.
        let mut table = Table::new(member("rig", 0xff_ffff));
        let mut nodes = Vec::with_capacity(count);
        for node in 0..count {
            let name = format!("node-{node:05}");
            let nid = Nid::of(&name);
            table.insert(nid, member(&name, node), false, 0);
            let mut map = Replica::new(&name, timing, Limits::default());
            let mut net = Outbox::default();
            map.start(1);
            net.start(&mut rng);
            nodes.push(Node { nid, map, net, deadline: None });
        }
        let keys = KeyRing::new(&SecretKey::new(1, [7; 32]));
        let due = BTreeMap::new();
        let mut flock =
            MapFlock { now_us: 1, nodes, table, keys, timing, due, order: 0, rng, sent_bytes: 0 };
        for node in 0..count {
            let phase = below(&mut flock.rng, timing.probe_us as usize) as u64;
            flock.later(phase, Due::Probe(node));
            flock.arm(node);
        }
        flock
    }

    fn later(&mut self, after_us: u64, due: Due) {
        self.order += 1;
        self.due.insert((self.now_us + after_us, self.order), due);
    }

    fn latency(&mut self) -> u64 {
        100 + self.rng.next_u64() % 401
    }

    fn arm(&mut self, node: usize) {
        let Some(n) = self.nodes.get_mut(node) else { return };
        let next = n.map.next_deadline();
        if next != n.deadline {
            n.deadline = next;
            if let Some(at_us) = next {
                self.later(at_us.saturating_sub(self.now_us), Due::Timer(node));
            }
        }
    }

    /// Gives a node's map something to do and carries what it sends.
    fn act(&mut self, node: usize, what: impl FnOnce(&mut Replica, &mut MapCtx<'_>)) {
        let mut out = Vec::new();
        let Some(n) = self.nodes.get_mut(node) else { return };
        let mut ctx = MapCtx {
            now_us: self.now_us,
            wall_ms: WALL_MS + self.now_us / 1000,
            rng: &mut self.rng,
            net: &mut n.net,
            out: &mut out,
            table: &self.table,
        };
        what(&mut n.map, &mut ctx);
        let me = Sender { nid: n.nid, generation: GENERATION };
        n.net.flush(&self.keys, me, self.now_us, &mut out, |_, _, _| {});
        for output in out {
            let Output::Send { to, bytes } = output else { continue };
            self.sent_bytes += bytes.len() as u64;
            if let Some(to) = index(to).filter(|to| *to < self.nodes.len()) {
                let after_us = self.latency();
                self.later(after_us, Due::Datagram { to, from: node, bytes });
            }
        }
        self.arm(node);
    }

    fn datagram(&mut self, to: usize, from: usize, bytes: &[u8]) {
        let mut scratch = Vec::new();
        let Some(nid) = self.nodes.get(to).map(|n| n.nid) else { return };
        let Some(opened) = self.keys.clone().open(nid, GENERATION, bytes, &mut scratch) else {
            return;
        };
        let mut reader = Reader::new(opened.plain);
        let (Some(sender), Some(generation)) = (reader.u64(), reader.varint()) else { return };
        let to_sender = Binding::To { nid: Nid(sender), generation };
        let dest = Dest { addr: addr(from), to: to_sender };
        while let Some(message) = Message::next(&mut reader) {
            self.act(to, |map, ctx| match message {
                Message::MapDigest(theirs) => map.on_digest(dest, theirs, ctx),
                Message::MapList { first, last, items } => {
                    map.on_list(dest, (first, last), &read_items(items), ctx);
                }
                Message::MapPull(items) => map.on_pull(dest, &read_items(items), ctx),
                Message::MapAdvert(items) => map.on_advert(dest, &read_items(items), ctx),
                Message::MapRecord(bytes) => {
                    if let Some(record) = RecordView::read(&mut Reader::new(bytes)) {
                        map.on_record(&record, ctx);
                    }
                }
                Message::MapPiece { key, hash, total, offset, bytes } => {
                    map.on_piece(key, hash, (total, offset), bytes, ctx);
                }
                _ => {}
            });
        }
    }

    fn handle(&mut self, due: Due) {
        match due {
            Due::Datagram { to, from, bytes } => self.datagram(to, from, &bytes),
            Due::Timer(node) => self.act(node, |map, ctx| map.timer(ctx)),
            Due::Probe(node) => {
                let to = below(&mut self.rng, self.nodes.len());
                let root = self.nodes.get(node).map_or(0, |n| n.map.store().root());
                let after_us = self.latency();
                self.later(after_us, Due::Root { to, from: node, root });
                self.later(self.timing.probe_us, Due::Probe(node));
            }
            Due::Root { to, from, root } => {
                let Some(nid) = self.nodes.get(from).map(|n| n.nid) else { return };
                let dest =
                    Dest { addr: addr(from), to: Binding::To { nid, generation: GENERATION } };
                self.act(to, |map, ctx| map.on_root(dest, root, ctx));
            }
        }
    }

    /// Writes a record at a node.
    pub fn put(&mut self, node: usize, key: &str, body: &[u8]) {
        let body = body.to_vec();
        self.act(node, |map, ctx| {
            let put = map.put(key, body, Expect::Any, ctx);
            assert!(put.is_ok(), "{put:?}");
        });
    }

    /// Runs for a time.
    pub fn run(&mut self, time_us: u64) {
        let end_us = self.now_us + time_us;
        while let Some(entry) = self.due.first_entry().filter(|e| e.key().0 <= end_us) {
            let ((at_us, _), due) = entry.remove_entry();
            self.now_us = self.now_us.max(at_us);
            self.handle(due);
        }
        self.now_us = end_us;
    }

    /// How long until all maps are equal, looked at every 10 ms; `None`: longer than the limit.
    pub fn until_equal(&mut self, limit_us: u64) -> Option<u64> {
        let start_us = self.now_us;
        while !self.equal() {
            if self.now_us - start_us >= limit_us {
                return None;
            }
            self.run(10_000);
        }
        Some(self.now_us - start_us)
    }

    fn equal(&self) -> bool {
        let mut roots = self.nodes.iter().map(|n| n.map.store().root());
        let first = roots.next();
        roots.all(|root| Some(root) == first)
    }
}

fn read_items(mut reader: Reader<'_>) -> Vec<Item> {
    std::iter::from_fn(|| Item::read(&mut reader)).collect()
}
