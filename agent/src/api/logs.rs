//! Reads a container's log files: the last lines, then whatever is appended, across rotations.
//!
//! The files are `<container>.log` and, older, `.log.1`, `.log.2`, ...; each line is as the shim wrote it.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Lines that `tail` may ask for.
pub const TAIL_LINES_MAX: usize = 100_000;
/// Bytes read from a file in one go.
const CHUNK_BYTES: usize = 64 * 1024;
/// Rotated files looked at for older lines.
const ROTATED_MAX: u32 = 16;

/// A position in a growing, rotating log.
pub struct LogReader {
    path: PathBuf,
    file: Option<File>,
}

impl LogReader {
    /// Opens a log and returns its last `tail` lines; a log that does not exist yet is empty.
    pub fn open(path: &Path, tail: usize) -> std::io::Result<(Self, Vec<u8>)> {
        let mut older = Vec::new();
        // The newest first, until there are lines enough.
        let file = open_if_there(path)?;
        let mut newest = Vec::new();
        let mut kept = None;
        if let Some(mut file) = file {
            file.read_to_end(&mut newest)?;
            kept = Some(file);
        }
        let mut lines = count_lines(&newest);
        for number in 1..=ROTATED_MAX {
            if lines >= tail {
                break;
            }
            let Some(mut file) = open_if_there(&rotated(path, number))? else { break };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            lines += count_lines(&bytes);
            older.push(bytes);
        }
        let mut all: Vec<u8> = older.into_iter().rev().flatten().collect();
        all.extend(newest);
        let skip = count_lines(&all).saturating_sub(tail);
        let start = nth_line(&all, skip);
        all.drain(..start);
        Ok((Self { path: path.into(), file: kept }, all))
    }

    /// What was appended since; empty if nothing. Moves on to the next file once the old one is read to its end.
    pub fn more(&mut self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            if let Some(file) = &mut self.file {
                let read = file.take(CHUNK_BYTES as u64).read_to_end(&mut bytes)?;
                if read > 0 {
                    return Ok(bytes);
                }
            }
            let Some(current) = open_if_there(&self.path)? else { return Ok(bytes) };
            let inode = |file: &File| file.metadata().map(|m| m.ino());
            match &self.file {
                Some(old) if inode(old)? == inode(&current)? => return Ok(bytes),
                Some(old) => self.file = Some(self.next_after(old, current)?),
                None => self.file = Some(current),
            }
        }
    }

    /// The file that follows `old`: the newest, unless several rotations happened meanwhile.
    fn next_after(&self, old: &File, current: File) -> std::io::Result<File> {
        let old = old.metadata()?.ino();
        let mut next = current;
        for number in 1..=ROTATED_MAX {
            match open_if_there(&rotated(&self.path, number))? {
                Some(file) if file.metadata()?.ino() == old => break,
                Some(file) => next = file,
                None => break,
            }
        }
        next.seek(SeekFrom::Start(0))?;
        Ok(next)
    }
}

fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn open_if_there(path: &Path) -> std::io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Where the line with this number, from 0, begins.
fn nth_line(bytes: &[u8], number: usize) -> usize {
    if number == 0 {
        return 0;
    }
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1).nth(number - 1).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_last_lines_come_from_rotated_files_too() {
        let dir = crate::testing::temp_dir("logs-tail");
        let path = dir.join("a.log");
        std::fs::write(dir.join("a.log.2"), "1\n2\n").unwrap();
        std::fs::write(dir.join("a.log.1"), "3\n4\n").unwrap();
        std::fs::write(&path, "5\n6\n").unwrap();
        let tail = |n| String::from_utf8(LogReader::open(&path, n).unwrap().1).unwrap();
        assert_eq!(tail(1), "6\n");
        assert_eq!(tail(3), "4\n5\n6\n");
        assert_eq!(tail(100), "1\n2\n3\n4\n5\n6\n");
        assert_eq!(tail(0), "");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn following_loses_nothing_over_two_rotations() {
        let dir = crate::testing::temp_dir("logs-follow");
        let path = dir.join("a.log");
        let append = |text: &str| {
            let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        let rotate = || {
            let _ = std::fs::rename(dir.join("a.log.1"), dir.join("a.log.2"));
            std::fs::rename(&path, dir.join("a.log.1")).unwrap();
        };
        append("1\n");
        let (mut reader, first) = LogReader::open(&path, 10).unwrap();
        assert_eq!(first, b"1\n");
        append("2\n");
        rotate();
        append("3\n");
        rotate();
        append("4\n");
        let mut seen = Vec::new();
        loop {
            let more = reader.more().unwrap();
            if more.is_empty() {
                break;
            }
            seen.extend(more);
        }
        assert_eq!(seen, b"2\n3\n4\n");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_log_that_comes_later_is_followed() {
        let dir = crate::testing::temp_dir("logs-later");
        let path = dir.join("a.log");
        let (mut reader, first) = LogReader::open(&path, 10).unwrap();
        assert!(first.is_empty() && reader.more().unwrap().is_empty());
        std::fs::write(&path, "x\n").unwrap();
        assert_eq!(reader.more().unwrap(), b"x\n");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
