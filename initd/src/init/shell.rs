//! PID 1's hands: processes, signals, the link, and the one place where it waits.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::core::{Core, Input, Output, Settings};
use super::keeper::{Form, Wanted};
use super::link::{self, InitEnd, ToAgent};
use super::{Config, Mode, say};
use crate::machine::phase::{DRAIN_US, Event, Machine, Phase};
use crate::machine::{self, Booted, Power};
use crate::sys;

/// Children reaped before anything else is looked at again.
const REAPS_MAX: usize = 256;
/// Messages taken from the agent before anything else is looked at again.
const MESSAGES_MAX: usize = 64;
/// How often what cannot be waited for is looked at on the way down.
const END_POLL_MS: u64 = 10;
/// After so long without anything to do, PID 1 lets go of the parts of its program that it no longer runs.
const QUIET_MS: u64 = 1_000;
/// Most of a configuration file that is looked at.
const CONFIG_BYTES_MAX: u64 = 64 << 10;

/// Everything PID 1 holds.
pub(super) struct Shell<'a> {
    config: &'a Config,
    core: Core,
    signals: OwnedFd,
    link: Option<InitEnd>,
    /// A machine's; `None` in a namespace.
    booted: Option<Booted>,
    /// Sync and unmount, while they run.
    unmounting: Option<std::thread::JoinHandle<()>>,
    /// When the program is let go of, after the last thing that was done.
    quiet_at_ms: Option<u64>,
}

impl<'a> Shell<'a> {
    pub(super) fn new(
        config: &'a Config,
        settings: Settings,
        booted: Option<Booted>,
    ) -> rustix::io::Result<Self> {
        // SIGKILL and SIGSTOP do not reach PID 1 from inside; what has no handler does not either.
        let signals =
            sys::signal_pipe(&[libc::SIGTERM, libc::SIGINT, libc::SIGPWR, libc::SIGCHLD])?;
        let (machine, faults) = match &booted {
            Some(booted) => (booted.machine.clone(), booted.faults.clone()),
            None => (namespace(), Vec::new()),
        };
        let core = Core::new(settings, machine, faults);
        Ok(Self { config, core, signals, link: None, booted, unmounting: None, quiet_at_ms: None })
    }

    /// Until the end of the namespace, which gets this exit code.
    pub(super) fn run(&mut self) -> i32 {
        let mut inputs = VecDeque::from([Input::Timer]);
        let mut outputs = Vec::new();
        loop {
            while let Some(input) = inputs.pop_front() {
                self.core.step(machine::monotonic_ms(), input, &mut outputs);
                for output in outputs.drain(..) {
                    self.quiet_at_ms = Some(machine::monotonic_ms() + QUIET_MS);
                    if let Output::End(power) = output {
                        return self.end(power);
                    }
                    if let Some(input) = perform(self, output) {
                        inputs.push_back(input);
                    }
                }
            }
            let more = self.gather(&mut inputs);
            if inputs.is_empty() && !more {
                self.sleep();
            }
        }
    }

    fn say(&self, line: std::fmt::Arguments<'_>) {
        match self.config.mode {
            Mode::Machine => machine::console::write_line(line),
            Mode::Namespace => say(line),
        }
    }

    /// What has happened, without waiting for more; whether there may be more at once.
    ///
    /// The signals are read first: a child that ends after they were read wakes us again, one that ends between a last look
    /// at the children and the reading would not. But what the agent said before a stop counts before it: one that has spoken is
    /// asked to drain.
    fn gather(&mut self, inputs: &mut VecDeque<Input>) -> bool {
        let stops = self.read_signals();
        self.listen(inputs);
        inputs.extend(stops);
        let more = self.reap(inputs);
        let now_ms = machine::monotonic_ms();
        if self.core.next_deadline().is_some_and(|at| at <= now_ms) {
            inputs.push_back(Input::Timer);
        }
        if self.unmounting.as_ref().is_some_and(std::thread::JoinHandle::is_finished) {
            self.unmounting = None;
            inputs.push_back(Input::Unmounted);
        }
        if let Some(booted) = &mut self.booted {
            booted.tend(self.core.is_fresh(now_ms), inputs);
        }
        more
    }

