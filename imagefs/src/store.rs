//! The store: blobs, layers and references on disk.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::RunConfig;

/// What a blob is; decides where it lies and how it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// An image manifest.
    Manifest,
    /// An image config.
    Config,
    /// A layer's *uncompressed* tar, addressed by its diff_id.
    Layer,
}

impl fmt::Display for BlobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlobKind::Manifest => "manifest",
            BlobKind::Config => "config",
            BlobKind::Layer => "layer",
        })
    }
}

/// One thing to fetch or serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// What it is.
    pub kind: BlobKind,
    /// Its digest; of a layer the diff_id.
    pub digest: Digest,
    /// Its exact size, bytes.
    pub size_bytes: u64,
}

/// A layer in an image record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the uncompressed tar.
    pub size_bytes: u64,
    /// fs-verity digest of the uncompressed tar; commits to the piece list.
    pub verity: Digest,
}

/// What the flock knows of an image: the body of `i/<reference>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Normalised name, `hello:latest`.
    pub reference: String,
    /// The manifest blob.
    pub manifest_digest: Digest,
    /// Its size, bytes.
    pub manifest_bytes: u64,
    /// The config blob.
    pub config_digest: Digest,
    /// Its size, bytes.
    pub config_bytes: u64,
    /// `os/arch`.
    pub platform: String,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
}

impl ImageRecord {
    /// Versioned binary form, under 16 KiB for every image within the limits. Later versions append fields; they are
    /// skipped here.
    pub fn encode(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(_bytes: &[u8]) -> Result<ImageRecord> {
        Err(Error::Kernel { feature: "", hint: "" })
    }

    /// Everything the image consists of: manifest, config, then the distinct layers, lowest first.
    pub fn blobs(&self) -> Vec<BlobRef> {
        Vec::new()
    }
}

/// An image that is completely here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it consists of.
    pub record: ImageRecord,
    /// How it wants to be run.
    pub config: RunConfig,
}

/// The store of one node. All methods take `&self`; share it behind an `Arc` between threads.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

/// What a garbage collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Manifests and configs.
    pub blobs: u64,
    /// Layers.
    pub layers: u64,
    /// Bytes given back, as the sum of file sizes.
    pub freed_bytes: u64,
}

impl Store {
    /// Opens or makes a store, takes its lock and drops what an earlier process left in `ingest/` and `trash/`.
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        Ok(Store { root: root.as_ref().into() })
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image whose manifest has this digest, if all of it is here.
    pub fn get(&self, _manifest: &Digest) -> Result<Option<Image>> {
        Ok(None)
    }

    /// The image a reference names here, if all of it is here.
    pub fn resolve(&self, _reference: &str) -> Result<Option<Image>> {
        Ok(None)
    }

    /// All references, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        Ok(Vec::new())
    }

    /// What is still to be fetched for this image, smallest kinds first. Empty when [`link`](Self::link) would succeed.
    pub fn missing(&self, _record: &ImageRecord) -> Vec<BlobRef> {
        Vec::new()
    }

    /// Opens a blob to serve it: exactly the bytes its digest is of, and their length.
    pub fn open_blob(&self, _blob: &BlobRef) -> Result<(File, u64)> {
        Err(Error::Kernel { feature: "", hint: "" })
    }

    /// Starts receiving a blob.
    pub fn ingest(&self, blob: BlobRef) -> Result<Ingest> {
        Ok(Ingest { blob })
    }

    /// Checks that everything in `record` is here and consistent, and writes its reference. Until then no reference
    /// names the image.
    pub fn link(&self, _record: &ImageRecord) -> Result<Image> {
        Err(Error::Kernel { feature: "", hint: "" })
    }

    /// Removes a reference; true if it was there. The bytes go with the next [`gc`](Self::gc).
    pub fn remove(&self, _reference: &str) -> Result<bool> {
        Ok(false)
    }

    /// Keeps the blobs of an image from [`gc`](Self::gc) while the guard lives: during a fetch, while a container runs.
    pub fn pin(&self, _record: &ImageRecord) -> Pin {
        Pin {}
    }

    /// Removes every blob and layer that no reference, no pin and no record in `keep` names. `keep` is what running
    /// containers use.
    pub fn gc(&self, _keep: &[ImageRecord]) -> Result<GcReport> {
        Ok(GcReport::default())
    }
}

/// Keeps an image's blobs; see [`Store::pin`].
#[derive(Debug)]
pub struct Pin {}

/// A blob being received. Dropped without [`commit`](Self::commit) it leaves nothing behind.
#[derive(Debug)]
pub struct Ingest {
    blob: BlobRef,
}

impl Ingest {
    /// What is being received.
    pub fn blob(&self) -> &BlobRef {
        &self.blob
    }

    /// The next bytes, in order. Fails as soon as they cannot be right: too many, or a malformed tar.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Verifies the digest, builds a layer's index, makes it durable and visible.
    pub fn commit(self) -> Result<()> {
        Ok(())
    }
}
