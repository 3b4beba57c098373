//! A peer with the key that speaks the language: whole messages with fields of the fuzzer's choice, records in pieces when
//! they are asked for, keys that change, clocks that jump, and a disk that remembers what the node was told.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::{ME, addr};
use crate::api::{Input, Output, Persist};
use crate::config::{BODY_MAX_BYTES, Config, Profile};
use crate::core::{Gossip, Restored};
use crate::disk::LogImage;
use crate::frame::{Binding, KeyRing, SecretKey};
use crate::map::Record;
use crate::member::{Identity, MemberInfo, Nid};
use crate::message::{Accusers, GENERATION_MAX, Item, Message, Standing, Update, put_record, tag};
use crate::outbox::message;
use crate::wire::{Reader, hash64, put_addr, put_varint};

const OPS_MAX: usize = 96;
/// Whom is spoken of, and who speaks.
const NAMES: [&str; 6] = [ME, "peer", "other", "third", "a-name-of-more-than-sixteen-bytes", "z"];
const SPEAKERS: usize = 3;
const RECORDS: usize = 6;
/// Numbers at which counters go wrong.
const EDGES: [u64; 8] =
    [0, 1, 127, 1 << 40, GENERATION_MAX - 2, GENERATION_MAX - 1, GENERATION_MAX, u64::MAX];

/// The fuzzer's choices; zeros when they run out.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// Mostly small, sometimes at an edge.
    fn number(&mut self) -> u64 {
        match self.byte() {
            edge @ 248.. => EDGES[usize::from(edge - 248)],
            small => u64::from(small % 16),
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.below(NAMES.len())]
    }

    fn nid(&mut self) -> Nid {
        match self.below(8) {
            7 => Nid(u64::from(self.byte()) << 56),
            _ => Nid::of(self.name()),
        }
    }

    fn addr(&mut self) -> SocketAddr {
        addr(self.below(6) as u16)
    }

    fn update(&mut self) -> Update<'static> {
        let flags = self.byte();
        let standings = [
            Standing::Alive,
            Standing::Suspect,
            Standing::Dead,
            Standing::Left,
            Standing::Forgotten,
        ];
        let name = self.name();
        let mut accusers = Accusers::default();
        for _ in 0..flags >> 6 {
            accusers.add(self.nid());
        }
        Update {
            nid: Nid::of(name),
            full: (flags & 8 != 0).then(|| (name, self.addr())),
            generation: self.number(),
            incarnation: self.number(),
            standing: standings[usize::from(flags & 7) % 5],
            accusers,
        }
    }

    fn record(&mut self) -> Record {
        let key = format!("s/{}", self.below(RECORDS));
        let lens = [0, 1, 900, 1100, 1184, 2048, 5000, BODY_MAX_BYTES];
        let len = lens[self.below(8)];
        let fill = self.byte();
        let body = (fill != 0).then(|| vec![fill; len].into());
        let (rev, at_ms) = (self.number().max(1), self.number().saturating_mul(1_000));
        let (writer, prev) = (self.name(), self.number());
        Record::new(&key, rev, at_ms, writer.into(), prev, body)
    }
}

/// What a disk that is told everything holds.
#[derive(Default)]
struct Told {
    records: BTreeMap<String, Record>,
    roster: BTreeMap<String, MemberInfo>,
}

impl Told {
    fn remember(&mut self, what: Persist) {
        match what {
            Persist::Record { record, .. } => {
                self.records.insert(record.key.to_string(), record);
            }
            Persist::Dropped { key } => {
                self.records.remove(&key);
            }
            Persist::Member(info) => {
                self.roster.insert(info.name.clone(), info);
            }
            Persist::Forgotten { name } => {
                self.roster.remove(&name);
            }
            Persist::Generation(_) => {}
        }
    }
}

struct Talk {
    gossip: Gossip,
    rng: Xoshiro256PlusPlus,
    /// All keys; the node may hold fewer.
    keys: KeyRing,
    now_us: u64,
    wall_ms: u64,
    counter: u64,
    generations: [u64; SPEAKERS],
    records: BTreeMap<u64, Record>,
    /// What the node has asked for.
    pulls: Vec<Item>,
    seqs: Vec<u32>,
    /// What the node took from whom, of which boot.
    sent: Vec<(usize, u64, Vec<u8>)>,
    told: Told,
}

fn key(id: u8) -> SecretKey {
    SecretKey::new(id, [id; 32])
}

