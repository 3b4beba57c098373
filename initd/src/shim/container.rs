//! A container of the pod, as the shell holds it: its launch, what the child reports, its end.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::core::Input;
use super::setup::renew_cgroup;
use super::shell::{Shell, wall_ns};
use super::wire::{Exit, Remark, Reply};
use crate::launch::{self, Context, Failure, Holder, Launched, Plan, Step, Told};
use crate::log::{Stream, Writer};
use crate::pod::Stdin;
use crate::{cgroup, sys};

/// The first process of a container.
pub(super) struct Process {
    pub(super) launched: Launched,
    /// Until the program runs.
    pub(super) told: Option<Told>,
    failure: Option<Failure>,
    pub(super) in_userns: bool,
    /// Its devpts, for terminals.
    pub(super) pts: Option<OwnedFd>,
}

#[derive(Default)]
pub(super) struct Container {
    pub(super) process: Option<Process>,
    pub(super) log: Option<Writer>,
    /// Read ends of its output and errors; the first is our end of its terminal, if it has one.
    pub(super) output: [Option<OwnedFd>; 2],
    /// Write end of its input, if that is a pipe.
    pub(super) input: Option<OwnedFd>,
    pub(super) cgroup: Option<PathBuf>,
    /// All in its cgroup was killed: it takes nobody any more.
    pub(super) cgroup_spent: bool,
    pub(super) oom_before: u64,
    /// It was told that its output is dropped.
    pub(super) told_of_drops: bool,
    pub(super) last_exit: Option<Exit>,
    pub(super) last_failure: Option<(Step, i32, String)>,
    /// What its liveness or start probe saw last that was wrong.
    pub(super) last_check: String,
}

impl Container {
    fn kill_cgroup(&mut self) {
        if let Some(dir) = &self.cgroup {
            let _ = cgroup::kill(dir);
            self.cgroup_spent = true;
        }
    }
}

impl Shell {
    pub(super) fn note_failure(&mut self, i: usize, f: Failure) {
        if let Some(c) = self.containers.get_mut(i) {
            c.last_failure = Some((f.step, f.errno, f.text));
        }
    }

