//! Files: OCI layers kept as verified tars, EROFS indexes, overlay mounts.

mod digest;
mod error;
mod import;
mod mount;
pub mod oci;
mod pack;
mod store;
mod tarfmt;

pub use digest::Digest;
pub use error::{Error, Result};
pub use import::Progress;
pub use mount::{Backing, Mounts, Rootfs, Swept, Upper};
pub use pack::{PackOptions, Packed, pack};
pub use store::{BlobKind, BlobRef, GcReport, Image, ImageRecord, Ingest, LayerRecord, Pin, Store};
pub use tarfmt::TarFault;

/// Length of a piece: the unit in which a layer is verified while it arrives.
pub const PIECE_BYTES: u64 = 512 << 10;
