//! The uncompressed kernel inside a bzImage: QEMU boots it through PVH without the guest unpacking it, which
//! under emulation saves most of a second.

use crate::{Error, Result};
use std::io::Read;

/// Largest kernel unpacked; Debian's has about 70 MiB. More is refused.
pub const VMLINUX_BYTES_MAX: u64 = 256 << 20;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Unpacks the zstd payload of a bzImage (kernel: `Documentation/arch/x86/boot.rst`, `payload_offset`).
///
/// # Errors
/// [`Error::BzImage`] when the header, the compression or the payload is not what Debian builds.
pub fn extract(bz: &[u8]) -> Result<Vec<u8>> {
    let bad = |what| Error::BzImage { what };
    let u32_at = |at: usize| {
        let bytes = bz.get(at..at + 4).ok_or_else(|| bad("too short"))?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    if bz.get(0x202..0x206) != Some(b"HdrS") {
        return Err(bad("no HdrS signature"));
    }
    let setup_sectors = match bz.get(0x1f1) {
        Some(0) => 4,
        Some(n) => usize::from(*n),
        None => return Err(bad("too short")),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    let payload = start
        .checked_add(u32_at(0x24c)?)
        .and_then(|end| bz.get(start..end))
        .ok_or_else(|| bad("payload is outside the file"))?;
    if payload.get(..4) != Some(&ZSTD_MAGIC) {
        return Err(bad("payload is not zstd"));
    }
    let mut source = payload;
    let decoder = ruzstd::decoding::StreamingDecoder::new(&mut source)
        .map_err(|_| bad("payload has no zstd header"))?;
    let mut elf = Vec::new();
    decoder
        .take(VMLINUX_BYTES_MAX + 1)
        .read_to_end(&mut elf)
        .map_err(|_| bad("payload does not decompress"))?;
    if elf.len() as u64 > VMLINUX_BYTES_MAX {
        return Err(bad("larger than VMLINUX_BYTES_MAX"));
    }
    if elf.get(..4) != Some(b"\x7fELF") {
        return Err(bad("payload is not an ELF file"));
    }
    Ok(elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_images_are_refused() {
        assert!(extract(b"").is_err());
        let mut bz = vec![0u8; 4096];
        assert!(extract(&bz).is_err());
        bz[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(extract(&bz).is_err());
        bz[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        bz[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(extract(&bz).is_err());
        bz[0x248..0x24c].copy_from_slice(&0u32.to_le_bytes());
        bz[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
        bz[2560..2564].copy_from_slice(&ZSTD_MAGIC);
        assert!(extract(&bz).is_err());
    }
}
