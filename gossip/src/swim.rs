//! Membership: SWIM (Das, Gupta, Motivala 2002) with Lifeguard (Dadgar, Phillips, Currey 2017).
//!
//! ```text
//!                 probe failed, or told so            timer ran out AND our own probe failed,
//!        ┌───────┐ ───────────────────────▶ ┌─────────┐    or told so while suspecting   ┌──────┐
//!   ────▶│ Alive │                          │ Suspect │ ────────────────────────────────▶│ Dead │
//!        └───────┘ ◀─────────────────────── └─────────┘                                  └──────┘
//!             ▲        higher incarnation (only the member itself makes one)                │
//!             └─────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Differences from the papers, each for a measured reason:
//! - every second probe goes to the live successor in hash order, so that a dead node's first failed probe is at most two
//!   periods away instead of exponentially distributed;
//! - a rumour of death about a member held alive only starts a suspicion with a probe of our own: two halves that buried
//!   each other do not bury their own neighbours when they meet again;
//! - a few hearers of a suspicion probe at once: confirmations (and the suspect's chance to refute) come early;
//! - a late timer means that *we* stood still: nobody is blamed for that time.

mod contact;
mod discover;
mod health;
mod myself;
mod namesake;
mod probe;
mod queue;
mod roster;
mod rumour;
mod suspicion;
mod sync;
pub(crate) mod table;

pub(crate) use contact::Contact;

use std::collections::BTreeMap;

use rand::Rng;

use crate::api::{Event, Output, Persist};
use crate::config::{MEMBERS_MAX, Timing};
use crate::frame::Window;
use crate::member::{Member, Nid, State};
use crate::message::{Standing, Update};
use crate::outbox::Outbox;
use crate::swim::health::Health;
use crate::swim::probe::{Probe, Relay};
use crate::swim::queue::Queue;
use crate::swim::table::Table;
use crate::timers::Timers;

/// Forgotten members remembered as such; the oldest give way.
const FORGOTTEN_MAX: usize = 1024;
/// Senders whose names we do not know yet; more are not listened to until some are introduced or silent for so long.
const STRANGERS_MAX: usize = 1024;
const STRANGER_US: u64 = 60_000_000;

/// What a step works with.
pub(crate) struct Ctx<'a> {
    pub(crate) now_us: u64,
    pub(crate) rng: &'a mut dyn Rng,
    pub(crate) net: &'a mut Outbox,
    pub(crate) out: &'a mut Vec<Output>,
}

impl Ctx<'_> {
    pub(crate) fn event(&mut self, event: Event) {
        self.out.push(Output::Event(event));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Probe,
    ProbeStage(u32),
    Relay(u32),
    Suspicion(Nid),
    Flush,
    Contact,
    Remembered,
    LeaveRound,
    Namesake,
}

#[derive(Debug, Clone, Copy)]
struct Stranger {
    boot: u64,
    window: Window,
    heard_us: u64,
}

/// The membership core.
#[derive(Debug)]
pub(crate) struct Swim {
    pub(crate) table: Table,
    timing: Timing,
    health: Health,
    timers: Timers<Timer>,
    queue: Queue,
    flush_at: Option<u64>,
    flushed_us: u64,
    probes: BTreeMap<u32, Probe>,
    relays: BTreeMap<u32, Relay>,
    seq: u32,
    round: Vec<Nid>,
    ring_turn: bool,
    forgotten: BTreeMap<Nid, (u64, u64)>,
    /// By id and generation: what an earlier boot has said stays seen when a later one speaks.
    strangers: BTreeMap<(Nid, u64), Stranger>,
    contact: Contact,
    synced_view: u32,
    sync_after_us: u64,
    sync_wait_us: u64,
    outbids: u32,
    conflict_us: u64,
    leave_rounds: Option<u32>,
    /// Who had our name before us.
    namesake: Option<namesake::Namesake>,
    /// Whose datagram is being read.
    speaker: Option<Nid>,
    /// Generation and incarnation of ours that was last said to be dead.
    last_death: Option<(u64, u64)>,
    started: bool,
    started_us: u64,
    /// When the remembered are looked at next.
    remembered_at: Option<u64>,
    pub(crate) root: u64,
}

