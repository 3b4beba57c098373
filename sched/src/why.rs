//! Why an app is not as wanted: counts for each reason, the nearest miss, and what would place it.
//!
//! Any node can answer: it filters against its own view, with the code that the coordinator places with.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::place::{Question, Reject, Rejections, Tally};
use crate::record::{ClaimRecord, ClaimState};
use crate::sched::Sched;
use crate::spec::units::{show_cpu, show_size};
use crate::spec::{Kind, Spec};
use crate::status::{counts, reject_word};
use crate::view::{AppKey, ClaimView};

/// The answer to `quelea why`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// Namespace.
    pub namespace: String,
    /// App.
    pub app: String,
    /// False: no spec of that name is known here.
    pub known: bool,
    /// Told to stop.
    pub stopped: bool,
    /// Newest generation.
    pub generation: u64,
    /// Slots wanted.
    pub desired: u32,
    /// Slots with a ready pod of the newest template.
    pub ready: u32,
    /// The node that coordinates it, as seen from here.
    pub coordinator: String,
    /// Why all starts are held; empty when they are not.
    pub held: String,
    /// Slots that are not ready, at most [`SLOTS_MAX`] of them.
    pub slots: Vec<SlotWhy>,
    /// Slots left out of `slots`.
    pub more: u32,
    /// The last failure of this generation, of which nothing is left to be seen; empty where there was none.
    #[serde(default)]
    pub past: String,
    /// What is to be known of pods that are ready, or that have not ended yet: one line each, at most [`SLOTS_MAX`].
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Slots explained one by one.
pub const SLOTS_MAX: usize = 16;

/// Why one slot is not ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotWhy {
    /// Slot.
    pub slot: u32,
    /// The claim's state, or `pending`.
    pub state: String,
    /// Its node, when it has one.
    pub node: String,
    /// Its last failure, when there was one.
    pub reason: String,
    /// Nodes on the roster.
    pub nodes: u32,
    /// Of these, that would take it.
    pub feasible: u32,
    /// What rejected the others, most first: each node counts once, for its first reason.
    pub rejected: Vec<Rejected>,
    /// What would place it; empty when nothing single would.
    pub fix: String,
}

/// Nodes rejected for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// `memory`, `cpu`, `rack skew`, `unique host`, `require arch == amd64`, ...
    pub reason: String,
    /// How many.
    pub nodes: u32,
    /// What was needed and the nearest miss: `need 256Mi; best r12-n04, 190Mi`.
    pub detail: String,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{}/{}", self.namespace, self.app);
        if !self.known {
            return write!(f, "{name}: no such app");
        }
        if self.stopped {
            write!(f, "{name}: stopped (generation {})", self.generation)?;
            return self.notes.iter().try_for_each(|note| write!(f, "\n  {note}"));
        }
        write!(
            f,
            "{name} generation {}: {} of {} ready",
            self.generation, self.ready, self.desired
        )?;
        if !self.coordinator.is_empty() {
            write!(f, ", coordinated by {}", self.coordinator)?;
        }
        if !self.held.is_empty() {
            write!(f, "\nstarts are held: {}", self.held)?;
        }
        for slot in &self.slots {
            write!(f, "\n{name} slot {} {}", slot.slot, slot.state)?;
            if !slot.node.is_empty() {
                write!(f, " on {}", slot.node)?;
            }
            if slot.nodes > 0 {
                write!(f, ": {} of {} nodes", slot.feasible, slot.nodes)?;
            }
            if !slot.reason.is_empty() {
                write!(f, "\n  last failure: {}", slot.reason)?;
            }
            for r in &slot.rejected {
                write!(f, "\n  {:>4} rejected {}", r.nodes, r.reason)?;
                if !r.detail.is_empty() {
                    write!(f, " ({})", r.detail)?;
                }
            }
            if !slot.fix.is_empty() {
                write!(f, "\n  fix: {}", slot.fix)?;
            }
        }
        if self.more > 0 {
            write!(f, "\n… and {} more slots", self.more)?;
        }
        if !self.past.is_empty() {
            write!(f, "\n  last failure of this generation: {}", self.past)?;
        }
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        Ok(())
    }
}

