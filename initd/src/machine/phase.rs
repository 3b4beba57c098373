//! The life of a machine as a state machine without IO.
//!
//! ```text
//! Early ─▶ Coldplug ─▶ NetUp ─▶ State ─┬▶ Running ⇄ Degraded ─┐
//!                                      └▶ Maintenance ────────┤ (nothing configured: still on the mesh)
//!                                                             ▼
//!             Ended(Off|Reboot|Halt|Kexec) ◀─ Unmounting ◀─ Killing ◀─ Draining
//! ```
//!
//! Invariants: no event leads back from the way down to the way up; every state of the way down has a
//! deadline, so that a machine told to go off goes off; a phase that fails on the way up is remembered as a
//! fault and passed, because a node that is reachable can be repaired and one that halts cannot.

use std::collections::BTreeSet;

/// How long Draining may take when nobody says otherwise.
pub const DRAIN_US: u64 = 30_000_000;
/// How long everything may take to end, SIGTERM and SIGKILL together.
pub const KILL_US: u64 = 8_000_000;
/// How long sync and unmount may take before the machine goes off regardless.
pub const UNMOUNT_US: u64 = 20_000_000;

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Mounts, cgroups, console, limits.
    Early,
    /// Modules for the devices that are there.
    Coldplug,
    /// Link, carrier, address, host name.
    NetUp,
    /// Clock, entropy, the place that outlives a reboot.
    State,
    /// All is well.
    Running,
    /// The agent is down or something failed on the way up; it goes on.
    Degraded,
    /// No configuration: an operator must bring one.
    Maintenance,
    /// No new work; pods are asked to end.
    Draining,
    /// Everything is killed.
    Killing,
    /// File systems are synced and let go.
    Unmounting,
    /// The last thing this kernel does.
    Ended(Power),
}

impl Phase {
    /// Lower-case name, as on the console.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Early => "early",
            Self::Coldplug => "coldplug",
            Self::NetUp => "net-up",
            Self::State => "state",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Maintenance => "maintenance",
            Self::Draining => "draining",
            Self::Killing => "killing",
            Self::Unmounting => "unmounting",
            Self::Ended(power) => power.name(),
        }
    }

    /// The phase of this [`Phase::name`].
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        const STILL: [Phase; 10] = [
            Phase::Early,
            Phase::Coldplug,
            Phase::NetUp,
            Phase::State,
            Phase::Running,
            Phase::Degraded,
            Phase::Maintenance,
            Phase::Draining,
            Phase::Killing,
            Phase::Unmounting,
        ];
        let ended = Power::ALL.into_iter().map(Self::Ended);
        STILL.into_iter().chain(ended).find(|phase| phase.name() == name)
    }

    /// Told to end, or ended.
    #[must_use]
    pub fn is_way_down(self) -> bool {
        matches!(self, Self::Draining | Self::Killing | Self::Unmounting | Self::Ended(_))
    }
}

/// What ends a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Power {
    /// Power off.
    Off,
    /// Cold reboot through the firmware.
    Reboot,
    /// Stop without power off.
    Halt,
    /// Start the kernel that has been loaded, without the firmware.
    Kexec,
}

impl Power {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Off, Self::Reboot, Self::Halt, Self::Kexec];

    /// The short word of commands: `off`, `reboot`, `halt`, `kexec`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reboot | Self::Halt | Self::Kexec => self.name(),
        }
    }

    /// The one of that word.
    #[must_use]
    pub fn by_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|power| power.word() == word)
    }

    /// Lower-case name, as on the console.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "power-off",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
            Self::Kexec => "kexec",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The current phase is through; `ok` is false when part of it failed.
    Done {
        /// Whether all of it worked.
        ok: bool,
    },
    /// There is a node configuration (known when State is through), or there is one now.
    Configured(bool),
    /// What failed in this phase has come right since.
    Mended(Phase),
    /// The agent answers.
    AgentUp,
    /// The agent fell.
    AgentDown,
    /// An operator, a signal or the power button.
    Shutdown(Power),
    /// The clock reached [`Machine::next_deadline`].
    Timer,
}

/// What the shell must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Do the work of this phase, then say [`Event::Done`].
    Enter(Phase),
    /// Tell the console and the mesh.
    Report(Phase),
}

/// One machine. Time is monotonic microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    phase: Phase,
    power: Power,
    faults: BTreeSet<Phase>,
    configured: bool,
    agent_up: bool,
    drain_us: u64,
    deadline_us: Option<u64>,
}

