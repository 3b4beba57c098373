//! Offers: taken, refused, or kept until their spec arrives.

use std::sync::Arc;

use super::{Admit, Mine, Parked, Phase};
use crate::api::{Claim, Output};
use crate::app::App;
use crate::msg::{Message, Offer, Refusal, brief};
use crate::record::{ClaimRecord, ClaimState};
use crate::spec::Spec;
use crate::turn::Turn;
use crate::view::AppKey;

/// Offers remembered as answered; a copy that arrives later than this many others is taken for new, and
/// its pod for a duplicate.
const ANSWERED_MAX: usize = 1024;
/// Offers waiting for their spec; beyond it they are refused at once.
const PARKED_MAX: usize = 64;
/// How long an offer waits for its spec, milliseconds.
const PARKED_MS: u64 = 800;

impl Admit {
    /// Takes or refuses an offer.
    pub(crate) fn offer(&mut self, turn: &mut Turn<'_>, from: &str, app: &mut App, offer: Offer) {
        if let Some((_, id)) = self.answered.iter().find(|(o, _)| *o == offer.id) {
            // A copy: the same answer, if it is still true.
            let id = id.clone();
            if self.mine.contains_key(&id) {
                self.accept(turn, from, offer.id, &id);
            }
            return;
        }
        if !app.hear_term(offer.term, from) {
            let reason = Refusal::StaleTerm { term: app.term.0 };
            return self.refuse(turn, from, &offer, reason);
        }
        let waits = app.generation < offer.generation;
        if waits {
            self.park(turn, from, offer);
            return;
        }
        match self.judge(turn, app, &offer) {
            Ok(Some(id)) => self.accept(turn, from, offer.id, &id),
            Ok(None) => {
                let Some(spec) = app.wanted().cloned() else { return };
                let id = self.admit(turn, &spec, app, offer.slot, offer.id, offer.term);
                self.accept(turn, from, offer.id, &id);
            }
            Err(reason) => self.refuse(turn, from, &offer, reason),
        }
    }

    fn park(&mut self, turn: &mut Turn<'_>, from: &str, offer: Offer) {
        if self.parked.iter().any(|p| p.offer.id == offer.id) {
            return;
        }
        if self.parked.len() >= PARKED_MAX {
            return self.refuse(turn, from, &offer, Refusal::NoSpec);
        }
        let until = turn.now_us + PARKED_MS * 1000;
        self.parked.push(Parked { from: from.to_owned(), offer, until });
    }

    /// `Ok(None)`: admit; `Ok(Some)`: this claim already is what is offered.
    fn judge(&self, turn: &Turn<'_>, app: &App, offer: &Offer) -> Result<Option<String>, Refusal> {
        if !self.recovered {
            return Err(Refusal::Recovering);
        }
        if app.generation > offer.generation {
            return Err(Refusal::StaleGeneration);
        }
        let spec = app.wanted().filter(|s| offer.slot < s.replicas).ok_or(Refusal::NotWanted)?;
        let of_app = |m: &&Mine| {
            m.record.app == offer.app && m.record.namespace == offer.namespace && m.record.holds()
        };
        let same = self.mine.iter().find(|(_, m)| {
            of_app(m)
                && m.record.slot == offer.slot
                && m.record.template == app.template
                && !matches!(m.phase, Phase::Stopping(_))
        });
        if let Some((id, _)) = same {
            return Ok(Some(id.clone()));
        }
        let record = self.record.as_ref().ok_or(Refusal::Recovering)?;
        if self.drain {
            return Err(Refusal::Draining);
        }
        if record.cordoned() {
            return Err(Refusal::Cordoned);
        }
        if !spec.place.require.iter().all(|e| e.holds(&record.labels)) {
            return Err(Refusal::Require);
        }
        if spec.lacking(&record.features).is_some() {
            return Err(Refusal::Lacks);
        }
        if spec.place.unique_host && self.mine.values().any(|m| of_app(&m)) {
            return Err(Refusal::UniqueHost);
        }
        let _ = turn;
        self.room(spec).map(|()| None)
    }

