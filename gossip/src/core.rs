//! The composed core: frames, members and map.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::Rng;

use crate::api::{Event, Input, Output};
use crate::config::{Config, Timing, UNICAST_MAX_BYTES};
use crate::error::Error;
use crate::frame::{Binding, KeyRing};
use crate::map::{Record, Replica, Rev};
use crate::member::{Identity, Member, MemberInfo, Nid, State};
use crate::message::{Item, Message, RecordView, Update, tag};
use crate::outbox::{Dest, Outbox, Sender};
use crate::swim::{Contact, Ctx, Swim};
use crate::wire::Reader;

/// Knowledge of one node: members, map and frames, without IO.
#[derive(Debug)]
pub struct Gossip {
    keys: KeyRing,
    timing: Timing,
    swim: Swim,
    map: Replica,
    net: Outbox,
    scratch: Vec<u8>,
    started: bool,
    /// When the last step was.
    stepped_us: u64,
    stats: Stats,
    /// Accepted frames by the key they were sealed with; keys that are held no more are left out.
    key_frames: BTreeMap<u8, u64>,
}

/// What a node remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Records, tombstones too.
    pub records: Vec<Record>,
    /// Members at the time.
    pub roster: Vec<MemberInfo>,
    /// Wall clock when it was last written. After a longer absence than tombstones live, the records give way to those of
    /// the first peer that was there all the time: what was deleted meanwhile nobody could tell us.
    pub saved_ms: u64,
}

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames that were authentic and fresh.
    pub accepted: u64,
    /// Datagrams dropped in silence: not for us, not authentic, replayed.
    pub refused: u64,
    /// Frames sent.
    pub sent: u64,
    /// Lifeguard's local health, 0 (good) to 8.
    pub health: u32,
    /// Records held, tombstones included.
    pub records: usize,
}

