//! Keeping the records of all nodes equal: rumours, comparisons and pulls.

mod pull;
mod spread;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::Rng;

use crate::api::{Event, Expect, Output, Persist};
use crate::config::{Limits, Timing};
use crate::error::Error;
use crate::map::record::{self, Record};
use crate::map::store::{Merged, Store, key_hash};
use crate::outbox::{Dest, Outbox};
use crate::swim::table::Table;
use crate::timers::Timers;

use pull::{Pull, Wanted};
use spread::Rumour;

/// Interval of housekeeping.
const HOUSE_US: u64 = 60_000_000;
/// A node up for so long knows what the flock knows.
const SETTLED_S: u64 = 3600;
/// A revision never reaches this, so that the next one always fits.
const REV_MAX: u64 = 1 << 62;

/// What a step of the map works with.
pub(crate) struct MapCtx<'a> {
    pub(crate) now_us: u64,
    pub(crate) wall_ms: u64,
    pub(crate) rng: &'a mut dyn Rng,
    pub(crate) net: &'a mut Outbox,
    pub(crate) out: &'a mut Vec<Output>,
    pub(crate) table: &'a Table,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Flush,
    Compare,
    Pull(u64),
    House,
}

/// How a record came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Written here.
    Local,
    /// As news: others may lack it too.
    Rumour,
    /// By comparison: probably everybody else has it.
    Repair,
}

/// A comparison that waits for rumours to make it needless.
#[derive(Debug, Clone, Copy)]
struct Compare {
    dest: Dest,
    at_us: u64,
    root: u64,
}

/// The map of one node and its exchange with others.
#[derive(Debug)]
pub(crate) struct Replica {
    store: Store,
    me: Arc<str>,
    timing: Timing,
    timers: Timers<Timer>,
    rumours: BTreeMap<u64, Rumour>,
    /// Rumours still to be pushed whole, oldest first.
    fresh: VecDeque<u64>,
    flush_at: Option<u64>,
    flushed_us: u64,
    pulls: BTreeMap<u64, Pull>,
    waiting: BTreeMap<u64, Wanted>,
    compare: Option<Compare>,
    compare_after_us: u64,
    compare_wait_us: u64,
    compared_root: u64,
    skipped: u32,
    serve_slot: u64,
    served_bytes: usize,
    /// Records up to this cursor are older than tombstones live.
    outlived: Option<u64>,
    /// Writers whose refusal was reported.
    over_quota: BTreeSet<Arc<str>>,
}

