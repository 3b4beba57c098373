//! fs-verity digests (Documentation/filesystems/fsverity.rst) and the piece list.
//!
//! The Merkle tree over a file: SHA-256 of every 4 KiB block, 128 such hashes fill a 4 KiB hash block. So one hash of the
//! tree's second level covers 512 KiB: that is a *piece*, and the list of those hashes is checked against the 32-byte
//! digest in the image record before any data arrives. Without a salt the digest is also what
//! `FS_IOC_ENABLE_VERITY` computes.

use crate::digest::{self, Digest};
use crate::sys::sha::{Extensions, State};

const BLOCK: usize = 4096;
const HASHES_PER_BLOCK: usize = BLOCK / 32;
/// What SHA-256 hashes after a message of one block: a one bit, zeros, and its length in bits (FIPS 180-4 section 5.1.1).
const BLOCK_END: [u8; 64] = {
    let mut end = [0; 64];
    end[0] = 0x80;
    // 32,768 bits, big-endian.
    end[62] = 0x80;
    end
};

/// The digest of a whole stream, which advances by blocks and gives each one's own digest.
#[derive(Debug)]
enum Whole {
    /// Both digests at once.
    Twin { cpu: Extensions, state: State },
    /// One after the other.
    Ring(digest::Hasher),
}

impl Whole {
    fn new(cpu: Option<Extensions>) -> Whole {
        match cpu {
            Some(cpu) => Whole::Twin { cpu, state: State::new() },
            None => Whole::Ring(digest::Hasher::new()),
        }
    }

    fn block(&mut self, block: &[u8; BLOCK]) -> [u8; 32] {
        match self {
            Whole::Twin { cpu, state } => {
                let (mut leaf, mut unused) = (State::new(), State::new());
                cpu.both(state, &mut leaf, block);
                cpu.both(&mut leaf, &mut unused, &BLOCK_END);
                leaf.bytes()
            }
            Whole::Ring(sha) => {
                sha.update(block);
                Digest::of(block).0
            }
        }
    }

    /// `rest` is what came after the last block, `size` the length of all, bytes.
    fn finish(self, rest: &[u8], size: u64) -> Digest {
        match self {
            Whole::Twin { cpu, mut state } => {
                let mut end = rest.to_vec();
                end.push(0x80);
                // The length takes the last 8 bytes of the last 64.
                end.resize((end.len() + 8).next_multiple_of(64) - 8, 0);
                end.extend_from_slice(&(size << 3).to_be_bytes());
                cpu.both(&mut state, &mut State::new(), &end);
                Digest(state.bytes())
            }
            Whole::Ring(mut sha) => {
                sha.update(rest);
                sha.finish()
            }
        }
    }
}

/// What a stream hashes to.
pub(crate) struct Hashed {
    /// SHA-256 of the whole.
    pub(crate) digest: Digest,
    /// The piece list. The only piece of a file of at most one block is that block's hash.
    pub(crate) pieces: Vec<Digest>,
}

/// Hashes a stream into its digest and its piece list, in one pass.
#[derive(Debug)]
pub(crate) struct Hasher {
    whole: Whole,
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
        Hasher::with(Extensions::detect())
    }

    fn with(cpu: Option<Extensions>) -> Hasher {
        Hasher {
            whole: Whole::new(cpu),
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
                let hash = self.whole.block(block);
                self.leaf(hash);
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
                self.have = 0;
                let hash = self.whole.block(&self.block);
                self.leaf(hash);
            }
        }
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

    pub(crate) fn finish(mut self) -> Hashed {
        if self.have > 0 {
            // The last block's own hash is of a whole block, filled with zeros.
            self.block.iter_mut().skip(self.have).for_each(|b| *b = 0);
            self.leaf(Digest::of(&self.block[..]).0);
        }
        if self.pieces.is_empty() && self.count == 1 {
            let (leaf, _) = self.leaves.split_first_chunk::<32>().unwrap_or((&[0; 32], &[]));
            self.pieces.push(Digest(*leaf));
        } else if self.count > 0 {
            self.flush_piece();
        }
        let rest = self.block.get(..self.have).unwrap_or_default();
        Hashed { digest: self.whole.finish(rest, self.size), pieces: self.pieces }
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

    /// By ring, and by the CPU's own instructions where it has them.
    fn ways() -> Vec<Option<Extensions>> {
        let own = Extensions::detect();
        if own.is_some() { vec![None, own] } else { vec![None] }
    }

    fn of(data: &[u8], chunk: usize) -> Digest {
        let mut all = ways().into_iter().map(|cpu| {
            let mut h = Hasher::with(cpu);
            data.chunks(chunk).for_each(|c| h.update(c));
            let Hashed { digest: whole, pieces } = h.finish();
            assert_eq!(whole, Digest::of(data), "{} bytes by {chunk}, {cpu:?}", data.len());
            assert_eq!(pieces.len() as u64, piece_count(data.len() as u64));
            digest(data.len() as u64, &pieces)
        });
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "{} bytes by {chunk}", data.len());
        first
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
        // Every place where the padding of the whole can begin.
        for len in 8192..8192 + 130 {
            assert_eq!(of(&data[..len], 4000), naive(&data[..len]), "{len}");
        }
        // More than 128 pieces: a third level.
        assert_eq!(of(&data, (1 << 20) + 7), naive(&data));
    }

    #[test]
    fn known_digest() {
        // `fsverity digest` of an empty file (fsverity-utils' own documentation and tests).
        let empty = "sha256:3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95";
        assert_eq!(of(b"", 1).to_string(), empty);
    }
}
