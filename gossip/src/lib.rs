//! Knowledge: SWIM membership, the replicated map and authenticated frames.

mod api;
mod config;
mod core;
mod disk;
pub mod driver;
mod error;
pub mod frame;
pub mod map;
mod member;
mod message;
mod outbox;
mod swim;
mod sys;
mod timers;
mod wire;

pub use api::{Event, Expect, Input, Output, Persist};
pub use config::{
    BODY_MAX_BYTES, Config, KEY_MAX_BYTES, Limits, MEMBERS_MAX, NAME_MAX_BYTES, PACKET_MAX_BYTES,
    Profile, SEEDS_MAX, Timing, UNICAST_MAX_BYTES,
};
pub use core::{Gossip, Restored, Stats};
pub use error::Error;
pub use frame::{KeyRing, SecretKey};
pub use map::{Record, Rev};
pub use member::{Identity, Member, MemberInfo, Nid, State, check_name};
