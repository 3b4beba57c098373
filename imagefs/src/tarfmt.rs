//! The tar format: an incremental, strict parser and a small deterministic writer.
//!
//! Own and not the `tar` crate because layers arrive in pieces from peers (push, not pull) and because every place where
//! real tar readers differ (data after a hard link, mixed GNU and PAX names, lone zero blocks) is a refusal here: a
//! layer that two readers see differently is no layer. Sources: POSIX pax(1), the GNU tar manual "Basic Tar Format".

mod fault;
mod pax;
mod raw;
mod write;

pub use fault::TarFault;
use raw::Raw;
pub(crate) use write::{Header, header};

/// Size of a tar block; every header and every member's data start at a multiple.
pub(crate) const BLOCK: usize = 512;
/// Largest PAX header or GNU long name read. Larger is refused.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Hardlink,
    Char,
    Block,
    Fifo,
}

/// One member, told when its header is complete and before its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Where its own header starts, bytes.
    pub(crate) offset: u64,
    /// Where its data starts, bytes; a multiple of 512.
    pub(crate) data_offset: u64,
    /// Length of its data, bytes; 0 unless `File`.
    pub(crate) size: u64,
    /// As written.
    pub(crate) path: Vec<u8>,
    /// Target of a link, as written.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid, sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// As written, names with their namespace.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A refusal and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarError {
    pub(crate) offset: u64,
    pub(crate) path: Vec<u8>,
    pub(crate) fault: TarFault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Pax,
    PaxGlobal,
    LongName,
    LongLink,
}

#[derive(Debug)]
enum State {
    /// Collecting a header block.
    Header,
    /// Passing over data and its padding.
    Skip(u64),
    /// Collecting the data of an extension header with its padding.
    Extension { what: Extension, left: u64, size: u64 },
    /// After a zero block: zeros until the end.
    End,
}

/// Push parser: [`feed`](Self::feed) any slices, then [`finish`](Self::finish).
#[derive(Debug)]
pub(crate) struct Parser {
    state: State,
    /// Bytes consumed.
    offset: u64,
    block: [u8; BLOCK],
    have: usize,
    extension: Vec<u8>,
    pax: Option<pax::Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Parser {
    pub(crate) fn new() -> Parser {
        Parser {
            state: State::Header,
            offset: 0,
            block: [0; BLOCK],
            have: 0,
            extension: Vec::new(),
            pax: None,
            long_name: None,
            long_link: None,
        }
    }

    /// Consumes all of `bytes`, telling `sink` each member whose header completes in it. After an error the parser is
    /// not to be fed again.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn FnMut(Member) -> Result<(), TarFault>,
    ) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let used = self.advance(bytes, sink)?;
            self.offset += used as u64;
            bytes = bytes.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn advance(
        &mut self,
        bytes: &[u8],
        sink: &mut dyn FnMut(Member) -> Result<(), TarFault>,
    ) -> Result<usize, TarError> {
        match self.state {
            State::Skip(left) => {
                let used = clamp(left, bytes.len());
                let left = left - used as u64;
                self.state = if left == 0 { State::Header } else { State::Skip(left) };
                Ok(used)
            }
            State::End => {
                if bytes.iter().any(|b| *b != 0) {
                    return Err(self.error(TarFault::Trailing));
                }
                Ok(bytes.len())
            }
            State::Extension { what, left, size } => {
                let used = clamp(left, bytes.len());
                self.extension.extend_from_slice(bytes.get(..used).unwrap_or_default());
                let left = left - used as u64;
                if left > 0 {
                    self.state = State::Extension { what, left, size };
                } else {
                    self.end_extension(what, size)?;
                    self.state = State::Header;
                }
                Ok(used)
            }
            State::Header => {
                let used = (BLOCK - self.have).min(bytes.len());
                let (to, from) =
                    (self.block.get_mut(self.have..self.have + used), bytes.get(..used));
                if let (Some(to), Some(from)) = (to, from) {
                    to.copy_from_slice(from);
                }
                self.have += used;
                if self.have == BLOCK {
                    self.have = 0;
                    let start = self.offset + used as u64 - BLOCK as u64;
                    self.header(start, sink)?;
                }
                Ok(used)
            }
        }
    }

    /// Bytes from here on that are only passed over; a caller that can seek may [`skip`](Self::skip) them.
    pub(crate) fn skippable(&self) -> u64 {
        match self.state {
            State::Skip(left) => left,
            _ => 0,
        }
    }

    /// Passes over all [`skippable`](Self::skippable) bytes.
    pub(crate) fn skip(&mut self) {
        if let State::Skip(left) = self.state {
            self.offset += left;
            self.state = State::Header;
        }
    }

