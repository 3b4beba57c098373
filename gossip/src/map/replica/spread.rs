//! News outwards, and finding out whether anything was missed.

use crate::map::store::key_hash;
use crate::message::{ITEM_MAX_BYTES, Item, MAP_BUCKETS, RecordView, put_record, tag};
use crate::outbox::{Dest, ROOM_BYTES};
use crate::swim::table::below;

use super::{Compare, MapCtx, Replica, Source, Timer};

/// Peers of one rumour round.
const FANOUT: usize = 3;
/// Rounds in which the version is announced after the record was pushed.
const ADVERT_ROUNDS: u8 = 4;
/// Rounds left that are saved when others have said it as often as we were to.
const SPARE_ROUNDS: u8 = 2;
/// Rumours kept; beyond it comparisons have to do.
const RUMOURS_MAX: usize = 8192;
/// Bytes of whole records pushed to one peer in one round.
const ROUND_BYTES_MAX: usize = 8 * ROOM_BYTES;
/// Versions announced to one peer in one round.
const ROUND_ITEMS_MAX: usize = 4 * (ROOM_BYTES / ITEM_MAX_BYTES);
/// Shortest time between two rounds.
const BREATH_US: u64 = 20_000;
/// Versions in one message of a listing.
const LIST_ITEMS: usize = (ROOM_BYTES - 24) / ITEM_MAX_BYTES;
/// Versions listed in one answer; later comparisons show the rest.
const LIST_ITEMS_MAX: usize = 4096;
/// A comparison gives way to arriving rumours so many times.
const SKIPS_MAX: u32 = 4;
const STRETCH_MAX: u64 = 32;

/// What is still to be said about a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rumour {
    push: bool,
    adverts: u8,
    /// How often others said the same.
    heard: u8,
}

impl Rumour {
    /// Others know it by now, as far as we can tell.
    fn is_stale(&self) -> bool {
        let told = FANOUT * usize::from(1 + ADVERT_ROUNDS - self.adverts);
        let enough = FANOUT * usize::from(1 + ADVERT_ROUNDS);
        self.adverts <= SPARE_ROUNDS && told + usize::from(self.heard) >= enough
    }
}

impl Replica {
    /// Starts to spread a record.
    pub(super) fn rumour(&mut self, key: u64, source: Source, ctx: &mut MapCtx<'_>) {
        let repaired = source == Source::Repair;
        // While catching up, what we pull is news to us only.
        let catching_up = repaired && !self.waiting.is_empty();
        if catching_up || self.rumours.len() >= RUMOURS_MAX {
            return;
        }
        let push = !repaired && self.store.by_hash(key).is_some_and(|r| r.size_bytes() < 900);
        self.rumours.insert(key, Rumour { push, adverts: ADVERT_ROUNDS, heard: 0 });
        if push {
            self.fresh.push_back(key);
        }
        let eager_us = self.timing.eager_us;
        let spread = eager_us / 2 + below(ctx.rng, eager_us.max(1) as usize) as u64;
        let soon = (ctx.now_us + spread).max(self.flushed_us + BREATH_US);
        self.flush_by(soon);
    }

    fn flush_by(&mut self, at_us: u64) {
        if self.flush_at.is_none_or(|at| at > at_us) {
            self.flush_at = Some(at_us);
            self.timers.set(at_us, Timer::Flush);
        }
    }

    /// One rumour round.
    pub(super) fn flush(&mut self, ctx: &mut MapCtx<'_>) {
        let pace = ctx.now_us.saturating_sub(self.flushed_us) >= self.timing.gossip_us;
        self.flush_at = None;
        let peers: Vec<Dest> = ctx
            .table
            .pick(FANOUT, &[], ctx.rng)
            .into_iter()
            .filter_map(|nid| ctx.table.get(nid).map(|e| e.dest(nid)))
            .collect();
        if peers.is_empty() {
            // Nobody to tell; who comes later compares.
            self.rumours.clear();
            self.fresh.clear();
            return;
        }
        // Announcements keep their own pace, however fast pushes follow each other, and come before them: who gets a
        // record now needs no announcement of it.
        if pace || self.fresh.is_empty() {
            self.advertise(&peers, ctx);
            self.flushed_us = ctx.now_us;
        }
        self.push_fresh(&peers, ctx);
        if !self.fresh.is_empty() {
            self.flush_by(ctx.now_us + BREATH_US);
        } else if !self.rumours.is_empty() {
            self.flush_by(ctx.now_us + self.timing.gossip_us);
        }
    }

