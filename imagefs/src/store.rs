//! The store: blobs, layers and references of one node on disk.
//!
//! ```text
//! <root>/lock  state                               one process; boot id of an unclean end
//!        blobs/sha256/<hex>                        manifests and configs
//!        layers/<diff_id>/{tar,idx.v1,pieces,meta.v1}
//!        refs/<name>                               ImageRecord as JSON, written last
//!        ingest/<n>/  trash/<n>/                   dropped at open
//!        up/<name>/                                upper directories of containers
//! ```
//!
//! Every name outside `ingest/` and `trash/` appears by a rename after an fsync of what it names.

mod gc;
mod ingest;
mod layer;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use gc::{GcReport, Pin};
pub use ingest::Ingest;
pub(crate) use ingest::IngestDir;
pub(crate) use layer::{LayerFiles, LayerWriter, tar_error};

use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::oci::{CONFIG_BYTES_MAX, Config, Document, MANIFEST_BYTES_MAX, Manifest, Platform};
use crate::record::{BlobKind, BlobRef, Image, ImageRecord, LayerRecord, reference};

/// Largest reference file read.
const REF_BYTES_MAX: u64 = 64 << 10;

/// One part in so many of a filesystem must stay free, ...
const RESERVE_PART: u64 = 20;
/// ... at least this, ...
const RESERVE_BYTES_MIN: u64 = 64 << 20;
/// ... no more than this, ...
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// ... and of a small one no more than one part in so many.
const RESERVE_SHARE: u64 = 8;

/// What a store accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A compressed stream may grow to `ratio_slack_bytes` plus this many times its own length.
    pub ratio_max: u64,
    /// Growth that is always allowed, bytes.
    pub ratio_slack_bytes: u64,
    /// Uncompressed size of one image, bytes; also of one layer.
    pub image_bytes_max: u64,
    /// Space that must stay free on the store's filesystem, bytes.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            ratio_max: 100,
            ratio_slack_bytes: 256 << 20,
            image_bytes_max: 64 << 30,
            reserve_bytes: RESERVE_BYTES_MIN,
        }
    }
}

impl Limits {
    /// The default, with the reserve of a filesystem of this size.
    fn of_filesystem(size_bytes: u64) -> Limits {
        Limits { reserve_bytes: Self::reserve_of(size_bytes), ..Limits::default() }
    }

    /// What must stay free of a filesystem of this size, so that its machine can still write down what it must: 5 %, at least
    /// 64 MiB, at most 1 GiB; and no more than leaves a small one (half the memory of a diskless machine of 128 MiB) of use.
    #[must_use]
    pub fn reserve_of(size_bytes: u64) -> u64 {
        let part = (size_bytes / RESERVE_PART).clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX);
        part.min(size_bytes / RESERVE_SHARE)
    }
}

/// The store of one node: a handle, cheap to clone and to send to other threads. The store stays locked against other
/// processes until the last handle, [`Ingest`] and [`Pin`] is gone.
#[derive(Debug, Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    limits: Limits,
    /// Held for its flock.
    _lock: File,
    next: AtomicU64,
    /// Held while references are written and while garbage is collected.
    gate: Mutex<()>,
    pins: Mutex<gc::Pins>,
    /// Layers that were here when the machine went down uncleanly; rehashed before use.
    suspect: Mutex<BTreeSet<Digest>>,
}

