//! One root filesystem: an overlay of mounted layers with a fresh upper.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::MountAttrFlags;

use super::Upper;
use super::base::{self, Owner};
use super::fs::{self, Context};
use super::holder::Holder;
use super::inherit::{self, Lower};
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::quota;

/// Owner that an idmapped mount shows for ids its map lacks (/proc/sys/fs/overflowuid's default).
const OVERFLOW_ID: u32 = 65534;

/// A mounted layer to stack, topmost first in lists.
pub(super) struct Layer {
    pub(super) diff_id: Digest,
    pub(super) path: PathBuf,
    pub(super) inherit: Vec<Vec<u8>>,
}

/// Mounts the overlay of `layers` at the holder's rootfs and completes it. On error the caller takes everything down.
pub(super) fn assemble(
    layers: &[Layer],
    holder: &Holder,
    upper: &Upper,
    empty: &Path,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let owner = match idmap {
        Some(userns) => root_owner(empty, userns)?,
        None => Owner { uid: 0, gid: 0 },
    };
    let copies = holder.ctr_dir.join("l");
    let paths = match idmap {
        Some(userns) => idmapped_copies(layers, &copies, userns)?,
        None => layers.iter().map(|l| l.path.clone()).collect(),
    };
    let lowers = open_lowers(layers, &paths)?;
    let attributes = inherit::resolve(&lowers)?;
    let upper_dir = make_upper(holder, upper)?;
    let (u, w) = (upper_dir.join("u"), upper_dir.join("w"));
    make_fresh(&u, owner)?;
    make_fresh(&w, owner)?;
    // The merged root shows the upper's attributes, whatever the layers have.
    let top = fs::open_dir(&u)?;
    let from = match (attributes.get(&b""[..]), lowers.first()) {
        (Some(dir), _) => Some(dir),
        (None, Some(l)) if !l.inherit.contains(&b""[..]) => Some(&l.root),
        _ => None,
    };
    if let Some(from) = from {
        base::copy_attributes(from, &top).map_err(|e| Error::io("set attributes", &u, e))?;
    }
    let rootfs = holder.rootfs();
    disk::make_dir(&rootfs)?;
    mount(&paths, &u, &w, empty, &rootfs)?;
    if idmap.is_some() {
        // The overlay has its own references by now.
        remove_copies(&copies)?;
    }
    let root = fs::open_dir(&rootfs)?;
    for (path, from) in attributes.iter().filter(|(p, _)| !p.is_empty()) {
        let set = |from| {
            let to = base::open_plain(&root, path)?;
            base::copy_attributes(from, &to.as_fd())
        };
        let shown = || rootfs.join(String::from_utf8_lossy(path).as_ref());
        set(from).map_err(|e| Error::io("set attributes", shown(), e))?;
    }
    base::complete(&root, &rootfs, owner)
}

/// The undoing of any prefix of [`assemble`].
pub(super) fn take_down(holder: &Holder) -> Result<()> {
    let rootfs = holder.rootfs();
    fs::detach(&rootfs)?;
    remove_copies(&holder.ctr_dir.join("l"))?;
    let tmpfs = holder.ctr_dir.join("upper");
    fs::detach(&tmpfs)?;
    for dir in [&rootfs, &tmpfs] {
        remove_empty(dir)?;
    }
    match &holder.upper_dir {
        Some(dir) => {
            let project = quota::project(dir);
            disk::remove_tree(dir)?;
            quota::forget(dir.parent().unwrap_or(dir), project);
            Ok(())
        }
        None => Ok(()),
    }
}

fn remove_empty(dir: &Path) -> Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("rmdir", dir, e)),
        _ => Ok(()),
    }
}

/// Which owner the container's root is outside.
fn root_owner(empty: &Path, userns: BorrowedFd<'_>) -> Result<Owner> {
    // `empty` belongs to 0:0; a copy of it seen through the map shows the answer.
    let tree = fs::idmapped_clone(empty, userns)?;
    let s = rustix::fs::statat(&tree, "", rustix::fs::AtFlags::EMPTY_PATH)
        .map_err(|e| Error::io("stat", empty, e))?;
    if s.st_uid == OVERFLOW_ID || s.st_gid == OVERFLOW_ID {
        return Err(Error::Unmapped { id: 0 });
    }
    Ok(Owner { uid: s.st_uid, gid: s.st_gid })
}

