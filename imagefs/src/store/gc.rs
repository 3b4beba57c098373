//! Garbage: what no reference, no pin and no running container names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::{Store, lock};
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};
use crate::record::ImageRecord;

/// Digest to number of pins.
pub(super) type Pins = BTreeMap<Digest, usize>;

/// Keeps an image's blobs; see [`Store::pin`].
#[derive(Debug)]
pub struct Pin {
    store: Store,
    digests: BTreeSet<Digest>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.store.shared.pins);
        for d in &self.digests {
            if let Some(n) = pins.get_mut(d) {
                *n -= 1;
                if *n == 0 {
                    pins.remove(d);
                }
            }
        }
    }
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

fn digests(record: &ImageRecord) -> impl Iterator<Item = Digest> {
    [record.manifest_digest, record.config_digest]
        .into_iter()
        .chain(record.layers.iter().map(|l| l.diff_id))
}

impl Store {
    /// Keeps the blobs of an image from [`gc`](Self::gc) while the guard lives: during a fetch, while a container runs.
    pub fn pin(&self, record: &ImageRecord) -> Pin {
        self.pin_digests(digests(record))
    }

    pub(crate) fn pin_digests(&self, digests: impl IntoIterator<Item = Digest>) -> Pin {
        let digests: BTreeSet<_> = digests.into_iter().collect();
        let mut pins = lock(&self.shared.pins);
        for d in &digests {
            *pins.entry(*d).or_insert(0) += 1;
        }
        drop(pins);
        Pin { store: self.clone(), digests }
    }

    /// Every reference, and when its image was used last: since [`link`](Self::link) or [`mark_used`](Self::mark_used). It is the
    /// reference file's time, so it outlives a reboot.
    pub fn list_used(&self) -> Result<Vec<(ImageRecord, SystemTime)>> {
        let used = |record: ImageRecord| {
            let path = self.ref_path(&record.reference);
            let metadata = std::fs::metadata(&path).map_err(|e| Error::io("stat", &path, e))?;
            let at = metadata.modified().map_err(|e| Error::io("stat", &path, e))?;
            Ok((record, at))
        };
        self.list()?.into_iter().map(used).collect()
    }

    /// The image with this manifest is used now, under each of its references here.
    pub fn mark_used(&self, manifest: &Digest) -> Result<()> {
        for record in self.list()?.iter().filter(|r| r.manifest_digest == *manifest) {
            let path = self.ref_path(&record.reference);
            let file = std::fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            file.set_modified(SystemTime::now()).map_err(|e| Error::io("utimensat", &path, e))?;
        }
        Ok(())
    }

    /// Removes every blob and layer that no reference, no pin and no record in `keep` names. `keep` is what running
    /// containers use.
    pub fn gc(&self, keep: &[ImageRecord]) -> Result<GcReport> {
        let _gate = lock(&self.shared.gate);
        let mut live: BTreeSet<Digest> = lock(&self.shared.pins).keys().copied().collect();
        live.extend(self.list()?.iter().chain(keep).flat_map(digests));
        let mut report = GcReport::default();
        let mut trash = Vec::new();
        for dir in ["blobs/sha256", "layers"] {
            let dir = self.shared.root.join(dir);
            for name in disk::names(&dir)? {
                if Digest::from_hex(&name).is_some_and(|d| live.contains(&d)) {
                    continue;
                }
                let path = dir.join(name);
                let layer = path.is_dir();
                report.freed_bytes += size_of(&path);
                *(if layer { &mut report.layers } else { &mut report.blobs }) += 1;
                trash.push(self.trash(&path)?);
            }
        }
        trash.iter().try_for_each(|path| disk::remove_tree_or_file(path))?;
        Ok(report)
    }

    /// Moves something out of sight, durably: what is deleted afterwards can't show as half of itself after a power cut.
    fn trash(&self, path: &Path) -> Result<PathBuf> {
        let n = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let to = self.shared.root.join("trash").join(n.to_string());
        disk::rename(path, &to)?;
        Ok(to)
    }

    pub(super) fn discard_layer(&self, diff_id: &Digest) -> Result<()> {
        let trash = self.trash(&self.layer_dir(diff_id))?;
        lock(&self.shared.suspect).remove(diff_id);
        disk::remove_tree(&trash)
    }
}

fn size_of(path: &Path) -> u64 {
    let len = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
    if !path.is_dir() {
        return len(path);
    }
    disk::names(path).map_or(0, |names| names.iter().map(|n| len(&path.join(n))).sum())
}