impl Talk {
    fn new() -> Talk {
        let mut keys = KeyRing::new(&key(1));
        let cfg = Config::new(keys.clone(), Profile::Lan);
        for id in [2, 3] {
            keys.accept(&key(id)).expect("there is room");
        }
        let me = Identity { name: ME.into(), generation: 3, addr: addr(0) };
        let gossip = Gossip::new(cfg, me).expect("the name is valid");
        let rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let (records, pulls, seqs, sent) = Default::default();
        let mut talk = Talk {
            gossip,
            rng,
            keys,
            now_us: 1,
            wall_ms: 10_000_000_000,
            counter: 0,
            generations: [9; SPEAKERS],
            records,
            pulls,
            seqs,
            sent,
            told: Told::default(),
        };
        talk.step(Input::Timer);
        talk.step(Input::Put { key: "s/0", body: vec![1; 3000], expect: Default::default() });
        talk
    }

    fn step(&mut self, input: Input<'_>) {
        let (before, mut out) = (self.gossip.me().generation, Vec::new());
        self.gossip.step(self.now_us, self.wall_ms, input, &mut self.rng, &mut out);
        let after = self.gossip.me().generation;
        assert!((before..GENERATION_MAX).contains(&after), "generation {before} became {after}");
        for output in out {
            match output {
                Output::Send { bytes, .. } => self.heard(&bytes),
                Output::Persist(what) => self.told.remember(what),
                Output::Event(_) => {}
            }
        }
    }

    /// Takes note of what the node asks.
    fn heard(&mut self, frame: &[u8]) {
        assert!(frame.len() <= crate::PACKET_MAX_BYTES);
        let mut scratch = Vec::new();
        let opened = (0..SPEAKERS).find_map(|n| {
            let me = Nid::of(NAMES[n + 1]);
            self.keys.open(me, self.generations[n], frame, &mut scratch).map(|o| o.plain.to_vec())
        });
        let Some(plain) = opened else { return };
        let mut reader = Reader::new(&plain);
        assert!(reader.u64().is_some() && reader.varint().is_some(), "it has a head");
        while let Some(message) = Message::next(&mut reader) {
            match message {
                Message::MapPull(mut items) => {
                    self.pulls.extend(std::iter::from_fn(|| Item::read(&mut items)));
                }
                Message::Ping { seq, .. } | Message::PingReq { seq, .. } => self.seqs.push(seq),
                _ => {}
            }
        }
    }

    /// Sends messages as one of the speakers.
    fn say(&mut self, choices: &mut Choices<'_>, messages: &[u8]) {
        let who = choices.below(SPEAKERS * 4);
        let (open, who) = (who >= SPEAKERS * 3, who % SPEAKERS);
        let mut plain = Nid::of(NAMES[who + 1]).0.to_le_bytes().to_vec();
        put_varint(&mut plain, self.generations[who]);
        plain.extend_from_slice(messages);
        self.counter += 1;
        let me = self.gossip.me();
        let bound = Binding::To { nid: Nid::of(ME), generation: me.generation };
        let to = if open { Binding::Open } else { bound };
        let frame = self.keys.seal(to, 70 + who as u64, self.counter, &plain);
        let before = self.gossip.stats().accepted;
        self.step(Input::Datagram { from: addr(1 + who as u16), bytes: &frame });
        if self.gossip.stats().accepted > before {
            // Else it was as good as lost, and may come yet.
            self.sent.push((who, self.generations[who], frame));
        }
    }

