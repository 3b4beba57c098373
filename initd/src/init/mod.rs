//! PID 1: reaps, keeps the agent running, ends the node in order.
//!
//! One thread, one place where it waits. The agent is an ordinary child: when it ends it is started again with capped
//! backoff, and nothing that runs is touched. What `core` says is done here; nothing here can panic.

pub mod core;
pub mod link;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use self::core::{Core, Input, Output};
use crate::machine::{self, Power};
use crate::sys;

/// Children reaped before a signal is looked at again.
const REAPS_MAX: usize = 256;
/// How often what is left is looked at when a node is being ended.
const END_POLL_MS: u64 = 10;
/// How long processes have between SIGTERM and the end of their PID namespace.
const END_GRACE_MS: u64 = 5_000;

/// On what the role runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a development PID namespace: mounts `/proc` only, ends by exiting.
    Namespace,
    /// PID 1 of a machine: boots it ([`machine::boot`]), ends it by [`machine::halt`].
    Machine,
}

/// What PID 1 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// On what.
    pub mode: Mode,
    /// The agent: program and arguments.
    pub agent: Vec<OsString>,
    /// How long the agent has to end after SIGTERM.
    pub grace_ms: u32,
}

/// A nonblocking pipe that gets a byte for each SIGTERM and SIGINT that this process is sent: for a loop that ends in
/// order. Children do not inherit it. Once per process.
///
/// # Errors
/// [`crate::Error::Sys`].
pub fn end_signals() -> crate::Result<OwnedFd> {
    sys::signal_pipe(&[libc::SIGTERM, libc::SIGINT])
        .map_err(|e| crate::Error::sys("sigaction", "SIGTERM", e))
}

/// The PID 1 role. Returns the exit code of the namespace: 0 after an orderly stop, 1 when it is not PID 1 or could
/// not mount `/proc`. A machine never gets there.
///
/// SIGTERM and SIGPWR end the node (a machine powers off), SIGINT too (a machine reboots). SIGKILL from the parent
/// namespace is a power cut.
#[must_use]
pub fn main(config: &Config) -> i32 {
    if std::process::id() != 1 {
        say(format_args!(
            "quelead init: this role is for PID 1, and this is {}",
            std::process::id()
        ));
        return 1;
    }
    let mut booted = None;
    match config.mode {
        Mode::Machine => booted = Some(machine::boot()),
        Mode::Namespace => {
            if let Err(e) = mount_proc() {
                say(format_args!("quelead init: mount /proc: {}", std::io::Error::from(e)));
                return 1;
            }
        }
    }
    // SIGKILL and SIGSTOP do not reach PID 1 from inside; what has no handler does not either.
    let signals =
        match sys::signal_pipe(&[libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGCHLD]) {
            Ok(pipe) => Signals { pipe },
            Err(e) => {
                say(format_args!("quelead init: signals: {}", std::io::Error::from(e)));
                return 1;
            }
        };
    let epoch = Instant::now();
    let now_ms = || u64::try_from(epoch.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut core = Core::new(u64::from(config.grace_ms));
    let mut input = Input::Start;
    loop {
        let mut next = Some(input);
        while let Some(input) = next.take() {
            match core.step(now_ms(), input) {
                Some(Output::Spawn) => {
                    next = Some(match spawn(&config.agent) {
                        Ok(pid) => Input::Spawned(pid),
                        Err(e) => {
                            say(format_args!("quelead init: start the agent: {e}"));
                            Input::SpawnFailed
                        }
                    });
                }
                Some(Output::Signal(pid, signal)) => {
                    let _ = sys::kill(i32::try_from(pid).unwrap_or(i32::MAX), signal);
                }
                Some(Output::End(power)) => return end(config.mode, power, &signals),
                None => {}
            }
        }
        input = wait(&mut core, &mut booted, &signals, &now_ms);
    }
}

/// The next thing that happens; children that are nobody's are reaped on the way.
fn wait(
    core: &mut Core,
    booted: &mut Option<machine::Booted>,
    signals: &Signals,
    now_ms: &dyn Fn() -> u64,
) -> Input {
    loop {
        for _ in 0..REAPS_MAX {
            let Ok(Some(pid)) = sys::peek_ended() else { break };
            let status = sys::reap(pid).ok().flatten().unwrap_or(0);
            if core.agent() == Some(pid) {
                say(format_args!("quelead init: the agent ended: {}", describe(status)));
                return Input::AgentEnded;
            }
            if let (Some(booted), Ok(pid)) = (booted.as_mut(), i32::try_from(pid)) {
                booted.reaped(pid);
            }
        }
        let left = core.next_deadline().map(|at| at.saturating_sub(now_ms()));
        if left == Some(0) {
            return Input::Timer;
        }
        match signals.next(left) {
            Some(libc::SIGTERM) => return Input::Stop(Power::Off),
            Some(libc::SIGPWR) => return Input::Stop(Power::Off),
            Some(libc::SIGINT) => return Input::Stop(Power::Reboot),
            // SIGCHLD, the end of the time, or something that does not concern us.
            _ => {}
        }
    }
}

/// A line on standard error; nobody there to read it is no reason to fall (eprintln would).
fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "quelea init: {line}");
}

/// The signals that have come.
struct Signals {
    pipe: OwnedFd,
}

impl Signals {
    /// Waits for the next, at most this long when given.
    fn next(&self, timeout_ms: Option<u64>) -> Option<i32> {
        let timeout = timeout_ms.map(|ms| Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: (ms % 1000 * 1_000_000) as _,
        });
        let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
        // EINTR: the handler has written by now, or the caller comes again.
        let _ = poll(&mut fds, timeout.as_ref());
        let mut byte = [0u8; 1];
        match rustix::io::read(&self.pipe, &mut byte) {
            Ok(1) => byte.first().map(|b| i32::from(*b)),
            _ => None,
        }
    }
}

fn describe(status: i32) -> String {
    if libc::WIFEXITED(status) {
        format!("code {}", libc::WEXITSTATUS(status))
    } else {
        format!("signal {}", libc::WTERMSIG(status))
    }
}

fn spawn(agent: &[OsString]) -> std::io::Result<u32> {
    let (program, arguments) =
        agent.split_first().ok_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).spawn()?;
    // Dropping the handle neither kills nor reaps: that is this module's work.
    Ok(child.id())
}

fn mount_proc() -> rustix::io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // The host must not see this mount, whoever made the namespace.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>)
}

/// The agent is gone; everything else follows.
fn end(mode: Mode, power: Power, signals: &Signals) -> i32 {
    if mode == Mode::Machine {
        machine::halt(power);
    }
    // Shims stop their pods in order. The kernel kills what is left when this process exits.
    let _ = sys::kill(-1, libc::SIGTERM);
    let deadline = Instant::now() + std::time::Duration::from_millis(END_GRACE_MS);
    loop {
        match sys::peek_ended() {
            Ok(Some(pid)) => {
                let _ = sys::reap(pid);
            }
            Ok(None) if Instant::now() < deadline => {
                let _ = signals.next(Some(END_POLL_MS));
            }
            // ECHILD: nobody is left.
            Ok(None) | Err(_) => return 0,
        }
    }
}
