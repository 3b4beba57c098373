//! How a node ends: pods moved away where others have room, the rest stopped, the flock told, then PID 1. Pure.
//!
//! ```text
//!            Drain                 none left, or late        none left, or the deadline
//!  Serving ─────────▶ Moving ─────────────────▶ Stopping ────────────────▶ Telling ─▶ Leaving ─▶ Over(Power)
//!     │  Quit: pods stay                                                      ▲
//!     └───────────────────────────────────────────────────────────────────────┘      ─▶ Over(Quit)
//! ```
//!
//! Invariants: nothing leads back to Serving; every state but Serving and Over has a deadline; a wish to quit never stops a pod.

/// How long the flock has to hear of a node's last records before it says goodbye, in microseconds: two rumour rounds.
pub const TELL_US: u64 = 500_000;
/// How long a goodbye may take, in microseconds.
pub const LEAVE_US_MAX: u64 = 1_500_000;
/// Kept back from a drain for what comes after the last pod, in milliseconds.
const AFTER_MS: u64 = 2_000;

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The machine ends: PID 1 is told that no pod runs.
    Power,
    /// This agent ends; its pods run on and the next agent finds them.
    Quit,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// No pod may run here after this time.
    Drain {
        /// Milliseconds from now.
        within_ms: u64,
        /// The longest grace of a pod here, in milliseconds.
        grace_ms: u64,
    },
    /// This agent is to end.
    Quit,
    /// How it stands.
    Seen {
        /// Pods here, in whatever state.
        pods: usize,
        /// Those that another node may take over: a daemon's pods belong here.
        movable: usize,
        /// Other nodes alive.
        others: usize,
    },
    /// Gossip has said goodbye.
    Left,
}

/// What has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take nothing new, and have what is here moved away.
    Move,
    /// Stop every pod; start none any more.
    Stop {
        /// Until they are killed, at most.
        grace_ms: u64,
    },
    /// Tell the flock that the pods stay while the agent is away.
    Stay,
    /// Say goodbye.
    Leave,
    /// Nothing is left to do here.
    Over(Purpose),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Serving,
    Moving { stop_us: u64, end_us: u64 },
    Stopping { end_us: u64 },
    Telling { until_us: u64 },
    Leaving { until_us: u64 },
    Over,
}

/// The end of one node. Time is monotonic microseconds.
#[derive(Debug)]
pub struct Life {
    state: State,
    purpose: Purpose,
}

impl Default for Life {
    fn default() -> Self {
        Self { state: State::Serving, purpose: Purpose::Quit }
    }
}

impl Life {
    /// Whether the node does what it is there for.
    pub fn serves(&self) -> bool {
        self.state == State::Serving
    }

    /// Whether it starts no pod any more, whatever it is told.
    pub fn is_closed(&self) -> bool {
        !matches!(self.state, State::Serving | State::Moving { .. })
    }

    /// Whether what runs here goes on without this agent.
    pub fn stays(&self) -> bool {
        !self.serves() && self.purpose == Purpose::Quit
    }

    /// When to look again: [`Input::Seen`] at the latest.
    pub fn next_deadline(&self) -> Option<u64> {
        match self.state {
            State::Serving | State::Over => None,
            State::Moving { stop_us, .. } => Some(stop_us),
            State::Stopping { end_us } => Some(end_us),
            State::Telling { until_us } | State::Leaving { until_us } => Some(until_us),
        }
    }

    /// Takes one input and appends what has to be done.
    pub fn step(&mut self, now_us: u64, input: Input, out: &mut Vec<Action>) {
        match (input, self.state) {
            (Input::Drain { within_ms, grace_ms }, State::Serving) => {
                self.purpose = Purpose::Power;
                let end_us = now_us + within_ms * 1000;
                // What cannot be moved has its grace, but moving gets half of the time.
                let kept_ms = (grace_ms + AFTER_MS).min(within_ms / 2);
                self.state = State::Moving { stop_us: end_us - kept_ms * 1000, end_us };
                out.push(Action::Move);
            }
            (Input::Quit, State::Serving) => {
                self.purpose = Purpose::Quit;
                out.push(Action::Stay);
                self.tell(now_us);
            }
            (Input::Seen { pods, movable, others }, State::Moving { stop_us, end_us }) => {
                if pods == 0 {
                    self.tell(now_us);
                } else if others == 0 || movable == 0 || now_us >= stop_us {
                    self.state = State::Stopping { end_us };
                    let left_ms = end_us.saturating_sub(now_us) / 1000;
                    out.push(Action::Stop { grace_ms: left_ms.saturating_sub(AFTER_MS / 2) });
                }
            }
            (Input::Seen { pods, .. }, State::Stopping { end_us })
                if pods == 0 || now_us >= end_us =>
            {
                self.tell(now_us);
            }
            (Input::Seen { .. }, State::Telling { until_us }) if now_us >= until_us => {
                self.state = State::Leaving { until_us: now_us + LEAVE_US_MAX };
                out.push(Action::Leave);
            }
            (Input::Seen { .. }, State::Leaving { until_us }) if now_us >= until_us => {
                self.over(out)
            }
            (Input::Left, State::Leaving { .. }) => self.over(out),
            _ => {}
        }
    }

