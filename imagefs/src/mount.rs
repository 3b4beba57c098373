//! Layers mounted once each, root filesystems assembled over them.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::store::{Image, Store};

/// Where a container's writes go. Fresh at every [`Mounts::assemble`], gone at [`Mounts::release`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// A directory on disk, made if absent; must not itself be on overlayfs.
    Disk {
        /// Emptied first; removed at release. [`Store::upper_dir`](crate::Store) gives one beside the layers.
        dir: PathBuf,
    },
    /// Memory, limited.
    Tmpfs {
        /// Limit, bytes.
        size_bytes: u64,
    },
}

/// An assembled root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// The mounted overlay, `<ctr_dir>/rootfs`. `nodev`; has `/proc /sys /dev /tmp /run /etc` and the files
    /// `/etc/hosts /etc/hostname /etc/resolv.conf`.
    pub path: PathBuf,
}

/// How layers get mounted on this machine; goes into the node's conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backing {
    /// EROFS straight from files, data read past the page cache of the tar.
    FileDirect,
    /// EROFS straight from files, buffered.
    File,
    /// Through loop devices.
    Loop,
}

/// What [`Mounts::sweep`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Container directories released.
    pub released: Vec<PathBuf>,
    /// Layers unmounted.
    pub layers: usize,
}

/// The mounts of one node, in the mount namespace of the calling thread.
#[derive(Debug)]
pub struct Mounts {
    run_dir: PathBuf,
}

impl Mounts {
    /// Takes over whatever an earlier agent left mounted below `run_dir`, by mountinfo and the holder files there.
    pub fn new(run_dir: impl AsRef<Path>) -> Result<Mounts> {
        Ok(Mounts { run_dir: run_dir.as_ref().into() })
    }

    /// Where layers are mounted.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Assembles `image` at `<ctr_dir>/rootfs`. With `idmap` (a user namespace) everything in it appears shifted by that
    /// namespace's map. On error nothing stays mounted.
    pub fn assemble(
        &mut self,
        _store: &Store,
        _image: &Image,
        ctr_dir: &Path,
        _upper: Upper,
        _idmap: Option<BorrowedFd<'_>>,
    ) -> Result<Rootfs> {
        Err(Error::Busy { path: ctr_dir.into() })
    }

    /// Takes a root filesystem down and its upper with it; layers nobody else uses are unmounted. Unknown directories
    /// are no error.
    pub fn release(&mut self, _ctr_dir: &Path) -> Result<()> {
        Ok(())
    }

    /// Container directories that have a root filesystem.
    pub fn held(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Releases every container directory not in `keep`, and every layer nobody holds.
    pub fn sweep(&mut self, _keep: &[PathBuf]) -> Result<Swept> {
        Ok(Swept::default())
    }

    /// How the last layer was mounted; None before the first.
    pub fn backing(&self) -> Option<Backing> {
        None
    }
}
