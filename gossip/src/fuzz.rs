//! What a fuzzer calls: plain functions over bytes, one per boundary. They panic if an invariant breaks.
//!
//! `fuzz/` has a target for each; `tests/corpus.rs` replays what the fuzzer has found worth keeping.

use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::api::{Input, Output};
use crate::config::{Config, Profile};
use crate::core::Gossip;
use crate::frame::{Binding, KeyRing, SecretKey};
use crate::member::{Identity, Nid};
use crate::message::{Item, Message, Update, put_record, read_record};
use crate::wire::Reader;

mod dialogue;

pub use dialogue::dialogue;

/// A node with a peer, a record and a clock.
#[derive(Debug)]
pub struct Target {
    gossip: Gossip,
    rng: Xoshiro256PlusPlus,
    keys: KeyRing,
    now_us: u64,
    counter: u64,
}

const ME: &str = "me";
const PEER: &str = "peer";

impl Default for Target {
    fn default() -> Target {
        Target::new(|_| {})
    }
}

impl Target {
    fn new(before: impl FnOnce(&mut Gossip)) -> Target {
        let keys = KeyRing::new(&SecretKey::new(1, [5; 32]));
        let me = Identity { name: ME.into(), generation: 3, addr: addr(1) };
        let cfg = Config::new(keys.clone(), Profile::Lan);
        let mut gossip = Gossip::new(cfg, me).expect("the name is valid");
        before(&mut gossip);
        let rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut target = Target { gossip, rng, keys, now_us: 1, counter: 0 };
        target.step(Input::Timer);
        let body = vec![1; 3000];
        target.step(Input::Put { key: "s/a", body, expect: Default::default() });
        target
    }
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Target {
    fn step(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.gossip.step(self.now_us, 1_000_000, input, &mut self.rng, &mut out);
        out
    }

    /// Anything at all from a stranger: silence, and nothing changes.
    pub fn datagram(&mut self, bytes: &[u8]) {
        let before = self.summary();
        let out = self.step(Input::Datagram { from: addr(2), bytes });
        assert!(out.is_empty(), "a stranger was answered");
        assert_eq!(self.summary(), before, "a stranger changed something");
    }

    /// Anything at all from a peer that holds the key, and half a second to digest it.
    pub fn content(&mut self, bytes: &[u8]) {
        let mut plain = Nid::of(PEER).0.to_le_bytes().to_vec();
        plain.push(9);
        plain.extend_from_slice(bytes);
        self.counter += 1;
        let generation = self.gossip.me().generation;
        let bound = Binding::To { nid: Nid::of(ME), generation };
        let to = if self.counter.is_multiple_of(16) { Binding::Open } else { bound };
        let frame = self.keys.seal(to, 77, self.counter, &plain);
        self.step(Input::Datagram { from: addr(2), bytes: &frame });
        self.pass(500_000);
        assert!(self.gossip.get("s/a").is_some() || self.gossip.version("s/a").is_some());
    }

    fn pass(&mut self, time_us: u64) {
        let end_us = self.now_us + time_us;
        while let Some(at_us) = self.gossip.next_deadline().filter(|at| *at <= end_us) {
            self.now_us = self.now_us.max(at_us);
            self.step(Input::Timer);
        }
        self.now_us = end_us;
    }

    /// The generation it has by now.
    pub fn generation(&self) -> u64 {
        self.gossip.me().generation
    }

    fn summary(&self) -> (u32, u64, usize) {
        (self.gossip.view(), self.gossip.root(), self.gossip.members().count())
    }
}

/// A log with anything in it: loaded or refused, never a panic, and what is loaded has been checked. Once as the bytes of
/// the file, and once as the contents of entries (a length byte and so many bytes each) whose checksums are right.
pub fn log(bytes: &[u8]) {
    generation(bytes);
    checked(bytes);
    let mut reader = Reader::new(bytes);
    let contents = std::iter::from_fn(|| {
        let len = usize::from(reader.u8()?).max(1);
        reader.bytes(len)
    });
    checked(&crate::disk::log_of(ME, contents));
}

fn checked(log: &[u8]) {
    let Ok(restored) = crate::disk::load_bytes(log, ME) else { return };
    for record in &restored.records {
        crate::map::check_key(&record.key).expect("checked while loading");
    }
    for member in &restored.roster {
        crate::check_name(&member.name).expect("checked while loading");
    }
    // And a node that starts with it lives for a while, and writes to each key.
    let mut target = Target::new(|gossip| gossip.restore(1, 1_000_000, restored.clone()));
    for key in restored.records.iter().map(|record| &*record.key).take(4) {
        target.step(Input::Put { key, body: vec![2], expect: Default::default() });
    }
    target.pass(2_000_000);
}

/// A boot counter's file with anything in it: what is read is written the same, and can be stepped above.
pub fn generation(bytes: &[u8]) {
    let counted = bytes.get(..8).map(|n| [n, &crate::disk::crc32(n).to_le_bytes()].concat());
    for file in [Some(bytes.to_vec()), counted].into_iter().flatten() {
        let Some(counter) = crate::disk::read_counter(&file) else { continue };
        assert!(counter < crate::message::GENERATION_MAX);
        assert_eq!(crate::disk::counter_bytes(counter)[..], file[..12]);
    }
}

/// Anything as the messages of a frame: each parses or ends the frame, and what was read reads the same once written.
pub fn message(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Some(message) = Message::next(&mut reader) {
        match message {
            Message::Updates(mut updates) | Message::Hints(mut updates) => {
                while let Some(update) = Update::read(&mut updates) {
                    same_update(&update);
                }
            }
            Message::Hello(update) | Message::Beacon(update) | Message::HelloAck(update, _) => {
                same_update(&update);
            }
            Message::MapRecord(record) => {
                let Some(record) = read_record(&mut Reader::new(record)) else { continue };
                let mut written = Vec::new();
                put_record(&mut written, &record);
                assert!(written.len() <= crate::map::ENCODED_MAX_BYTES);
                assert_eq!(read_record(&mut Reader::new(&written)), Some(record));
            }
            Message::MapList { mut items, .. }
            | Message::MapPull(mut items)
            | Message::MapAdvert(mut items) => {
                while let Some(item) = Item::read(&mut items) {
                    let mut written = Vec::new();
                    item.write(&mut written);
                    assert!(written.len() <= crate::message::ITEM_MAX_BYTES);
                    assert_eq!(Item::read(&mut Reader::new(&written)), Some(item));
                }
            }
            _ => {}
        }
    }
}

fn same_update(update: &Update<'_>) {
    let mut written = Vec::new();
    update.write(&mut written);
    assert_eq!(Update::read(&mut Reader::new(&written)).as_ref(), Some(update));
}

/// Nodes of [`events`].
const NODES: usize = 3;
/// Datagrams under way in [`events`]; more are lost.
const WIRE_MAX: usize = 256;

/// A few nodes whose clock, network and inputs are the fuzzer's.
struct Flock {
    nodes: Vec<Gossip>,
    left: [bool; NODES],
    wire: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    rng: Xoshiro256PlusPlus,
    now_us: u64,
}

impl Flock {
    fn new() -> Flock {
        let node = |index: usize| {
            let keys = KeyRing::new(&SecretKey::new(1, [5; 32]));
            let mut cfg = Config::new(keys, Profile::Lan);
            cfg.seeds = (0..NODES).map(|n| addr(10 + n as u16)).collect();
            let me = Identity { name: format!("n{index}"), generation: 1, addr: address(index) };
            Gossip::new(cfg, me).expect("the name is valid")
        };
        let nodes = (0..NODES).map(node).collect();
        let rng = Xoshiro256PlusPlus::seed_from_u64(2);
        Flock { nodes, left: [false; NODES], wire: Vec::new(), rng, now_us: 1 }
    }

