//! The pod reconciler: which claims should run here, against what is there. Pure: inputs in, actions out.
//!
//! ```text
//!  Start ─▶ Fetching ─▶ Preparing ─▶ Up ──(shim gone, containers done)──┐
//!              │            │         │ Stop                            │
//!              │            │         ▼                                 ▼
//!              └─(failed)───┴──▶  Stopping ──(stopped, or late)──▶  Tearing ─▶ gone
//! ```
//!
//! Invariants: at most one action is under way for a claim; every claim that is started ends in exactly one
//! `Observed::Failed` or `Observed::Gone` after its teardown; a stop is never lost, whatever is under way.

use std::collections::{BTreeMap, BTreeSet};

use sched::Observed;

/// A shim that has not stopped its pod this long after its grace is torn down by force, in microseconds.
pub const STOP_LATE_US: u64 = 5_000_000;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// This claim should run. A claim that is known already stays as it is.
    Start {
        /// The claim.
        claim: String,
        /// Its address, chosen already.
        ip: String,
        /// Manifest digests of the images it needs.
        images: Vec<String>,
    },
    /// This claim should be gone. Repeats are harmless.
    Stop {
        /// The claim.
        claim: String,
        /// Until its processes are killed.
        grace_ms: u64,
    },
    /// A pod of an earlier agent whose shim lives.
    Adopted {
        /// The claim.
        claim: String,
        /// Its address.
        ip: String,
        /// Whether its probes pass.
        ready: bool,
        /// Restarts so far.
        restarts: u32,
    },
    /// What remains of a pod whose shim is gone.
    Remains {
        /// The claim.
        claim: String,
    },
    /// An image is here, or cannot be had.
    Fetched {
        /// Its manifest digest.
        digest: String,
        /// Why not.
        result: Result<(), String>,
    },
    /// Root file systems, network and shim are made, or not.
    Prepared {
        /// The claim.
        claim: String,
        /// Why not.
        result: Result<(), Failure>,
    },
    /// All containers run for the first time, or again.
    Running {
        /// The claim.
        claim: String,
        /// Whether all probes pass.
        ready: bool,
    },
    /// A container exited; the shim restarts it.
    Exited {
        /// The claim.
        claim: String,
        /// Exit code.
        code: Option<i32>,
        /// Or the signal.
        signal: Option<i32>,
        /// Killed for memory.
        oom: bool,
        /// For people.
        reason: String,
    },
    /// A container could not be started, and trying again may help or not.
    Broken {
        /// The claim.
        claim: String,
        /// Why.
        failure: Failure,
    },
    /// The shim has stopped everything, or has vanished.
    ShimGone {
        /// The claim.
        claim: String,
    },
    /// Nothing of the pod is left on this machine.
    Torn {
        /// The claim.
        claim: String,
    },
    /// A deadline came.
    Timer,
}

/// Why something cannot run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, on what, why it failed.
    pub reason: String,
    /// Whether trying again on this node may help.
    pub retryable: bool,
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get an image; answer with [`Input::Fetched`].
    Fetch {
        /// Its manifest digest.
        digest: String,
    },
    /// Make root file systems, network and shim; answer with [`Input::Prepared`].
    Prepare {
        /// The claim.
        claim: String,
    },
    /// Tell the shim to stop; [`Input::ShimGone`] follows.
    StopShim {
        /// The claim.
        claim: String,
        /// Until its processes are killed.
        grace_ms: u64,
    },
    /// Remove everything of the pod, by force where needed; answer with [`Input::Torn`].
    Teardown {
        /// The claim.
        claim: String,
    },
    /// Tell the scheduler.
    Observe {
        /// The claim.
        claim: String,
        /// What.
        observed: Observed,
    },
}

#[derive(Debug)]
enum Phase {
    Fetching,
    Preparing,
    Up,
    Stopping { late_us: u64 },
    Tearing,
}

#[derive(Debug)]
struct Pod {
    phase: Phase,
    ip: String,
    images: Vec<String>,
    restarts: u32,
    /// Its containers ran: what comes after its end is another pod.
    ran: bool,
    /// How a container ended last.
    last_end: String,
    /// A stop that came while something else was under way.
    stop: Option<u64>,
    /// What to say once it is torn down; `Gone` where there is none.
    failure: Option<Failure>,
}

