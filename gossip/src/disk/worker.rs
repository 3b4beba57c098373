//! The log's own thread. An fsync behind somebody else's dirty pages can take seconds; a node that waits for it in its
//! event loop is taken for dead meanwhile.

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

/// Jobs on their way to the disk. What exceeds it is not remembered: the disk is minutes behind, and peers have it.
const PENDING_MAX: u64 = 200_000;

enum Job {
    Remember(Persist),
    Touch,
    Sync { ticket: u64 },
    Snapshot { wall_ms: u64, records: Vec<Record>, roster: Vec<MemberInfo> },
}

#[derive(Debug, Default)]
struct Shared {
    /// Highest ticket whose sync is over.
    durable: AtomicU64,
    done_jobs: AtomicU64,
    long: AtomicBool,
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
        Ok(Worker { jobs, shared, done, thread, sent_jobs: 0, sent_snapshots: 0, ticket: 0 })
    }

    pub(crate) fn remember(&mut self, what: Persist) {
        self.send(Job::Remember(what));
    }

    /// Notes on disk that this node is alive now.
    pub(crate) fn touch(&mut self) {
        self.send(Job::Touch);
    }

    /// Makes everything so far durable; the ticket shows up in [`Worker::durable`].
    pub(crate) fn sync(&mut self) -> u64 {
        self.ticket += 1;
        self.send(Job::Sync { ticket: self.ticket });
        self.ticket
    }

    pub(crate) fn snapshot(&mut self, wall_ms: u64, records: Vec<Record>, roster: Vec<MemberInfo>) {
        let sent = self.send(Job::Snapshot { wall_ms, records, roster });
        self.sent_snapshots += u64::from(sent);
    }

    pub(crate) fn durable(&mut self) -> u64 {
        let mut bytes = [0; 64];
        // Emptied for the next edge; the number counts, not the bytes.
        while matches!(self.done.read(&mut bytes), Ok(n) if n > 0) {}
        self.shared.durable.load(Ordering::Acquire)
    }

    pub(crate) fn is_long(&self) -> bool {
        // One snapshot at a time: until it is written the log stays as long as it was.
        let done = self.shared.snapshots.load(Ordering::Acquire) == self.sent_snapshots;
        done && self.shared.long.load(Ordering::Relaxed)
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
                Job::Snapshot { wall_ms, records, roster } => {
                    snapshots += 1;
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
