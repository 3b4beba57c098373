//! Finding the flock, finding it again, and saying goodbye.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::api::Event;
use crate::config::SEEDS_MAX;
use crate::frame::{Binding, Window};
use crate::member::{Nid, State};
use crate::message::{Accusers, Message, Standing, Update, tag};
use crate::outbox::Dest;
use crate::swim::discover::Discover;
use crate::swim::{Ctx, Swim, Timer, table};

/// Addresses greeted at once while alone.
const GREET: usize = 3;
/// Boots whose greetings are guarded against replay; the whole table is dropped when full.
pub(super) const GREETERS_MAX: usize = 512;
/// Greetings answered a second; the rest is ignored.
pub(super) const ANSWERS_PER_S: u64 = 500;
/// Members told of a farewell directly.
const FAREWELL: usize = 16;
const FAREWELL_ROUNDS: u32 = 3;
const FAREWELL_US: u64 = 100_000;
/// Shortest time between two greetings while not alone.
const RECONNECT_MIN_US: u64 = 1_000_000;

/// State of the search.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    pub(super) seeds: Vec<SocketAddr>,
    pub(super) joined: bool,
    tries: u32,
    greeters: BTreeMap<u64, Window>,
    answer_second: u64,
    answers: u64,
    pub(super) discover: Discover,
}

impl Contact {
    pub(crate) fn new(seeds: &[SocketAddr], group: Option<SocketAddr>) -> Contact {
        let mut contact = Contact { discover: Discover::new(group), ..Contact::default() };
        contact.add(seeds);
        contact
    }

