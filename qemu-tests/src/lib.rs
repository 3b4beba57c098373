//! What proves Quelea on a real kernel: QEMU clusters.
//!
//! ```text
//!  scenario ─▶ Cluster ─┬▶ Vm  = QEMU process + serial lines with times + QMP + control channel into the guest
//!                       ├▶ Vm
//!                       └▶ Fabric = a switch in this process (cut, one_way, loss, delay, heal, DHCP, pcap)
//! ```
//!
//! Invariants: no root and no network device of the host; TCG only, so that it runs where CI runs; one cluster at a
//! time; deadlines are written for an idle machine and stretched by [`pace`]; a test that fails keeps its directory
//! (serial logs, capture, seed), one that passes leaves nothing.
//!
//! Refused: mocks of the kernel. What needs none is tested beside the code.

pub mod cluster;
pub mod ctl;
pub mod disk;
pub mod env;
pub mod fabric;
pub mod figures;
pub mod firmware;
pub mod pace;
pub mod qmp;
pub mod scenario;
mod sys;
pub mod vm;
pub mod wire;

pub use cluster::{Cluster, Machine};
pub use disk::Disk;
pub use env::{Env, Options};
