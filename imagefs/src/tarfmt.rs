//! The tar format: an incremental, strict parser and a small deterministic writer.
//!
//! Own and not the `tar` crate because layers arrive in pieces from peers (push, not pull) and because every place where
//! real tar readers differ (data after a hard link, mixed GNU and PAX names, lone zero blocks) is a refusal here: a
//! layer that two readers see differently is no layer. Sources: POSIX pax(1), the GNU tar manual "Basic Tar Format".

mod pax;
mod write;

use std::fmt;

pub(crate) use write::{Header, header};

/// Why a tar was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TarFault {
    /// The header's checksum is wrong: not a tar, or corrupt.
    Checksum,
    /// A number field holds no number, or one out of range.
    Number,
    /// The stream ends inside a header or a member's data.
    Truncated,
    /// Bytes other than zero after the end marker.
    Trailing,
    /// A member type that no image needs (GNU sparse, multi-volume, unknown letters).
    Type(u8),
    /// A PAX record is malformed.
    Pax,
    /// A PAX or GNU long-name header over its limit, or without a member after it.
    Extension,
    /// Empty where a name is needed.
    EmptyName,
    /// A `..` in a path.
    DotDot,
    /// A NUL byte in a name or link.
    Nul,
    /// A path component over 255 bytes.
    NameTooLong,
    /// A path with more than the allowed components.
    TooDeep,
    /// A link target over 4095 bytes, or empty.
    LinkLength,
    /// A path runs through a member of this layer that is no directory.
    ThroughNonDir,
    /// A hard link to nothing in this layer.
    HardlinkMissing,
    /// A hard link to itself.
    HardlinkSelf,
    /// A hard link to a directory.
    HardlinkDir,
    /// A character device 0:0, which is overlayfs' own whiteout.
    RawWhiteout,
    /// A whiteout of nothing, of `.` or of `..`.
    WhiteoutName,
    /// Data where the member's type has none.
    UnexpectedData,
    /// A member that replaces the root directory by something else.
    Root,
    /// An extended attribute over 64 KiB, or too many bytes of them.
    XattrSize,
    /// An extended attribute outside user, security, trusted and the POSIX ACLs, or a malformed ACL.
    XattrName,
    /// More members, names or links than the limits allow.
    TooMany,
    /// The tar is larger than the index format can address.
    TooLarge,
}

impl fmt::Display for TarFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = match self {
            TarFault::Checksum => "bad header checksum",
            TarFault::Number => "bad number in header",
            TarFault::Truncated => "truncated",
            TarFault::Trailing => "bytes after the end",
            TarFault::Type(t) => {
                return write!(f, "member type {:?} is not supported", char::from(*t));
            }
            TarFault::Pax => "malformed PAX record",
            TarFault::Extension => "extension header too long or without a member",
            TarFault::EmptyName => "empty name",
            TarFault::DotDot => "path contains ..",
            TarFault::Nul => "name contains a NUL byte",
            TarFault::NameTooLong => "name longer than 255 bytes",
            TarFault::TooDeep => "path too deep",
            TarFault::LinkLength => "link target empty or longer than 4095 bytes",
            TarFault::ThroughNonDir => "path runs through something that is no directory",
            TarFault::HardlinkMissing => "hard link to nothing in this layer",
            TarFault::HardlinkSelf => "hard link to itself",
            TarFault::HardlinkDir => "hard link to a directory",
            TarFault::RawWhiteout => "character device 0:0",
            TarFault::WhiteoutName => "whiteout of nothing",
            TarFault::UnexpectedData => "data in a member that has none",
            TarFault::Root => "the root is no directory",
            TarFault::XattrSize => "extended attributes too large",
            TarFault::XattrName => "extended attribute not supported",
            TarFault::TooMany => "too many members",
            TarFault::TooLarge => "too large",
        };
        f.write_str(s)
    }
}

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

/// The numbers every kind of header has.
struct Attributes {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime_s: i64,
    major: u32,
    minor: u32,
}

/// A raw header block.
struct Raw<'a>(&'a [u8; BLOCK]);

