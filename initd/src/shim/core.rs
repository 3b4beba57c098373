//! The state machine that supervises a pod. No clock, no process, no socket: inputs in, outputs out.
//!
//! ```text
//!  Waiting ─Launch▶ Starting ─Started▶ Running ─Exited▶ Backoff ─Launch▶ Starting
//!     │                │ failed ───────────────────────────▲ │
//!     │                │                  └─stop / unhealthy▶ Stopping ─Exited▶ Backoff or Done
//!     └────────────────┴──── stop, or the policy says no ─────────────────────▶ Done
//! ```
//!
//! Start: init containers and sidecars in the order of the spec, each init container to its end; then all main ones.
//! Stop: main ones together, then sidecars in reverse order, one after the other.

mod health;

use crate::pod::{ContainerSpec, Kind, PodSpec, Probe, Restart};
use crate::shim::wire::{ContainerState, Exit, PodPhase};
use health::Health;

/// A killed container that does not end is killed again after this.
const KILL_AGAIN_US: u64 = 1_000_000;

/// Which of a container's checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Readiness.
    Ready,
    /// Liveness.
    Live,
    /// Whether it has come up. Until then the others are not asked.
    Start,
}

/// In the order of [`Container::checks`].
const CHECKS: [Which; 3] = [Which::Ready, Which::Live, Which::Start];

/// What happened. `usize` is the container's index in the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Begin.
    Start,
    /// The program was executed.
    Started(usize),
    /// It could not be.
    LaunchFailed(usize),
    /// The container's first process was reaped.
    Exited(usize, Exit),
    /// A check came to an end. Late answers are ignored.
    Checked(usize, Which, bool),
    /// Stop everything.
    Stop {
        /// Replaces each container's own grace.
        grace_ms: Option<u32>,
    },
    /// A deadline has passed.
    Timer,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Launch the container.
    Launch(usize),
    /// Send a signal to its program.
    Signal(usize, i32),
    /// Kill everything in it.
    Kill(usize),
    /// Begin a check.
    Check(usize, Which),
    /// Forget a check that may be under way.
    CancelCheck(usize, Which),
    /// Tell: the program runs.
    Started(usize),
    /// Tell: readiness changed.
    Ready {
        /// Which container.
        container: usize,
        /// Its own.
        ready: bool,
        /// The pod's.
        pod_ready: bool,
    },
    /// Tell: the container ended.
    Exited {
        /// Which.
        container: usize,
        /// How.
        exit: Exit,
        /// When it is started again.
        restart_in_ms: Option<u32>,
    },
    /// Tell: the launch failed.
    Failed {
        /// Which.
        container: usize,
        /// When it is tried again.
        retry_in_ms: Option<u32>,
    },
    /// Tell: it did not end within its grace, and is killed.
    Deaf {
        /// Which.
        container: usize,
        /// How long that was.
        grace_ms: u32,
    },
    /// Tell: liveness, or its start, gave it up.
    Unhealthy(usize),
    /// Tell: all is over.
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Starting,
    Running { since_us: u64 },
    Backoff { until_us: u64 },
    Stopping { kill_at_us: u64 },
    Done,
}

#[derive(Debug, Clone)]
struct Container {
    kind: Kind,
    restart: Restart,
    backoff: crate::pod::Backoff,
    stop: crate::pod::Stop,
    ready_probe: Option<Probe>,
    live_probe: Option<Probe>,
    state: State,
    ready: bool,
    start_probe: Option<Probe>,
    checks: [Option<Health>; 3],
    /// Starts that succeeded.
    starts: u32,
    /// Failures since the last long run: the exponent of the backoff.
    row: u32,
    /// Gave up by liveness: its end counts as a failure.
    unhealthy: bool,
    running_since_us: u64,
    /// When it was asked to end, until that is known to have been in vain.
    asked_us: Option<u64>,
}

/// A pod under supervision.
#[derive(Debug, Clone)]
pub struct Supervisor {
    containers: Vec<Container>,
    /// A stop was asked for, or an init container failed for good.
    stopping: bool,
    grace_ms: Option<u32>,
    stopped: bool,
    pod_ready: bool,
}

fn us(ms: u32) -> u64 {
    u64::from(ms) * 1000
}

impl Supervisor {
    /// All containers wait.
    #[must_use]
    pub fn new(spec: &PodSpec) -> Self {
        let container = |c: &ContainerSpec| Container {
            kind: c.kind,
            restart: c.restart,
            backoff: c.backoff,
            stop: c.stop,
            ready_probe: c.ready.clone(),
            live_probe: c.live.clone(),
            state: State::Waiting,
            ready: false,
            start_probe: c.start.clone(),
            checks: [None, None, None],
            starts: 0,
            row: 0,
            unhealthy: false,
            running_since_us: 0,
            asked_us: None,
        };
        Self {
            containers: spec.containers.iter().map(container).collect(),
            stopping: false,
            grace_ms: None,
            stopped: false,
            pod_ready: false,
        }
    }

