//! /proc/thread-self/mountinfo, proc_pid_mountinfo(5): what is mounted in the caller's mount namespace.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Every mount point the calling thread sees.
pub(super) fn mount_points() -> Result<BTreeSet<PathBuf>> {
    // Of the thread: tests give each thread its own mount namespace.
    let path = "/proc/thread-self/mountinfo";
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    Ok(parse(&text).collect())
}

fn parse(text: &[u8]) -> impl Iterator<Item = PathBuf> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&b, tail)) = rest.split_first() {
        let digits = tail.first_chunk::<3>().filter(|d| d.iter().all(|c| matches!(c, b'0'..=b'7')));
        rest = match digits {
            Some([a, c, d]) if b == b'\\' => {
                let value = |x: u8| u32::from(x - b'0');
                out.push((value(*a) * 64 + value(*c) * 8 + value(*d)) as u8);
                tail.get(3..).unwrap_or_default()
            }
            _ => {
                out.push(b);
                tail
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let text = b"21 1 0:5 / /a\\040b\\134c\\011 rw - tmpfs x rw\n22 21 0:6 / /plain rw - proc p rw\n\nbad\n";
        let got: Vec<_> = parse(text).collect();
        assert_eq!(got, [PathBuf::from("/a b\\c\t"), PathBuf::from("/plain")]);
        assert_eq!(unescape(b"x\\9"), b"x\\9");
    }
}
