//! Files: OCI layers kept as verified tars, EROFS indexes, overlay mounts.

mod decompress;
mod digest;
mod disk;
mod erofs;
mod error;
mod import;
mod mount;
pub mod oci;
mod pack;
mod record;
mod store;
mod sys;
mod tarfmt;
mod tree;
mod verity;

pub use digest::Digest;
pub use error::{Error, Result};
pub use import::Progress;
pub use mount::{Backing, Mounts, Rootfs, Swept, Upper};
pub use pack::{PackOptions, Packed, pack};
pub use record::{BlobKind, BlobRef, Image, ImageRecord, LayerRecord, reference};
pub use store::{GcReport, Ingest, Limits, Pin, Store};
pub use tarfmt::TarFault;

/// Length of a piece: the unit in which a layer is verified while it arrives.
pub const PIECE_BYTES: u64 = 512 << 10;
