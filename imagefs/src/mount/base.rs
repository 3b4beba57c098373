//! What every container finds in its root whatever the image holds, made through openat2(RESOLVE_IN_ROOT) so that no
//! symlink of an image leads out of it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timestamps, Uid, XattrFlags, fchmod,
    fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, openat, openat2, statat,
    unlinkat,
};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Mount points, with their modes where they have to be made.
const DIRS: [(&str, u32); 6] = [
    ("proc", 0o555),
    ("sys", 0o555),
    ("dev", 0o755),
    ("tmp", 0o1777),
    ("run", 0o755),
    ("etc", 0o755),
];
/// Files below /etc that the runtime writes or mounts over.
const FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Owner of what is made here: root as the container sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Makes what is missing of [`DIRS`] and [`FILES`] in the assembled root. A symlink that leads nowhere (distributions ship
/// `/etc/resolv.conf` as one) is replaced.
pub(super) fn complete(root: &File, at: &Path, owner: Owner) -> Result<()> {
    for (name, mode) in DIRS {
        let fail = |e| Error::io("make", at.join(name), e);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat2(root, name, flags, Mode::empty(), RESOLVE) {
            Ok(_) => {}
            Err(Errno::NOENT | Errno::LOOP) => {
                remove_link(root, name).map_err(fail)?;
                mkdirat(root, name, Mode::from_raw_mode(0o700)).map_err(fail)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = openat(root, name, flags, Mode::empty()).map_err(fail)?;
                give(&made, mode, owner).map_err(fail)?;
            }
            Err(e) => return Err(fail(e)),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let etc = openat2(root, "etc", flags, Mode::empty(), RESOLVE)
        .map_err(|e| Error::io("open", at.join("etc"), e))?;
    for name in FILES {
        let path = format!("etc/{name}");
        let fail = |e| Error::io("make", at.join(&path), e);
        match openat2(root, path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), RESOLVE) {
            Ok(fd) => match FileType::from_raw_mode(fstat(&fd).map_err(fail)?.st_mode) {
                FileType::RegularFile => {}
                FileType::Directory => return Err(fail(Errno::ISDIR)),
                _ => return Err(fail(Errno::INVAL)),
            },
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {
                remove_link(&etc, name).map_err(fail)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(0o600);
                let made = openat(&etc, name, flags, mode).map_err(fail)?;
                give(&made, 0o644, owner).map_err(fail)?;
            }
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(())
}

/// Removes `name` if it is a symlink; what is not there is fine, anything else is EEXIST.
fn remove_link(dir: &impl AsFd, name: &str) -> Result<(), Errno> {
    match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e),
        Ok(s) if FileType::from_raw_mode(s.st_mode) == FileType::Symlink => {
            unlinkat(dir, name, AtFlags::empty())
        }
        Ok(_) => Err(Errno::EXIST),
    }
}

/// Owner before mode: a change of owner clears bits.
fn give(fd: &impl AsFd, mode: u32, owner: Owner) -> Result<(), Errno> {
    fchown(fd, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    fchmod(fd, Mode::from_raw_mode(mode))
}

/// Gives the directory `to` the attributes of the directory `from`.
pub(super) fn copy_attributes(from: &File, to: &impl AsFd) -> Result<(), Errno> {
    let s: Stat = fstat(from)?;
    for (name, value) in xattrs(from)? {
        // Overlay's own marks are about the layer they are in.
        if !name.starts_with(b"trusted.overlay.") {
            fsetxattr(to, name.as_slice(), &value, XattrFlags::empty())?;
        }
    }
    give(to, s.st_mode & 0o7777, Owner { uid: s.st_uid, gid: s.st_gid })?;
    let time = rustix::fs::Timespec { tv_sec: s.st_mtime as _, tv_nsec: s.st_mtime_nsec as _ };
    futimens(to, &Timestamps { last_access: time, last_modification: time })
}

/// Name and value.
type Xattr = (Vec<u8>, Vec<u8>);

fn xattrs(file: &File) -> Result<Vec<Xattr>, Errno> {
    let mut names = vec![0u8; 64 << 10];
    let len = match flistxattr(file, &mut names[..]) {
        Ok(n) => n,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e),
    };
    let mut out = Vec::new();
    for name in names.get(..len).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0u8; 64 << 10];
        let n = fgetxattr(file, name, &mut value[..])?;
        value.truncate(n);
        out.push((name.to_vec(), value));
    }
    Ok(out)
}

/// Opens a directory of the assembled root by a path that holds no symlinks.
pub(super) fn open_plain(root: &File, path: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = RESOLVE | ResolveFlags::NO_SYMLINKS;
    openat2(root, path, flags, Mode::empty(), resolve).map(File::from)
}
