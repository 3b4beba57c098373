//! How one container comes to be, and how a program joins one that runs.
//!
//! The shim prepares everything that can be prepared outside (`plan`): detached mounts, the user's ids, strings,
//! pipes. The child (`child`) attaches them, gives up what the spec does not grant and executes; it reports the step
//! and the errno at which it stopped through a close-on-exec pipe, so that end of file means that the program runs.

mod attach;
mod child;
mod empty;
mod explain;
mod holder;
mod mini_init;
mod mounts;
mod plan;
mod user;
mod volumes;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::sys;

pub(crate) use empty::Empty;
pub(crate) use holder::Holder;
pub(crate) use plan::{Context, Joining, Plan, Stdio, Told};
pub(crate) use volumes::Volumes;

/// The step of a launch at which something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u8)]
pub enum Step {
    /// The spec names something that cannot be.
    Spec,
    /// Making or entering the cgroup.
    Cgroup,
    /// Opening the root file system.
    Rootfs,
    /// Finding the user in the root file system.
    User,
    /// Opening the log.
    Log,
    /// Cloning the process.
    Clone,
    /// Entering the user namespace.
    Userns,
    /// Attaching the root in a mount namespace of its own.
    Mountns,
    /// Mounting `/proc`.
    Proc,
    /// Mounting `/sys`.
    Sys,
    /// Making `/dev`.
    Dev,
    /// A bind or tmpfs mount of the spec.
    Mount,
    /// A masked or read-only path.
    Mask,
    /// Making the new root the root.
    Pivot,
    /// A process limit.
    Rlimit,
    /// Dropping capabilities from the bounding set.
    Bounding,
    /// Taking on user and group ids.
    Ids,
    /// Making or entering the working directory.
    Workdir,
    /// Setting capabilities.
    Caps,
    /// Setting NO_NEW_PRIVS.
    NoNewPrivs,
    /// Loading the system call filter.
    Seccomp,
    /// Standard input, output and error.
    Stdio,
    /// Executing the program.
    Exec,
    /// Entering the namespaces of a running container.
    Setns,
}

impl Step {
    const ALL: [Self; 24] = [
        Self::Spec,
        Self::Cgroup,
        Self::Rootfs,
        Self::User,
        Self::Log,
        Self::Clone,
        Self::Userns,
        Self::Mountns,
        Self::Proc,
        Self::Sys,
        Self::Dev,
        Self::Mount,
        Self::Mask,
        Self::Pivot,
        Self::Rlimit,
        Self::Bounding,
        Self::Ids,
        Self::Workdir,
        Self::Caps,
        Self::NoNewPrivs,
        Self::Seccomp,
        Self::Stdio,
        Self::Exec,
        Self::Setns,
    ];
}

/// Why a launch stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(step: Step, errno: Errno, text: impl Into<String>) -> Self {
        Self { step, errno: errno.raw_os_error(), text: text.into() }
    }
}

/// What a child writes into its pipe when it stops: step, index of the mount or string concerned, errno.
pub(crate) const REPORT_BYTES: usize = 6;

/// A container's first process, or a joined one, on its way to its program.
#[derive(Debug)]
pub(crate) struct Launched {
    /// In the shim's PID namespace.
    pub(crate) pid: u32,
    /// Of that process.
    pub(crate) pidfd: OwnedFd,
    /// End of file: the program runs. [`REPORT_BYTES`]: it does not.
    pub(crate) errors: OwnedFd,
    /// Where a mini-init writes its program's wait status.
    pub(crate) report: Option<OwnedFd>,
    /// Keeps the container's mounts from being taken down on its way out: that waits for a grace period of all CPUs, and
    /// is better done when the end has been told.
    pub(crate) _mounts: Option<OwnedFd>,
}

/// Clones and lets the child go its way.
pub(crate) fn start(plan: &Plan<'_>, cgroup: Option<BorrowedFd<'_>>) -> Result<Launched, Failure> {
    let clone_failed = |e| Failure::new(Step::Clone, e, "clone3");
    let (errors, errors_child) = plan::pipe().map_err(clone_failed)?;
    let report = if plan.mini_init() { Some(plan::pipe().map_err(clone_failed)?) } else { None };
    let pipes = child::Pipes {
        errors: errors_child.as_fd(),
        report: report.as_ref().map(|(_, w)| w.as_fd()),
    };
    let (pid, pidfd) = plan
        .in_namespaces(|flags| sys::clone(flags, cgroup, || child::run(plan, &pipes)))
        .map_err(clone_failed)?;
    // The shell reads them when poll says so, and must never wait there.
    for fd in [Some(&errors), report.as_ref().map(|(r, _)| r)].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).map_err(clone_failed)?;
    }
    let mounts = plan.is_new().then(|| sys::mount_namespace(pidfd.as_fd())).flatten();
    Ok(Launched { pid, pidfd, errors, report: report.map(|(r, _)| r), _mounts: mounts })
}

/// What a child's report means, in words.
pub(crate) fn failure(plan: &Told, report: &[u8]) -> Failure {
    let (Some(step), Some(index), Some(errno)) = (
        report.first().and_then(|s| Step::ALL.get(usize::from(*s))),
        report.get(1),
        report.get(2..6).and_then(|b| b.try_into().ok()).map(i32::from_le_bytes),
    ) else {
        return Failure::new(Step::Clone, Errno::IO, "the child ended without a word");
    };
    let errno = Errno::from_raw_os_error(errno);
    Failure::new(*step, errno, explain::text(plan, *step, usize::from(*index), errno))
}
