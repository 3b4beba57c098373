//! Packets: pod networks, the encrypted overlay and address management.

pub mod addr;
mod counters;
mod error;
pub mod gso;
pub mod ipam;
pub mod keys;
mod netlink;
pub mod overlay;
pub mod path;
pub mod podnet;
pub mod session;
mod sys;
pub mod wire;

pub use counters::{Count, Drop, Stats};
pub use error::Error;
pub use overlay::Overlay;

/// What the overlay adds to every packet, in bytes, outer IPv6 and UDP headers included; the pods' MTU is the underlay's less 100.
pub const OVERHEAD_MAX_BYTES: u16 = 84;
