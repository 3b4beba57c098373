//! What a machine boots: kernel, initramfs, iPXE script and UKI.
//!
//! ```text
//! linux-image-6.12-* ─apt, dpkg-deb─▶ Kernel ─.modinfo─▶ Closure ─┐
//!                                       │                         ├─▶ Initramfs ─▶ vmlinuz, initramfs.cpio, boot.ipxe
//! quelead (static) ─────────────────────┼─────────────────────────┘
//! /etc/quelea of one node ──────────────┴─▶ a second, small cpio
//!
//! systemd-boot-efi, ipxe ─▶ stub, iPXE ─▶ BootDir = all of it, in one directory ─▶ serve: DHCP, TFTP, HTTP
//! ```
//!
//! Invariants:
//! - The same inputs give the same bytes: entries sorted, no times, no owners, no inode numbers of the build machine.
//! - An image that lacks something a module in it depends on is not written.
//! - Module files are those of the package: as shipped (`.ko.xz`) for racks; for virtual machines unpacked and without
//!   signature, where all of it is compressed at once.
//! - The bytes of a node's configuration pass through unread.
//!
//! Refused: kernels that are not from a Debian package, modules that are not `.ko.xz`, and firmware blobs (they are
//! not in Debian's kernel package; a NIC that needs one is named by the kernel on the console).

pub mod bootdir;
#[cfg(feature = "build")]
pub mod build;
pub mod cpio;
#[cfg(feature = "build")]
pub mod deb;
mod error;
#[cfg(feature = "build")]
pub mod image;
pub mod ipxe;
#[cfg(feature = "build")]
pub mod kernel;
#[cfg(feature = "build")]
pub mod modinfo;
#[cfg(feature = "build")]
pub mod modules;
pub mod node;
pub mod pe;
#[cfg(feature = "serve")]
pub mod serve;
#[cfg(feature = "build")]
pub mod set;
pub mod uki;
#[cfg(feature = "build")]
pub mod vmlinux;

pub use bootdir::BootDir;
#[cfg(feature = "build")]
pub use build::{Build, Built};
pub use error::{Error, Result};
#[cfg(feature = "build")]
pub use image::{Extra, Initramfs, Product};
#[cfg(feature = "build")]
pub use kernel::{Flavour, Kernel};
pub use node::{node_archive, node_archive_of_dir};
#[cfg(feature = "build")]
pub use set::Set;
pub use uki::Uki;
