//! The node's half: admits or refuses what is offered against what it really has, and is the only writer
//! of `a/<me>/*` and `n/<me>`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::api::{Observed, Output};
use crate::app::App;
use crate::msg::{Free, Offer};
use crate::record::{ClaimRecord, ClaimState, NodeRecord, claim_key, node_key};
use crate::spec::Spec;
use crate::turn::{Turn, backoff_ms};
use crate::view::{Amounts, AppKey};

mod offers;
mod pods;

/// A Stop is repeated to the agent this long after its grace, milliseconds.
const STOP_AGAIN_MS: u64 = 10_000;
/// Grace when the spec is not known (an adopted pod of a deleted app), milliseconds.
const GRACE_MS: u64 = 10_000;

/// Where a claim of this node is, beyond its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Started; the agent works on it.
    Going,
    /// Failed here; is started again then.
    RetryAt(u64),
    /// Failed for good; nothing of it runs.
    Failed,
    /// Told to stop; told again then.
    Stopping(u64),
}

#[derive(Debug)]
pub(crate) struct Mine {
    pub(crate) record: ClaimRecord,
    spec: Option<Arc<Spec>>,
    phase: Phase,
    tries: u32,
    /// What its probes say; its record says less while this node is fenced.
    ready: bool,
}

impl Mine {
    fn grace_ms(&self) -> u64 {
        self.spec.as_ref().map_or(GRACE_MS, |s| s.grace_ms())
    }
}

#[derive(Debug)]
struct Parked {
    from: String,
    offer: Offer,
    until: u64,
}

/// Admission for this node.
#[derive(Debug, Default)]
pub(crate) struct Admit {
    pub(crate) recovered: bool,
    drain: bool,
    record: Option<NodeRecord>,
    pub(crate) mine: BTreeMap<String, Mine>,
    answered: VecDeque<(u64, String)>,
    parked: Vec<Parked>,
    /// Failures of a daemon here, and when it may start again.
    pub(crate) daemons: BTreeMap<AppKey, (u32, u64)>,
    /// Claims changed in this step, whose coordinators are to be told.
    pub(crate) changed: Vec<String>,
    /// Claims gone in this step.
    pub(crate) gone: Vec<(String, ClaimRecord)>,
    /// This node was away: when to look whether it has heard the flock again.
    fence_at: Option<u64>,
}

impl Admit {
    /// What is left here.
    pub(crate) fn free(&self) -> Free {
        let Some(r) = &self.record else { return Free::default() };
        let all = Amounts { cpu_milli: r.cpu_milli, memory_bytes: r.memory_bytes, pods: r.pods };
        let holding = self.mine.values().filter(|m| m.record.holds());
        let used = holding.fold(Amounts::default(), |sum, m| sum.plus(Amounts::of(&m.record)));
        let left = all.minus(used);
        Free { cpu_milli: left.cpu_milli, memory_bytes: left.memory_bytes, pods: left.pods }
    }

    pub(crate) fn set_record(&mut self, turn: &mut Turn<'_>, record: NodeRecord) {
        self.record = Some(record);
        self.write_node(turn);
    }

    pub(crate) fn set_drain(&mut self, turn: &mut Turn<'_>, drain: bool) {
        if self.drain != drain {
            self.drain = drain;
            self.write_node(turn);
        }
    }

    fn write_node(&mut self, turn: &mut Turn<'_>) {
        let Some(record) = &mut self.record else { return };
        record.drain = self.drain;
        let me = turn.me().to_owned();
        let changed = turn.view.nodes.get(&me).and_then(|n| n.record.as_ref()) != Some(record);
        if changed {
            turn.view.node_record(turn.now_us, &me, Some(record.clone()));
            turn.out.push(Output::Put { key: node_key(&me), body: record.encode() });
        }
    }

    /// Another's version of this node's record arrived (its own, from before it lost its disk): ours is
    /// written again.
    pub(crate) fn node_record_seen(&mut self, turn: &mut Turn<'_>, body: Option<&[u8]>) {
        if let Some(record) = &self.record
            && body != Some(record.encode().as_slice())
        {
            turn.out.push(Output::Put { key: node_key(turn.me()), body: record.encode() });
        }
    }

