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
/// From a teardown that found no room to the next try, in microseconds.
pub const TEAR_AGAIN_US: u64 = 250_000;

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
        /// What to say of it once it is torn down.
        failure: Option<Failure>,
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
    /// There was no room for its teardown among what is to be done.
    NoRoom {
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
    /// Remove everything of the pod, by force where needed; answer with [`Input::Torn`], or with [`Input::NoRoom`].
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
    Tearing { again_us: Option<u64> },
}

/// Its teardown is under way.
const TEARING: Phase = Phase::Tearing { again_us: None };

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

    /// An image is no longer held: who needs it fetches it.
    pub fn image_is_gone(&mut self, digest: &str) {
        self.here.remove(digest);
    }

    /// When [`Input::Timer`] is due, in microseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.pods
            .values()
            .filter_map(|pod| match pod.phase {
                Phase::Stopping { late_us } => Some(late_us),
                Phase::Tearing { again_us } => again_us,
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
            Input::Remains { claim, failure } => {
                if !self.pods.contains_key(&claim) {
                    let pod = Pod { failure, ..Pod::new(TEARING, String::new()) };
                    self.pods.insert(claim.clone(), pod);
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
            Input::NoRoom { claim } => {
                if let Some(Pod { phase: Phase::Tearing { again_us }, .. }) =
                    self.pods.get_mut(&claim)
                {
                    *again_us = Some(now_us.saturating_add(TEAR_AGAIN_US));
                }
            }
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
                    pod.phase = TEARING;
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
                pod.phase = TEARING;
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
                pod.phase = TEARING;
                out.push(Action::Teardown { claim });
            }
            Phase::Preparing => pod.stop = Some(grace_ms),
            Phase::Up => {
                pod.stop = Some(grace_ms);
                pod.halt(now_us, claim, grace_ms, out);
            }
            Phase::Stopping { .. } | Phase::Tearing { .. } => pod.stop = Some(grace_ms),
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
            pod.phase = TEARING;
            out.push(Action::Teardown { claim: claim.to_owned() });
        }
    }

    fn torn(&mut self, claim: String, out: &mut Vec<Action>) {
        let Some(pod) = self.pods.get(&claim) else { return };
        if !matches!(pod.phase, Phase::Tearing { .. }) {
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
            let due_us = match pod.phase {
                Phase::Stopping { late_us } => Some(late_us),
                Phase::Tearing { again_us } => again_us,
                _ => None,
            };
            if due_us.is_some_and(|at| at <= now_us) {
                pod.phase = TEARING;
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
mod tests;
