//! One shim per pod: launches its containers, watches, logs, probes and restarts them, and outlives the agent.
//!
//! - [`core`]: decides (pure). - [`client`]: the agent's end. - `wire`: their messages.
//! - `zygote`: the process that shims are copies of.
//! - `setup`: from a fresh process to a shim in its pod's namespaces. - `shell`: the loop that does what the core says,
//!   with `join` (exec), `checks` (probes), `streams` (output, attach, port-forward) and `server` (its clients).

mod checks;
pub mod client;
mod container;
pub mod core;
mod event;
mod join;
mod message;
mod server;
mod setup;
mod shell;
mod streams;
mod wire;
mod zygote;

use std::os::fd::OwnedFd;

use crate::launch::Empty;

pub use client::{ConnectId, Event, ExecId, PodFds, Shim, last_status};
pub use wire::{
    Condition, ContainerState, ContainerStatus, ExecSpec, Exit, PodPhase, PodStatus, Remark,
};

pub use zygote::Zygote;

/// The shim role of the binary: `quelead shim <pod id>`, or what [`Zygote`] copies to shims; started by [`Shim::spawn`] and
/// [`Zygote`] only. Returns the process's exit code.
///
/// Call it before anything else in `main`: what runs before it is memory that each pod pays for.
#[must_use]
pub fn main() -> i32 {
    let run = setup::process().and_then(|socket| {
        if !zygote::is_zygote() {
            return Ok(shim(socket, None));
        }
        // One that cannot be made here is tried again by each shim, which can say why not.
        let empty = setup::empty_namespace().ok();
        zygote::run(&socket, empty, |socket, empty| {
            // The zygote's session is not the shim's.
            let _ = rustix::process::setsid();
            shim(socket, empty)
        })
        .map(|()| 0)
    });
    run.unwrap_or_else(|e| say(&e))
}

fn shim(spawner: OwnedFd, empty: Option<Empty>) -> i32 {
    match setup::shim(spawner, empty) {
        Ok(shell) => {
            shell.run();
            0
        }
        Err(e) => say(&e),
    }
}

fn say(e: &crate::Error) -> i32 {
    use std::io::Write as _;
    // Nobody there to read it is no reason to panic.
    let _ = writeln!(std::io::stderr(), "quelea-shim: {e}");
    1
}
