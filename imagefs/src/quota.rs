//! Project quotas (quotactl(2)): the kernel bounds what is below a directory, at the write that would be too much.
//!
//! The file system has to count for projects: ext4 with the features `project` and `quota`, mounted with `prjquota`, or XFS
//! mounted with it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Result;

use crate::sys;

/// What a directory and all below it may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// The project's number: one for each directory that is bounded, not 0.
    pub project: u32,
    /// Bytes on disk; 0 bounds nothing.
    pub bytes: u64,
    /// Files and directories; 0 bounds nothing.
    pub files: u64,
}

/// Bounds an empty directory; what is made in it later counts for it.
///
/// # Errors
/// The file system has no projects (`ENOTTY`, `EOPNOTSUPP`), no quotas (`ESRCH`, `ENOSYS`), or cannot keep them. Where it only
/// counts and does not refuse, there is none.
pub fn set(dir: &Path, quota: Quota) -> Result<()> {
    let fd = open(dir)?;
    sys::set_project(fd.as_fd(), quota.project)?;
    sys::set_quota(fd.as_fd(), quota.project, quota.bytes, quota.files)
}

/// The project that a directory counts for; 0 for none.
pub(crate) fn project(dir: &Path) -> u32 {
    open(dir).and_then(|fd| sys::project(fd.as_fd())).unwrap_or(0)
}

/// Forgets a project, once nothing counts for it any more. `beside` is on the same file system.
pub(crate) fn forget(beside: &Path, project: u32) {
    if project != 0
        && let Ok(fd) = open(beside)
    {
        // What is left is a bound of nothing; the next user of the number sets its own.
        let _ = sys::set_quota(fd.as_fd(), project, 0, 0);
    }
}

fn open(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty())
}
