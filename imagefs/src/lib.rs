//! Files: OCI layers kept as verified tars, EROFS indexes, overlay mounts.
//!
//! A layer is kept as its *uncompressed tar*, whose SHA-256 is the OCI `diff_id`, and a small EROFS index built here
//! beside it, for which the tar is the data device. Nothing is unpacked. The bytes that are mounted are the bytes that
//! are served to peers, and every node can check them against the image's own digests.
//!
//! ```text
//!                 import (OCI layout, docker save)      ingest (a peer's tar, by diff_id)
//!                          │ gunzip, unzstd                      │ pieces checked as they arrive
//!                          ▼                                     ▼
//!            one pass: SHA-256 · fs-verity pieces · tar members → tree → EROFS index
//!                          │ diff_id right?  no: nothing is kept
//!                          ▼
//!   absent ──▶ ingest/n ──fsync, rename──▶ layers/<diff_id> ──┐
//!   absent ──▶ ingest/n ──fsync, rename──▶ blobs/<digest> ────┼─ link: refs/<name> last ─▶ image
//!                                                             │
//!   image ──remove──▶ unnamed ──gc──▶ trash ──▶ absent        └─▶ Mounts: mounted once, counted
//!                                                                   overlay(layers, fresh upper) at <ctr>/rootfs
//! ```
//!
//! # Invariants
//!
//! - A reference names an image all of whose blobs are here, durable and verified (`store/tests.rs`: a power cut and an
//!   error at every disk operation).
//! - An index is a function of the tar alone and is always built here: one received from elsewhere is never mounted.
//! - Overlay's own marks (`trusted.overlay.*`) in a mounted layer come from this crate, never from an image.
//! - The stack of layers looks as if the tars had been extracted over each other (`tests/it/oracle.rs`: against GNU tar,
//!   Python and a naive model).
//! - No path of an image is resolved outside its own root: layers are not extracted, and the assembled root is only
//!   touched through openat2(RESOLVE_IN_ROOT).
//! - A layer is mounted at most once per [`Mounts`]; the last holder unmounts it.
//!
//! # Refusals
//!
//! Tars that two readers could see differently, paths with `..`, members below a file or a symlink, hard links out of the
//! layer, sparse files, raw overlay whiteouts: see [`TarFault`]. Unknown media types, images of another platform, more
//! than 127 layers, bombs by ratio, size or free space ([`Limits`]). Layers that write through a lower layer's symlink are
//! refused when the image is assembled.
//!
//! # Deliberately not here
//!
//! Registries and peers' transport (bytes come in through [`Ingest::write`] and go out through [`Store::open_blob`]), lazy
//! loading, fs-verity enforcement by the kernel. An upper on disk has no bound here where its file system has no project quotas: who
//! gives the directory measures it (`agent::disk`).

mod decompress;
mod digest;
mod disk;
mod erofs;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod import;
mod mount;
pub mod oci;
mod pack;
pub mod quota;
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
