//! Reading a log back, and following it across rotation.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pod::is_name;

/// Most rotated files that are looked for.
const FILES_MAX: u32 = 1000;
/// Read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// A place in a container's log. The log need not be there yet.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
}

impl Tail {
    /// At the oldest line that is kept of `<dir>/<container>.log`.
    ///
    /// # Errors
    /// [`Error::Spec`] for a name that is none, [`Error::Sys`] when a file cannot be opened.
    pub fn oldest(dir: &Path, container: &str) -> Result<Self> {
        let mut tail = Self::nowhere(dir, container)?;
        tail.file = tail.files()?.pop();
        Ok(tail)
    }

    /// At the last `lines` lines (or where the oldest begins, if there are fewer). 0 is the end.
    ///
    /// # Errors
    /// As [`oldest`](Self::oldest).
    pub fn last(dir: &Path, container: &str, lines: usize) -> Result<Self> {
        let mut tail = Self::nowhere(dir, container)?;
        let mut left = lines;
        for file in tail.files()? {
            let (offset, found) = back(&file, left).map_err(|e| tail.fail("read", &e))?;
            left -= found.min(left);
            tail.offset = offset;
            tail.file = Some(file);
            if left == 0 {
                break;
            }
        }
        Ok(tail)
    }

    fn nowhere(dir: &Path, container: &str) -> Result<Self> {
        if !is_name(container) {
            return Err(Error::Spec { field: "container".into(), why: "not a name" });
        }
        Ok(Self { path: dir.join(format!("{container}.log")), file: None, offset: 0 })
    }

    fn fail(&self, op: &'static str, e: &std::io::Error) -> Error {
        Error::io(op, self.path.display(), e)
    }

    /// Opens what there is, newest first.
    fn files(&self) -> Result<Vec<File>> {
        let mut files = Vec::new();
        for n in 0..FILES_MAX {
            let path = if n == 0 { self.path.clone() } else { numbered(&self.path, n) };
            match File::open(&path) {
                Ok(f) => files.push(f),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    // Between a rotation and the next line only the newest is missing.
                    if n > 0 {
                        break;
                    }
                }
                Err(e) => return Err(self.fail("open", &e)),
            }
        }
        Ok(files)
    }

    /// Appends the whole lines that have come since the last call, at most about `limit` bytes of them; false when there
    /// were none. Never waits: who follows calls it again, some times a second.
    ///
    /// # Errors
    /// [`Error::Sys`] when a file cannot be opened or read.
    pub fn read(&mut self, limit: usize, out: &mut Vec<u8>) -> Result<bool> {
        let before = out.len();
        while out.len() - before < limit {
            if self.file.is_none() {
                self.file = self.files()?.pop();
                self.offset = 0;
            }
            let Some(file) = &self.file else { break };
            // Asked first: a file that is not the newest has got its last line already.
            let newer = self.newer(file)?;
            let mut chunk = vec![0u8; CHUNK_BYTES];
            let n = file.read_at(&mut chunk, self.offset).map_err(|e| self.fail("read", &e))?;
            let whole = chunk.get(..n).unwrap_or_default();
            let whole = match whole.iter().rposition(|b| *b == b'\n') {
                Some(end) => whole.get(..=end).unwrap_or_default(),
                None => &[],
            };
            if !whole.is_empty() {
                out.extend_from_slice(whole);
                self.offset += whole.len() as u64;
            } else if let Some(next) = newer {
                self.file = Some(next);
                self.offset = 0;
            } else {
                break;
            }
        }
        Ok(out.len() > before)
    }

    /// The file that follows `file`, when it has been rotated. One that is kept no more is followed by the oldest.
    fn newer(&self, file: &File) -> Result<Option<File>> {
        let id = |f: &File| f.metadata().map(|m| (m.dev(), m.ino()));
        let own = id(file).map_err(|e| self.fail("stat", &e))?;
        if std::fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == own) {
            return Ok(None);
        }
        let mut newer = None;
        for f in self.files()? {
            if id(&f).map_err(|e| self.fail("stat", &e))? == own {
                return Ok(newer);
            }
            newer = Some(f);
        }
        Ok(newer)
    }
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    PathBuf::from(name)
}

/// Where the last `lines` lines of a file begin, and how many there are.
fn back(file: &File, lines: usize) -> std::io::Result<(u64, usize)> {
    let size = file.metadata()?.len();
    if lines == 0 {
        return Ok((size, 0));
    }
    let (mut end, mut found) = (size, 0);
    let mut chunk = vec![0u8; CHUNK_BYTES];
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let wanted = usize::try_from(end - start).unwrap_or(CHUNK_BYTES);
        let part = chunk.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(part, start)?;
        for (i, b) in part.iter().enumerate().rev() {
            let at = start + i as u64;
            // The last byte of the file ends a line; every other line feed ends the one before.
            if *b == b'\n' && at + 1 < size {
                found += 1;
                if found == lines {
                    return Ok((at + 1, found));
                }
            }
        }
        end = start;
    }
    Ok((0, found + usize::from(size > 0)))
}
