//! What shims say of their pods.

use std::collections::BTreeMap;

use initd::shim::{
    Condition, ContainerState, Event as ShimEvent, Exit, PodPhase, PodStatus, Remark,
};

use super::Node;
use super::pods::Local;
use super::sessions::{Attached, ExecNews};
use super::words::{deaf_words, exit_words, failure_words, not_started_code, step_words};
use crate::pods::{Failure, Input};

/// One container, as its shim told it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) state: &'static str,
    pub(super) restarts: u32,
    pub(super) reason: String,
    /// Bytes of its output that its log lacks, at the last snapshot.
    pub(super) log_dropped_bytes: u64,
    /// What its liveness probe saw when it gave it up; until its end is told.
    unhealthy: Option<String>,
    /// What was remarked of its end, until that is told.
    remark: String,
}

impl Node {
    pub(super) fn shim_said(&mut self, claim: &str) {
        let Some(local) = self.local.get_mut(claim) else { return };
        let Some(connection) = &mut local.shim else { return };
        let events = match connection.shim.recv() {
            Ok(events) => events,
            Err(error) => {
                self.event(format!("pod/{claim}"), format!("its shim is not understood: {error}"));
                vec![ShimEvent::Gone]
            }
        };
        for event in events {
            self.shim_event(claim, event);
        }
    }

    fn pod_name(&self, claim: &str) -> String {
        self.local.get(claim).map_or_else(|| claim.to_owned(), |l| l.kept.record.pod_name())
    }

    fn seen(&mut self, claim: &str, container: &str) -> Option<&mut Seen> {
        Some(self.local.get_mut(claim)?.seen.entry(container.to_owned()).or_default())
    }

    pub(super) fn is_main(&self, claim: &str, container: &str) -> bool {
        self.local.get(claim).is_some_and(|l| l.kept.is_main(container))
    }

    fn shim_event(&mut self, claim: &str, event: ShimEvent) {
        let about = format!("pod/{}", self.pod_name(claim));
        let claim = claim.to_owned();
        match event {
            ShimEvent::Status(status) => {
                self.status(claim.clone(), &status);
                self.looked_at(&claim);
            }
            ShimEvent::Started { container, restarts, .. } => {
                if let Some(seen) = self.seen(&claim, &container) {
                    (seen.state, seen.restarts) = ("running", restarts);
                }
                crate::fall::step("running");
                // The pod runs when its main containers do.
                if self.is_main(&claim, &container) {
                    let ready = self.local.get(&claim).is_some_and(|l| l.ready);
                    self.pods_step(Input::Running { claim, ready });
                }
            }
            ShimEvent::Ready { pod_ready, .. } => self.ready(claim, pod_ready),
            ShimEvent::Exited { container, exit, restart_in_ms } => {
                self.exited(claim, about, &container, exit, restart_in_ms);
            }
            ShimEvent::Failed { container, step, errno, text, retry_in_ms } => {
                let failed = failure_words(&container, step, errno, &text);
                self.not_started(claim, about, &container, failed, retry_in_ms);
            }
            ShimEvent::Unhealthy { container, text } => {
                self.event(about, format!("container {container} is given up: {text}"));
                if let Some(seen) = self.seen(&claim, &container) {
                    seen.unhealthy = Some(text);
                }
            }
            ShimEvent::Remark { container, remark } => {
                self.remarked(&claim, about, &container, remark);
            }
            // What the machine lacks for every pod is one of the node's conditions already.
            ShimEvent::Condition(Condition::NoLimit { .. } | Condition::NoCgroup { .. }) => {}
            ShimEvent::Condition(condition) => self.event(about, format!("{condition:?}")),
            ShimEvent::Terminal { exec, fd } => {
                self.exec_said(&claim, exec, ExecNews::Terminal(fd));
            }
            ShimEvent::ExecExited { exec, exit } => {
                self.exec_said(&claim, exec, ExecNews::Exited(exit));
            }
            ShimEvent::ExecFailed { exec, step, errno, text } => {
                let reason = step_words(step, errno, &text);
                let code = not_started_code(step, errno);
                self.exec_said(&claim, exec, ExecNews::Failed { reason, code });
            }
            ShimEvent::Attached { container, input, output, errors, terminal } => {
                let attached = Attached { input, output, errors, terminal };
                self.attached(&claim, &container, Ok(attached));
            }
            ShimEvent::AttachFailed { container, errno, text } => {
                let os = std::io::Error::from_raw_os_error(errno);
                self.attached(&claim, &container, Err(format!("{container}: {text} ({os})")));
            }
            ShimEvent::Connected { connect, socket } => self.connected(&claim, connect, Ok(socket)),
            ShimEvent::ConnectFailed { connect, errno, text } => {
                let os = std::io::Error::from_raw_os_error(errno);
                self.connected(&claim, connect, Err(format!("{text} ({os})")));
            }
            ShimEvent::Stopped => self.stopped(claim),
            ShimEvent::Gone => {
                if let Some(local) = self.local.get_mut(&claim)
                    && let Some(connection) = local.shim.take()
                {
                    self.tokens.remove(&connection.token);
                    self.collect(connection.shim);
                }
                self.pods_step(Input::ShimGone { claim });
            }
            _ => {}
        }
    }

