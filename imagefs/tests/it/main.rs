//! imagefs through its public API, on a real kernel. Tests that mount do so in a mount namespace of their own.

// Helpers outside #[test] functions unwrap as well: a panic is the report.
#![allow(clippy::unwrap_used)]

mod formats;
mod kit;
mod mounts;
mod oracle;
mod round_trip;
mod stores;
