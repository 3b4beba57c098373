//! A log as bytes, for who simulates a disk and what a power cut leaves of a write: the real entries, the real reader.

use crate::api::Persist;
use crate::core::Restored;
use crate::disk::log::{Entry, load_bytes};
use crate::error::Error;

/// A log of which the end is on its way to the disk.
#[derive(Debug, Clone)]
pub struct LogImage {
    /// All of it, as it would be had the write ended.
    pub bytes: Vec<u8>,
    /// Where the durable part ends, and then where each entry behind it does.
    pub ends: Vec<usize>,
}

impl LogImage {
    /// The log of a node of this name that was told that `durable` is on its disk and is writing `tail` in one go, as
    /// [`crate::driver`] writes: the end of what is durable is marked first.
    pub fn new(name: &str, durable: &Restored, tail: &[Persist]) -> LogImage {
        let (mut bytes, wall_ms) = (Vec::new(), durable.saved_ms);
        Entry::Header { name, wall_ms }.write(&mut bytes);
        durable.records.iter().for_each(|record| Entry::Record(record).write(&mut bytes));
        durable.roster.iter().for_each(|info| Entry::Member(info).write(&mut bytes));
        let mut ends = vec![bytes.len()];
        Entry::Mark { durable: bytes.len() as u64, wall_ms }.write(&mut bytes);
        for what in tail {
            if let Some(entry) = Entry::of(what) {
                entry.write(&mut bytes);
            }
            ends.push(bytes.len());
        }
        LogImage { bytes, ends }
    }

    /// What a boot of that node makes of these bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn load(name: &str, bytes: &[u8]) -> Result<Restored, Error> {
        load_bytes(bytes, name)
    }
}