    /// Takes an input in and appends what is to be done.
    pub fn step(&mut self, now_us: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Start | Input::Timer => {}
            Input::Started(i) => self.started(i, now_us, out),
            Input::LaunchFailed(i) => self.launch_failed(i, now_us, out),
            Input::Exited(i, exit) => self.exited(i, exit, now_us, out),
            Input::Checked(i, which, ok) => self.checked(i, which, ok, now_us, out),
            Input::Stop { grace_ms } => {
                self.stopping = true;
                self.grace_ms = grace_ms;
                // A second, shorter order takes effect on what is stopping already.
                if let Some(ms) = grace_ms {
                    for c in &mut self.containers {
                        if let State::Stopping { kill_at_us } = &mut c.state {
                            *kill_at_us = (*kill_at_us).min(now_us + us(ms));
                        }
                    }
                }
            }
        }
        self.due(now_us, out);
        if self.stopping || self.mains_done() {
            self.wind_down(now_us, out);
        } else {
            self.advance(out);
        }
        self.tell_pod_ready(out);
        if !self.stopped && self.all_done() {
            self.stopped = true;
            out.push(Output::Stopped);
        }
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let of = |c: &Container| {
            let state = match c.state {
                State::Backoff { until_us } => Some(until_us),
                State::Stopping { kill_at_us } => Some(kill_at_us),
                _ => None,
            };
            state.into_iter().chain(c.checks.iter().flatten().map(|h| h.at_us)).min()
        };
        self.containers.iter().filter_map(of).min()
    }

    /// Where the pod is.
    #[must_use]
    pub fn phase(&self) -> PodPhase {
        if self.stopped {
            PodPhase::Stopped
        } else if self.stopping || self.mains_done() {
            PodPhase::Stopping
        } else if self.containers.iter().any(|c| c.kind == Kind::Main && c.starts == 0) {
            PodPhase::Starting
        } else {
            PodPhase::Running
        }
    }

    /// All main containers run and are ready.
    #[must_use]
    pub fn pod_ready(&self) -> bool {
        self.pod_ready
    }

    /// Where a container is; `pid` is what the shell knows.
    #[must_use]
    pub fn state(&self, i: usize, pid: u32, now_us: u64) -> ContainerState {
        match self.containers.get(i).map(|c| (c.state, c.ready)) {
            Some((State::Running { .. }, ready)) => ContainerState::Running { pid, ready },
            Some((State::Backoff { until_us }, _)) => {
                let ms = until_us.saturating_sub(now_us).div_ceil(1000);
                ContainerState::Backoff { restart_in_ms: u32::try_from(ms).unwrap_or(u32::MAX) }
            }
            Some((State::Stopping { .. }, _)) => ContainerState::Stopping,
            Some((State::Waiting | State::Starting, _)) => ContainerState::Waiting,
            Some((State::Done, _)) | None => ContainerState::Done,
        }
    }

    /// Starts after the first.
    #[must_use]
    pub fn restarts(&self, i: usize) -> u32 {
        self.containers.get(i).map_or(0, |c| c.starts.saturating_sub(1))
    }

    fn mains_done(&self) -> bool {
        self.containers.iter().filter(|c| c.kind == Kind::Main).all(|c| c.state == State::Done)
    }

    fn all_done(&self) -> bool {
        self.containers.iter().all(|c| c.state == State::Done)
    }

    fn started(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        let Some(c) = self.containers.get_mut(i) else { return };
        c.starts = c.starts.saturating_add(1);
        c.running_since_us = now_us;
        if c.state != State::Starting {
            return; // stopped meanwhile; its end will come
        }
        c.state = State::Running { since_us: now_us };
        out.push(Output::Started(i));
        match &c.start_probe {
            Some(probe) => {
                c.checks = [None, None, Some(Health::new(probe, Which::Start, now_us))];
            }
            None => self.come_up(i, now_us, out),
        }
    }

    fn launch_failed(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        let retry_in_ms = self.after_end(i, false, now_us);
        out.push(Output::Failed { container: i, retry_in_ms });
    }

    fn exited(&mut self, i: usize, exit: Exit, now_us: u64, out: &mut Vec<Output>) {
        let Some(c) = self.containers.get_mut(i) else { return };
        let ok = exit.success() && !c.unhealthy;
        if now_us.saturating_sub(c.running_since_us) >= us(c.backoff.reset_ms) {
            c.row = 0;
        }
        for (which, check) in CHECKS.into_iter().zip(&mut c.checks) {
            if check.take().is_some_and(|h| h.running) {
                out.push(Output::CancelCheck(i, which));
            }
        }
        self.set_ready(i, false, out);
        let restart_in_ms = self.after_end(i, ok, now_us);
        out.push(Output::Exited { container: i, exit, restart_in_ms });
    }

    /// What follows the end of a container (or a failed launch): backoff, or done.
    fn after_end(&mut self, i: usize, ok: bool, now_us: u64) -> Option<u32> {
        let stopping = self.stopping || self.mains_done();
        let c = self.containers.get_mut(i)?;
        c.unhealthy = false;
        c.asked_us = None;
        let again = match (c.kind, c.restart) {
            _ if stopping => false,
            (Kind::Init, _) if ok => false,
            (_, Restart::Always) => true,
            (_, Restart::OnFailure) => !ok,
            (_, Restart::Never) => false,
        };
        if !again {
            c.state = State::Done;
            if c.kind == Kind::Init && !ok && !stopping {
                // The rest can never be started.
                self.stopping = true;
            }
            return None;
        }
        let factor = 1u64 << c.row.min(20);
        let wait_ms = (u64::from(c.backoff.first_ms) * factor).min(u64::from(c.backoff.max_ms));
        c.row = c.row.saturating_add(1);
        c.state = State::Backoff { until_us: now_us + wait_ms * 1000 };
        Some(u32::try_from(wait_ms).unwrap_or(u32::MAX))
    }

    /// Asks a running container to end; it is killed when its grace is over.
    fn stop_one(&mut self, i: usize, now_us: u64, out: &mut Vec<Output>) {
        let grace = self.grace_ms;
        let Some(c) = self.containers.get_mut(i) else { return };
        for (which, check) in CHECKS.into_iter().zip(&mut c.checks) {
            if check.take().is_some_and(|h| h.running) {
                out.push(Output::CancelCheck(i, which));
            }
        }
        let grace_us = us(grace.unwrap_or(c.stop.grace_ms));
        if c.state == State::Starting || grace_us == 0 {
            c.state = State::Stopping { kill_at_us: now_us + KILL_AGAIN_US };
            out.push(Output::Kill(i));
        } else {
            c.state = State::Stopping { kill_at_us: now_us + grace_us };
            c.asked_us = Some(now_us);
            out.push(Output::Signal(i, c.stop.signal));
        }
    }

    /// Deadlines that have passed.
    fn due(&mut self, now_us: u64, out: &mut Vec<Output>) {
        for i in 0..self.containers.len() {
            let Some(c) = self.containers.get_mut(i) else { continue };
            match c.state {
                State::Stopping { kill_at_us } if kill_at_us <= now_us => {
                    c.state = State::Stopping { kill_at_us: now_us + KILL_AGAIN_US };
                    if let Some(asked_us) = c.asked_us.take() {
                        let ms = kill_at_us.saturating_sub(asked_us) / 1000;
                        let grace_ms = u32::try_from(ms).unwrap_or(u32::MAX);
                        out.push(Output::Deaf { container: i, grace_ms });
                    }
                    out.push(Output::Kill(i));
                }
                State::Backoff { until_us } if until_us <= now_us && !self.stopping => {
                    c.state = State::Starting;
                    out.push(Output::Launch(i));
                }
                State::Running { .. } => self.checks_due(i, now_us, out),
                _ => {}
            }
        }
    }

    /// Launches what may be launched.
    fn advance(&mut self, out: &mut Vec<Output>) {
        let mut before_mains = true;
        for (i, c) in self.containers.iter_mut().enumerate().filter(|(_, c)| c.kind != Kind::Main) {
            if c.state == State::Waiting {
                c.state = State::Starting;
                out.push(Output::Launch(i));
            }
            let passed = match c.kind {
                Kind::Init => c.state == State::Done,
                _ => c.starts > 0 || c.state == State::Done,
            };
            if !passed {
                before_mains = false;
                break;
            }
        }
        if !before_mains {
            return;
        }
        for (i, c) in self.containers.iter_mut().enumerate() {
            if c.kind == Kind::Main && c.state == State::Waiting {
                c.state = State::Starting;
                out.push(Output::Launch(i));
            }
        }
    }

    /// Stops what is next to be stopped.
    fn wind_down(&mut self, now_us: u64, out: &mut Vec<Output>) {
        for c in &mut self.containers {
            if matches!(c.state, State::Waiting | State::Backoff { .. }) {
                c.state = State::Done;
            }
        }
        let runs = |s: State| matches!(s, State::Starting | State::Running { .. });
        for i in 0..self.containers.len() {
            if self.containers.get(i).is_some_and(|c| c.kind != Kind::Sidecar && runs(c.state)) {
                self.stop_one(i, now_us, out);
            }
        }
        let others_gone =
            self.containers.iter().all(|c| c.kind == Kind::Sidecar || c.state == State::Done);
        if others_gone {
            let last = self.containers.iter().rposition(|c| c.state != State::Done);
            if let Some(i) = last
                && self.containers.get(i).is_some_and(|c| runs(c.state))
            {
                self.stop_one(i, now_us, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
