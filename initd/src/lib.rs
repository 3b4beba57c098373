//! Processes: PID 1, pod shims, container launch and isolation.
//!
//! ```text
//!  PID 1 (init) ──▶ agent ──spawn──▶ shim, one per pod ──clone3──▶ container ──▶ mini-init ──▶ program
//!                     │  ▲              │ holds: netns, TUN and user namespace fds, pidfds, log pipes
//!                     └──┴─ shim.sock ──┘ decides: restart, backoff, probes, order of start and stop
//!
//!  a container:  Waiting ─▶ Starting ─▶ Running ─▶ Exited ─▶ Backoff ─▶ Starting ...
//!                                          └─▶ Stopping ─▶ Done
//! ```
//!
//! - [`pod`]: what a pod is, as the shim is told it.
//! - [`shim`]: the shim role, its client, and the pure state machine that supervises a pod.
//! - [`launch`]: how one container comes to be.
//! - [`seccomp`], [`userns`], [`cgroup`]: the parts of its isolation.
//! - [`grants`]: what a node lets pods have besides.
//! - [`log`], [`probe`]: its output and its health.
//! - [`init`]: the PID 1 role.
//!
//! Invariants: a pod outlives the agent that started it; the shim holds no thread and no queue without a
//! bound; between `clone3` and `execve` nothing allocates; every path inside a root file system is resolved
//! by `openat2(RESOLVE_IN_ROOT)`; a container that cannot have the isolation that its spec names either is
//! not started or says so by a [`Condition`](shim::Condition).
//!
//! Not here: images and overlay mounts, addresses and packets, placement. The caller brings a mounted root,
//! a network namespace and a complete spec.

pub mod cgroup;
mod error;
pub mod grants;
pub mod init;
pub mod launch;
pub mod log;
pub mod machine;
pub mod pod;
pub mod probe;
pub mod seccomp;
pub mod shim;
mod sys;
pub mod userns;

pub use error::{Error, Result};