impl Raw<'_> {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    /// A NUL-terminated string field.
    fn text(&self, at: usize, len: usize) -> &[u8] {
        let f = self.field(at, len);
        f.split(|b| *b == 0).next().unwrap_or_default()
    }

    fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    fn verify(&self) -> Result<(), TarFault> {
        let stated = octal(self.field(148, 8)).ok_or(TarFault::Checksum)?;
        let blank = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
        let bytes = || self.0.iter().enumerate().map(|(i, b)| blank(i, *b));
        let unsigned: u64 = bytes().map(u64::from).sum();
        // Some old writers summed signed chars.
        let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
        if stated == unsigned || i64::try_from(stated) == Ok(signed) {
            Ok(())
        } else {
            Err(TarFault::Checksum)
        }
    }

    /// Octal, or GNU base-256 when the top bit is set. Negative numbers are refused.
    fn number(&self, at: usize, len: usize) -> Result<u64, TarFault> {
        u64::try_from(self.signed(at, len)?).map_err(|_| TarFault::Number)
    }

    fn signed(&self, at: usize, len: usize) -> Result<i64, TarFault> {
        let f = self.field(at, len);
        let first = f.first().copied().unwrap_or(0);
        if first & 0x80 == 0 {
            return octal(f).and_then(|v| i64::try_from(v).ok()).ok_or(TarFault::Number);
        }
        // Two's complement, most significant byte first; bit 7 marks the form, bit 6 is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, b) in f.iter().enumerate() {
            let b = match (i, negative) {
                (0, false) => b & 0x7f,
                _ => *b,
            };
            value = value << 8 | i128::from(b);
        }
        i64::try_from(value).map_err(|_| TarFault::Number)
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // GNU headers ("ustar  \0") keep times where POSIX has the prefix; star's is shorter.
        let prefix: &[u8] = match (self.field(257, 6), self.field(508, 4)) {
            (b"ustar\0", b"tar\0") => self.text(345, 131),
            (b"ustar\0", _) => self.text(345, 155),
            _ => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    fn id(&self, at: usize) -> Result<u32, TarFault> {
        u32::try_from(self.number(at, 8)?).map_err(|_| TarFault::Number)
    }

    fn attributes(&self) -> Result<Attributes, TarFault> {
        Ok(Attributes {
            // Some writers put the file type bits here too.
            mode: (self.number(100, 8)? & 0o7777) as u16,
            uid: self.id(108)?,
            gid: self.id(116)?,
            mtime_s: self.signed(136, 12)?,
            // Read for every type, because other readers do and stop at a bad one.
            major: self.id(329)?,
            minor: self.id(337)?,
        })
    }

    fn member(&self, start: u64, size: u64) -> Result<Member, TarFault> {
        let path = self.path();
        let kind = match self.kind() {
            // In V7 tars a directory is a file whose name ends in a slash.
            0 if path.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(TarFault::Type(other)),
        };
        let Attributes { mode, uid, gid, mtime_s, major, minor } = self.attributes()?;
        let device = matches!(kind, Kind::Char | Kind::Block);
        Ok(Member {
            offset: start,
            data_offset: start + BLOCK as u64,
            size,
            path,
            link: self.text(157, 100).to_vec(),
            kind,
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns: 0,
            major: if device { major } else { 0 },
            minor: if device { minor } else { 0 },
            xattrs: Vec::new(),
        })
    }
}

/// Octal digits after optional spaces, with nothing but spaces and NULs behind; no digits at all are 0. Digits behind a
/// leading NUL are a number to some readers and none to others, so they are refused.
fn octal(field: &[u8]) -> Option<u64> {
    let pad = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| *b != b' ').unwrap_or(field.len());
    let field = field.get(start..)?;
    let end = field.iter().position(pad).unwrap_or(field.len());
    let (digits, rest) = field.split_at(end);
    if !rest.iter().all(pad) {
        return None;
    }
    digits.iter().try_fold(0u64, |n, d| {
        let d = d.checked_sub(b'0').filter(|d| *d < 8)?;
        n.checked_mul(8)?.checked_add(u64::from(d))
    })
}

#[cfg(test)]
mod tests;
