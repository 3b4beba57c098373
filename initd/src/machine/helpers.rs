//! The processes that PID 1 keeps beside the agent: started under a name of their own, started again when they fall.

use super::{console::say, netd, uevent};
use std::{
    os::unix::process::CommandExt as _,
    process::{ChildStdout, Command, Stdio},
};

/// Longest pause before a fallen helper is started again.
pub(super) const PAUSE_MS_MAX: u64 = 30_000;

/// One of them.
#[derive(Debug)]
pub(super) struct Helper {
    name: &'static str,
    pid: Option<u32>,
    falls: u32,
}

impl Helper {
    /// Not started.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, pid: None, falls: 0 }
    }

    /// The network; its first line comes out of the pipe.
    pub(super) fn netd() -> (Self, Option<ChildStdout>) {
        let mut helper = Self::new(netd::NETD);
        let stdout = helper.spawn(0);
        (helper, stdout)
    }

    /// Drivers for what is plugged in later.
    pub(super) fn plugd() -> Self {
        let mut helper = Self::new(uevent::PLUGD);
        let _ = helper.spawn(0);
        helper
    }

    /// To be told of every child that ended. True when it was this one; it runs again then if it `is_wanted`.
    pub(super) fn reaped(&mut self, pid: i32, is_wanted: bool) -> bool {
        if self.pid.is_none_or(|own| u32::try_from(pid) != Ok(own)) {
            return false;
        }
        self.pid = None;
        if is_wanted {
            self.falls = self.falls.saturating_add(1);
            let pause_ms = (250u64 << self.falls.min(8)).min(PAUSE_MS_MAX);
            say!("{} fell, again in {pause_ms} ms", self.name);
            let _ = self.spawn(pause_ms);
        }
        true
    }

    fn spawn(&mut self, pause_ms: u64) -> Option<ChildStdout> {
        let spawned = Command::new("/proc/self/exe")
            .arg0(self.name)
            .arg(pause_ms.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        match spawned {
            // Not waited for here: PID 1 reaps whatever ends.
            Ok(mut child) => {
                self.pid = Some(child.id());
                child.stdout.take()
            }
            Err(e) => {
                say!("start {}: {e}", self.name);
                None
            }
        }
    }
}
