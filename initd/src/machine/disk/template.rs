//! A new ext4 without mkfs on the node: a template of 128 MiB, written to the blank disk, then grown in place.
//!
//! `template.bin` (and `template-quota.bin`, with project quotas) holds what `mkfs.ext4` of e2fsprogs 1.47 makes, as runs of bytes that are not zero; it is made again
//! by `cargo run -p initd --example state-template`. Everything else up to its last used block is zeros.
//!
//! ```text
//! used blocks u32 ┊ { offset u32 ┊ length u16 ┊ bytes (length) }... or { offset ┊ length | 0x8000 ┊ one byte }...
//! ```

use super::ext4;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

const TEMPLATE: &[u8] = include_bytes!("template.bin");
const WITH_QUOTA: &[u8] = include_bytes!("template-quota.bin");
const BLOCK_BYTES: u64 = 4096;
/// Written last, in one piece: until then the disk is still blank to whoever looks.
const HEAD_BYTES: usize = 1 << 20;
/// A run of one repeated byte.
const FILL: u16 = 0x8000;

/// Writes a template with an identity of its own and makes it durable. One with quotas can only be mounted by a kernel that knows
/// them.
///
/// # Errors
/// Of writing. A disk that was only partly written is still blank at its ends, unless the last write was cut.
pub(super) fn write(
    device: &File,
    quota: bool,
    uuid: [u8; 16],
    hash_seed: [u8; 16],
) -> io::Result<()> {
    let bad =
        || io::Error::new(io::ErrorKind::InvalidData, "the template of a state disk is damaged");
    let template = if quota { WITH_QUOTA } else { TEMPLATE };
    let (blocks, mut runs) = template.split_first_chunk().ok_or_else(bad)?;
    let used = u64::from(u32::from_le_bytes(*blocks)) * BLOCK_BYTES;
    let zeros = vec![0; HEAD_BYTES];
    let mut at = HEAD_BYTES as u64;
    while at < used {
        let len = usize::try_from(used - at).unwrap_or(HEAD_BYTES).min(HEAD_BYTES);
        device.write_all_at(zeros.get(..len).unwrap_or_default(), at)?;
        at += len as u64;
    }
    let mut head = zeros;
    while !runs.is_empty() {
        let (run, rest) = next(runs).ok_or_else(bad)?;
        runs = rest;
        let at = usize::try_from(run.offset).map_err(|_| bad())?;
        match head.get_mut(at..at + run.bytes.len()) {
            Some(place) => place.copy_from_slice(&run.bytes),
            None => device.write_all_at(&run.bytes, u64::from(run.offset))?,
        }
    }
    let superblock = head.get_mut(ext4::OFFSET..ext4::OFFSET + ext4::BYTES).ok_or_else(bad)?;
    if !ext4::rename(superblock, uuid, hash_seed) {
        return Err(bad());
    }
    device.sync_all()?;
    device.write_all_at(&head, 0)?;
    device.sync_all()
}

struct Run {
    offset: u32,
    bytes: Vec<u8>,
}

fn next(runs: &[u8]) -> Option<(Run, &[u8])> {
    let (offset, rest) = runs.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let len = u16::from_le_bytes(*len);
    let count = usize::from(len & !FILL);
    let (bytes, rest) = if len & FILL == 0 {
        let (bytes, rest) = rest.split_at_checked(count)?;
        (bytes.to_vec(), rest)
    } else {
        let (byte, rest) = rest.split_first()?;
        (vec![*byte; count], rest)
    };
    Some((Run { offset: u32::from_le_bytes(*offset), bytes }, rest))
}