    /// One message of the fuzzer's choice.
    fn message(&mut self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let kind = 1 + choices.below(22) as u8;
        message(out, kind, |out| {
            let start = out.len();
            match kind {
                tag::PING => {
                    let view = if choices.below(2) == 0 { self.gossip.view() } else { 7 };
                    out.extend_from_slice(&[1, 0, 0, 0]);
                    out.extend_from_slice(&view.to_le_bytes());
                    out.extend_from_slice(&choices.number().to_le_bytes());
                }
                tag::ACK | tag::NACK => {
                    let seq = self.seqs.pop().unwrap_or(choices.number() as u32);
                    out.extend_from_slice(&seq.to_le_bytes());
                }
                tag::PING_REQ => {
                    out.extend_from_slice(&[2, 0, 0, 0]);
                    out.extend_from_slice(&choices.nid().0.to_le_bytes());
                }
                tag::UPDATES | tag::HINTS => {
                    for _ in 0..=choices.below(4) {
                        choices.update().write(out);
                    }
                }
                tag::HELLO | tag::BEACON => choices.update().write(out),
                tag::HELLO_ACK => {
                    choices.update().write(out);
                    put_varint(out, choices.number());
                }
                tag::MEMBER_DIGEST => out.resize(start + 256, choices.byte()),
                tag::MEMBER_WANT => out.resize(start + 8, choices.byte()),
                tag::OUTDATED => {
                    put_varint(out, choices.number());
                    put_addr(out, choices.addr());
                }
                tag::PATH_ACK => put_varint(out, [1312, 1372, 1452, 8952][choices.below(4)]),
                tag::MAP_DIGEST => out.resize(start + 1024, choices.byte()),
                _ => self.map_message(kind, choices, out),
            }
            1
        });
    }

    fn map_message(&mut self, kind: u8, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        match kind {
            tag::MAP_LIST | tag::MAP_PULL | tag::MAP_ADVERT => {
                if kind == tag::MAP_LIST {
                    let bounds = [0, 1 << 56, u64::MAX];
                    let (first, last) = (bounds[choices.below(3)], bounds[choices.below(3)]);
                    out.extend_from_slice(&first.to_le_bytes());
                    out.extend_from_slice(&last.to_le_bytes());
                }
                for _ in 0..=choices.below(4) {
                    let record = choices.record();
                    let key = hash64(&[b"key", record.key.as_bytes()]);
                    let number = if kind == tag::MAP_PULL { choices.number() } else { record.rev };
                    Item { key, number, hash: record.hash }.write(out);
                    self.records.insert(key, record);
                }
            }
            tag::MAP_RECORD => {
                let record = choices.record();
                if record.body.as_ref().is_none_or(|body| body.len() < 1000) {
                    put_record(out, &record);
                }
            }
            tag::MAP_PIECE => self.piece(choices, out),
            _ => out.extend((0..choices.below(40)).map(|_| choices.byte())),
        }
    }

    /// What was asked for, or nearly that.
    fn piece(&mut self, choices: &mut Choices<'_>, out: &mut Vec<u8>) {
        let Some(item) = self.pulls.pop() else { return };
        let Some(record) = self.records.get(&item.key) else { return };
        let mut encoded = Vec::new();
        put_record(&mut encoded, record);
        let lie = choices.below(24);
        let offset = item.number as usize + [0, 1, 1024][if lie < 3 { lie } else { 0 }];
        let total = encoded.len() + usize::from(lie == 3) - usize::from(lie == 4);
        let hash = record.hash ^ u64::from(lie == 5);
        let rest = encoded.get(offset.min(encoded.len())..).unwrap_or(&[]);
        let len = rest.len().min(1024) - usize::from(lie == 6 && !rest.is_empty());
        out.extend_from_slice(&item.key.to_le_bytes());
        out.extend_from_slice(&hash.to_le_bytes());
        put_varint(out, total as u64);
        put_varint(out, offset as u64);
        out.extend_from_slice(&rest[..len]);
    }

    /// All that is asked for, truly.
    fn serve(&mut self, choices: &mut Choices<'_>) {
        for _ in 0..40 {
            let mut out = Vec::new();
            let mut honest = Choices([23].iter());
            message(&mut out, tag::MAP_PIECE, |out| {
                self.piece(&mut honest, out);
                out.len()
            });
            if self.pulls.is_empty() && out.len() <= 2 {
                break;
            }
            self.say(choices, &out);
        }
    }

    fn local(&mut self, choices: &mut Choices<'_>) {
        let key = format!("s/{}", choices.below(RECORDS));
        match choices.below(9) {
            0 => {
                let body = vec![choices.byte(); 700];
                self.step(Input::Put { key: &key, body, expect: Default::default() });
            }
            1 => self.step(Input::Delete { key: &key }),
            2 => self.step(Input::Forget { name: choices.name() }),
            3 => self.step(Input::Join(vec![choices.addr()])),
            4 => self.step(Input::Address(choices.addr())),
            5 => self.step(Input::Unicast { to: choices.name(), payload: vec![1; 1000] }),
            6 => self.step(Input::TooLong { to: choices.addr(), len_bytes: 1452 }),
            // Refusals are right answers here: full, not held, in use.
            7 => match (choices.below(3), choices.below(4) as u8) {
                (0, id) => drop(self.gossip.keys_mut().accept(&self::key(id))),
                (1, id) => drop(self.gossip.keys_mut().select(id)),
                (_, id) => drop(self.gossip.keys_mut().remove(id)),
            },
            _ => drop(self.keys.select(1 + choices.below(3) as u8)),
        }
    }