    /// The stops among them; SIGCHLD has done its work by waking us. A pipe holds no more than its size.
    fn read_signals(&self) -> Vec<Input> {
        let mut stops = Vec::new();
        let mut byte = [0u8; 1];
        while let Ok(1) = rustix::io::read(&self.signals, &mut byte) {
            stops.extend(match i32::from(byte[0]) {
                libc::SIGTERM => Some(Input::Stop(Power::Off, "SIGTERM")),
                libc::SIGPWR => Some(Input::Stop(Power::Off, "SIGPWR")),
                libc::SIGINT => Some(Input::Stop(Power::Reboot, "SIGINT")),
                _ => None,
            });
        }
        stops
    }

    /// Whether more may wait: [`REAPS_MAX`] a turn.
    fn reap(&mut self, inputs: &mut VecDeque<Input>) -> bool {
        for _ in 0..REAPS_MAX {
            let pid = match sys::peek_ended() {
                Ok(Some(pid)) => pid,
                Err(Errno::CHILD) if self.core.phase() == Phase::Killing => {
                    inputs.push_back(Input::NobodyLeft);
                    return false;
                }
                Ok(None) | Err(_) => return false,
            };
            let status = sys::reap(pid).ok().flatten().unwrap_or(0);
            if self.core.agent() == Some(pid) {
                // Its last words come first.
                self.listen(inputs);
                self.link = None;
                inputs.push_back(Input::AgentEnded(describe(status)));
                // One agent a round: the next may be somebody else's child of the same number.
                return true;
            }
            if let Some(booted) = &mut self.booted {
                let way_down = self.core.phase().is_way_down();
                booted.reaped_with(pid, status, way_down, inputs);
            }
        }
        true
    }

    fn listen(&mut self, inputs: &mut VecDeque<Input>) {
        for _ in 0..MESSAGES_MAX {
            let Some(link) = &self.link else { return };
            match link.receive() {
                Ok(Some(message)) => inputs.push_back(Input::Said(message)),
                Ok(None) => return,
                Err(crate::Error::Sys { .. }) => self.link = None,
                // A later agent's word; what it knows that we do not is not for us.
                Err(_) => {}
            }
        }
    }

    /// Until something happens or the next deadline.
    fn sleep(&mut self) {
        let now_ms = machine::monotonic_ms();
        if self.quiet_at_ms.take_if(|at| *at <= now_ms).is_some() {
            // Most of it is the boot's.
            sys::let_program_go();
        }
        let mut until = self.core.next_deadline().into_iter().chain(self.quiet_at_ms).min();
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if let Some(link) = &self.link {
            fds.push(PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN));
        }
        if let Some(booted) = &self.booted {
            fds.extend(booted.fds().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            until = until.into_iter().chain(booted.next_ms()).min();
        }
        if self.unmounting.is_some() || self.core.phase() == Phase::Killing {
            until = until.into_iter().chain([now_ms + END_POLL_MS]).min();
        }
        let timeout = until.map(|at| {
            let ms = at.saturating_sub(now_ms);
            let tv_nsec = (ms % 1000 * 1_000_000) as _;
            Timespec { tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX), tv_nsec }
        });
        // EINTR: the handler has written by now, and the caller comes again.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn spawn(&mut self, form: Form, reason: &str) -> Input {
        self.link = None;
        match start(&self.config.agent, form, reason) {
            Ok((pid, link)) => {
                self.link = Some(link);
                Input::Spawned(pid)
            }
            Err(e) => Input::SpawnFailed(format!("could not be started: {e}")),
        }
    }

    fn look(&self) -> Wanted {
        let Some(path) = &self.config.node_config else { return Wanted::Full };
        match wanted(path) {
            Ok(wanted) => wanted,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                self.say(format_args!("no {}: waiting for an operator", path.display()));
                // A namespace's owner is the one who would bring it.
                if self.booted.is_some() { Wanted::Stranger } else { Wanted::Nothing }
            }
            // The agent says better what is wrong with it.
            Err(_) => Wanted::Full,
        }
    }

    fn end_all(&self, force: bool) {
        if !force {
            let _ = sys::kill(-1, libc::SIGTERM);
            return;
        }
        if self.booted.is_some() {
            machine::kill_cgroups();
        }
        let _ = sys::kill(-1, libc::SIGKILL);
    }

    fn unmount(&mut self) -> Option<Input> {
        if self.booted.is_none() {
            // The mounts go with the namespace.
            return Some(Input::Unmounted);
        }
        // A thread of its own: a dead disk holds sync(2) and umount(2) for ever, and the core's deadline must not wait.
        match std::thread::Builder::new().spawn(machine::let_file_systems_go) {
            Ok(thread) => self.unmounting = Some(thread),
            Err(_) => return Some(Input::Unmounted),
        }
        None
    }

    fn end(&mut self, power: Power) -> i32 {
        match &mut self.booted {
            Some(booted) => booted.end(power),
            None => 0,
        }
    }
}

