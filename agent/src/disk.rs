//! What a container may write beside its image: the bound, and what it holds of it.
//!
//! Where the layer lies in memory it is a file system of its own with that size, and the program gets ENOSPC. On a disk with project
//! quotas it gets EDQUOT. On any other disk it is measured from time to time, and a pod that holds more is ended and torn down,
//! which gives the disk back. A layer that is full, where that does not end its pod, is told in `ps` and `why`.
//!
//! Not counted: files that are deleted and still open.

use std::ffi::CStr;
use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use imagefs::quota::{self, Quota};
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

/// What a file system tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Its size; 0 where it does not tell. Below a directory with a quota: that.
    pub bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
    /// It is memory.
    pub in_memory: bool,
}

/// The file system at `path`.
///
/// # Errors
/// `statfs` failed.
pub fn file_system(path: &Path) -> Result<Room> {
    let seen = rustix::fs::statfs(path)?;
    let block = u64::try_from(seen.f_bsize).unwrap_or(0);
    // The kernel's word has other widths on other machines; magics have 32 bits.
    let magic = seen.f_type as u64 & 0xffff_ffff;
    Ok(Room {
        bytes: seen.f_blocks.saturating_mul(block),
        free_bytes: seen.f_bavail.saturating_mul(block),
        in_memory: matches!(magic, TMPFS_MAGIC | RAMFS_MAGIC),
    })
}

/// How layers are bounded on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bounding {
    /// Each is a file system in memory, of its own size.
    Memory,
    /// The disk refuses a write that is too much.
    Quota,
    /// They are measured every 10 s: why the disk does not do it.
    Looks(String),
}

impl fmt::Display for Bounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("in memory, each with its own size"),
            Self::Quota => f.write_str("on disk, bounded by project quotas"),
            Self::Looks(why) => {
                write!(f, "on disk, measured every {} s: {why}", EVERY_US / 1_000_000)
            }
        }
    }
}

/// The first project number of layers; a pod's slot and its container's place come on top. Below are the administrator's own.
const PROJECT_BASE: u32 = 0x5155_0000;
/// Tries whether quotas work; no layer has it.
const PROJECT_PROBE: u32 = PROJECT_BASE - 1;
/// What it is tried with; less than any disk has.
const PROBE_BYTES: u64 = 4 << 20;

/// Finds out by trying, in a directory that is made below `layers` and removed.
pub fn bounding(layers: &Path) -> Bounding {
    let tried = || -> Result<Bounding> {
        if file_system(layers)?.in_memory {
            return Ok(Bounding::Memory);
        }
        let dir = layers.join("quota-probe");
        match rustix::fs::mkdir(&dir, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let quota = Quota { project: PROJECT_PROBE, bytes: PROBE_BYTES, files: 0 };
        let set = quota::set(&dir, quota);
        // Seen through a quota that is kept, the disk has just that size.
        let seen = file_system(&dir);
        let _ = std::fs::remove_dir(&dir);
        set?;
        Ok(if seen?.bytes == PROBE_BYTES {
            Bounding::Quota
        } else {
            Bounding::Looks("its project quotas count and do not refuse".into())
        })
    };
    tried().unwrap_or_else(|error| Bounding::Looks(format!("it has no project quotas ({error})")))
}

/// The quota of a pod's container: `slot` is unique among the pods of a node, `at` its place in the spec.
pub fn layer_quota(slot: u32, at: usize, bytes: u64) -> Quota {
    let of_pod = u32::try_from(at).unwrap_or(0) % CONTAINERS;
    Quota { project: PROJECT_BASE + slot * CONTAINERS + of_pod, bytes, files: ENTRIES_MAX }
}

/// Numbers of a pod: as many as a spec may have containers.
#[allow(clippy::cast_possible_truncation, reason = "sixteen")]
const CONTAINERS: u32 = sched::spec::CONTAINERS_MAX as u32;
/// A layer with less room than this is full: a write of a usual size fails.
const FULL_BYTES: u64 = 64 << 10;

/// The writable layer of one container.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The claim of its pod.
    pub claim: String,
    /// The container.
    pub container: String,
    /// Where it is.
    pub dir: PathBuf,
    /// Its root file system, which has the layer's bound where the layer has one of its own.
    pub root: PathBuf,
    /// Its cgroup.
    pub cgroup: Option<PathBuf>,
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
    /// Claims and containers, and what is to be known of each: empty where that is nothing.
    pub notes: Vec<(String, String, String)>,
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
    let (mut over, mut notes) = (Vec::new(), Vec::new());
    for layer in layers {
        let words: Vec<String> = [full(layer), crowded(layer)].into_iter().flatten().collect();
        notes.push((layer.claim.clone(), layer.container.clone(), words.join("; ")));
        let measured = file_system(layer.dir.parent().unwrap_or(&layer.dir))
            .and_then(|disk| Ok(measure(&layer.dir)?.over(allowed_bytes(layer.asked, disk.bytes))));
        match measured {
            Ok(Some(why)) => over.push((layer.claim.clone(), layer.container.clone(), why)),
            Ok(None) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(path = %layer.dir.display(), %error, "cannot measure a layer");
            }
        }
    }
    let took_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    Seen { over, notes, took_us }
}

/// A layer with a bound of its own that is reached: its container goes on, and its writes fail.
fn full(layer: &Layer) -> Option<String> {
    let own = file_system(&layer.root).ok()?;
    let disk = file_system(layer.dir.parent()?.parent()?).ok()?;
    if own.free_bytes >= FULL_BYTES || own.bytes == disk.bytes {
        return None;
    }
    let (name, size) = (&layer.container, show_size(own.bytes));
    Some(format!(
        "container {name}: its layer is full ({size}): what it writes fails; remove files in it, or raise `disk`"
    ))
}

/// A container that was refused processes.
fn crowded(layer: &Layer) -> Option<String> {
    let cgroup = layer.cgroup.as_ref()?;
    if initd::cgroup::usage(cgroup).pids_max_events? == 0 {
        return None;
    }
    let most = std::fs::read_to_string(cgroup.join("pids.max")).ok()?;
    let (name, most) = (&layer.container, most.trim());
    Some(format!(
        "container {name} was refused processes beyond its {most} (`pids`); raise `pids`, or make it start fewer"
    ))
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
        assert!(file_system(Path::new("/dev")).unwrap().in_memory);
        assert!(!file_system(Path::new("/proc")).unwrap().in_memory);
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
        let rest = |took_us| Seen { took_us, ..Seen::default() }.rest_us();
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
            let (claim, container) = ("c1".into(), name.into());
            Layer { claim, container, root: dir.clone(), dir, cgroup: None, asked: Some(asked) }
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