impl Sched {
    /// Why an app is not as wanted, as seen from this node.
    #[must_use]
    pub fn why(&self, namespace: &str, app: &str) -> Why {
        let key = AppKey::new(namespace, app);
        let mut why = Why { namespace: namespace.into(), app: app.into(), ..Why::default() };
        let Some(app) = self.apps.get(&key).filter(|a| a.generation > 0) else { return why };
        let counts = counts(&self.view, &key, app);
        why.known = true;
        why.stopped = app.stopped;
        why.generation = app.generation;
        why.desired = counts.desired;
        why.ready = counts.ready;
        why.coordinator = app.winner.as_ref().map(|(_, w)| w.clone()).unwrap_or_default();
        why.held = self.held().unwrap_or_else(|| Sched::trouble(app)).to_owned();
        // What is not ready has a slot of its own below.
        let tells = |r: &ClaimRecord| r.holds() && (app.stopped || r.ready) && !r.said().is_empty();
        let claims = self.view.claims_of(&key).map(|(_, claim)| &claim.record);
        let line = |r: &ClaimRecord| {
            let (pod, state, times) = (r.pod_name(), r.state.as_str(), r.restarts);
            let again = if times > 0 { format!(", {times} restarts") } else { String::new() };
            format!("{pod} {state} on {}{again}: {}", r.node, r.said())
        };
        why.notes = claims.filter(|r| tells(r)).take(SLOTS_MAX).map(line).collect();
        let Some(spec) = app.wanted() else { return why };
        let missing = if spec.kind == Kind::Daemon {
            self.missing_daemons(&key, app, spec)
        } else {
            self.missing_slots(&key, app, spec)
        };
        why.more = missing.len().saturating_sub(SLOTS_MAX) as u32;
        why.slots = missing.into_iter().take(SLOTS_MAX).collect();
        let failure = app.rollout.as_ref().map(|r| r.last_failure.as_str()).unwrap_or_default();
        if !why.slots.iter().any(|slot| slot.reason == failure) {
            failure.clone_into(&mut why.past);
        }
        why
    }

    fn missing_slots(&self, key: &AppKey, app: &App, spec: &Spec) -> Vec<SlotWhy> {
        let mut best: BTreeMap<u32, &ClaimView> = BTreeMap::new();
        let order = |c: &ClaimView| {
            let r = &c.record;
            (r.holds(), r.template == app.template, r.ready, r.created_ms)
        };
        for (_, claim) in self.view.claims_of(key) {
            if !self.view.is_live(&claim.record) {
                continue;
            }
            let kept = best.entry(claim.record.slot).or_insert(claim);
            if order(claim) > order(kept) {
                *kept = claim;
            }
        }
        let tally = Tally::new(&self.view, key, spec, &|_| false);
        let mut pending: Option<SlotWhy> = None;
        let last_failure = app.rollout.as_ref().map(|r| r.last_failure.clone()).unwrap_or_default();
        let mut list = Vec::new();
        for slot in 0..spec.replicas {
            match best.get(&slot).map(|c| &c.record) {
                Some(r) if r.ready && r.template == app.template => {}
                Some(r) if r.holds() => {
                    let old = r.template != app.template;
                    let state = if old {
                        "has an older generation".into()
                    } else {
                        r.state.as_str().into()
                    };
                    let reason = if old { r.reason.clone() } else { r.said() };
                    let node = r.node.clone();
                    list.push(SlotWhy { slot, state, node, reason, ..SlotWhy::default() });
                }
                failed => {
                    // All empty slots of an app have the same answer.
                    let answer =
                        pending.get_or_insert_with(|| self.pending(key, spec, slot, &tally));
                    let reason = failed
                        .map_or(last_failure.clone(), |r| format!("{}: {}", r.node, r.reason));
                    list.push(SlotWhy { slot, reason, ..answer.clone() });
                }
            }
        }
        list
    }

