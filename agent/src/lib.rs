//! `quelead`: what a machine runs. It wires gossip, sched, initd, imagefs and netshim, and serves the API.
//!
//! ```text
//!   api thread (axum, TLS, unix socket) ──calls──▶ ┌───────────── core thread (mio) ─────────────┐
//!   shims' sockets, gossip's UDP socket ─────────▶ │ gossip ⇄ sched ⇄ pods, ipam: pure cores      │
//!   worker (mounts, namespaces, shims) ◀──jobs──── │ node: carries outputs to where they are input│
//!   fetch (blobs from peers)           ◀─orders─── └──────────────────────────────────────────────┘
//!   data thread (netshim): pods' TUNs ⇄ encrypted UDP
//! ```
//!
//! Invariants: the core thread never blocks on disk, network or a child, but for the gossip log's fsync; a pod survives any
//! death of the agent, which finds it again by its directory and its shim's socket; nothing runs that no operator
//! signed; an image's bytes are used only after they hashed to the digest in the signed spec.
//!
//! Not here: decisions. What should run where is [`sched`]'s, what is known is [`gossip`]'s, what a process may do is
//! [`initd`]'s.

pub mod adopt;
pub mod api;
pub mod backtrace;
pub mod config;
pub mod disk;
mod error;
pub mod events;
pub mod fall;
pub mod fetch;
pub mod flock;
pub mod found;
pub mod grants;
pub mod hex;
pub mod host;
pub mod images;
pub mod keys;
pub mod life;
pub mod node;
pub mod peers;
pub mod plan;
pub mod pods;
pub mod reserve;
pub mod runtime;
pub mod stranger;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trust;
pub mod upgrade;
pub mod worker;

pub use error::Error;
