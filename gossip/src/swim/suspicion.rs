//! From the first failed probe to death, or to a refutation.

use crate::member::{Nid, State};
use crate::message::{ACCUSERS_MAX, Accusers, Standing, Update};
use crate::swim::queue::Queue;
use crate::swim::table::{Suspicion, below};
use crate::swim::{Ctx, Swim, Timer};

/// So many hearers of a suspicion (on average) probe at once.
const VERIFIERS: usize = 8;

impl Swim {
    /// Our own probe failed.
    pub(super) fn accuse_by_me(&mut self, nid: Nid, ctx: &mut Ctx<'_>) {
        let Some(entry) = self.table.get(nid) else { return };
        let update = Update {
            nid,
            full: None,
            generation: entry.member.generation,
            incarnation: entry.member.incarnation,
            standing: Standing::Suspect,
            accusers: Accusers::one(self.table.my_nid()),
        };
        self.accuse(&update, false, ctx);
    }

    /// Suspects a member, or adds accusers to a running suspicion. `buried`: somebody already declared it dead.
    pub(super) fn accuse(&mut self, u: &Update<'_>, buried: bool, ctx: &mut Ctx<'_>) {
        let me = self.table.my_nid();
        let Some(entry) = self.table.get(u.nid) else { return };
        let same = entry.member.incarnation == u.incarnation
            && entry.member.generation == u.generation
            && entry.member.state == State::Suspect;
        // A suspicion without an accuser is the echo of a rumour of death.
        let buried = buried || u.accusers.len() == 0;
        let by_me = u.accusers.iter().any(|nid| nid == me);
        if !same {
            self.suspect(u, by_me, buried, ctx);
        } else if let Some(s) = self.table.touch(u.nid).and_then(|e| e.suspicion.as_mut()) {
            s.verified |= by_me;
            // All of them have to be tried.
            let added = u.accusers.iter().fold(false, |added, nid| s.accusers.add(nid) | added);
            if added {
                s.rumoured &= by_me;
                self.news(u.nid, ctx);
            } else if u.accusers.len() >= s.accusers.len() {
                Queue::heard(u.nid, &mut self.table);
            }
        }
        self.rearm(u.nid, ctx);
        let hearers = self.table.live().len().max(1);
        let chosen = !same && below(ctx.rng, hearers) < VERIFIERS;
        if chosen && !by_me && !self.is_probing(u.nid) {
            self.probe(u.nid, ctx);
        }
    }

    fn suspect(&mut self, u: &Update<'_>, by_me: bool, rumoured: bool, ctx: &mut Ctx<'_>) {
        let (min_us, max_us) = self.bounds();
        let suspicion = Suspicion {
            since_us: ctx.now_us,
            deadline_us: 0,
            min_us,
            // A node that doubts itself gives the suspect more time.
            max_us: if by_me { self.health.stretch(max_us) } else { max_us },
            accusers: u.accusers,
            verified: by_me,
            rumoured,
            grace_us: self.timing.probe_us + self.jitter(self.timing.probe_us, ctx),
        };
        self.take(u, State::Suspect, ctx);
        if !rumoured {
            self.news(u.nid, ctx);
        }
        if let Some(entry) = self.table.touch(u.nid) {
            entry.suspicion = Some(Box::new(suspicion));
        }
    }

    /// Shortest and longest suspicion at the present size.
    fn bounds(&self) -> (u64, u64) {
        let members = self.table.live().len() + 1;
        let tenths = (members.max(10).ilog2() * 3).saturating_sub(9);
        // Three binary orders are about nine tenths of a decade: close enough without floating point.
        let extra_us = self.timing.suspicion_decade_us * u64::from(tenths) / 10;
        (self.timing.suspicion_min_us + extra_us, self.timing.suspicion_max_us + extra_us)
    }

    /// Recomputes the end of a suspicion from its accusers (Lifeguard IV.B).
    fn rearm(&mut self, nid: Nid, ctx: &mut Ctx<'_>) {
        // Who could confirm at all: everybody but the suspect and us.
        let others = self.table.live().len().saturating_sub(1);
        let Some(s) = self.table.touch(nid).and_then(|e| e.suspicion.as_mut()) else { return };
        let wanted = ACCUSERS_MAX.min(others + 1).max(1);
        // ln(c) / ln(K) in thousandths, for K up to three accusers.
        let shrink = match (s.accusers.len().min(wanted), wanted) {
            (c, k) if c >= k => 1000,
            (2, 3) => 631,
            _ => 0,
        };
        let span_us = s.max_us.saturating_sub(s.min_us) * shrink / 1000;
        // Others have waited already where it began with a rumour of death.
        let end_us = match (s.rumoured, s.verified) {
            (true, true) => 0,
            (true, false) => s.since_us + s.grace_us,
            (false, true) => s.since_us + s.max_us - span_us,
            (false, false) => s.since_us + s.max_us - span_us + s.grace_us,
        };
        if !s.verified && end_us <= ctx.now_us && s.deadline_us > ctx.now_us {
            // We are asking it already.
            return;
        }
        let deadline_us = end_us.max(ctx.now_us + 1);
        let old_us = std::mem::replace(&mut s.deadline_us, deadline_us);
        if old_us == deadline_us {
            // It is set already; most of what is heard of a suspicion is known.
            return;
        }
        self.timers.cancel(old_us, Timer::Suspicion(nid));
        self.timers.set(deadline_us, Timer::Suspicion(nid));
    }

    /// The time is over. Only who failed to reach it declares it dead.
    pub(super) fn suspicion_due(&mut self, nid: Nid, at_us: u64, ctx: &mut Ctx<'_>) {
        let Some(entry) = self.table.get(nid) else { return };
        let Some(suspicion) = entry.suspicion.as_ref() else { return };
        if suspicion.deadline_us != at_us {
            return;
        }
        if suspicion.verified {
            let member = &entry.member;
            let update = Update {
                nid,
                full: None,
                generation: member.generation,
                incarnation: member.incarnation,
                standing: Standing::Dead,
                accusers: Accusers::default(),
            };
            return self.set(&update, State::Dead, ctx);
        }
        if !self.is_probing(nid) {
            self.probe(nid, ctx);
        }
        // The probe's failure sets `verified`; look again when it is over.
        let again_us = ctx.now_us + self.health.stretch(self.timing.probe_us) + 1;
        if let Some(s) = self.table.touch(nid).and_then(|e| e.suspicion.as_mut()) {
            s.deadline_us = again_us;
        }
        self.timers.set(again_us, Timer::Suspicion(nid));
    }
}
