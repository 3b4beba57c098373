//! What the coordinator writes about an app, and how any node counts it.

use std::collections::BTreeMap;

use crate::api::{Event, Output};
use crate::app::{App, Lead};
use crate::coordinator::{Slot, gather};
use crate::place::{Question, Reject, Tally};
use crate::record::{ClaimState, RolloutRecord, rollout_key};
use crate::sched::{AppStatus, Sched};
use crate::spec::{Kind, Spec};
use crate::turn::Turn;
use crate::view::{AppKey, View};

/// Changes of the counts alone are written at most this often, microseconds.
const COUNTS_US: u64 = 1_000_000;

/// Slots wanted, ready on the newest template, and claims that hold resources on live nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) desired: u32,
    pub(crate) ready: u32,
    pub(crate) running: u32,
}

pub(crate) fn counts(view: &View, key: &AppKey, app: &App) -> Counts {
    let mut slots: BTreeMap<(u32, &str), bool> = BTreeMap::new();
    let mut counts = Counts { desired: app.replicas(), ..Counts::default() };
    let daemon = app.is_daemon();
    if let Some(spec) = app.wanted().filter(|s| s.kind == Kind::Daemon) {
        counts.desired = eligible_for_daemon(view, spec) as u32;
    }
    for (_, claim) in view.claims_of(key) {
        let r = &claim.record;
        if !r.holds() || !view.is_live(r) {
            continue;
        }
        counts.running += 1;
        let slot = (r.slot, if daemon { r.node.as_str() } else { "" });
        let good = r.ready && r.template == app.template && r.state != ClaimState::Stopping;
        if daemon || r.slot < counts.desired {
            *slots.entry(slot).or_default() |= good;
        }
    }
    counts.ready = slots.values().filter(|ready| **ready).count() as u32;
    counts
}

fn eligible_for_daemon(view: &View, spec: &Spec) -> usize {
    let fits = |n: &&crate::view::Node| {
        let labels = n.record.as_ref().map(|r| &r.labels);
        n.live() && labels.is_some_and(|l| spec.place.require.iter().all(|e| e.holds(l)))
    };
    view.nodes.values().filter(fits).count()
}

/// A rejection's word for people.
pub(crate) fn reject_word(reject: &Reject, spec: &Spec) -> String {
    match reject {
        Reject::Dead => "dead".into(),
        Reject::Suspect => "suspect".into(),
        Reject::NoRecord => "no node record yet".into(),
        Reject::Draining => "draining".into(),
        Reject::Cordoned => "cordoned".into(),
        Reject::Require(at) => {
            let expr = spec.place.require.get(*at).map(ToString::to_string).unwrap_or_default();
            format!("require {expr}")
        }
        Reject::Lacks(at) => match spec.demands().get(*at) {
            Some(demand) => format!("lacks {demand}"),
            None => "lacks something".into(),
        },
        Reject::Unique => "unique host".into(),
        Reject::Cpu => "cpu".into(),
        Reject::Memory => "memory".into(),
        Reject::Pods => "pods".into(),
        Reject::Skew(at) => {
            format!("{} skew", spec.place.spread.get(*at).map_or("", |s| s.by.as_str()))
        }
        Reject::Avoided => "refused a moment ago".into(),
    }
}