    pub(super) fn launch(&mut self, i: usize) -> Result<(), Failure> {
        let now_ns = wall_ns();
        let gone = || Failure::new(Step::Spec, Errno::INVAL, "no such container");
        let spec = self.spec.containers.get(i).ok_or_else(gone)?;
        let c = self.containers.get_mut(i).ok_or_else(gone)?;
        let log_failed = |e| Failure::new(Step::Log, e, format!("logs/{}.log", spec.name));
        if c.log.is_none() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::openat(&self.held.dir, "logs", flags, Mode::empty())
                .map_err(log_failed)?;
            c.log = Some(Writer::new(dir, &spec.name, spec.log));
        }
        if let Some(log) = &mut c.log {
            log.end(now_ns);
            log.open().map_err(log_failed)?;
        }
        let (output, input, stdio) = streams(spec.stdin).map_err(log_failed)?;
        let cgroup_failed = |e| Failure::new(Step::Cgroup, e, format!("cgroup of {}", spec.name));
        if c.cgroup_spent {
            renew_cgroup(&self.spec, spec, self.held.device_filter).map_err(|e| {
                cgroup_failed(e.errno().map_or(Errno::IO, Errno::from_raw_os_error))
            })?;
            c.cgroup_spent = false;
        }
        let cgroup =
            c.cgroup.as_ref().map(|p| open_cgroup(p)).transpose().map_err(cgroup_failed)?;
        c.oom_before = c.cgroup.as_ref().map_or(0, |p| cgroup::oom_kills(p));
        if self.spec.share_pid && !self.holder.as_ref().is_some_and(Holder::lives) {
            let userns = self.held.userns.as_ref().map(|(fd, _)| fd.as_fd());
            self.holder = Some(Holder::start(userns)?);
        }
        let context = Context {
            userns: self.held.userns.as_ref().map(|(fd, map)| (fd.as_fd(), *map)),
            cgroup: cgroup.is_some(),
            pids: self.holder.as_ref().map(Holder::pidfd),
            volumes: self.held.volumes.as_ref(),
            device_filter: self.held.device_filter,
            empty: &self.held.empty,
        };
        let mut plan = Plan::container(&context, spec, stdio)?;
        let launched = launch::start(&plan, cgroup.as_ref().map(|c| c.as_fd()))?;
        let fresh = std::mem::take(&mut plan.conditions);
        let in_userns = plan.in_userns();
        c.output = match plan.master.take() {
            Some(terminal) => {
                rustix::io::ioctl_fionbio(&terminal, true).map_err(log_failed)?;
                [Some(terminal), None]
            }
            None => output,
        };
        c.input = input;
        let mut told = plan.told();
        let pts = told.pts.take();
        c.process = Some(Process { launched, told: Some(told), failure: None, in_userns, pts });
        for condition in fresh {
            if !self.conditions.contains(&condition) {
                self.conditions.push(condition.clone());
                self.tell(&Reply::Condition(condition));
            }
        }
        Ok(())
    }

    pub(super) fn signal(&mut self, i: usize, signal: i32) {
        if let Some(p) = self.containers.get(i).and_then(|c| c.process.as_ref()) {
            // ESRCH: it ended by itself, which poll will tell.
            let _ = sys::pidfd_signal(p.launched.pidfd.as_fd(), signal);
        }
    }

    /// The cgroup holds programs that joined, too; without one, the end of PID 1 ends its namespace.
    pub(super) fn kill(&mut self, i: usize) {
        if let Some(c) = self.containers.get_mut(i) {
            c.kill_cgroup();
        }
        self.signal(i, libc::SIGKILL);
    }

    pub(super) fn pid(&self, i: usize) -> u32 {
        self.containers.get(i).and_then(|c| c.process.as_ref()).map_or(0, |p| p.launched.pid)
    }

    pub(super) fn launch_reported(&mut self, i: usize) {
        let Some(p) = self.containers.get_mut(i).and_then(|c| c.process.as_mut()) else { return };
        let Some(told) = &p.told else { return };
        match read_report(&p.launched) {
            Reported::Nothing => {}
            Reported::Runs => {
                p.told = None;
                self.feed(Input::Started(i));
            }
            Reported::Stopped(bytes) => {
                // The process ends now; that is when the failure is told.
                p.failure = Some(launch::failure(told, &bytes));
                p.told = None;
            }
        }
    }

    pub(super) fn container_ended(&mut self, i: usize) {
        self.launch_reported(i);
        let Some(p) = self.containers.get(i).and_then(|c| c.process.as_ref()) else { return };
        let Ok(Some(status)) = sys::reap(p.launched.pid) else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.output(i, stream, usize::MAX);
        }
        let Some(c) = self.containers.get_mut(i) else { return };
        let Some(p) = c.process.take() else { return };
        c.output = [None, None];
        c.input = None;
        self.attached.retain(|a| a.container != i);
        if let Some(log) = &mut c.log {
            log.end(wall_ns());
        }
        if self.spec.share_pid {
            // With a PID namespace of its own the end of its first process would have ended the others.
            c.kill_cgroup();
        }
        if let Some(failure) = p.failure {
            self.note_failure(i, failure);
            self.feed(Input::LaunchFailed(i));
            return;
        }
        let (status, left) =
            p.launched.report.as_ref().and_then(read_status).unwrap_or((status, false));
        let mut exit = exit_of(status);
        exit.oom = c.cgroup.as_ref().is_some_and(|dir| cgroup::oom_kills(dir) > c.oom_before);
        c.last_exit = Some(exit);
        if left {
            self.remark(i, Remark::LeftOthers);
        }
        self.feed(Input::Exited(i, exit));
    }
}

pub(super) enum Reported {
    Nothing,
    Runs,
    Stopped([u8; launch::REPORT_BYTES]),
}

pub(super) fn read_report(launched: &Launched) -> Reported {
    let mut bytes = [0u8; launch::REPORT_BYTES];
    match rustix::io::read(&launched.errors, &mut bytes) {
        Ok(0) => Reported::Runs,
        Ok(_) => Reported::Stopped(bytes),
        Err(_) => Reported::Nothing,
    }
}

/// The wait status, and whether processes were left behind.
fn read_status(report: &OwnedFd) -> Option<(i32, bool)> {
    let mut bytes = [0u8; 5];
    let n = rustix::io::read(report, &mut bytes).ok()?;
    let status = bytes.first_chunk().filter(|_| n >= 4)?;
    Some((i32::from_le_bytes(*status), n > 4))
}

pub(super) fn exit_of(status: i32) -> Exit {
    let exited = libc::WIFEXITED(status);
    Exit {
        code: exited.then(|| libc::WEXITSTATUS(status)),
        signal: (!exited).then(|| libc::WTERMSIG(status)),
        oom: false,
    }
}

pub(super) fn open_cgroup(dir: &std::path::Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

type Streams = ([Option<OwnedFd>; 2], Option<OwnedFd>, launch::Stdio);

/// Our ends of the output, our end of the input, and what the program gets. A terminal is made later, in its `/dev/pts`.
fn streams(stdin: Stdin) -> rustix::io::Result<Streams> {
    if stdin == Stdin::Terminal {
        return Ok(([None, None], None, [None, None, None]));
    }
    let (out_read, out_write) = log_pipe()?;
    let (err_read, err_write) = log_pipe()?;
    let (theirs, ours) = match stdin {
        Stdin::Pipe => {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (Some(read), Some(write))
        }
        _ => (None, None),
    };
    Ok(([Some(out_read), Some(err_read)], ours, [theirs, Some(out_write), Some(err_write)]))
}

/// The read end does not block; the write end is the program's and does.
fn log_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}
