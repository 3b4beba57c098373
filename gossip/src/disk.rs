//! What survives a restart: the boot counter, the records and the roster.
//!
//! ```text
//! generation   8 bytes counter, 4 bytes CRC    replaced by rename
//! log          entries ([`log`])               replaced by rename when it has grown
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::Persist;
use crate::core::Restored;
use crate::error::Error;
use crate::map::Record;
use crate::member::MemberInfo;
use crate::message::GENERATION_MAX;
use crate::wire::Reader;

mod files;
mod image;
mod log;
mod worker;

use files::{Files, LogFile, Real};
pub use image::LogImage;
use log::{Entry, Loaded, load};
pub(crate) use log::{crc32, load_bytes, log_of};
pub(crate) use worker::Worker;

/// The log may outgrow the snapshot it began with by this factor and constant before it is rewritten.
const GROWTH: u64 = 3;
const GROWTH_MIN_BYTES: u64 = 1 << 20;
/// Longest log that is read; more than twice what the limits of the map allow.
const LOG_MAX_BYTES: u64 = 512 << 20;
/// The open log of one node.
#[derive(Debug)]
pub(crate) struct Disk {
    files: Arc<dyn Files + Sync>,
    dir: PathBuf,
    name: String,
    log: Box<dyn LogFile>,
    /// Written so far.
    len: u64,
    snapshot_len: u64,
    /// Not yet written: entries of this batch.
    batch: Vec<u8>,
    unsynced: bool,
    /// Made durable up to here, and not said so in the log yet.
    mark: Option<u64>,
    /// After a failed write or fsync nothing is known about the file any more: it is never written again, and a snapshot in a
    /// new file takes its place.
    broken: bool,
    /// Keeps other processes out.
    lock: Option<File>,
}

impl Disk {
    /// Opens or creates the memory in `dir`: what it holds, and the generation of this boot (persisted already).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Corrupt`], [`Error::InUse`].
    pub(crate) fn open(
        dir: &Path,
        name: &str,
        wall_ms: u64,
    ) -> Result<(Disk, Restored, u64), Error> {
        Disk::open_on(Arc::new(Real), dir, name, wall_ms)
    }