    fn remarked(&mut self, claim: &str, about: String, container: &str, remark: Remark) {
        let words = match remark {
            Remark::Deaf { signal, grace_ms } => {
                let words = deaf_words(signal, grace_ms);
                self.event(about, format!("container {container} {words}"));
                words
            }
            Remark::LeftOthers => {
                "left processes behind, which ended with it: a program that goes to the background ends its container; \
                 run it in the foreground"
                    .to_owned()
            }
            Remark::LogDropped => return self.log_dropped(claim, container),
            _ => return,
        };
        if let Some(seen) = self.seen(claim, container) {
            seen.remark = words;
        }
    }

    pub(super) fn log_dropped(&mut self, claim: &str, container: &str) {
        let text = format!(
            "container {container}: part of its output is not in its log: it writes more than `log.rate` lets through, or \
             there was no room; raise `log.rate`, or make it write less"
        );
        self.note(claim, format!("log {container}"), text);
    }

    /// Its socket closes a moment before it has ended.
    pub(super) fn collect(&mut self, mut shim: initd::shim::Shim) {
        if !shim.reap() {
            self.ending.push(shim);
        }
    }

    /// It ends once it is told to; until then it may hold the mounts.
    fn stopped(&mut self, claim: String) {
        let connection = self.local.get_mut(&claim).and_then(|local| local.shim.as_mut());
        if !matches!(connection.map(|c| c.shim.quit()), Some(Ok(()))) {
            self.pods_step(Input::ShimGone { claim });
        }
    }

    /// A snapshot stands for what was not told one by one: nobody listened, or too slowly.
    pub(super) fn status(&mut self, claim: String, status: &PodStatus) {
        let Some(local) = self.local.get_mut(&claim) else { return };
        let ends = missed_ends(&local.seen, status);
        let about = format!("pod/{}", self.pod_name(&claim));
        for (container, exit, restart_in_ms) in ends {
            self.exited(claim.clone(), about.clone(), &container, exit, restart_in_ms);
        }
        if let Some(local) = self.local.get_mut(&claim) {
            let before = std::mem::take(&mut local.seen);
            local.seen = carry_over(before, status_seen(status));
        }
        if status.phase == PodPhase::Stopped {
            return self.stopped(claim);
        }
        self.ready(claim, status.ready);
    }

    fn exited(
        &mut self,
        claim: String,
        about: String,
        container: &str,
        exit: Exit,
        restart_in_ms: Option<u32>,
    ) {
        let unhealthy = self.seen(&claim, container).and_then(|seen| seen.unhealthy.take());
        let mut reason = exit_words(container, exit, unhealthy.as_deref());
        let remark = self.seen(&claim, container).map(|seen| std::mem::take(&mut seen.remark));
        if let Some(remark) = remark.filter(|text| !text.is_empty()) {
            reason.push_str(&format!(": it {remark}"));
        }
        if let Some(ms) = restart_in_ms {
            reason.push_str(&format!("; starts again in {:.1} s", f64::from(ms) / 1e3));
        }
        self.event(about, reason.clone());
        if let Some(seen) = self.seen(&claim, container) {
            seen.state = match (restart_in_ms, exit.success()) {
                (Some(_), _) => "backing off",
                (None, true) => "done",
                (None, false) => "failed",
            };
            seen.reason.clone_from(&reason);
        }
        let main = self.is_main(&claim, container);
        // An init container that ended well, or a sidecar that is done: the pod goes on.
        if restart_in_ms.is_none() && !main && exit.success() {
            return;
        }
        if main {
            self.set_ready(&claim, false);
        }
        let Exit { code, signal, oom } = exit;
        self.pods_step(Input::Exited { claim, code, signal, oom, reason });
    }

