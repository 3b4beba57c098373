//! PID 1: reaps, keeps the agent running, ends the node in order.
//!
//! One thread, one place where it waits. The agent is an ordinary child: when it ends it is started again with capped
//! backoff, and nothing that runs is touched. What `core` says is done here; nothing here can panic.

pub mod core;
pub mod keeper;
pub mod link;
mod shell;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use self::core::Settings;
use crate::{machine, sys};

/// On what the role runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a development PID namespace: mounts `/proc` only, ends by exiting.
    Namespace,
    /// PID 1 of a machine: boots it ([`machine::boot`]), ends it by `reboot(2)`.
    Machine,
}

/// What PID 1 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// On what.
    pub mode: Mode,
    /// The agent: program and arguments. In Maintenance `--maintenance --reason TEXT` follow.
    pub agent: Vec<OsString>,
    /// The agent's configuration. Without this file it is not started; a line `maintenance = true` before the first
    /// table starts it in Maintenance. `None`: always started.
    pub node_config: Option<PathBuf>,
    /// How long the agent has to end after SIGTERM.
    pub grace_ms: u32,
    /// How long it has to end all pods before that.
    pub drain_ms: u32,
    /// How long a new agent may take to say its first word before it counts as hung; `None`: for ever.
    pub first_word_ms: Option<u32>,
}

/// A nonblocking pipe that gets a byte for each SIGTERM and SIGINT that this process is sent: for a loop that ends in
/// order. Children do not inherit it. Once per process.
///
/// # Errors
/// [`crate::Error::Sys`].
pub fn end_signals() -> crate::Result<OwnedFd> {
    sys::signal_pipe(&[libc::SIGTERM, libc::SIGINT])
        .map_err(|e| crate::Error::sys("sigaction", "SIGTERM", e))
}

/// The PID 1 role. Returns the exit code of the namespace: 0 after an orderly stop, 1 when it is not PID 1 or could
/// not mount `/proc`. A machine never gets there.
///
/// SIGTERM and SIGPWR end the node (a machine powers off), SIGINT too (a machine reboots). A second signal does not
/// wait for the drain. SIGKILL from the parent namespace is a power cut.
#[must_use]
pub fn main(config: &Config) -> i32 {
    if std::process::id() != 1 {
        say(format_args!("this role is for PID 1, and this is {}", std::process::id()));
        return 1;
    }
    let booted = match config.mode {
        Mode::Machine => {
            let booted = machine::boot();
            // What it took is not needed again.
            sys::let_program_go();
            Some(booted)
        }
        Mode::Namespace => {
            if let Err(e) = mount_proc() {
                say(format_args!("mount /proc: {}", std::io::Error::from(e)));
                return 1;
            }
            None
        }
    };
    let settings = Settings {
        drain_ms: config.drain_ms.into(),
        grace_ms: config.grace_ms.into(),
        first_word_ms: config.first_word_ms.map(u64::from),
        kexec: booted.is_some(),
        trial_until_ms: booted.as_ref().and_then(|b| b.cmdline.trial_s).map(|s| s * 1000),
    };
    match shell::Shell::new(config, settings, booted) {
        Ok(mut shell) => shell.run(),
        Err(e) => {
            say(format_args!("signals: {}", std::io::Error::from(e)));
            if config.mode == Mode::Machine {
                // Out of memory or descriptors before anything ran; a PID 1 that ended would be a panic.
                machine::halt(machine::Power::Reboot);
            }
            1
        }
    }
}

/// A line on standard error; nobody there to read it is no reason to fall (eprintln would).
fn say(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "quelea init: {line}");
}

fn mount_proc() -> rustix::io::Result<()> {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    // The host must not see this mount, whoever made the namespace.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", "/proc", "proc", flags, None::<&std::ffi::CStr>)
}
