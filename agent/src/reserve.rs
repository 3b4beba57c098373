//! What of a node's disk is kept free ([`Limits::reserve_of`]): images and new layers stop before it, so that the node can still write
//! down what it must.

use std::fmt;
use std::path::Path;

use imagefs::Limits;
use sched::spec::units::show_size;

use crate::disk::{self, Room};

/// Beside its layers an image takes one part in so many for their index.
const INDEX_PART: u64 = 8;

/// What an image takes whose blobs have this many bytes.
pub fn image_bytes(blob_bytes: u64) -> u64 {
    blob_bytes.saturating_add(blob_bytes / INDEX_PART).saturating_add(1 << 20)
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
        let needed = Limits::reserve_of(self.room.bytes).saturating_add(self.wanted_bytes);
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
            show_size(Limits::reserve_of(bytes)),
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
