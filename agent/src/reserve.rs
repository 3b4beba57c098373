//! What of a node's disk is kept free: images and new layers stop before it, so that the node can still write down what it must.

use std::fmt;
use std::path::Path;

use sched::spec::units::show_size;

use crate::disk::{self, Room};

/// One part in so many of the disk, ...
const PART: u64 = 20;
/// ... but at least this much, ...
const BYTES_MIN: u64 = 16 << 20;
/// ... no more than this, ...
const BYTES_MAX: u64 = 1 << 30;
/// ... and of a very small disk one part in so many.
const SMALL_PART: u64 = 4;

/// The reserve of a disk; none of one that does not tell its size.
pub fn reserve_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / PART).clamp(BYTES_MIN, BYTES_MAX).min(disk_bytes / SMALL_PART)
}

/// A disk has no room for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacks {
    /// The disk.
    pub room: Room,
    /// What was to be written.
    pub wanted_bytes: u64,
}

impl Lacks {
    /// How many bytes have to be given back before it fits.
    pub fn bytes(&self) -> u64 {
        let needed = reserve_bytes(self.room.bytes).saturating_add(self.wanted_bytes);
        needed.saturating_sub(self.room.free_bytes)
    }
}

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Room { bytes, free_bytes, .. } = self.room;
        write!(
            f,
            "this node's disk of {} has {} free and keeps {} in reserve",
            show_size(bytes),
            show_size(free_bytes),
            show_size(reserve_bytes(bytes)),
        )?;
        if self.wanted_bytes > 0 {
            write!(f, ", {} more do not fit", show_size(self.wanted_bytes))?;
        }
        f.write_str("; stop apps or remove images (`quelea image rm`) that it has, or give it a larger disk")
    }
}

/// Whether so many bytes may be written at `path`. A disk that cannot be looked at is not refused here: what writes will tell.
///
/// # Errors
/// The reserve would be touched.
pub fn check(path: &Path, wanted_bytes: u64) -> Result<(), Lacks> {
    let Ok(room) = disk::file_system(path) else { return Ok(()) };
    let lacks = Lacks { room, wanted_bytes };
    if lacks.bytes() == 0 { Ok(()) } else { Err(lacks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_reserve_is_a_part_with_bounds() {
        assert_eq!(reserve_bytes(0), 0);
        assert_eq!(reserve_bytes(40 * MIB), 10 * MIB);
        assert_eq!(reserve_bytes(128 * MIB), 16 * MIB);
        assert_eq!(reserve_bytes(1000 * MIB), 50 * MIB);
        assert_eq!(reserve_bytes(1 << 50), 1 << 30);
    }

    #[test]
    fn what_does_not_fit_is_told_in_numbers() {
        let lacks = |bytes, free_bytes, wanted_bytes| Lacks {
            room: Room { bytes, free_bytes, in_memory: false },
            wanted_bytes,
        };
        assert_eq!(lacks(128 * MIB, 20 * MIB, 4 * MIB).bytes(), 0);
        assert_eq!(lacks(128 * MIB, 20 * MIB, 5 * MIB).bytes(), MIB);
        assert_eq!(lacks(128 * MIB, 0, u64::MAX).bytes(), u64::MAX);
        assert_eq!(lacks(0, 0, 0).bytes(), 0);
        let said = lacks(128 * MIB, 20 * MIB, 30 * MIB).to_string();
        let words = "disk of 128Mi has 20Mi free and keeps 16Mi in reserve, 30Mi more do not fit; stop apps or remove images";
        assert!(said.contains(words), "{said}");
        assert!(!lacks(128 * MIB, MIB, 0).to_string().contains("more do not"));
    }

    #[test]
    fn a_disk_that_cannot_be_seen_refuses_nothing_and_a_small_one_does() {
        assert_eq!(check(Path::new("/nonexistent"), u64::MAX), Ok(()));
        let lacks = check(&std::env::temp_dir(), u64::MAX).unwrap_err();
        assert!(lacks.room.bytes > 0);
    }
}
