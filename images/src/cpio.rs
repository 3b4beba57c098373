//! `newc` cpio archives, the format of an initramfs (kernel: `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The same entries give the same bytes: sorted by path, mtime 0, owner 0:0, inode numbers counted up.

use crate::{Error, Result};
use std::{collections::BTreeMap, io, io::Write, path::Path};

/// Longest path in an archive, as the kernel's `PATH_MAX` without its NUL. Longer ones are refused.
pub const PATH_MAX: usize = 4095;
/// Largest file in an archive: the size field has eight hex digits. Larger ones are refused.
pub const FILE_BYTES_MAX: usize = u32::MAX as usize;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Dir,
    File(Vec<u8>),
    Symlink(String),
    Char { major: u32, minor: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    mode: u32,
    kind: Kind,
}

/// A file tree that becomes an archive. Parent directories appear by themselves, mode 0755.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    nodes: BTreeMap<String, Node>,
}

impl Archive {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; replaces the mode of one that is there.
    ///
    /// # Errors
    /// [`Error::Cpio`] when `path` is not a clean relative or absolute path.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self> {
        self.insert(path, mode, Kind::Dir)
    }

    /// Adds a regular file, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Cpio`] when `path` is not clean or `bytes` exceed [`FILE_BYTES_MAX`].
    pub fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) -> Result<&mut Self> {
        let bytes = bytes.into();
        if bytes.len() > FILE_BYTES_MAX {
            return Err(Error::Cpio { path: path.into(), what: "file too large" });
        }
        self.insert(path, mode, Kind::File(bytes))
    }

    /// Adds a regular file read from the build machine.
    ///
    /// # Errors
    /// As [`Archive::file`], and [`Error::Io`] when `source` cannot be read.
    pub fn file_from(&mut self, path: &str, mode: u32, source: &Path) -> Result<&mut Self> {
        let bytes = std::fs::read(source).map_err(Error::io("read", source))?;
        self.file(path, mode, bytes)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// [`Error::Cpio`] when `path` is not clean or `target` is empty or too long.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self> {
        if target.is_empty() || target.len() > PATH_MAX || target.contains('\0') {
            return Err(Error::Cpio { path: path.into(), what: "bad link target" });
        }
        self.insert(path, 0o777, Kind::Symlink(target.into()))
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// [`Error::Cpio`] when `path` is not clean.
    pub fn char_dev(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Result<&mut Self> {
        self.insert(path, mode, Kind::Char { major, minor })
    }

    /// Paths in archive order, without a leading slash.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The bytes of a regular file.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        match &self.nodes.get(path.trim_start_matches('/'))?.kind {
            Kind::File(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Splits off the regular files and links whose path `moves`; directories stay, and are made anew on the other
    /// side where something needs them.
    ///
    /// # Errors
    /// None in practice: every path was clean when it came in.
    pub fn split(&self, moves: impl Fn(&str) -> bool) -> Result<(Self, Self)> {
        let (mut stay, mut go) = (Self::new(), Self::new());
        for (path, node) in &self.nodes {
            let to = if node.kind != Kind::Dir && moves(path) { &mut go } else { &mut stay };
            to.insert(path, node.mode, node.kind.clone())?;
        }
        Ok((stay, go))
    }

    fn insert(&mut self, path: &str, mode: u32, kind: Kind) -> Result<&mut Self> {
        let bad = |what| Error::Cpio { path: path.into(), what };
        let clean = path.trim_start_matches('/');
        if clean.is_empty() || clean.len() > PATH_MAX || clean.contains('\0') {
            return Err(bad("empty, too long or with a NUL"));
        }
        if clean.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(bad("has an empty, `.` or `..` part"));
        }
        // The kernel unpacks in order and does not make parents.
        for (at, _) in clean.match_indices('/') {
            let parent = self
                .nodes
                .entry(clean[..at].to_owned())
                .or_insert(Node { mode: 0o755, kind: Kind::Dir });
            if parent.kind != Kind::Dir {
                return Err(bad("a parent is not a directory"));
            }
        }
        self.nodes.insert(clean.to_owned(), Node { mode: mode & 0o7777, kind });
        Ok(self)
    }

    /// Writes the archive with its trailer, padded to 512 bytes so that a second one may follow.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut written = 0;
        for (ino, (path, node)) in (1u32..).zip(&self.nodes) {
            let (kind_bits, data, rdev): (u32, &[u8], (u32, u32)) = match &node.kind {
                Kind::Dir => (S_IFDIR, &[], (0, 0)),
                Kind::File(bytes) => (S_IFREG, bytes, (0, 0)),
                Kind::Symlink(target) => (S_IFLNK, target.as_bytes(), (0, 0)),
                Kind::Char { major, minor } => (S_IFCHR, &[], (*major, *minor)),
            };
            let links = if node.kind == Kind::Dir { 2 } else { 1 };
            let header = Header { ino, mode: kind_bits | node.mode, links, size: data.len(), rdev };
            written += entry(out, &header, path, data)?;
        }
        let end = Header { ino: 0, mode: 0, links: 1, size: 0, rdev: (0, 0) };
        written += entry(out, &end, "TRAILER!!!", &[])?;
        pad(out, written, 512)?;
        Ok(())
    }

    /// The archive's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out).expect("writing to a Vec cannot fail");
        out
    }
}

