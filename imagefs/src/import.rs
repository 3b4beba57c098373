//! Images from files: OCI layouts (directory or tar) and `docker save` archives.
//!
//! Each layer goes through one pass: read, hash, decompress, hash, index, write. Nothing is extracted, and nothing is
//! visible before all of the image is here.

mod source;

use std::io::{BufReader, Read};
use std::path::Path;

use crate::decompress::Decoder;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::oci::{
    self, CONFIG_BYTES_MAX, Config, Descriptor, Document, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX,
    Manifest, Platform, media,
};
use crate::record::{BlobKind, ImageRecord, LayerRecord, reference};
use crate::store::{LayerWriter, Store};
use source::{Blob, Source};

/// Bytes decompressed at a time.
const CHUNK_BYTES: usize = 128 << 10;
/// Compressed bytes between two progress reports.
const PROGRESS_BYTES: u64 = 4 << 20;

/// What an import tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The image was found in the source.
    Image {
        /// The reference it will have here.
        reference: String,
        /// How many layers it has.
        layers: usize,
    },
    /// A layer is being read; told every few MiB and at its end.
    Layer {
        /// Which, from 0, lowest first.
        index: usize,
        /// Its diff_id.
        diff_id: Digest,
        /// Compressed bytes read.
        done_bytes: u64,
        /// Compressed size.
        of_bytes: u64,
    },
    /// A layer was here already.
    LayerPresent {
        /// Which, from 0.
        index: usize,
        /// Its diff_id.
        diff_id: Digest,
    },
}

/// An image found in a source.
struct Found {
    name: String,
    /// Absent in a `docker save` archive of old.
    manifest: Option<(Digest, Vec<u8>)>,
    config_bytes: Vec<u8>,
    config: Config,
    layers: Vec<LayerSource>,
}

struct LayerSource {
    /// Name within the source.
    name: String,
    /// Digest and size of the blob as it lies there, where a manifest states them.
    stated: Option<(Digest, u64)>,
}

