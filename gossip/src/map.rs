//! The replicated map: last writer wins, by counter.
//!
//! ```text
//!   put ──▶ record ──push──▶ 3 peers, at once ──▶ 3 more each …      news, whole
//!              │──advert──▶ 3 peers every 200 ms, a few rounds       version only; who lacks it pulls
//!   ping carries root ──differs──▶ 256 bucket hashes ──▶ listings ──▶ pulls    what rumours missed
//! ```
//!
//! Every transfer but the first push is pulled by the one who lacks the record, so that each node bounds what comes in.

mod record;
mod replica;
mod store;

pub use record::{Record, Rev, check_key};
pub(crate) use replica::{MapCtx, Replica};

/// Longest encoded record: body, key, writer and numbers.
pub(crate) const ENCODED_MAX_BYTES: usize = crate::config::BODY_MAX_BYTES + 512;

#[cfg(test)]
mod tests;
