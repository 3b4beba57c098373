//! Getting what we lack, a bounded number at a time, and giving what others ask for.

use crate::map::ENCODED_MAX_BYTES;
use crate::map::store::key_hash;
use crate::message::{Item, put_record, read_record, tag};
use crate::outbox::{Dest, ROOM_BYTES};
use crate::wire::{Reader, put_varint};

use super::{MapCtx, Replica, Source, Timer};

/// Pulls in flight. A large record counts as one and asks for all its pieces at once: at most 17 KiB each.
const PULLS_MAX: usize = 64;
/// Records known to be lacking and waiting for a slot; the rest is found by the next comparison.
const WAITING_MAX: usize = 8192;
/// Then another peer, or the next comparison, has to help.
const TRIES_MAX: u32 = 4;
/// Bytes of an encoded record in one message.
const PIECE_BYTES: usize = 1024;
/// Bytes given out per slot of time; what is asked beyond it is not answered and asked again.
const SERVE_BYTES_MAX: usize = 1 << 20;
const SERVE_SLOT_US: u64 = 100_000;

/// Something to pull as soon as there is room.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    dest: Dest,
    hash: u64,
    source: Source,
}

/// A pull in flight.
#[derive(Debug)]
pub(super) struct Pull {
    wanted: Wanted,
    tries: u32,
    due_us: u64,
    pieces: Option<Pieces>,
}

/// A record that comes in pieces.
#[derive(Debug)]
struct Pieces {
    hash: u64,
    bytes: Vec<u8>,
    /// Bit per piece that is still missing.
    missing: u32,
}

// A piece per bit.
const _: () = assert!(ENCODED_MAX_BYTES.div_ceil(PIECE_BYTES) <= 32);

impl Replica {
    /// A peer has a version; pull it if we lack it.
    pub(crate) fn want(&mut self, dest: Dest, item: &Item, source: Source, ctx: &mut MapCtx<'_>) {
        if !self.store.lacks(item) {
            return;
        }
        let wanted = Wanted { dest, hash: item.hash, source };
        if self.pulls.contains_key(&item.key) {
            return;
        }
        if self.pulls.len() >= PULLS_MAX {
            if self.waiting.len() < WAITING_MAX {
                self.waiting.entry(item.key).or_insert(wanted);
            }
            return;
        }
        self.pull(item.key, wanted, ctx);
    }

    fn pull(&mut self, key: u64, wanted: Wanted, ctx: &mut MapCtx<'_>) {
        let due_us = ctx.now_us + self.timing.pull_us;
        self.pulls.insert(key, Pull { wanted, tries: 1, due_us, pieces: None });
        self.timers.set(due_us, Timer::Pull(key));
        push_pull(wanted.dest, &[Item { key, number: 0, hash: wanted.hash }], ctx);
    }

    /// A pull was not answered in time.
    pub(super) fn pull_due(&mut self, key: u64, at_us: u64, ctx: &mut MapCtx<'_>) {
        let Some(pull) = self.pulls.get_mut(&key).filter(|p| p.due_us == at_us) else { return };
        if pull.tries >= TRIES_MAX {
            self.finish(key, ctx);
            return;
        }
        pull.tries += 1;
        pull.due_us = ctx.now_us + self.timing.pull_us * u64::from(pull.tries);
        self.timers.set(pull.due_us, Timer::Pull(key));
        let items = match &pull.pieces {
            None => vec![Item { key, number: 0, hash: pull.wanted.hash }],
            Some(pieces) => missing(key, pieces),
        };
        push_pull(pull.wanted.dest, &items, ctx);
    }

    /// Ends a pull, if there is one, and starts the next.
    pub(super) fn finish(&mut self, key: u64, ctx: &mut MapCtx<'_>) -> Option<Source> {
        self.waiting.remove(&key);
        let pull = self.pulls.remove(&key)?;
        self.timers.cancel(pull.due_us, Timer::Pull(key));
        while self.pulls.len() < PULLS_MAX {
            let Some((next, wanted)) = self.waiting.pop_first() else { break };
            if self.store.by_hash(next).is_none_or(|r| r.hash != wanted.hash) {
                self.pull(next, wanted, ctx);
            }
        }
        Some(pull.wanted.source)
    }

