//! What the agent sees of this node's pods, and what of it is shown.

use super::{Admit, Phase};
use crate::api::{Event, LOCAL_TRIES_MAX, Observed, Output};
use crate::msg::shorten;
use crate::record::{ClaimRecord, ClaimState};
use crate::turn::{Turn, backoff_ms};
use crate::view::AppKey;

/// First wait before a local retry, milliseconds.
const RETRY_MS: u64 = 500;
/// Bytes of a reason kept in a record.
const REASON_MAX: usize = 1_000;

impl Admit {
    /// What the agent sees.
    pub(crate) fn observed(&mut self, turn: &mut Turn<'_>, id: &str, observed: Observed) {
        let Some(mine) = self.mine.get_mut(id) else {
            if observed != Observed::Gone {
                turn.out.push(Output::Stop { claim: id.to_owned(), grace_ms: 0 });
            }
            return;
        };
        let observed = match observed {
            Observed::Noted { mut note } => {
                shorten(&mut note, REASON_MAX);
                if mine.record.note != note {
                    mine.record.note = note;
                    self.publish(turn, id);
                }
                return;
            }
            other => other,
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
            // Above.
            Observed::Noted { .. } => {}
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
        mine.record.note.clear();
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