    fn pending(&self, key: &AppKey, spec: &Spec, slot: u32, tally: &Tally) -> SlotWhy {
        let avoid = |_: &str| false;
        let question = Question { view: &self.view, key, spec, slot, tally, avoid: &avoid };
        let (feasible, rejected) = question.filter();
        let mut list: Vec<Rejected> = rejected
            .iter()
            .map(|(reject, nodes)| Rejected {
                reason: reject_word(reject, spec),
                nodes: nodes.len() as u32,
                detail: self.detail(reject, nodes, spec, tally),
            })
            .collect();
        list.sort_by_key(|r| std::cmp::Reverse(r.nodes));
        let fix = if feasible.is_empty() { self.fix(&question, &rejected) } else { String::new() };
        SlotWhy {
            slot,
            state: "pending".into(),
            nodes: self.roster() as u32,
            feasible: feasible.len() as u32,
            rejected: list,
            fix,
            ..SlotWhy::default()
        }
    }

    /// The need and the nearest miss among the nodes rejected for one reason.
    fn detail(&self, reject: &Reject, nodes: &[&str], spec: &Spec, tally: &Tally) -> String {
        let free = |name: &&&str| self.view.nodes.get(**name).map(|n| n.free()).unwrap_or_default();
        match reject {
            Reject::Cpu => {
                let Some(best) = nodes.iter().max_by_key(|n| free(n).cpu_milli) else {
                    return String::new();
                };
                let have = show_cpu(free(&best).cpu_milli);
                format!("need {}; best {best}, {have}", show_cpu(spec.cpu_milli()))
            }
            Reject::Memory => {
                let Some(best) = nodes.iter().max_by_key(|n| free(n).memory_bytes) else {
                    return String::new();
                };
                let have = show_size(free(&best).memory_bytes);
                format!("need {}; best {best}, {have}", show_size(spec.memory_bytes()))
            }
            Reject::Skew(level) => {
                let Some(spread) = spec.place.spread.get(*level) else { return String::new() };
                let domain = |name: &&str| {
                    let domain = self.view.nodes.get(*name).map_or("", |n| n.label(&spread.by));
                    (tally.domain(*level, domain), domain.to_owned())
                };
                let Some((count, domain)) = nodes.iter().map(domain).min() else {
                    return String::new();
                };
                format!("max_skew {}; emptiest of them {domain} has {count}", spread.max_skew)
            }
            Reject::Dead | Reject::Suspect | Reject::Draining | Reject::Cordoned
                if nodes.len() <= 3 =>
            {
                nodes.join(", ")
            }
            _ => String::new(),
        }
    }

