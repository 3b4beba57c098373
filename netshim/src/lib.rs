//! Packets: pod networks, the encrypted overlay and address management.
//!
//! Every pod has a network namespace with one L3 TUN; every node has one more, `mesh0`, for itself. One thread moves packets between these TUNs and
//! one UDP socket, in the clear between pods of a node and sealed between nodes.
//!
//! ```text
//!   pod netns          data thread (overlay)                              another node
//!   ┌──────┐  vnet_hdr ┌────────────────────────────────────────┐  UDP    ┌─────────┐
//!   │ eth0 │◀─────────▶│ path ─▶ gso split ─▶ session seal ─────┼────────▶│         │
//!   └──────┘  ≤ 64 KiB │  ▲                                     │ SEGMENT │ overlay │
//!   ┌──────┐           │  │                                     │   GRO   │         │
//!   │ mesh0│◀─────────▶│ path ◀─ gso join  ◀─ session open ◀────┼─────────│         │
//!   └──────┘           └────────────────────────────────────────┘         └─────────┘
//!    podnet             ipam says who has which addresses
//! ```
//!
//! | module | is | with IO |
//! |---|---|---|
//! | [`addr`], [`ipam`] | prefixes, who has which, pod addresses | no |
//! | [`path`] | where a packet goes, and what its sender is told | no |
//! | [`session`], [`keys`] | handshakes, keys, replay windows | no |
//! | [`gso`], [`wire`] | large packets, formats | no |
//! | [`podnet`] | namespaces, TUNs, addresses, routes | rtnetlink, ioctl |
//! | [`overlay`] | the data thread | mio |
//!
//! # Invariants, and the tests that hold them
//! - A packet is passed on only with a source that its sender owns: `path::tests::forwarded_sources_are_true`, `any_peer_bytes`,
//!   `a_pod_cannot_send_as_another`.
//! - What came from a peer is never sent to a peer: `what_came_from_a_peer_is_not_forwarded_again`.
//! - Who does not know the flock's key gets no answer: `another_flock_hears_nothing`, `a_wrong_flock_key_gets_silence`.
//! - A data packet is accepted once, and only authentic ones move the window: `data_is_accepted_once`, `replay::tests::as_a_set`.
//! - Splitting and joining large packets are inverse, whatever a peer claims: `split_and_join_are_inverse`, `a_peers_metadata_is_not_believed`.
//! - Two nodes do not keep one IPv4 prefix: `claims_converge`.
//! - No call changes the caller's network namespace: `the_caller_stays_in_its_namespace`.
//! - No queue, table or rate is without bound: the `*_MAX` constants say what happens when they are met.
//!
//! # Deliberately not here
//! Ethernet and ARP; per-pod gossip (only node prefixes are known); fragmenting the outer packet; virtual service addresses, DNS, policy and path
//! MTU discovery, which later work adds; logging (the caller reads [`Stats`]).

pub mod addr;
mod counters;
mod error;
#[doc(hidden)]
pub mod fuzz;
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

pub use counters::{Count, DropReason, Stats};
pub use error::Error;
pub use overlay::Overlay;

/// What the overlay adds to every packet, in bytes, outer IPv6 and UDP headers included; the pods' MTU is the underlay's less 100.
pub const OVERHEAD_MAX_BYTES: u16 = 84;
