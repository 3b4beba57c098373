//! What PID 1 does when. No clock, no process.
//!
//! ```text
//!  Down ─Spawn▶ Up ─ended▶ Down (waits, doubling) ... ─Stop▶ Stopping ─ended▶ End
//! ```

use crate::machine::Power;

/// First wait before the agent is started again.
const FIRST_MS: u64 = 100;
/// Longest.
const LONGEST_MS: u64 = 10_000;
/// An agent that ran this long starts over with the first.
const LONG_RUN_MS: u64 = 30_000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Begin.
    Start,
    /// The agent runs with this PID.
    Spawned(u32),
    /// It could not be started.
    SpawnFailed,
    /// It was reaped.
    AgentEnded,
    /// The node is to end.
    Stop(Power),
    /// A deadline has passed.
    Timer,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Start the agent.
    Spawn,
    /// Send it a signal.
    Signal(u32, i32),
    /// End everything else, then the machine (or the namespace).
    End(Power),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    Down { again_at_ms: u64 },
    Up { pid: u32, since_ms: u64 },
}

/// PID 1's state.
#[derive(Debug, Clone)]
pub struct Core {
    agent: Agent,
    wait_ms: u64,
    grace_ms: u64,
    /// When the agent is killed, and what comes then.
    stop: Option<(u64, Power)>,
}

impl Core {
    /// The agent is down and due at once.
    #[must_use]
    pub fn new(grace_ms: u64) -> Self {
        Self { agent: Agent::Down { again_at_ms: 0 }, wait_ms: FIRST_MS, grace_ms, stop: None }
    }

    /// The agent's PID while it runs.
    #[must_use]
    pub fn agent(&self) -> Option<u32> {
        match self.agent {
            Agent::Up { pid, .. } => Some(pid),
            Agent::Down { .. } => None,
        }
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        match (self.stop, self.agent) {
            (Some((kill_at_ms, _)), _) => Some(kill_at_ms),
            (None, Agent::Down { again_at_ms }) => Some(again_at_ms),
            (None, Agent::Up { .. }) => None,
        }
    }

    /// Takes an input in; at most one thing is to be done.
    pub fn step(&mut self, now_ms: u64, input: Input) -> Option<Output> {
        match input {
            Input::Start | Input::Timer => self.due(now_ms),
            Input::Spawned(pid) => {
                self.agent = Agent::Up { pid, since_ms: now_ms };
                // A stop that came in between.
                self.stop.map(|_| Output::Signal(pid, libc::SIGTERM))
            }
            Input::SpawnFailed | Input::AgentEnded => {
                if let Some((_, power)) = self.stop {
                    return Some(Output::End(power));
                }
                if let Agent::Up { since_ms, .. } = self.agent
                    && now_ms.saturating_sub(since_ms) >= LONG_RUN_MS
                {
                    self.wait_ms = FIRST_MS;
                }
                self.agent = Agent::Down { again_at_ms: now_ms + self.wait_ms };
                self.wait_ms = (self.wait_ms * 2).min(LONGEST_MS);
                None
            }
            Input::Stop(power) => {
                if self.stop.is_some() {
                    return None;
                }
                self.stop = Some((now_ms + self.grace_ms, power));
                match self.agent {
                    Agent::Up { pid, .. } => Some(Output::Signal(pid, libc::SIGTERM)),
                    Agent::Down { .. } => Some(Output::End(power)),
                }
            }
        }
    }

    fn due(&mut self, now_ms: u64) -> Option<Output> {
        match (self.stop, self.agent) {
            (Some((kill_at_ms, power)), Agent::Up { pid, .. }) if kill_at_ms <= now_ms => {
                // Its end is what we wait for; should even this not end it, the next round kills again.
                self.stop = Some((now_ms + 1000, power));
                Some(Output::Signal(pid, libc::SIGKILL))
            }
            (Some((_, power)), Agent::Down { .. }) => Some(Output::End(power)),
            (None, Agent::Down { again_at_ms }) if again_at_ms <= now_ms => Some(Output::Spawn),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_started_again_with_capped_backoff() {
        let mut c = Core::new(1000);
        assert_eq!(c.step(0, Input::Start), Some(Output::Spawn));
        let (mut now, mut waits) = (0, Vec::new());
        for pid in 10..20 {
            assert_eq!(c.step(now, Input::Spawned(pid)), None);
            assert_eq!((c.agent(), c.next_deadline()), (Some(pid), None));
            assert_eq!(c.step(now, Input::AgentEnded), None);
            let at = c.next_deadline().expect("again");
            assert_eq!(c.step(at - 1, Input::Timer), None);
            assert_eq!(c.step(at, Input::Timer), Some(Output::Spawn));
            waits.push(at - now);
            now = at;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000]);
        c.step(now, Input::Spawned(9));
        c.step(now + LONG_RUN_MS, Input::AgentEnded);
        assert_eq!(c.next_deadline(), Some(now + LONG_RUN_MS + FIRST_MS));
    }

    #[test]
    fn a_stop_asks_then_kills_then_ends() {
        let mut c = Core::new(1000);
        c.step(0, Input::Start);
        c.step(0, Input::Spawned(7));
        assert_eq!(c.step(5, Input::Stop(Power::Reboot)), Some(Output::Signal(7, libc::SIGTERM)));
        assert_eq!(c.step(6, Input::Stop(Power::Off)), None);
        assert_eq!(c.next_deadline(), Some(1005));
        assert_eq!(c.step(1005, Input::Timer), Some(Output::Signal(7, libc::SIGKILL)));
        assert_eq!(c.step(1006, Input::AgentEnded), Some(Output::End(Power::Reboot)));
    }

    #[test]
    fn a_stop_finds_the_agent_down_or_on_its_way() {
        let mut c = Core::new(1000);
        c.step(0, Input::Start);
        c.step(0, Input::SpawnFailed);
        assert_eq!(c.step(1, Input::Stop(Power::Off)), Some(Output::End(Power::Off)));
        let mut c = Core::new(1000);
        c.step(0, Input::Start);
        c.step(0, Input::Stop(Power::Off));
        assert_eq!(c.step(1, Input::Spawned(7)), Some(Output::Signal(7, libc::SIGTERM)));
    }
}
