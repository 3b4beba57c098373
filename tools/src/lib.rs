//! What an operator types: `quelea`.
//!
//! `cli` holds the arguments, `context` finds the node to ask, `cmd` has one file a command, `dev` runs a flock on this
//! machine, `output` prints. Nothing here decides what a cluster does: it asks nodes and signs what it submits.
//!
//! Exit codes: 0 done, 1 failed (the reason on standard error), 2 wrong usage; `exec` ends with its program's code.

pub mod cli;
pub mod cmd;
pub mod context;
pub mod dev;
pub mod output;
pub mod terminal;
