//! Messages between nodes, and what this node tells its coordinators.

use rand::Rng;

use super::{COALESCE_ANSWERS_US, Sched};
use crate::api::Output;
use crate::msg::Message;
use crate::record::ClaimRecord;
use crate::turn::Turn;
use crate::view::{AppKey, Node};

impl Sched {
    pub(super) fn message(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        from: &str,
        message: Message,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        match message {
            Message::Offer(offer) => {
                let key = AppKey::new(&offer.namespace, &offer.app);
                if self.app(&key).is_none() {
                    return;
                }
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                if let Some(app) = self.apps.get_mut(&key) {
                    self.admit.offer(&mut turn, from, app, offer);
                }
            }
            Message::Accept { offer, claim, body, free: _ } => {
                let Some(record) = own_word(from, &body) else { return };
                let key = AppKey::of(&record);
                self.claim_news(
                    now_us,
                    &claim,
                    record.clone(),
                    Some(now_us),
                    now_us + COALESCE_ANSWERS_US,
                );
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                if let Some(app) = self.apps.get_mut(&key) {
                    turn.accepted(&key, app, offer, &record);
                }
            }
            Message::Refuse { offer, namespace, app, slot: _, reason, free } => {
                let key = AppKey::new(&namespace, &app);
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                if let Some(app) = self.apps.get_mut(&key) {
                    turn.refused(&key, app, from, offer, &reason, free);
                    self.mark(&key, now_us + COALESCE_ANSWERS_US);
                }
            }
            Message::Status { claim, body } => {
                let Some(record) = own_word(from, &body) else { return };
                self.claim_news(now_us, &claim, record, Some(now_us), now_us + COALESCE_ANSWERS_US);
            }
            Message::Gone { claim } => {
                let its = self.view.claim(&claim).is_some_and(|c| c.record.node == from);
                if its && from != self.config.node {
                    self.claim_gone(now_us, wall_ms, &claim, true, now_us, rng, out);
                }
            }
            Message::Stop { namespace, app, claim, term } => {
                let key = AppKey::new(&namespace, &app);
                self.stop_message(now_us, wall_ms, from, &key, &claim, term, rng, out);
            }
            Message::Ask { claim } => {
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                let answer = match self.admit.mine.get(&claim) {
                    Some(m) => Message::Status { claim, body: crate::msg::brief(&m.record) },
                    None => Message::Gone { claim },
                };
                if self.admit.recovered {
                    turn.send(from, answer);
                }
            }
            Message::Forward { origin, to, bytes } if to == self.config.node => {
                match Message::decode(&bytes) {
                    Ok(Message::Forward { .. }) | Err(_) => {}
                    Ok(inner) => self.message(now_us, wall_ms, &origin, inner, rng, out),
                }
            }
            Message::Forward { origin, to, bytes } => {
                if origin == from && self.view.nodes.get(&to).is_some_and(Node::live) {
                    let mut turn = turn!(self, now_us, wall_ms, rng, out);
                    turn.send(&to, Message::Forward { origin, to: to.clone(), bytes });
                }
            }
            Message::Ping { nonce } => {
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                turn.send(from, Message::Pong { nonce });
            }
            Message::Pong { nonce } => {
                if self.contact.answered(now_us, &self.view, from, nonce) {
                    self.all_dirty(now_us);
                }
            }
            Message::Term { namespace, app, term } => {
                let key = AppKey::new(&namespace, &app);
                let mut turn = turn!(self, now_us, wall_ms, rng, out);
                if let Some(app) = self.apps.get_mut(&key) {
                    turn.outranked(app, term);
                }
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn stop_message(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        from: &str,
        key: &AppKey,
        claim: &str,
        term: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        if !self.admit.recovered || self.app(key).is_none() {
            return;
        }
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        let Some(app) = self.apps.get_mut(key) else { return };
        let (namespace, name) = (key.namespace.clone(), key.app.clone());
        match self.admit.mine.get(claim) {
            None => turn.send(from, Message::Gone { claim: claim.to_owned() }),
            Some(m) if AppKey::of(&m.record) != *key => {}
            Some(_) if !app.hear_term(term, from) => {
                let term = app.term.0;
                turn.send(from, Message::Term { namespace, app: name, term });
            }
            Some(_) => self.admit.stop(&mut turn, claim),
        }
    }

    /// Tells coordinators what changed here.
    pub(super) fn tell(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let changed = std::mem::take(&mut self.admit.changed);
        for id in changed {
            let Some(mine) = self.admit.mine.get(&id) else { continue };
            let key = AppKey::of(&mine.record);
            self.daemons_dirty |= mine.record.daemon;
            let body = crate::msg::brief(&mine.record);
            self.tell_coordinator(now_us, &key, Message::Status { claim: id, body }, out);
        }
        for (id, record) in std::mem::take(&mut self.admit.gone) {
            self.claim_left(now_us, wall_ms, &id, &record, now_us, rng, out);
            self.tell_coordinator(now_us, &AppKey::of(&record), Message::Gone { claim: id }, out);
        }
    }

    fn tell_coordinator(
        &mut self,
        now_us: u64,
        key: &AppKey,
        message: Message,
        out: &mut Vec<Output>,
    ) {
        let winner = self.apps.get(key).and_then(|a| a.winner.as_ref()).map(|(_, w)| w.clone());
        match winner {
            Some(w) if w == self.config.node => self.mark(key, now_us),
            Some(to) => {
                // A brief record always fits; the map carries it as well.
                if let Ok(bytes) = message.encode() {
                    out.push(Output::Send { to, bytes });
                }
            }
            None => {}
        }
    }
}

/// A claim's record as its own node tells it.
fn own_word(from: &str, body: &[u8]) -> Option<ClaimRecord> {
    ClaimRecord::decode(body).ok().filter(|r| r.node == from)
}
