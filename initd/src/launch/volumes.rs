//! File systems that the containers of a pod share.
//!
//! They live in a mount namespace of their own, which nobody is in and which goes with its descriptor: nothing is mounted on
//! the host that a shim which is killed could leave there. (Linux before 6.15 does not copy a mount that is in no
//! namespace, so holding them detached is not enough.)

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};

use super::mounts;
use crate::pod::Volume;
use crate::sys;

/// The volumes of a pod.
pub(crate) struct Volumes {
    /// Their mount namespace, and the shim's.
    apart: OwnedFd,
    own: OwnedFd,
    names: Vec<String>,
}

impl Volumes {
    /// Makes them, owned by the pod's root. `place` is a directory that a mount can be attached to for a moment.
    pub(crate) fn make(volumes: &[Volume], outside: u32, place: &Path) -> Result<Self> {
        let own = namespace()?;
        let base = mounts::tmpfs(0, 1 << 16, 0o700)?;
        let mut trees = Vec::new();
        for (i, v) in volumes.iter().enumerate() {
            rustix::fs::mkdirat(&base, i.to_string(), Mode::from_raw_mode(0o700))?;
            trees.push(mounts::tmpfs(outside, v.size_bytes, v.mode)?);
        }
        sys::unshare(libc::CLONE_NEWNS)?;
        let apart = fill(&base, &trees, place);
        // Back in any case: nothing else of the shim belongs there.
        sys::setns(own.as_fd(), libc::CLONE_NEWNS)?;
        let names = volumes.iter().map(|v| v.name.clone()).collect();
        Ok(Self { apart: apart?, own, names })
    }

    /// A detached mount of one.
    pub(crate) fn tree(&self, name: &str) -> Result<OwnedFd> {
        let i = self.names.iter().position(|n| n == name).ok_or(Errno::NOENT)?;
        let path = CString::new(format!("/{i}")).map_err(|_| Errno::INVAL)?;
        sys::setns(self.apart.as_fd(), libc::CLONE_NEWNS)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, path.as_c_str(), flags);
        sys::setns(self.own.as_fd(), libc::CLONE_NEWNS)?;
        tree
    }
}

fn namespace() -> Result<OwnedFd> {
    rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Leaves nothing but the volumes in this mount namespace, and gives its descriptor.
fn fill(base: &OwnedFd, trees: &[OwnedFd], place: &Path) -> Result<OwnedFd> {
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(base, c"", CWD, place, empty)?;
    for (i, tree) in trees.iter().enumerate() {
        move_mount(tree, c"", base, i.to_string(), empty)?;
    }
    // There will be no /proc.
    let apart = namespace()?;
    rustix::process::fchdir(base)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    Ok(apart)
}