/// Does it; what has come of it at once is the next input.
fn perform(shell: &mut Shell<'_>, output: Output) -> Option<Input> {
    match output {
        Output::Look => return Some(Input::Looked(shell.look())),
        Output::Spawn(form, reason) => return Some(shell.spawn(form, &reason)),
        Output::Signal(pid, signal) => {
            let _ = sys::kill(i32::try_from(pid).unwrap_or(i32::MAX), signal);
        }
        Output::Tell(message) => tell(shell, &message),
        Output::Say(line) => shell.say(format_args!("{line}")),
        Output::Report(phase, reason) => {
            let colon = if reason.is_empty() { "" } else { ": " };
            shell.say(format_args!("{}{colon}{reason}", phase.name()));
            tell(shell, &ToAgent::Phase { phase, reason });
        }
        Output::LoadKernel(dir) => {
            let Some(booted) = &mut shell.booted else {
                return Some(Input::Loaded(Err("this is no machine".into())));
            };
            return booted.load_kernel(&dir).err().map(|why| Input::Loaded(Err(why)));
        }
        Output::EndAll { force } => shell.end_all(force),
        Output::Unmount => return shell.unmount(),
        // The caller's.
        Output::End(_) => {}
    }
    None
}

fn tell(shell: &mut Shell<'_>, message: &ToAgent) {
    if let Some(link) = &mut shell.link {
        link.send(message);
    }
}

/// A namespace is up from its first moment.
fn namespace() -> Machine {
    let mut machine = Machine::new(DRAIN_US);
    for event in [Event::Configured(true)].into_iter().chain([Event::Done { ok: true }; 4]) {
        machine.step(0, event, &mut Vec::new());
    }
    machine
}

fn start(agent: &[OsString], form: Form, reason: &str) -> crate::Result<(u32, InitEnd)> {
    let at = |e: &std::io::Error| crate::Error::io("start", "the agent", e);
    let (program, arguments) =
        agent.split_first().ok_or_else(|| at(&std::io::Error::from(Errno::INVAL)))?;
    let (ours, theirs) = InitEnd::pair()?;
    // The child must have it and nobody else: PID 1 starts one child at a time, and ours of it closes below.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| at(&e.into()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    command.env(link::ENV, theirs.as_raw_fd().to_string());
    match form {
        Form::Full => {}
        Form::Maintenance => drop(command.args(["--maintenance", "--reason", reason])),
        Form::Stranger => drop(command.arg("--stranger")),
    }
    let child = command.spawn().map_err(|e| at(&e))?;
    // Dropping the handle neither kills nor reaps: that is this module's work.
    Ok((child.id(), ours))
}

/// What the file asks for: the agent's own parser reads it again, all of it.
fn wanted(path: &Path) -> std::io::Result<Wanted> {
    let mut text = String::new();
    File::open(path)?.take(CONFIG_BYTES_MAX).read_to_string(&mut text)?;
    Ok(if asks_for_maintenance(&text) { Wanted::Maintenance } else { Wanted::Full })
}

/// `maintenance = true` before the first table.
fn asks_for_maintenance(text: &str) -> bool {
    text.lines().map(str::trim).take_while(|line| !line.starts_with('[')).any(|line| {
        let Some((key, value)) = line.split_once('=') else { return false };
        let value = value.split('#').next().unwrap_or_default();
        key.trim() == "maintenance" && value.trim() == "true"
    })
}

fn describe(status: i32) -> String {
    if libc::WIFEXITED(status) {
        format!("ended: code {}", libc::WEXITSTATUS(status))
    } else {
        format!("ended: signal {}", libc::WTERMSIG(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maintenance_is_one_line_at_the_top() {
        assert!(asks_for_maintenance("name = 'x'\n maintenance=true # for the disk\n"));
        assert!(!asks_for_maintenance("maintenance = false\n"));
        assert!(!asks_for_maintenance("# maintenance = true\n[labels]\nmaintenance = true\n"));
        assert!(!asks_for_maintenance(""));
    }

    #[test]
    fn a_configuration_that_is_not_there_is_not_found() {
        let e = wanted(Path::new("/nonexistent/node.toml")).expect_err("no file");
        assert_eq!(e.kind(), std::io::ErrorKind::NotFound);
    }
}