/// Attached, because kernel 6.12 takes no detached mounts as lowers.
fn idmapped_copies(
    layers: &[Layer],
    copies: &Path,
    userns: BorrowedFd<'_>,
) -> Result<Vec<PathBuf>> {
    disk::make_dir(copies)?;
    let mut paths = Vec::with_capacity(layers.len());
    for (i, layer) in layers.iter().enumerate() {
        let tree = fs::idmapped_clone(&layer.path, userns)?;
        let path = copies.join(i.to_string());
        disk::make_dir(&path)?;
        fs::attach(tree.as_fd(), &path)?;
        paths.push(path);
    }
    Ok(paths)
}

fn remove_copies(copies: &Path) -> Result<()> {
    if !copies.is_dir() {
        return Ok(());
    }
    for name in disk::names(copies)? {
        let path = copies.join(name);
        fs::detach(&path)?;
        remove_empty(&path)?;
    }
    remove_empty(copies)
}

fn open_lowers(layers: &[Layer], paths: &[PathBuf]) -> Result<Vec<Lower>> {
    layers
        .iter()
        .zip(paths)
        .map(|(l, path)| {
            let inherit = l.inherit.iter().cloned().collect();
            Ok(Lower { diff_id: l.diff_id, root: fs::open_dir(path)?, inherit })
        })
        .collect()
}

fn make_upper(holder: &Holder, upper: &Upper) -> Result<PathBuf> {
    match upper {
        Upper::Disk { dir, quota } => {
            disk::remove_tree(dir)?;
            std::fs::create_dir_all(dir).map_err(|e| Error::io("mkdir", dir, e))?;
            if let Some(quota) = quota {
                quota::set(dir, *quota).map_err(|e| Error::io("set the quota of", dir, e))?;
            }
            Ok(dir.clone())
        }
        Upper::Tmpfs { size_bytes } => {
            let at = holder.ctr_dir.join("upper");
            disk::make_dir(&at)?;
            let fs = Context::open("tmpfs", &at)?;
            // 0 would mean no limit.
            fs.string("size", &(*size_bytes).max(4096).to_string())?;
            // An inode costs about a kilobyte that `size` does not count.
            fs.string("nr_inodes", &(size_bytes / 4096).max(1024).to_string())?;
            fs.string("mode", "0755")?;
            fs.string("source", "quelea-upper")?;
            fs.create().map_err(|e| fs.error("create tmpfs", e))?;
            // What a container writes is no programme of the host's: setuid files work through the overlay only.
            let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
            fs.attach(flags, &at)?;
            Ok(at)
        }
    }
}

fn make_fresh(dir: &Path, owner: Owner) -> Result<()> {
    disk::make_dir(dir)?;
    let set = |fd| {
        rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o755))?;
        let uid = Some(rustix::fs::Uid::from_raw(owner.uid));
        rustix::fs::fchown(&fd, uid, Some(rustix::fs::Gid::from_raw(owner.gid)))
    };
    set(fs::open_dir(dir)?).map_err(|e| Error::io("chown", dir, e))
}

fn mount(lowers: &[PathBuf], upper: &Path, work: &Path, empty: &Path, at: &Path) -> Result<()> {
    let mut fs = Context::open("overlay", at)?;
    fs.string("source", "quelea")?;
    for lower in lowers {
        fs.path("lowerdir+", lower)?;
    }
    if lowers.is_empty() {
        fs.path("lowerdir+", empty)?;
    }
    fs.path("upperdir", upper)?;
    fs.path("workdir", work)?;
    // Said and not left to module parameters. A redirect or metacopy mark could only come from a layer, whose marks were
    // stripped; index and nfs_export need lowers that never change their handles.
    for (key, value) in
        [("index", "off"), ("metacopy", "off"), ("redirect_dir", "nofollow"), ("xino", "auto")]
    {
        fs.string(key, value)?;
    }
    // The upper does not outlive the container, so nothing in it is worth an fsync.
    fs.flag("volatile")?;
    fs.create().map_err(|e| fs.error("create overlay", e))?;
    fs.attach(MountAttrFlags::MOUNT_ATTR_NODEV, at)
}
