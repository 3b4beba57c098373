//! fs-verity digests (Documentation/filesystems/fsverity.rst) and the piece list.
//!
//! The Merkle tree over a file: SHA-256 of every 4 KiB block, 128 such hashes fill a 4 KiB hash block. So one hash of the
//! tree's second level covers 512 KiB: that is a *piece*, and the list of those hashes is checked against the 32-byte
//! digest in the image record before any data arrives. Without a salt the digest is also what
//! `FS_IOC_ENABLE_VERITY` computes.

use crate::digest::Digest;

const BLOCK: usize = 4096;
const HASHES_PER_BLOCK: usize = BLOCK / 32;

/// Hashes a stream into its piece list.
#[derive(Debug)]
pub(crate) struct Hasher {
    block: Box<[u8; BLOCK]>,
    have: usize,
    /// The leaf hashes of the piece under way, padded with zeros.
    leaves: Box<[u8; BLOCK]>,
    count: usize,
    pieces: Vec<Digest>,
    size: u64,
}

impl Hasher {
    pub(crate) fn new() -> Hasher {
        Hasher {
            block: Box::new([0; BLOCK]),
            have: 0,
            leaves: Box::new([0; BLOCK]),
            count: 0,
            pieces: Vec::new(),
            size: 0,
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        self.size += bytes.len() as u64;
        while !bytes.is_empty() {
            // Whole blocks are hashed where they lie.
            if self.have == 0
                && let Some((block, rest)) = bytes.split_first_chunk::<BLOCK>()
            {
                self.leaf(Digest::of(block).0);
                bytes = rest;
                continue;
            }
            let used = (BLOCK - self.have).min(bytes.len());
            let (now, rest) = bytes.split_at(used);
            if let Some(to) = self.block.get_mut(self.have..self.have + used) {
                to.copy_from_slice(now);
            }
            self.have += used;
            bytes = rest;
            if self.have == BLOCK {
                self.flush_block();
            }
        }
    }

    fn flush_block(&mut self) {
        self.block.iter_mut().skip(self.have).for_each(|b| *b = 0);
        self.have = 0;
        self.leaf(Digest::of(&self.block[..]).0);
    }

    fn leaf(&mut self, hash: [u8; 32]) {
        let at = self.count * 32;
        if let Some(to) = self.leaves.get_mut(at..at + 32) {
            to.copy_from_slice(&hash);
        }
        self.count += 1;
        if self.count == HASHES_PER_BLOCK {
            self.flush_piece();
        }
    }

    fn flush_piece(&mut self) {
        self.pieces.push(Digest::of(&self.leaves[..]));
        self.leaves.fill(0);
        self.count = 0;
    }

    /// Pieces finished so far.
    pub(crate) fn pieces(&self) -> &[Digest] {
        &self.pieces
    }

    /// The piece list. The only piece of a file of at most one block is that block's hash.
    pub(crate) fn finish(mut self) -> Vec<Digest> {
        if self.have > 0 {
            self.flush_block();
        }
        if self.pieces.is_empty() && self.count == 1 {
            let (leaf, _) = self.leaves.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
            return vec![Digest(*leaf)];
        }
        if self.count > 0 {
            self.flush_piece();
        }
        self.pieces
    }
}

/// The fs-verity digest of a file of this size with these pieces. Pure: a received piece list is checked with it.
pub(crate) fn digest(size: u64, pieces: &[Digest]) -> Digest {
    let mut level: Vec<[u8; 32]> = pieces.iter().map(|d| d.0).collect();
    while level.len() > 1 {
        level = level
            .chunks(HASHES_PER_BLOCK)
            .map(|hashes| {
                let mut block = hashes.concat();
                block.resize(BLOCK, 0);
                Digest::of(&block).0
            })
            .collect();
    }
    let root = level.first().copied().unwrap_or([0; 32]);
    // struct fsverity_descriptor: version 1, SHA-256, 2^12-byte blocks, no salt.
    let mut descriptor = Vec::with_capacity(256);
    descriptor.extend_from_slice(&[1, 1, 12, 0, 0, 0, 0, 0]);
    descriptor.extend_from_slice(&size.to_le_bytes());
    descriptor.extend_from_slice(&root);
    descriptor.resize(256, 0);
    Digest::of(&descriptor)
}

/// How many pieces a file of this size has.
pub(crate) fn piece_count(size: u64) -> u64 {
    size.div_ceil(crate::PIECE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(data: &[u8], chunk: usize) -> Digest {
        let mut h = Hasher::new();
        data.chunks(chunk).for_each(|c| h.update(c));
        let pieces = h.finish();
        assert_eq!(pieces.len() as u64, piece_count(data.len() as u64));
        digest(data.len() as u64, &pieces)
    }

    /// The definition, level by level, without pieces.
    fn naive(data: &[u8]) -> Digest {
        let hash_level = |bytes: &[u8]| -> Vec<u8> {
            bytes
                .chunks(4096)
                .flat_map(|c| {
                    let mut c = c.to_vec();
                    c.resize(4096, 0);
                    Digest::of(&c).0
                })
                .collect()
        };
        let mut level = hash_level(data);
        while level.len() > 32 {
            level = hash_level(&level);
        }
        level.resize(32, 0);
        let mut d = vec![1, 1, 12, 0, 0, 0, 0, 0];
        d.extend((data.len() as u64).to_le_bytes());
        d.extend(level);
        d.resize(256, 0);
        Digest::of(&d)
    }

    #[test]
    fn agrees_with_the_definition() {
        let data: Vec<u8> =
            (0..70u32 << 20).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8).collect();
        let piece = crate::PIECE_BYTES as usize;
        for len in [0, 1, 4095, 4096, 4097, 8192, piece - 1, piece, piece + 1, 3 * piece + 5000] {
            assert_eq!(of(&data[..len], 1000), naive(&data[..len]), "{len}");
        }
        // More than 128 pieces: a third level.
        assert_eq!(of(&data, 1 << 20), naive(&data));
    }

    #[test]
    fn known_digest() {
        // `fsverity digest` of an empty file (fsverity-utils' own documentation and tests).
        let empty = "sha256:3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95";
        assert_eq!(of(b"", 1).to_string(), empty);
    }
}
