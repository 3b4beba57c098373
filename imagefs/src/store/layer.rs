//! One layer: written in one pass, verified again after an unclean end.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::ingest::IngestDir;
use super::{LayerRecord, Store, lock};
use crate::digest::{Digest, Hasher};
use crate::disk::{self, NewFile};
use crate::error::{Error, Result};
use crate::record::BlobKind;
use crate::tarfmt::{Parser, TarError, TarFault};
use crate::{erofs, tree, verity};

/// The index's name carries its format: another format is another file beside it.
const INDEX: &str = "idx.v1";
const META: &str = "meta.v1";
/// Largest meta read: what the limits on names allow.
const META_BYTES_MAX: u64 = 2 * tree::TEXT_BYTES_MAX as u64;
/// Bytes written between two looks at the free space.
const SPACE_CHECK_BYTES: u64 = 64 << 20;
/// Buffer for reading a layer back.
const READ_BYTES: usize = 256 << 10;

/// What was found out about a layer when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    size_bytes: u64,
    verity: Digest,
    index_bytes: u64,
    index_digest: Digest,
    /// See [`tree::Tree::inherit`].
    pub(crate) inherit: Vec<Vec<u8>>,
}

impl Meta {
    /// Postcard, then the SHA-256 of it.
    fn encode(&self) -> Vec<u8> {
        // Serialising plain data into a growing vector has no failure.
        let mut out = postcard::to_stdvec(self).unwrap_or_default();
        let sum = Digest::of(&out);
        out.extend(sum.0);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Meta> {
        let (body, sum) = bytes.split_last_chunk::<32>()?;
        if Digest::of(body).0 != *sum {
            return None;
        }
        postcard::from_bytes(body).ok()
    }
}

/// What mounting needs of a layer.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    pub(crate) tar: PathBuf,
    pub(crate) index: PathBuf,
    pub(crate) meta: Meta,
}

/// Everything that is computed from a layer's bytes, without IO.
#[derive(Debug)]
struct Scan {
    parser: Parser,
    tree: tree::Builder,
    sha: Hasher,
    verity: verity::Hasher,
    size: u64,
}

/// What a [`Scan`] found.
struct Scanned {
    diff_id: Digest,
    pieces: Vec<Digest>,
    index: Vec<u8>,
    meta: Meta,
}

pub(crate) fn tar_error(e: TarError) -> Error {
    let path = String::from_utf8_lossy(&e.path).chars().take(300).collect();
    Error::Tar { offset: e.offset, path, fault: e.fault }
}

