//! Layers mounted once each, root filesystems assembled over them.
//!
//! ```text
//! <run_dir>/layers/<diff_id>/   one EROFS mount a layer, however many containers use it
//!           held/<id>           who holds what: written before anything is mounted, removed last
//!           empty/              lower of an image without layers
//! <ctr_dir>/rootfs/             the overlay
//!           upper/              tmpfs, when the upper is in memory
//!           l/<n>/              idmapped copies of the layers, only while the overlay is being made
//! ```
//!
//! What is mounted is read from mountinfo, who holds it from `held/`; neither is believed alone. A holder whose overlay
//! is not mounted (the node lost power, or died half-way through an assemble) is a leftover for [`Mounts::sweep`].

mod base;
mod fs;
mod holder;
mod info;
mod inherit;
mod layer;
mod overlay;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::quota::Quota;
use crate::record::Image;
use crate::store::Store;
use holder::Holder;

/// Where a container's writes go. Fresh at every [`Mounts::assemble`], gone at [`Mounts::release`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upper {
    /// A directory on disk, made if absent; must not itself be on overlayfs.
    Disk {
        /// Emptied first; removed at release. [`Store::upper_dir`] gives one beside the layers.
        dir: PathBuf,
        /// What it may hold, where its file system bounds that.
        quota: Option<Quota>,
    },
    /// Memory, limited.
    Tmpfs {
        /// Limit, bytes; rounded up to pages.
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
    /// Mounted layers and how many holders each has.
    layers: BTreeMap<Digest, usize>,
    /// Container directories with their overlay mounted.
    holders: BTreeMap<PathBuf, Holder>,
    /// Holders without an overlay.
    stale: BTreeMap<PathBuf, Holder>,
    backing: Option<Backing>,
}

impl Mounts {
    /// Takes over whatever an earlier agent left mounted below `run_dir`, by mountinfo and the holder files there.
    /// Changes nothing but making `run_dir`; leftovers go with [`sweep`](Self::sweep).
    pub fn new(run_dir: impl AsRef<Path>) -> Result<Mounts> {
        let run_dir = run_dir.as_ref();
        std::fs::create_dir_all(run_dir).map_err(|e| Error::io("mkdir", run_dir, e))?;
        // mountinfo has no symlinks in its paths.
        let run_dir = run_dir.canonicalize().map_err(|e| Error::io("canonicalize", run_dir, e))?;
        for dir in ["layers", "held", "empty"] {
            disk::make_dir(&run_dir.join(dir))?;
        }
        let mounted = info::mount_points()?;
        let mut layers: BTreeMap<_, _> = disk::names(&run_dir.join("layers"))?
            .iter()
            .filter(|name| mounted.contains(&run_dir.join("layers").join(name)))
            .filter_map(|name| Some((Digest::from_hex(name)?, 0)))
            .collect();
        let (mut holders, mut stale) = (BTreeMap::new(), BTreeMap::new());
        for holder in holder::read_all(&run_dir.join("held"))? {
            let whole = holder.layers.iter().all(|l| layers.contains_key(l));
            if whole && mounted.contains(&holder.rootfs()) {
                for l in &holder.layers {
                    *layers.entry(*l).or_insert(0) += 1;
                }
                holders.insert(holder.ctr_dir.clone(), holder);
            } else {
                stale.insert(holder.ctr_dir.clone(), holder);
            }
        }
        Ok(Mounts { run_dir, layers, holders, stale, backing: None })
    }

    /// Where layers are mounted, absolute.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// Assembles `image` at `<ctr_dir>/rootfs`. With `idmap` (a user namespace) everything in it appears shifted by that
    /// namespace's map: the layers by idmapped mounts, what is made in the upper layer by its owners, so that the
    /// container's root owns what the image's root owns. `Busy` if one is there already. On error nothing stays mounted.
    pub fn assemble(
        &mut self,
        store: &Store,
        image: &Image,
        ctr_dir: &Path,
        upper: Upper,
        idmap: Option<BorrowedFd<'_>>,
    ) -> Result<Rootfs> {
        std::fs::create_dir_all(ctr_dir).map_err(|e| Error::io("mkdir", ctr_dir, e))?;
        let ctr_dir = ctr_dir.canonicalize().map_err(|e| Error::io("canonicalize", ctr_dir, e))?;
        if self.holders.contains_key(&ctr_dir) {
            return Err(Error::Busy { path: ctr_dir });
        }
        if let Some(old) = self.stale.remove(&ctr_dir) {
            self.take_down(&old)?;
        }
        let holder = Holder::new(ctr_dir, distinct_top_first(image), &upper);
        holder.write(&self.run_dir.join("held"))?;
        let mut held = Vec::new();
        let made = self.assemble_held(store, &holder, &upper, idmap, &mut held);
        if made.is_err() {
            // The first error is the one to tell; what a failing clean-up leaves is found by the next sweep.
            for diff_id in held {
                let _ = self.put_layer(&diff_id);
            }
            if self.take_down(&holder).is_err() {
                self.stale.insert(holder.ctr_dir.clone(), holder);
            }
            return made;
        }
        self.holders.insert(holder.ctr_dir.clone(), holder);
        made
    }