    /// To be called after the last byte.
    pub(crate) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            State::End => Ok(()),
            // Missing end blocks are common and harmless: the whole is verified by digest.
            State::Header if self.have == 0 => {
                if self.pending() {
                    return Err(self.error(TarFault::Extension));
                }
                Ok(())
            }
            _ => Err(self.error(TarFault::Truncated)),
        }
    }

    fn pending(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }

    fn error(&self, fault: TarFault) -> TarError {
        TarError { offset: self.offset, path: Vec::new(), fault }
    }

    fn end_extension(&mut self, what: Extension, size: u64) -> Result<(), TarError> {
        let mut data = std::mem::take(&mut self.extension);
        let padding = data.split_off(clamp(size, data.len()));
        // Some readers take a long name up to its NUL, wherever the header says that it ends.
        if padding.iter().any(|b| *b != 0) {
            return Err(self.error(TarFault::Extension));
        }
        let fault = match what {
            Extension::Pax => match pax::Pax::parse(&data) {
                Ok(p) => {
                    self.pax = Some(p);
                    None
                }
                Err(f) => Some(f),
            },
            Extension::PaxGlobal => pax::check_global(&data).err(),
            Extension::LongName => {
                let name = trim_nul(&data);
                self.long_name = name.clone().ok();
                name.err()
            }
            Extension::LongLink => {
                let name = trim_nul(&data);
                self.long_link = name.clone().ok();
                name.err()
            }
        };
        fault.map_or(Ok(()), |f| Err(self.error(f)))
    }

    fn header(
        &mut self,
        start: u64,
        sink: &mut dyn FnMut(Member) -> Result<(), TarFault>,
    ) -> Result<(), TarError> {
        if self.block.iter().all(|b| *b == 0) {
            if self.pending() {
                return Err(self.error(TarFault::Extension));
            }
            self.state = State::End;
            return Ok(());
        }
        // A copy, so that the extensions of &mut self can be taken while it is read.
        let block = self.block;
        let raw = Raw(&block);
        let fail = |fault| TarError { offset: start, path: raw.path(), fault };
        raw.verify().map_err(fail)?;
        let kind = raw.kind();
        let size = raw.number(124, 12).map_err(fail)?;
        let extension = match kind {
            b'x' => Some(Extension::Pax),
            b'g' => Some(Extension::PaxGlobal),
            b'L' => Some(Extension::LongName),
            b'K' => Some(Extension::LongLink),
            _ => None,
        };
        if let Some(what) = extension {
            // Nobody needs its owner and times, but some readers stop at a bad one.
            raw.attributes().map_err(fail)?;
            // GNU and PAX extensions on one member, or one twice: readers disagree on which wins.
            let clash = match what {
                Extension::Pax => self.pending(),
                Extension::PaxGlobal => self.pending(),
                Extension::LongName => self.pax.is_some() || self.long_name.is_some(),
                Extension::LongLink => self.pax.is_some() || self.long_link.is_some(),
            };
            if clash || size > EXTENSION_BYTES_MAX {
                return Err(fail(TarFault::Extension));
            }
            if size == 0 {
                self.end_extension(what, 0)?;
                self.state = State::Header;
            } else {
                self.state = State::Extension { what, left: size + padding(size), size };
            }
            return Ok(());
        }
        let mut member = raw.member(start, size).map_err(fail)?;
        self.apply_extensions(&mut member).map_err(fail)?;
        let path = member.path.clone();
        let body = member.size;
        if body > 0 && member.kind != Kind::File {
            return Err(TarError { offset: start, path, fault: TarFault::UnexpectedData });
        }
        let Some(skip) = body.checked_add(padding(body)).filter(|s| *s < 1 << 62) else {
            return Err(TarError { offset: start, path, fault: TarFault::Number });
        };
        self.state = if skip == 0 { State::Header } else { State::Skip(skip) };
        sink(member).map_err(|fault| TarError { offset: start, path, fault })
    }

    fn apply_extensions(&mut self, m: &mut Member) -> Result<(), TarFault> {
        if let Some(name) = self.long_name.take() {
            m.path = name;
        }
        if let Some(link) = self.long_link.take() {
            m.link = link;
        }
        if let Some(pax) = self.pax.take() {
            pax.apply(m)?;
        }
        Ok(())
    }
}

/// `min(left, len)` as a length.
fn clamp(left: u64, len: usize) -> usize {
    usize::try_from(left).map_or(len, |l| l.min(len))
}

/// Bytes from the end of data of this length to the next block.
pub(crate) fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

/// The bytes before the first NUL; anything but NULs after it is refused.
fn trim_nul(data: &[u8]) -> Result<Vec<u8>, TarFault> {
    let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (name, rest) = data.split_at(end);
    if rest.iter().any(|b| *b != 0) { Err(TarFault::Nul) } else { Ok(name.to_vec()) }
}

#[cfg(test)]
mod tests;
