//! What is known of one app, and what its coordinator remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::record::RolloutRecord;
use crate::spec::{Kind, Spec};
use crate::view::Amounts;

/// One app on one node.
#[derive(Debug, Default)]
pub(crate) struct App {
    /// Newest generation seen; 0 until a spec was.
    pub(crate) generation: u64,
    pub(crate) spec: Option<Arc<Spec>>,
    pub(crate) stopped: bool,
    pub(crate) template: u64,
    /// Highest `(term, coordinator)` heard.
    pub(crate) term: (u64, String),
    pub(crate) rollout: Option<RolloutRecord>,
    /// The live node that ranks highest, with its rank.
    pub(crate) winner: Option<(u64, String)>,
    /// Set while this node is the winner.
    pub(crate) lead: Option<Lead>,
}

impl App {
    /// The spec when it should run.
    pub(crate) fn wanted(&self) -> Option<&Arc<Spec>> {
        self.spec.as_ref().filter(|_| !self.stopped)
    }

    pub(crate) fn is_daemon(&self) -> bool {
        self.spec.as_ref().is_some_and(|s| s.kind == Kind::Daemon)
    }

    /// Slots wanted of a service.
    pub(crate) fn replicas(&self) -> u32 {
        self.wanted().map_or(0, |s| s.replicas)
    }

    /// Notes a `(term, coordinator)`; false when a higher one was heard before.
    pub(crate) fn hear_term(&mut self, term: u64, coordinator: &str) -> bool {
        if (term, coordinator) < (self.term.0, self.term.1.as_str()) {
            return false;
        }
        self.term = (term, coordinator.to_owned());
        true
    }
}

/// The coordinator's memory of an app.
#[derive(Debug, Default)]
pub(crate) struct Lead {
    pub(crate) settle_until: u64,
    /// 0 until settled.
    pub(crate) term: u64,
    pub(crate) offers: BTreeMap<u32, Pending>,
    pub(crate) slots: BTreeMap<u32, Memo>,
    /// Nodes that refused or did not answer: not asked before a time.
    pub(crate) avoid: BTreeMap<String, u64>,
    /// Nodes on which it failed: not asked before a time while others would take it; and how often.
    pub(crate) flaps: BTreeMap<String, (u64, u32)>,
    /// Claims told to stop, and when they are told again.
    pub(crate) stops: BTreeMap<String, u64>,
    /// Claims asked how they are, and when they are asked again.
    pub(crate) asks: BTreeMap<String, u64>,
    /// Failed claims already counted.
    pub(crate) failed: BTreeSet<String>,
    pub(crate) last_failure: String,
    /// Failures since a pod made after the last of them got ready; when that last one was (wall clock);
    /// and when the next slot may be updated.
    pub(crate) failures: u32,
    pub(crate) failed_ms: u64,
    pub(crate) renew_at: u64,
    pub(crate) written: Option<RolloutRecord>,
    pub(crate) written_us: u64,
    /// When something is to be done even if nothing happens.
    pub(crate) wake: u64,
}

/// An offer in flight.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) id: u64,
    pub(crate) node: String,
    pub(crate) ask: Amounts,
    pub(crate) retry_at: u64,
    pub(crate) sent: u32,
}

/// What is remembered of a slot.
#[derive(Debug, Default)]
pub(crate) struct Memo {
    /// Failures since it was last steady.
    pub(crate) tries: u32,
    /// Times its pod vanished without being told to.
    pub(crate) lost: u32,
    /// Offers of it refused.
    pub(crate) refused: u32,
    pub(crate) not_before: u64,
    /// Two pods of one template, none ready, since.
    pub(crate) double_since: Option<u64>,
    /// Ready since.
    pub(crate) ready_since: Option<u64>,
}
