//! What a container may write beside its image: the bound, and what it holds of it.
//!
//! Where the layer lies in memory it is a file system of its own with that size, and the program gets ENOSPC. On a disk it is
//! measured from time to time, and a pod that holds more is ended and torn down, which gives the disk back.
//!
//! Not counted: files that are deleted and still open.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::{Errno, Result};
use sched::spec::units::show_size;

/// Bytes of a container whose spec says nothing, unless the disk is small.
pub const DEFAULT_BYTES: u64 = 10 << 30;
/// Without a word in the spec a container gets no more than one part in so many of the disk.
const DEFAULT_PART: u64 = 4;
/// Files and directories of one layer: a bound for the walk, and for inodes, which bytes do not count.
pub const ENTRIES_MAX: u64 = 1 << 20;
/// Looks that are asked for at once: the next is due only some time after the last is done.
pub const LOOKS_MAX: usize = 1;
/// Directories inside each other; each costs a descriptor while a layer is walked.
pub const DEPTH_MAX: usize = 128;
/// From one look to the next, in microseconds.
const EVERY_US: u64 = 10_000_000;
/// A look is followed by at least so many times its own length of rest.
const REST: u64 = 20;

const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// The bound of a container: what its spec asks, else a default that fits a file system of `disk_bytes`.
pub fn allowed_bytes(asked: Option<u64>, disk_bytes: u64) -> u64 {
    // One that does not tell its size bounds nothing.
    let part = if disk_bytes == 0 { DEFAULT_BYTES } else { disk_bytes / DEFAULT_PART };
    asked.unwrap_or(DEFAULT_BYTES.min(part))
}

/// Size of the file system at `path` in bytes, and whether it is in memory.
///
/// # Errors
/// `statfs` failed.
pub fn file_system(path: &Path) -> Result<(u64, bool)> {
    let seen = rustix::fs::statfs(path)?;
    let block = u64::try_from(seen.f_bsize).unwrap_or(0);
    // The kernel's word has other widths on other machines; magics have 32 bits.
    let magic = seen.f_type as u64 & 0xffff_ffff;
    Ok((seen.f_blocks.saturating_mul(block), matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC)))
}

/// The writable layer of one container.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The claim of its pod.
    pub claim: String,
    /// The container.
    pub container: String,
    /// Where it is.
    pub dir: PathBuf,
    /// What the spec allows, bytes.
    pub asked: Option<u64>,
}

/// Why a container may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It holds more than it may.
    Bytes {
        /// Bytes on disk.
        held: u64,
        /// Its bound.
        allowed: u64,
    },
    /// It has more than [`ENTRIES_MAX`] files.
    Entries,
    /// Its directories are nested deeper than [`DEPTH_MAX`].
    Depth,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { held, allowed } => {
                write!(f, "its layer holds {} of ", show_size(*held))?;
                write!(f, "{} allowed (`disk`)", show_size(*allowed))
            }
            Self::Entries => write!(f, "its layer has more than {ENTRIES_MAX} files"),
            Self::Depth => {
                write!(f, "its layer has directories nested deeper than {DEPTH_MAX}")
            }
        }
    }
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes on disk; a file with several names counts once.
    pub bytes: u64,
    /// Files and directories, at most [`ENTRIES_MAX`] and one.
    pub entries: u64,
    /// Something is deeper than [`DEPTH_MAX`] and not counted.
    pub deep: bool,
}

impl Held {
    /// Why the container may not go on, if so.
    #[must_use]
    pub fn over(self, allowed: u64) -> Option<Over> {
        if self.bytes > allowed {
            Some(Over::Bytes { held: self.bytes, allowed })
        } else if self.entries > ENTRIES_MAX {
            Some(Over::Entries)
        } else {
            self.deep.then_some(Over::Depth)
        }
    }
}

/// A look at all layers.
#[derive(Debug, Default)]
pub struct Seen {
    /// Claims and containers that hold too much.
    pub over: Vec<(String, String, Over)>,
    /// How long it took.
    pub took_us: u64,
}

impl Seen {
    /// How long until the next one, in microseconds: big layers are looked at less often.
    #[must_use]
    pub fn rest_us(&self) -> u64 {
        EVERY_US.max(self.took_us.saturating_mul(REST))
    }
}

/// Measures layers, one after the other. One that is gone, or is none on a disk, holds nothing.
pub fn look(layers: &[Layer]) -> Seen {
    let started = Instant::now();
    let mut over = Vec::new();
    for layer in layers {
        let measured = file_system(&layer.dir).and_then(|(disk_bytes, _)| {
            Ok(measure(&layer.dir)?.over(allowed_bytes(layer.asked, disk_bytes)))
        });
        match measured {
            Ok(Some(why)) => over.push((layer.claim.clone(), layer.container.clone(), why)),
            Ok(None) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(path = %layer.dir.display(), %error, "cannot measure a layer");
            }
        }
    }
    Seen { over, took_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX) }
}