impl Machine {
    /// A machine whose kernel has just started PID 1. `drain_us` is how long Draining may take.
    #[must_use]
    pub fn new(drain_us: u64) -> Self {
        Self {
            phase: Phase::Early,
            power: Power::Off,
            faults: BTreeSet::new(),
            configured: false,
            // The agent is given its first chance before anybody calls the machine degraded.
            agent_up: true,
            drain_us,
            deadline_us: None,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How long Draining may take from now on.
    pub fn set_drain(&mut self, drain_us: u64) {
        self.drain_us = drain_us;
    }

    /// What ends it, once it is told to.
    #[must_use]
    pub fn power(&self) -> Power {
        self.power
    }

    /// Phases that failed on the way up.
    pub fn faults(&self) -> impl Iterator<Item = Phase> {
        self.faults.iter().copied()
    }

    /// When [`Event::Timer`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadline_us
    }

    /// Takes one event; appends what must be done.
    pub fn step(&mut self, now_us: u64, event: Event, out: &mut Vec<Action>) {
        match event {
            Event::Done { ok } => self.done(now_us, ok, out),
            Event::Configured(yes) => {
                self.configured = yes;
                self.settle(out);
            }
            Event::Mended(phase) => {
                self.faults.remove(&phase);
                self.settle(out);
            }
            Event::AgentUp | Event::AgentDown => {
                self.agent_up = event == Event::AgentUp;
                self.settle(out);
            }
            Event::Shutdown(power) => self.shutdown(now_us, power, out),
            Event::Timer => {
                if self.deadline_us.is_some_and(|at| now_us >= at) {
                    self.done(now_us, false, out);
                }
            }
        }
    }

    fn done(&mut self, now_us: u64, ok: bool, out: &mut Vec<Action>) {
        if !ok && !self.phase.is_way_down() {
            self.faults.insert(self.phase);
        }
        match self.phase {
            Phase::Early => self.enter(Phase::Coldplug, None, out),
            Phase::Coldplug => self.enter(Phase::NetUp, None, out),
            Phase::NetUp => self.enter(Phase::State, None, out),
            Phase::State => {
                self.phase = self.resting();
                out.push(Action::Report(self.phase));
            }
            Phase::Running | Phase::Degraded | Phase::Maintenance | Phase::Ended(_) => {}
            Phase::Draining => self.enter(Phase::Killing, Some(now_us + KILL_US), out),
            Phase::Killing => self.enter(Phase::Unmounting, Some(now_us + UNMOUNT_US), out),
            Phase::Unmounting => self.enter(Phase::Ended(self.power), None, out),
        }
    }

    /// A first wish drains; a second one, whatever it says, does not wait for the drain.
    fn shutdown(&mut self, now_us: u64, power: Power, out: &mut Vec<Action>) {
        match self.phase {
            Phase::Killing | Phase::Unmounting => self.power = power,
            Phase::Ended(_) => {}
            Phase::Draining => {
                self.power = power;
                self.enter(Phase::Killing, Some(now_us + KILL_US), out);
            }
            Phase::Early | Phase::Coldplug | Phase::NetUp | Phase::State => {
                // No workload has been started yet.
                self.power = power;
                self.enter(Phase::Killing, Some(now_us + KILL_US), out);
            }
            Phase::Running | Phase::Degraded | Phase::Maintenance => {
                self.power = power;
                self.enter(Phase::Draining, Some(now_us + self.drain_us), out);
            }
        }
    }

    fn enter(&mut self, phase: Phase, deadline_us: Option<u64>, out: &mut Vec<Action>) {
        self.phase = phase;
        self.deadline_us = deadline_us;
        out.push(Action::Enter(phase));
    }

    fn resting(&self) -> Phase {
        match (self.configured, self.agent_up && self.faults.is_empty()) {
            (false, _) => Phase::Maintenance,
            (true, true) => Phase::Running,
            (true, false) => Phase::Degraded,
        }
    }

    fn settle(&mut self, out: &mut Vec<Action>) {
        let rests = matches!(self.phase, Phase::Running | Phase::Degraded | Phase::Maintenance);
        let next = self.resting();
        if rests && next != self.phase {
            self.phase = next;
            out.push(Action::Report(next));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(m: &mut Machine, events: &[Event]) -> Vec<Action> {
        let mut out = Vec::new();
        for (now, event) in (1u64..).zip(events) {
            m.step(now, *event, &mut out);
        }
        out
    }

    fn booted(ok: bool, configured: bool) -> Machine {
        let mut m = Machine::new(DRAIN_US);
        let done = Event::Done { ok: true };
        run(&mut m, &[done, Event::Done { ok }, done, Event::Configured(configured), done]);
        m
    }

    #[test]
    fn the_way_up_is_one_line_and_a_failed_phase_is_passed() {
        assert_eq!(booted(true, true).phase(), Phase::Running);
        assert_eq!(booted(true, false).phase(), Phase::Maintenance);
        let m = booted(false, true);
        assert_eq!(m.phase(), Phase::Degraded);
        assert_eq!(m.faults().collect::<Vec<_>>(), [Phase::Coldplug]);
    }

    #[test]
    fn the_agent_makes_it_degraded_and_running_again() {
        let mut m = booted(true, true);
        assert_eq!(run(&mut m, &[Event::AgentDown]), [Action::Report(Phase::Degraded)]);
        assert_eq!(run(&mut m, &[Event::AgentDown]), []);
        assert_eq!(run(&mut m, &[Event::AgentUp]), [Action::Report(Phase::Running)]);
    }

    #[test]
    fn the_way_down_ends_even_if_nothing_answers() {
        let mut m = booted(true, true);
        let mut out = Vec::new();
        m.step(10, Event::Shutdown(Power::Reboot), &mut out);
        assert_eq!(m.phase(), Phase::Draining);
        m.step(11, Event::Timer, &mut out);
        assert_eq!(m.phase(), Phase::Draining, "the deadline is not there yet");
        while let Some(at) = m.next_deadline() {
            m.step(at, Event::Timer, &mut out);
        }
        assert_eq!(m.phase(), Phase::Ended(Power::Reboot));
        run(&mut m, &[Event::AgentUp, Event::Configured(true), Event::Shutdown(Power::Off)]);
        assert_eq!(m.phase(), Phase::Ended(Power::Reboot));
    }

    #[test]
    fn a_second_wish_does_not_wait_and_is_the_one_that_counts() {
        let mut m = booted(true, false);
        run(&mut m, &[Event::Shutdown(Power::Reboot), Event::Shutdown(Power::Off)]);
        assert_eq!(m.phase(), Phase::Killing);
        run(&mut m, &[Event::Done { ok: true }, Event::Done { ok: true }]);
        assert_eq!(m.phase(), Phase::Ended(Power::Off));
    }

    #[test]
    fn a_power_button_during_boot_needs_no_drain() {
        let mut m = Machine::new(DRAIN_US);
        assert_eq!(run(&mut m, &[Event::Shutdown(Power::Off)]), [Action::Enter(Phase::Killing)]);
    }
}