    /// Somebody asks for records.
    pub(crate) fn on_pull(&mut self, dest: Dest, items: &[Item], ctx: &mut MapCtx<'_>) {
        let slot = ctx.now_us / SERVE_SLOT_US;
        if slot != self.serve_slot {
            (self.serve_slot, self.served_bytes) = (slot, 0);
        }
        let mut encoded = Vec::new();
        for item in items {
            let Some(record) = self.store.by_hash(item.key) else { continue };
            encoded.clear();
            put_record(&mut encoded, record);
            let whole = encoded.len() + 3 <= ROOM_BYTES;
            let offset = usize::try_from(item.number).unwrap_or(usize::MAX);
            let from = if whole { 0 } else { offset };
            let Some(rest) = encoded.get(from..) else { continue };
            let part = if whole { rest } else { rest.get(..PIECE_BYTES).unwrap_or(rest) };
            self.served_bytes += part.len();
            if self.served_bytes > SERVE_BYTES_MAX || part.is_empty() {
                return;
            }
            if whole {
                ctx.net.push(dest, tag::MAP_RECORD, |out| out.extend_from_slice(part));
                continue;
            }
            ctx.net.push(dest, tag::MAP_PIECE, |out| {
                out.extend_from_slice(&item.key.to_le_bytes());
                out.extend_from_slice(&record.hash.to_le_bytes());
                put_varint(out, encoded.len() as u64);
                put_varint(out, offset as u64);
                out.extend_from_slice(part);
            });
        }
    }

    /// A piece arrived.
    pub(crate) fn on_piece(
        &mut self,
        key: u64,
        hash: u64,
        (total, offset): (usize, usize),
        bytes: &[u8],
        ctx: &mut MapCtx<'_>,
    ) {
        let Some(pull) = self.pulls.get_mut(&key) else { return };
        if total > ENCODED_MAX_BYTES || offset % PIECE_BYTES != 0 || offset >= total {
            return;
        }
        let current = |p: &Pieces| p.hash == hash && p.bytes.len() == total;
        if !pull.pieces.as_ref().is_some_and(current) {
            // The first piece, or the record changed under our hands.
            let count = total.div_ceil(PIECE_BYTES) as u32;
            let missing = u32::MAX >> (32 - count);
            pull.pieces = Some(Pieces { hash, bytes: vec![0; total], missing });
        }
        let Some(pieces) = pull.pieces.as_mut() else { return };
        let first = pieces.missing.count_ones() as usize == total.div_ceil(PIECE_BYTES);
        let end = (offset + PIECE_BYTES).min(total);
        let Some(place) = pieces.bytes.get_mut(offset..end) else { return };
        if place.len() != bytes.len() {
            return;
        }
        place.copy_from_slice(bytes);
        pieces.missing &= !(1 << (offset / PIECE_BYTES));
        if pieces.missing == 0 {
            let record = read_record(&mut Reader::new(&pieces.bytes)).filter(|r| r.hash == hash);
            let source = self.finish(key, ctx);
            if let (Some(record), Some(source)) = (record, source) {
                // The peer named the key; the record says which it is.
                self.take(key_hash(&record.key), record, source, ctx);
            }
            return;
        }
        if first {
            let items = missing(key, pieces);
            let dest = pull.wanted.dest;
            self.timers.cancel(pull.due_us, Timer::Pull(key));
            pull.due_us = ctx.now_us + self.timing.pull_us;
            self.timers.set(pull.due_us, Timer::Pull(key));
            push_pull(dest, &items, ctx);
        }
    }
}

fn missing(key: u64, pieces: &Pieces) -> Vec<Item> {
    let bits = (0..32u32).filter(|bit| pieces.missing & (1 << bit) != 0);
    bits.map(|bit| Item { key, number: u64::from(bit) * PIECE_BYTES as u64, hash: pieces.hash })
        .collect()
}

fn push_pull(dest: Dest, items: &[Item], ctx: &mut MapCtx<'_>) {
    ctx.net.push(dest, tag::MAP_PULL, |out| {
        for item in items {
            item.write(out);
        }
    });
}