    fn open_on(
        files: Arc<dyn Files + Sync>,
        dir: &Path,
        name: &str,
        wall_ms: u64,
    ) -> Result<(Disk, Restored, u64), Error> {
        let new = files.make_dir(dir).map_err(|e| failed("create directory", dir, &e))?;
        if let Some(parent) = dir.parent().filter(|_| new) {
            // Else a power cut takes the directory and with it the boot counter.
            files.sync_dir(parent).map_err(|e| failed("fsync directory", parent, &e))?;
        }
        let lock = files.lock(dir).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Error::InUse { path: dir.to_owned() },
            _ => failed("lock", dir, &e),
        })?;
        let generation = read_generation(&*files, dir)? + 1;
        write_generation(&*files, dir, generation)?;
        let path = dir.join("log");
        let len = files.len(&path).map_err(|e| failed("stat", &path, &e))?;
        if len.is_some_and(|len| len > LOG_MAX_BYTES) {
            let reason = "longer than any log of ours";
            return Err(Error::Corrupt { path, offset_bytes: LOG_MAX_BYTES, reason });
        }
        let bytes = files.read(&path, LOG_MAX_BYTES).map_err(|e| failed("read", &path, &e))?;
        let bytes = bytes.unwrap_or_default();
        let Loaded { restored, keep, durable } = load(&bytes, name, &path)?;
        if keep == 0 {
            let disk = Disk::create(files, dir, name, wall_ms, &mut std::iter::empty())?;
            return Ok((Disk { lock, ..disk }, restored, generation));
        }
        let mut log = files.open(&path).map_err(|e| failed("open", &path, &e))?;
        // Had an fsync of an earlier process failed, these bytes may be in the kernel's memory only, and held to be written:
        // an fsync alone would say that they are on the disk.
        let tail = bytes.get(durable..keep).unwrap_or(&[]);
        log.rewrite(durable as u64, tail).map_err(|e| failed("rewrite the end of", &path, &e))?;
        log.sync().map_err(|e| failed("fsync", &path, &e))?;
        let keep = keep as u64;
        let disk = Disk {
            files,
            dir: dir.to_owned(),
            name: name.to_owned(),
            log,
            len: keep,
            snapshot_len: keep,
            batch: Vec::new(),
            unsynced: false,
            mark: Some(keep),
            broken: false,
            lock,
        };
        Ok((disk, restored, generation))
    }

    /// Writes a new log beside the old one and puts it in its place.
    fn create(
        files: Arc<dyn Files + Sync>,
        dir: &Path,
        name: &str,
        wall_ms: u64,
        entries: &mut dyn Iterator<Item = Entry<'_>>,
    ) -> Result<Disk, Error> {
        let fresh = dir.join("log.new");
        let made = Disk::create_at(&fresh, files.clone(), dir, name, wall_ms, entries);
        if made.is_err() {
            // Half a log is of no use, and the disk may be full. If this fails too, the next one removes it.
            let _ = files.remove(&fresh);
        }
        made
    }

    fn create_at(
        fresh: &Path,
        files: Arc<dyn Files + Sync>,
        dir: &Path,
        name: &str,
        wall_ms: u64,
        entries: &mut dyn Iterator<Item = Entry<'_>>,
    ) -> Result<Disk, Error> {
        let path = dir.join("log");
        let mut log = files.create(fresh).map_err(|e| failed("create", fresh, &e))?;
        let mut batch = Vec::new();
        Entry::Header { name, wall_ms }.write(&mut batch);
        let mut len = 0;
        let mut write = |batch: &mut Vec<u8>, at_least: usize| {
            if batch.len() > at_least {
                log.write(batch).map_err(|e| failed("write", fresh, &e))?;
                len += batch.len() as u64;
                batch.clear();
            }
            Ok(())
        };
        for entry in entries {
            entry.write(&mut batch);
            write(&mut batch, 1 << 18)?;
        }
        write(&mut batch, 0)?;
        log.sync().map_err(|e| failed("fsync", fresh, &e))?;
        files.rename(fresh, &path).map_err(|e| failed("rename", fresh, &e))?;
        sync_dir(&*files, dir)?;
        Ok(Disk {
            files,
            dir: dir.to_owned(),
            name: name.to_owned(),
            log,
            len,
            snapshot_len: len,
            batch,
            unsynced: false,
            mark: Some(len),
            broken: false,
            lock: None,
        })
    }

    /// Remembers something. It is on its way to the disk after [`Disk::write`] and there after [`Disk::sync`].
    pub(crate) fn append(&mut self, what: &Persist) -> Result<(), Error> {
        if let Persist::Generation(generation) = what {
            return write_generation(&*self.files, &self.dir, *generation);
        }
        let Some(entry) = Entry::of(what) else { return Ok(()) };
        if self.broken {
            return Ok(());
        }
        if let Some(durable) = self.mark.take() {
            Entry::Mark { durable, wall_ms: wall_ms() }.write(&mut self.batch);
        }
        entry.write(&mut self.batch);
        Ok(())
    }

    /// Notes that this node is alive now.
    pub(crate) fn touch(&mut self) {
        if !self.broken {
            let durable = self.mark.take().unwrap_or(0);
            Entry::Mark { durable, wall_ms: wall_ms() }.write(&mut self.batch);
        }
    }

    /// Hands the batch to the kernel.
    pub(crate) fn write(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() || self.broken {
            return Ok(());
        }
        if let Err(e) = self.log.write(&self.batch) {
            self.broken = true;
            return Err(failed("write", &self.dir.join("log"), &e));
        }
        self.len += self.batch.len() as u64;
        self.batch.clear();
        self.unsynced = true;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        self.write()?;
        if !self.unsynced || self.broken {
            return Ok(());
        }
        if let Err(e) = self.log.sync() {
            // The kernel may have dropped the dirty pages: a second fsync would lie (fsyncgate).
            self.broken = true;
            return Err(failed("fsync", &self.dir.join("log"), &e));
        }
        self.unsynced = false;
        self.mark = Some(self.len);
        Ok(())
    }

    pub(crate) fn is_sound(&self) -> bool {
        !self.broken
    }

    /// Whether the log has grown enough to be rewritten.
    pub(crate) fn is_long(&self) -> bool {
        !self.broken && self.len > self.snapshot_len * GROWTH + GROWTH_MIN_BYTES
    }

    /// Replaces the log by what is true now; also one that is broken.
    pub(crate) fn snapshot<'a>(
        &mut self,
        wall_ms: u64,
        records: impl Iterator<Item = &'a Record>,
        roster: &'a [MemberInfo],
    ) -> Result<(), Error> {
        let roster = roster.iter().map(Entry::Member);
        let mut entries = records.map(Entry::Record).chain(roster);
        match Disk::create(self.files.clone(), &self.dir, &self.name, wall_ms, &mut entries) {
            Ok(disk) => {
                *self = Disk { lock: self.lock.take(), ..disk };
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }
}

fn read_generation(files: &dyn Files, dir: &Path) -> Result<u64, Error> {
    let path = dir.join("generation");
    let bytes = files.read(&path, 64).map_err(|e| failed("read", &path, &e))?;
    let Some(bytes) = bytes else { return Ok(0) };
    read_counter(&bytes).ok_or(Error::Corrupt { path, offset_bytes: 0, reason: "checksum" })
}

/// The content of a generation file; `None` unless it is whole and can be stepped above.
pub(crate) fn read_counter(bytes: &[u8]) -> Option<u64> {
    let mut r = Reader::new(bytes);
    let (counter, crc) = (r.u64()?, r.u32()?);
    (crc == crc32(&counter.to_le_bytes()) && counter < GENERATION_MAX).then_some(counter)
}

/// The content of a generation file.
pub(crate) fn counter_bytes(counter: u64) -> Vec<u8> {
    let counter = counter.to_le_bytes();
    [&counter[..], &crc32(&counter).to_le_bytes()].concat()
}

fn write_generation(files: &dyn Files, dir: &Path, generation: u64) -> Result<(), Error> {
    let (path, fresh) = (dir.join("generation"), dir.join("generation.new"));
    let mut file = files.create(&fresh).map_err(|e| failed("create", &fresh, &e))?;
    file.write(&counter_bytes(generation)).map_err(|e| failed("write", &fresh, &e))?;
    file.sync().map_err(|e| failed("fsync", &fresh, &e))?;
    files.rename(&fresh, &path).map_err(|e| failed("rename", &fresh, &e))?;
    sync_dir(files, dir)
}

fn sync_dir(files: &dyn Files, dir: &Path) -> Result<(), Error> {
    files.sync_dir(dir).map_err(|e| failed("fsync directory", dir, &e))
}

fn wall_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // Before 1970 counts as 1970: a machine without a clock.
    since.map_or(0, |d| d.as_millis() as u64)
}

fn failed(operation: &'static str, path: &Path, error: &io::Error) -> Error {
    let errno = error.raw_os_error().unwrap_or(0);
    Error::File { operation, path: path.to_owned(), errno }
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;
