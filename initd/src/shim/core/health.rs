//! A container's checks: when each is asked, what its answers in a row mean, and what follows for readiness.

use super::{CHECKS, Output, State, Supervisor, Which, us};
use crate::pod::{Kind, Probe};

/// Until a container is ready for the first time it is asked more often than the spec says, from this on doubling.
const EAGER_US: u64 = 10_000;

/// One check of a container.
#[derive(Debug, Clone)]
pub(super) struct Health {
    probe: Probe,
    good: bool,
    /// Results in a row that say the other thing.
    streak: u32,
    /// When the next begins, or (while one runs) when it has taken too long.
    pub(super) at_us: u64,
    pub(super) running: bool,
    /// Current eager interval; zero once the container was ready.
    eager_us: u64,
}

impl Health {
    pub(super) fn new(probe: &Probe, which: Which, now_us: u64) -> Self {
        let eager_us = if which == Which::Live { 0 } else { EAGER_US };
        let wait = if which == Which::Live { us(probe.every_ms) } else { 0 };
        let probe = probe.clone();
        Self {
            probe,
            good: which == Which::Live,
            streak: 0,
            at_us: now_us + wait,
            running: false,
            eager_us,
        }
    }

    /// Takes a result in; true when the verdict changed.
    fn result(&mut self, ok: bool, now_us: u64, in_grace: bool) -> bool {
        self.running = false;
        let every = us(self.probe.every_ms);
        let wait = if self.eager_us > 0 { self.eager_us.min(every) } else { every };
        self.eager_us = (self.eager_us * 2).min(every);
        self.at_us = now_us + wait;
        if ok == self.good || (!ok && in_grace) {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let need = if ok { self.probe.successes } else { self.probe.failures };
        if self.streak < need {
            return false;
        }
        self.streak = 0;
        self.good = ok;
        if ok {
            self.eager_us = 0;
            self.at_us = now_us + every;
        }
        true
    }
}

impl Supervisor {
    /// It runs, and its start probe (if it has one) has passed.
    pub(super) fn come_up(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        let Some(c) = self.containers.get_mut(i) else { return };
        let health = |p: &Option<Probe>, w| p.as_ref().map(|p| Health::new(p, w, now_us));
        c.checks = [health(&c.ready_probe, Which::Ready), health(&c.live_probe, Which::Live), None];
        if c.ready_probe.is_none() {
            self.set_ready(i, true, out);
        }
    }

    pub(super) fn checked(
        &mut self,
        i: usize,
        which: Which,
        ok: bool,
        now_us: u64,
        out: &mut Vec<Output>,
    ) {
        let Some(c) = self.containers.get_mut(i) else { return };
        let State::Running { since_us } = c.state else { return };
        let Some(h) = c.checks.get_mut(which as usize).and_then(Option::as_mut) else { return };
        if !h.running {
            return;
        }
        // A start has a span of time, however often it is asked in it.
        let span_us = us(h.probe.every_ms).saturating_mul(u64::from(h.probe.failures));
        let too_late = which == Which::Start && !ok && now_us >= since_us + span_us;
        let in_grace = now_us < since_us + us(h.probe.start_grace_ms);
        if !h.result(ok, now_us, in_grace) && !too_late {
            return;
        }
        match which {
            Which::Start if ok => self.come_up(i, now_us, out),
            Which::Start => self.give_up(i, now_us, out),
            Which::Ready => self.set_ready(i, ok, out),
            Which::Live if !ok => self.give_up(i, now_us, out),
            Which::Live => {}
        }
    }

    /// Stops a container that is not what it should be; its end counts as a failure.
    fn give_up(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        if let Some(c) = self.containers.get_mut(i) {
            c.unhealthy = true;
        }
        out.push(Output::Unhealthy(i));
        self.stop_one(i, now_us, out);
    }

    pub(super) fn set_ready(&mut self, i: usize, ready: bool, out: &mut Vec<Output>) {
        let Some(c) = self.containers.get_mut(i) else { return };
        if c.ready != ready {
            c.ready = ready;
            let pod_ready = self.compute_pod_ready();
            self.pod_ready = pod_ready;
            out.push(Output::Ready { container: i, ready, pod_ready });
        }
    }

    pub(super) fn compute_pod_ready(&self) -> bool {
        !self.stopping
            && self
                .containers
                .iter()
                .filter(|c| c.kind == Kind::Main)
                .all(|c| c.ready && matches!(c.state, State::Running { .. }))
    }

    /// A stop takes readiness away at once, so that traffic goes elsewhere while the containers finish.
    pub(super) fn tell_pod_ready(&mut self, out: &mut Vec<Output>) {
        let now = self.compute_pod_ready();
        if self.pod_ready != now {
            self.pod_ready = now;
            if let Some(i) = self.containers.iter().position(|c| c.kind == Kind::Main) {
                let ready = self.containers.get(i).is_some_and(|c| c.ready);
                out.push(Output::Ready { container: i, ready, pod_ready: now });
            }
        }
    }

    pub(super) fn checks_due(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        for which in CHECKS {
            let Some(c) = self.containers.get_mut(i) else { return };
            let Some(h) = c.checks.get_mut(which as usize).and_then(Option::as_mut) else {
                continue;
            };
            if h.at_us > now_us {
                continue;
            }
            if h.running {
                out.push(Output::CancelCheck(i, which));
                self.checked(i, which, false, now_us, out);
            } else {
                h.running = true;
                h.at_us = now_us + us(h.probe.timeout_ms);
                out.push(Output::Check(i, which));
            }
        }
    }
}
