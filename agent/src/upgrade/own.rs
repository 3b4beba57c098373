//! A machine's own files (name, labels, keys) as an archive in front of the next initramfs: the same node under another kernel.
//!
//! The kernel unpacks archives one after the other (Documentation/driver-api/early-userspace/buffer-format.rst): what the initramfs
//! itself brings comes later and counts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::Error;

/// The most files that are taken along.
const FILES_MAX: usize = 256;
/// The most bytes of them.
const BYTES_MAX: u64 = 4 << 20;
/// How deep below the directory they lie at most.
const DEPTH_MAX: usize = 4;
/// Types of entries (inode(7)).
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// All regular files below `dir`, at the same path; empty where there is no such directory.
///
/// # Errors
/// A file that cannot be read; more than an initramfs should carry.
pub(super) fn archive(dir: &Path) -> Result<Vec<u8>, Error> {
    let mut out = Archive::default();
    if !dir.is_dir() {
        return Ok(out.bytes);
    }
    let above: Vec<&Path> = dir.ancestors().skip(1).collect();
    for parent in above.into_iter().rev() {
        out.entry(parent, DIRECTORY | 0o755, &[]);
    }
    out.directory(dir, 0)?;
    out.entry(Path::new("TRAILER!!!"), 0, &[]);
    out.pad(512);
    Ok(out.bytes)
}

/// An archive in the making: `newc`, the one format that the kernel reads.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    files: usize,
    read: u64,
}

impl Archive {
    fn directory(&mut self, dir: &Path, depth: usize) -> Result<(), Error> {
        let failed = |e| Error::io("read", dir, e);
        self.entry(dir, DIRECTORY | 0o700, &[]);
        let entries = fs::read_dir(dir).map_err(failed)?.collect::<Result<Vec<_>, _>>();
        let mut paths: Vec<_> = entries.map_err(failed)?.into_iter().map(|e| e.path()).collect();
        paths.sort();
        for path in paths {
            let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("read", &path, e))?;
            if meta.is_dir() && depth < DEPTH_MAX {
                self.directory(&path, depth + 1)?;
            } else if meta.is_file() {
                self.files += 1;
                self.read += meta.len();
                if self.files > FILES_MAX || self.read > BYTES_MAX {
                    return Err(super::bad(format!(
                        "{} and what lies beside it has more than {FILES_MAX} files or {BYTES_MAX} bytes: too much to take along",
                        path.display()
                    )));
                }
                let content = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
                self.entry(&path, REGULAR | (meta.permissions().mode() & 0o777), &content);
            }
        }
        Ok(())
    }

    /// One entry; root's, without a date.
    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy();
        if name.is_empty() {
            return;
        }
        // Only what is linked twice is known by its number: there is no such thing here.
        let (ino, links, date) = (0, 1, 0);
        let (size, name_size) = (content.len(), name.len() + 1);
        let head = format!(
            "070701{ino:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{date:08x}{size:08x}{0:08x}{0:08x}{0:08x}{0:08x}{name_size:08x}{0:08x}",
            0
        );
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode and content of each entry.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name) = (field(1), field(6), field(11));
            let path = String::from_utf8(bytes[110..109 + name].to_vec()).unwrap();
            if path == "TRAILER!!!" {
                return found;
            }
            let at = (110 + name).next_multiple_of(4);
            found.push((path, mode as u32, bytes[at..at + size].to_vec()));
            bytes = &bytes[(at + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn own_files_keep_their_places_and_secrets_stay_secret() {
        let dir = crate::testing::temp_dir("own");
        let etc = dir.join("etc");
        fs::create_dir_all(etc.join("flock")).unwrap();
        crate::flock::write_secret(&etc.join("node.key"), b"key").unwrap();
        crate::flock::write_public(&etc.join("node.toml"), b"name = \"n1\"").unwrap();
        crate::flock::write_public(&etc.join("flock/ca.pem"), b"").unwrap();
        std::os::unix::fs::symlink("/nowhere", etc.join("link")).unwrap();
        let bytes = archive(&etc).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let entries = read(&bytes);
        let own = etc.strip_prefix("/").unwrap().display().to_string();
        let first = own.split('/').next().unwrap().to_owned();
        assert_eq!(entries[0], (first, 0o040_755, Vec::new()));
        let below: Vec<_> = entries.iter().filter(|(path, ..)| path.starts_with(&own)).collect();
        let expected = [
            (own.clone(), 0o040_700, ""),
            (format!("{own}/flock"), 0o040_700, ""),
            (format!("{own}/flock/ca.pem"), 0o100_644, ""),
            (format!("{own}/node.key"), 0o100_600, "key"),
            (format!("{own}/node.toml"), 0o100_644, "name = \"n1\""),
        ];
        let expected = expected.map(|(path, mode, text)| (path, mode, text.as_bytes().to_vec()));
        assert_eq!(below, expected.iter().collect::<Vec<_>>());
        assert!(archive(&dir.join("nothing")).unwrap().is_empty());
        fs::write(etc.join("large"), vec![0; 1 + BYTES_MAX as usize]).unwrap();
        assert!(archive(&etc).unwrap_err().to_string().contains("too much to take along"));
        fs::remove_dir_all(dir).unwrap();
    }
}
