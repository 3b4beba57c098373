//! The coordinator of an app: offers its empty slots, stops what is too much, moves what cannot stay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::Event;
use crate::app::{App, Lead, Pending};
use crate::msg::{self, Message};
use crate::place::{Question, Tally};
use crate::record::ClaimState;
use crate::spec::Spec;
use crate::turn::{Turn, backoff_ms};
use crate::view::{Amounts, AppKey};

mod answers;
mod renew;
mod slots;

pub(crate) use slots::{Held, Slot, gather};

/// Offers in flight from one node, over all apps. Further slots wait for answers.
pub(crate) const OFFERS_MAX: usize = 64;
/// Copies of one offer sent before the node counts as not answering.
const SENDS_MAX: u32 = 3;
/// Refusals of one slot before it backs off.
const TRIES_MAX: u32 = 6;
/// Every app led is looked at this often even if nothing happens, microseconds.
const TICK_US: u64 = 1_000_000;
/// A node that did not answer an offer is not asked again for this long, milliseconds.
const SILENT_MS: u64 = 4_000;
/// A node that refused is not asked again for this long, milliseconds.
const REFUSED_MS: u64 = 1_000;
/// A claim's own word counts for this long when a loser is to be stopped, microseconds.
const ACK_FRESH_US: u64 = 10_000_000;
/// An unanswered Stop or Ask is sent again after this, milliseconds.
const RESEND_MS: u64 = 1_000;
/// Two pods of one template of which neither gets ready: the younger is stopped after this.
const DOUBLE_US: u64 = 10_000_000;
/// A slot ready for this long has no failures behind it.
const STEADY_US: u64 = 30_000_000;
/// A node that keeps failing an app is avoided this many times longer at most.
const FLAP_FACTOR_MAX: u32 = 3;

