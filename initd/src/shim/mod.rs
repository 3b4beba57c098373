//! One shim per pod: launches its containers, watches, logs, probes and restarts them, and outlives the agent.

pub mod client;
mod wire;

pub use client::{Event, ExecId, PodFds, Shim};
pub use wire::{Condition, ContainerState, ContainerStatus, ExecSpec, Exit, PodPhase, PodStatus};

/// The shim role of the binary: `quelead shim <pod id>`, spawned by [`Shim::spawn`] only. Returns the
/// process's exit code.
///
/// Call it before anything else in `main`: what runs before it is memory that each pod pays for.
#[must_use]
pub fn main() -> i32 {
    1
}
