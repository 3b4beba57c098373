//! Blobs arriving from a peer.

use std::path::PathBuf;

use super::{LayerWriter, Store};
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::oci::{CONFIG_BYTES_MAX, Config, MANIFEST_BYTES_MAX};
use crate::record::{BlobKind, BlobRef};

/// A directory below `ingest/`, removed when dropped.
#[derive(Debug)]
pub(crate) struct IngestDir {
    pub(crate) path: PathBuf,
}

impl IngestDir {
    pub(crate) fn make(path: PathBuf) -> Result<IngestDir> {
        disk::make_dir(&path)?;
        Ok(IngestDir { path })
    }
}

impl Drop for IngestDir {
    fn drop(&mut self) {
        // After a commit it is not there any more; what cannot be removed now goes at the next open.
        let _ = disk::remove_tree(&self.path);
    }
}

/// A blob being received. Dropped without [`commit`](Self::commit) it leaves nothing behind.
#[derive(Debug)]
pub struct Ingest {
    store: Store,
    blob: BlobRef,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Layer(Box<LayerWriter>),
    /// Manifests and configs are bounded and small.
    Small(Vec<u8>),
}

impl Ingest {
    pub(super) fn start(store: &Store, blob: BlobRef) -> Result<Ingest> {
        let (what, limit) = match blob.kind {
            BlobKind::Manifest => ("manifest, bytes", MANIFEST_BYTES_MAX),
            BlobKind::Config => ("config, bytes", CONFIG_BYTES_MAX),
            BlobKind::Layer => ("uncompressed layer, bytes", store.shared.limits.image_bytes_max),
        };
        if blob.size_bytes > limit {
            return Err(Error::TooBig { what, limit, found: blob.size_bytes });
        }
        store.check_space(blob.size_bytes)?;
        let body = match blob.kind {
            BlobKind::Layer => Body::Layer(Box::new(LayerWriter::new(store, blob.digest)?)),
            _ => Body::Small(Vec::new()),
        };
        Ok(Ingest { store: store.clone(), blob, body })
    }

    /// What is being received.
    pub fn blob(&self) -> &BlobRef {
        &self.blob
    }

    /// Bytes received so far.
    pub fn received_bytes(&self) -> u64 {
        match &self.body {
            Body::Layer(w) => w.size(),
            Body::Small(b) => b.len() as u64,
        }
    }

    /// Gives the piece list of a layer, 32 bytes a piece as [`Store::pieces`] has it; it is checked against `verity`
    /// from the record, and every piece from now on against it as it completes. To be called before the first write.
    pub fn expect_pieces(&mut self, verity: &Digest, pieces: &[u8]) -> Result<()> {
        let (chunks, rest) = pieces.as_chunks::<32>();
        let list: Vec<_> = chunks.iter().map(|c| Digest(*c)).collect();
        match &mut self.body {
            Body::Layer(w) if rest.is_empty() => w.expect(self.blob.size_bytes, verity, &list),
            _ => Err(Error::DigestMismatch {
                kind: self.blob.kind,
                expected: *verity,
                found: Digest::of(pieces),
            }),
        }
    }

    /// The next bytes, in order. Fails as soon as they cannot be right: too many, a wrong piece, or a malformed tar.
    /// After an error the ingest is to be dropped.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let found = self.received_bytes() + bytes.len() as u64;
        if found > self.blob.size_bytes {
            return Err(self.wrong_size(found));
        }
        match &mut self.body {
            Body::Layer(w) => w.write(bytes),
            Body::Small(b) => {
                b.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn wrong_size(&self, found: u64) -> Error {
        let BlobRef { kind, digest, size_bytes } = self.blob;
        Error::SizeMismatch { kind, digest, expected: size_bytes, found }
    }

    /// Verifies the digest, builds a layer's index, makes the blob durable and visible. On error nothing is kept.
    pub fn commit(self) -> Result<()> {
        let found = self.received_bytes();
        if found != self.blob.size_bytes {
            return Err(self.wrong_size(found));
        }
        match self.body {
            Body::Layer(w) => w.commit().map(|_| ()),
            Body::Small(bytes) => self.store.put_blob(self.blob.kind, &self.blob.digest, &bytes),
        }
    }
}

impl Store {
    /// Verifies and keeps a manifest or config.
    pub(crate) fn put_blob(&self, kind: BlobKind, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let found = Digest::of(bytes);
        if found != *digest {
            return Err(Error::DigestMismatch { kind, expected: *digest, found });
        }
        match kind {
            BlobKind::Manifest => super::parse_manifest(bytes).map(|_| ())?,
            _ => Config::parse(bytes).map(|_| ())?,
        }
        let to = self.blob_path(digest);
        let dir = self.ingest_dir()?;
        let from = dir.path.join("blob");
        disk::write_file(from.clone(), bytes)?;
        disk::rename(&from, &to)
    }
}