    fn not_started(
        &mut self,
        claim: String,
        about: String,
        container: &str,
        mut reason: String,
        retry_in_ms: Option<u32>,
    ) {
        if let Some(ms) = retry_in_ms {
            reason.push_str(&format!("; tried again in {:.1} s", f64::from(ms) / 1e3));
        }
        self.event(about, reason.clone());
        self.set_ready(&claim, false);
        if let Some(seen) = self.seen(&claim, container) {
            seen.state = if retry_in_ms.is_some() { "backing off" } else { "failed" };
            seen.reason.clone_from(&reason);
        }
        if retry_in_ms.is_some() {
            let (code, signal, oom) = (None, None, false);
            self.pods_step(Input::Exited { claim, code, signal, oom, reason });
        } else {
            self.pods_step(Input::Broken { claim, failure: Failure { reason, retryable: false } });
        }
    }

    pub(super) fn set_ready(&mut self, claim: &str, ready: bool) {
        if let Some(local) = self.local.get_mut(claim) {
            local.ready = ready;
        }
    }

    fn ready(&mut self, claim: String, ready: bool) {
        self.set_ready(&claim, ready);
        // Before the main containers run there is nothing that could be ready; while one waits to be started again, that is
        // what is told.
        let up = self.local.get(&claim).is_some_and(Local::mains_run);
        if ready || up {
            self.pods_step(Input::Running { claim, ready });
        }
    }
}

impl Local {
    /// Whether all main containers run, as far as was told.
    fn mains_run(&self) -> bool {
        let mut mains = self.kept.containers.iter().filter(|c| self.kept.is_main(c));
        mains.all(|c| self.seen.get(c).is_some_and(|seen| seen.state == "running"))
    }
}

/// Ends of containers that a snapshot tells of, and that were not seen: which, how, and when it starts again. A pod that has
/// stopped tells of all; of one that runs, those of before it was looked at are history.
fn missed_ends(
    seen: &BTreeMap<String, Seen>,
    status: &PodStatus,
) -> Vec<(String, Exit, Option<u32>)> {
    let stopped = status.phase == PodPhase::Stopped;
    let ends = status.containers.iter().filter_map(|c| {
        let missed = match seen.get(&c.name) {
            Some(before) => {
                let runs_on =
                    matches!(c.state, ContainerState::Running { .. } | ContainerState::Stopping);
                before.state == "running" && !(runs_on && c.restarts == before.restarts)
            }
            None => stopped,
        };
        let restart_in_ms = match c.state {
            ContainerState::Backoff { restart_in_ms } => Some(restart_in_ms),
            ContainerState::Done => None,
            _ => Some(0),
        };
        Some((c.name.clone(), c.last_exit.filter(|_| missed)?, restart_in_ms))
    });
    ends.collect()
}

/// A snapshot says nothing of why a container is being ended: what was told of that life stands until its end. Of an end it
/// knows less than was told of it.
fn carry_over(
    mut before: BTreeMap<String, Seen>,
    mut now: BTreeMap<String, Seen>,
) -> BTreeMap<String, Seen> {
    for (container, seen) in &mut now {
        let same_life = |old: &Seen| old.restarts == seen.restarts;
        let Some(old) = before.remove(container).filter(same_life) else { continue };
        match (old.state, seen.state) {
            (_, "running" | "stopping") => {
                (seen.unhealthy, seen.remark) = (old.unhealthy, old.remark);
            }
            ("backing off", "backing off") | ("failed" | "done", "done") => {
                (seen.state, seen.reason) = (old.state, old.reason);
            }
            _ => {}
        }
    }
    now
}