/// A poisoned lock only says that a panic happened elsewhere; the data behind ours are consistent at every step.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens or makes a store with the default [`Limits`], takes its lock and drops what an earlier process left in
    /// `ingest/` and `trash/`.
    pub fn open(root: impl AsRef<Path>) -> Result<Store> {
        let root = root.as_ref();
        std::fs::create_dir_all(root).map_err(|e| Error::io("mkdir", root, e))?;
        let s = rustix::fs::statvfs(root).map_err(|e| Error::io("statvfs", root, e))?;
        Store::open_with(root, Limits::of_filesystem(s.f_blocks.saturating_mul(s.f_frsize)))
    }

    /// As [`open`](Self::open), with limits.
    pub fn open_with(root: impl AsRef<Path>, limits: Limits) -> Result<Store> {
        let root = root.as_ref();
        std::fs::create_dir_all(root).map_err(|e| Error::io("mkdir", root, e))?;
        // Uppers hold what containers write, setuid files too: no local user but root may reach them.
        std::fs::set_permissions(root, Permissions::from_mode(0o700))
            .map_err(|e| Error::io("chmod", root, e))?;
        let root = root.canonicalize().map_err(|e| Error::io("canonicalize", root, e))?;
        let lock_path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|e| Error::io("open", &lock_path, e))?;
        take_lock(&lock, &root, &lock_path)?;
        for dir in ["blobs", "blobs/sha256", "layers", "refs", "ingest", "trash", "up"] {
            disk::make_dir(&root.join(dir))?;
        }
        for dir in ["ingest", "trash"] {
            for name in disk::names(&root.join(dir))? {
                disk::remove_tree_or_file(&root.join(dir).join(name))?;
            }
        }
        disk::sync_dir(&root.join("blobs"))?;
        disk::sync_dir(&root)?;
        let shared = Shared {
            root,
            limits,
            _lock: lock,
            next: AtomicU64::new(0),
            gate: Mutex::new(()),
            pins: Mutex::default(),
            suspect: Mutex::default(),
        };
        let store = Store { shared: Arc::new(shared) };
        store.note_boot()?;
        Ok(store)
    }

    /// Finds out whether the machine went down with the store open, and marks it open.
    fn note_boot(&self) -> Result<()> {
        let path = self.shared.root.join("state");
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        match disk::read_file(&path, "store state", 1024)? {
            Some(old) if old == boot => return Ok(()),
            Some(_) => {
                let layers = disk::names(&self.shared.root.join("layers"))?;
                *lock(&self.shared.suspect) =
                    layers.iter().filter_map(|n| Digest::from_hex(n)).collect();
            }
            None => {}
        }
        let new = self.ingest_dir()?;
        disk::write_file(new.path.join("state"), &boot)?;
        disk::rename(&new.path.join("state"), &path)
    }

    /// Where it is, absolute.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// What it accepts.
    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    /// A place for a container's upper directory beside the layers; `name` is one path component of the caller's.
    pub fn upper_dir(&self, name: &str) -> PathBuf {
        self.shared.root.join("up").join(name.replace(['/', '\0'], "_").trim_start_matches('.'))
    }

    /// Removes upper directories left from before a reboot: all below `up/` but those in `keep`, which are paths that
    /// [`upper_dir`](Self::upper_dir) gave. Returns how many went. To be called when no other container runs.
    pub fn sweep_uppers(&self, keep: &[PathBuf]) -> Result<usize> {
        let up = self.shared.root.join("up");
        let mut removed = 0;
        for path in disk::names(&up)?.iter().map(|n| up.join(n)).filter(|p| !keep.contains(p)) {
            disk::remove_tree_or_file(&path)?;
            removed += 1;
        }
        Ok(removed)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.shared.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.shared.root.join("layers").join(diff_id.hex())
    }

    fn ref_path(&self, reference: &str) -> PathBuf {
        // A checked reference has no other character that is special in a file name.
        self.shared.root.join("refs").join(reference.replace('/', "%"))
    }

    pub(crate) fn ingest_dir(&self) -> Result<IngestDir> {
        let n = self.shared.next.fetch_add(1, Ordering::Relaxed);
        IngestDir::make(self.shared.root.join("ingest").join(n.to_string()))
    }

    fn read_blob(&self, kind: BlobKind, digest: &Digest) -> Result<Option<Vec<u8>>> {
        let (what, max) = match kind {
            BlobKind::Manifest => ("manifest, bytes", MANIFEST_BYTES_MAX),
            _ => ("config, bytes", CONFIG_BYTES_MAX),
        };
        let Some(bytes) = disk::read_file(&self.blob_path(digest), what, max)? else {
            return Ok(None);
        };
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(Error::DigestMismatch { kind, expected: *digest, found });
        }
        Ok(Some(bytes))
    }

    /// The image whose manifest has this digest, if all of it is here. Its record has the digest as reference where no
    /// reference of this store names it.
    pub fn get(&self, manifest: &Digest) -> Result<Option<Image>> {
        let named = self.list()?.into_iter().find(|r| r.manifest_digest == *manifest);
        let name = named.map_or_else(|| manifest.to_string(), |r| r.reference);
        self.load(manifest, name)
    }

    /// The image a reference names here, if all of it is here.
    pub fn resolve(&self, name: &str) -> Result<Option<Image>> {
        let name = reference(name)?;
        match self.read_ref(&self.ref_path(&name))? {
            Some(record) => self.load(&record.manifest_digest, name),
            None => Ok(None),
        }
    }

    fn load(&self, manifest: &Digest, name: String) -> Result<Option<Image>> {
        let Some(bytes) = self.read_blob(BlobKind::Manifest, manifest)? else { return Ok(None) };
        let m = parse_manifest(&bytes)?;
        let Some(config_bytes) = self.read_blob(BlobKind::Config, &m.config.digest)? else {
            return Ok(None);
        };
        let config = parse_config(manifest, &m, &config_bytes)?;
        let mut layers = Vec::with_capacity(config.rootfs.diff_ids.len());
        for diff_id in &config.rootfs.diff_ids {
            match self.layer_record(diff_id)? {
                Some(l) => layers.push(l),
                None => return Ok(None),
            }
        }
        let record = ImageRecord {
            reference: name,
            manifest_digest: *manifest,
            manifest_bytes: bytes.len() as u64,
            config_digest: m.config.digest,
            config_bytes: config_bytes.len() as u64,
            platform: platform(&config).text(),
            layers,
        };
        Ok(Some(Image { record, config: config.config }))
    }

    fn read_ref(&self, path: &Path) -> Result<Option<ImageRecord>> {
        let Some(bytes) = disk::read_file(path, "reference, bytes", REF_BYTES_MAX)? else {
            return Ok(None);
        };
        let bad = |e| Error::json(path.display().to_string(), &e);
        serde_json::from_slice(&bytes).map(Some).map_err(bad)
    }

    /// All references, sorted. A reference file that cannot be read is passed over: it names nothing that can run.
    pub fn list(&self) -> Result<Vec<ImageRecord>> {
        let dir = self.shared.root.join("refs");
        let mut out: Vec<_> = disk::names(&dir)?
            .iter()
            .filter_map(|name| self.read_ref(&dir.join(name)).ok().flatten())
            .collect();
        out.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(out)
    }

    /// Whether a blob is here.
    pub fn has(&self, blob: &BlobRef) -> bool {
        match blob.kind {
            BlobKind::Layer => {
                matches!(self.layer_record(&blob.digest), Ok(Some(l)) if l.size_bytes == blob.size_bytes)
            }
            _ => std::fs::metadata(self.blob_path(&blob.digest))
                .is_ok_and(|m| m.len() == blob.size_bytes),
        }
    }

    /// What is still to be fetched for this image, manifest and config first. Empty when [`link`](Self::link) would
    /// find everything.
    pub fn missing(&self, record: &ImageRecord) -> Vec<BlobRef> {
        record.blobs().into_iter().filter(|b| !self.has(b)).collect()
    }

    /// Opens a blob to serve it: exactly the bytes its digest is of, and their length.
    pub fn open_blob(&self, blob: &BlobRef) -> Result<(File, u64)> {
        let path = match blob.kind {
            BlobKind::Layer => self.layer_dir(&blob.digest).join("tar"),
            _ => self.blob_path(&blob.digest),
        };
        let file = File::open(&path).map_err(|_| Error::MissingBlob {
            kind: blob.kind,
            digest: blob.digest,
            path: path.clone(),
        })?;
        let len = file.metadata().map_err(|e| Error::io("stat", &path, e))?.len();
        Ok((file, len))
    }

    /// Checks that everything in `record` is here and consistent, and writes its reference. Until then no reference
    /// names the image.
    pub fn link(&self, record: &ImageRecord) -> Result<Image> {
        let name = reference(&record.reference)?;
        let _gate = lock(&self.shared.gate);
        if let Some(blob) = self.missing(record).first() {
            return Err(self.missing_error(blob));
        }
        let Some(image) = self.load(&record.manifest_digest, name.clone())? else {
            return Err(self.missing_error(&BlobRef {
                kind: BlobKind::Manifest,
                digest: record.manifest_digest,
                size_bytes: record.manifest_bytes,
            }));
        };
        if (ImageRecord { reference: name, ..record.clone() }) != image.record {
            let manifest = record.manifest_digest;
            return Err(Error::Inconsistent { manifest, why: "the record differs from it" });
        }
        self.write_ref(&image.record)?;
        Ok(image)
    }

    fn missing_error(&self, blob: &BlobRef) -> Error {
        let path = match blob.kind {
            BlobKind::Layer => self.layer_dir(&blob.digest),
            _ => self.blob_path(&blob.digest),
        };
        Error::MissingBlob { kind: blob.kind, digest: blob.digest, path }
    }

    fn write_ref(&self, record: &ImageRecord) -> Result<()> {
        let body = serde_json::to_vec(record).map_err(|e| Error::json("reference", &e))?;
        let new = self.ingest_dir()?;
        disk::write_file(new.path.join("ref"), &body)?;
        disk::rename(&new.path.join("ref"), &self.ref_path(&record.reference))
    }

    /// Removes a reference; true if it was there. The bytes go with the next [`gc`](Self::gc).
    pub fn remove(&self, name: &str) -> Result<bool> {
        let _gate = lock(&self.shared.gate);
        disk::remove_file(&self.ref_path(&reference(name)?))
    }

    /// Starts receiving a blob. Kind, digest and size are checked as far as they can be already.
    pub fn ingest(&self, blob: BlobRef) -> Result<Ingest> {
        Ingest::start(self, blob)
    }

    /// Fails unless `bytes` more leave the reserve free.
    pub(crate) fn check_space(&self, bytes: u64) -> Result<()> {
        let s = rustix::fs::statvfs(&self.shared.root)
            .map_err(|e| Error::io("statvfs", &self.shared.root, e))?;
        let free = s.f_bavail.saturating_mul(s.f_frsize);
        let reserve = self.shared.limits.reserve_bytes;
        if free < bytes.saturating_add(reserve) {
            return Err(Error::NoSpace { path: self.shared.root.clone(), free, reserve });
        }
        Ok(())
    }
}

