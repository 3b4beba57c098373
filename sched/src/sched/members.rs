//! Members come and go: who leads what, which records nobody owns any more, and what holds starts.

use super::{Sched, winner};
use crate::api::{Event, MemberState, Output};
use crate::app::Lead;
use crate::guard::Hold;
use crate::hash;
use crate::record::{claim_key, node_key};
use crate::view::{AppKey, Node};

/// Records of forgotten nodes deleted in one step; the rest follow.
const SWEEP_MAX: usize = 256;
/// While any remain they are looked at this often: the node that should do it may have died, microseconds.
const SWEEP_US: u64 = 5_000_000;
/// A node of which there are records but no membership for this long was forgotten, microseconds.
const STRAY_US: u64 = 5_000_000;

impl Sched {
    pub(super) fn member(&mut self, now_us: u64, name: &str, state: MemberState) {
        let was_alone = self.view.live() == 1;
        let was_live = self.view.nodes.get(name).is_some_and(|n| n.live());
        let Ok(old) = self.view.member(now_us, name, state) else { return };
        self.live = self.view.live();
        self.met |= state == MemberState::Alive;
        self.guard.member(&self.config, now_us, name, (old, state), self.view.roster());
        let live = self.view.nodes.get(name).is_some_and(|n| n.live());
        if live && was_alone {
            self.settle_again(now_us);
        }
        if live != was_live {
            self.rerank(now_us, name, live);
        }
        if state == MemberState::Forgotten {
            self.sweep_at = Some(now_us);
        }
        self.all_dirty(now_us);
    }

    /// A node came or went: who coordinates what?
    fn rerank(&mut self, now_us: u64, name: &str, live: bool) {
        let keys: Vec<AppKey> = self.apps.keys().cloned().collect();
        for key in keys {
            let Some(app) = self.apps.get_mut(&key) else { continue };
            if live {
                let rank = (hash::rank(&key.namespace, &key.app, name), name.to_owned());
                if app.winner.as_ref().is_none_or(|w| rank > *w) {
                    app.winner = Some(rank);
                }
            } else if app.winner.as_ref().is_some_and(|(_, w)| w == name) {
                app.winner = winner(&self.view, &key);
            }
            self.lead(now_us, &key, false);
        }
    }

    /// Takes or gives up the lead of an app as its winner says. `fresh`: nobody has led it before.
    pub(super) fn lead(&mut self, now_us: u64, key: &AppKey, fresh: bool) {
        let settle_us = self.settle_us();
        let joined = self.joined_us + settle_us;
        let Some(app) = self.apps.get_mut(key) else { return };
        let mine = app.winner.as_ref().is_some_and(|(_, w)| *w == self.config.node);
        if mine && app.lead.is_none() && app.generation > 0 {
            let settle_until = if fresh { joined } else { joined.max(now_us + settle_us) };
            let lead = Lead { settle_until, wake: now_us.max(settle_until), ..Lead::default() };
            app.lead = Some(lead);
            self.led.insert(key.clone());
            self.mark(key, now_us);
        } else if !mine && let Some(lead) = app.lead.take() {
            self.led.remove(key);
            for p in lead.offers.into_values() {
                self.view.release(&p.node, p.ask);
                self.in_flight -= 1;
            }
        }
    }

    /// A record of a node that is no member arrived.
    pub(super) fn sweep_later(&mut self, now_us: u64, node: &str) {
        let stray = |n: &Node| !n.is_member();
        if self.sweep_at.is_none() && self.view.nodes.get(node).is_some_and(stray) {
            self.sweep_at = Some(now_us + STRAY_US);
        }
    }

    /// Deletes records of nodes that were forgotten, or that nobody has heard of for a while (this node
    /// was not there when they were forgotten), if it is for this node to do.
    pub(super) fn sweep(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let mut left = SWEEP_MAX;
        // When to look again: whoever is to do it may have died by then.
        let mut again: Option<u64> = None;
        let mut later = |at: u64| again = Some(again.map_or(at, |again| again.min(at)));
        let names: Vec<String> = self
            .view
            .nodes
            .iter()
            .filter(|(_, n)| n.is_stray())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(node) = self.view.nodes.get(&name) else { continue };
            let since =
                if node.state.is_some() { 0 } else { node.since_us.max(self.joined_us) + STRAY_US };
            let sweeper = winner(&self.view, &AppKey::new("sweep", &name));
            let mine = sweeper.is_some_and(|(_, w)| w == self.config.node);
            if now_us < since {
                later(since);
                continue;
            }
            if !mine || self.held.is_some() {
                later(now_us + SWEEP_US);
                continue;
            }
            if node.record.is_some() {
                self.view.node_record(now_us, &name, None);
                out.push(Output::Delete { key: node_key(&name) });
            }
            let ids: Vec<String> =
                self.view.claims_on(&name).take(left).map(str::to_owned).collect();
            left -= ids.len();
            for id in ids {
                self.view.drop_claim(&id, now_us, false);
                out.push(Output::Delete { key: claim_key(&name, &id) });
            }
            if left == 0 {
                later(now_us + SWEEP_US);
            }
        }
        self.sweep_at = again;
    }

    /// What holds starts now.
    pub(super) fn hold(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let alone = !self.met && !self.config.bootstrap;
        let hold = if alone {
            Some((Hold::Alone, None))
        } else {
            self.guard.hold(&self.config, now_us, self.view.live(), self.view.roster())
        };
        self.held_until = hold.and_then(|(_, until)| until);
        let hold = hold.map(|(hold, _)| hold);
        if self.hold != hold {
            self.hold = hold;
            self.held = hold.map(|hold| hold.to_string());
            if hold.is_none() && self.sweep_at.is_some() {
                // It was put off.
                self.sweep_at = Some(now_us);
            }
            let reason = self.held.clone().unwrap_or_default();
            out.push(Output::Event(Event::Held { reason }));
            self.all_dirty(now_us);
        }
    }
}
