//! Apps: their specs, who runs a daemon now, and the coordinator's turn.

use std::sync::Arc;

use rand::Rng;

use super::{Sched, winner};
use crate::api::Output;
use crate::app::App;
use crate::hash;
use crate::record::NodeRecord;
use crate::spec::Spec;
use crate::turn::Turn;
use crate::view::{AppKey, Node};

/// Apps remembered. Beyond it new ones are ignored.
const APPS_MAX: usize = 100_000;

impl Sched {
    pub(super) fn app(&mut self, key: &AppKey) -> Option<&mut App> {
        if !self.apps.contains_key(key) {
            if self.apps.len() >= APPS_MAX {
                return None;
            }
            let app = App { winner: winner(&self.view, key), ..App::default() };
            self.apps.insert(key.clone(), app);
        }
        self.apps.get_mut(key)
    }

    pub(super) fn leads(&self, key: &AppKey) -> bool {
        self.apps.get(key).is_some_and(|a| a.lead.is_some())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn spec(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: AppKey,
        generation: u64,
        spec: Option<Arc<Spec>>,
        stopped: bool,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let claims = self.view.claims_of(&key).next().is_some();
        let Some(app) = self.app(&key) else { return };
        // Two operators may have written one generation at once: the map has decided between them.
        let known = generation == app.generation
            && app.spec == spec
            && app.stopped == (stopped || spec.is_none());
        if generation < app.generation || known {
            return;
        }
        let fresh = app.generation == 0 && app.rollout.is_none() && app.term.0 == 0 && !claims;
        app.generation = generation;
        app.template = spec.as_ref().map_or(0, |s| s.template());
        app.stopped = stopped || spec.is_none();
        app.spec = spec;
        self.lead(now_us, &key, fresh);
        let Some(app) = self.apps.get_mut(&key) else { return };
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(mut lead) = app.lead.take() {
            turn.cancel_offers(&mut lead);
            // A new generation starts without the failures of the old.
            lead.slots.clear();
            lead.flaps.clear();
            lead.last_failure.clear();
            lead.failures = 0;
            app.lead = Some(lead);
        }
        self.admit.obey(&mut turn, &key, app);
        self.admit.unpark(&mut turn, Some((&key, app)));
        self.daemons_dirty = true;
        self.mark(&key, now_us);
    }

    pub(super) fn daemons_due(&self, now_us: u64) -> bool {
        let due = |(_, at): &(u32, u64)| *at != 0 && *at <= now_us;
        self.daemons_dirty || self.admit.daemons.values().any(due)
    }

    pub(super) fn run_daemons(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        self.daemons_dirty = false;
        let daemons = |a: &App| a.is_daemon() && a.wanted().is_some();
        let keys: Vec<AppKey> =
            self.apps.iter().filter(|(_, a)| daemons(a)).map(|(k, _)| k.clone()).collect();
        self.admit.daemons.retain(|k, _| keys.contains(k));
        for key in keys {
            let Some(app) = self.apps.get(&key) else { continue };
            let reached = self.admit.outdated(&key, app) && self.daemon_reached(&key);
            let mut turn = turn!(self, now_us, wall_ms, rng, out);
            self.admit.daemon(&mut turn, &key, app, reached);
        }
        for (_, at) in self.admit.daemons.values_mut() {
            if *at <= now_us {
                *at = 0;
            }
        }
    }

    /// Nodes update a daemon in the order of their rank: this one when fewer than `max_unavailable` of
    /// those before it are still without a ready pod of the new template.
    fn daemon_reached(&self, key: &AppKey) -> bool {
        let Some(app) = self.apps.get(key) else { return false };
        let Some(spec) = app.wanted() else { return false };
        let rank = |node: &str| (hash::rank(&key.namespace, &key.app, node), node.to_owned());
        let mine = rank(&self.config.node);
        let eligible = |n: &Node| {
            let fits = |r: &NodeRecord| spec.place.require.iter().all(|e| e.holds(&r.labels));
            n.live() && n.record.as_ref().is_some_and(fits)
        };
        let nodes: Vec<&String> =
            self.view.nodes.iter().filter(|(_, n)| eligible(n)).map(|(name, _)| name).collect();
        let done: Vec<&str> = self
            .view
            .claims_of(key)
            .filter(|(_, c)| c.record.template == app.template && c.record.ready)
            .map(|(_, c)| c.record.node.as_str())
            .collect();
        let budget = spec.update.max_unavailable.of(nodes.len() as u32).max(1) as usize;
        let before = nodes.iter().filter(|n| rank(n) > mine && !done.contains(&n.as_str())).count();
        before < budget
    }

    pub(super) fn coordinate(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: &AppKey,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let trouble = self.contact.trouble(now_us);
        let held = self.held.clone();
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(app) = self.apps.get_mut(key) {
            turn.coordinate(key, app, held.as_deref(), trouble.as_deref());
        }
    }
}
