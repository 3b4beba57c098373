//! Detached mounts: made by the shim, attached by the child. Everything by descriptor, nothing by a path that an image
//! could have prepared.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dev, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::sys;

pub(super) const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(super) const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// A new file system of this type with `key=value` options (`key` alone for a flag), mounted nowhere.
pub(super) fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(fs.as_fd(), *key)?;
        } else {
            fsconfig_set_string(fs.as_fd(), *key, *value)?;
        }
    }
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of what is mounted at (or of the directory or file at) a host path.
pub(super) fn tree(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
}

/// How paths in a root are walked: `..` and absolute links stay inside, `/proc` links are refused.
pub(super) const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes new files belong to the pod's root while it lives, without losing the right to write everywhere.
pub(super) struct AsPodRoot;

impl AsPodRoot {
    pub(super) fn new(outside: u32) -> Self {
        sys::set_fs_ids(outside, outside);
        // Leaving id 0 takes the capabilities for files out of the effective set; they are still permitted.
        if let Ok(permitted) = sys::permitted_caps() {
            let _ = sys::set_caps(permitted, permitted);
        }
        Self
    }
}

impl Drop for AsPodRoot {
    fn drop(&mut self) {
        sys::set_fs_ids(0, 0);
    }
}

/// Makes sure that `path` is there below `base`, as a directory or as something that is none.
pub(super) fn ensure(base: BorrowedFd<'_>, path: &str, directory: bool) -> Result<()> {
    let open = |p: &str| {
        rustix::fs::openat2(base, p, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), RESOLVE)
    };
    match open(path) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    let trimmed = path.trim_matches('/');
    let mut done = 0;
    while done < trimmed.len() {
        let rest = trimmed.get(done..).unwrap_or_default();
        let end = rest.find('/').map_or(trimmed.len(), |i| done + i);
        let (prefix, whole) = (trimmed.get(..end).unwrap_or_default(), end == trimmed.len());
        let name = trimmed.get(done..end).unwrap_or_default();
        if !name.is_empty()
            && let Err(Errno::NOENT) = open(prefix)
        {
            let above = trimmed.get(..done).filter(|a| !a.is_empty()).unwrap_or(".");
            let parent = open(above)?;
            if whole && !directory {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))?;
            } else {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
            }
        }
        done = end + 1;
    }
    open(path).map(drop)
}

/// The nodes of every `/dev`: name, major, minor.
const NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A device node that a container is granted.
pub(super) struct Node {
    /// Path below `/dev`.
    pub(super) name: String,
    pub(super) block: bool,
    pub(super) number: Dev,
}

/// A `/dev` of its own. Nothing of the image's `/dev` is looked at.
///
/// Granted nodes are made, not bound: a node of the host belongs to nobody in a user namespace, and who may use it is
/// decided by the grant.
pub(super) fn dev(outside: u32, granted: &[Node]) -> Result<OwnedFd> {
    let id = outside.to_string();
    let options = [("mode", "755"), ("size", "64k"), ("uid", &id), ("gid", &id)];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = filesystem("tmpfs", &options, attributes)?;
    let before = rustix::process::umask(Mode::empty());
    let filled = fill_dev(mount.as_fd(), granted);
    rustix::process::umask(before);
    filled.map(|()| mount)
}

fn fill_dev(dir: BorrowedFd<'_>, granted: &[Node]) -> Result<()> {
    for (name, major, minor) in NODES {
        let dev: Dev = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), dev)?;
    }
    for (name, to) in LINKS {
        rustix::fs::symlinkat(to, dir, name)?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755))?;
    }
    for node in granted {
        if let Some((above, _)) = node.name.rsplit_once('/') {
            ensure(dir, above, true)?;
        }
        let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        rustix::fs::mknodat(
            dir,
            node.name.as_str(),
            kind,
            Mode::from_raw_mode(0o666),
            node.number,
        )?;
    }
    Ok(())
}

/// `/dev/pts`; group 5 is `tty` in every distribution's `/etc/group`.
pub(super) fn pts(outside: u32) -> Result<OwnedFd> {
    let gid = outside.saturating_add(5).to_string();
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", gid.as_str())];
    filesystem(
        "devpts",
        &options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// A tmpfs that belongs to the pod's root.
pub(super) fn tmpfs(outside: u32, size_bytes: u64, mode: u32) -> Result<OwnedFd> {
    let (id, size, mode) =
        (outside.to_string(), size_bytes.to_string(), format!("{:o}", mode & 0o7777));
    let options = [("mode", mode.as_str()), ("size", &size), ("uid", &id), ("gid", &id)];
    filesystem(
        "tmpfs",
        &options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
}

/// Message queues of the caller's IPC namespace.
pub(super) fn mqueue() -> Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    filesystem("mqueue", &[], attributes)
}

/// `/sys` of the caller's network namespace, read-only.
pub(super) fn sysfs() -> Result<OwnedFd> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_RDONLY;
    filesystem("sysfs", &[], attributes)
}
