//! A machine's disk: what a node was told is durable stays, and what was not may be lost or torn.

use std::collections::BTreeMap;

use gossip::rig::LogImage;
use gossip::{MemberInfo, Persist, Record, Restored};
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::node::Submitted;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What a torn write took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Entries of which less than all was on the disk, and those behind them.
    pub lost: usize,
    /// Some bytes of the first of them were.
    pub partial: bool,
}

/// The log of one node: what is durable, and what a power cut may still take.
#[derive(Debug, Default)]
pub struct Disk {
    /// Boot counter.
    pub generation: u64,
    records: BTreeMap<String, Record>,
    roster: BTreeMap<String, MemberInfo>,
    pending: Vec<Persist>,
    saved_ms: u64,
}

impl Disk {
    /// Appends; a record written at this node is durable at once, with all before it, unless the disk is slow. Whether
    /// this is the first that waits for a sync.
    pub fn append(&mut self, what: Persist, wall_ms: u64, slow: bool) -> bool {
        let own = matches!(what, Persist::Record { local: true, .. }) && !slow;
        // A node waits for its generation before it says a word.
        let local = own || matches!(what, Persist::Generation(_));
        self.pending.push(what);
        if local {
            self.sync(wall_ms);
        }
        self.pending.len() == 1
    }

    /// Hands a write to the disk of which nobody will hear that it has ended.
    pub fn begin(&mut self, what: Persist) {
        self.pending.push(what);
    }

    /// All that is pending becomes durable.
    pub fn sync(&mut self, wall_ms: u64) {
        for what in std::mem::take(&mut self.pending) {
            self.take(what);
        }
        self.saved_ms = wall_ms;
    }

    /// The power fails: some of the end is lost, with the record that was being written (the log's reader drops all from
    /// the first damaged one on). How many records.
    pub fn power_cut(&mut self, rng: &mut Xoshiro256PlusPlus) -> usize {
        let keep = rng.random_range(0..=self.pending.len());
        let lost = self.pending.len() - keep;
        self.pending.truncate(keep);
        for what in std::mem::take(&mut self.pending) {
            self.take(what);
        }
        lost
    }

    /// The power fails in the middle of a write: of the bytes behind what is durable the disk holds some. What the log's own
    /// reader makes of them is what the next boot finds.
    ///
    /// # Errors
    /// The reader lost something durable, or found what was never whole on the disk.
    pub fn tear(&mut self, name: &str, rng: &mut Xoshiro256PlusPlus) -> Result<Torn, String> {
        let tail = std::mem::take(&mut self.pending);
        let image = LogImage::new(name, &self.restored(), &tail);
        let left = damaged(&image, rng);
        self.recover(name, tail, &image, &left)
    }

    /// Takes over what the log's reader finds in the bytes that are left of a log.
    ///
    /// # Errors
    /// As [`Disk::tear`].
    pub fn recover(
        &mut self,
        name: &str,
        tail: Vec<Persist>,
        image: &LogImage,
        left: &[u8],
    ) -> Result<Torn, String> {
        let good = image.bytes.iter().zip(left).take_while(|(a, b)| a == b).count();
        let whole = image.ends.iter().skip(1).filter(|end| **end <= good).count();
        let found =
            LogImage::load(name, left).map_err(|e| format!("{name} after a torn write: {e}"))?;
        let lost = tail.len() - whole;
        for what in tail.into_iter().take(whole) {
            self.take(what);
        }
        let expected = self.restored();
        if let Some(r) = expected.records.iter().find(|r| !found.records.contains(r)) {
            return Err(format!("{name} lost {} {} to a torn write behind it", r.key, r.rev));
        }
        if found != expected {
            return Err(format!(
                "{name} read {found:?} after a torn write, which left {expected:?}"
            ));
        }
        let end = image.ends.get(whole).copied().unwrap_or_default();
        Ok(Torn { lost, partial: lost > 0 && good > end })
    }

    /// Nothing is left.
    pub fn wipe(&mut self) {
        *self = Disk::default();
    }

    /// The generation of a spec that is durable here; 0 for none.
    #[must_use]
    pub fn spec(&self, key: &str) -> u64 {
        let body = self.records.get(key).and_then(|r| r.body.as_deref());
        body.and_then(Submitted::decode).map_or(0, |s| s.generation)
    }

    /// What a boot finds.
    #[must_use]
    pub fn restored(&self) -> Restored {
        Restored {
            records: self.records.values().cloned().collect(),
            roster: self.roster.values().cloned().collect(),
            saved_ms: self.saved_ms,
        }
    }

    fn take(&mut self, what: Persist) {
        match what {
            Persist::Record { record, .. } => {
                self.records.insert(record.key.to_string(), record);
            }
            Persist::Dropped { key } => {
                self.records.remove(&key);
            }
            Persist::Member(info) => {
                self.roster.insert(info.name.clone(), info);
            }
            Persist::Forgotten { name } => {
                self.roster.remove(&name);
            }
            Persist::Generation(generation) => self.generation = self.generation.max(generation),
            _ => {}
        }
    }
}

/// What a power cut leaves of a log whose end was being written.
fn damaged(image: &LogImage, rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let durable = image.ends.first().copied().unwrap_or_default();
    let at = rng.random_range(durable..image.bytes.len());
    let mut left = image.bytes.clone();
    match rng.random_range(0..3) {
        // The file ends in the middle.
        0 => left.truncate(at),
        // Its new length is known, its new content is not.
        1 => left[at..].fill(0),
        // Sectors are written in any order, and one of them was not.
        _ => {
            let end = (at + 1).next_multiple_of(SECTOR_BYTES).min(left.len());
            let start = (at / SECTOR_BYTES * SECTOR_BYTES).max(durable);
            left[start..end].fill(0);
        }
    }
    left
}
