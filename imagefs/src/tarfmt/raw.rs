//! A header block: its fields as they lie there.

use super::{BLOCK, Kind, Member, TarFault};

/// The numbers every kind of header has.
pub(super) struct Attributes {
    mode: u16,
    uid: u32,
    gid: u32,
    mtime_s: i64,
    major: u32,
    minor: u32,
}

/// A raw header block.
pub(super) struct Raw<'a>(pub(super) &'a [u8; BLOCK]);

impl Raw<'_> {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.0.get(at..at + len).unwrap_or_default()
    }

    /// A NUL-terminated string field.
    fn text(&self, at: usize, len: usize) -> &[u8] {
        let f = self.field(at, len);
        f.split(|b| *b == 0).next().unwrap_or_default()
    }

    pub(super) fn kind(&self) -> u8 {
        self.field(156, 1).first().copied().unwrap_or(0)
    }

    pub(super) fn verify(&self) -> Result<(), TarFault> {
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
    pub(super) fn number(&self, at: usize, len: usize) -> Result<u64, TarFault> {
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

    pub(super) fn path(&self) -> Vec<u8> {
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

    pub(super) fn attributes(&self) -> Result<Attributes, TarFault> {
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

    pub(super) fn member(&self, start: u64, size: u64) -> Result<Member, TarFault> {
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
