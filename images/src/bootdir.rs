//! A boot directory: everything that a set of machines boots from, with a manifest that names and hashes it.
//!
//! ```text
//! vmlinuz initramfs.cpio      kernel and initramfs
//! uki.efi                     both in one, for UEFI: HTTP boot, a disk, a USB stick
//! boot.ipxe                   for iPXE and any web server
//! linuxx64.efi.stub           what uki.efi is made of; images for one machine are made with it
//! undionly.kpxe snponly.efi   iPXE for BIOS and for UEFI
//! boot.toml                   set, kernel release, arguments, sha256 of the files; written last
//! ```

use crate::{Error, Result, uki};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt::Write as _, path::Path};

/// Largest file of a boot directory that is read. Larger ones are refused.
pub const FILE_BYTES_MAX: u64 = 256 << 20;

/// The manifest's name.
pub const MANIFEST: &str = "boot.toml";
/// Files of a boot directory that are served.
pub const FILES: [&str; 5] =
    ["vmlinuz", "initramfs.cpio", "linuxx64.efi.stub", "undionly.kpxe", "snponly.efi"];

/// `boot.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// `qemu` or `rack`.
    pub set: String,
    /// `uname -r` of the kernel.
    pub release: String,
    /// Kernel arguments of every machine.
    pub cmdline: String,
    /// Name of each file, and its sha256 in hex.
    pub sha256: BTreeMap<String, String>,
}

/// A boot directory in memory, its bytes checked against its manifest.
#[derive(Debug, Clone)]
pub struct BootDir {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The bzImage.
    pub vmlinuz: Bytes,
    /// The initramfs.
    pub initramfs: Bytes,
    /// systemd's EFI stub.
    pub stub: Bytes,
    /// iPXE for BIOS.
    pub undionly: Bytes,
    /// iPXE for UEFI.
    pub snponly: Bytes,
}

impl BootDir {
    /// Reads and checks a directory.
    ///
    /// # Errors
    /// [`Error::BootDir`] when there is no manifest, or a file is missing, too large or not the one it was.
    pub fn open(dir: &Path) -> Result<Self> {
        let bad = |what: String| Error::BootDir { path: dir.into(), what };
        let text = std::fs::read_to_string(dir.join(MANIFEST))
            .map_err(|error| bad(format!("no boot directory: {MANIFEST}: {error}")))?;
        let manifest: Manifest =
            toml::from_str(&text).map_err(|error| bad(format!("{MANIFEST}: {error}")))?;
        let mut files =
            FILES.map(|name| read(dir, name, &manifest).map_err(|e| bad(format!("{name}: {e}"))));
        let mut next = |index: usize| std::mem::replace(&mut files[index], Ok(Bytes::new()));
        Ok(Self {
            vmlinuz: next(0)?,
            initramfs: next(1)?,
            stub: next(2)?,
            undionly: next(3)?,
            snponly: next(4)?,
            manifest,
        })
    }

    /// The parts of an image for one machine: further arguments, and its own archive.
    #[must_use]
    pub fn parts(&self, cmdline: &str, own: Option<Bytes>) -> uki::Parts {
        uki::Parts {
            stub: self.stub.clone(),
            release: self.manifest.release.clone(),
            cmdline: join(&self.manifest.cmdline, cmdline),
            linux: self.vmlinuz.clone(),
            initrds: [Some(self.initramfs.clone()), own].into_iter().flatten().collect(),
        }
    }
}

/// Two lists of kernel arguments as one.
#[must_use]
pub fn join(one: &str, other: &str) -> String {
    format!("{} {}", one.trim(), other.trim()).trim().to_owned()
}

fn read(dir: &Path, name: &str, manifest: &Manifest) -> std::result::Result<Bytes, String> {
    let path = dir.join(name);
    let size = std::fs::metadata(&path).map_err(|e| e.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("{size} bytes are too many"));
    }
    let bytes = std::fs::read(&path).map_err(|e| e.to_string())?;
    match manifest.sha256.get(name) {
        Some(sum) if *sum == hex(&Sha256::digest(&bytes)) => Ok(bytes.into()),
        Some(_) => Err("is not the file that was built (sha256)".into()),
        None => Err(format!("is not in {MANIFEST}")),
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