    /// The one change that would place it on the most nodes.
    fn fix(&self, question: &Question<'_>, rejected: &Rejections<'_>) -> String {
        let spec = question.spec;
        let mut best = (0, String::new());
        let mut advice = String::new();
        let mut attempt = |changed: &Spec, text: String| {
            let tally = Tally::new(question.view, question.key, changed, &|_| false);
            let nodes = Question { spec: changed, tally: &tally, ..*question }.filter().0.len();
            if nodes > best.0 {
                best = (nodes, text);
            }
        };
        for reject in rejected.keys() {
            let mut changed = spec.clone();
            match reject {
                Reject::Require(at) => {
                    let expr = changed.place.require.remove(*at);
                    attempt(&changed, format!("without `require = \"{expr}\"`"));
                }
                Reject::Lacks(at) => {
                    let demand = spec.demands().into_iter().nth(*at);
                    advice = demand.map_or_else(String::new, |d| d.fix());
                }
                Reject::Unique => {
                    changed.place.unique_host = false;
                    attempt(&changed, "without `unique = \"host\"`".into());
                }
                Reject::Skew(at) => {
                    changed.place.spread[*at].max_skew += 1;
                    let (by, skew) =
                        (&spec.place.spread[*at].by, changed.place.spread[*at].max_skew);
                    attempt(&changed, format!("`max_skew = {skew}` for {by}"));
                }
                Reject::Memory => {
                    let most = rejected[reject].iter().filter_map(|n| self.view.nodes.get(*n));
                    let most = most.map(|n| n.free().memory_bytes).max().unwrap_or(0);
                    let others: u64 = spec.containers.iter().skip(1).map(|c| c.memory_bytes).sum();
                    let first = most.saturating_sub(others);
                    if first > 0
                        && let Some(c) = changed.containers.first_mut()
                    {
                        c.memory_bytes = first;
                        let text = format!("`memory = \"{}\"` for {}", show_size(first), c.name);
                        attempt(&changed, text);
                    }
                }
                Reject::Cpu => {
                    let most = rejected[reject].iter().filter_map(|n| self.view.nodes.get(*n));
                    let most = most.map(|n| n.free().cpu_milli).max().unwrap_or(0);
                    let others: u64 = spec.containers.iter().skip(1).map(|c| c.cpu_milli).sum();
                    let first = most.saturating_sub(others);
                    if first > 0
                        && let Some(c) = changed.containers.first_mut()
                    {
                        c.cpu_milli = first;
                        let text = format!("`cpu = {}` for {}", show_cpu(first), c.name);
                        attempt(&changed, text);
                    }
                }
                _ => {}
            }
        }
        match best {
            (0, _) if rejected.contains_key(&Reject::Draining) => {
                "end a drain, or add nodes".into()
            }
            (0, _) if rejected.contains_key(&Reject::Cordoned) => {
                "end a cordon by `quelea uncordon NODE`, or add nodes".into()
            }
            (0, _) => advice,
            (1, text) => format!("{text} → 1 node"),
            (n, text) => format!("{text} → {n} nodes"),
        }
    }

    fn missing_daemons(&self, key: &AppKey, app: &App, spec: &Spec) -> Vec<SlotWhy> {
        let mut list = Vec::new();
        for (name, node) in &self.view.nodes {
            let labels = node.record.as_ref().map(|r| &r.labels);
            let fits = labels.is_some_and(|l| spec.place.require.iter().all(|e| e.holds(l)));
            if !node.live() || !fits {
                continue;
            }
            let claim = self.view.claims_of(key).find(|(_, c)| c.record.node == *name);
            let (state, reason) = match claim.map(|(_, c)| &c.record) {
                Some(r) if r.ready && r.template == app.template => continue,
                Some(r) if r.state == ClaimState::Failed => ("failed".to_owned(), r.reason.clone()),
                Some(r) => (r.state.as_str().to_owned(), r.reason.clone()),
                None if node.draining() => ("pending".to_owned(), "the node drains".to_owned()),
                None => ("pending".to_owned(), self.daemon_miss(node, spec)),
            };
            list.push(SlotWhy { state, node: name.clone(), reason, ..SlotWhy::default() });
        }
        list
    }

    fn daemon_miss(&self, node: &crate::view::Node, spec: &Spec) -> String {
        let free = node.free();
        let features = node.record.as_ref().map(|r| &r.features);
        if let Some((_, demand)) = features.and_then(|f| spec.lacking(f)) {
            return format!("it lacks {demand}: {}", demand.fix());
        }
        if free.cpu_milli < spec.cpu_milli() {
            format!("need cpu {}; it has {}", show_cpu(spec.cpu_milli()), show_cpu(free.cpu_milli))
        } else if free.memory_bytes < spec.memory_bytes() {
            let (need, have) = (show_size(spec.memory_bytes()), show_size(free.memory_bytes));
            format!("need memory {need}; it has {have}")
        } else {
            String::new()
        }
    }
}
