//! The seeded simulator: whole flocks on virtual time in one process.
//!
//! A [`world::World`] holds N nodes, each the real gossip and scheduling cores wired as the agent wires
//! them ([`node`]), over a simulated kernel that runs pods, a disk, and a network ([`net`]). One seed draws
//! everything: size, faults, what operators submit, every delay. Equal seeds give equal traces.
//!
//! ```text
//!  safety phase: faults and operators act        liveness phase: all healed        rest
//!  invariants hold at every step                 the flock must come together      nothing may start
//! ```
//!
//! Invariants ([`check`]):
//! - what runs on a node never exceeds what it has; `unique = "host"` holds;
//! - `n/<node>` and `a/<node>/…` are written by that node alone, deleted by others only once forgotten;
//! - a side with at most half of the roster starts no service pod;
//! - a member's (generation, incarnation) never goes back at an observer;
//! - a spec that most nodes held is never lost;
//! - after the heal: one member view, one map, every slot exactly one ready pod of the newest template and
//!   one claim, every daemon on every node that it wants, nothing else; and then no start.
//!
//! A set of runs in which a fault or a reaction named in [`marks::REQUIRED`] never happened has failed: it
//! did not test what it says.

pub mod check;
mod faults;
pub mod flock;
pub mod kernel;
pub mod marks;
pub mod net;
pub mod node;
pub mod operator;
pub mod options;
mod queue;
pub mod report;
pub mod world;

pub use options::Options;
pub use report::{Report, Summary};

/// Seeds that once found a bug, with `--nodes 3..24 --seconds 90`: run for ever.
pub const REGRESSIONS: [u64; 12] = [8, 22, 50, 60, 82, 88, 97, 185, 310, 1212, 1245, 1276];

/// Runs one seed.
#[must_use]
pub fn run(options: &Options) -> Report {
    world::World::new(options.clone()).run()
}