impl Gossip {
    /// A node that knows nobody. Nothing is sent before the first [`Gossip::step`], which should follow at once.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(cfg: Config, me: Identity) -> Result<Gossip, Error> {
        crate::member::check_name(&me.name)?;
        let seeds: Vec<SocketAddr> = cfg.seeds.into_iter().filter(|s| *s != me.addr).collect();
        let map = Replica::new(&me.name, cfg.timing, cfg.limits);
        let me = Member {
            name: me.name.into(),
            addr: me.addr,
            generation: me.generation,
            incarnation: 0,
            state: State::Alive,
            rtt_us: 0,
        };
        Ok(Gossip {
            keys: cfg.keys,
            timing: cfg.timing,
            swim: Swim::new(me, cfg.timing, Contact::new(&seeds, cfg.discover)),
            map,
            net: Outbox::default(),
            scratch: Vec::new(),
            started: false,
            stepped_us: 0,
            stats: Stats::default(),
            key_frames: BTreeMap::new(),
        })
    }

    /// Takes back what was on disk; before the first step. Members are listed as dead until they answer.
    pub fn restore(&mut self, now_us: u64, wall_ms: u64, restored: Restored) {
        for info in &restored.roster {
            self.swim.remember(info, now_us);
        }
        let absent_ms = wall_ms.saturating_sub(restored.saved_ms);
        let outlived = restored.saved_ms > 0 && absent_ms > self.map.tombstone_ms();
        self.map.restore(restored.records, outlived);
    }

    /// One event in, any number of outputs out (appended). `now_us` never goes back.
    pub fn step(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        input: Input<'_>,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let mut step = Step { now_us, wall_ms, rng, out };
        if !std::mem::replace(&mut self.started, true) {
            self.net.start(step.rng);
            self.map.start(now_us);
            self.with_swim(&mut step, |swim, ctx| swim.start(ctx));
        }
        if self.swim.has_left() {
            return;
        }
        self.notice_stall(&mut step);
        self.swim.root = self.map.store().root();
        match input {
            Input::Datagram { from, bytes } => self.datagram(from, bytes, &mut step),
            Input::Timer => {
                self.with_swim(&mut step, |swim, ctx| swim.timer(ctx));
                self.with_map(&mut step, |map, ctx| map.timer(ctx));
            }
            Input::Put { key, body, expect } => {
                let result = self.with_map(&mut step, |map, ctx| map.put(key, body, expect, ctx));
                refuse(result, &mut step);
            }
            Input::Delete { key } => {
                let result = self.with_map(&mut step, |map, ctx| map.delete(key, ctx));
                refuse(result, &mut step);
            }
            Input::Unicast { to, payload } => {
                let result = self.unicast(to, payload, &mut step);
                refuse(result, &mut step);
            }
            Input::Join(seeds) => {
                self.with_swim(&mut step, |swim, ctx| swim.join(&seeds, ctx));
            }
            Input::Leave => self.with_swim(&mut step, |swim, ctx| swim.leave(ctx)),
            Input::Forget { name } => {
                let result = self.forget(name, &mut step);
                refuse(result, &mut step);
            }
            Input::TooLong { to, len_bytes } => self.net.paths.refused(to, len_bytes),
            Input::Address(addr) => {
                self.with_swim(&mut step, |swim, ctx| swim.readdress(addr, ctx));
            }
        }
        let me = self.sender();
        let swim = &mut self.swim;
        self.net.flush(&self.keys, me, now_us, step.out, |dest, packet, room| {
            swim.ride(dest, packet, room);
        });
    }

    /// When [`Input::Timer`] is due next; never after [`Event::Left`].
    pub fn next_deadline(&self) -> Option<u64> {
        if self.swim.has_left() {
            return None;
        }
        match (self.swim.next_deadline(), self.map.next_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// All members but this node, dead and departed ones too, forgotten ones excluded, in a stable order.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.swim.table.others().map(|(_, entry)| &entry.member)
    }

    /// One member by name, this node included.
    pub fn member(&self, name: &str) -> Option<&Member> {
        let entry = self.swim.table.get(self.swim.table.nid_of(name))?;
        (*entry.member.name == *name).then_some(&entry.member)
    }

    /// This node as a member.
    pub fn me(&self) -> &Member {
        self.swim.table.me()
    }

    /// Whether [`Event::Joined`] has been said.
    pub fn is_joined(&self) -> bool {
        self.swim.is_joined()
    }

    /// A record, unless absent or deleted.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.map.store().get(key).filter(|r| !r.is_tombstone())
    }

    /// The version of a key, of a tombstone too.
    pub fn version(&self, key: &str) -> Option<Rev> {
        self.map.store().get(key).map(Record::version)
    }

    /// Records whose keys start with a prefix, in key order, without tombstones.
    pub fn range<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Record> {
        self.map.store().range(prefix).filter(|r| !r.is_tombstone())
    }

    /// Changes under a prefix since a cursor, oldest first, each key once with its present version, tombstones included.
    /// Cursors count this boot's changes at this node only; 0 is before the first.
    pub fn changes<'a>(
        &'a self,
        prefix: &'a str,
        after: u64,
    ) -> impl Iterator<Item = (u64, &'a Record)> {
        self.map.store().changes(prefix, after)
    }

    /// The cursor behind the last change.
    pub fn cursor(&self) -> u64 {
        self.map.store().cursor()
    }

    /// All records with tombstones: what a snapshot has to hold.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.map.store().range("")
    }

    /// Summary of the whole map: equal roots, equal maps.
    pub fn root(&self) -> u64 {
        self.map.store().root()
    }

    /// Summary of the member view: equal when two nodes agree on who lives, is dead or left, and at which incarnation.
    pub fn view(&self) -> u32 {
        self.swim.table.view()
    }

    /// The key ring, for rotation.
    pub fn keys_mut(&mut self) -> &mut KeyRing {
        &mut self.keys
    }

    /// The key ring.
    pub fn keys(&self) -> &KeyRing {
        &self.keys
    }

    /// Authentic frames that came under each key held: when those of an old key stop growing, nobody uses it any more.
    pub fn key_frames(&self) -> impl Iterator<Item = (u8, u64)> {
        self.keys.ids().map(|id| (id, self.key_frames.get(&id).copied().unwrap_or(0)))
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        Stats {
            sent: self.net.sealed,
            health: self.swim.health(),
            records: self.map.store().len(),
            ..self.stats
        }
    }

    fn sender(&self) -> Sender {
        let me = self.swim.table.me();
        Sender { nid: self.swim.table.my_nid(), generation: me.generation }
    }

    fn with_swim<R>(
        &mut self,
        step: &mut Step<'_>,
        act: impl FnOnce(&mut Swim, &mut Ctx<'_>) -> R,
    ) -> R {
        let mut ctx = Ctx { now_us: step.now_us, rng: step.rng, net: &mut self.net, out: step.out };
        act(&mut self.swim, &mut ctx)
    }

    fn with_map<R>(
        &mut self,
        step: &mut Step<'_>,
        act: impl FnOnce(&mut Replica, &mut crate::map::MapCtx<'_>) -> R,
    ) -> R {
        let mut ctx = crate::map::MapCtx {
            now_us: step.now_us,
            wall_ms: step.wall_ms,
            rng: step.rng,
            net: &mut self.net,
            out: step.out,
            table: &self.swim.table,
        };
        act(&mut self.map, &mut ctx)
    }

    /// A deadline that passed long ago unserved: this node stood still, and the silence it hears is its own. Noticed once,
    /// however many datagrams are read before the timer's turn.
    fn notice_stall(&mut self, step: &mut Step<'_>) {
        let before_us = std::mem::replace(&mut self.stepped_us, step.now_us);
        let Some(due_us) = self.next_deadline() else { return };
        let stall_us = step.now_us.saturating_sub(due_us.max(before_us));
        if stall_us >= self.timing.stall_us {
            self.with_swim(step, |swim, ctx| swim.forgive(stall_us, ctx));
        }
    }

    fn datagram(&mut self, from: SocketAddr, bytes: &[u8], step: &mut Step<'_>) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let done = self.frame(from, bytes, &mut scratch, step);
        self.scratch = scratch;
        match done {
            Some(key) => {
                self.stats.accepted += 1;
                // Only what is fresh: recordings must not keep an old key in use. Ids are bytes: no more than 256.
                *self.key_frames.entry(key).or_default() += 1;
            }
            None => self.stats.refused += 1,
        }
    }

    /// The key's id. `None`: not authentic, not fresh, or not for us. Nothing happened then.
    fn frame(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        scratch: &mut Vec<u8>,
        step: &mut Step<'_>,
    ) -> Option<u8> {
        let me = self.sender();
        let opened = self.keys.open(me.nid, me.generation, bytes, scratch)?;
        let mut reader = Reader::new(opened.plain);
        let nid = Nid(reader.u64()?);
        let generation = crate::message::read_generation(&mut reader)?;
        let place = (opened.boot, opened.counter);
        if !opened.bound {
            // An open frame may greet and nothing else.
            let (u, beacon) = match Message::next(&mut reader)? {
                Message::Hello(u) => (u, false),
                Message::Beacon(u) => (u, true),
                _ => return None,
            };
            if u.nid != nid || u.generation != generation || opened.boot == self.net.boot() {
                return None;
            }
            let answered = self.with_swim(step, |swim, ctx| match beacon {
                false => swim.on_hello(from, &u, place, ctx),
                true => swim.on_beacon(from, &u, place, ctx),
            });
            return answered.then_some(opened.key);
        }
        let dest = Dest { addr: from, to: Binding::To { nid, generation } };
        if self.swim.is_outlived(nid, generation) {
            // One message is enough: what it says beside that it will say again once it has stepped above its past.
            let message = Message::next(&mut reader)?;
            let done =
                self.with_swim(step, |swim, ctx| swim.on_outlived(nid, dest, &message, place, ctx));
            return done.then_some(opened.key);
        }
        if nid != me.nid {
            self.swim.admit(nid, generation, place, step.now_us)?;
        }
        let mut probed = nid == me.nid;
        while let Some(message) = Message::next(&mut reader) {
            match message {
                // One receipt a frame.
                Message::PathProbe if std::mem::replace(&mut probed, true) => {}
                Message::PathProbe => self.net.push(dest, tag::PATH_ACK, |out| {
                    crate::wire::put_varint(out, bytes.len() as u64);
                }),
                Message::PathAck { len } => self.net.paths.answered(nid, len),
                _ => self.message(nid, dest, &message, step),
            }
            if nid == me.nid {
                // Only a namesake's answer to our greeting gets here.
                return Some(opened.key);
            }
        }
        let known = self.swim.table.get(nid).is_some_and(|e| e.member.generation == generation);
        if !known && !self.swim.stays_out() {
            let told = introduces(nid, opened.plain);
            self.with_swim(step, |swim, ctx| swim.on_unknown(nid, dest, told, ctx));
        }
        Some(opened.key)
    }

    fn message(&mut self, nid: Nid, dest: Dest, message: &Message<'_>, step: &mut Step<'_>) {
        if nid == self.swim.table.my_nid() && !matches!(message, Message::HelloAck(..)) {
            return;
        }
        match *message {
            Message::Unicast(payload) => self.deliver(nid, payload, step),
            Message::MapDigest(theirs) => {
                self.with_map(step, |map, ctx| map.on_digest(dest, theirs, ctx));
            }
            Message::MapList { first, last, items } => {
                let items = read_items(items);
                self.with_map(step, |map, ctx| map.on_list(dest, (first, last), &items, ctx));
            }
            Message::MapPull(items) => {
                let items = read_items(items);
                self.with_map(step, |map, ctx| map.on_pull(dest, &items, ctx));
            }
            Message::MapAdvert(items) => {
                let items = read_items(items);
                self.with_map(step, |map, ctx| map.on_advert(dest, &items, ctx));
            }
            Message::MapRecord(bytes) => {
                if let Some(record) = RecordView::read(&mut Reader::new(bytes)) {
                    self.with_map(step, |map, ctx| map.on_record(&record, ctx));
                }
            }
            Message::MapPiece { key, hash, total, offset, bytes } => {
                self.with_map(step, |map, ctx| map.on_piece(key, hash, (total, offset), bytes, ctx))
            }
            _ => {
                self.with_swim(step, |swim, ctx| swim.on_message(nid, dest, message, ctx));
                match *message {
                    Message::Ping { root, .. } => {
                        self.with_map(step, |map, ctx| map.on_root(dest, root, ctx));
                    }
                    Message::HelloAck(_, up_s) if nid != self.swim.table.my_nid() => {
                        self.with_map(step, |map, ctx| {
                            map.meet(up_s, ctx);
                            map.compare_now(dest, ctx);
                        });
                    }
                    _ => {}
                }
            }
        }
    }

    fn deliver(&mut self, nid: Nid, payload: &[u8], step: &mut Step<'_>) {
        // A stranger has no name to show; it is asked for it and may send again.
        let Some(entry) = self.swim.table.get(nid) else { return };
        let (from, payload) = (entry.member.name.to_string(), payload.to_vec());
        step.out.push(Output::Event(Event::Unicast { from, payload }));
    }

    fn unicast(&mut self, to: &str, payload: Vec<u8>, step: &mut Step<'_>) -> Result<(), Error> {
        if payload.len() > UNICAST_MAX_BYTES {
            return Err(Error::Payload { to: to.to_owned(), len_bytes: payload.len() });
        }
        let Some(member) = self.member(to) else {
            return Err(Error::NoSuchMember { name: to.to_owned() });
        };
        let nid = Nid::of(to);
        if nid == self.swim.table.my_nid() {
            let from = to.to_owned();
            step.out.push(Output::Event(Event::Unicast { from, payload }));
            return Ok(());
        }
        if !member.state.is_live() {
            return Err(Error::WrongState { name: to.to_owned(), operation: "send to" });
        }
        if let Some(dest) = self.swim.table.get(nid).map(|e| e.dest(nid)) {
            self.net.push(dest, tag::UNICAST, |out| out.extend_from_slice(&payload));
        }
        Ok(())
    }

    fn forget(&mut self, name: &str, step: &mut Step<'_>) -> Result<(), Error> {
        if self.member(name).is_none() {
            return Err(Error::NoSuchMember { name: name.to_owned() });
        }
        let nid = Nid::of(name);
        if self.with_swim(step, |swim, ctx| swim.forget(nid, ctx)) {
            return Ok(());
        }
        Err(Error::WrongState { name: name.to_owned(), operation: "forget" })
    }
}

struct Step<'a> {
    now_us: u64,
    wall_ms: u64,
    rng: &'a mut dyn Rng,
    out: &'a mut Vec<Output>,
}

fn refuse(result: Result<(), Error>, step: &mut Step<'_>) {
    if let Err(error) = result {
        step.out.push(Output::Event(Event::Refused(error)));
    }
}

/// Whether a frame's sender says in it who it is.
fn introduces(nid: Nid, plain: &[u8]) -> bool {
    let mut reader = Reader::new(plain);
    let head = reader.u64().and(reader.varint());
    let mut messages = std::iter::from_fn(|| Message::next(&mut reader));
    head.is_some()
        && messages.any(|message| match message {
            Message::Updates(mut updates) => {
                std::iter::from_fn(|| Update::read(&mut updates)).any(|u| u.nid == nid)
            }
            _ => false,
        })
}

fn read_items(mut reader: Reader<'_>) -> Vec<Item> {
    // Bounded by the packet they came in.
    std::iter::from_fn(|| Item::read(&mut reader)).collect()
}
