//! `quelea dev`: a flock of nodes on this machine, for development.
//!
//! ```text
//!  supervisor (its own network namespace: a bridge)
//!    ├─ node thread n1 ── PID + mount + network + IPC + UTS namespace ── quelead init ── agent ── shims
//!    ├─ node thread n2 ── ...                         eth0 ─ veth ─ bridge
//!    └─ control socket: kill, start, stop
//! ```
//!
//! A node is a PID namespace: killing its PID 1 is a power cut. Everything a node makes (mounts, links, processes, addresses)
//! lives in its namespaces and dies with them; only directories and cgroups remain, which the supervisor removes, or the next
//! one if this one was killed. If the supervisor dies, the kernel kills the nodes (`PR_SET_PDEATHSIG`).

mod control;
mod node;
mod preflight;
pub mod registry;
mod supervisor;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Dev, DevAction};

/// Runs `quelea dev`.
///
/// # Errors
/// What the machine lacks, or what failed, and what to do.
pub fn run(args: &Dev) -> Result<ExitCode> {
    match &args.action {
        Some(DevAction::Stop) => supervisor::stop()?,
        Some(DevAction::Kill { node }) => control::ask(&control::Request::Kill(node.clone()))?,
        Some(DevAction::Start { node }) => control::ask(&control::Request::Start(node.clone()))?,
        None => {
            preflight::check()?;
            if args.with_parent {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?;
            }
            let plan = supervisor::Plan {
                nodes: args.nodes,
                racks: args.racks.unwrap_or(args.nodes.min(3)).min(args.nodes),
                // The supervisor works elsewhere.
                grants: args.grants.as_deref().map(std::path::absolute).transpose()?,
            };
            if args.supervise {
                supervisor::supervise(&plan, true)?;
            } else if args.detach {
                supervisor::detach(&plan)?;
            } else {
                supervisor::supervise(&plan, false)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
