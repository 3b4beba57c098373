//! What PID 1 does when. No clock, no process.
//!
//! ```text
//!  up:    keeper (the agent's life) + machine::phase (where the machine is)
//!  down:  Draining   drain ─▶ drained or late ─▶ SIGTERM to the agent ─▶ gone, or SIGKILL
//!         Killing    SIGTERM to all ─▶ nobody left, or late ─▶ SIGKILL to all
//!         Unmounting ─▶ Ended
//! ```

use std::path::PathBuf;

use super::keeper::{Form, Keeper, Order, Wanted};
use super::link::{ToAgent, ToInit};
use crate::machine::Power;
use crate::machine::phase::{Action, Event, Machine, Phase};

/// How long processes have between SIGTERM and SIGKILL: shims end their pods in it.
const TERM_MS: u64 = 5_000;
/// The machine's own limit on Draining is later than ours by this: ours asks, then kills.
const DRAIN_MARGIN_MS: u64 = 2_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A deadline has passed; also the beginning.
    Timer,
    /// The configuration asks for this.
    Looked(Wanted),
    /// The agent runs with this PID.
    Spawned(u32),
    /// It could not be started, and why.
    SpawnFailed(String),
    /// It was reaped, and how it ended.
    AgentEnded(String),
    /// It said this.
    Said(ToInit),
    /// The node is to end; who says so.
    Stop(Power, &'static str),
    /// The kernel that was to be loaded is, or why it is not.
    Loaded(Result<(), String>),
    /// What failed in this phase has come right since.
    Mended(Phase),
    /// Nobody is left but PID 1.
    NobodyLeft,
    /// File systems are let go.
    Unmounted,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// See what the configuration asks for; then [`Input::Looked`].
    Look,
    /// Start the agent in this form, with the reason of Maintenance.
    Spawn(Form, String),
    /// Send a signal.
    Signal(u32, i32),
    /// Say it to the agent.
    Tell(ToAgent),
    /// A line for the console.
    Say(String),
    /// The phase has changed: the console and the agent want to know.
    Report(Phase, String),
    /// Load the kernel in this directory; then [`Input::Loaded`].
    LoadKernel(PathBuf),
    /// SIGTERM, or SIGKILL, to everything but PID 1; then [`Input::NobodyLeft`] when it is so.
    EndAll {
        /// SIGKILL.
        force: bool,
    },
    /// Sync and unmount; then [`Input::Unmounted`].
    Unmount,
    /// The last thing.
    End(Power),
}

/// What differs between machines and namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long the agent may take to end all pods.
    pub drain_ms: u64,
    /// How long it may take to end after SIGTERM.
    pub grace_ms: u64,
    /// How long a new agent may take to say its first word; `None`: for ever.
    pub first_word_ms: Option<u64>,
    /// A kernel can be started from here.
    pub kexec: bool,
    /// This kernel is on trial: at this time the machine reboots unless the agent says [`ToInit::Kept`].
    pub trial_until_ms: Option<u64>,
}

/// PID 1's state. Time is monotonic milliseconds.
#[derive(Debug, Clone)]
pub struct Core {
    settings: Settings,
    machine: Machine,
    keeper: Keeper,
    trial_until_ms: Option<u64>,
    /// A kernel is being loaded.
    loading: bool,
    /// Why the machine goes down.
    why: &'static str,
    /// What failed on the way up: `PHASE: WHY` each.
    faults: Vec<String>,
    /// When the agent has had its time to drain.
    drain_until_ms: Option<u64>,
    /// When SIGTERM to all has had its time.
    force_at_ms: Option<u64>,
}

impl Core {
    /// A machine that has come up (`faults` as `PHASE: WHY`), or a namespace; the agent is due at once.
    #[must_use]
    pub fn new(settings: Settings, mut machine: Machine, faults: Vec<String>) -> Self {
        let limit_ms = settings.drain_ms + settings.grace_ms + DRAIN_MARGIN_MS;
        machine.set_drain(limit_ms.saturating_mul(1000));
        Self {
            settings,
            machine,
            keeper: Keeper::new(settings.first_word_ms),
            trial_until_ms: settings.trial_until_ms,
            loading: false,
            why: "",
            faults,
            drain_until_ms: None,
            force_at_ms: None,
        }
    }

