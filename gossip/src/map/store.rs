//! The records of one node, their summaries and the quotas.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::config::Limits;
use crate::map::record::Record;
use crate::message::{Item, MAP_BUCKETS, RecordView};
use crate::wire::{hash64, mix};

const BUCKET_SHIFT: u32 = 64 - MAP_BUCKETS.trailing_zeros();

/// What a merge did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// We hold this or a newer version.
    Known,
    /// It is held now and replaced this.
    New(Option<Record>),
    /// Its writer, or the map, is full.
    Refused,
}

#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    records: usize,
    bytes: usize,
}

/// Records by the hash of the key, in the order of keys as well.
#[derive(Debug)]
pub(crate) struct Store {
    records: BTreeMap<u64, Record>,
    keys: BTreeMap<Arc<str>, u64>,
    buckets: [u64; MAP_BUCKETS],
    root: u64,
    writers: BTreeMap<Arc<str>, Usage>,
    all: Usage,
    /// Tombstones by age.
    tombstones: BTreeSet<(u64, u64)>,
    /// Tombstones older than this take no part any more and go a little later. The two steps keep nodes whose clocks
    /// differ from handing them to and fro.
    floor_ms: u64,
    limits: Limits,
    /// Key hash by place in the order of local changes, and back. A key has only its last place.
    changes: BTreeMap<u64, u64>,
    places: BTreeMap<u64, u64>,
    cursor: u64,
}

/// Hash of a key: its place in listings.
pub(crate) fn key_hash(key: &str) -> u64 {
    hash64(&[b"key", key.as_bytes()])
}

impl Store {
    pub(crate) fn new(limits: Limits) -> Store {
        Store {
            records: BTreeMap::new(),
            keys: BTreeMap::new(),
            buckets: [0; MAP_BUCKETS],
            root: 0,
            writers: BTreeMap::new(),
            all: Usage::default(),
            tombstones: BTreeSet::new(),
            floor_ms: 0,
            limits,
            changes: BTreeMap::new(),
            places: BTreeMap::new(),
            cursor: 0,
        }
    }

    pub(crate) fn tombstone_ms(&self) -> u64 {
        self.limits.tombstone_ms
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Record> {
        self.by_hash(*self.keys.get(key)?)
    }

    pub(crate) fn by_hash(&self, key: u64) -> Option<&Record> {
        self.records.get(&key)
    }

    /// Whether a record is held as it is, or a newer one: nothing has to be made of its bytes then.
    pub(crate) fn holds(&self, hash: u64, view: &RecordView<'_>) -> bool {
        self.by_hash(hash).is_some_and(|ours| {
            let same = || {
                (ours.rev, ours.at_ms, ours.prev) == (view.rev, view.at_ms, view.prev)
                    && *ours.key == *view.key
                    && *ours.writer == *view.writer
                    && ours.body.as_deref() == view.body
            };
            ours.rev > view.rev || same()
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn range<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Record> {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        self.keys
            .range::<str, _>(from)
            .take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(|(_, hash)| self.records.get(hash))
    }

    /// Records and bytes that the quotas count.
    #[cfg(test)]
    pub(crate) fn usage(&self) -> (usize, usize) {
        assert_eq!(self.writers.values().map(|u| u.records).sum::<usize>(), self.all.records);
        assert_eq!(self.writers.values().map(|u| u.bytes).sum::<usize>(), self.all.bytes);
        (self.all.records, self.all.bytes)
    }

    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    pub(crate) fn changes<'a>(
        &'a self,
        prefix: &'a str,
        after: u64,
    ) -> impl Iterator<Item = (u64, &'a Record)> {
        let later = self.changes.range((Bound::Excluded(after), Bound::Unbounded));
        later
            .filter_map(|(place, hash)| Some((*place, self.by_hash(*hash)?)))
            .filter(move |(_, record)| record.key.starts_with(prefix))
    }

    pub(crate) fn root(&self) -> u64 {
        self.root
    }

    pub(crate) fn digest(&self) -> [u32; MAP_BUCKETS] {
        self.buckets.map(|b| (b ^ b >> 32) as u32)
    }

    /// Key-hash ranges in which a peer's digest differs, neighbours joined.
    pub(crate) fn differing(&self, theirs: &[u8; 4 * MAP_BUCKETS]) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let ours = self.digest();
        let theirs =
            theirs.chunks_exact(4).map(|c| c.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)));
        for (bucket, (a, b)) in ours.into_iter().zip(theirs).enumerate() {
            if a == b {
                continue;
            }
            let first = (bucket as u64) << BUCKET_SHIFT;
            let last = first | ((1 << BUCKET_SHIFT) - 1);
            match ranges.last_mut() {
                Some(range) if range.1.checked_add(1) == Some(first) => range.1 = last,
                _ => ranges.push((first, last)),
            }
        }
        ranges
    }

    /// Versions between two key hashes, in order.
    pub(crate) fn list(&self, first: u64, last: u64) -> impl Iterator<Item = Item> {
        let last = last.max(first);
        self.records.range(first..=last).filter_map(|(hash, record)| {
            let part = self.takes_part(record);
            part.then_some(Item { key: *hash, number: record.rev, hash: record.hash })
        })
    }