    pub(super) fn room(&self, spec: &Spec) -> Result<(), Refusal> {
        let free = self.free();
        if free.cpu_milli < spec.cpu_milli() {
            return Err(Refusal::Cpu);
        }
        if free.memory_bytes < spec.memory_bytes() {
            return Err(Refusal::Memory);
        }
        if free.pods < 1 { Err(Refusal::Pods) } else { Ok(()) }
    }

    pub(super) fn admit(
        &mut self,
        turn: &mut Turn<'_>,
        spec: &Arc<Spec>,
        app: &App,
        slot: u32,
        offer: u64,
        term: u64,
    ) -> String {
        // What failed here before of this slot makes way.
        let failed: Vec<String> = self
            .mine
            .iter()
            .filter(|(_, m)| {
                m.phase == Phase::Failed
                    && m.record.slot == slot
                    && m.record.app == spec.app
                    && m.record.namespace == spec.namespace
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in failed {
            self.remove(turn, &id);
        }
        let id = format!("{:012x}", turn.rng.next_u64() & 0xffff_ffff_ffff);
        let record = ClaimRecord {
            namespace: spec.namespace.clone(),
            app: spec.app.clone(),
            slot,
            generation: app.generation,
            template: app.template,
            state: ClaimState::Admitted,
            ports: spec.ports(),
            created_ms: turn.wall_ms,
            cpu_milli: spec.cpu_milli(),
            memory_bytes: spec.memory_bytes(),
            offer,
            term,
            unique_host: spec.place.unique_host,
            node: turn.me().to_owned(),
            daemon: app.is_daemon(),
            ..ClaimRecord::default()
        };
        let (spec, phase) = (Some(spec.clone()), Phase::Going);
        let mine = Mine { record, spec, phase, tries: 0, ready: false };
        self.mine.insert(id.clone(), mine);
        self.publish(turn, &id);
        self.start(turn, &id);
        if offer != 0 {
            if self.answered.len() == ANSWERED_MAX {
                self.answered.pop_front();
            }
            self.answered.push_back((offer, id.clone()));
        }
        id
    }

    pub(super) fn start(&mut self, turn: &mut Turn<'_>, id: &str) {
        let Some(mine) = self.mine.get(id) else { return };
        let Some(spec) = mine.spec.clone() else { return };
        let record = mine.record.clone();
        turn.out.push(Output::Start(Claim { id: id.to_owned(), spec, record }));
    }

    fn accept(&mut self, turn: &mut Turn<'_>, to: &str, offer: u64, id: &str) {
        let Some(mine) = self.mine.get(id) else { return };
        let body = brief(&mine.record);
        let free = self.free();
        turn.send(to, Message::Accept { offer, claim: id.to_owned(), body, free });
    }

    fn refuse(&mut self, turn: &mut Turn<'_>, to: &str, offer: &Offer, reason: Refusal) {
        let message = Message::Refuse {
            offer: offer.id,
            namespace: offer.namespace.clone(),
            app: offer.app.clone(),
            slot: offer.slot,
            reason,
            free: self.free(),
        };
        turn.send(to, message);
    }

    /// Offers that waited for this app's spec; and all that waited too long are refused.
    pub(crate) fn unpark(&mut self, turn: &mut Turn<'_>, app: Option<(&AppKey, &mut App)>) {
        let now_us = turn.now_us;
        if let Some((key, app)) = app {
            let ready = |p: &Parked| {
                p.offer.namespace == key.namespace
                    && p.offer.app == key.app
                    && p.offer.generation <= app.generation
            };
            let (go, stay) = std::mem::take(&mut self.parked).into_iter().partition(ready);
            self.parked = stay;
            for p in go {
                self.offer(turn, &p.from, app, p.offer);
            }
        }
        let (late, stay) = std::mem::take(&mut self.parked)
            .into_iter()
            .partition::<Vec<_>, _>(|p| p.until <= now_us);
        self.parked = stay;
        for p in late {
            self.refuse(turn, &p.from, &p.offer, Refusal::NoSpec);
        }
    }
}