impl Store {
    /// Imports an image from an OCI layout directory, an OCI layout in a tar, or a `docker save` tar (each plain, gzip or
    /// zstd). `reference` picks among several images in the source, or names the only one anew; without it the source's
    /// own name is taken. On error no reference is written; layers that were complete stay until the next
    /// [`gc`](Store::gc), so that a second try does not start over.
    pub fn import(
        &self,
        source: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ImageRecord> {
        let name = name.map(reference).transpose()?;
        let mut source = Source::open(self, source)?;
        let found = locate(&mut source, name.as_deref())?;
        let diff_ids = &found.config.rootfs.diff_ids;
        let layers = found.layers.len();
        progress(Progress::Image { reference: found.name.clone(), layers });
        let _pin = self.pin_digests(diff_ids.iter().copied());
        let mut records = Vec::with_capacity(layers);
        let mut total = 0;
        for (index, (layer, diff_id)) in found.layers.iter().zip(diff_ids).enumerate() {
            let record = match self.layer_record(diff_id)? {
                Some(present) => {
                    progress(Progress::LayerPresent { index, diff_id: *diff_id });
                    present
                }
                None => self.import_layer(&mut source, layer, *diff_id, index, progress)?,
            };
            total += record.size_bytes;
            let limit = self.limits().image_bytes_max;
            if total > limit {
                return Err(Error::TooBig {
                    what: "uncompressed image, bytes",
                    limit,
                    found: total,
                });
            }
            records.push(record);
        }
        self.finish_import(found, records)
    }

    fn finish_import(&self, found: Found, layers: Vec<LayerRecord>) -> Result<ImageRecord> {
        let config_digest = Digest::of(&found.config_bytes);
        let (manifest_digest, manifest) = match found.manifest {
            Some(m) => m,
            None => synthesize(&found.config_bytes, config_digest, &layers)?,
        };
        let record = ImageRecord {
            reference: found.name,
            manifest_digest,
            manifest_bytes: manifest.len() as u64,
            config_digest,
            config_bytes: found.config_bytes.len() as u64,
            platform: Platform {
                architecture: found.config.architecture,
                os: found.config.os,
                variant: found.config.variant,
            }
            .text(),
            layers,
        };
        let _pin = self.pin(&record);
        self.put_blob(BlobKind::Config, &config_digest, &found.config_bytes)?;
        self.put_blob(BlobKind::Manifest, &manifest_digest, &manifest)?;
        Ok(self.link(&record)?.record)
    }

    fn import_layer(
        &self,
        source: &mut Source,
        layer: &LayerSource,
        diff_id: Digest,
        index: usize,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<LayerRecord> {
        let blob = source.require(&layer.name, BlobKind::Layer, diff_id)?;
        let of_bytes = blob.size;
        if let Some((digest, expected)) = layer.stated.filter(|(_, size)| *size != of_bytes) {
            let kind = BlobKind::Layer;
            return Err(Error::SizeMismatch { kind, digest, expected, found: of_bytes });
        }
        let limits = self.limits();
        let ceiling =
            limits.ratio_slack_bytes.saturating_add(of_bytes.saturating_mul(limits.ratio_max));
        let bad = |e: std::io::Error| match e.raw_os_error() {
            Some(_) => Error::io("read", &layer.name, e),
            None => Error::Compression { what: layer.name.clone(), detail: e.to_string() },
        };
        let hashing = Hashing { inner: blob, sha: layer.stated.map(|_| Hasher::new()), read: 0 };
        let mut counted = BufReader::with_capacity(CHUNK_BYTES, hashing);
        let mut writer = LayerWriter::new(self, diff_id)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut next_report = PROGRESS_BYTES;
        let mut decoder = Decoder::new(&mut counted).map_err(bad)?;
        loop {
            let n = decoder.read(&mut buffer).map_err(bad)?;
            if n == 0 {
                break;
            }
            let found = writer.size() + n as u64;
            if found > ceiling {
                let what = "layer, bytes after decompression (too high a ratio)";
                return Err(Error::TooBig { what, limit: ceiling, found });
            }
            writer.write(buffer.get(..n).unwrap_or_default())?;
            let done_bytes = decoder.get_ref().map_or(0, |r| r.get_ref().read);
            if done_bytes >= next_report {
                progress(Progress::Layer { index, diff_id, done_bytes, of_bytes });
                next_report = done_bytes + PROGRESS_BYTES;
            }
        }
        drop(decoder);
        counted.into_inner().verify(layer)?;
        let record = writer.commit()?;
        progress(Progress::Layer { index, diff_id, done_bytes: of_bytes, of_bytes });
        Ok(record)
    }
}

/// Counts and hashes what passes.
struct Hashing<R> {
    inner: R,
    /// Only where there is a digest to compare with.
    sha: Option<Hasher>,
    read: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        if let Some(sha) = &mut self.sha {
            sha.update(out.get(..n).unwrap_or_default());
        }
        self.read += n as u64;
        Ok(n)
    }
}

impl<R> Hashing<R> {
    fn verify(self, layer: &LayerSource) -> Result<()> {
        let (Some((expected, size)), Some(sha)) = (layer.stated, self.sha) else { return Ok(()) };
        let kind = BlobKind::Layer;
        if self.read != size {
            let (digest, found) = (expected, self.read);
            return Err(Error::SizeMismatch { kind, digest, expected: size, found });
        }
        let found = sha.finish();
        if found != expected {
            return Err(Error::DigestMismatch { kind, expected, found });
        }
        Ok(())
    }
}

/// A manifest for an archive that has none. Its layers are the uncompressed tars, as they are kept here.
fn synthesize(
    config: &[u8],
    config_digest: Digest,
    layers: &[LayerRecord],
) -> Result<(Digest, Vec<u8>)> {
    let descriptor = |media_type: &str, digest, size| Descriptor {
        media_type: media_type.into(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        config: descriptor(media::CONFIG, config_digest, config.len() as u64),
        layers: layers.iter().map(|l| descriptor(media::LAYER, l.diff_id, l.size_bytes)).collect(),
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::json("manifest", &e))?;
    Ok((Digest::of(&bytes), bytes))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn locate(source: &mut Source, wanted: Option<&str>) -> Result<Found> {
    if let Some(index) = source.read("index.json", "index.json, bytes", MANIFEST_BYTES_MAX)? {
        return locate_oci(source, &index, wanted);
    }
    if let Some(list) = source.read("manifest.json", "manifest.json, bytes", MANIFEST_BYTES_MAX)? {
        return locate_docker(source, &list, wanted);
    }
    Err(Error::NotAnImage {
        path: source.path().into(),
        why: "neither index.json (OCI layout) nor manifest.json (docker save) in it",
    })
}

/// A name from an index, completed: a bare word is a tag (OCI image-layout.md) of something named like the file.
fn full_name(source: &Source, name: &str) -> Option<String> {
    if name.contains([':', '/', '@']) {
        return reference(name).ok();
    }
    let stem = source.path().file_name()?.to_str()?.split('.').next()?.to_lowercase();
    reference(&format!("{stem}:{name}")).ok()
}

fn locate_oci(source: &mut Source, index: &[u8], wanted: Option<&str>) -> Result<Found> {
    let Document::Index(index) = Document::parse(index, media::INDEX)? else {
        return Err(Error::NotAnImage {
            path: source.path().into(),
            why: "index.json is no index",
        });
    };
    let all = index.manifests;
    let matches = |d: &Descriptor| {
        d.names().any(|n| Some(n) == wanted || full_name(source, n).as_deref() == wanted)
    };
    let named: Vec<_> = all.iter().filter(|d| matches(d)).cloned().collect();
    let have = || {
        let mut names: Vec<String> =
            all.iter().flat_map(|d| d.names().next()).map(str::to_string).collect();
        names.sort();
        names.dedup();
        names
    };
    let names = have();
    let candidates = match wanted {
        Some(_) if !named.is_empty() => named,
        // One image (perhaps for several platforms): the name given is its new name.
        _ if names.len() <= 1 => all.clone(),
        _ => return Err(Error::WhichImage { wanted: wanted.map(str::to_string), have: names }),
    };
    let name = match wanted {
        Some(w) => w.to_string(),
        None => {
            names.first().and_then(|n| full_name(source, n)).ok_or_else(|| Error::BadReference {
                reference: names.first().cloned().unwrap_or_default(),
                why: "the image has no usable name of its own; give one",
            })?
        }
    };
    let (digest, bytes) = choose(source, candidates, 0)?;
    let Document::Manifest(m) = Document::parse(&bytes, "")? else {
        return Err(Error::MediaType { found: "index in place of a manifest".into() });
    };
    let config_bytes =
        source.read_blob(BlobKind::Config, &m.config.digest, m.config.size, CONFIG_BYTES_MAX)?;
    let config = parse_config(&digest, &config_bytes, m.layers.len())?;
    let layers = m
        .layers
        .iter()
        .map(|l| LayerSource { name: blob_name(&l.digest), stated: Some((l.digest, l.size)) })
        .collect();
    Ok(Found { name, manifest: Some((digest, bytes)), config_bytes, config, layers })
}

/// Follows indexes down to this machine's manifest.
fn choose(
    source: &mut Source,
    mut candidates: Vec<Descriptor>,
    depth: usize,
) -> Result<(Digest, Vec<u8>)> {
    let here = Platform::here();
    let fits = |d: &Descriptor| {
        d.platform.as_ref().is_none_or(|p| p.os == here.os && p.architecture == here.architecture)
    };
    let have = candidates.iter().filter_map(|d| d.platform.as_ref()).map(Platform::text).collect();
    candidates.retain(fits);
    // Without a platform it is a guess, checked against the config; one that names the platform comes first.
    candidates.sort_by_key(|d| d.platform.is_none());
    let Some(d) = candidates.first().filter(|_| depth < INDEX_DEPTH_MAX) else {
        return Err(Error::NoPlatform { wanted: here.text(), have });
    };
    let bytes = source.read_blob(BlobKind::Manifest, &d.digest, d.size, MANIFEST_BYTES_MAX)?;
    match Document::parse(&bytes, &d.media_type)? {
        Document::Manifest(_) => Ok((d.digest, bytes)),
        Document::Index(i) => choose(source, i.manifests, depth + 1),
    }
}

fn parse_config(manifest: &Digest, bytes: &[u8], layers: usize) -> Result<Config> {
    let config = Config::parse(bytes)?;
    if config.rootfs.diff_ids.len() != layers {
        return Err(Error::Inconsistent {
            manifest: *manifest,
            why: "manifest and config have different numbers of layers",
        });
    }
    let here = Platform::here();
    let same = |a: &str, b: &str| a.is_empty() || a == b;
    if !same(&config.os, &here.os) || !same(&config.architecture, &here.architecture) {
        let have = vec![format!("{}/{}", config.os, config.architecture)];
        return Err(Error::NoPlatform { wanted: here.text(), have });
    }
    Ok(config)
}

/// An entry of `manifest.json` of `docker save`.
#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn locate_docker(source: &mut Source, list: &[u8], wanted: Option<&str>) -> Result<Found> {
    let mut images: Vec<DockerImage> =
        serde_json::from_slice(list).map_err(|e| Error::json("manifest.json", &e))?;
    let tags = |i: &DockerImage| i.repo_tags.clone().unwrap_or_default();
    let full = |t: &String| reference(t).ok();
    let have: Vec<String> = images.iter().flat_map(tags).collect();
    let at = match wanted {
        Some(w) => images.iter().position(|i| tags(i).iter().filter_map(full).any(|t| t == w)),
        None => None,
    };
    let at = match (at, images.len()) {
        (Some(at), _) => at,
        (None, 1) => 0,
        _ => return Err(Error::WhichImage { wanted: wanted.map(str::to_string), have }),
    };
    let image = images.swap_remove(at);
    let name = match wanted {
        Some(w) => w.to_string(),
        None => tags(&image).iter().find_map(full).ok_or_else(|| Error::BadReference {
            reference: String::new(),
            why: "the archive has no usable name of its own; give one",
        })?,
    };
    if image.layers.len() > oci::LAYERS_MAX {
        return Err(Error::TooBig {
            what: "layers of an image",
            limit: oci::LAYERS_MAX as u64,
            found: image.layers.len() as u64,
        });
    }
    let Some(config_bytes) = source.read(&image.config, "config, bytes", CONFIG_BYTES_MAX)? else {
        let why = "the config that manifest.json names is not in it";
        return Err(Error::NotAnImage { path: source.path().into(), why });
    };
    let config = parse_config(&Digest::of(&config_bytes), &config_bytes, image.layers.len())?;
    let layers = image.layers.into_iter().map(|name| LayerSource { name, stated: None }).collect();
    Ok(Found { name, manifest: None, config_bytes, config, layers })
}

impl Source {
    /// A blob by name, or the error that names the digest it was to have.
    fn require(&mut self, name: &str, kind: BlobKind, digest: Digest) -> Result<Blob> {
        let path = self.path().join(name);
        self.get(name)?.ok_or(Error::MissingBlob { kind, digest, path })
    }

    /// Reads a whole small file.
    fn read(&mut self, name: &str, what: &'static str, max: u64) -> Result<Option<Vec<u8>>> {
        let Some(blob) = self.get(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = blob.take(max + 1).read_to_end(&mut bytes);
        read.map_err(|e| Error::io("read", self.path().join(name), e))?;
        let found = bytes.len() as u64;
        if found > max {
            return Err(Error::TooBig { what, limit: max, found });
        }
        Ok(Some(bytes))
    }

    /// Reads a manifest or config by digest and verifies it.
    fn read_blob(
        &mut self,
        kind: BlobKind,
        digest: &Digest,
        size: u64,
        max: u64,
    ) -> Result<Vec<u8>> {
        let name = blob_name(digest);
        let digest = *digest;
        let path = self.path().join(&name);
        let Some(bytes) = self.read(&name, "manifest or config, bytes", max)? else {
            return Err(Error::MissingBlob { kind, digest, path });
        };
        if bytes.len() as u64 != size {
            let found = bytes.len() as u64;
            return Err(Error::SizeMismatch { kind, digest, expected: size, found });
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(Error::DigestMismatch { kind, expected: digest, found });
        }
        Ok(bytes)
    }
}
