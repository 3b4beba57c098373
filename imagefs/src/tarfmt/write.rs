//! Writing headers: ustar, with a PAX header before it where ustar has no room. The same member gives the same bytes.

use super::{BLOCK, padding};

/// What goes into a member's header.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    /// Relative, without a leading `./`; a directory's ends in `/`.
    pub(crate) path: &'a [u8],
    /// Link target or empty.
    pub(crate) link: &'a [u8],
    /// Type letter of ustar.
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime_s: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Sorted by name.
    pub(crate) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Largest values of the 7-digit and 11-digit octal fields.
const OCTAL7_MAX: u64 = 0o7777777;
const OCTAL11_MAX: u64 = 0o77777777777;

/// The header blocks of a member; its data and their padding follow.
pub(crate) fn header(h: &Header<'_>) -> Vec<u8> {
    let mut pax = Vec::new();
    if h.path.len() > 100 {
        record(&mut pax, b"path", h.path);
    }
    if h.link.len() > 100 {
        record(&mut pax, b"linkpath", h.link);
    }
    for (key, value, max) in [
        ("size", h.size, OCTAL11_MAX),
        ("uid", u64::from(h.uid), OCTAL7_MAX),
        ("gid", u64::from(h.gid), OCTAL7_MAX),
        ("mtime", h.mtime_s, OCTAL11_MAX),
    ] {
        if value > max {
            record(&mut pax, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    for (name, value) in h.xattrs {
        record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut out = Vec::with_capacity(BLOCK);
    if !pax.is_empty() {
        let x = Header {
            path: b"PaxHeaders/x",
            link: b"",
            kind: b'x',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: pax.len() as u64,
            mtime_s: 0,
            major: 0,
            minor: 0,
            xattrs: &[],
        };
        out.extend_from_slice(&block(&x));
        out.extend_from_slice(&pax);
        out.resize(out.len() + padding(pax.len() as u64) as usize, 0);
    }
    out.extend_from_slice(&block(h));
    out
}

/// One record; its length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn block(h: &Header<'_>) -> [u8; BLOCK] {
    let mut b = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in b.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    let octal = |digits: usize, value: u64| format!("{value:0digits$o}\0").into_bytes();
    let fit = |value: u64, max: u64| if value > max { 0 } else { value };
    put(0, h.path.get(..100).unwrap_or(h.path));
    put(100, &octal(7, u64::from(h.mode) & 0o7777));
    put(108, &octal(7, fit(h.uid.into(), OCTAL7_MAX)));
    put(116, &octal(7, fit(h.gid.into(), OCTAL7_MAX)));
    put(124, &octal(11, fit(h.size, OCTAL11_MAX)));
    put(136, &octal(11, fit(h.mtime_s, OCTAL11_MAX)));
    put(148, b"        ");
    put(156, &[h.kind]);
    put(157, h.link.get(..100).unwrap_or(h.link));
    put(257, b"ustar\x0000");
    put(329, &octal(7, fit(h.major.into(), OCTAL7_MAX)));
    put(337, &octal(7, fit(h.minor.into(), OCTAL7_MAX)));
    let sum: u64 = b.iter().map(|b| u64::from(*b)).sum();
    for (to, from) in b.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").as_bytes()) {
        *to = *from;
    }
    b
}
