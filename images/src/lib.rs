//! What a machine boots: kernel, initramfs, iPXE script and UKI.
//!
//! ```text
//! linux-image-6.12-* ─apt, dpkg-deb─▶ Kernel ─.modinfo─▶ Closure ─┐
//!                                       │                         ├─▶ Initramfs ─▶ vmlinuz, initramfs.cpio, boot.ipxe
//! quelead (static) ─────────────────────┼─────────────────────────┘
//! /etc/quelea of one node ──────────────┴─▶ a second, small cpio
//! ```
//!
//! Invariants:
//! - The same inputs give the same bytes: entries sorted, no times, no owners, no inode numbers of the build machine.
//! - An image that lacks something a module in it depends on is not written.
//! - Module files are copied as shipped (`.ko.xz`), and not compressed again; the kernel decompresses them.
//! - The bytes of a node's configuration pass through unread.
//!
//! Refused: kernels that are not from a Debian package, modules that are not `.ko.xz`, and firmware blobs (they are
//! not in Debian's kernel package; a NIC that needs one is named by the kernel on the console).

pub mod cpio;
mod error;
pub mod image;
pub mod kernel;
pub mod modinfo;
pub mod modules;
pub mod set;
pub mod vmlinux;

pub use error::{Error, Result};
pub use image::{Extra, Initramfs, Product, node_archive, node_archive_of_dir};
pub use kernel::{Flavour, Kernel};
pub use set::Set;
