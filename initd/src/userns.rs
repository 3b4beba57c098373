//! User namespaces: one per pod, made before anything else so that layers can be idmapped with it.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys::Sleeper;

/// Ids 0..`len` inside are `outside`..`outside + len` on the host, for users and groups alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// First host id.
    pub outside: u32,
    /// How many.
    pub len: u32,
}

impl IdMap {
    /// Ids of one range: 65,536, so that every id an image knows is mapped.
    pub const RANGE: u32 = 1 << 16;
    /// Ranges on a node: 0 is the host's own. Ids stay below 2^31, as the kernel's devpts reads its `gid=` as a signed number
    /// (seen on 6.12: EINVAL above).
    pub const SLOTS_MAX: u32 = (i32::MAX as u32 >> 16) - 1;

    /// The range of a slot, `1..=SLOTS_MAX`; pods on a node with different slots share no id.
    #[must_use]
    pub fn slot(slot: u32) -> Option<Self> {
        ((1..=Self::SLOTS_MAX).contains(&slot))
            .then_some(Self { outside: slot << 16, len: Self::RANGE })
    }
}

/// A new user namespace with this map. It lives as long as the descriptor or anything in it.
///
/// Does not copy the caller's memory and does not disturb its threads; the caller must not reap children it does not
/// know (`waitpid(-1)`) in another thread meanwhile.
///
/// # Errors
/// [`Error::Sys`]: `ENOSPC` when `user.max_user_namespaces` is used up, `EPERM` without
/// CAP_SETUID and CAP_SETGID.
pub fn create(map: IdMap) -> Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Error::sys("pipe", "user namespace", e))?;
    let sleeper =
        Sleeper::start(read.as_fd()).map_err(|e| Error::sys("clone", "user namespace", e))?;
    let made = fill(sleeper.pid, map);
    sleeper.reap();
    drop(write);
    made
}

fn fill(pid: u32, map: IdMap) -> Result<OwnedFd> {
    let line = format!("0 {} {}", map.outside, map.len);
    for file in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{file}");
        let fd = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::sys("open", &path, e))?;
        rustix::io::write(&fd, line.as_bytes()).map_err(|e| Error::sys("write", &path, e))?;
    }
    let path = format!("/proc/{pid}/ns/user");
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open", &path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_do_not_overlap_and_leave_out_the_hosts_ids() {
        assert_eq!(IdMap::slot(0), None);
        assert_eq!(IdMap::slot(1), Some(IdMap { outside: 65_536, len: 65_536 }));
        let last = IdMap::slot(IdMap::SLOTS_MAX).expect("in range");
        assert!(last.outside.checked_add(last.len).is_some_and(|end| end <= i32::MAX as u32));
        assert_eq!(IdMap::slot(IdMap::SLOTS_MAX + 1), None);
    }
}
