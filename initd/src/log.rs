//! Container output: pipes into rotated files.
//!
//! One line of a file is `2026-11-20T16:41:46.123456789Z stdout F text`; `P` instead of `F` marks a line that goes on
//! in the next one of the same stream (longer than [`LINE_BYTES_MAX`], or cut by the end of the program).
//! `<name>.log` is written, `<name>.log.1` is the one before it.

mod tail;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::pod::{LogPolicy, Overflow};
pub use tail::Tail;

/// Longest text of one line in a file; longer lines are cut into parts.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A line read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written: RFC 3339 in UTC with nanoseconds.
    pub time: &'a str,
    /// Where it came from.
    pub stream: Stream,
    /// It goes on in the next line of this stream.
    pub partial: bool,
    /// Without the line feed.
    pub text: &'a [u8],
}

/// Takes a line of a log file apart; `None` when it is none of ours (a torn write).
#[must_use]
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Line { time, stream, partial, text: parts.next()? })
}

/// `wall_ns` nanoseconds since 1970, as RFC 3339 in UTC.
fn timestamp(wall_ns: u64, out: &mut Vec<u8>) {
    use std::io::Write as _;
    let (s, ns) = (wall_ns / 1_000_000_000, wall_ns % 1_000_000_000);
    let (days, s) = (s / 86_400, s % 86_400);
    // Days to a date by eras of 400 years that start in March (Howard Hinnant, "chrono-compatible date algorithms").
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ns:09}Z");
}

/// The lines of one container: what arrives in pieces leaves in whole lines. Pure.
#[derive(Debug, Default)]
struct Lines {
    open: [Vec<u8>; 2],
}

impl Lines {
    /// Appends finished lines to `out`.
    fn feed(&mut self, stream: Stream, mut bytes: &[u8], wall_ns: u64, out: &mut Vec<u8>) {
        let open = match stream {
            Stream::Stdout => &mut self.open[0],
            Stream::Stderr => &mut self.open[1],
        };
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - open.len();
            let window = bytes.get(..room.min(bytes.len())).unwrap_or(bytes);
            let (text, skip, full) = match window.iter().position(|b| *b == b'\n') {
                Some(end) => (window.get(..end).unwrap_or_default(), end + 1, true),
                None => (window, window.len(), false),
            };
            let rest = bytes.get(skip..).unwrap_or_default();
            if full || open.len() + text.len() == LINE_BYTES_MAX {
                line(stream, full, wall_ns, &[open, text], out);
                // An idle container keeps no buffer.
                *open = Vec::new();
            } else {
                open.extend_from_slice(text);
            }
            bytes = rest;
        }
    }

    /// What is left when the program has ended.
    fn end(&mut self, wall_ns: u64, out: &mut Vec<u8>) {
        for (stream, open) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&mut self.open) {
            if !open.is_empty() {
                line(stream, false, wall_ns, &[open], out);
                *open = Vec::new();
            }
        }
    }
}

fn line(stream: Stream, full: bool, wall_ns: u64, text: &[&[u8]], out: &mut Vec<u8>) {
    timestamp(wall_ns, out);
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if full { b" F " } else { b" P " });
    for part in text {
        out.extend_from_slice(part);
    }
    out.push(b'\n');
}

/// Writes one container's log.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: OwnedFd,
    name: String,
    policy: LogPolicy,
    file: Option<OwnedFd>,
    size: u64,
    lines: Lines,
    /// Bytes that the policy lets through now, and when that was.
    budget: u64,
    budget_at_ns: u64,
    dropped_unsaid: u64,
    /// Bytes dropped by policy, or because the disk was full or broken, since the start.
    pub(crate) dropped: u64,
}

impl Writer {
    /// Into `<dir>/<container>.log`.
    pub(crate) fn new(dir: OwnedFd, container: &str, policy: LogPolicy) -> Self {
        let name = format!("{container}.log");
        Self {
            dir,
            name,
            policy,
            file: None,
            size: 0,
            lines: Lines::default(),
            budget: 0,
            budget_at_ns: 0,
            dropped_unsaid: 0,
            dropped: 0,
        }
    }

