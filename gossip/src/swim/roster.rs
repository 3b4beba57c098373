//! Members of whom only the past is known: from our own disk, or by a hint of a peer that has them from its.
//!
//! ```text
//!              news of any standing, at the remembered incarnation or a later one
//!  ┌────────────┐ ─────────────────────────────────────────────────────────────▶ that standing
//!  │ remembered │
//!  └────────────┘ ── none for a minute ──▶ Dead, for everybody
//! ```
//!
//! A remembered member is listed as dead and tried. A comparison of views names it in a message of its own, as a hint: it
//! introduces whom the reader has never heard of, so that a node with an empty disk knows of those who are away, and
//! takes back or accuses nobody.

use crate::api::{Event, Output, Persist};
use crate::config::MEMBERS_MAX;
use crate::frame::Window;
use crate::member::{Member, MemberInfo, Nid, State};
use crate::message::{Standing, Update};
use crate::swim::{Ctx, Swim, Timer};
use crate::wire::Reader;

/// How long nobody else can confirm what is remembered before we call it dead.
const REMEMBERED_US: u64 = 60_000_000;

impl Swim {
    /// A member from our own disk.
    pub(crate) fn remember(&mut self, info: &MemberInfo, now_us: u64) {
        let nid = Nid::of(&info.name);
        if self.table.get(nid).is_some() || self.table.len() >= MEMBERS_MAX {
            return;
        }
        let state = if info.state == State::Left { State::Left } else { State::Dead };
        let member = Member {
            name: info.name.as_str().into(),
            addr: info.addr,
            generation: info.generation,
            incarnation: info.incarnation,
            state,
            rtt_us: 0,
        };
        self.table.insert(nid, member, true, now_us);
    }

    /// What a peer remembers.
    pub(super) fn on_hints(&mut self, mut hints: Reader<'_>, ctx: &mut Ctx<'_>) {
        while let Some(hint) = Update::read_with(&mut hints, |name| self.table.nid_of(name)) {
            self.hint(&hint, ctx);
        }
    }

    fn hint(&mut self, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        let Some((name, addr)) = u.full else { return };
        if u.nid == self.table.my_nid() || self.stays_out() {
            return;
        }
        if self.forgotten.get(&u.nid).is_some_and(|place| (u.generation, u.incarnation) <= *place) {
            return;
        }
        let left = u.standing == Standing::Left;
        let member = Member {
            name: name.into(),
            addr,
            generation: u.generation,
            incarnation: u.incarnation,
            state: if left { State::Left } else { State::Dead },
            rtt_us: 0,
        };
        match self.table.get(u.nid) {
            // A later boot was seen than the one that we remember.
            Some(entry) if entry.remembered && entry.member.generation < u.generation => {
                self.table.update(u.nid, |entry| {
                    entry.member = member.clone();
                    (entry.boot, entry.window) = (0, Window::default());
                });
            }
            Some(_) => return,
            // Nobody gives way to hearsay.
            None if self.table.len() >= MEMBERS_MAX => return,
            None => {
                self.forgotten.remove(&u.nid);
                self.table.insert(u.nid, member.clone(), true, ctx.now_us);
                self.watch_remembered(ctx.now_us);
            }
        }
        ctx.out.push(Output::Persist(Persist::Member(member.info())));
        ctx.event(Event::Member(member));
    }

    /// Sees to it that who was remembered just now is not remembered for ever.
    pub(super) fn watch_remembered(&mut self, now_us: u64) {
        if self.remembered_at.is_none() {
            self.remembered_at = Some(now_us + REMEMBERED_US);
            self.timers.set(now_us + REMEMBERED_US, Timer::Remembered);
        }
    }

    /// Whom nobody has confirmed for so long is dead for us as for everybody.
    pub(super) fn confirm_remembered(&mut self, ctx: &mut Ctx<'_>) {
        self.remembered_at = None;
        let remembered = self.table.iter().filter(|(_, e)| e.remembered);
        let (due, later): (Vec<_>, Vec<_>) = remembered
            .map(|(nid, e)| (nid, e.changed_us))
            .partition(|(_, since_us)| since_us + REMEMBERED_US <= ctx.now_us);
        if let Some(since_us) = later.iter().map(|(_, since_us)| *since_us).min() {
            self.watch_remembered(since_us);
        }
        for (nid, _) in due {
            self.table.update(nid, |entry| entry.remembered = false);
            // What it has said meanwhile stays seen.
            self.introduce(nid);
            let Some(entry) = self.table.get(nid) else { continue };
            ctx.event(Event::Member(entry.member.clone()));
        }
    }

    /// Makes room. It is still on the disk, and on those of others.
    pub(super) fn unremember(&mut self, nid: Nid) -> bool {
        let entry = self.table.remove(nid);
        if let Some(entry) = &entry {
            self.queue.unlist(entry);
        }
        entry.is_some()
    }
}

#[cfg(test)]
mod tests;