    fn assemble_held(
        &mut self,
        store: &Store,
        holder: &Holder,
        upper: &Upper,
        idmap: Option<BorrowedFd<'_>>,
        held: &mut Vec<Digest>,
    ) -> Result<Rootfs> {
        let mut layers = Vec::with_capacity(holder.layers.len());
        for diff_id in &holder.layers {
            let files = store.layer_files(diff_id)?;
            let path = self.get_layer(diff_id, &files)?;
            held.push(*diff_id);
            layers.push(overlay::Layer { diff_id: *diff_id, path, inherit: files.meta.inherit });
        }
        overlay::assemble(&layers, holder, upper, &self.run_dir.join("empty"), idmap)?;
        Ok(Rootfs { path: holder.rootfs() })
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.run_dir.join("layers").join(diff_id.hex())
    }

    /// Mounts a layer unless it is, and counts one more holder.
    fn get_layer(&mut self, diff_id: &Digest, files: &crate::store::LayerFiles) -> Result<PathBuf> {
        let path = self.layer_path(diff_id);
        if !self.layers.contains_key(diff_id) {
            disk::make_dir(&path)?;
            match layer::mount(files, &path) {
                Ok(backing) => self.backing = Some(backing),
                Err(e) => {
                    let _ = std::fs::remove_dir(&path);
                    return Err(e);
                }
            }
        }
        *self.layers.entry(*diff_id).or_insert(0) += 1;
        Ok(path)
    }

    /// One holder less; the last one unmounts.
    fn put_layer(&mut self, diff_id: &Digest) -> Result<()> {
        match self.layers.get_mut(diff_id) {
            Some(n) if *n > 1 => *n -= 1,
            Some(_) => self.unmount_layer(diff_id)?,
            None => {}
        }
        Ok(())
    }

    fn unmount_layer(&mut self, diff_id: &Digest) -> Result<()> {
        let path = self.layer_path(diff_id);
        fs::detach(&path)?;
        self.layers.remove(diff_id);
        std::fs::remove_dir(&path).map_err(|e| Error::io("rmdir", &path, e))
    }

    /// Takes everything of a holder down but its layers, and its record last.
    fn take_down(&self, holder: &Holder) -> Result<()> {
        overlay::take_down(holder)?;
        holder.forget(&self.run_dir.join("held"))
    }

    /// Takes a root filesystem down and its upper with it; layers nobody else uses are unmounted. Unknown directories
    /// are no error. After an error it can be called again.
    pub fn release(&mut self, ctr_dir: &Path) -> Result<()> {
        // A directory that is gone can still be known by the name it had.
        let ctr_dir = ctr_dir.canonicalize().unwrap_or_else(|_| ctr_dir.to_path_buf());
        if let Some(holder) = self.stale.get(&ctr_dir) {
            self.take_down(holder)?;
            self.stale.remove(&ctr_dir);
        }
        let Some(holder) = self.holders.get(&ctr_dir) else { return Ok(()) };
        self.take_down(holder)?;
        let layers = self.holders.remove(&ctr_dir).map(|h| h.layers).unwrap_or_default();
        layers.iter().try_for_each(|l| self.put_layer(l))
    }

    /// Container directories that have a root filesystem.
    pub fn held(&self) -> Vec<PathBuf> {
        self.holders.keys().cloned().collect()
    }

    /// How many containers use each mounted layer.
    pub fn layers(&self) -> impl Iterator<Item = (&Digest, usize)> {
        self.layers.iter().map(|(d, n)| (d, *n))
    }

    /// Releases every container directory not in `keep`, and every layer nobody holds.
    pub fn sweep(&mut self, keep: &[PathBuf]) -> Result<Swept> {
        let keep: BTreeSet<_> =
            keep.iter().map(|k| k.canonicalize().unwrap_or_else(|_| k.clone())).collect();
        let mut swept = Swept::default();
        let before = self.layers.len();
        let all = self.holders.keys().filter(|k| !keep.contains(*k)).chain(self.stale.keys());
        for ctr_dir in all.cloned().collect::<Vec<_>>() {
            self.release(&ctr_dir)?;
            swept.released.push(ctr_dir);
        }
        let unused = self.layers.iter().filter(|(_, n)| **n == 0).map(|(d, _)| *d);
        for diff_id in unused.collect::<Vec<_>>() {
            self.unmount_layer(&diff_id)?;
        }
        swept.layers = before - self.layers.len();
        // Mount points of a run that ended without unmounting (its mount namespace is gone).
        for name in disk::names(&self.run_dir.join("layers"))? {
            if Digest::from_hex(&name).is_none_or(|d| !self.layers.contains_key(&d)) {
                let _ = std::fs::remove_dir(self.run_dir.join("layers").join(name));
            }
        }
        Ok(swept)
    }

    /// How the last layer was mounted; None before the first.
    pub fn backing(&self) -> Option<Backing> {
        self.backing
    }
}

/// The layers, topmost first. Of a layer that is in an image twice only the topmost matters: it has all that the lower
/// one has and hides all that it hides. (Overlay refuses one directory twice.)
fn distinct_top_first(image: &Image) -> Vec<Digest> {
    let mut seen = BTreeSet::new();
    image.record.layers.iter().rev().map(|l| l.diff_id).filter(|d| seen.insert(*d)).collect()
}
