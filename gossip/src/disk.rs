//! What survives a restart: the boot counter, the records and the roster.
//!
//! ```text
//! generation   8 bytes counter, 4 bytes CRC                           replaced by rename
//! log          (magic u16, length u32, CRC u32, kind u8, content)*    replaced by rename when it has grown
//! ```
//!
//! The log starts as a snapshot and grows by appending. An entry of kind *mark* says up to where an earlier fsync has
//! made everything durable. Bytes that make no sense in front of a mark are damage: the log is refused and left alone.
//! Behind the last mark they are the torn end of a write that nobody was promised: they are cut off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::Persist;
use crate::core::Restored;
use crate::error::Error;
use crate::map::Record;
use crate::member::MemberInfo;
use crate::message::{Update, put_record, read_record};
use crate::wire::{Reader, put_text, put_varint};

mod files;
mod worker;

use files::{Files, LogFile, Real};
pub(crate) use worker::Worker;

const MAGIC: u16 = 0x51e1;
const HEAD_BYTES: usize = 2 + 4 + 4;
/// Longest entry: a record with its kind.
const ENTRY_MAX_BYTES: usize = crate::map::ENCODED_MAX_BYTES + 64;
/// The log may outgrow the snapshot it began with by this factor and constant before it is rewritten.
const GROWTH: u64 = 3;
const GROWTH_MIN_BYTES: u64 = 1 << 20;
/// Longest log that is read; more than twice what the limits of the map allow.
const LOG_MAX_BYTES: u64 = 512 << 20;
const VERSION: u64 = 1;

mod kind {
    pub(super) const HEADER: u8 = 0;
    pub(super) const RECORD: u8 = 1;
    pub(super) const DROPPED: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const FORGOTTEN: u8 = 4;
    pub(super) const MARK: u8 = 5;
}

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
    /// After a failed write or fsync nothing is known about the file any more, so it is never written again.
    broken: bool,
}

