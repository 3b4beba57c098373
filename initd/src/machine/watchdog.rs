//! The watchdog device: petted while all is well, so that a machine that hangs is reset by its hardware.
//!
//! `/dev/watchdog` runs from the moment it is opened (Documentation/watchdog/watchdog-api.rst). It is let go by the
//! magic close at the very end of an orderly way down; a driver with `nowayout` refuses even that, as it should.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::cmdline::WatchdogMode;
use super::console::say;
use super::{coldplug, read, sys};
use rustix::fd::OwnedFd;

/// What the device is asked for, in seconds.
const TIMEOUT_S: i32 = 30;
/// Longest pause between two pets.
const PET_MS_MAX: u64 = 5_000;
/// The second name is that of kernels without the numbered ones.
const DEVICES: [&str; 2] = ["/dev/watchdog0", "/dev/watchdog"];

/// A watchdog, or the absence of one.
#[derive(Debug)]
pub(super) struct Watchdog {
    device: Option<OwnedFd>,
    every_ms: u64,
    next_ms: u64,
    /// Not petted at the moment, and said so.
    starved: bool,
}

impl Watchdog {
    /// None: petting does nothing.
    pub(super) fn none() -> Self {
        Self { device: None, every_ms: PET_MS_MAX, next_ms: 0, starved: false }
    }

    /// Opens what there is, and says what.
    pub(super) fn open(mode: WatchdogMode) -> Self {
        if mode == WatchdogMode::Off {
            say!("watchdog: off, as told");
            return Self::none();
        }
        let there = DEVICES.into_iter().find(|path| Path::new(path).exists());
        if there.is_none() && mode == WatchdogMode::Soft {
            let report = coldplug::Coldplug::open().modprobe("softdog");
            if report.failed > 0 {
                say!("watchdog: the kernel's own could not be loaded");
            }
        }
        let Some(path) = there.or_else(|| DEVICES.into_iter().find(|p| Path::new(p).exists()))
        else {
            say!("watchdog: no device: a machine that hangs stays so until somebody looks");
            return Self::none();
        };
        match Self::at(Path::new(path)) {
            Ok(watchdog) => {
                let identity = read("/sys/class/watchdog/watchdog0/identity");
                let name = if identity.is_empty() { path } else { identity.trim() };
                let ms = watchdog.every_ms;
                say!("watchdog: {name}, petted every {ms} ms");
                watchdog
            }
            Err(e) => {
                say!("watchdog: open {path}: {e}");
                Self::none()
            }
        }
    }

    fn at(path: &Path) -> Result<Self, Errno> {
        let device = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        // A driver that cannot be told has its own; the shortest known is ten seconds.
        let timeout_s = sys::watchdog_timeout(&device, TIMEOUT_S).unwrap_or(10).max(1);
        let every_ms = (u64::try_from(timeout_s).unwrap_or(1) * 1000 / 4).min(PET_MS_MAX);
        Ok(Self { device: Some(device), every_ms, next_ms: 0, starved: false })
    }

    /// When it is due; `None` without a device.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.device.as_ref().map(|_| self.next_ms)
    }

    /// Pets it when it is due and `fresh`.
    pub(super) fn tend(&mut self, now_ms: u64, fresh: bool) {
        let Some(device) = &self.device else { return };
        if now_ms < self.next_ms {
            return;
        }
        self.next_ms = now_ms + self.every_ms;
        if fresh {
            // Any byte but the magic one.
            let _ = rustix::io::write(device, b"\0");
        }
        if self.starved == fresh {
            self.starved = !fresh;
            if self.starved {
                say!("watchdog: not petted while the agent hangs");
            }
        }
    }

    /// Lets it go: the last thing before the machine ends.
    pub(super) fn disarm(&mut self) {
        if let Some(device) = self.device.take() {
            let _ = rustix::io::write(&device, b"V");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_petted_when_due_and_fresh_and_let_go_at_the_end() {
        let path = std::env::temp_dir().join(format!("quelea-watchdog-{}", std::process::id()));
        std::fs::write(&path, "").expect("file");
        let mut dog = Watchdog::at(&path).expect("open");
        assert_eq!(dog.every_ms, 2_500, "a device that cannot be told");
        let written = || std::fs::read(&path).expect("read");
        dog.tend(0, true);
        dog.tend(2_499, true);
        assert_eq!(written(), b"\0");
        assert_eq!(dog.next_ms(), Some(2_500));
        dog.tend(2_500, false);
        dog.tend(60_000, false);
        assert_eq!(written(), b"\0");
        assert!(dog.starved);
        dog.tend(63_000, true);
        dog.disarm();
        dog.tend(70_000, true);
        assert_eq!(written(), b"\0\0V");
        assert_eq!(dog.next_ms(), None);
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn without_a_device_nothing_is_due() {
        let mut dog = Watchdog::none();
        dog.tend(0, true);
        dog.disarm();
        assert_eq!(dog.next_ms(), None);
        assert!(Watchdog::at(Path::new("/nonexistent/watchdog")).is_err());
    }
}