/// Walks a directory that a container changes meanwhile. No link is followed: it stays inside whatever is put there.
///
/// # Errors
/// The directory, or one in it, cannot be read.
pub fn measure(dir: &Path) -> Result<Held> {
    let mut held = Held::default();
    let mut above = vec![Dir::new(rustix::fs::open(dir, DIRECTORY, Mode::empty())?)?];
    loop {
        let depth = above.len();
        let Some(here) = above.last_mut() else { return Ok(held) };
        let entry = match here.read() {
            Some(Ok(entry)) => entry,
            // Removed meanwhile.
            None | Some(Err(Errno::NOENT)) => {
                above.pop();
                continue;
            }
            Some(Err(error)) => return Err(error),
        };
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let at = here.fd()?;
        let stat = match rustix::fs::statat(at, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(error) => return Err(error),
        };
        held.entries += 1;
        if held.entries > ENTRIES_MAX {
            return Ok(held);
        }
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // All names of a file are in the layer: each counts its part, and none has to be remembered.
        let names = if directory { 1 } else { u64::from(stat.st_nlink as u32).max(1) };
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        held.bytes = held.bytes.saturating_add(blocks.saturating_mul(512) / names);
        if !directory {
            continue;
        }
        if depth >= DEPTH_MAX {
            held.deep = true;
        } else if let Some(below) = enter(at, entry.file_name())? {
            above.push(Dir::new(below)?);
        }
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `None` where there is another thing by now.
fn enter(at: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>> {
    match rustix::fs::openat(at, name, DIRECTORY, Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("layer-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_default_fits_the_disk_and_the_spec_has_the_last_word() {
        assert_eq!(allowed_bytes(None, 1 << 40), DEFAULT_BYTES);
        assert_eq!(allowed_bytes(None, 1 << 30), 256 << 20);
        assert_eq!(allowed_bytes(None, 0), DEFAULT_BYTES);
        assert_eq!(allowed_bytes(Some(1 << 40), 1 << 30), 1 << 40);
    }

    #[test]
    fn memory_is_told_from_other_file_systems() {
        // A tmpfs wherever Linux runs, and something that is neither memory nor a disk.
        assert!(file_system(Path::new("/dev")).unwrap().1);
        assert!(!file_system(Path::new("/proc")).unwrap().1);
        assert_eq!(file_system(Path::new("/nonexistent")), Err(Errno::NOENT));
    }

    #[test]
    fn what_is_over_is_told_in_numbers() {
        let held = |bytes, entries, deep| Held { bytes, entries, deep };
        assert_eq!(held(1 << 20, ENTRIES_MAX, false).over(1 << 20), None);
        let over = held(1_288_490_188, 3, false).over(1 << 30).unwrap();
        assert_eq!(over.to_string(), "its layer holds 1.2Gi of 1Gi allowed (`disk`)");
        assert_eq!(held(1, ENTRIES_MAX + 1, false).over(1), Some(Over::Entries));
        assert_eq!(held(1, 1, true).over(1), Some(Over::Depth));
        assert!(held(2, ENTRIES_MAX + 1, true).over(1).unwrap().to_string().contains("holds 2B"));
    }

    #[test]
    fn big_layers_rest_longer() {
        let rest = |took_us| Seen { over: Vec::new(), took_us }.rest_us();
        assert_eq!((rest(0), rest(1_000_000)), (EVERY_US, 20_000_000));
    }

    #[test]
    fn a_file_counts_once_and_no_link_is_followed() {
        let scratch = Scratch::new("walk");
        let (layer, other) = (scratch.0.join("layer"), scratch.0.join("other"));
        std::fs::create_dir_all(layer.join("u/a/b")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::fs::write(other.join("big"), vec![1; 4 << 20]).unwrap();
        let empty = measure(&layer).unwrap();
        std::fs::write(layer.join("u/a/b/file"), vec![1; 1 << 20]).unwrap();
        for name in ["u/one", "u/two", "u/a/three"] {
            std::fs::hard_link(layer.join("u/a/b/file"), layer.join(name)).unwrap();
        }
        std::os::unix::fs::symlink(&other, layer.join("u/dir")).unwrap();
        std::os::unix::fs::symlink(other.join("big"), layer.join("u/big")).unwrap();
        let sparse = std::fs::File::create(layer.join("u/sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let held = measure(&layer).unwrap();
        assert_eq!(held.entries, empty.entries + 7);
        let more = held.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 64 * 1024).contains(&more), "{more} bytes");
        assert_eq!(measure(&layer.join("u/big")), Err(Errno::NOTDIR));
        assert_eq!(measure(&scratch.0.join("none")), Err(Errno::NOENT));
    }

    #[test]
    fn depth_is_bounded_and_told() {
        let scratch = Scratch::new("deep");
        let nest = |n: usize| scratch.0.join(vec!["d"; n].join("/"));
        std::fs::create_dir_all(nest(DEPTH_MAX - 1)).unwrap();
        assert!(!measure(&scratch.0).unwrap().deep);
        std::fs::create_dir_all(nest(DEPTH_MAX + 5)).unwrap();
        assert_eq!(measure(&scratch.0).unwrap().over(u64::MAX), Some(Over::Depth));
    }

    #[test]
    fn only_the_layers_that_hold_too_much_are_told() {
        let scratch = Scratch::new("look");
        let layer = |name: &str, asked| {
            let dir = scratch.0.join(name);
            Layer { claim: "c1".into(), container: name.into(), dir, asked: Some(asked) }
        };
        let layers = [layer("small", 1 << 30), layer("full", 1 << 20), layer("gone", 0)];
        for layer in &layers[..2] {
            std::fs::create_dir_all(&layer.dir).unwrap();
            std::fs::write(layer.dir.join("f"), vec![1; 2 << 20]).unwrap();
        }
        let seen = look(&layers);
        assert_eq!(seen.over.len(), 1, "{seen:?}");
        let (claim, container, over) = &seen.over[0];
        assert_eq!((claim.as_str(), container.as_str()), ("c1", "full"));
        assert!(matches!(over, Over::Bytes { held, allowed: 1_048_576 } if *held >= 2 << 20));
    }
}