impl Turn<'_> {
    /// Looks at an app that this node leads and does what is due. `held`: no starts now;
    /// `trouble`: starts wait for others to answer.
    pub(crate) fn coordinate(
        &mut self,
        key: &AppKey,
        app: &mut App,
        held: Option<&str>,
        trouble: Option<&str>,
    ) {
        let Some(mut lead) = app.lead.take() else { return };
        lead.wake = self.now_us + TICK_US;
        if self.now_us < lead.settle_until {
            lead.wake = lead.settle_until;
            app.lead = Some(lead);
            return;
        }
        if (app.term.0, app.term.1.as_str()) > (lead.term, self.me()) || lead.term == 0 {
            lead.term = app.term.0 + 1;
            app.term = (lead.term, self.me().to_owned());
            self.event(Event::TookOver { app: key.to_string(), term: lead.term });
        }
        let known = |id: &str| self.view.claim(id).is_some();
        lead.stops.retain(|id, _| known(id));
        lead.failed.retain(|id| known(id));
        let now_us = self.now_us;
        lead.asks.retain(|_, at| *at > now_us);
        lead.avoid.retain(|_, until| *until > now_us);
        let slots = match app.wanted().cloned() {
            None => {
                self.wind_down(key, &mut lead);
                None
            }
            Some(_) if app.is_daemon() => None,
            Some(spec) => self.service(key, app, &mut lead, &spec, held.is_some()),
        };
        self.write_rollout(key, app, &mut lead, held.or(trouble), slots);
        app.lead = Some(lead);
    }

    /// The app is stopped or deleted: nodes stop its pods by the spec itself; this repeats it for a node
    /// that has not got the spec.
    fn wind_down(&mut self, key: &AppKey, lead: &mut Lead) {
        self.cancel_offers(lead);
        let all: Vec<(String, String)> = self
            .view
            .claims_of(key)
            .map(|(id, c)| (id.to_owned(), c.record.node.clone()))
            .collect();
        for (id, node) in all {
            self.stop(key, lead, &id, &node);
        }
    }

    /// Does what is due. The slots, unless something was done after they were gathered.
    fn service(
        &mut self,
        key: &AppKey,
        app: &App,
        lead: &mut Lead,
        spec: &Arc<Spec>,
        held: bool,
    ) -> Option<BTreeMap<u32, Slot>> {
        self.chase_offers(key, app, lead);
        self.withdraw(key, app, lead);
        let mut slots = gather(self, key, app, lead);
        self.note_failures(key, lead, &slots);
        let stops = lead.stops.len();
        self.trim(key, lead, &slots, spec.replicas);
        if lead.stops.len() != stops {
            // Some were told to stop.
            slots = gather(self, key, app, lead);
        }
        if held {
            return Some(slots);
        }
        let due = |s: &Slot| match s.best() {
            None => !s.offered,
            Some(best) => !best.current || best.draining,
        };
        if !slots.range(..spec.replicas).any(|(_, s)| due(s)) {
            return Some(slots);
        }
        if !self.in_contact {
            *self.want_contact = true;
            return Some(slots);
        }
        let stops = lead.stops.clone();
        let mut tally = Tally::new(self.view, key, spec, &|id| stops.contains_key(id));
        for pending in lead.offers.values() {
            tally.add(self.view, spec, &pending.node);
        }
        self.fill(key, app, lead, &slots, &mut tally);
        self.renew(key, app, lead, &slots, &mut tally);
        None
    }

    /// Drops offers that were answered through the map or whose node died; repeats the unanswered.
    fn chase_offers(&mut self, key: &AppKey, app: &App, lead: &mut Lead) {
        let numbers: Vec<u32> = lead.offers.keys().copied().collect();
        for slot in numbers {
            let Some(p) = lead.offers.get(&slot) else { continue };
            let (id, node) = (p.id, p.node.clone());
            let arrived = self.view.claims_of(key).any(|(_, c)| c.record.offer == id);
            let dead = !self.view.nodes.get(&node).is_some_and(|n| n.live());
            if arrived || dead || slot >= app.replicas() {
                self.drop_offer(lead, slot);
            } else if p.retry_at <= self.now_us {
                if p.sent >= SENDS_MAX {
                    self.drop_offer(lead, slot);
                    let until = self.after(SILENT_MS);
                    lead.avoid.insert(node, until);
                    continue;
                }
                let retry_at = self.after(self.config.offer_retry_ms);
                if let Some(p) = lead.offers.get_mut(&slot) {
                    p.sent += 1;
                    p.retry_at = retry_at;
                }
                let offer = offer_message(key, app, lead.term, slot, id);
                self.send_again(&node, offer);
            }
        }
        for p in lead.offers.values() {
            lead.wake = lead.wake.min(p.retry_at);
        }
    }

    pub(crate) fn cancel_offers(&mut self, lead: &mut Lead) {
        while let Some((slot, _)) = lead.offers.first_key_value() {
            let slot = *slot;
            self.drop_offer(lead, slot);
        }
    }

    fn drop_offer(&mut self, lead: &mut Lead, slot: u32) {
        if let Some(p) = lead.offers.remove(&slot) {
            self.view.release(&p.node, p.ask);
            *self.in_flight -= 1;
        }
    }

    /// Counts each failed claim once: backoff for its slot, avoidance of its node.
    fn note_failures(&mut self, key: &AppKey, lead: &mut Lead, slots: &BTreeMap<u32, Slot>) {
        for (number, slot) in slots {
            for (id, node, reason) in &slot.failed {
                if !lead.failed.insert(id.clone()) {
                    continue;
                }
                lead.last_failure = format!("{node}: {reason}");
                lead.failures += 1;
                lead.failed_ms = self.wall_ms;
                let ms =
                    backoff_ms(self.config.backoff_ms, self.config.backoff_max_ms, lead.failures);
                lead.renew_at = self.now_us + self.jitter_us(ms);
                self.back_off(lead, *number);
                self.flap(lead, node);
                let (node, reason) = (node.clone(), reason.clone());
                self.event(Event::Moving { app: key.to_string(), slot: *number, node, reason });
            }
            let memo = lead.slots.entry(*number).or_default();
            if let Some(best) = slot.best().filter(|h| h.ready && h.current) {
                if best.created_ms > lead.failed_ms {
                    lead.failures = 0;
                }
                let since = *memo.ready_since.get_or_insert(self.now_us);
                if self.now_us > since + STEADY_US {
                    (memo.tries, memo.lost, memo.refused) = (0, 0, 0);
                }
            } else {
                memo.ready_since = None;
            }
        }
        lead.slots.retain(|number, _| slots.contains_key(number));
    }

    fn back_off(&mut self, lead: &mut Lead, slot: u32) {
        let memo = lead.slots.entry(slot).or_default();
        memo.tries += 1;
        let ms = backoff_ms(self.config.backoff_ms, self.config.backoff_max_ms, memo.tries);
        memo.not_before = self.now_us + self.jitter_us(ms);
    }

    fn flap(&mut self, lead: &mut Lead, node: &str) {
        let (until, count) = lead.flaps.entry(node.to_owned()).or_default();
        *count += 1;
        let factor = 1 << (*count - 1).min(FLAP_FACTOR_MAX);
        *until = self.now_us + self.config.flap_ms * 1000 * factor;
    }

    /// Stops surplus slots, losers of doubled slots, and what failed where another now runs.
    fn trim(&mut self, key: &AppKey, lead: &mut Lead, slots: &BTreeMap<u32, Slot>, replicas: u32) {
        for (number, slot) in slots {
            if *number >= replicas {
                for held in &slot.live {
                    self.stop(key, lead, &held.id, &held.node);
                }
                for (id, node, _) in &slot.failed {
                    self.stop(key, lead, id, node);
                }
                continue;
            }
            let Some(best) = slot.best().cloned() else { continue };
            for (id, node, _) in &slot.failed {
                self.stop(key, lead, id, node);
            }
            self.dedupe(key, lead, *number, slot, &best);
        }
        // A Stop that was lost is repeated even though its claim no longer counts.
        let due: Vec<String> = lead
            .stops
            .iter()
            .filter(|(_, at)| **at <= self.now_us)
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            if let Some(node) = self.view.claim(&id).map(|c| c.record.node.clone()) {
                self.stop(key, lead, &id, &node);
            }
        }
        for at in lead.stops.values().chain(lead.asks.values()) {
            lead.wake = lead.wake.min((*at).max(self.now_us + 1));
        }
    }

    /// Forgets a Stop that went unheard until its reason had passed (the drain has ended, the update is
    /// taken back): its pod is all there is of its slot, and one like it would only start anew.
    fn withdraw(&self, key: &AppKey, app: &App, lead: &mut Lead) {
        let due = lead.stops.iter().filter(|(_, at)| **at <= self.now_us);
        let may_stay = |id: &String| {
            let r = &self.view.claim(id)?.record;
            let goes = matches!(r.state, ClaimState::Stopping | ClaimState::Failed);
            let wanted = r.slot < app.replicas() && r.template == app.template && !goes;
            let node = self.view.nodes.get(&r.node).filter(|n| n.live() && !n.draining());
            (wanted && node.is_some()).then(|| (!r.ready, id.clone(), r.slot))
        };
        let mut unheard: Vec<_> = due.filter_map(|(id, _)| may_stay(id)).collect();
        if unheard.is_empty() {
            return;
        }
        // Of two in one slot the ready one stays.
        unheard.sort();
        let slots = gather(self, key, app, lead);
        let mut kept = BTreeSet::new();
        for (_, id, number) in unheard {
            let alone = slots.get(&number).is_some_and(|s| s.live.is_empty() && !s.offered);
            if alone && kept.insert(number) {
                lead.stops.remove(&id);
            }
        }
    }

    fn dedupe(&mut self, key: &AppKey, lead: &mut Lead, number: u32, slot: &Slot, best: &Held) {
        let memo = lead.slots.entry(number).or_default();
        let double = slot.live.iter().skip(1).any(|l| l.current == best.current);
        if !double || best.ready {
            memo.double_since = None;
        }
        let double_for =
            if double { self.now_us - *memo.double_since.get_or_insert(self.now_us) } else { 0 };
        for loser in slot.live.iter().skip(1) {
            // On its way to replace the best, which has to leave its node.
            let replacement = best.draining && !loser.draining && loser.current;
            let fresh = best.acked_us.is_some_and(|at| at + ACK_FRESH_US > self.now_us);
            let neither = !best.ready && !loser.ready && loser.current == best.current;
            if replacement && (best.ready || !loser.ready) && double_for < DOUBLE_US * 6 {
                continue;
            }
            if (best.ready && fresh) || (neither && double_for > DOUBLE_US) {
                let (slot, node) = (number, loser.node.clone());
                self.stop(key, lead, &loser.id, &loser.node);
                if loser.current == best.current {
                    self.event(Event::Duplicate { app: key.to_string(), slot, node });
                }
            } else if best.ready && !lead.asks.contains_key(&best.id) {
                let again = self.after(RESEND_MS / 4);
                lead.asks.insert(best.id.clone(), again);
                self.send_again(&best.node, Message::Ask { claim: best.id.clone() });
            }
        }
    }

    fn stop(&mut self, key: &AppKey, lead: &mut Lead, id: &str, node: &str) {
        if lead.stops.get(id).is_some_and(|at| *at > self.now_us) {
            return;
        }
        let again = self.after(RESEND_MS);
        let first = lead.stops.insert(id.to_owned(), again).is_none();
        let (namespace, app) = (key.namespace.clone(), key.app.clone());
        let term = lead.term;
        let message = Message::Stop { namespace, app, claim: id.to_owned(), term };
        if first { self.send(node, message) } else { self.send_again(node, message) }
    }

    /// Offers every slot that has nothing.
    fn fill(
        &mut self,
        key: &AppKey,
        app: &App,
        lead: &mut Lead,
        slots: &BTreeMap<u32, Slot>,
        tally: &mut Tally,
    ) {
        let Some(spec) = app.wanted().cloned() else { return };
        let mut extra: u32 = slots.values().map(Slot::extra).sum();
        let surge = spec.update.max_surge.of(spec.replicas);
        for (number, slot) in slots.range(..spec.replicas) {
            if !slot.live.is_empty() || slot.offered {
                continue;
            }
            if slot.leaving > 0 {
                // Its old pod still runs: a new one beside it is a surge.
                if extra >= surge {
                    continue;
                }
                extra += 1;
            }
            let not_before =
                lead.slots.get(number).map_or(0, |m| m.not_before).max(slot.wait_until);
            if not_before > self.now_us {
                lead.wake = lead.wake.min(not_before);
                continue;
            }
            if *self.in_flight >= OFFERS_MAX {
                break;
            }
            let Some(node) = self.pick(key, &spec, lead, tally, *number) else {
                // The slots of an app differ in nothing that could make another one fit.
                break;
            };
            self.offer(key, app, lead, *number, &node);
            tally.add(self.view, &spec, &node);
        }
    }

    fn pick(
        &self,
        key: &AppKey,
        spec: &Spec,
        lead: &Lead,
        tally: &Tally,
        slot: u32,
    ) -> Option<String> {
        let refused = |node: &str| lead.avoid.contains_key(node);
        let flapped = |node: &str| {
            refused(node) || lead.flaps.get(node).is_some_and(|(until, _)| *until > self.now_us)
        };
        let question = Question { view: self.view, key, spec, slot, tally, avoid: &flapped };
        // A node that failed it is better than none.
        question.pick().or_else(|| Question { avoid: &refused, ..question }.pick())
    }

    fn offer(&mut self, key: &AppKey, app: &App, lead: &mut Lead, slot: u32, node: &str) {
        let Some(spec) = app.wanted() else { return };
        let ask =
            Amounts { cpu_milli: spec.cpu_milli(), memory_bytes: spec.memory_bytes(), pods: 1 };
        let id = self.rng.next_u64() | 1;
        let retry_at = self.after(self.config.offer_retry_ms);
        self.view.reserve(node, ask);
        *self.in_flight += 1;
        lead.offers.insert(slot, Pending { id, node: node.to_owned(), ask, retry_at, sent: 1 });
        lead.wake = lead.wake.min(retry_at);
        let offer = offer_message(key, app, lead.term, slot, id);
        self.send(node, offer);
    }
}

fn offer_message(key: &AppKey, app: &App, term: u64, slot: u32, id: u64) -> Message {
    Message::Offer(msg::Offer {
        id,
        namespace: key.namespace.clone(),
        app: key.app.clone(),
        slot,
        generation: app.generation,
        term,
    })
}