    fn step(&mut self, index: usize, input: Input<'_>) {
        let mut out = Vec::new();
        let Some(node) = self.nodes.get_mut(index) else { return };
        node.step(self.now_us, 1_000_000 + self.now_us / 1000, input, &mut self.rng, &mut out);
        for output in out {
            match output {
                Output::Send { to, bytes } => {
                    assert!(bytes.len() <= crate::PACKET_MAX_BYTES);
                    if self.wire.len() < WIRE_MAX {
                        self.wire.push((address(index), to, bytes));
                    }
                }
                Output::Event(crate::Event::Left) => self.left[index] = true,
                _ => {}
            }
        }
    }

    fn deliver(&mut self, at: usize, keep: bool) {
        if self.wire.is_empty() {
            return;
        }
        let at = at % self.wire.len();
        let (from, to, bytes) = if keep { self.wire[at].clone() } else { self.wire.remove(at) };
        let index = usize::from(to.port().wrapping_sub(10));
        self.step(index, Input::Datagram { from, bytes: &bytes });
    }

    /// Lets time pass; who is due acts.
    fn pass(&mut self, time_us: u64, deliver: bool) {
        let end_us = self.now_us + time_us;
        loop {
            while deliver && !self.wire.is_empty() {
                self.deliver(0, false);
            }
            let due = |n: &Gossip| n.next_deadline();
            let next = (0..NODES).filter_map(|n| Some((due(&self.nodes[n])?, n))).min();
            let Some((at_us, node)) = next.filter(|(at, _)| *at <= end_us) else { break };
            let before = (self.now_us, self.nodes[node].next_deadline());
            self.now_us = self.now_us.max(at_us);
            self.step(node, Input::Timer);
            let after = self.nodes[node].next_deadline();
            assert!(
                after.is_none_or(|a| a > self.now_us),
                "a timer that is never served: {before:?}"
            );
        }
        self.now_us = end_us;
    }
}

fn address(node: usize) -> SocketAddr {
    addr(10 + node as u16)
}

/// Any sequence of inputs, delays, losses, repetitions and stalls: no panic, no timer unserved, no packet too long; and
/// once the network works again the nodes that stayed agree on members and map.
pub fn events(bytes: &[u8]) {
    const OPS_MAX: usize = 200;
    let mut flock = Flock::new();
    for node in 0..NODES {
        flock.step(node, Input::Timer);
    }
    for op in bytes.chunks(3).take(OPS_MAX) {
        let (what, a, b) = match *op {
            [what, a, b] => (what, usize::from(a), usize::from(b)),
            _ => break,
        };
        let node = a % NODES;
        let key = format!("s/{}", b % 8);
        match what % 12 {
            0 => {
                let body = vec![b as u8; (b * 70) % (crate::BODY_MAX_BYTES + 2)];
                flock.step(node, Input::Put { key: &key, body, expect: Default::default() });
            }
            1 => flock.step(node, Input::Delete { key: &key }),
            2 => {
                let to = format!("n{}", b % 4);
                flock.step(node, Input::Unicast { to: &to, payload: vec![1; b * 5] });
            }
            3 => flock.step(node, Input::Join(vec![address(b % NODES)])),
            // The first always stays.
            4 if node > 0 => flock.step(node, Input::Leave),
            5 => flock.step(node, Input::Forget { name: &format!("n{}", b % NODES) }),
            6 => flock.deliver(a * 7 + b, false),
            7 => flock.deliver(a * 7 + b, true),
            8 => flock.wire.clear(),
            9 => flock.pass((b as u64 + 1) * 4_000, false),
            10 => flock.pass((b as u64 + 1) * 20_000, true),
            // Everybody stands still, then all timers are late.
            11 => flock.now_us += b as u64 * 50_000,
            _ => {}
        }
    }
    flock.pass(120_000_000, true);
    let stayed: Vec<usize> = (0..NODES).filter(|n| !flock.left[*n]).collect();
    let summary = |n: &usize| (flock.nodes[*n].root(), flock.nodes[*n].view());
    let first = stayed.first().map(summary);
    for node in &stayed {
        assert_eq!(Some(summary(node)), first, "n{node} sees another flock");
        let live = flock.nodes[*node].members().filter(|m| m.state.is_live()).count();
        assert_eq!(live + 1, stayed.len(), "as n{node} sees it");
    }
}