    fn takes_part(&self, record: &Record) -> bool {
        !(record.is_tombstone() && record.at_ms < self.floor_ms)
    }

    /// Whether a version is one that we should get.
    pub(crate) fn lacks(&self, item: &Item) -> bool {
        match self.by_hash(item.key) {
            None => true,
            Some(ours) => {
                item.number > ours.rev || (item.number == ours.rev && item.hash != ours.hash)
            }
        }
    }

    /// Keeps the newer of what we hold and what arrived.
    pub(crate) fn merge(&mut self, record: Record) -> Merged {
        self.merge_at(key_hash(&record.key), record)
    }

    /// The same, for a caller that has hashed the key.
    pub(crate) fn merge_at(&mut self, hash: u64, mut record: Record) -> Merged {
        let old = self.by_hash(hash);
        match old {
            Some(old) if old.key != record.key => return Merged::Refused,
            Some(old) if old.order(&record) != Ordering::Less => return Merged::Known,
            // A deletion of long ago of something we never had.
            None if !self.takes_part(&record) => return Merged::Known,
            _ => {}
        }
        if !self.has_room(old, &record) {
            return Merged::Refused;
        }
        let old = self.remove(hash);
        if let Some((writer, _)) = self.writers.get_key_value(&record.writer) {
            record.writer = writer.clone();
        }
        self.insert(hash, record);
        Merged::New(old)
    }

    /// Whether the quotas allow it. Replacing never fails for the size of the old version.
    fn has_room(&self, old: Option<&Record>, new: &Record) -> bool {
        let old_bytes = old.map_or(0, Record::size_bytes);
        let fits = |usage: Usage, same: bool, records: usize, bytes: usize| {
            let (gone, gone_bytes) = if same { (1, old_bytes) } else { (0, 0) };
            // A tombstone is small, and refusing it would bring back what was deleted.
            new.is_tombstone() && old.is_some()
                || usage.records + 1 - gone <= records
                    && usage.bytes + new.size_bytes() - gone_bytes <= bytes
        };
        let usage = self.writers.get(&new.writer).copied().unwrap_or_default();
        let same_writer = old.is_some_and(|old| old.writer == new.writer);
        fits(usage, same_writer, self.limits.writer_records, self.limits.writer_bytes)
            && fits(self.all, old.is_some(), self.limits.records, self.limits.bytes)
    }

    fn insert(&mut self, hash: u64, record: Record) {
        self.account(hash, &record);
        let usage = self.writers.entry(record.writer.clone()).or_default();
        for usage in [usage, &mut self.all] {
            usage.records += 1;
            usage.bytes += record.size_bytes();
        }
        if record.is_tombstone() {
            self.tombstones.insert((record.at_ms, hash));
        }
        self.cursor += 1;
        self.changes.insert(self.cursor, hash);
        self.places.insert(hash, self.cursor);
        self.keys.insert(record.key.clone(), hash);
        self.records.insert(hash, record);
    }

    /// Removes without a trace.
    pub(crate) fn remove(&mut self, hash: u64) -> Option<Record> {
        let record = self.records.remove(&hash)?;
        self.keys.remove(&record.key);
        if let Some(place) = self.places.remove(&hash) {
            self.changes.remove(&place);
        }
        self.account(hash, &record);
        self.all.records -= 1;
        self.all.bytes -= record.size_bytes();
        if let Some(usage) = self.writers.get_mut(&record.writer) {
            usage.records -= 1;
            usage.bytes -= record.size_bytes();
            if usage.records == 0 {
                self.writers.remove(&record.writer);
            }
        }
        self.tombstones.remove(&(record.at_ms, hash));
        Some(record)
    }

    fn account(&mut self, hash: u64, record: &Record) {
        if self.takes_part(record)
            && let Some(bucket) = self.buckets.get_mut((hash >> BUCKET_SHIFT) as usize)
        {
            let part = mix(hash, record.hash);
            *bucket ^= part;
            self.root ^= part;
        }
    }

    /// Moves the floor to the present and returns the keys of tombstones that are dropped for good. Back, too: a clock that
    /// was years ahead for a minute must not leave this node deaf to every deletion from then on.
    pub(crate) fn expire(&mut self, wall_ms: u64) -> Vec<Arc<str>> {
        let floor_ms = wall_ms.saturating_sub(self.limits.tombstone_ms);
        let (low, high) = (floor_ms.min(self.floor_ms), floor_ms.max(self.floor_ms));
        let crossed: Vec<u64> =
            self.tombstones.range((low, 0)..(high, 0)).map(|(_, hash)| *hash).collect();
        // Out of the sums while they still take part, or into them once they do again.
        self.floor_ms = low;
        for hash in crossed {
            if let Some(record) = self.by_hash(hash).cloned() {
                self.account(hash, &record);
            }
        }
        self.floor_ms = floor_ms;
        let gone_ms = floor_ms.saturating_sub(self.limits.tombstone_ms / 8);
        let gone: Vec<(u64, u64)> = self.tombstones.range(..(gone_ms, 0)).copied().collect();
        gone.into_iter().filter_map(|(_, hash)| self.remove(hash)).map(|r| r.key).collect()
    }
}
