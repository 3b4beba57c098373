//! The claims of an app, sorted by slot, as its coordinator weighs them.

use std::collections::BTreeMap;

use crate::api::MemberState;
use crate::app::{App, Lead};
use crate::hash;
use crate::record::{ClaimState, STAYS_MS};
use crate::turn::Turn;
use crate::view::{Amounts, AppKey};

/// A claim of a slot that is meant to stay, as the coordinator weighs it.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) node: String,
    pub(crate) amounts: Amounts,
    pub(crate) current: bool,
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) acked_us: Option<u64>,
    pub(super) created_ms: u64,
}

/// What is there of a slot.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// On live nodes, not leaving, best first.
    pub(crate) live: Vec<Held>,
    /// Told to stop but not gone.
    pub(crate) leaving: u32,
    /// Reported failed: `(id, node, reason)`.
    pub(crate) failed: Vec<(String, String, String)>,
    /// Replacement has to wait until then.
    pub(crate) wait_until: u64,
    /// One is offered.
    pub(crate) offered: bool,
}

impl Slot {
    /// Pods beyond the one it should have.
    pub(super) fn extra(&self) -> u32 {
        let all = self.live.len() as u32 + self.leaving + u32::from(self.offered);
        all.saturating_sub(1)
    }

    pub(super) fn best(&self) -> Option<&Held> {
        self.live.first()
    }
}

/// Sorts an app's claims by slot.
pub(crate) fn gather(turn: &Turn<'_>, key: &AppKey, app: &App, lead: &Lead) -> BTreeMap<u32, Slot> {
    let mut slots: BTreeMap<u32, Slot> =
        (0..app.replicas()).map(|n| (n, Slot::default())).collect();
    let replace_us = app.spec.as_ref().map_or(0, |s| s.partition.replace_after_ms) * 1000;
    for (id, claim) in turn.view.claims_of(key) {
        let r = &claim.record;
        let slot = slots.entry(r.slot).or_default();
        let node = turn.view.nodes.get(&r.node);
        if !turn.view.is_live(r) {
            if let Some(n) = node.filter(|n| n.state == Some(MemberState::Dead)) {
                slot.wait_until = slot.wait_until.max(n.died_us + replace_us);
            }
            if let Some(n) = node.filter(|n| n.stays()) {
                // Its agent starts anew and its pods run on.
                slot.wait_until = slot.wait_until.max(n.died_us + STAYS_MS * 1000);
            }
        } else if r.state == ClaimState::Failed {
            slot.failed.push((id.to_owned(), r.node.clone(), r.reason.clone()));
        } else if r.state == ClaimState::Stopping || lead.stops.contains_key(id) {
            slot.leaving += 1;
        } else {
            slot.live.push(Held {
                id: id.to_owned(),
                node: r.node.clone(),
                amounts: Amounts::of(r),
                current: r.template == app.template,
                ready: r.ready,
                draining: node.is_some_and(|n| n.draining()),
                acked_us: if r.node == turn.view.me {
                    Some(turn.now_us)
                } else {
                    // A word from before its node's death says nothing about now.
                    claim.acked_us.filter(|at| node.is_none_or(|n| *at >= n.since_us))
                },
                created_ms: r.created_ms,
            });
        }
    }
    for (number, slot) in &mut slots {
        slot.offered = lead.offers.contains_key(number);
        // Best first: right template, ready, not draining, oldest; the hash only breaks ties.
        if slot.live.len() > 1 {
            slot.live.sort_by_key(|h| {
                let tie = hash::stable(&[h.id.as_bytes()]);
                (!h.current, !h.ready, h.draining, h.created_ms, tie)
            });
        }
    }
    slots
}