    fn add(&mut self, seeds: &[SocketAddr]) {
        for seed in seeds {
            if self.seeds.len() < SEEDS_MAX && !self.seeds.contains(seed) {
                self.seeds.push(*seed);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn greeters(&self) -> usize {
        self.greeters.len()
    }

    /// Whether a greeting may be answered: never twice, and not too many.
    pub(super) fn admit(&mut self, boot: u64, counter: u64, now_us: u64) -> bool {
        let second = now_us / 1_000_000;
        if second != self.answer_second {
            (self.answer_second, self.answers) = (second, 0);
        }
        if self.answers >= ANSWERS_PER_S {
            return false;
        }
        if self.greeters.len() >= GREETERS_MAX && !self.greeters.contains_key(&boot) {
            // A replay then gets one answer, not much longer than itself; it never changes anything.
            self.greeters.clear();
        }
        let fresh = self.greeters.entry(boot).or_default().admit(counter);
        self.answers += u64::from(fresh);
        fresh
    }
}

impl Swim {
    /// More places to look.
    pub(crate) fn join(&mut self, seeds: &[SocketAddr], ctx: &mut Ctx<'_>) {
        self.contact.add(seeds);
        self.contact.tries = 0;
        for seed in seeds.iter().take(SEEDS_MAX) {
            if *seed != self.table.me().addr && !self.table.has_live_addr(*seed) {
                self.greet(*seed, ctx);
            }
        }
    }

    /// A frame of somebody who is not a member, also not by what it said itself (`told`): dropped by an operator, or there
    /// is no room. Asking again who it is would be answered the same, for ever.
    pub(crate) fn on_unknown(&mut self, nid: Nid, dest: Dest, told: bool, ctx: &mut Ctx<'_>) {
        if self.is_forgotten(nid) {
            // If it lives it steps above that.
            self.push_update(dest, nid, false, ctx);
        } else if !told {
            ctx.net.push(dest, tag::WHO_ARE_YOU, |_| {});
        }
    }

    /// Looks for somebody: hard while alone, now and then for the dead when not.
    pub(super) fn contact_tick(&mut self, ctx: &mut Ctx<'_>) {
        let alone = self.table.live().is_empty();
        let mut places = self.places();
        let wait_us = if alone {
            // Without anybody to look for (and nobody who has heard our beacons), this node is the flock.
            let nowhere = places.is_empty() && self.contact.seeds.is_empty();
            if nowhere && !self.contact.joined && !self.contact.discover.waits(self.contact.tries) {
                self.joined(ctx);
            }
            self.alone_us()
        } else {
            let live = self.table.live().len() as u64 + 1;
            (self.timing.reconnect_us * live).max(RECONNECT_MIN_US)
        };
        let spread = self.jitter(wait_us / 4, ctx);
        self.timers.set(ctx.now_us + wait_us + spread, Timer::Contact);
        if self.leave_rounds.is_some() || self.stays_out() {
            return;
        }
        self.contact.tries = self.contact.tries.saturating_add(1);
        table::shuffle(&mut places, ctx.rng);
        for addr in places.into_iter().take(if alone { GREET } else { 1 }) {
            self.greet(addr, ctx);
        }
        self.beacon(ctx);
    }

    /// How long to wait for an answer while alone. The first greetings may be lost, or reach a seed that starts at the same
    /// time and listens a moment later: half a second for each was the most of a flock's time to join.
    fn alone_us(&self) -> u64 {
        match self.contact.tries {
            0 => self.timing.join_us / 5,
            1 => self.timing.join_us / 2,
            more => self.timing.join_us * u64::from(more - 1).min(9),
        }
    }

    /// Addresses of dead members, and seeds at which no live member sits.
    fn places(&self) -> Vec<SocketAddr> {
        let me = self.table.me().addr;
        let dead = self.table.others().filter(|(_, e)| e.member.state == State::Dead);
        let mut places: Vec<SocketAddr> = dead.map(|(_, e)| e.member.addr).collect();
        let unknown = |addr: &&SocketAddr| **addr != me && !self.table.has_live_addr(**addr);
        places.extend(self.contact.seeds.iter().filter(unknown));
        places.sort();
        places.dedup();
        places
    }

    pub(super) fn greet(&mut self, addr: SocketAddr, ctx: &mut Ctx<'_>) {
        let dest = Dest { addr, to: Binding::Open };
        let me = self.table.me().info();
        ctx.net.push(dest, tag::HELLO, |out| Update::of(&me).write(out));
    }

    /// An open frame greets us. It is answered, not believed: it might be a recording. Whether it was.
    pub(crate) fn on_hello(
        &mut self,
        from: SocketAddr,
        u: &Update<'_>,
        (boot, counter): (u64, u64),
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let fresh = self.leave_rounds.is_none() && self.contact.admit(boot, counter, ctx.now_us);
        if fresh {
            self.answer(from, u, boot, ctx);
        }
        fresh
    }

    /// Answers a greeting, to the one who greeted and nobody else.
    pub(super) fn answer(
        &mut self,
        from: SocketAddr,
        u: &Update<'_>,
        boot: u64,
        ctx: &mut Ctx<'_>,
    ) {
        let to = Binding::To { nid: u.nid, generation: u.generation };
        let dest = Dest { addr: from, to };
        // Also one that is only remembered: what an outlived boot says is dropped all the same.
        let taken = self.table.get(u.nid).filter(|e| {
            let m = &e.member;
            let same_boot = e.boot == 0 || e.boot == boot;
            m.generation > u.generation || (m.generation == u.generation && !same_boot)
        });
        if let Some(entry) = taken {
            // Else it would talk into the wind: frames of an outlived boot are dropped.
            outdated(dest, entry, ctx);
            if u.nid == self.table.my_nid()
                && let Some((_, addr)) = u.full
                && addr != self.table.me().addr
            {
                self.conflict(addr, ctx);
            }
            return;
        }
        let elsewhere = u.full.map(|(_, addr)| addr).filter(|addr| {
            self.table
                .get(u.nid)
                .is_some_and(|e| e.member.state.is_live() && e.member.addr != *addr)
        });
        if let Some(addr) = elsewhere {
            if u.nid == self.table.my_nid() {
                self.conflict(addr, ctx);
            } else {
                // Before the answer that would bring it in: where its name lives.
                self.push_update(dest, u.nid, true, ctx);
            }
        }
        let me = self.table.me().info();
        let up_s = ctx.now_us.saturating_sub(self.started_us) / 1_000_000;
        ctx.net.push(dest, tag::HELLO_ACK, |out| {
            Update::of(&me).write(out);
            crate::wire::put_varint(out, up_s);
        });
    }

    /// A boot that we hold to be outlived says something to this boot of ours. Nothing of it is believed but what can only
    /// make *us* step above our past. If it answers our greeting it is alive and its boot counter was lost: it is told,
    /// as it would be if it greeted us, which it does not do while it has company. `true` when something was done.
    pub(crate) fn on_outlived(
        &mut self,
        nid: Nid,
        dest: Dest,
        message: &Message<'_>,
        (boot, counter): (u64, u64),
        ctx: &mut Ctx<'_>,
    ) -> bool {
        let speaks = match message {
            Message::HelloAck(u, _) => u.nid == nid,
            Message::Outdated { .. } => true,
            _ => false,
        };
        let silent = !speaks || self.leave_rounds.is_some();
        if silent || !self.contact.admit(boot, counter, ctx.now_us) {
            return false;
        }
        match *message {
            // Both lost their counters and know each other from before: somebody has to begin.
            Message::Outdated { generation, addr } => self.on_outdated(dest, generation, addr, ctx),
            _ => {
                let Some(entry) = self.table.get(nid) else { return false };
                outdated(dest, entry, ctx);
            }
        }
        true
    }

    /// Our greeting named a generation that the flock has seen before.
    pub(super) fn on_outdated(
        &mut self,
        dest: Dest,
        generation: u64,
        addr: SocketAddr,
        ctx: &mut Ctx<'_>,
    ) {
        if self.namesake_answers(dest.addr, ctx) || generation < self.table.me().generation {
            return;
        }
        let elsewhere = addr != self.table.me().addr;
        if self.outbids > 0 && elsewhere && self.contact.joined {
            self.conflict(addr, ctx);
        }
        let higher = self.outbid(generation, ctx);
        if elsewhere {
            self.namesake_seen(addr, ctx);
        }
        if higher && !self.stays_out() {
            self.greet(dest.addr, ctx);
        }
    }

    /// Our greeting was answered, to us alone: introduce ourselves and compare views.
    pub(super) fn on_hello_ack(&mut self, dest: Dest, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        if u.nid == self.table.my_nid() {
            if self.namesake_answers(dest.addr, ctx) {
                return;
            }
            if let Some((_, addr)) = u.full
                && addr != self.table.me().addr
            {
                self.conflict(addr, ctx);
            }
            return;
        }
        if self.stays_out() {
            return;
        }
        self.apply(u, ctx);
        self.push_update(dest, self.table.my_nid(), true, ctx);
        if self.table.get(u.nid).is_some_and(|e| e.member.state != State::Alive) {
            // It lives but does not know that it has to refute.
            self.push_update(dest, u.nid, false, ctx);
        }
        self.push_digest(dest, ctx);
    }

    /// The first peer has sent what it knows.
    pub(super) fn joined(&mut self, ctx: &mut Ctx<'_>) {
        if !std::mem::replace(&mut self.contact.joined, true) {
            let members = self.table.live().len() + 1;
            ctx.event(Event::Joined { members });
        }
    }

    /// Starts the farewell.
    pub(crate) fn leave(&mut self, ctx: &mut Ctx<'_>) {
        if self.leave_rounds.is_none() {
            self.leave_rounds = Some(FAREWELL_ROUNDS);
            self.table.update(self.table.my_nid(), |e| e.member.state = State::Left);
            self.leave_round(ctx);
        }
    }

    pub(super) fn leave_round(&mut self, ctx: &mut Ctx<'_>) {
        let Some(rounds) = self.leave_rounds.filter(|r| *r > 0) else { return };
        let me = self.table.me();
        let update = Update {
            nid: self.table.my_nid(),
            full: None,
            generation: me.generation,
            incarnation: me.incarnation,
            standing: Standing::Left,
            accusers: Accusers::default(),
        };
        let told = self.table.pick(FAREWELL, &[], ctx.rng);
        for nid in &told {
            let Some(dest) = self.table.get(*nid).map(|e| e.dest(*nid)) else { continue };
            ctx.net.push(dest, tag::UPDATES, |out| update.write(out));
        }
        let left = if told.is_empty() { 0 } else { rounds - 1 };
        self.leave_rounds = Some(left);
        if left == 0 {
            ctx.event(Event::Left);
        } else {
            self.timers.set(ctx.now_us + FAREWELL_US, Timer::LeaveRound);
        }
    }
}

/// Tells a boot that its name was seen with a later one.
fn outdated(dest: Dest, entry: &table::Entry, ctx: &mut Ctx<'_>) {
    ctx.net.push(dest, tag::OUTDATED, |out| {
        crate::wire::put_varint(out, entry.member.generation);
        crate::wire::put_addr(out, entry.member.addr);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings_are_answered_once_and_so_many_a_second_and_their_guard_is_bounded() {
        let mut contact = Contact::default();
        let mut answered = |boots: std::ops::Range<u64>, now_us: u64| {
            let count = boots.filter(|boot| contact.admit(*boot, 1, now_us)).count();
            assert!(contact.greeters.len() <= GREETERS_MAX);
            count as u64
        };
        assert_eq!(answered(0..400, 0), 400);
        assert_eq!(answered(0..400, 1), 0, "each once");
        assert_eq!(answered(1_000..2_000, 2), ANSWERS_PER_S - 400);
        assert_eq!(answered(2_000..3_000, 1_000_000), ANSWERS_PER_S, "another second");
    }
}