impl Scan {
    fn new() -> Scan {
        Scan {
            parser: Parser::new(),
            tree: tree::Builder::new(),
            sha: Hasher::new(),
            verity: verity::Hasher::new(),
            size: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) -> Result<()> {
        let tree = &mut self.tree;
        self.parser.feed(bytes, &mut |m| tree.add(m)).map_err(tar_error)?;
        // Both hashes over a part that stays in the core's cache.
        for part in bytes.chunks(32 << 10) {
            self.sha.update(part);
            self.verity.update(part);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<Scanned> {
        self.parser.finish().map_err(tar_error)?;
        let whole = |fault| tar_error(TarError { offset: self.size, path: Vec::new(), fault });
        let tree = self.tree.finish().map_err(whole)?;
        let index = erofs::write(&tree, self.size).ok_or_else(|| whole(TarFault::TooLarge))?;
        let pieces = self.verity.finish();
        let meta = Meta {
            size_bytes: self.size,
            verity: verity::digest(self.size, &pieces),
            index_bytes: index.len() as u64,
            index_digest: Digest::of(&index),
            inherit: tree.inherit,
        };
        Ok(Scanned { diff_id: self.sha.finish(), pieces, index, meta })
    }
}

/// A layer on its way into a store: uncompressed tar bytes in, a directory below `layers/` out.
#[derive(Debug)]
pub(crate) struct LayerWriter {
    store: Store,
    dir: IngestDir,
    tar: NewFile,
    scan: Scan,
    /// Piece list to check arriving data against.
    expected: Vec<Digest>,
    diff_id: Digest,
    next_space_check: u64,
}

impl LayerWriter {
    pub(crate) fn new(store: &Store, diff_id: Digest) -> Result<LayerWriter> {
        let dir = store.ingest_dir()?;
        let tar = NewFile::create(dir.path.join("tar"))?;
        let (scan, expected) = (Scan::new(), Vec::new());
        Ok(LayerWriter {
            store: store.clone(),
            dir,
            tar,
            scan,
            expected,
            diff_id,
            next_space_check: 0,
        })
    }

    /// Takes the piece list of a layer of `size` bytes whose record says `verity`.
    pub(crate) fn expect(&mut self, size: u64, verity: &Digest, pieces: &[Digest]) -> Result<()> {
        let found = verity::digest(size, pieces);
        if pieces.len() as u64 != verity::piece_count(size) || found != *verity {
            return Err(Error::DigestMismatch { kind: BlobKind::Layer, expected: *verity, found });
        }
        self.expected = pieces.to_vec();
        Ok(())
    }

    pub(crate) fn size(&self) -> u64 {
        self.scan.size
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let limit = self.store.shared.limits.image_bytes_max;
        let found = self.scan.size + bytes.len() as u64;
        if found > limit {
            return Err(Error::TooBig { what: "uncompressed layer, bytes", limit, found });
        }
        if found >= self.next_space_check {
            self.store.check_space(bytes.len() as u64)?;
            self.next_space_check = found + SPACE_CHECK_BYTES;
        }
        let before = self.scan.verity.pieces().len();
        self.scan.update(bytes)?;
        let new = self.scan.verity.pieces().iter().enumerate().skip(before);
        for (i, (piece, want)) in
            new.zip(self.expected.iter().skip(before)).map(|((i, p), w)| (i, (p, w)))
        {
            if piece != want {
                return Err(Error::PieceMismatch { diff_id: self.diff_id, index: i as u64 });
            }
        }
        self.tar.write(bytes)
    }

    /// Verifies, indexes, syncs, renames.
    pub(crate) fn commit(self) -> Result<LayerRecord> {
        let LayerWriter { store, dir, tar, scan, diff_id, .. } = self;
        let found = scan.finish()?;
        if found.diff_id != diff_id {
            return Err(Error::DigestMismatch {
                kind: BlobKind::Layer,
                expected: diff_id,
                found: found.diff_id,
            });
        }
        disk::write_file(dir.path.join(INDEX), &found.index)?;
        disk::write_file(dir.path.join("pieces"), &piece_bytes(&found.pieces))?;
        disk::write_file(dir.path.join(META), &found.meta.encode())?;
        tar.sync()?;
        disk::sync_dir(&dir.path)?;
        let to = store.layer_dir(&diff_id);
        // Another download of the same layer may have been first, or an old one lost its files.
        match disk::rename(&dir.path, &to) {
            Err(Error::Io { op: "rename", errno: Errno::NOTEMPTY | Errno::EXIST, .. }) => {
                if store.layer_record(&diff_id)?.is_none() {
                    store.discard_layer(&diff_id)?;
                    disk::rename(&dir.path, &to)?;
                }
            }
            other => other?,
        }
        lock(&store.shared.suspect).remove(&diff_id);
        let Meta { size_bytes, verity, .. } = found.meta;
        Ok(LayerRecord { diff_id, size_bytes, verity })
    }
}

fn piece_bytes(pieces: &[Digest]) -> Vec<u8> {
    pieces.iter().flat_map(|p| p.0).collect()
}

impl Store {
    fn layer_meta(&self, diff_id: &Digest) -> Result<Option<Meta>> {
        let path = self.layer_dir(diff_id).join(META);
        let bytes = disk::read_file(&path, "layer meta, bytes", META_BYTES_MAX)?;
        Ok(bytes.and_then(|b| Meta::decode(&b)))
    }

    /// A layer that is here with all its files at their sizes.
    pub(crate) fn layer_record(&self, diff_id: &Digest) -> Result<Option<LayerRecord>> {
        let Some(meta) = self.layer_meta(diff_id)? else { return Ok(None) };
        let dir = self.layer_dir(diff_id);
        let is = |name: &str, len| std::fs::metadata(dir.join(name)).is_ok_and(|m| m.len() == len);
        let Meta { size_bytes, verity, index_bytes, .. } = meta;
        let whole = is("tar", size_bytes) && is(INDEX, index_bytes);
        Ok(whole.then_some(LayerRecord { diff_id: *diff_id, size_bytes, verity }))
    }

    /// The piece list of a layer that is here, 32 bytes a piece, to be served to peers.
    pub fn pieces(&self, diff_id: &Digest) -> Result<Option<Vec<u8>>> {
        let path = self.layer_dir(diff_id).join("pieces");
        disk::read_file(&path, "piece list, bytes", 32 * verity::piece_count(erofs::TAR_BYTES_MAX))
    }

    /// A layer ready to be mounted. One that was here when the machine went down uncleanly is rehashed first; if it is
    /// not what its name says it is removed and reported missing.
    pub(crate) fn layer_files(&self, diff_id: &Digest) -> Result<LayerFiles> {
        let dir = self.layer_dir(diff_id);
        let missing =
            || Error::MissingBlob { kind: BlobKind::Layer, digest: *diff_id, path: dir.clone() };
        if lock(&self.shared.suspect).contains(diff_id) {
            if !self.layer_is_sound(diff_id)? {
                self.discard_layer(diff_id)?;
                return Err(missing());
            }
            lock(&self.shared.suspect).remove(diff_id);
        }
        self.layer_record(diff_id)?.ok_or_else(missing)?;
        let meta = self.layer_meta(diff_id)?.ok_or_else(missing)?;
        Ok(LayerFiles { tar: dir.join("tar"), index: dir.join(INDEX), meta })
    }

    /// Reads a layer again and compares everything that is kept of it.
    pub fn layer_is_sound(&self, diff_id: &Digest) -> Result<bool> {
        let dir = self.layer_dir(diff_id);
        let path = dir.join("tar");
        let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let mut scan = Scan::new();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = file.read(&mut buffer).map_err(|e| Error::io("read", &path, e))?;
            if n == 0 {
                break;
            }
            if scan.update(buffer.get(..n).unwrap_or_default()).is_err() {
                return Ok(false);
            }
        }
        let Ok(found) = scan.finish() else { return Ok(false) };
        let file = |name: &str, want: &[u8]| {
            let max = want.len() as u64;
            matches!(disk::read_file(&dir.join(name), "layer file", max), Ok(Some(b)) if b == want)
        };
        Ok(found.diff_id == *diff_id
            && file(INDEX, &found.index)
            && file("pieces", &piece_bytes(&found.pieces))
            && file(META, &found.meta.encode()))
    }
}
