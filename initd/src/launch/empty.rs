//! A mount namespace with nothing in it but an empty, read-only directory.
//!
//! Containers get a copy of it, with their root on top. A copy of the node's own namespace would first have to lose all that
//! is mounted there: `pivot_root(2)` looks at every process of the node, and `umount2(2)` waits for a grace period of all
//! CPUs (0.7 ms of a launch of 4). Here there is nothing to lose, and behind a container's root there is nothing to find.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Result;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount,
    unmount,
};

use super::mounts;
use crate::sys;

/// Where it is put while it is made: there on every node.
const PLACE: &str = "/proc";

/// The namespace, and the process's own.
#[derive(Debug)]
pub(crate) struct Empty {
    namespace: OwnedFd,
    own: OwnedFd,
}

impl Empty {
    /// Makes one. For a process with one thread, whose root and working directory are `/`.
    pub(crate) fn make() -> Result<Self> {
        let own = namespace()?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let options = [("mode", "555"), ("size", "4096"), ("nr_inodes", "2")];
        let base = mounts::filesystem("tmpfs", &options, attributes)?;
        sys::unshare(libc::CLONE_NEWNS)?;
        let made = stand_alone(&base);
        // Back in any case: nothing else of this process belongs there.
        sys::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        Ok(Self { namespace: made?, own })
    }

    /// Does `clone` in there, which must not look at any path.
    pub(super) fn within<T>(&self, clone: impl FnOnce() -> Result<T>) -> Result<T> {
        sys::setns(self.namespace.as_fd(), libc::CLONE_NEWNS)?;
        let cloned = clone();
        sys::setns(self.own.as_fd(), libc::CLONE_NEWNS)?;
        cloned
    }
}

fn namespace() -> Result<OwnedFd> {
    rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Leaves nothing but `base` in this namespace, and gives its descriptor.
fn stand_alone(base: &OwnedFd) -> Result<OwnedFd> {
    // There will be no /proc.
    let made = namespace()?;
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    move_mount(base, c"", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(base)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(made)
}
