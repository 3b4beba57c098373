//! The node's half: admits or refuses what is offered against what it really has, and is the only writer
//! of `a/<me>/*` and `n/<me>`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::api::{Claim, Event, LOCAL_TRIES_MAX, Observed, Output};
use crate::app::App;
use crate::msg::{Free, Message, Offer, Refusal, brief, shorten};
use crate::record::{ClaimRecord, ClaimState, NodeRecord, claim_key, node_key};
use crate::spec::Spec;
use crate::turn::{Turn, backoff_ms};
use crate::view::{Amounts, AppKey};

/// Offers remembered as answered; a copy that arrives later than this many others is taken for new, and
/// its pod for a duplicate.
const ANSWERED_MAX: usize = 1024;
/// Offers waiting for their spec; beyond it they are refused at once.
const PARKED_MAX: usize = 64;
/// How long an offer waits for its spec, milliseconds.
const PARKED_MS: u64 = 800;
/// First wait before a local retry, milliseconds.
const RETRY_MS: u64 = 500;
/// A Stop is repeated to the agent this long after its grace, milliseconds.
const STOP_AGAIN_MS: u64 = 10_000;
/// Grace when the spec is not known (an adopted pod of a deleted app), milliseconds.
const GRACE_MS: u64 = 10_000;
/// Bytes of a reason kept in a record.
const REASON_MAX: usize = 1_000;

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

    fn room(&self, spec: &Spec) -> Result<(), Refusal> {
        let free = self.free();
        if free.cpu_milli < spec.cpu_milli() {
            return Err(Refusal::Cpu);
        }
        if free.memory_bytes < spec.memory_bytes() {
            return Err(Refusal::Memory);
        }
        if free.pods < 1 { Err(Refusal::Pods) } else { Ok(()) }
    }

    fn admit(
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

    fn start(&mut self, turn: &mut Turn<'_>, id: &str) {
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
            .filter(|(_, m)| AppKey::of(&m.record) == *key && surplus(&m.record))
            .map(|(id, _)| id.clone())
            .collect();
        for id in ids {
            self.stop(turn, &id);
        }
        for mine in self.mine.values_mut() {
            let same = mine.record.template == app.template && AppKey::of(&mine.record) == *key;
            if same && mine.spec.is_none() {
                mine.spec.clone_from(&app.spec);
            }
        }
    }

    /// What the agent sees.
    pub(crate) fn observed(&mut self, turn: &mut Turn<'_>, id: &str, observed: Observed) {
        let Some(mine) = self.mine.get_mut(id) else {
            if observed != Observed::Gone {
                turn.out.push(Output::Stop { claim: id.to_owned(), grace_ms: 0 });
            }
            return;
        };
        if matches!(mine.phase, Phase::Stopping(_)) {
            if matches!(observed, Observed::Gone | Observed::Failed { .. }) {
                self.remove(turn, id);
            }
            return;
        }
        let before = mine.record.clone();
        mine.ready = matches!(observed, Observed::Running { ready: true, .. });
        let shown = mine.ready && self.fence_at.is_none();
        let r = &mut mine.record;
        match observed {
            Observed::Gone => return self.remove(turn, id),
            Observed::Failed { reason, retryable } => {
                return self.failed(turn, id, reason, retryable);
            }
            Observed::Pulling => (r.state, r.ready) = (ClaimState::Pulling, false),
            Observed::Starting { ip } => {
                (r.state, r.ready, r.ip) = (ClaimState::Starting, false, ip);
            }
            Observed::Running { ip, ready: _ } => {
                if r.state != ClaimState::Running {
                    r.started_ms = turn.wall_ms;
                }
                (r.state, r.ready, r.ip) = (ClaimState::Running, shown, ip);
            }
            Observed::Exited { code, signal, oom, restarts, reason } => {
                (r.state, r.ready, r.restarts) = (ClaimState::Exited, false, restarts);
                r.reason = exit_text(code, signal, oom, &reason);
            }
        }
        shorten(&mut r.ip, 64);
        shorten(&mut r.reason, REASON_MAX);
        mine.phase = Phase::Going;
        if mine.record != before {
            self.publish(turn, id);
        }
    }

    /// This node was away: nothing here counts as ready before it knows what was replaced.
    pub(crate) fn away(&mut self, turn: &mut Turn<'_>) {
        self.fence_at = Some(turn.now_us);
        let shown = self.mine.iter().filter(|(_, m)| m.record.ready).map(|(id, _)| id.clone());
        for id in shown.collect::<Vec<_>>() {
            if let Some(mine) = self.mine.get_mut(&id) {
                mine.record.ready = false;
            }
            self.publish(turn, &id);
        }
    }

    pub(crate) fn fence_due(&self, now_us: u64) -> bool {
        self.fence_at.is_some_and(|at| at <= now_us)
    }

    pub(crate) fn look_again(&mut self, at_us: u64) {
        self.fence_at = self.fence_at.map(|_| at_us);
    }

    /// The flock was heard again: what another node does by now is stopped, the rest is as it was.
    pub(crate) fn back(&mut self, turn: &mut Turn<'_>) {
        self.fence_at = None;
        let ids: Vec<String> = self.mine.keys().cloned().collect();
        for id in ids {
            let Some(mine) = self.mine.get(&id) else { continue };
            if mine.phase != Phase::Going {
                continue;
            }
            if replaced(turn, &mine.record) {
                let (app, slot) = (AppKey::of(&mine.record).to_string(), mine.record.slot);
                let node = turn.me().to_owned();
                turn.event(Event::Duplicate { app, slot, node });
                self.stop(turn, &id);
            } else if mine.ready
                && let Some(mine) = self.mine.get_mut(&id)
            {
                mine.record.ready = true;
                self.publish(turn, &id);
            }
        }
    }

    fn failed(&mut self, turn: &mut Turn<'_>, id: &str, mut reason: String, retryable: bool) {
        shorten(&mut reason, REASON_MAX);
        let Some(mine) = self.mine.get_mut(id) else { return };
        mine.tries += 1;
        mine.record.ready = false;
        mine.record.reason = reason.clone();
        let again = retryable && mine.tries < LOCAL_TRIES_MAX && mine.spec.is_some();
        if again {
            let wait = turn.jitter_us(backoff_ms(RETRY_MS, u64::MAX, mine.tries));
            mine.phase = Phase::RetryAt(turn.now_us + wait);
            mine.record.state = ClaimState::Starting;
        } else {
            mine.phase = Phase::Failed;
            mine.record.state = ClaimState::Failed;
            let pod = mine.record.pod_name();
            turn.event(Event::Failed { claim: id.to_owned(), pod, reason });
        }
        self.publish(turn, id);
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
        let have = self.mine.iter().find(|(_, m)| AppKey::of(&m.record) == *key);
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

/// Whether another live node serves the slot of this claim.
fn replaced(turn: &Turn<'_>, record: &ClaimRecord) -> bool {
    let serves = |r: &ClaimRecord| {
        r.slot == record.slot && r.node != record.node && r.ready && r.state == ClaimState::Running
    };
    let mut others = turn.view.claims_of(&AppKey::of(record));
    !record.daemon && others.any(|(_, c)| serves(&c.record) && turn.view.is_live(&c.record))
}

fn exit_text(code: Option<i32>, signal: Option<i32>, oom: bool, reason: &str) -> String {
    // Who says it in words has said all of it.
    if !reason.is_empty() {
        return reason.to_owned();
    }
    let mut text = match (code, signal) {
        (_, Some(signal)) => format!("killed by signal {signal}"),
        (Some(code), None) => format!("exited with code {code}"),
        (None, None) => "exited".to_owned(),
    };
    if oom {
        text.push_str(", out of memory");
    }
    text
}
