//! Programs that join a running container: exec of clients, and checks.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::container::{Reported, exit_of, open_cgroup, read_report};
use super::core::Input;
use super::shell::{Owner, Shell};
use super::wire::Reply;
use crate::launch::{self, Failure, Launched, Plan, Step, Told};
use crate::{cgroup, sys};

/// Most programs that joined containers, checks included; more are refused.
const JOINED_MAX: usize = 64;

pub(super) struct Joined {
    pub(super) owner: Owner,
    pub(super) launched: Launched,
    pub(super) told: Option<Told>,
    failure: Option<Failure>,
    cgroup: Option<PathBuf>,
    pub(super) gone: bool,
}

impl Shell {
    /// Starts a program inside a running container.
    pub(super) fn join(
        &mut self,
        owner: Owner,
        exec: &super::ExecSpec,
        stdio: launch::Stdio,
        terminal: bool,
    ) -> Result<u32, Failure> {
        let none = |errno, text: &str| Failure::new(Step::Spec, errno, text);
        if self.joined.len() >= JOINED_MAX {
            return Err(none(
                Errno::AGAIN,
                "64 programs have joined this pod's containers already",
            ));
        }
        let at = self.spec.containers.iter().position(|c| c.name == exec.container);
        let (i, spec) = at
            .and_then(|i| Some((i, self.spec.containers.get(i)?)))
            .ok_or_else(|| none(Errno::NOENT, "no such container in the pod"))?;
        let c = self.containers.get(i);
        let process = c
            .and_then(|c| c.process.as_ref())
            .filter(|p| p.told.is_none())
            .ok_or_else(|| none(Errno::SRCH, "the container is not running"))?;
        let n = self.next_exec;
        let dir = c.and_then(|c| c.cgroup.as_ref()).map(|p| p.join(format!("exec-{n}")));
        let cgroup_failed = |e| Failure::new(Step::Cgroup, e, "cgroup of the program");
        let cgroup = match &dir {
            Some(dir) => {
                rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)).map_err(cgroup_failed)?;
                Some(open_cgroup(dir).map_err(cgroup_failed)?)
            }
            None => None,
        };
        let userns = self.held.userns.as_ref().map(|(fd, map)| (fd.as_fd(), *map));
        let joining =
            launch::Joining { pidfd: process.launched.pidfd.as_fd(), in_userns: process.in_userns };
        let started = Plan::join(userns, spec, &joining, exec, stdio, terminal).and_then(|plan| {
            let launched = launch::start(&plan, cgroup.as_ref().map(|c| c.as_fd()))?;
            Ok((launched, plan.told()))
        });
        match started {
            Ok((launched, told)) => {
                let pid = launched.pid;
                self.next_exec += 1;
                self.joined.push(Joined {
                    owner,
                    launched,
                    told: Some(told),
                    failure: None,
                    cgroup: dir,
                    gone: false,
                });
                Ok(pid)
            }
            Err(e) => {
                let _ = dir.map(|d| cgroup::remove_tree(&d));
                Err(e)
            }
        }
    }

    /// A new terminal of a running container. Nothing that the container could have put into its `/dev` is looked at.
    pub(super) fn terminal(&self, container: &str) -> Result<(OwnedFd, OwnedFd), Failure> {
        let i = self.spec.containers.iter().position(|c| c.name == container);
        let process = i.and_then(|i| self.containers.get(i)).and_then(|c| c.process.as_ref());
        let pts = process.and_then(|p| p.pts.as_ref()).ok_or_else(|| {
            Failure::new(Step::Spec, Errno::SRCH, "no such container, or it is not running")
        })?;
        sys::terminal(pts.as_fd()).map_err(|e| Failure::new(Step::Stdio, e, "a new terminal"))
    }

    pub(super) fn kill_joined(&mut self, k: usize) {
        let Some(j) = self.joined.get(k) else { return };
        if let Some(dir) = &j.cgroup {
            let _ = cgroup::kill(dir);
        }
        let _ = sys::pidfd_signal(j.launched.pidfd.as_fd(), libc::SIGKILL);
    }

    pub(super) fn joined_reported(&mut self, k: usize) {
        let Some(j) = self.joined.get_mut(k) else { return };
        let Some(told) = &j.told else { return };
        match read_report(&j.launched) {
            Reported::Nothing => {}
            Reported::Runs => {
                j.told = None;
                if let Owner::Client { client, exec } = j.owner {
                    let pid = j.launched.pid;
                    self.tell_one(client, Reply::ExecStarted { exec, pid });
                }
            }
            Reported::Stopped(bytes) => {
                j.failure = Some(launch::failure(told, &bytes));
                j.told = None;
            }
        }
    }

    pub(super) fn joined_ended(&mut self, k: usize) {
        self.joined_reported(k);
        let Some(j) = self.joined.get_mut(k).filter(|j| !j.gone) else { return };
        let Ok(Some(status)) = sys::reap(j.launched.pid) else { return };
        j.gone = true;
        if let Some(dir) = j.cgroup.take() {
            // EBUSY: it left something running. That lives and dies with the container.
            let _ = rustix::fs::rmdir(&dir);
        }
        let exit = exit_of(status);
        match (j.owner, j.failure.take()) {
            (Owner::Client { client, exec }, None) => {
                self.tell_one(client, Reply::ExecExited { exec, exit });
            }
            (Owner::Client { client, exec }, Some(f)) => {
                let Failure { step, errno, text } = f;
                self.tell_one(client, Reply::ExecFailed { exec, step, errno, text });
            }
            (Owner::Check(i, which), failure) => {
                self.feed(Input::Checked(i, which, failure.is_none() && exit.success()));
            }
        }
    }
}