    /// Where the machine is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.machine.phase()
    }

    /// The agent's PID while it runs.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        self.keeper.pid()
    }

    /// Why the machine is where it is; empty when all is well.
    #[must_use]
    pub fn reason(&self) -> String {
        match self.phase() {
            Phase::Running => String::new(),
            Phase::Degraded if self.keeper.reason().is_empty() => self.faults.join("; "),
            Phase::Degraded | Phase::Maintenance => self.keeper.reason().to_owned(),
            _ => self.why.to_owned(),
        }
    }

    /// Whether whoever watches over this machine is told that all is well.
    #[must_use]
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        self.machine.phase().is_way_down() || self.keeper.is_fresh(now_ms)
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let machine_ms = self.machine.next_deadline().map(|us| us.div_ceil(1000));
        let ours = [self.keeper.deadline(), machine_ms, self.trial_until_ms];
        ours.into_iter().chain([self.drain_until_ms, self.force_at_ms]).flatten().min()
    }

    /// Takes an input in.
    pub fn step(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Timer => self.timer(now_ms, out),
            Input::Looked(wanted) => {
                let order = self.keeper.looked(now_ms, wanted);
                self.obey(order, out);
                self.form_is_known(now_ms, out);
            }
            Input::Spawned(pid) => self.spawned(now_ms, pid, out),
            Input::SpawnFailed(why) => self.agent_gone(now_ms, &why, out),
            Input::AgentEnded(how) => self.agent_gone(now_ms, &how, out),
            Input::Said(message) => self.said(now_ms, message, out),
            Input::Stop(power, why) => self.shutdown(now_ms, power, why, out),
            Input::Loaded(result) => self.loaded(now_ms, result, out),
            Input::Mended(phase) => {
                let prefix = format!("{}: ", phase.name());
                self.faults.retain(|fault| !fault.starts_with(&prefix));
                self.feed(now_ms, Event::Mended(phase), out);
            }
            Input::NobodyLeft => {
                if self.phase() == Phase::Killing {
                    self.feed(now_ms, Event::Done { ok: true }, out);
                }
            }
            Input::Unmounted => {
                if self.phase() == Phase::Unmounting {
                    self.feed(now_ms, Event::Done { ok: true }, out);
                }
            }
        }
    }

    fn timer(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let due = |at: &mut Option<u64>| at.take_if(|at| *at <= now_ms).is_some();
        if due(&mut self.trial_until_ms) && !self.phase().is_way_down() {
            out.push(Output::Say("trial: this kernel was not kept in time".into()));
            self.shutdown(now_ms, Power::Reboot, "the kernel on trial was not kept", out);
        }
        if due(&mut self.drain_until_ms) {
            out.push(Output::Say("drain: the agent was too slow".into()));
            self.end_agent(now_ms, out);
        }
        if due(&mut self.force_at_ms) {
            out.push(Output::EndAll { force: true });
        }
        let knew = self.keeper.is_hung();
        let order = self.keeper.timer(now_ms);
        if self.keeper.is_hung() && !knew {
            out.push(Output::Say("the agent is silent: killed".into()));
            self.feed(now_ms, Event::AgentDown, out);
        }
        self.obey(order, out);
        if self.machine.next_deadline().is_some_and(|us| us <= now_ms * 1000) {
            self.feed(now_ms, Event::Timer, out);
        }
    }

    fn spawned(&mut self, now_ms: u64, pid: u32, out: &mut Vec<Output>) {
        self.keeper.spawned(now_ms, pid);
        if self.phase() == Phase::Draining {
            // A stop that came in between.
            self.end_agent(now_ms, out);
            return;
        }
        let (phase, reason) = (self.phase(), self.reason());
        out.push(Output::Tell(ToAgent::Phase { phase, reason }));
    }

    fn agent_gone(&mut self, now_ms: u64, how: &str, out: &mut Vec<Output>) {
        self.keeper.ended(now_ms, how);
        out.push(Output::Say(format!("the agent {how}")));
        match self.phase() {
            Phase::Draining => self.feed(now_ms, Event::Done { ok: true }, out),
            phase if phase.is_way_down() => {}
            _ => {
                self.form_is_known(now_ms, out);
                self.feed(now_ms, Event::AgentDown, out);
            }
        }
    }

    fn said(&mut self, now_ms: u64, message: ToInit, out: &mut Vec<Output>) {
        self.keeper.heard(now_ms);
        match message {
            ToInit::Alive => {}
            ToInit::Ready => self.feed(now_ms, Event::AgentUp, out),
            ToInit::Drained => {
                if self.phase() == Phase::Draining && self.drain_until_ms.take().is_some() {
                    self.end_agent(now_ms, out);
                }
            }
            ToInit::Power(power) => self.shutdown(now_ms, power, "the agent asks for it", out),
            ToInit::Kexec(dir) => {
                let refused = if !self.settings.kexec {
                    "this is no machine of its own"
                } else if self.loading {
                    "a kernel is being loaded"
                } else if self.phase().is_way_down() {
                    "the machine is going down"
                } else {
                    self.loading = true;
                    out.push(Output::LoadKernel(dir));
                    return;
                };
                out.push(Output::Tell(ToAgent::Refused { reason: refused.into() }));
            }
            ToInit::Kept => {
                if self.trial_until_ms.take().is_some() {
                    out.push(Output::Say("trial: this kernel is kept".into()));
                }
            }
            ToInit::Retry => {
                let order = self.keeper.retry(now_ms);
                self.obey(order, out);
            }
        }
    }

    fn loaded(&mut self, now_ms: u64, result: Result<(), String>, out: &mut Vec<Output>) {
        self.loading = false;
        match result {
            Ok(()) if !self.phase().is_way_down() => {
                self.shutdown(now_ms, Power::Kexec, "a new kernel is loaded", out);
            }
            Ok(()) => {}
            Err(reason) => {
                out.push(Output::Say(format!("kexec: refused: {reason}")));
                out.push(Output::Tell(ToAgent::Refused { reason }));
            }
        }
    }

    fn shutdown(&mut self, now_ms: u64, power: Power, why: &'static str, out: &mut Vec<Output>) {
        if !self.phase().is_way_down() {
            self.why = why;
        }
        self.keeper.close();
        self.feed(now_ms, Event::Shutdown(power), out);
    }

    /// Full or Maintenance, as the machine's phase shows it.
    fn form_is_known(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let full = self.keeper.form() == Form::Full;
        self.feed(now_ms, Event::Configured(full), out);
    }

    fn feed(&mut self, now_ms: u64, event: Event, out: &mut Vec<Output>) {
        let mut actions = Vec::new();
        self.machine.step(now_ms.saturating_mul(1000), event, &mut actions);
        for action in actions {
            let (Action::Report(phase) | Action::Enter(phase)) = action;
            out.push(Output::Report(phase, self.reason()));
            if action == Action::Enter(phase) {
                self.enter(now_ms, phase, out);
            }
        }
    }

    fn enter(&mut self, now_ms: u64, phase: Phase, out: &mut Vec<Output>) {
        match phase {
            Phase::Draining => self.drain(now_ms, out),
            Phase::Killing => {
                self.drain_until_ms = None;
                self.force_at_ms = Some(now_ms + TERM_MS);
                out.push(Output::EndAll { force: false });
            }
            Phase::Unmounting => {
                self.force_at_ms = None;
                out.push(Output::Unmount);
            }
            Phase::Ended(power) => out.push(Output::End(power)),
            _ => {}
        }
    }

    /// One that has never spoken cannot be asked.
    fn drain(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.keeper.speaks() && self.keeper.form() == Form::Full {
            let within_ms = u32::try_from(self.settings.drain_ms).unwrap_or(u32::MAX);
            let power = self.machine.power();
            out.push(Output::Tell(ToAgent::Drain { within_ms, power }));
            self.drain_until_ms = Some(now_ms + self.settings.drain_ms);
        } else {
            self.end_agent(now_ms, out);
        }
    }

    fn end_agent(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.drain_until_ms = None;
        let order = self.keeper.end(now_ms, self.settings.grace_ms);
        self.obey(order, out);
        if self.keeper.is_down() {
            self.feed(now_ms, Event::Done { ok: true }, out);
        }
    }

    fn obey(&self, order: Option<Order>, out: &mut Vec<Output>) {
        out.extend(order.map(|order| match order {
            Order::Look => Output::Look,
            Order::Spawn(form) => {
                let why = if form == Form::Full { "" } else { self.keeper.reason() };
                Output::Spawn(form, why.to_owned())
            }
            Order::Signal(pid, signal) => Output::Signal(pid, signal),
        }));
    }
}

#[cfg(test)]
mod tests;