impl Turn<'_> {
    /// Writes the rollout record when it says something new. `slots` if they were gathered just now.
    pub(crate) fn write_rollout(
        &mut self,
        key: &AppKey,
        app: &mut App,
        lead: &mut Lead,
        held: Option<&str>,
        slots: Option<BTreeMap<u32, Slot>>,
    ) {
        let slots = slots.unwrap_or_else(|| gather(self, key, app, lead));
        let record = self.rollout(key, app, lead, held, &slots);
        if lead.written.as_ref() == Some(&record) {
            return;
        }
        let counts_only = lead.written.as_ref().is_some_and(|w| {
            let (ready, pending, rejected) =
                (record.ready, record.pending, record.rejected.clone());
            RolloutRecord { ready, pending, rejected, ..w.clone() } == record
        });
        if counts_only && self.now_us < lead.written_us + COUNTS_US {
            lead.wake = lead.wake.min(lead.written_us + COUNTS_US);
            return;
        }
        if lead.written.as_ref().is_none_or(|w| w.phase != record.phase) {
            let (app, phase) = (key.to_string(), record.phase.clone());
            self.event(Event::Phase { app, phase });
        }
        let map_key = rollout_key(&key.namespace, &key.app);
        self.out.push(Output::Put { key: map_key, body: record.encode() });
        lead.written = Some(record.clone());
        lead.written_us = self.now_us;
        app.rollout = Some(record);
    }

    fn rollout(
        &self,
        key: &AppKey,
        app: &App,
        lead: &Lead,
        held: Option<&str>,
        slots: &BTreeMap<u32, Slot>,
    ) -> RolloutRecord {
        let counts = counts(self.view, key, app);
        let empty = |s: &&Slot| s.live.is_empty();
        let pending = slots.range(..counts.desired).filter(|(_, s)| empty(s)).count() as u32;
        let pending =
            if app.is_daemon() { counts.desired.saturating_sub(counts.ready) } else { pending };
        let old = |s: &Slot| s.live.iter().any(|h| !h.current);
        let phase = if app.wanted().is_none() {
            if counts.running > 0 { "stopping" } else { "stopped" }
        } else if pending > 0 && held.is_some() {
            "held"
        } else if slots.values().any(old) {
            "rolling"
        } else if pending > 0 {
            "placing"
        } else if counts.ready < counts.desired {
            "starting"
        } else {
            "steady"
        };
        let mut record = RolloutRecord {
            generation: app.generation,
            term: lead.term,
            coordinator: self.me().to_owned(),
            phase: phase.to_owned(),
            held: if phase == "held" { held.unwrap_or_default().to_owned() } else { String::new() },
            desired: counts.desired,
            ready: counts.ready,
            pending,
            last_failure: lead.last_failure.clone(),
            ..RolloutRecord::default()
        };
        let unoffered = |n: &u32| slots.get(n).is_some_and(|s| s.live.is_empty() && !s.offered);
        if phase == "placing"
            && let Some(spec) = app.wanted()
            && let Some(slot) = slots.keys().copied().find(unoffered)
        {
            let tally = Tally::new(self.view, key, spec, &|id| lead.stops.contains_key(id));
            let avoid = |node: &str| lead.avoid.contains_key(node);
            let question =
                Question { view: self.view, key, spec, slot, tally: &tally, avoid: &avoid };
            let (feasible, rejected) = question.filter();
            if feasible.is_empty() {
                for (reject, nodes) in rejected {
                    record.rejected.insert(reject_word(&reject, spec), nodes.len() as u32);
                }
            }
        }
        record
    }
}

impl Sched {
    /// All apps with a spec seen, in order of `(namespace, app)`. Deleted ones stay while pods of them run.
    pub fn apps(&self) -> impl Iterator<Item = AppStatus> {
        self.apps.iter().filter(|(_, a)| a.generation > 0).filter_map(|(key, app)| {
            let counts = counts(&self.view, key, app);
            let there = app.spec.is_some() || counts.running > 0;
            there.then(|| AppStatus {
                namespace: key.namespace.clone(),
                app: key.app.clone(),
                generation: app.generation,
                spec: app.spec.clone(),
                stopped: app.stopped,
                desired: counts.desired,
                ready: counts.ready,
                running: counts.running,
                coordinator: app.winner.as_ref().map(|(_, w)| w.clone()).unwrap_or_default(),
                rollout: app.rollout.clone(),
            })
        })
    }

    /// All claims known, `(claim id, record)`, in order of id: those of dead nodes too.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &crate::ClaimRecord)> {
        self.view.all_claims()
    }

    /// What the claims of a node hold: `(cpu_milli, memory_bytes, pods)`.
    #[must_use]
    pub fn used(&self, node: &str) -> (u64, u64, u32) {
        let used = self.view.nodes.get(node).map(|n| n.used).unwrap_or_default();
        (used.cpu_milli, used.memory_bytes, used.pods)
    }
}
