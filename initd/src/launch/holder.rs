//! PID 1 of a PID namespace that all containers of a pod share: reaps what they leave, and ends with the shim.

use std::convert::Infallible;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::{Failure, Step};
use crate::sys;

/// Who it is inside: neither root nor anybody that an image knows.
const NOBODY: u32 = 65_534;

/// The process. Dropping it ends everything in its PID namespace.
pub(crate) struct Holder {
    pidfd: OwnedFd,
}

impl Holder {
    /// Starts one.
    pub(crate) fn start(userns: Option<BorrowedFd<'_>>) -> Result<Self, Failure> {
        let fail = |e| Failure::new(Step::Clone, e, "PID namespace of the pod");
        // A child that could not give up its rights ends at once, which the next launch finds out.
        let cloned = sys::clone(libc::CLONE_NEWPID as u64, None, || run(userns));
        let (_, pidfd) = cloned.map_err(fail)?;
        Ok(Self { pidfd })
    }

    /// Of its process: names the PID namespace.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it runs. Reaps it when it does not.
    pub(crate) fn lives(&self) -> bool {
        matches!(sys::reap_pidfd(self.pidfd.as_fd(), false), Ok(None))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while let Err(Errno::INTR) = sys::reap_pidfd(self.pidfd.as_fd(), true) {}
    }
}

/// Gives up everything and reaps. The shim's memory is closed to the containers: not dumpable, and another user's.
/// *child*
fn run(userns: Option<BorrowedFd<'_>>) -> Infallible {
    sys::block_signals(true);
    match give_up(userns) {
        Ok(()) => loop {
            let _ = sys::wait_signal();
            while let Ok(Some(_)) = sys::reap_any() {}
        },
        Err(_) => sys::exit(127),
    }
}

fn give_up(userns: Option<BorrowedFd<'_>>) -> rustix::io::Result<()> {
    if let Some(fd) = userns {
        sys::setns(fd, libc::CLONE_NEWUSER)?;
    }
    sys::set_groups(&[])?;
    sys::set_gid(NOBODY)?;
    sys::set_uid(NOBODY)?;
    sys::set_caps(0, 0)?;
    sys::set_undumpable()?;
    sys::die_with_parent()?;
    rustix::thread::set_no_new_privs(true)?;
    sys::seccomp(crate::seccomp::DEFAULT)?;
    sys::close_range(0, false)
}