/// Times the lock is tried, 10 ms apart: a child of the last owner holds a copy of it between its fork and its exec.
const LOCK_TRIES_MAX: u32 = 30;

fn take_lock(lock: &File, root: &Path, lock_path: &Path) -> Result<()> {
    for _ in 0..LOCK_TRIES_MAX {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(Error::io("flock", lock_path, e)),
        }
    }
    Err(Error::StoreInUse { path: root.into() })
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Closed in order: the next open need not distrust the layers. Not durable, not needed: the worst is a rehash.
        let _ = std::fs::remove_file(self.root.join("state"));
    }
}

fn platform(config: &Config) -> Platform {
    Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
    }
}

fn parse_manifest(bytes: &[u8]) -> Result<Manifest> {
    match Document::parse(bytes, "")? {
        Document::Manifest(m) => Ok(m),
        Document::Index(_) => {
            Err(Error::MediaType { found: "an image index where a manifest is needed".into() })
        }
    }
}

fn parse_config(manifest: &Digest, m: &Manifest, bytes: &[u8]) -> Result<Config> {
    let manifest = *manifest;
    if m.config.size != bytes.len() as u64 {
        return Err(Error::Inconsistent { manifest, why: "the config's size differs" });
    }
    let config = Config::parse(bytes)?;
    if config.rootfs.diff_ids.len() != m.layers.len() {
        return Err(Error::Inconsistent {
            manifest,
            why: "manifest and config have different numbers of layers",
        });
    }
    Ok(config)
}