/// All pods of this node.
#[derive(Debug, Default)]
pub struct Pods {
    pods: BTreeMap<String, Pod>,
    /// Images that are being fetched.
    fetching: BTreeSet<String>,
    /// Images that are here.
    here: BTreeSet<String>,
}

impl Pods {
    /// A node without pods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Claims that are known, in whatever phase.
    pub fn claims(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// An image is held from before.
    pub fn image_is_here(&mut self, digest: &str) {
        self.here.insert(digest.to_owned());
    }

    /// When [`Input::Timer`] is due, in microseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.pods
            .values()
            .filter_map(|pod| match pod.phase {
                Phase::Stopping { late_us } => Some(late_us),
                _ => None,
            })
            .min()
    }

    /// Takes one input and appends what has to be done.
    pub fn step(&mut self, now_us: u64, input: Input, out: &mut Vec<Action>) {
        match input {
            Input::Start { claim, ip, images } => self.start(claim, ip, images, out),
            Input::Stop { claim, grace_ms } => self.stop(now_us, claim, grace_ms, out),
            Input::Adopted { claim, ip, ready, restarts } => {
                self.adopt(claim, ip, ready, restarts, out);
            }
            Input::Remains { claim } => {
                if !self.pods.contains_key(&claim) {
                    self.pods.insert(claim.clone(), Pod::new(Phase::Tearing, String::new()));
                    out.push(Action::Teardown { claim });
                }
            }
            Input::Fetched { digest, result } => self.fetched(&digest, result, out),
            Input::Prepared { claim, result } => self.prepared(now_us, claim, result, out),
            Input::Running { claim, ready } => {
                if let Some(pod) = self.up(&claim) {
                    pod.ran = true;
                    let observed = Observed::Running { ip: pod.ip.clone(), ready };
                    out.push(Action::Observe { claim, observed });
                }
            }
            Input::Exited { claim, code, signal, oom, reason } => {
                if let Some(pod) = self.up(&claim) {
                    pod.restarts = pod.restarts.saturating_add(1);
                    pod.last_end.clone_from(&reason);
                    let restarts = pod.restarts;
                    let observed = Observed::Exited { code, signal, oom, restarts, reason };
                    out.push(Action::Observe { claim, observed });
                }
            }
            Input::Broken { claim, failure } => {
                if let Some(pod) = self.up(&claim) {
                    pod.failure = Some(failure);
                    pod.halt(now_us, claim, 0, out);
                }
            }
            Input::ShimGone { claim } => self.shim_gone(&claim, out),
            Input::Torn { claim } => self.torn(claim, out),
            Input::Timer => self.timer(now_us, out),
        }
    }

    fn up(&mut self, claim: &str) -> Option<&mut Pod> {
        self.pods.get_mut(claim).filter(|pod| matches!(pod.phase, Phase::Up))
    }

    fn start(&mut self, claim: String, ip: String, images: Vec<String>, out: &mut Vec<Action>) {
        if self.pods.contains_key(&claim) {
            return;
        }
        let missing: Vec<&String> =
            images.iter().filter(|digest| !self.here.contains(*digest)).collect();
        let phase = if missing.is_empty() { Phase::Preparing } else { Phase::Fetching };
        for digest in missing {
            if self.fetching.insert(digest.clone()) {
                out.push(Action::Fetch { digest: digest.clone() });
            }
        }
        let observed = match phase {
            Phase::Fetching => Observed::Pulling,
            _ => Observed::Starting { ip: ip.clone() },
        };
        out.push(Action::Observe { claim: claim.clone(), observed });
        if matches!(phase, Phase::Preparing) {
            out.push(Action::Prepare { claim: claim.clone() });
        }
        let mut pod = Pod::new(phase, ip);
        pod.images = images;
        self.pods.insert(claim, pod);
    }