    fn push_fresh(&mut self, peers: &[Dest], ctx: &mut MapCtx<'_>) {
        let mut budget = ROUND_BYTES_MAX;
        let mut encoded = Vec::new();
        while let Some(key) = self.fresh.front().copied() {
            let wanted = self.rumours.get(&key).is_some_and(|r| r.push);
            let Some(record) = self.store.by_hash(key).filter(|_| wanted) else {
                self.fresh.pop_front();
                continue;
            };
            encoded.clear();
            put_record(&mut encoded, record);
            if encoded.len() > budget {
                break;
            }
            budget -= encoded.len();
            for dest in peers {
                ctx.net.push(*dest, tag::MAP_RECORD, |out| out.extend_from_slice(&encoded));
            }
            if let Some(rumour) = self.rumours.get_mut(&key) {
                rumour.push = false;
            }
            self.fresh.pop_front();
        }
    }

    fn advertise(&mut self, peers: &[Dest], ctx: &mut MapCtx<'_>) {
        let mut items = Vec::new();
        let mut done = Vec::new();
        for (key, rumour) in self.rumours.iter_mut().filter(|(_, r)| !r.push) {
            if items.len() >= ROUND_ITEMS_MAX {
                break;
            }
            if rumour.is_stale() {
                done.push(*key);
                continue;
            }
            rumour.adverts -= 1;
            if rumour.adverts == 0 {
                done.push(*key);
            }
            if let Some(record) = self.store.by_hash(*key) {
                items.push(Item { key: *key, number: record.rev, hash: record.hash });
            }
        }
        for key in done {
            self.rumours.remove(&key);
        }
        for dest in peers {
            push_adverts(*dest, &items, ctx);
        }
    }

    /// A ping carried another root than ours.
    pub(crate) fn on_root(&mut self, dest: Dest, root: u64, ctx: &mut MapCtx<'_>) {
        let ours = self.store.root();
        let idle = self.compare.is_none() && self.pulls.is_empty();
        if root == ours || !idle || ctx.now_us < self.compare_after_us {
            return;
        }
        let spread = below(ctx.rng, self.timing.gossip_us.max(1) as usize) as u64;
        let at_us = ctx.now_us + self.timing.gossip_us / 2 + spread / 2;
        self.compare = Some(Compare { dest, at_us, root: ours });
        self.timers.set(at_us, Timer::Compare);
    }

    /// Compares with one peer now: this node has just joined.
    pub(crate) fn compare_now(&mut self, dest: Dest, ctx: &mut MapCtx<'_>) {
        let digest = self.store.digest();
        ctx.net.push(dest, tag::MAP_DIGEST, |out| {
            for hash in digest {
                out.extend_from_slice(&hash.to_le_bytes());
            }
        });
        debug_assert_eq!(digest.len(), MAP_BUCKETS);
    }

    pub(super) fn compare_due(&mut self, at_us: u64, ctx: &mut MapCtx<'_>) {
        let Some(compare) = self.compare.filter(|c| c.at_us == at_us) else { return };
        self.compare = None;
        let root = self.store.root();
        if root != compare.root && self.skipped < SKIPS_MAX {
            self.skipped += 1;
            return;
        }
        self.skipped = 0;
        let longest = self.timing.sync_us * STRETCH_MAX;
        let still = root == self.compared_root;
        let wait_us = if still { self.compare_wait_us * 2 } else { self.timing.sync_us };
        self.compare_wait_us = wait_us.min(longest);
        self.compared_root = root;
        self.compare_after_us = ctx.now_us + self.compare_wait_us;
        self.compare_now(compare.dest, ctx);
    }

