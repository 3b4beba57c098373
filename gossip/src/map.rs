//! The replicated map.

mod record;

pub use record::{Record, Rev, check_key};
