//! The log's own thread. An fsync behind somebody else's dirty pages can take seconds; a node that waits for it in its
//! event loop is taken for dead meanwhile.
//!
//! A log that failed is not written again: a minute later, and every minute from then on, a new one is begun with all that is
//! known. Nothing is said to be durable before that has worked.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mio::unix::pipe;

use crate::api::Persist;
use crate::disk::Disk;
use crate::error::Error;
use crate::map::Record;
use crate::member::MemberInfo;

/// Jobs on their way to the disk. What exceeds it is left out: the disk is minutes behind. A new log brings it in.
const PENDING_MAX: u64 = 200_000;
/// From a failure to the new log, and from one try to the next.
const RETRY_US: u64 = 60_000_000;

enum Job {
    Remember(Persist),
    Touch,
    Sync {
        ticket: u64,
    },
    /// Holds all that was to be durable under this ticket.
    Snapshot {
        ticket: u64,
        wall_ms: u64,
        records: Vec<Record>,
        roster: Vec<MemberInfo>,
    },
}

#[derive(Debug, Default)]
struct Shared {
    /// Highest ticket whose sync is over.
    durable: AtomicU64,
    done_jobs: AtomicU64,
    long: AtomicBool,
    broken: AtomicBool,
    snapshots: AtomicU64,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

/// Hands work to the thread; never waits but in [`Worker::finish`].
#[derive(Debug)]
pub(crate) struct Worker {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
    /// Readable when a sync is over.
    pub(crate) done: pipe::Receiver,
    thread: Option<JoinHandle<()>>,
    sent_jobs: u64,
    sent_snapshots: u64,
    ticket: u64,
    /// Something found no room: the log lacks it, and nothing behind it may be promised.
    lost: bool,
    /// When a new log is due, while this one is of no use.
    retry_us: Option<u64>,
}

impl Worker {
    pub(crate) fn spawn(disk: Disk) -> Result<Worker, Error> {
        let path = disk.dir.clone();
        let failed = |operation, e: &std::io::Error| super::failed(operation, &path, e);
        let (wake, done) = pipe::new().map_err(|e| failed("pipe for", &e))?;
        let (jobs, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("gossip-disk".to_owned())
            .spawn(move || run(disk, &inbox, &theirs, wake))
            .map_err(|e| failed("start the thread of", &e))?;
        let (jobs, thread) = (Some(jobs), Some(thread));
        Ok(Worker {
            jobs,
            shared,
            done,
            thread,
            sent_jobs: 0,
            sent_snapshots: 0,
            ticket: 0,
            lost: false,
            retry_us: None,
        })
    }

    pub(crate) fn remember(&mut self, what: Persist) {
        self.lost |= !self.send(Job::Remember(what));
    }

    /// Notes on disk that this node is alive now.
    pub(crate) fn touch(&mut self) {
        self.send(Job::Touch);
    }

    /// Makes everything so far durable; the ticket shows up in [`Worker::durable`].
    pub(crate) fn sync(&mut self) -> u64 {
        self.ticket += 1;
        if !self.lost {
            self.lost = !self.send(Job::Sync { ticket: self.ticket });
        }
        self.ticket
    }

    pub(crate) fn snapshot(&mut self, wall_ms: u64, records: Vec<Record>, roster: Vec<MemberInfo>) {
        self.ticket += 1;
        let sent = self.send(Job::Snapshot { ticket: self.ticket, wall_ms, records, roster });
        self.sent_snapshots += u64::from(sent);
        self.lost &= !sent;
    }

    pub(crate) fn durable(&mut self) -> u64 {
        let mut bytes = [0; 64];
        // Emptied for the next edge; the number counts, not the bytes.
        while matches!(self.done.read(&mut bytes), Ok(n) if n > 0) {}
        self.shared.durable.load(Ordering::Acquire)
    }

    /// Whether the log is to be replaced by what is true now: it has grown, or is of no use.
    pub(crate) fn wants_snapshot(&mut self, now_us: u64) -> bool {
        // One snapshot at a time: until it is written the log stays as long as it was.
        if self.shared.snapshots.load(Ordering::Acquire) != self.sent_snapshots {
            return false;
        }
        if !self.ails() {
            self.retry_us = None;
            return self.shared.long.load(Ordering::Relaxed);
        }
        let due = self.retry_us.is_some_and(|at| at <= now_us);
        if due || self.retry_us.is_none() {
            self.retry_us = Some(now_us + RETRY_US);
        }
        due
    }

    /// Whether the log lacks something, and nothing is durable at present.
    pub(crate) fn ails(&self) -> bool {
        self.lost || self.shared.broken.load(Ordering::Acquire)
    }

    /// What went wrong, once.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        lock(&self.shared.error).take().map_or(Ok(()), Err)
    }

    /// Waits until everything is durable and the thread is gone.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        self.sync();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, the error below or silence is all there is to say.
            let _ = thread.join();
        }
        self.check()
    }

    fn send(&mut self, job: Job) -> bool {
        let done = self.shared.done_jobs.load(Ordering::Relaxed);
        let room = self.sent_jobs - done <= PENDING_MAX;
        let sent = room && self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.sent_jobs += u64::from(sent);
        sent
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under it can be half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(mut disk: Disk, inbox: &Receiver<Job>, shared: &Shared, mut wake: pipe::Sender) {
    // Everything that waits goes out in one write and, if wanted, one fsync.
    while let Ok(first) = inbox.recv() {
        let mut result = Ok(());
        let mut ticket = None;
        let (mut jobs, mut snapshots) = (0, 0);
        for job in std::iter::once(first).chain(std::iter::from_fn(|| inbox.try_recv().ok())) {
            jobs += 1;
            result = result.and(match job {
                Job::Remember(what) => disk.append(&what),
                Job::Touch => {
                    disk.touch();
                    Ok(())
                }
                Job::Sync { ticket: t } => {
                    ticket = Some(t);
                    Ok(())
                }
                Job::Snapshot { ticket: t, wall_ms, records, roster } => {
                    snapshots += 1;
                    ticket = Some(t);
                    disk.snapshot(wall_ms, records.iter(), &roster)
                }
            });
        }
        result = result.and(match ticket {
            Some(_) => disk.sync(),
            None => disk.write(),
        });
        shared.done_jobs.fetch_add(jobs, Ordering::Relaxed);
        shared.long.store(disk.is_long(), Ordering::Relaxed);
        shared.broken.store(!disk.is_sound(), Ordering::Release);
        shared.snapshots.fetch_add(snapshots, Ordering::Release);
        if let Err(error) = result {
            *lock(&shared.error) = Some(error);
            shared.failed.store(true, Ordering::Release);
        }
        if let Some(ticket) = ticket.filter(|_| disk.is_sound()) {
            shared.durable.store(ticket, Ordering::Release);
        }
        // A full pipe is readable already.
        let _ = wake.write(&[1]);
    }
}

#[cfg(test)]
mod tests;