impl Disk {
    /// Opens or creates the memory in `dir`: what it holds, and the generation of this boot (persisted already).
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Corrupt`].
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
        let generation = read_generation(&*files, dir)? + 1;
        write_generation(&*files, dir, generation)?;
        let path = dir.join("log");
        let len = files.len(&path).map_err(|e| failed("stat", &path, &e))?;
        if len.is_some_and(|len| len > LOG_MAX_BYTES) {
            let reason = "longer than any log of ours";
            return Err(Error::Corrupt { path, offset_bytes: LOG_MAX_BYTES, reason });
        }
        let bytes = files.read(&path, LOG_MAX_BYTES).map_err(|e| failed("read", &path, &e))?;
        let (restored, keep) = match bytes {
            Some(bytes) => load(&bytes, name, &path)?,
            None => (Restored::default(), 0),
        };
        if keep == 0 {
            let disk = Disk::create(files, dir, name, wall_ms, &mut std::iter::empty())?;
            return Ok((disk, restored, generation));
        }
        let mut log = files.open(&path).map_err(|e| failed("open", &path, &e))?;
        log.truncate(keep).map_err(|e| failed("truncate", &path, &e))?;
        log.sync().map_err(|e| failed("fsync", &path, &e))?;
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
        let (path, fresh) = (dir.join("log"), dir.join("log.new"));
        let mut log = files.create(&fresh).map_err(|e| failed("create", &fresh, &e))?;
        let mut batch = Vec::new();
        Entry::Header { name, wall_ms }.write(&mut batch);
        let mut len = 0;
        let mut write = |batch: &mut Vec<u8>, at_least: usize| {
            if batch.len() > at_least {
                log.write(batch).map_err(|e| failed("write", &fresh, &e))?;
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
        log.sync().map_err(|e| failed("fsync", &fresh, &e))?;
        files.rename(&fresh, &path).map_err(|e| failed("rename", &fresh, &e))?;
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
        })
    }

    /// Remembers something. It is on its way to the disk after [`Disk::write`] and there after [`Disk::sync`].
    pub(crate) fn append(&mut self, what: &Persist) -> Result<(), Error> {
        let entry = match what {
            Persist::Record { record, .. } => Entry::Record(record),
            Persist::Dropped { key } => Entry::Dropped(key),
            Persist::Member(info) => Entry::Member(info),
            Persist::Forgotten { name } => Entry::Forgotten(name),
            Persist::Generation(generation) => {
                return write_generation(&*self.files, &self.dir, *generation);
            }
        };
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

    /// Replaces the log by what is true now.
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
                *self = disk;
                Ok(())
            }
            Err(error) => {
                self.broken = true;
                Err(error)
            }
        }
    }
}

enum Entry<'a> {
    Header { name: &'a str, wall_ms: u64 },
    Record(&'a Record),
    Dropped(&'a str),
    Member(&'a MemberInfo),
    Forgotten(&'a str),
    Mark { durable: u64, wall_ms: u64 },
}

impl Entry<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        match self {
            Entry::Header { name, wall_ms } => {
                out.push(kind::HEADER);
                put_varint(out, VERSION);
                put_text(out, name);
                put_varint(out, *wall_ms);
            }
            Entry::Record(record) => {
                out.push(kind::RECORD);
                put_record(out, record);
            }
            Entry::Dropped(key) => {
                out.push(kind::DROPPED);
                put_text(out, key);
            }
            Entry::Member(info) => {
                out.push(kind::MEMBER);
                Update::of(info).write(out);
            }
            Entry::Forgotten(name) => {
                out.push(kind::FORGOTTEN);
                put_text(out, name);
            }
            Entry::Mark { durable, wall_ms } => {
                out.push(kind::MARK);
                put_varint(out, *durable);
                put_varint(out, *wall_ms);
            }
        }
        seal(out, start);
    }
}

/// Fills in the head of the entry that begins at `start`.
fn seal(out: &mut [u8], start: usize) {
    let content = out.get(start + HEAD_BYTES..).unwrap_or(&[]);
    let (len, crc) = (content.len() as u32, crc32(content));
    let mut head = MAGIC.to_le_bytes().to_vec();
    head.extend_from_slice(&len.to_le_bytes());
    head.extend_from_slice(&crc.to_le_bytes());
    if let Some(place) = out.get_mut(start..start + HEAD_BYTES) {
        place.copy_from_slice(&head);
    }
}

/// The entry at the start of `bytes` and its length.
fn entry(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let mut r = Reader::new(bytes);
    let (magic, len, crc) = (r.u16()?, r.u32()? as usize, r.u32()?);
    // Zeros after a magic would be a valid empty entry: a lost page is not one.
    if magic != MAGIC || len == 0 || len > ENTRY_MAX_BYTES {
        return None;
    }
    let content = r.bytes(len)?;
    (crc32(content) == crc).then_some((content, HEAD_BYTES + len))
}

/// Reads a log: what it says, and how much of it is good.
///
/// # Errors
/// [`Error::Corrupt`] when something durable is damaged, or the log is another node's or a later version's.
fn load(bytes: &[u8], name: &str, path: &Path) -> Result<(Restored, u64), Error> {
    let corrupt = |offset: usize, reason| Error::Corrupt {
        path: path.to_owned(),
        offset_bytes: offset as u64,
        reason,
    };
    let mut state = Replay::default();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Some((content, len)) = entry(rest) else {
            if durable_beyond(rest, at as u64) {
                return Err(corrupt(at, "checksum"));
            }
            break;
        };
        if at == 0 && content.first() != Some(&kind::HEADER) {
            return Err(corrupt(0, "no header"));
        }
        state.apply(content, name).map_err(|reason| corrupt(at, reason))?;
        at += len;
    }
    Ok((state.finish(), at as u64))
}

/// For the fuzzer: [`load`] without a file.
pub(crate) fn load_bytes(bytes: &[u8], name: &str) -> Result<Restored, Error> {
    load(bytes, name, Path::new("log")).map(|(restored, _)| restored)
}

/// For the fuzzer: contents as a log of this node would hold them, behind a header.
pub(crate) fn log_of<'a>(name: &str, contents: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    Entry::Header { name, wall_ms: 1 }.write(&mut out);
    for content in contents {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        out.extend_from_slice(content);
        seal(&mut out, start);
    }
    out
}

/// Whether some mark after a bad place says that the place had been durable.
fn durable_beyond(rest: &[u8], at: u64) -> bool {
    let magic = MAGIC.to_le_bytes();
    let places = rest.windows(2).enumerate().filter(|(_, w)| *w == magic);
    places.filter_map(|(i, _)| entry(rest.get(i..)?)).any(|(content, _)| {
        let mut r = Reader::new(content);
        r.u8() == Some(kind::MARK) && r.varint().is_some_and(|durable| durable > at)
    })
}

#[derive(Default)]
struct Replay {
    records: std::collections::BTreeMap<String, Record>,
    roster: std::collections::BTreeMap<String, MemberInfo>,
    saved_ms: u64,
}

impl Replay {
    fn apply(&mut self, content: &[u8], name: &str) -> Result<(), &'static str> {
        const BAD: &str = "entry makes no sense";
        let mut r = Reader::new(content);
        match r.u8().ok_or(BAD)? {
            kind::HEADER => {
                if r.varint() != Some(VERSION) {
                    return Err("written by another version");
                }
                if r.text() != Some(name) {
                    return Err("written by a node of another name");
                }
                self.saved_ms = r.varint().ok_or(BAD)?;
            }
            kind::RECORD => {
                let record = read_record(&mut r).ok_or(BAD)?;
                self.records.insert(record.key.to_string(), record);
            }
            kind::DROPPED => {
                self.records.remove(r.text().ok_or(BAD)?);
            }
            kind::MEMBER => {
                let update = Update::read(&mut r).ok_or(BAD)?;
                let (name, addr) = update.full.ok_or(BAD)?;
                let info = MemberInfo {
                    name: name.to_owned(),
                    addr,
                    generation: update.generation,
                    incarnation: update.incarnation,
                    state: update.standing.state().ok_or(BAD)?,
                };
                self.roster.insert(name.to_owned(), info);
            }
            kind::FORGOTTEN => {
                self.roster.remove(r.text().ok_or(BAD)?);
            }
            kind::MARK => {
                let _durable = r.varint().ok_or(BAD)?;
                self.saved_ms = self.saved_ms.max(r.varint().ok_or(BAD)?);
            }
            _ => return Err("written by a later version"),
        }
        Ok(())
    }

    fn finish(self) -> Restored {
        Restored {
            records: self.records.into_values().collect(),
            roster: self.roster.into_values().collect(),
            saved_ms: self.saved_ms,
        }
    }
}

fn read_generation(files: &dyn Files, dir: &Path) -> Result<u64, Error> {
    let path = dir.join("generation");
    let bytes = files.read(&path, 64).map_err(|e| failed("read", &path, &e))?;
    let Some(bytes) = bytes else { return Ok(0) };
    let mut r = Reader::new(&bytes);
    match (r.u64(), r.u32()) {
        (Some(counter), Some(crc)) if crc == crc32(&counter.to_le_bytes()) => Ok(counter),
        _ => Err(Error::Corrupt { path, offset_bytes: 0, reason: "checksum" }),
    }
}

fn write_generation(files: &dyn Files, dir: &Path, generation: u64) -> Result<(), Error> {
    let (path, fresh) = (dir.join("generation"), dir.join("generation.new"));
    let counter = generation.to_le_bytes();
    let mut file = files.create(&fresh).map_err(|e| failed("create", &fresh, &e))?;
    let bytes = [&counter[..], &crc32(&counter).to_le_bytes()].concat();
    file.write(&bytes).map_err(|e| failed("write", &fresh, &e))?;
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

/// CRC-32 (IEEE 802.3).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, byte| {
        // The index is a byte.
        crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)]
    })
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;
