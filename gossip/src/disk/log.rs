//! What stands in the log: entries, and how much of one that a crash has cut or a disk has damaged is good.
//!
//! ```text
//! entry   magic u16, length u32, CRC u32, kind u8, content
//! ```
//!
//! The log starts as a snapshot and grows by appending. An entry of kind *mark* says up to where an earlier fsync has
//! made everything durable. Bytes that make no sense in front of a mark are damage: the log is refused and left alone.
//! Behind the last mark they are the torn end of a write that nobody was promised: they are cut off.

use std::path::Path;

use crate::api::Persist;
use crate::core::Restored;
use crate::error::Error;
use crate::map::Record;
use crate::member::MemberInfo;
use crate::message::{Update, put_record, read_record};
use crate::wire::{Reader, put_text, put_varint};

const MAGIC: u16 = 0x51e1;
const HEAD_BYTES: usize = 2 + 4 + 4;
/// Longest entry: a record with its kind.
const ENTRY_MAX_BYTES: usize = crate::map::ENCODED_MAX_BYTES + 64;
const VERSION: u64 = 1;

mod kind {
    pub(super) const HEADER: u8 = 0;
    pub(super) const RECORD: u8 = 1;
    pub(super) const DROPPED: u8 = 2;
    pub(super) const MEMBER: u8 = 3;
    pub(super) const FORGOTTEN: u8 = 4;
    pub(super) const MARK: u8 = 5;
}

pub(super) enum Entry<'a> {
    Header { name: &'a str, wall_ms: u64 },
    Record(&'a Record),
    Dropped(&'a str),
    Member(&'a MemberInfo),
    Forgotten(&'a str),
    Mark { durable: u64, wall_ms: u64 },
}

impl<'a> Entry<'a> {
    /// What is written of this to the log; nothing of the generation, which has a file of its own.
    pub(super) fn of(what: &'a Persist) -> Option<Entry<'a>> {
        Some(match what {
            Persist::Record { record, .. } => Entry::Record(record),
            Persist::Dropped { key } => Entry::Dropped(key),
            Persist::Member(info) => Entry::Member(info),
            Persist::Forgotten { name } => Entry::Forgotten(name),
            Persist::Generation(_) => return None,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
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

/// What a log says.
pub(super) struct Loaded {
    pub(super) restored: Restored,
    /// How much of it is good.
    pub(super) keep: usize,
    /// How much of that was on the disk for certain when the last mark was written.
    pub(super) durable: usize,
}

/// Reads a log.
///
/// # Errors
/// [`Error::Corrupt`] when something durable is damaged, or the log is another node's or a later version's.
pub(super) fn load(bytes: &[u8], name: &str, path: &Path) -> Result<Loaded, Error> {
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
    let durable = usize::try_from(state.durable).unwrap_or(at).min(at);
    Ok(Loaded { restored: state.finish(), keep: at, durable })
}

/// For the fuzzer: [`load`] without a file.
pub(crate) fn load_bytes(bytes: &[u8], name: &str) -> Result<Restored, Error> {
    load(bytes, name, Path::new("log")).map(|loaded| loaded.restored)
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
    durable: u64,
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
                self.durable = self.durable.max(r.varint().ok_or(BAD)?);
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

/// CRC-32 (IEEE 802.3).
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
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
