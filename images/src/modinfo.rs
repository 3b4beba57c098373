//! What a kernel module says about itself: the NUL-separated `key=value` list of its `.modinfo` section.

use crate::{Error, Result};
use std::{io::Read, path::Path};

/// Largest module read, uncompressed. The biggest in Debian's 6.12 (amdgpu) has 28 MiB; more is refused.
pub const MODULE_BYTES_MAX: u64 = 64 << 20;

/// The parts of `.modinfo` that decide what must be loaded with a module, and when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules whose symbols it uses (`depends=`); they must be loaded before.
    pub depends: Vec<String>,
    /// Modules that should be there before (`softdep=pre: …`), found by name at run time.
    pub soft_pre: Vec<String>,
    /// Modules that should be there after (`softdep=post: …`).
    pub soft_post: Vec<String>,
    /// Patterns of devices and services it serves (`alias=`).
    pub aliases: Vec<String>,
    /// Firmware files it asks for.
    pub firmware: Vec<String>,
}

impl ModInfo {
    /// Reads a `.ko.xz` file.
    ///
    /// # Errors
    /// As [`unpacked`]; [`Error::BadModule`] when there is no module inside.
    pub fn of_file(path: &Path) -> Result<Self> {
        let elf = unpacked(path)?;
        let none = || Error::BadModule { path: path.into(), what: "no .modinfo in an ELF64" };
        Ok(Self::parse(elf_section(&elf, b".modinfo").ok_or_else(none)?))
    }

    /// Parses the section's bytes. Unknown keys and strings that are not UTF-8 are skipped.
    #[must_use]
    pub fn parse(section: &[u8]) -> Self {
        let mut info = Self::default();
        let strings = section.split(|b| *b == 0).filter_map(|s| std::str::from_utf8(s).ok());
        for (key, value) in strings.filter_map(|s| s.split_once('=')) {
            match key {
                "depends" => info.depends.extend(
                    value.split(',').map(str::trim).filter(|s| !s.is_empty()).map(canonical),
                ),
                "alias" => info.aliases.push(value.to_owned()),
                "firmware" => info.firmware.push(value.to_owned()),
                "softdep" => {
                    let mut post = false;
                    for word in value.split_whitespace() {
                        match word {
                            "pre:" => post = false,
                            "post:" => post = true,
                            _ if post => info.soft_post.push(canonical(word)),
                            _ => info.soft_pre.push(canonical(word)),
                        }
                    }
                }
                _ => {}
            }
        }
        info
    }
}

/// What is in a `.ko.xz` file: the module, with its signature.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadModule`] when it is larger than [`MODULE_BYTES_MAX`].
pub fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
    let mut elf = Vec::new();
    lzma_rust2::XzReader::new(std::io::BufReader::new(file), false)
        .take(MODULE_BYTES_MAX + 1)
        .read_to_end(&mut elf)
        .map_err(Error::io("decompress", path))?;
    if elf.len() as u64 > MODULE_BYTES_MAX {
        let what = "larger than MODULE_BYTES_MAX";
        return Err(Error::BadModule { path: path.into(), what });
    }
    Ok(elf)
}

/// The module without the signature behind it (`include/linux/module_signature.h`); one without any is left as it is.
#[must_use]
pub fn without_signature(mut module: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    // Kinds and lengths in front of it; the last four bytes are the signature's length, big endian.
    const HEAD_BYTES: usize = 12;
    let Some(rest) = module.strip_suffix(MAGIC) else { return module };
    let length = rest.last_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes) as usize);
    let end = length.and_then(|length| rest.len().checked_sub(HEAD_BYTES)?.checked_sub(length));
    module.truncate(end.unwrap_or(module.len()));
    module
}

/// A module's name as the kernel compares it: `-` is `_` (`virtio-rng` is `virtio_rng`).
#[must_use]
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The bytes of one section of a little-endian ELF64 file, `None` when the file is not one or lacks it.
fn elf_section<'a>(elf: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    const SHDR: usize = 64;
    let u16_at = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(elf.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| {
        usize::try_from(u64::from_le_bytes(elf.get(at..at.checked_add(8)?)?.try_into().ok()?)).ok()
    };
    // e_ident: magic, 64-bit, little endian.
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = u64_at(0x28)?;
    let (entry_size, count, names_index) = (u16_at(0x3a)?, u16_at(0x3c)?, u16_at(0x3e)?);
    if usize::from(entry_size) != SHDR {
        return None;
    }
    let header =
        |n: u16| table.checked_add(usize::from(n) * SHDR).filter(|at| at + SHDR <= elf.len());
    let body = |at: usize| {
        let offset = u64_at(at + 0x18)?;
        elf.get(offset..offset.checked_add(u64_at(at + 0x20)?)?)
    };
    let names = body(header(names_index)?)?;
    (0..count).find_map(|n| {
        let at = header(n)?;
        let own = names.get(usize::try_from(u32_at(at)?).ok()?..)?;
        (own.strip_prefix(name)?.first() == Some(&0)).then(|| body(at))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_depends_softdeps_and_aliases() {
        let info = ModInfo::parse(
            b"license=GPL\0alias=fs-erofs\0depends=libcrc32c,net-failover\0softdep=pre: crc32c sha256 post: a-b\0x\0\xff=\xff\0",
        );
        assert_eq!(info.depends, ["libcrc32c", "net_failover"]);
        assert_eq!(info.soft_pre, ["crc32c", "sha256"]);
        assert_eq!(info.soft_post, ["a_b"]);
        assert_eq!(info.aliases, ["fs-erofs"]);
        assert_eq!(ModInfo::parse(b"depends=\0").depends, Vec::<String>::new());
    }

    #[test]
    fn a_signature_is_cut_off_and_only_that() {
        let signed = |length: u32| {
            let mut bytes = b"the module".to_vec();
            bytes.extend([7; 20]);
            bytes.extend([0, 0, 2, 0, 0, 0, 0, 0]);
            bytes.extend(length.to_be_bytes());
            bytes.extend(b"~Module signature appended~\n");
            bytes
        };
        assert_eq!(without_signature(signed(20)), b"the module");
        // A length that the file does not have.
        assert_eq!(without_signature(signed(1000)), signed(1000));
        assert_eq!(without_signature(b"the module".to_vec()), b"the module");
        let magic = b"~Module signature appended~\n".to_vec();
        assert_eq!(without_signature(magic.clone()), magic);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(0u8.., 0..400), elf in proptest::bool::ANY) {
            if elf && bytes.len() > 0x40 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
                bytes[0x3a..0x3c].copy_from_slice(&64u16.to_le_bytes());
            }
            let _ = elf_section(&bytes, b".modinfo");
            let _ = ModInfo::parse(&bytes);
        }
    }
}
