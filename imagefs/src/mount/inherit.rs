//! Directories that a layer has without declaring them take their attributes from the layers below. Overlay would show
//! the undeclared ones, so what they should be is found here and set in the upper layer.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fgetxattr, openat2, statat};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A mounted layer.
pub(super) struct Lower {
    pub(super) diff_id: Digest,
    pub(super) root: File,
    /// Its undeclared directories.
    pub(super) inherit: BTreeSet<Vec<u8>>,
}

/// What one layer says about a directory path.
enum Says {
    /// Has it, with attributes of its own.
    Declared(Box<File>),
    /// Has it, undeclared.
    Undeclared,
    /// Has something there, or above it, that hides lower layers.
    Hides,
    /// Has a symlink there or on the way; the length of the path up to the link.
    Symlink(usize),
    /// Nothing.
    Absent,
}

/// The attributes of directories whose topmost layer does not declare them, from the topmost layer that does: path and
/// the directory to copy from. `lowers` is topmost first. The root is the empty path.
pub(super) fn resolve(lowers: &[Lower]) -> Result<BTreeMap<Vec<u8>, File>> {
    let mut out = BTreeMap::new();
    let paths: BTreeSet<&Vec<u8>> = lowers.iter().flat_map(|l| &l.inherit).collect();
    for path in paths {
        if let Some(from) = resolve_one(lowers, path)? {
            out.insert(path.clone(), from);
        }
    }
    Ok(out)
}

fn resolve_one(lowers: &[Lower], path: &[u8]) -> Result<Option<File>> {
    let mut undeclared_in: Option<&Lower> = None;
    for (depth, lower) in lowers.iter().enumerate() {
        match says(lower, path)? {
            Says::Declared(dir) => return Ok(undeclared_in.map(|_| *dir)),
            Says::Undeclared => undeclared_in = undeclared_in.or(Some(lower)),
            Says::Hides => return Ok(None),
            Says::Absent => {}
            Says::Symlink(len) => {
                let Some(writer) = undeclared_in else { return Ok(None) };
                let link = path.get(..len).unwrap_or(path);
                // A layer above that declares a directory there has replaced the link knowingly.
                for upper in lowers.iter().take(depth) {
                    if matches!(says(upper, link)?, Says::Declared(_) | Says::Hides) {
                        return Ok(None);
                    }
                }
                let path = String::from_utf8_lossy(link).into_owned();
                return Err(Error::ThroughSymlink { layer: writer.diff_id, path });
            }
        }
    }
    Ok(None)
}

fn open(root: &File, path: &[u8], flags: OFlags) -> Result<File, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
        .map(File::from)
}

fn says(lower: &Lower, path: &[u8]) -> Result<Says> {
    let io = |e| Error::io("openat2 in layer", String::from_utf8_lossy(path).as_ref(), e);
    match open(&lower.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(_) if lower.inherit.contains(path) => Ok(Says::Undeclared),
        Ok(dir) => Ok(Says::Declared(Box::new(dir))),
        Err(Errno::NOENT) => hides_above(lower, path),
        // Something on the way, or the thing itself, is no directory: which, and is it a link?
        Err(Errno::NOTDIR | Errno::LOOP) => {
            for (len, part) in prefixes(path) {
                let stat = match open(&lower.root, part, OFlags::PATH) {
                    Ok(fd) => stat(&fd).map_err(io)?,
                    Err(e) => return Err(io(e)),
                };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => return Ok(Says::Symlink(len)),
                    _ => return Ok(Says::Hides),
                }
            }
            Ok(Says::Hides)
        }
        Err(e) => Err(io(e)),
    }
}

/// Whether a directory above an absent path is opaque in this layer.
fn hides_above(lower: &Lower, path: &[u8]) -> Result<Says> {
    let io = |e| Error::io("read overlay mark", String::from_utf8_lossy(path).as_ref(), e);
    let above = std::iter::once(&b""[..]).chain(prefixes(path).map(|(_, p)| p));
    for part in above {
        let dir = match open(&lower.root, part, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => break,
            Err(e) => return Err(io(e)),
        };
        match fgetxattr(&dir, "trusted.overlay.opaque", &mut [0u8; 8][..]) {
            Ok(_) => return Ok(Says::Hides),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(io(e)),
        }
    }
    Ok(Says::Absent)
}

/// `a`, `a/b`, `a/b/c` of `a/b/c`, with their lengths.
fn prefixes(path: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    ends.chain(std::iter::once(path.len())).filter_map(|len| Some((len, path.get(..len)?)))
}

fn stat(fd: &impl AsFd) -> Result<Stat, Errno> {
    statat(fd, "", AtFlags::EMPTY_PATH)
}