    /// A record of a claim of this node arrived. One that is not here is deleted; one that someone deleted
    /// is written again.
    pub(crate) fn claim_record_seen(&mut self, turn: &mut Turn<'_>, id: &str, there: bool) {
        if !self.recovered {
            return;
        }
        let here = self.mine.contains_key(id);
        if there && !here {
            turn.view.drop_claim(id, turn.now_us, true);
            turn.out.push(Output::Delete { key: claim_key(turn.me(), id) });
        } else if !there && here {
            self.publish(turn, id);
        }
    }

    /// A pod that outlived the agent.
    pub(crate) fn adopt(
        &mut self,
        turn: &mut Turn<'_>,
        id: &str,
        mut record: ClaimRecord,
        observed: Observed,
    ) {
        let in_map = turn.view.claim(id).map(|c| c.record.seq);
        record.seq = record.seq.max(in_map.unwrap_or(0));
        record.node = turn.me().to_owned();
        let phase = if record.state == ClaimState::Stopping {
            Phase::Stopping(turn.now_us)
        } else {
            Phase::Going
        };
        self.mine.insert(id.to_owned(), Mine { record, spec: None, phase, tries: 0, ready: false });
        self.publish(turn, id);
        self.observed(turn, id, observed);
    }

    /// Claims of this node that were not adopted are gone.
    pub(crate) fn recover(&mut self, turn: &mut Turn<'_>) {
        self.recovered = true;
        let me = turn.me().to_owned();
        let lost: Vec<String> = turn.view.claims_on(&me).map(str::to_owned).collect();
        for id in lost.into_iter().filter(|id| !self.mine.contains_key(id)) {
            if let Some(record) = turn.view.drop_claim(&id, turn.now_us, true) {
                turn.out.push(Output::Delete { key: claim_key(&me, &id) });
                self.gone.push((id, record));
            }
        }
    }

    /// A coordinator (or the spec itself) wants a claim stopped.
    pub(crate) fn stop(&mut self, turn: &mut Turn<'_>, id: &str) {
        let Some(mine) = self.mine.get_mut(id) else { return };
        let grace_ms = mine.grace_ms();
        match mine.phase {
            Phase::Stopping(_) => return,
            // Nothing of it runs.
            Phase::Failed | Phase::RetryAt(_) => return self.remove(turn, id),
            Phase::Going => {}
        }
        mine.phase = Phase::Stopping(turn.now_us + (grace_ms + STOP_AGAIN_MS) * 1000);
        mine.record.state = ClaimState::Stopping;
        mine.record.ready = false;
        self.publish(turn, id);
        turn.out.push(Output::Stop { claim: id.to_owned(), grace_ms });
    }

