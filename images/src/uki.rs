//! Unified kernel images (<https://uapi-group.org/specifications/specs/unified_kernel_image/>): systemd's EFI stub with
//! kernel, arguments and initramfs as sections. What UEFI loads over HTTP, or from a disk, without a boot loader.

use crate::{Result, pe};
use bytes::Bytes;

/// Longest kernel command line (x86 `COMMAND_LINE_SIZE`, with its NUL). Longer ones are refused.
pub const CMDLINE_BYTES_MAX: usize = 2047;

/// What goes into an image.
#[derive(Debug, Clone)]
pub struct Parts {
    /// systemd's `linuxx64.efi.stub`.
    pub stub: Bytes,
    /// `uname -r` of the kernel.
    pub release: String,
    /// Kernel arguments.
    pub cmdline: String,
    /// The bzImage.
    pub linux: Bytes,
    /// Archives the kernel unpacks one over the other; each but the last must be padded to four bytes, as
    /// [`crate::cpio::Archive::write`] does.
    pub initrds: Vec<Bytes>,
}

/// An image as a list of byte strings, so that images for many machines share kernel and initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uki {
    /// The file, in order.
    pub segments: Vec<Bytes>,
}

impl Uki {
    /// Lays the parts out.
    ///
    /// # Errors
    /// [`crate::Error::Pe`] when the stub cannot take the sections, or the arguments are too long.
    pub fn new(parts: &Parts) -> Result<Self> {
        if parts.cmdline.len() > CMDLINE_BYTES_MAX || parts.cmdline.contains(['\0', '\n']) {
            return Err(crate::Error::Pe {
                what: "the command line is too long or has a NUL or a newline",
            });
        }
        let osrel = format!(
            "ID=quelea\nNAME=Quelea\nPRETTY_NAME=\"Quelea {} (Linux {})\"\nVERSION_ID={}\n",
            env!("CARGO_PKG_VERSION"),
            parts.release,
            env!("CARGO_PKG_VERSION")
        );
        let sections = [
            (".osrel", vec![Bytes::from(osrel)]),
            (".cmdline", vec![Bytes::from(parts.cmdline.clone())]),
            (".uname", vec![Bytes::from(parts.release.clone())]),
            (".linux", vec![parts.linux.clone()]),
            (".initrd", parts.initrds.clone()),
        ];
        let sizes = sections.each_ref().map(|(name, bytes)| (*name, total(bytes)));
        let layout = pe::append(&parts.stub, &sizes)?;
        let mut segments = vec![Bytes::from(layout.head)];
        for ((_, bytes), padding) in sections.into_iter().zip(layout.padding) {
            segments.extend(bytes);
            segments.push(Bytes::from(vec![0; padding]));
        }
        segments.retain(|segment| !segment.is_empty());
        Ok(Self { segments })
    }

    /// Size of the file.
    #[must_use]
    pub fn len(&self) -> u64 {
        total(&self.segments)
    }

    /// Whether it has no bytes; it always has some.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.segments.concat()
    }
}

fn total(bytes: &[Bytes]) -> u64 {
    bytes.iter().map(|b| b.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts() -> Parts {
        Parts {
            stub: crate::pe::tests::program().into(),
            release: "6.12".into(),
            cmdline: "panic=30".into(),
            linux: Bytes::from_static(b"kernel"),
            initrds: vec![Bytes::from_static(b"070701aa"), Bytes::from_static(b"070701bb")],
        }
    }

    #[test]
    fn the_same_parts_give_the_same_bytes_and_archives_touch() {
        let (one, two) = (Uki::new(&parts()).unwrap(), Uki::new(&parts()).unwrap());
        let bytes = one.to_bytes();
        assert_eq!(bytes, two.to_bytes());
        assert_eq!(bytes.len() as u64, one.len());
        assert!(bytes.windows(16).any(|w| w == b"070701aa070701bb"));
        assert_eq!(bytes.len() % 512, 0);
    }

    #[test]
    fn arguments_that_do_not_fit_are_refused() {
        for cmdline in ["a".repeat(CMDLINE_BYTES_MAX + 1), "a\nb".into()] {
            assert!(Uki::new(&Parts { cmdline, ..parts() }).is_err());
        }
    }
}
