//! One record of the map, its version and the order that decides which version stays.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::config::{BODY_MAX_BYTES, KEY_MAX_BYTES};
use crate::error::Error;

/// A version of a record: the counter, and the hash that tells apart two writers who counted alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rev {
    /// Counter, one higher at each write of the key.
    pub rev: u64,
    /// Hash of the whole record.
    pub hash: u64,
}

/// A record as every node holds it. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The key, printable ASCII.
    pub key: Arc<str>,
    /// Counter, one higher at each write.
    pub rev: u64,
    /// The writer's wall clock; breaks ties only, and ages tombstones.
    pub at_ms: u64,
    /// The node where it was written.
    pub writer: Arc<str>,
    /// Hash of the version it replaced, 0 for none: who wrote that version learns whether it was seen.
    pub prev: u64,
    /// The body; `None` is a tombstone.
    pub body: Option<Arc<[u8]>>,
    /// Hash over everything above.
    pub hash: u64,
}

impl Record {
    /// Makes a record and computes its hash.
    pub fn new(
        key: &str,
        rev: u64,
        at_ms: u64,
        writer: Arc<str>,
        prev: u64,
        body: Option<Arc<[u8]>>,
    ) -> Record {
        let hash = content_hash(key, rev, at_ms, &writer, prev, body.as_deref());
        Record { key: Arc::from(key), rev, at_ms, writer, prev, body, hash }
    }

    /// This version.
    pub fn version(&self) -> Rev {
        Rev { rev: self.rev, hash: self.hash }
    }

    /// Whether this is a deletion.
    pub fn is_tombstone(&self) -> bool {
        self.body.is_none()
    }

    /// Bytes that count against quotas.
    pub fn size_bytes(&self) -> usize {
        self.key.len() + self.body.as_ref().map_or(0, |b| b.len())
    }

    /// The order that decides: counter, clock, writer, hash. Total, so that every node keeps the same version; the
    /// counter comes first, so that a node whose clock says 2099 does not win for ever.
    pub fn order(&self, other: &Record) -> Ordering {
        (self.rev, self.at_ms, &*self.writer, self.hash).cmp(&(
            other.rev,
            other.at_ms,
            &*other.writer,
            other.hash,
        ))
    }
}

fn content_hash(
    key: &str,
    rev: u64,
    at_ms: u64,
    writer: &str,
    prev: u64,
    body: Option<&[u8]>,
) -> u64 {
    let mut head = [0u8; 8 * 3 + 3];
    let (numbers, lens) = head.split_at_mut(24);
    for (slot, n) in numbers.chunks_exact_mut(8).zip([rev, at_ms, prev]) {
        slot.copy_from_slice(&n.to_le_bytes());
    }
    // Lengths are at most 255 and 63; they keep (key, writer) pairs apart.
    lens.copy_from_slice(&[key.len() as u8, writer.len() as u8, u8::from(body.is_some())]);
    let parts: [&[u8]; 4] = [&head, key.as_bytes(), writer.as_bytes(), body.unwrap_or(&[])];
    crate::wire::hash64(&parts)
}

/// Checks a key: 1 to [`KEY_MAX_BYTES`] printable ASCII bytes without space.
///
/// # Errors
/// [`Error::Key`].
pub fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() || key.len() > KEY_MAX_BYTES || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Key { key: key.chars().take(80).collect() });
    }
    Ok(())
}

/// Checks a body's length.
///
/// # Errors
/// [`Error::Body`].
pub(crate) fn check_body(key: &str, body: &[u8]) -> Result<(), Error> {
    if body.len() > BODY_MAX_BYTES {
        return Err(Error::Body { key: key.to_owned(), len_bytes: body.len() });
    }
    Ok(())
}
