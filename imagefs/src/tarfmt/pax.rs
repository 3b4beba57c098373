//! PAX extended headers: records of `"<length> <key>=<value>\n"` (POSIX pax(1), "pax Extended Header").

use super::{Kind, Member, TarFault};

/// The records of one extended header that this crate acts on.
#[derive(Debug, Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Pax {
    pub(super) fn parse(data: &[u8]) -> Result<Pax, TarFault> {
        let mut pax = Pax::default();
        for record in Records(data) {
            let (key, value) = record?;
            pax.take(key, value)?;
        }
        Ok(pax)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarFault> {
        if let Some(name) = key.strip_prefix(XATTR) {
            // The last of two records of one name wins, as with every other key.
            self.xattrs.retain(|(n, _)| n != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" {
            return Err(TarFault::Type(b'S'));
        }
        if value.is_empty() {
            // POSIX: an empty value takes a record back.
            match key {
                b"path" => self.path = None,
                b"linkpath" => self.link = None,
                b"size" => self.size = None,
                b"uid" => self.uid = None,
                b"gid" => self.gid = None,
                b"mtime" => self.mtime = None,
                _ => {}
            }
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(no_nul(value)?),
            b"linkpath" => self.link = Some(no_nul(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id(value)?),
            b"gid" => self.gid = Some(id(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            // atime, ctime, uname, gname, comment, vendor records: nothing that a layer keeps.
            _ => {}
        }
        Ok(())
    }

    pub(super) fn apply(self, m: &mut Member) -> Result<(), TarFault> {
        if let Some(path) = self.path {
            m.path = path;
        }
        if let Some(link) = self.link {
            m.link = link;
        }
        if let Some(size) = self.size {
            m.size = size;
        }
        if let Some(uid) = self.uid {
            m.uid = uid;
        }
        if let Some(gid) = self.gid {
            m.gid = gid;
        }
        if let Some((s, ns)) = self.mtime {
            (m.mtime_s, m.mtime_ns) = (s, ns);
        }
        // A hard link's attributes are its target's.
        if m.kind != Kind::Hardlink {
            m.xattrs = self.xattrs;
        }
        Ok(())
    }
}

/// A global header may only carry comments (`git archive` writes one): a default for every later member is a way to make
/// two readers disagree, and no image tool writes one.
pub(super) fn check_global(data: &[u8]) -> Result<(), TarFault> {
    for record in Records(data) {
        if record?.0 != b"comment" {
            return Err(TarFault::Pax);
        }
    }
    Ok(())
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), TarFault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        match record {
            Some((key, value, rest)) => {
                self.0 = rest;
                Some(Ok((key, value)))
            }
            None => {
                self.0 = &[];
                Some(Err(TarFault::Pax))
            }
        }
    }
}

fn split_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|b| *b == b' ')?;
    let digits = data.get(..space)?;
    if digits.len() > 7 {
        return None;
    }
    let length = usize::try_from(decimal(digits).ok()?).ok()?;
    let body = data.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    let (key, value) = body.split_at(equals);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value.get(1..)?, data.get(length..)?))
}

fn no_nul(value: &[u8]) -> Result<Vec<u8>, TarFault> {
    if value.contains(&0) { Err(TarFault::Nul) } else { Ok(value.to_vec()) }
}

fn decimal(value: &[u8]) -> Result<u64, TarFault> {
    if value.is_empty() {
        return Err(TarFault::Pax);
    }
    value
        .iter()
        .try_fold(0u64, |n, d| {
            let d = d.checked_sub(b'0').filter(|d| *d < 10)?;
            n.checked_mul(10)?.checked_add(u64::from(d))
        })
        .ok_or(TarFault::Pax)
}

fn id(value: &[u8]) -> Result<u32, TarFault> {
    u32::try_from(decimal(value)?).map_err(|_| TarFault::Number)
}

/// `[-]seconds[.fraction]` as (floor seconds, nanoseconds).
fn time(value: &[u8]) -> Result<(i64, u32), TarFault> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(v) => (true, v),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |b| *b == b'.');
    let whole =
        i64::try_from(decimal(parts.next().unwrap_or_default())?).map_err(|_| TarFault::Number)?;
    let mut ns = 0u32;
    if let Some(fraction) = parts.next().filter(|f| !f.is_empty()) {
        decimal(fraction.get(..18).unwrap_or(fraction))?;
        for place in 0..9 {
            let digit = fraction.get(place).map_or(0, |d| u32::from(d.wrapping_sub(b'0') % 10));
            ns = ns * 10 + digit;
        }
    }
    Ok(match (negative, ns) {
        (false, _) => (whole, ns),
        (true, 0) => (-whole, 0),
        (true, _) => (-whole - 1, 1_000_000_000 - ns),
    })
}
