//! When the agent runs, in which form, and when it counts as hung. No clock, no process.
//!
//! ```text
//!  Waiting ─due▶ Looking ─configuration▶ Starting ─▶ Up ─ended▶ Waiting (doubling)
//!     FALLS_MAX falls within FALLS_MS ─▶ the Maintenance form; every RETRY_MS, or when told, the full one again
//! ```

use std::collections::VecDeque;

use super::link::ALIVE_MS_MAX;

/// First wait before the agent is started again.
const FIRST_MS: u64 = 100;
/// Longest.
const LONGEST_MS: u64 = 10_000;
/// An agent that ran this long starts over with the first.
const LONG_RUN_MS: u64 = 30_000;
/// This many falls ...
const FALLS_MAX: usize = 5;
/// ... within this time end the full form.
const FALLS_MS: u64 = 60_000;
/// How long the Maintenance form runs before the full one has its next chance.
const RETRY_MS: u64 = 300_000;
/// The last part of [`ALIVE_MS_MAX`] is counted from when PID 1 looks: after a stop of the whole machine both have
/// lost the same time, and the agent must have its chance to speak.
const DOUBT_MS: u64 = 2_000;
/// An agent silent for longer should have been killed and gone by now: only the watchdog can help.
const LOST_MS: u64 = ALIVE_MS_MAX + 3_000;
/// How long a killed agent may take to be gone before it is killed again.
const KILL_AGAIN_MS: u64 = 1_000;

/// How the agent is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// All it does.
    Full,
    /// On the mesh and reachable, no pods.
    Maintenance,
    /// Without a configuration: it waits to be adopted.
    Stranger,
}

/// What the node's configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// There is none: nothing to start the agent with.
    Nothing,
    /// There is none, and somebody may bring one over the network.
    Stranger,
    /// It says `maintenance = true`.
    Maintenance,
    /// The agent.
    Full,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// See what the configuration asks for.
    Look,
    /// Start the agent.
    Spawn(Form),
    /// Send it a signal.
    Signal(u32, i32),
}

#[derive(Debug, Clone, Copy)]
struct Life {
    pid: u32,
    since_ms: u64,
    heard_ms: Option<u64>,
    /// Silent for long: killed at this time unless it speaks.
    doubted: Option<u64>,
    /// Told to end: killed (again) at this time.
    ending: Option<u64>,
    hung: bool,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Waiting { at_ms: u64 },
    Looking,
    Starting,
    Up(Life),
}

/// The agent's life.
#[derive(Debug, Clone)]
pub struct Keeper {
    state: State,
    form: Form,
    wait_ms: u64,
    falls: VecDeque<u64>,
    /// The full form after Maintenance: one early fall is enough.
    on_trial: bool,
    retry_at_ms: Option<u64>,
    /// How long a new agent may take to say its first word; `None`: one that never speaks is left alone.
    first_word_ms: Option<u64>,
    closed: bool,
    reason: String,
}

impl Keeper {
    /// The agent is down and due at once.
    #[must_use]
    pub fn new(first_word_ms: Option<u64>) -> Self {
        Self {
            state: State::Waiting { at_ms: 0 },
            form: Form::Full,
            wait_ms: FIRST_MS,
            falls: VecDeque::new(),
            on_trial: false,
            retry_at_ms: None,
            first_word_ms,
            closed: false,
            reason: String::new(),
        }
    }

