//! Knowledge: who is in the flock, and one map that every node holds.
//!
//! ```text
//!             datagrams                                      events: members, records, messages
//!   peers ◀──────────────▶ frame ◀──▶ swim ◀──▶ map ──────────────────────────▶ the layers above
//!             (driver)      │          │          │                             put, delete, unicast
//!                        authentic,  who lives  what is known ──▶ persist ──▶ disk (driver)
//!                        fresh, ours
//! ```
//!
//! [`Gossip`] is the core: `step(now, input) -> outputs`, without socket, file, clock, thread or random source of its own,
//! so that one process can run a thousand nodes on virtual time from one seed. [`driver::Driver`] is the shell: a UDP
//! socket and a log; it decides nothing.
//!
//! A member's life, as others see it:
//!
//! ```text
//!   Alive ──probe failed──▶ Suspect ──own probe failed too, time over──▶ Dead ──forget──▶ (gone)
//!     ▲ ▲                      │                                          │                 │
//!     │ └──refuted: incarnation + 1───────────────────────────────────────┘                 │
//!     └──restarted: generation + 1 (also from Left) ────────────────────────────────────────┘
//! ```
//!
//! Invariants, and the tests that hold them:
//! - What is not sealed with a key of the ring, for this boot of this node, and for the first time, changes nothing and is
//!   not answered (`tests/hostile.rs`). One exception: a recorded *greeting* replayed to a node that has restarted since
//!   gets one answer, not longer than itself, sealed for the one who greeted.
//! - Any order and repetition of the same news ends in the same view and the same map (`swim::tests`, `map::tests`).
//! - Nobody is declared dead by a node whose own probe reached it, or because it was told so once; at 10 % loss, with a
//!   one-way cut, or after a stall of its own, no living member dies (`tests/faults.rs`).
//! - A nonce is never used twice: the boot id is drawn per boot, the counter never wraps, and the sender falls silent first.
//! - What [`Event::Durable`] names is on disk, the event loop never waits for a disk, and damage on disk is never mistaken
//!   for emptiness (`disk::tests`, `tests/driver.rs`).
//! - Every table, queue and packet has a bound; what exceeds it is dropped, counted, and found again by comparison.
//!
//! Refusals: no leader, no quorum, no transactions over several keys, no reading one's own writes at another node; no
//! trust in a writer's name beyond the flock's key (what matters is signed above); no fragmentation by IP; no name
//! resolution; no answer to strangers.

mod api;
mod config;
mod core;
mod disk;
pub mod driver;
mod error;
pub mod frame;
#[doc(hidden)]
pub mod fuzz;
pub mod map;
mod member;
mod message;
mod outbox;
mod path;
#[doc(hidden)]
pub mod rig;
mod swim;
mod sys;
mod timers;
mod wire;

pub use api::{Event, Expect, Input, Output, Persist};
pub use config::{
    BODY_MAX_BYTES, Config, KEY_MAX_BYTES, Limits, MEMBERS_MAX, NAME_MAX_BYTES, PACKET_MAX_BYTES,
    PACKET_SAFE_BYTES, Profile, SEEDS_MAX, Timing, UNICAST_MAX_BYTES,
};
pub use core::{Gossip, Restored, Stats};
pub use error::Error;
pub use frame::{KeyRing, SecretKey};
pub use map::{Record, Rev};
pub use member::{Identity, Member, MemberInfo, Nid, State, check_name};