    /// A peer's bucket hashes: list what we have where they differ.
    pub(crate) fn on_digest(
        &mut self,
        dest: Dest,
        theirs: &[u8; 4 * MAP_BUCKETS],
        ctx: &mut MapCtx<'_>,
    ) {
        let mut ranges = self.store.differing(theirs);
        if !ranges.is_empty() {
            // Start anywhere: with more than one answer can hold, every part has its turn.
            let start = below(ctx.rng, ranges.len());
            ranges.rotate_left(start);
        }
        let mut room = LIST_ITEMS_MAX;
        for (first, last) in ranges {
            if room == 0 {
                break;
            }
            let items: Vec<Item> = self.store.list(first, last).take(room).collect();
            let cut = items.len() == room;
            room -= items.len();
            let mut from = first;
            let mut chunks = items.chunks(LIST_ITEMS).peekable();
            if chunks.peek().is_none() {
                push_list(dest, first, last, &[], ctx);
            }
            while let Some(chunk) = chunks.next() {
                let end = chunk.last().map_or(last, |item| item.key);
                let to = if chunks.peek().is_none() && !cut { last } else { end };
                push_list(dest, from, to, chunk, ctx);
                from = end.wrapping_add(1);
            }
        }
    }

    /// All that a peer has between two key hashes: pull what we lack, announce what it lacks.
    pub(crate) fn on_list(
        &mut self,
        dest: Dest,
        (first, last): (u64, u64),
        theirs: &[Item],
        ctx: &mut MapCtx<'_>,
    ) {
        for item in theirs {
            self.want(dest, item, Source::Repair, ctx);
        }
        let newer = |ours: &Item| match theirs.iter().find(|t| t.key == ours.key) {
            None => true,
            Some(t) => (ours.number, ours.hash) != (t.number, t.hash) && ours.number >= t.number,
        };
        let extra: Vec<Item> =
            self.store.list(first, last).filter(newer).take(ROUND_ITEMS_MAX).collect();
        push_adverts(dest, &extra, ctx);
    }

    /// A peer announces versions.
    pub(crate) fn on_advert(&mut self, dest: Dest, items: &[Item], ctx: &mut MapCtx<'_>) {
        for item in items {
            if self.store.by_hash(item.key).is_some_and(|r| r.hash == item.hash) {
                self.heard(item.key);
            }
            self.want(dest, item, Source::Rumour, ctx);
        }
    }

    /// A record arrived whole: pushed, or asked for.
    pub(crate) fn on_record(&mut self, record: &RecordView<'_>, ctx: &mut MapCtx<'_>) {
        let key = key_hash(record.key);
        let source = self.finish(key, ctx).unwrap_or(Source::Rumour);
        // Most copies of a rumour are not the first.
        if !self.store.holds(key, record) {
            self.take(key, record.to_record(), source, ctx);
        } else if self.store.by_hash(key).is_some_and(|ours| ours.rev == record.rev) {
            self.heard(key);
        }
    }

    /// Somebody else spreads what we do.
    fn heard(&mut self, key: u64) {
        if let Some(rumour) = self.rumours.get_mut(&key) {
            rumour.heard = rumour.heard.saturating_add(1);
        }
    }
}

fn push_list(dest: Dest, first: u64, last: u64, items: &[Item], ctx: &mut MapCtx<'_>) {
    ctx.net.push(dest, tag::MAP_LIST, |out| {
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&last.to_le_bytes());
        for item in items {
            item.write(out);
        }
    });
}

fn push_adverts(dest: Dest, items: &[Item], ctx: &mut MapCtx<'_>) {
    for chunk in items.chunks((ROOM_BYTES - 8) / ITEM_MAX_BYTES) {
        ctx.net.push(dest, tag::MAP_ADVERT, |out| {
            for item in chunk {
                item.write(out);
            }
        });
    }
}