    /// Opens the file now, so that a launch can fail for it.
    pub(crate) fn open(&mut self) -> rustix::io::Result<()> {
        if self.file.is_none() {
            let flags = OFlags::WRONLY
                | OFlags::CREATE
                | OFlags::APPEND
                | OFlags::CLOEXEC
                | OFlags::NOFOLLOW;
            let fd = rustix::fs::openat(&self.dir, &self.name, flags, Mode::from_raw_mode(0o640))?;
            self.size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0);
            self.file = Some(fd);
        }
        Ok(())
    }

    /// Takes what a pipe gave.
    pub(crate) fn feed(&mut self, stream: Stream, bytes: &[u8], wall_ns: u64) {
        let mut bytes = bytes;
        // What was dropped before, not what is dropped now.
        let unsaid = self.dropped_unsaid;
        if let Overflow::Drop { bytes_per_s } = self.policy.overflow {
            bytes = self.allowed(bytes, bytes_per_s, wall_ns);
        }
        let mut out = Vec::new();
        if unsaid > 0 && !bytes.is_empty() {
            let note = format!("[{unsaid} bytes of output dropped]\n");
            self.dropped_unsaid -= unsaid;
            self.lines.end(wall_ns, &mut out);
            self.lines.feed(Stream::Stderr, note.as_bytes(), wall_ns, &mut out);
        }
        self.lines.feed(stream, bytes, wall_ns, &mut out);
        self.write(&out);
    }

    /// The program has ended.
    pub(crate) fn end(&mut self, wall_ns: u64) {
        let mut out = Vec::new();
        self.lines.end(wall_ns, &mut out);
        self.write(&out);
    }

    /// A token bucket of one second.
    fn allowed<'b>(&mut self, bytes: &'b [u8], rate: u64, now_ns: u64) -> &'b [u8] {
        let passed = if self.budget_at_ns == 0 {
            1_000_000_000
        } else {
            now_ns.saturating_sub(self.budget_at_ns)
        };
        let earned = u128::from(passed) * u128::from(rate) / 1_000_000_000;
        self.budget =
            self.budget.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX)).min(rate);
        self.budget_at_ns = now_ns;
        let keep = usize::try_from(self.budget).unwrap_or(usize::MAX).min(bytes.len());
        self.budget -= keep as u64;
        let lost = (bytes.len() - keep) as u64;
        self.dropped += lost;
        self.dropped_unsaid += lost;
        bytes.get(..keep).unwrap_or_default()
    }

    /// Whole lines; rotates between them.
    fn write(&mut self, mut out: &[u8]) {
        while !out.is_empty() {
            if self.open().is_err() {
                self.dropped += out.len() as u64;
                return;
            }
            // As many whole lines as still fit, at least one.
            let room = usize::try_from(self.policy.file_bytes.saturating_sub(self.size))
                .unwrap_or(usize::MAX);
            let mut take = out.len();
            if take > room {
                let head = out.get(..room).unwrap_or_default();
                take = match head.iter().rposition(|b| *b == b'\n') {
                    Some(end) => end + 1,
                    None if self.size > 0 => {
                        self.rotate();
                        continue;
                    }
                    None => out.iter().position(|b| *b == b'\n').map_or(out.len(), |end| end + 1),
                };
            }
            let (now, later) = out.split_at(take);
            let Some(file) = &self.file else { return };
            match write_all(file.as_fd(), now) {
                Ok(()) => self.size += now.len() as u64,
                // A full or broken disk must not stop the program; the count is in the status.
                Err(_) => self.dropped += now.len() as u64,
            }
            out = later;
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        self.size = 0;
        let numbered =
            |n: u32| if n == 0 { self.name.clone() } else { format!("{}.{n}", self.name) };
        let keep = self.policy.files.max(1);
        if keep == 1 {
            let _ = rustix::fs::unlinkat(&self.dir, &self.name, rustix::fs::AtFlags::empty());
        }
        for n in (1..keep).rev() {
            let _ = rustix::fs::renameat(&self.dir, numbered(n - 1), &self.dir, numbered(n));
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
