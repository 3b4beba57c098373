//! The classic pcap file, for Wireshark after a failure.

use anyhow::{Context as _, Result};
use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

/// Bytes after which nothing more is captured: a failure is explained by its start, and disks are finite.
const CAPTURE_BYTES_MAX: u64 = 64 << 20;

pub(super) struct Pcap {
    file: BufWriter<File>,
    written: u64,
}

impl Pcap {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut pcap = Self { file: BufWriter::new(file), written: 0 };
        // Magic (microseconds), version 2.4, zone, accuracy, snap length, Ethernet.
        for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_550, 1] {
            pcap.file.write_all(&word.to_le_bytes())?;
        }
        Ok(pcap)
    }

    /// Errors are ignored: a full disk must not change what a test finds.
    pub(super) fn write(&mut self, now_us: u64, frame: &[u8]) {
        if self.written > CAPTURE_BYTES_MAX {
            return;
        }
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let (seconds, micros) = (now_us / 1_000_000, now_us % 1_000_000);
        for word in [seconds as u32, micros as u32, len, len] {
            let _ = self.file.write_all(&word.to_le_bytes());
        }
        let _ = self.file.write_all(frame);
        self.written += u64::from(len) + 16;
    }
}