struct Header {
    ino: u32,
    mode: u32,
    links: u32,
    size: usize,
    rdev: (u32, u32),
}

fn entry(out: &mut impl Write, h: &Header, name: &str, data: &[u8]) -> io::Result<usize> {
    // magic, ino, mode, uid, gid, nlink, mtime, size, dev, rdev, namesize, check.
    let head = format!(
        "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
        h.ino,
        h.mode,
        0,
        0,
        h.links,
        0,
        h.size,
        0,
        0,
        h.rdev.0,
        h.rdev.1,
        name.len() + 1,
        0
    );
    out.write_all(head.as_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&[0])?;
    let mut len = head.len() + name.len() + 1;
    len += pad(out, len, 4)?;
    out.write_all(data)?;
    len += data.len();
    len += pad(out, len, 4)?;
    Ok(len)
}

fn pad(out: &mut impl Write, len: usize, to: usize) -> io::Result<usize> {
    let n = len.next_multiple_of(to) - len;
    out.write_all(&[0; 512][..n])?;
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_entries_same_bytes_in_any_order() {
        let mut a = Archive::new();
        a.file("/b/x", 0o644, *b"one").unwrap().file("a", 0o755, *b"two").unwrap();
        let mut b = Archive::new();
        b.file("a", 0o755, *b"two").unwrap().file("b/x", 0o644, *b"one").unwrap();
        assert_eq!(a.to_bytes(), b.to_bytes());
        assert_eq!(a.paths().collect::<Vec<_>>(), ["a", "b", "b/x"]);
    }

    #[test]
    fn header_is_the_documented_one() {
        let mut a = Archive::new();
        a.file("init", 0o755, *b"hello").unwrap();
        let bytes = a.to_bytes();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        // 110 + 5 is padded to 116, the data to 124, then the trailer.
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn parents_come_first_and_bad_paths_are_refused() {
        let mut a = Archive::new();
        a.symlink("lib/a/b", "../c").unwrap();
        assert_eq!(a.paths().collect::<Vec<_>>(), ["lib", "lib/a", "lib/a/b"]);
        for bad in ["", "/", "a//b", "a/../b", "./a", "a/", "x\0y"] {
            assert!(a.file(bad, 0o644, *b"").is_err(), "{bad:?} was taken");
        }
        a.file("f", 0o644, *b"").unwrap();
        assert!(a.file("f/g", 0o644, *b"").is_err());
    }

    proptest::proptest! {
        #[test]
        fn every_entry_is_aligned(files in proptest::collection::btree_map("[a-z]{1,9}", proptest::collection::vec(0u8.., 0..70), 0..9)) {
            let mut a = Archive::new();
            for (name, bytes) in &files {
                a.file(name, 0o600, bytes.clone()).unwrap();
            }
            let bytes = a.to_bytes();
            let mut at = 0;
            let mut seen = 0;
            loop {
                proptest::prop_assert_eq!(&bytes[at..at + 6], b"070701");
                let field = |n: usize| {
                    let s = std::str::from_utf8(&bytes[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                    usize::from_str_radix(s, 16).unwrap()
                };
                let (size, name_size) = (field(6), field(11));
                let name = &bytes[at + 110..at + 110 + name_size - 1];
                let data = (at + 110 + name_size).next_multiple_of(4);
                if name == b"TRAILER!!!" {
                    break;
                }
                let name = std::str::from_utf8(name).unwrap();
                proptest::prop_assert_eq!(&bytes[data..data + size], files[name].as_slice());
                at = (data + size).next_multiple_of(4);
                seen += 1;
            }
            proptest::prop_assert_eq!(seen, files.len());
        }
    }
}