    fn adopt(
        &mut self,
        claim: String,
        ip: String,
        ready: bool,
        restarts: u32,
        out: &mut Vec<Action>,
    ) {
        let mut pod = Pod::new(Phase::Up, ip.clone());
        pod.restarts = restarts;
        pod.ran = true;
        self.pods.insert(claim.clone(), pod);
        out.push(Action::Observe { claim, observed: Observed::Running { ip, ready } });
    }

    fn fetched(&mut self, digest: &str, result: Result<(), String>, out: &mut Vec<Action>) {
        self.fetching.remove(digest);
        if result.is_ok() {
            self.here.insert(digest.to_owned());
        }
        let waiting: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, pod)| matches!(pod.phase, Phase::Fetching))
            .filter(|(_, pod)| pod.images.iter().any(|image| image == digest))
            .map(|(claim, _)| claim.clone())
            .collect();
        for claim in waiting {
            let Some(pod) = self.pods.get_mut(&claim) else { continue };
            match &result {
                Err(reason) => {
                    // Nothing was made yet, so nothing has to be torn down but the directory.
                    pod.failure = Some(Failure { reason: reason.clone(), retryable: true });
                    pod.phase = Phase::Tearing;
                    out.push(Action::Teardown { claim });
                }
                Ok(()) if pod.images.iter().all(|image| self.here.contains(image)) => {
                    pod.phase = Phase::Preparing;
                    let observed = Observed::Starting { ip: pod.ip.clone() };
                    out.push(Action::Observe { claim: claim.clone(), observed });
                    out.push(Action::Prepare { claim: claim.clone() });
                }
                Ok(()) => {}
            }
        }
    }

    fn prepared(
        &mut self,
        now_us: u64,
        claim: String,
        result: Result<(), Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(pod) = self.pods.get_mut(&claim) else { return };
        if !matches!(pod.phase, Phase::Preparing) {
            return;
        }
        match result {
            Ok(()) => {
                pod.phase = Phase::Up;
                if let Some(grace_ms) = pod.stop.take() {
                    self.stop(now_us, claim, grace_ms, out);
                }
            }
            Err(failure) => {
                pod.failure = Some(failure);
                pod.phase = Phase::Tearing;
                out.push(Action::Teardown { claim });
            }
        }
    }

    fn stop(&mut self, now_us: u64, claim: String, grace_ms: u64, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(&claim) else {
            out.push(Action::Observe { claim, observed: Observed::Gone });
            return;
        };
        match pod.phase {
            Phase::Fetching => {
                pod.stop = Some(grace_ms);
                pod.phase = Phase::Tearing;
                out.push(Action::Teardown { claim });
            }
            Phase::Preparing => pod.stop = Some(grace_ms),
            Phase::Up => {
                pod.stop = Some(grace_ms);
                pod.halt(now_us, claim, grace_ms, out);
            }
            Phase::Stopping { .. } | Phase::Tearing => pod.stop = Some(grace_ms),
        }
    }

    fn shim_gone(&mut self, claim: &str, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get_mut(claim) else { return };
        if matches!(pod.phase, Phase::Up | Phase::Stopping { .. }) {
            if pod.stop.is_none() && pod.failure.is_none() {
                let reason = match pod.last_end.as_str() {
                    "" => "the pod ended, and its shim did not say why".to_owned(),
                    end => format!("the pod ended: {end}"),
                };
                // No second life under one identity: who wants another gets a new claim.
                pod.failure = Some(Failure { reason, retryable: !pod.ran });
            }
            pod.phase = Phase::Tearing;
            out.push(Action::Teardown { claim: claim.to_owned() });
        }
    }

    fn torn(&mut self, claim: String, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get(&claim) else { return };
        if !matches!(pod.phase, Phase::Tearing) {
            return;
        }
        let observed = match &pod.failure {
            Some(failure) if pod.stop.is_none() => {
                let Failure { reason, retryable } = failure.clone();
                Observed::Failed { reason, retryable }
            }
            _ => Observed::Gone,
        };
        self.pods.remove(&claim);
        out.push(Action::Observe { claim, observed });
    }

    fn timer(&mut self, now_us: u64, out: &mut Vec<Action>) {
        for (claim, pod) in &mut self.pods {
            if matches!(pod.phase, Phase::Stopping { late_us } if late_us <= now_us) {
                pod.phase = Phase::Tearing;
                out.push(Action::Teardown { claim: claim.clone() });
            }
        }
    }
}