    /// The newest spec itself says what no coordinator is needed for: stopped apps and surplus slots.
    pub(crate) fn obey(&mut self, turn: &mut Turn<'_>, key: &AppKey, app: &App) {
        let surplus = |r: &ClaimRecord| match app.wanted() {
            None => true,
            Some(spec) => r.daemon != app.is_daemon() || (!r.daemon && r.slot >= spec.replicas),
        };
        let ids: Vec<String> = self
            .mine
            .iter()
            .filter(|(_, m)| key.owns(&m.record) && surplus(&m.record))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.stop(turn, &id);
        }
        for mine in self.mine.values_mut() {
            let same = mine.record.template == app.template && key.owns(&mine.record);
            if same && mine.spec.is_none() {
                mine.spec.clone_from(&app.spec);
            }
        }
    }

    fn remove(&mut self, turn: &mut Turn<'_>, id: &str) {
        let Some(mine) = self.mine.remove(id) else { return };
        turn.view.drop_claim(id, turn.now_us, true);
        turn.out.push(Output::Delete { key: claim_key(turn.me(), id) });
        self.gone.push((id.to_owned(), mine.record));
    }

    fn publish(&mut self, turn: &mut Turn<'_>, id: &str) {
        let Some(mine) = self.mine.get_mut(id) else { return };
        mine.record.seq += 1;
        let body = mine.record.encode();
        turn.view.put_claim(id, mine.record.clone(), Some(turn.now_us));
        turn.out.push(Output::Put { key: claim_key(turn.me(), id), body });
        self.changed.push(id.to_owned());
    }

    /// Local retries and repeated stops that are due.
    pub(crate) fn timers(&mut self, turn: &mut Turn<'_>) {
        self.unpark(turn, None);
        let now_us = turn.now_us;
        let due: Vec<(String, Phase)> = self
            .mine
            .iter()
            .filter(|(_, m)| matches!(m.phase, Phase::RetryAt(at) | Phase::Stopping(at) if at <= now_us))
            .map(|(id, m)| (id.clone(), m.phase))
            .collect();
        for (id, phase) in due {
            let Some(mine) = self.mine.get_mut(&id) else { continue };
            if matches!(phase, Phase::RetryAt(_)) {
                mine.phase = Phase::Going;
                self.start(turn, &id);
            } else {
                let grace_ms = mine.grace_ms();
                mine.phase = Phase::Stopping(now_us + (grace_ms + STOP_AGAIN_MS) * 1000);
                turn.out.push(Output::Stop { claim: id, grace_ms });
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let phases = self.mine.values().filter_map(|m| match m.phase {
            Phase::RetryAt(at) | Phase::Stopping(at) => Some(at),
            _ => None,
        });
        let parked = self.parked.iter().map(|p| p.until);
        let daemons = self.daemons.values().map(|(_, at)| *at).filter(|at| *at != 0);
        phases.chain(parked).chain(daemons).chain(self.fence_at).min()
    }

    /// Whether this node's pod of a daemon app is of another template: then it matters whose turn it is.
    pub(crate) fn outdated(&self, key: &AppKey, app: &App) -> bool {
        let mut mine = self.mine.values().filter(|m| key.owns(&m.record));
        mine.next().is_some_and(|m| m.record.template != app.template)
    }

    /// Starts, replaces or stops this node's pod of a daemon app. `turn_is_mine`: the rollout has reached
    /// this node.
    pub(crate) fn daemon(
        &mut self,
        turn: &mut Turn<'_>,
        key: &AppKey,
        app: &App,
        turn_is_mine: bool,
    ) {
        let Some(spec) = app.wanted().filter(|_| self.recovered).cloned() else { return };
        let Some(node) = &self.record else { return };
        let fits = spec.place.require.iter().all(|e| e.holds(&node.labels))
            && spec.lacking(&node.features).is_none();
        let have = self.mine.iter().find(|(_, m)| key.owns(&m.record));
        let have = have.map(|(id, m)| (id.clone(), m.phase, m.record.template));
        let memo = self.daemons.get(key).copied().unwrap_or((0, 0));
        match have {
            Some((id, ..)) if !fits => self.stop(turn, &id),
            Some((_, Phase::Failed, _)) if memo.1 == 0 => {
                let wait =
                    backoff_ms(turn.config.backoff_ms, turn.config.backoff_max_ms, memo.0 + 1);
                let at = turn.now_us + turn.jitter_us(wait);
                self.daemons.insert(key.clone(), (memo.0 + 1, at));
            }
            Some((id, Phase::Failed, _)) if memo.1 <= turn.now_us => {
                self.remove(turn, &id);
                self.daemons.insert(key.clone(), (memo.0, 0));
                if self.room(&spec).is_ok() {
                    self.admit(turn, &spec, app, 0, 0, 0);
                }
            }
            Some((id, Phase::Going | Phase::RetryAt(_), template))
                if template != app.template && turn_is_mine =>
            {
                self.daemons.remove(key);
                self.stop(turn, &id);
            }
            None if fits && !self.drain && self.room(&spec).is_ok() => {
                self.admit(turn, &spec, app, 0, 0, 0);
            }
            _ => {}
        }
    }
}