impl Replica {
    pub(crate) fn new(me: &str, timing: Timing, limits: Limits) -> Replica {
        let mut timers = Timers::new();
        timers.set(0, Timer::House);
        Replica {
            store: Store::new(limits),
            me: me.into(),
            timing,
            timers,
            rumours: BTreeMap::new(),
            fresh: VecDeque::new(),
            flush_at: None,
            flushed_us: 0,
            pulls: BTreeMap::new(),
            waiting: BTreeMap::new(),
            compare: None,
            compare_after_us: 0,
            compare_wait_us: timing.sync_us,
            compared_root: 0,
            skipped: 0,
            serve_slot: 0,
            served_bytes: 0,
            outlived: None,
            over_quota: BTreeSet::new(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.timers.next()
    }

    pub(crate) fn tombstone_ms(&self) -> u64 {
        self.store.tombstone_ms()
    }

    /// Housekeeping starts with the first step, wherever the clock stands then.
    pub(crate) fn start(&mut self, now_us: u64) {
        self.timers.cancel(0, Timer::House);
        self.timers.set(now_us + HOUSE_US, Timer::House);
    }

    pub(crate) fn timer(&mut self, ctx: &mut MapCtx<'_>) {
        while let Some((at_us, timer)) = self.timers.pop(ctx.now_us) {
            match timer {
                Timer::Flush if self.flush_at == Some(at_us) => self.flush(ctx),
                Timer::Flush => {}
                Timer::Compare => self.compare_due(at_us, ctx),
                Timer::Pull(key) => self.pull_due(key, at_us, ctx),
                Timer::House => {
                    self.timers.set(ctx.now_us + HOUSE_US, Timer::House);
                    for key in self.store.expire(ctx.wall_ms) {
                        let key = key.to_string();
                        ctx.out.push(Output::Persist(Persist::Dropped { key }));
                    }
                }
            }
        }
    }

    /// Takes records back from disk. `outlived`: tombstones may have come and gone since they were written.
    pub(crate) fn restore(&mut self, records: Vec<Record>, outlived: bool) {
        for record in records {
            let _ = self.store.merge(record);
        }
        if outlived {
            self.outlived = Some(self.store.cursor());
        }
    }

    /// A peer answered that has been up for so long. If we were away too long and it was there, what we brought is dropped
    /// in favour of what it holds. If the whole flock was away, nobody has been up long, and everything is kept.
    pub(crate) fn meet(&mut self, up_s: u64, ctx: &mut MapCtx<'_>) {
        let Some(cursor) = self.outlived.filter(|_| up_s >= SETTLED_S) else { return };
        self.outlived = None;
        let brought = self.store.changes("", 0).take_while(|(place, _)| *place <= cursor);
        let keys: Vec<Arc<str>> = brought.map(|(_, record)| record.key.clone()).collect();
        for key in keys {
            self.store.remove(key_hash(&key));
            let key = key.to_string();
            ctx.out.push(Output::Persist(Persist::Dropped { key: key.clone() }));
            ctx.out.push(Output::Event(Event::Dropped { key }));
        }
    }

    /// Writes a record here.
    pub(crate) fn put(
        &mut self,
        key: &str,
        body: Vec<u8>,
        expect: Expect,
        ctx: &mut MapCtx<'_>,
    ) -> Result<(), Error> {
        record::check_key(key)?;
        record::check_body(key, &body)?;
        let found = self.store.get(key);
        let live = found.filter(|r| !r.is_tombstone()).map(Record::version);
        let as_expected = match expect {
            Expect::Any => true,
            Expect::Absent => live.is_none(),
            Expect::Version(version) => live == Some(version),
        };
        if !as_expected {
            return Err(Error::Stale { key: key.to_owned(), found: live });
        }
        self.write(key, Some(body.into()), ctx)
    }

    /// Deletes a record; fine when there is none.
    pub(crate) fn delete(&mut self, key: &str, ctx: &mut MapCtx<'_>) -> Result<(), Error> {
        record::check_key(key)?;
        match self.store.get(key) {
            Some(record) if !record.is_tombstone() => self.write(key, None, ctx),
            _ => Ok(()),
        }
    }

    fn write(
        &mut self,
        key: &str,
        body: Option<Arc<[u8]>>,
        ctx: &mut MapCtx<'_>,
    ) -> Result<(), Error> {
        let (rev, prev) = self.store.get(key).map_or((0, 0), |r| (r.rev, r.hash));
        if rev >= REV_MAX {
            return Err(Error::Exhausted { key: key.to_owned() });
        }
        let record = Record::new(key, rev + 1, ctx.wall_ms, self.me.clone(), prev, body);
        match self.take(key_hash(key), record, Source::Local, ctx) {
            Merged::New(_) => Ok(()),
            // A higher revision is always newer, so only a quota can refuse it.
            Merged::Known | Merged::Refused => {
                Err(Error::Quota { key: key.to_owned(), writer: self.me.to_string() })
            }
        }
    }

    /// Merges a record and does what follows from it.
    fn take(&mut self, key: u64, record: Record, source: Source, ctx: &mut MapCtx<'_>) -> Merged {
        if record.rev > REV_MAX {
            return Merged::Refused;
        }
        let merged = self.store.merge_at(key, record.clone());
        match &merged {
            Merged::Known => {}
            Merged::Refused => self.report_quota(&record, source, ctx),
            Merged::New(old) => {
                if let Some(old) = old
                    && let Some(event) = self.superseded(old, &record)
                {
                    ctx.out.push(Output::Event(event));
                }
                let local = source == Source::Local;
                self.rumour(key, source, ctx);
                ctx.out.push(Output::Persist(Persist::Record { record: record.clone(), local }));
                ctx.out.push(Output::Event(Event::Changed(record)));
            }
        }
        merged
    }

    /// Somebody replaced what we wrote without having seen it.
    fn superseded(&self, mine: &Record, by: &Record) -> Option<Event> {
        if mine.writer != self.me || by.writer == self.me || by.prev == mine.hash {
            return None;
        }
        // Further ahead, it may descend from ours through versions we have not seen.
        let sure = by.rev <= mine.rev + 1;
        let (mine, by) = (Box::new(mine.clone()), Box::new(by.clone()));
        Some(Event::Superseded { mine, by, sure })
    }

    fn report_quota(&mut self, record: &Record, source: Source, ctx: &mut MapCtx<'_>) {
        const REPORTS_MAX: usize = 1024;
        let new = !self.over_quota.contains(&record.writer) && self.over_quota.len() < REPORTS_MAX;
        if source != Source::Local && new {
            self.over_quota.insert(record.writer.clone());
            ctx.out.push(Output::Event(Event::Quota { writer: record.writer.to_string() }));
        }
    }
}

#[cfg(test)]
mod tests;