    fn pass(&mut self, choices: &mut Choices<'_>) {
        let time_us = (u64::from(choices.byte()) + 1) * 20_000;
        match choices.below(16) {
            // The wall clock jumps, by up to a century, there and back.
            0 => self.wall_ms += 1 << choices.below(42),
            1 => self.wall_ms = self.wall_ms.saturating_sub(1 << choices.below(42)),
            // Nobody is served meanwhile.
            2 => self.now_us += time_us * 20,
            _ => {}
        }
        let end_us = self.now_us + time_us;
        while let Some(at_us) = self.gossip.next_deadline().filter(|at| *at <= end_us) {
            self.now_us = self.now_us.max(at_us);
            self.step(Input::Timer);
            let next = self.gossip.next_deadline();
            assert!(next.is_none_or(|at| at > self.now_us), "a timer that is never served");
        }
        self.now_us = end_us;
        self.wall_ms += time_us / 1000;
    }

    /// The same frame again: nothing happens, but that a boot which is outlived by now may be told so, once.
    fn replay(&mut self, choices: &mut Choices<'_>) {
        let at = choices.below(self.sent.len().max(1));
        let Some((who, generation, frame)) = self.sent.get(at).cloned() else { return };
        let outlived =
            self.gossip.member(NAMES[who + 1]).is_some_and(|m| m.generation > generation);
        for again in 0..2 {
            let before = self.gossip.stats();
            let summary = (self.gossip.view(), self.gossip.root(), self.gossip.cursor());
            self.step(Input::Datagram { from: addr(5), bytes: &frame });
            let after = self.gossip.stats();
            assert_eq!((self.gossip.view(), self.gossip.root(), self.gossip.cursor()), summary);
            let may = u64::from(outlived && again == 0);
            assert!(after.accepted <= before.accepted + may, "a replay was taken");
            assert!(after.sent <= before.sent + may, "a replay was answered");
        }
    }

    /// What was persisted is what is held, and comes back from a log.
    fn restart(self) {
        let held = |g: &Gossip| g.records().cloned().collect::<Vec<_>>();
        let names = |g: &Gossip| g.members().map(|m| m.name.to_string()).collect::<Vec<_>>();
        let restored = Restored {
            records: self.told.records.into_values().collect(),
            roster: self.told.roster.into_values().collect(),
            saved_ms: 1,
        };
        let image = LogImage::new(ME, &restored, &[]);
        let loaded = LogImage::load(ME, &image.bytes).expect("it was just written");
        assert_eq!(loaded, restored);
        let me = Identity { name: ME.into(), generation: 4, addr: addr(0) };
        let cfg = Config::new(self.keys, Profile::Lan);
        let mut next = Gossip::new(cfg, me).expect("the name is valid");
        next.restore(1, 2, loaded);
        assert_eq!(held(&next), held(&self.gossip), "what is held is on disk");
        let mut roster = names(&self.gossip);
        roster.sort();
        let mut again = names(&next);
        again.sort();
        assert_eq!(again, roster, "who is known is on disk");
    }
}

/// Any conversation with peers that hold the key: no panic, no timer unserved, no replay that does anything, no generation
/// that falls; and at its end a restart finds what was held.
pub fn dialogue(bytes: &[u8]) {
    let mut talk = Talk::new();
    let mut choices = Choices(bytes.iter());
    for _ in 0..OPS_MAX {
        if choices.0.as_slice().is_empty() {
            break;
        }
        match choices.below(16) {
            0..=7 => {
                let mut messages = Vec::new();
                for _ in 0..=choices.below(3) {
                    talk.message(&mut choices, &mut messages);
                }
                talk.say(&mut choices, &messages);
            }
            8 | 9 => talk.serve(&mut choices),
            10 | 11 => talk.local(&mut choices),
            12 => talk.replay(&mut choices),
            13 => {
                let who = choices.below(SPEAKERS);
                talk.generations[who] = choices.number().min(GENERATION_MAX);
            }
            _ => talk.pass(&mut choices),
        }
    }
    talk.restart();
}