    fn tell(&mut self, now_us: u64) {
        self.state = State::Telling { until_us: now_us + TELL_US };
    }

    fn over(&mut self, out: &mut Vec<Action>) {
        self.state = State::Over;
        out.push(Action::Over(self.purpose));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn step(life: &mut Life, now_us: u64, input: Input) -> Vec<Action> {
        let mut out = Vec::new();
        life.step(now_us, input, &mut out);
        out
    }

    fn seen(life: &mut Life, now_us: u64, pods: usize) -> Vec<Action> {
        step(life, now_us, Input::Seen { pods, movable: pods, others: 2 })
    }

    const DRAIN: Input = Input::Drain { within_ms: 30_000, grace_ms: 10_000 };

    #[test]
    fn pods_move_then_the_rest_is_stopped_then_the_flock_is_told() {
        let mut life = Life::default();
        assert_eq!(step(&mut life, 0, DRAIN), [Action::Move]);
        assert_eq!(seen(&mut life, S, 3), []);
        assert!(!life.is_closed() && !life.serves() && !life.stays());
        assert_eq!(life.next_deadline(), Some(18 * S), "10 s of grace and 2 s are kept");
        assert_eq!(seen(&mut life, 18 * S, 1), [Action::Stop { grace_ms: 11_000 }]);
        assert!(life.is_closed());
        assert_eq!(seen(&mut life, 20 * S, 0), []);
        assert_eq!(seen(&mut life, 20 * S + TELL_US, 0), [Action::Leave]);
        assert_eq!(step(&mut life, 21 * S, Input::Left), [Action::Over(Purpose::Power)]);
        assert_eq!(life.next_deadline(), None);
        assert_eq!(step(&mut life, 22 * S, Input::Quit), []);
    }

    #[test]
    fn a_node_alone_does_not_wait_for_others() {
        let mut life = Life::default();
        step(&mut life, 0, DRAIN);
        let alone = Input::Seen { pods: 1, movable: 1, others: 0 };
        assert_eq!(step(&mut life, 1, alone), [Action::Stop { grace_ms: 28_999 }]);
        // A pod that does not end keeps the machine no longer than it was told.
        assert_eq!(life.next_deadline(), Some(30 * S));
        assert_eq!(seen(&mut life, 30 * S, 1), []);
        assert_eq!(seen(&mut life, 31 * S, 1), [Action::Leave]);
        assert_eq!(seen(&mut life, 33 * S, 1), [Action::Over(Purpose::Power)], "unheard");
    }

    #[test]
    fn what_belongs_here_is_not_waited_for() {
        let mut life = Life::default();
        step(&mut life, 0, DRAIN);
        let one_of_two = Input::Seen { pods: 2, movable: 1, others: 2 };
        assert_eq!(step(&mut life, S, one_of_two), []);
        let daemon = Input::Seen { pods: 1, movable: 0, others: 2 };
        assert_eq!(step(&mut life, 2 * S, daemon), [Action::Stop { grace_ms: 27_000 }]);
    }

    #[test]
    fn an_agent_that_quits_stops_nothing() {
        let mut life = Life::default();
        assert_eq!(step(&mut life, 0, Input::Quit), [Action::Stay]);
        assert!(life.stays() && life.is_closed());
        assert_eq!(step(&mut life, 1, DRAIN), [], "too late: the next agent is told");
        assert_eq!(seen(&mut life, TELL_US, 5), [Action::Leave]);
        assert_eq!(step(&mut life, S, Input::Left), [Action::Over(Purpose::Quit)]);
    }

    #[test]
    fn a_short_drain_still_moves_for_half_of_it() {
        let mut life = Life::default();
        step(&mut life, 0, Input::Drain { within_ms: 4_000, grace_ms: 60_000 });
        assert_eq!(life.next_deadline(), Some(2 * S));
        let none = Input::Drain { within_ms: 0, grace_ms: 0 };
        let mut life = Life::default();
        step(&mut life, 5, none);
        assert_eq!(seen(&mut life, 5, 1), [Action::Stop { grace_ms: 0 }]);
    }
}
