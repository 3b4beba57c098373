//! imagefs through its public API, on a real kernel. Tests that mount do so in a mount namespace of their own.

mod kit;
mod mounts;
mod round_trip;