impl Pod {
    fn new(phase: Phase, ip: String) -> Self {
        Self {
            phase,
            ip,
            images: Vec::new(),
            restarts: 0,
            ran: false,
            last_end: String::new(),
            stop: None,
            failure: None,
        }
    }

    fn halt(&mut self, now_us: u64, claim: String, grace_ms: u64, out: &mut Vec<Action>) {
        let grace_us = grace_ms.saturating_mul(1000);
        let late_us = now_us.saturating_add(grace_us).saturating_add(STOP_LATE_US);
        self.phase = Phase::Stopping { late_us };
        out.push(Action::StopShim { claim, grace_ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLAIM: &str = "c1";

    fn start(images: &[&str]) -> Input {
        let images = images.iter().map(|i| (*i).to_owned()).collect();
        Input::Start { claim: CLAIM.into(), ip: "100.64.0.2".into(), images }
    }

    fn step(pods: &mut Pods, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        pods.step(1, input, &mut out);
        out
    }

    fn stop() -> Input {
        Input::Stop { claim: CLAIM.into(), grace_ms: 100 }
    }

    fn prepared() -> Input {
        Input::Prepared { claim: CLAIM.into(), result: Ok(()) }
    }

    fn observed(actions: &[Action]) -> Vec<&Observed> {
        let observed = actions.iter().filter_map(|action| match action {
            Action::Observe { observed, .. } => Some(observed),
            _ => None,
        });
        observed.collect()
    }

    #[test]
    fn an_image_that_is_missing_is_fetched_once_for_two_pods() {
        let mut pods = Pods::new();
        let first = step(&mut pods, start(&["a"]));
        assert!(first.contains(&Action::Fetch { digest: "a".into() }));
        let mut second = Vec::new();
        let input = Input::Start { claim: "c2".into(), ip: "x".into(), images: vec!["a".into()] };
        pods.step(1, input, &mut second);
        assert!(!second.iter().any(|a| matches!(a, Action::Fetch { .. })));
        let here = step(&mut pods, Input::Fetched { digest: "a".into(), result: Ok(()) });
        assert_eq!(here.iter().filter(|a| matches!(a, Action::Prepare { .. })).count(), 2);
    }

    #[test]
    fn a_stop_while_preparing_is_kept_until_the_shim_can_hear_it() {
        let mut pods = Pods::new();
        step(&mut pods, start(&[]));
        assert_eq!(step(&mut pods, stop()), []);
        let actions = step(&mut pods, prepared());
        assert_eq!(actions, [Action::StopShim { claim: CLAIM.into(), grace_ms: 100 }]);
        let actions = step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
        assert_eq!(actions, [Action::Teardown { claim: CLAIM.into() }]);
        let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
        assert_eq!(observed(&actions), [&Observed::Gone]);
        assert_eq!(pods.claims().count(), 0);
    }

    #[test]
    fn a_container_that_cannot_run_is_torn_down_and_reported() {
        let mut pods = Pods::new();
        step(&mut pods, start(&[]));
        step(&mut pods, prepared());
        let failure = Failure { reason: "no such program".into(), retryable: false };
        let actions = step(&mut pods, Input::Broken { claim: CLAIM.into(), failure });
        assert!(matches!(actions.as_slice(), [Action::StopShim { .. }]));
        step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
        let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
        let reason = "no such program".to_owned();
        assert_eq!(observed(&actions), [&Observed::Failed { reason, retryable: false }]);
    }

    #[test]
    fn a_shim_that_does_not_stop_is_torn_down_late() {
        let mut pods = Pods::new();
        step(&mut pods, start(&[]));
        step(&mut pods, prepared());
        step(&mut pods, stop());
        let late = pods.next_deadline().unwrap();
        assert_eq!(late, 1 + 100_000 + STOP_LATE_US);
        let mut out = Vec::new();
        pods.step(late - 1, Input::Timer, &mut out);
        assert_eq!(out, []);
        pods.step(late, Input::Timer, &mut out);
        assert_eq!(out, [Action::Teardown { claim: CLAIM.into() }]);
    }

    #[test]
    fn a_pod_that_ran_and_ended_is_not_born_again() {
        let ended = |ran: bool| {
            let mut pods = Pods::new();
            step(&mut pods, start(&[]));
            step(&mut pods, prepared());
            if ran {
                step(&mut pods, Input::Running { claim: CLAIM.into(), ready: true });
            }
            let reason = "container c exited with code 0".to_owned();
            let (claim, code, signal, oom) = (CLAIM.into(), Some(0), None, false);
            step(&mut pods, Input::Exited { claim, code, signal, oom, reason });
            step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
            let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
            observed(&actions)[0].clone()
        };
        let reason = "the pod ended: container c exited with code 0".to_owned();
        assert_eq!(ended(true), Observed::Failed { reason: reason.clone(), retryable: false });
        assert_eq!(ended(false), Observed::Failed { reason, retryable: true });
    }

    #[test]
    fn a_stop_of_what_is_not_there_is_answered() {
        let actions = step(&mut Pods::new(), stop());
        assert_eq!(observed(&actions), [&Observed::Gone]);
    }

    fn inputs() -> impl Strategy<Value = Input> {
        let claim = || CLAIM.to_owned();
        let failure = Failure { reason: "f".into(), retryable: true };
        prop_oneof![
            Just(start(&["a"])),
            Just(stop()),
            Just(Input::Fetched { digest: "a".into(), result: Ok(()) }),
            Just(Input::Fetched { digest: "a".into(), result: Err("f".into()) }),
            Just(prepared()),
            Just(Input::Prepared { claim: claim(), result: Err(failure.clone()) }),
            Just(Input::Running { claim: claim(), ready: true }),
            Just(Input::Broken { claim: claim(), failure }),
            Just(Input::ShimGone { claim: claim() }),
            Just(Input::Torn { claim: claim() }),
            Just(Input::Timer),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: no second preparation and no second teardown without the end of the
        /// first, and after a stop the claim ends in one `Gone` once the shell has done what it was told.
        #[test]
        fn every_claim_ends_once(script in prop::collection::vec(inputs(), 0..40)) {
            let mut pods = Pods::new();
            let (mut preparing, mut tearing) = (false, false);
            for input in script {
                // The shell answers only what it was asked.
                match &input {
                    Input::Prepared { .. } if !preparing => continue,
                    Input::Torn { .. } if !tearing => continue,
                    Input::Prepared { .. } => preparing = false,
                    Input::Torn { .. } => tearing = false,
                    _ => {}
                }
                for action in step(&mut pods, input) {
                    match action {
                        Action::Prepare { .. } => {
                            prop_assert!(!preparing && !tearing);
                            preparing = true;
                        }
                        Action::Teardown { .. } => {
                            prop_assert!(!preparing && !tearing);
                            tearing = true;
                        }
                        _ => {}
                    }
                }
            }
            let mut ended = Vec::new();
            let mut todo = vec![stop()];
            // What the shell still owes from the script; answers that nobody waits for change nothing.
            let gone = Input::ShimGone { claim: CLAIM.into() };
            let mut owed = vec![gone, Input::Torn { claim: CLAIM.into() }];
            if preparing {
                owed.insert(0, prepared());
            }
            while let Some(input) = todo.pop().or_else(|| (!owed.is_empty()).then(|| owed.remove(0))) {
                let actions = step(&mut pods, input);
                ended.extend(observed(&actions).into_iter().cloned());
                for action in actions {
                    todo.extend(match action {
                        Action::StopShim { .. } => Some(Input::ShimGone { claim: CLAIM.into() }),
                        Action::Teardown { .. } => Some(Input::Torn { claim: CLAIM.into() }),
                        _ => None,
                    });
                }
            }
            prop_assert_eq!(pods.claims().count(), 0);
            prop_assert_eq!(ended.last(), Some(&Observed::Gone));
        }
    }
}
