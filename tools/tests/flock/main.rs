//! The thin path on real input, through `quelea` as a user types it: real nodes in namespaces, real mounts, real packets.
//!
//! These tests need root, `ip`, and the binaries `quelead` and `hello` beside `quelea`; `cargo nextest run --workspace`
//! builds them all. Each test has a dev flock of its own name.

#![allow(clippy::unwrap_used, reason = "a failure is a failed test")]

mod bad;
mod bad_input;
mod containers;
mod falls;
mod images;
mod keys;
mod life;
mod machines;
mod room;
mod sessions;
mod support;
mod trust;
