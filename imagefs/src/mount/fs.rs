//! The new mount API (fsopen(2) and friends) with errors that say what the kernel said.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree, unmount,
};

use crate::error::{Error, Result};
use crate::sys;

/// fsconfig(2) refuses strings of 256 bytes and more.
const STRING_BYTES_MAX: usize = 255;

/// A filesystem being configured.
pub(super) struct Context {
    fd: OwnedFd,
    /// What errors are about.
    about: PathBuf,
    /// Kept open while their /proc paths are in use.
    held: Vec<OwnedFd>,
}

impl Context {
    pub(super) fn open(fs: &str, about: &Path) -> Result<Context> {
        match fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(fd) => Ok(Context { fd, about: about.into(), held: Vec::new() }),
            Err(Errno::NODEV) if fs == "erofs" => Err(Error::Kernel {
                feature: "the erofs filesystem",
                hint: "load the erofs module (modprobe erofs) or use a kernel with CONFIG_EROFS_FS",
            }),
            Err(Errno::NODEV) if fs == "overlay" => Err(Error::Kernel {
                feature: "the overlay filesystem",
                hint: "load the overlay module (modprobe overlay) or use a kernel with CONFIG_OVERLAY_FS",
            }),
            Err(errno) => {
                Err(Error::Mount { step: "fsopen", path: about.into(), errno, log: fs.into() })
            }
        }
    }

    pub(super) fn error(&self, step: &'static str, errno: Errno) -> Error {
        Error::Mount { step, path: self.about.clone(), errno, log: self.log() }
    }

    /// The messages the kernel left for us, one line.
    fn log(&self) -> String {
        let mut out = String::new();
        let mut buffer = [0u8; 1024];
        // The kernel keeps at most eight.
        for _ in 0..8 {
            let Ok(n) = rustix::io::read(&self.fd, &mut buffer) else { break };
            let line = String::from_utf8_lossy(buffer.get(..n).unwrap_or_default());
            if !out.is_empty() {
                out.push_str("; ");
            }
            out.push_str(line.trim_end());
        }
        out
    }

    pub(super) fn string(&self, key: &'static str, value: &str) -> Result<()> {
        fsconfig_set_string(&self.fd, key, value).map_err(|e| self.error(key, e))
    }

    pub(super) fn flag(&self, key: &'static str) -> Result<()> {
        fsconfig_set_flag(&self.fd, key).map_err(|e| self.error(key, e))
    }

    /// A path parameter. One that is too long goes by its fd's name in /proc, which resolves to the same attached path.
    pub(super) fn path(&mut self, key: &'static str, path: &Path) -> Result<()> {
        if path.as_os_str().len() <= STRING_BYTES_MAX {
            let bytes = path.as_os_str().as_bytes();
            return fsconfig_set_string(&self.fd, key, bytes).map_err(|e| self.error(key, e));
        }
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::io("open", path, e))?;
        let name = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
        self.held.push(fd);
        self.string(key, &name)
    }

    pub(super) fn create(&self) -> Result<(), Errno> {
        fsconfig_create(&self.fd)
    }

    /// Makes the mount and attaches it.
    pub(super) fn attach(self, flags: MountAttrFlags, at: &Path) -> Result<()> {
        let mount = fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, flags)
            .map_err(|e| self.error("fsmount", e))?;
        attach(mount.as_fd(), at)
    }
}

/// Attaches a detached mount.
pub(super) fn attach(mount: BorrowedFd<'_>, at: &Path) -> Result<()> {
    move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|errno| {
        Error::Mount { step: "move_mount", path: at.into(), errno, log: String::new() }
    })
}

/// A detached copy of the mount at `path` that shows owners through a user namespace's map.
pub(super) fn idmapped_clone(path: &Path, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
    let fail = |step, errno| Error::Mount { step, path: path.into(), errno, log: String::new() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(|e| fail("open_tree", e))?;
    sys::idmap(tree.as_fd(), userns).map_err(|e| fail("mount_setattr idmap", e))?;
    Ok(tree)
}

/// Takes a mount away even if something still uses it; where nothing is mounted that is fine.
pub(super) fn detach(path: &Path) -> Result<()> {
    // A second mount may lie over the first after an interrupted start.
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                let (path, log) = (path.to_path_buf(), String::new());
                return Err(Error::Mount { step: "umount", path, errno, log });
            }
        }
    }
}

/// Opens a directory for use as a starting point of lookups.
pub(super) fn open_dir(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map(File::from)
        .map_err(|e| Error::io("open", path, e))
}