/// What a snapshot says of each container.
pub(super) fn status_seen(status: &PodStatus) -> BTreeMap<String, Seen> {
    let of = |c: &initd::shim::ContainerStatus| {
        let state = match c.state {
            ContainerState::Waiting => "waiting",
            ContainerState::Running { .. } => "running",
            ContainerState::Backoff { .. } => "backing off",
            ContainerState::Stopping => "stopping",
            ContainerState::Done => "done",
        };
        let failed = c.last_failure.as_ref();
        let reason = match (failed, c.last_exit) {
            (Some((step, errno, text)), _) => failure_words(&c.name, *step, *errno, text),
            (None, Some(exit)) => exit_words(&c.name, exit, None),
            (None, None) => String::new(),
        };
        let (restarts, log_dropped_bytes) = (c.restarts, c.log_dropped_bytes);
        (c.name.clone(), Seen { state, restarts, reason, log_dropped_bytes, ..Seen::default() })
    };
    status.containers.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use initd::shim::ContainerStatus;

    #[test]
    fn why_a_container_is_ended_outlives_a_snapshot_and_not_its_life() {
        let told = |restarts| {
            let unhealthy = Some("its probe failed".to_owned());
            let seen = Seen {
                state: "running",
                restarts,
                unhealthy,
                remark: "deaf".into(),
                ..Seen::default()
            };
            BTreeMap::from([("c".to_owned(), seen)])
        };
        let now = |state, restarts| {
            let mut seen = status_seen(&status(PodPhase::Running, state, restarts));
            let (_, only) = seen.pop_first().unwrap();
            BTreeMap::from([("c".to_owned(), only)])
        };
        for (state, restarts, kept) in [
            (ContainerState::Stopping, 1, true),
            (ContainerState::Stopping, 2, false),
            (ContainerState::Backoff { restart_in_ms: 5 }, 1, false),
        ] {
            let seen = carry_over(told(1), now(state, restarts));
            assert_eq!(seen["c"].unhealthy.is_some(), kept);
            assert_eq!(seen["c"].remark.is_empty(), !kept);
        }
    }

    #[test]
    fn what_was_told_of_an_end_outlives_a_snapshot_and_the_bytes_are_its_own() {
        let waits = ContainerState::Backoff { restart_in_ms: 5 };
        let runs = ContainerState::Running { pid: 7, ready: true };
        let done = ContainerState::Done;
        for (told, state, restarts, kept) in [
            ("backing off", waits, 1, true),
            ("backing off", waits, 2, false),
            ("backing off", done, 1, false),
            ("failed", done, 1, true),
            ("done", done, 1, true),
            ("failed", runs, 2, false),
        ] {
            let seen = Seen {
                state: told,
                restarts: 1,
                reason: "in more words".into(),
                log_dropped_bytes: 1,
                ..Seen::default()
            };
            let before = BTreeMap::from([("c".to_owned(), seen)]);
            let mut snapshot = status(PodPhase::Running, state, restarts);
            snapshot.containers[0].log_dropped_bytes = 70;
            let now = carry_over(before, status_seen(&snapshot));
            assert_eq!(now["c"].reason == "in more words", kept, "{told} {state:?}");
            assert!(!kept || now["c"].state == told, "{told} {state:?}");
            assert_eq!(now["c"].log_dropped_bytes, 70);
        }
    }

    fn status(phase: PodPhase, state: ContainerState, restarts: u32) -> PodStatus {
        let exit = Exit { code: Some(3), signal: None, oom: false };
        let container = ContainerStatus {
            name: "c".into(),
            state,
            restarts,
            last_exit: Some(exit),
            last_failure: None,
            log_dropped_bytes: 0,
        };
        let (id, containers, conditions) = ("p".into(), vec![container], Vec::new());
        PodStatus { id, shim_pid: 1, phase, ready: false, containers, conditions }
    }

    #[test]
    fn a_snapshot_tells_of_ends_that_nobody_saw_and_of_no_other() {
        let running = |restarts| {
            let seen = Seen { state: "running", restarts, ..Seen::default() };
            BTreeMap::from([("c".to_owned(), seen)])
        };
        let ends = |seen: &BTreeMap<String, Seen>, phase, state, restarts| -> Vec<Option<u32>> {
            missed_ends(seen, &status(phase, state, restarts)).iter().map(|end| end.2).collect()
        };
        let (up, over) = (PodPhase::Running, PodPhase::Stopped);
        let runs = ContainerState::Running { pid: 7, ready: true };
        let waits = ContainerState::Backoff { restart_in_ms: 500 };
        assert_eq!(ends(&running(1), up, runs, 1), [], "it runs on");
        assert_eq!(ends(&running(1), up, runs, 2), [Some(0)], "it ended and runs again");
        assert_eq!(ends(&running(1), up, waits, 1), [Some(500)]);
        assert_eq!(ends(&running(1), over, ContainerState::Done, 1), [None]);
        let done = status_seen(&status(over, ContainerState::Done, 1));
        assert_eq!(ends(&done, over, ContainerState::Done, 1), [], "told already");
        let nothing = BTreeMap::new();
        assert_eq!(ends(&nothing, up, waits, 1), [], "history");
        assert_eq!(ends(&nothing, over, ContainerState::Done, 1), [None], "nobody else will tell");
    }
}