impl Swim {
    pub(crate) fn new(me: Member, timing: Timing, contact: Contact) -> Swim {
        Swim {
            table: Table::new(me),
            timing,
            health: Health::default(),
            timers: Timers::new(),
            queue: Queue::default(),
            flush_at: None,
            flushed_us: 0,
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            seq: 0,
            round: Vec::new(),
            ring_turn: false,
            forgotten: BTreeMap::new(),
            strangers: BTreeMap::new(),
            contact,
            synced_view: 0,
            sync_after_us: 0,
            sync_wait_us: timing.sync_us,
            outbids: 0,
            conflict_us: 0,
            leave_rounds: None,
            namesake: None,
            speaker: None,
            last_death: None,
            started: false,
            started_us: 0,
            remembered_at: None,
            root: 0,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.timers.next()
    }

    pub(crate) fn health(&self) -> u32 {
        self.health.score()
    }

    pub(crate) fn has_left(&self) -> bool {
        self.leave_rounds == Some(0)
    }

    pub(crate) fn is_joined(&self) -> bool {
        self.contact.joined
    }

    /// First step: everything starts at a random phase.
    pub(crate) fn start(&mut self, ctx: &mut Ctx<'_>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        self.started_us = ctx.now_us;
        let phase = self.jitter(self.timing.probe_us, ctx);
        self.timers.set(ctx.now_us + phase, Timer::Probe);
        self.timers.set(ctx.now_us, Timer::Contact);
        if self.table.len() > 1 {
            self.watch_remembered(ctx.now_us);
        }
    }

    /// We stood still: what we waited for may have come and gone unseen.
    pub(crate) fn forgive(&mut self, stall_us: u64, ctx: &mut Ctx<'_>) {
        self.probes.clear();
        self.relays.clear();
        self.health.worse(1);
        let suspects: Vec<Nid> = self.table.live().to_vec();
        for nid in suspects {
            let Some(entry) = self.table.touch(nid) else { continue };
            let Some(suspicion) = entry.suspicion.as_mut() else { continue };
            suspicion.verified = false;
            suspicion.since_us += stall_us;
            let old = suspicion.deadline_us;
            suspicion.deadline_us = (old + stall_us).max(ctx.now_us + suspicion.min_us);
            self.timers.cancel(old, Timer::Suspicion(nid));
            self.timers.set(suspicion.deadline_us, Timer::Suspicion(nid));
        }
        ctx.event(Event::Stalled { stall_us });
    }

    /// Everything that is due.
    pub(crate) fn timer(&mut self, ctx: &mut Ctx<'_>) {
        while let Some((at_us, timer)) = self.timers.pop(ctx.now_us) {
            match timer {
                Timer::Probe => self.probe_tick(ctx),
                Timer::ProbeStage(seq) => self.probe_stage(seq, at_us, ctx),
                Timer::Relay(seq) => self.relay_due(seq, at_us, ctx),
                Timer::Suspicion(nid) => self.suspicion_due(nid, at_us, ctx),
                Timer::Flush if self.flush_at == Some(at_us) => self.flush(ctx),
                Timer::Flush => {}
                Timer::Contact => self.contact_tick(ctx),
                Timer::Remembered => self.confirm_remembered(ctx),
                Timer::LeaveRound => self.leave_round(ctx),
                Timer::Namesake => self.namesake_due(ctx),
            }
        }
    }

    /// Whether a frame comes from a boot of a member that, as far as we know, a later one has replaced.
    pub(crate) fn is_outlived(&self, nid: Nid, generation: u64) -> bool {
        let later = |e: &table::Entry| e.member.generation > generation;
        nid != self.table.my_nid() && self.table.get(nid).is_some_and(later)
    }

    /// Whether a frame is fresh: known boot, counter not seen. `None`: drop it; `Some(false)`: we know no such member.
    pub(crate) fn admit(
        &mut self,
        nid: Nid,
        generation: u64,
        (boot, counter): (u64, u64),
        now_us: u64,
    ) -> Option<bool> {
        if nid == self.table.my_nid() {
            return None;
        }
        if let Some(entry) = self.table.touch(nid) {
            if generation < entry.member.generation {
                return None;
            }
            if generation == entry.member.generation && !entry.remembered {
                if entry.boot == 0 {
                    entry.boot = boot;
                }
                let fresh = entry.boot == boot && entry.window.admit(counter);
                return fresh.then_some(true);
            }
        }
        let key = (nid, generation);
        if self.strangers.range((nid, generation + 1)..=(nid, u64::MAX)).next().is_some() {
            return None;
        }
        if let Some(s) = self.strangers.get_mut(&key) {
            s.heard_us = now_us;
            if s.boot == 0 {
                s.boot = boot;
            }
            return (s.boot == boot && s.window.admit(counter)).then_some(false);
        }
        if self.strangers.len() >= STRANGERS_MAX {
            // A frame of theirs could come again then, and be answered once more.
            self.strangers.retain(|_, s| now_us < s.heard_us + STRANGER_US);
        }
        if self.strangers.len() >= STRANGERS_MAX {
            return None;
        }
        let mut window = Window::default();
        window.admit(counter);
        self.strangers.insert(key, Stranger { boot, window, heard_us: now_us });
        Some(false)
    }

    /// News from somewhere.
    pub(crate) fn apply(&mut self, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        if u.nid == self.table.my_nid() {
            return self.about_me(u, ctx);
        }
        if self.stays_out() {
            // Whom we know we would probe, and be known ourselves.
            return;
        }
        if let Some(forgotten) = self.forgotten.get_mut(&u.nid) {
            let place = (u.generation, u.incarnation);
            if place <= *forgotten {
                return;
            }
            if u.standing == Standing::Forgotten {
                // Others knew more of it than we did. It stays forgotten.
                *forgotten = place;
                return self.news(u.nid, ctx);
            }
        }
        let Some(entry) = self.table.get(u.nid) else { return self.meet(u, ctx) };
        let ours = (entry.member.generation, entry.member.incarnation);
        let theirs = (u.generation, u.incarnation);
        if theirs < ours || (u.generation > ours.0 && u.full.is_none()) {
            // Older, or of a boot whose address we have not been told: table comparison will bring the full form.
            return;
        }
        let (state, remembered) = (entry.member.state, entry.remembered);
        match u.standing {
            Standing::Forgotten => self.drop_member(u.nid, theirs, ctx),
            Standing::Alive if theirs > ours || remembered => self.set(u, State::Alive, ctx),
            Standing::Alive if state == State::Alive => Queue::heard(u.nid, &mut self.table),
            Standing::Alive => {}
            Standing::Left if theirs > ours || remembered || state != State::Left => {
                self.set(u, State::Left, ctx);
            }
            Standing::Left => Queue::heard(u.nid, &mut self.table),
            Standing::Suspect if state.is_live() => self.accuse(u, false, ctx),
            Standing::Suspect if theirs > ours || remembered => self.accuse(u, false, ctx),
            Standing::Suspect => {}
            Standing::Dead => match state {
                State::Alive => self.accuse(u, true, ctx),
                State::Suspect => {
                    // Two halves that meet again must not bury each other's living by telling it twice.
                    let rumoured = entry.suspicion.as_ref().is_some_and(|s| s.rumoured);
                    if theirs > ours {
                        self.accuse(u, true, ctx);
                    } else if !rumoured {
                        self.set(u, State::Dead, ctx);
                    }
                }
                State::Dead | State::Left if theirs > ours || remembered => {
                    self.set(u, State::Dead, ctx);
                }
                State::Dead => Queue::heard(u.nid, &mut self.table),
                State::Left => {}
            },
        }
    }

    fn meet(&mut self, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        let Some((name, addr)) = u.full else { return };
        if u.standing == Standing::Forgotten {
            return;
        }
        if self.table.len() >= MEMBERS_MAX && !self.make_room(ctx) {
            return;
        }
        let state = match u.standing {
            Standing::Dead => State::Dead,
            Standing::Left => State::Left,
            _ => State::Alive,
        };
        let member = Member {
            name: name.into(),
            addr,
            generation: u.generation,
            incarnation: u.incarnation,
            state,
            rtt_us: 0,
        };
        ctx.out.push(Output::Persist(Persist::Member(member.info())));
        ctx.event(Event::Member(member.clone()));
        self.forgotten.remove(&u.nid);
        self.table.insert(u.nid, member, false, ctx.now_us);
        self.introduce(u.nid);
        self.news(u.nid, ctx);
        if u.standing == Standing::Suspect {
            self.accuse(u, false, ctx);
        }
    }

    /// The table is full: who is only remembered gives way, then whoever is gone longest. `false` when all are alive.
    fn make_room(&mut self, ctx: &mut Ctx<'_>) -> bool {
        let gone = self.table.others().filter(|(_, e)| !e.member.state.is_live());
        let oldest = gone.min_by_key(|(nid, e)| (!e.remembered, e.changed_us, *nid));
        match oldest.map(|(nid, e)| (nid, e.remembered)) {
            // What nobody has confirmed is no reason to tell others to forget.
            Some((nid, true)) => self.unremember(nid),
            Some((nid, false)) => self.forget(nid, ctx),
            None => false,
        }
    }

    /// Counters seen while the sender was a stranger stay seen.
    fn introduce(&mut self, nid: Nid) {
        let Some(entry) = self.table.touch(nid) else { return };
        let generation = entry.member.generation;
        if let Some(stranger) = self.strangers.remove(&(nid, generation)) {
            entry.boot = stranger.boot;
            entry.window = stranger.window;
        }
        while let Some((key, _)) = self.strangers.range((nid, 0)..(nid, generation)).next() {
            let key = *key;
            self.strangers.remove(&key);
        }
    }

    /// Takes over what was said, into the given state, and passes it on.
    fn set(&mut self, u: &Update<'_>, state: State, ctx: &mut Ctx<'_>) {
        self.take(u, state, ctx);
        self.news(u.nid, ctx);
    }

    /// Takes over what was said, into the given state.
    fn take(&mut self, u: &Update<'_>, state: State, ctx: &mut Ctx<'_>) {
        let now_us = ctx.now_us;
        let changes = self.table.update(u.nid, |entry| {
            let m = &mut entry.member;
            let mut visible = m.state != state || m.generation != u.generation;
            let mut lasting = m.generation != u.generation || entry.remembered;
            if m.generation != u.generation {
                entry.boot = 0;
                entry.window = Window::default();
                m.rtt_us = 0;
            }
            if let Some((_, addr)) = u.full
                && m.addr != addr
            {
                m.addr = addr;
                (visible, lasting) = (true, true);
            }
            lasting |= state == State::Left && m.state != State::Left;
            (m.generation, m.incarnation, m.state) = (u.generation, u.incarnation, state);
            entry.remembered = false;
            entry.suspicion = None;
            if visible {
                entry.changed_us = now_us;
            }
            (visible, lasting)
        });
        let Some((visible, lasting)) = changes else { return };
        self.introduce(u.nid);
        let Some(entry) = self.table.get(u.nid) else { return };
        if lasting {
            ctx.out.push(Output::Persist(Persist::Member(entry.member.info())));
        }
        if visible {
            ctx.event(Event::Member(entry.member.clone()));
        }
    }

    /// An operator's request to drop a dead or departed member. `false` when it still takes part.
    pub(crate) fn forget(&mut self, nid: Nid, ctx: &mut Ctx<'_>) -> bool {
        let Some(entry) = self.table.get(nid) else { return false };
        if entry.member.state.is_live() || nid == self.table.my_nid() {
            return false;
        }
        let place = (entry.member.generation, entry.member.incarnation);
        self.drop_member(nid, place, ctx);
        true
    }

    fn drop_member(&mut self, nid: Nid, place: (u64, u64), ctx: &mut Ctx<'_>) {
        let Some(entry) = self.table.remove(nid) else { return };
        self.queue.unlist(&entry);
        let (generation, heard_us) = (entry.member.generation, ctx.now_us);
        let kept = entry.boot == 0 && self.strangers.contains_key(&(nid, generation));
        if !kept && self.strangers.len() < STRANGERS_MAX {
            // Its counters stay seen, and its earlier boots over: a recording of what it said is no news of it.
            let (boot, window) = (entry.boot, entry.window);
            self.strangers.insert((nid, generation), Stranger { boot, window, heard_us });
        }
        if self.forgotten.len() >= FORGOTTEN_MAX {
            // It will at worst be listed as dead again.
            self.forgotten.pop_first();
        }
        self.forgotten.insert(nid, place);
        self.news(nid, ctx);
        let name = entry.member.name.to_string();
        ctx.out.push(Output::Persist(Persist::Forgotten { name: name.clone() }));
        ctx.event(Event::Forgotten { name });
    }

    fn is_forgotten(&self, nid: Nid) -> bool {
        self.forgotten.contains_key(&nid)
    }

    fn jitter(&self, bound_us: u64, ctx: &mut Ctx<'_>) -> u64 {
        table::below(ctx.rng, bound_us.max(1) as usize) as u64
    }
}

#[cfg(test)]
mod adapt;
#[cfg(test)]
mod lifeguard;
#[cfg(test)]
mod tests;