    /// Its PID while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        if let State::Up(life) = self.state { Some(life.pid) } else { None }
    }

    /// In which form it runs or will be started.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Why it is down or in Maintenance.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// It has said something in this life.
    #[must_use]
    pub fn speaks(&self) -> bool {
        matches!(self.state, State::Up(Life { heard_ms: Some(_), .. }))
    }

    /// The machine is in good hands: the agent speaks, is young, or is down and will be started again. False: it
    /// hangs, and whoever watches this machine may end it.
    #[must_use]
    pub fn is_fresh(&self, now_ms: u64) -> bool {
        let State::Up(life) = self.state else { return true };
        match (life.heard_ms, self.first_word_ms) {
            (Some(heard), _) => now_ms.saturating_sub(heard) <= LOST_MS,
            (None, Some(first)) => {
                now_ms.saturating_sub(life.since_ms) <= first + LOST_MS - ALIVE_MS_MAX
            }
            (None, None) => true,
        }
    }

    /// It was silent for too long and is being killed.
    #[must_use]
    pub fn is_hung(&self) -> bool {
        matches!(self.state, State::Up(Life { hung: true, .. }))
    }

    /// When [`Keeper::timer`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let life = match self.state {
            State::Waiting { at_ms } => return (!self.closed).then_some(at_ms),
            State::Looking | State::Starting => return None,
            State::Up(life) => life,
        };
        let silent = match (life.ending, life.doubted, life.heard_ms) {
            (Some(kill), _, _) => Some(kill),
            (None, Some(kill), _) => Some(kill),
            (None, None, Some(heard)) => Some(heard + ALIVE_MS_MAX - DOUBT_MS),
            (None, None, None) => self.first_word_ms.map(|first| life.since_ms + first - DOUBT_MS),
        };
        let retry = self.retry_at_ms.filter(|_| life.ending.is_none() && !self.closed);
        silent.into_iter().chain(retry).min()
    }

    /// A deadline has passed.
    pub fn timer(&mut self, now_ms: u64) -> Option<Order> {
        if self.deadline().is_none_or(|at| now_ms < at) {
            return None;
        }
        let kill = match &mut self.state {
            State::Waiting { .. } => {
                self.state = State::Looking;
                return Some(Order::Look);
            }
            State::Looking | State::Starting => return None,
            State::Up(life) => {
                let kill = Order::Signal(life.pid, libc::SIGKILL);
                if life.ending.is_some_and(|at| at <= now_ms) {
                    life.ending = Some(now_ms + KILL_AGAIN_MS);
                    return Some(kill);
                }
                match life.doubted {
                    Some(at) if at <= now_ms => {
                        life.hung = true;
                        life.ending = Some(now_ms + KILL_AGAIN_MS);
                        Some(kill)
                    }
                    _ => None,
                }
            }
        };
        if kill.is_some() {
            self.reason = "the agent hung and was killed".into();
            return kill;
        }
        if self.retry_at_ms.is_some_and(|at| at <= now_ms) {
            return self.retry(now_ms);
        }
        if let State::Up(life) = &mut self.state
            && life.doubted.is_none()
        {
            life.doubted = Some(now_ms + DOUBT_MS);
        }
        None
    }

    /// The configuration asks for this.
    pub fn looked(&mut self, now_ms: u64, wanted: Wanted) -> Option<Order> {
        if self.closed {
            self.state = State::Waiting { at_ms: now_ms };
            return None;
        }
        match wanted {
            Wanted::Nothing => {
                self.form = Form::Maintenance;
                self.reason = "no configuration of a node".into();
                self.state = State::Waiting { at_ms: now_ms + RETRY_MS };
                return None;
            }
            Wanted::Stranger => {
                self.form = Form::Stranger;
                self.reason = "no configuration of a node".into();
                self.retry_at_ms = None;
            }
            Wanted::Maintenance => {
                self.form = Form::Maintenance;
                self.reason = "the configuration asks for maintenance".into();
                self.retry_at_ms = None;
            }
            Wanted::Full if self.form != Form::Full && self.retry_at_ms.is_none() => {
                self.form = Form::Full;
                self.reason.clear();
            }
            Wanted::Full => {}
        }
        self.state = State::Starting;
        Some(Order::Spawn(self.form))
    }

    /// It runs with this PID.
    pub fn spawned(&mut self, now_ms: u64, pid: u32) {
        self.state = State::Up(Life {
            pid,
            since_ms: now_ms,
            heard_ms: None,
            doubted: None,
            ending: None,
            hung: false,
        });
    }

    /// It has said something.
    pub fn heard(&mut self, now_ms: u64) {
        if let State::Up(life) = &mut self.state {
            life.heard_ms = Some(now_ms);
            life.doubted = None;
        }
    }

    /// It was reaped or could not be started; `how` in a few words.
    pub fn ended(&mut self, now_ms: u64, how: &str) {
        let life = if let State::Up(life) = self.state { Some(life) } else { None };
        let asked = life.is_some_and(|l| l.ending.is_some() && !l.hung);
        if !life.is_some_and(|l| l.hung) && !asked {
            self.reason = format!("the agent {how}");
        }
        if life.is_some_and(|l| now_ms.saturating_sub(l.since_ms) >= LONG_RUN_MS) || asked {
            self.wait_ms = FIRST_MS;
        }
        self.state = State::Waiting { at_ms: now_ms + self.wait_ms };
        if asked {
            return;
        }
        self.wait_ms = (self.wait_ms * 2).min(LONGEST_MS);
        self.falls.retain(|at| now_ms.saturating_sub(*at) <= FALLS_MS);
        self.falls.push_back(now_ms);
        let too_often = self.falls.len() >= FALLS_MAX;
        let early = life.is_none_or(|l| now_ms.saturating_sub(l.since_ms) < FALLS_MS);
        if self.form == Form::Full && (too_often || self.on_trial && early) {
            self.form = Form::Maintenance;
            self.retry_at_ms = Some(now_ms + RETRY_MS);
            self.reason = if too_often {
                format!("the agent fell {FALLS_MAX} times in {} s; last, it {how}", FALLS_MS / 1000)
            } else {
                format!("the agent fell again after a new try: it {how}")
            };
            self.falls.clear();
        }
        self.on_trial &= early && self.form == Form::Full;
        while self.falls.len() >= FALLS_MAX {
            self.falls.pop_front();
        }
    }

    /// Leave Maintenance: the full form, at once. For one that was told so by its configuration this looks there again.
    pub fn retry(&mut self, now_ms: u64) -> Option<Order> {
        if self.closed || self.form == Form::Full {
            return None;
        }
        self.retry_at_ms = None;
        self.on_trial = true;
        self.wait_ms = FIRST_MS;
        match &mut self.state {
            State::Waiting { at_ms } => {
                *at_ms = now_ms;
                None
            }
            State::Looking | State::Starting => None,
            State::Up(_) => self.end(now_ms, KILL_AGAIN_MS * 5),
        }
    }

    /// No further start.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Asks it to end, and kills it after the grace.
    pub fn end(&mut self, now_ms: u64, grace_ms: u64) -> Option<Order> {
        let State::Up(life) = &mut self.state else { return None };
        if life.ending.is_none() {
            life.ending = Some(now_ms + grace_ms);
            return Some(Order::Signal(life.pid, libc::SIGTERM));
        }
        None
    }

    /// Nothing runs and nothing is about to.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state, State::Waiting { .. } | State::Looking)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(keeper: &mut Keeper, now: u64, pid: u32) -> Form {
        assert_eq!(keeper.timer(now), Some(Order::Look));
        let Some(Order::Spawn(form)) = keeper.looked(now, Wanted::Full) else { panic!("no spawn") };
        keeper.spawned(now, pid);
        form
    }

    #[test]
    fn five_falls_in_a_minute_lead_to_maintenance_and_five_minutes_back() {
        let mut k = Keeper::new(None);
        let (mut now, mut waits) = (0, Vec::new());
        for pid in 10..15 {
            assert_eq!(up(&mut k, now, pid), Form::Full);
            k.ended(now, "ended: code 1");
            let at = k.deadline().expect("again");
            assert_eq!(k.timer(at - 1), None);
            waits.push(at - now);
            now = at;
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600]);
        assert_eq!(up(&mut k, now, 20), Form::Maintenance);
        assert_eq!(k.reason(), "the agent fell 5 times in 60 s; last, it ended: code 1");
        // Its own falls change nothing but the wait.
        k.ended(now, "ended: code 2");
        now = k.deadline().expect("again");
        assert_eq!(up(&mut k, now, 21), Form::Maintenance);
        let at = k.deadline().expect("retry");
        assert!((290_000..=RETRY_MS).contains(&(at - now)));
        assert_eq!(k.timer(at), Some(Order::Signal(21, libc::SIGTERM)));
        k.ended(at + 5, "ended: code 0");
        let at = k.deadline().expect("at once");
        assert_eq!(up(&mut k, at, 22), Form::Full);
        // One early fall is enough now.
        k.ended(at + 10, "ended: signal 11");
        assert_eq!(k.form(), Form::Maintenance);
        assert_eq!(k.reason(), "the agent fell again after a new try: it ended: signal 11");
    }

    #[test]
    fn falls_far_apart_are_no_maintenance_and_a_long_run_resets_the_wait() {
        let mut k = Keeper::new(None);
        let mut now = 0;
        for pid in 1..40 {
            assert_eq!(up(&mut k, now, pid), Form::Full);
            now += LONG_RUN_MS;
            k.ended(now, "ended");
            assert_eq!(k.deadline(), Some(now + FIRST_MS));
            now += FIRST_MS;
        }
    }

    #[test]
    fn an_operator_says_retry() {
        let mut k = Keeper::new(None);
        let mut now = 0;
        for pid in 10..15 {
            up(&mut k, now, pid);
            k.ended(now, "ended");
            now = k.deadline().expect("again");
        }
        assert_eq!(up(&mut k, now, 20), Form::Maintenance);
        assert_eq!(k.retry(now), Some(Order::Signal(20, libc::SIGTERM)));
        assert_eq!(k.retry(now), None, "once");
        assert_eq!(k.timer(now + 5_000), Some(Order::Signal(20, libc::SIGKILL)));
        k.ended(now + 5_001, "ended: signal 9");
        assert_eq!(up(&mut k, now + 5_101, 21), Form::Full);
        assert_eq!(k.retry(now), None, "it is the full one");
    }

    #[test]
    fn a_silent_agent_is_killed_unless_the_whole_machine_stood_still() {
        let mut k = Keeper::new(None);
        up(&mut k, 0, 7);
        assert_eq!(k.deadline(), None, "one that never spoke is left alone");
        k.heard(1000);
        assert_eq!(k.deadline(), Some(9000));
        // The machine stood still for an hour.
        let now = 3_600_000;
        assert_eq!(k.timer(now), None);
        assert_eq!(k.deadline(), Some(now + DOUBT_MS));
        k.heard(now + 1);
        assert!(k.is_fresh(now + 2));
        let at = k.deadline().expect("doubt");
        assert_eq!(k.timer(at), None);
        assert_eq!(k.timer(at + DOUBT_MS), Some(Order::Signal(7, libc::SIGKILL)));
        assert_eq!(at + DOUBT_MS, now + 1 + ALIVE_MS_MAX);
        assert!(k.is_fresh(at + DOUBT_MS), "it may be gone in a moment");
        assert!(!k.is_fresh(at + DOUBT_MS + 3_001), "the watchdog may bite until it is gone");
        assert_eq!(k.timer(at + DOUBT_MS + 1000), Some(Order::Signal(7, libc::SIGKILL)));
        k.ended(at + 9000, "ended: signal 9");
        assert!(k.is_fresh(at + 9000));
        assert_eq!(k.reason(), "the agent hung and was killed");
    }

    #[test]
    fn the_first_word_has_its_time() {
        let mut k = Keeper::new(Some(60_000));
        up(&mut k, 0, 7);
        assert_eq!(k.deadline(), Some(58_000));
        assert_eq!(k.timer(58_000), None);
        assert_eq!(k.timer(60_000), Some(Order::Signal(7, libc::SIGKILL)));
    }

    #[test]
    fn no_configuration_starts_nothing_and_one_that_comes_does() {
        let mut k = Keeper::new(None);
        assert_eq!(k.timer(0), Some(Order::Look));
        assert_eq!(k.looked(0, Wanted::Nothing), None);
        assert_eq!((k.form(), k.is_down()), (Form::Maintenance, true));
        assert_eq!(k.deadline(), Some(RETRY_MS));
        assert_eq!(up(&mut k, RETRY_MS, 7), Form::Full);
        let mut k = Keeper::new(None);
        assert_eq!(k.timer(0), Some(Order::Look));
        assert_eq!(k.looked(0, Wanted::Maintenance), Some(Order::Spawn(Form::Maintenance)));
        k.spawned(0, 8);
        assert_eq!(k.deadline(), None, "it stays until told");
        assert_eq!(k.retry(5), Some(Order::Signal(8, libc::SIGTERM)));
    }

    #[test]
    fn a_stranger_that_was_adopted_becomes_the_full_agent() {
        let mut k = Keeper::new(None);
        assert_eq!(k.timer(0), Some(Order::Look));
        assert_eq!(k.looked(0, Wanted::Stranger), Some(Order::Spawn(Form::Stranger)));
        k.spawned(0, 8);
        // Its own falls change nothing but the wait.
        k.ended(1, "ended: code 1");
        assert_eq!(k.timer(101), Some(Order::Look));
        assert_eq!(k.looked(101, Wanted::Stranger), Some(Order::Spawn(Form::Stranger)));
        k.spawned(101, 9);
        assert_eq!(k.retry(500), Some(Order::Signal(9, libc::SIGTERM)));
        k.ended(510, "ended: code 0");
        let at = k.deadline().expect("at once");
        assert_eq!(up(&mut k, at, 10), Form::Full);
        assert_eq!(k.reason(), "");
    }
}
