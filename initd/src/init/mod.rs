//! PID 1.

use std::ffi::OsString;

/// On what the role runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// PID 1 of a development PID namespace: mounts `/proc` only, ends by exiting.
    Namespace,
    /// PID 1 of a machine: mounts the usual set, ends by `reboot(2)`.
    Machine,
}

/// What PID 1 does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// On what.
    pub mode: Mode,
    /// The agent: program and arguments. Restarted when it ends, with capped backoff, while workloads go on.
    pub agent: Vec<OsString>,
    /// How long the agent has to end after SIGTERM before everything is killed.
    pub grace_ms: u32,
}

/// The PID 1 role. Never panics; returns the exit code of the namespace (a machine never gets there).
#[must_use]
pub fn main(_config: &Config) -> i32 {
    1
}
