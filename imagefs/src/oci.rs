//! The OCI and Docker documents of an image: the fields this crate acts on, everything else ignored.
//!
//! Hand-written: `oci-spec` brings builders, getters and derive macros for documents of which five fields matter here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

/// Largest manifest or index read; the OCI distribution spec's floor for registries is the same 4 MiB.
pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest image config read.
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most layers of an image; Docker's own limit, and keeps an image's record under 16 KiB.
pub const LAYERS_MAX: usize = 127;
/// Deepest nesting of indexes followed.
pub const INDEX_DEPTH_MAX: usize = 4;

/// Media types written by [`pack`](crate::pack).
pub mod media {
    /// OCI manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI config.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// OCI layer, plain tar.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// OCI layer, gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// OCI layer, zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker manifest, schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker manifest list.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// Docker layer, gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// Docker layer, plain tar.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// Docker layer, zstd (written by buildkit).
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
}

/// A content descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size, bytes.
    pub size: u64,
    /// For which machine, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Annotations; the reference name of an image in a layout is one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The annotation that names an image in an OCI layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which containerd and Docker name an image in full.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";

impl Descriptor {
    /// The names this descriptor goes by in a layout's index: the full one first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [CONTAINERD_NAME, REF_NAME]
            .into_iter()
            .filter_map(|k| self.annotations.get(k))
            .map(String::as_str)
    }
}

/// A platform in the names of Go: `linux`, `amd64`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Of the machine this was compiled for.
    pub fn here() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Platform { architecture: architecture.into(), os: "linux".into(), variant: None }
    }

    /// `os/arch`.
    pub fn text(&self) -> String {
        match &self.variant {
            Some(v) => format!("{}/{}/{v}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        }
    }
}

/// An image index (OCI) or manifest list (Docker).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Absent in the `index.json` of old layouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Manifests or further indexes.
    pub manifests: Vec<Descriptor>,
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Optional in OCI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, lowest first, as compressed blobs.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// An image config: what to run, and the layers by `diff_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `amd64`.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// `v8` and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_default")]
    pub config: RunConfig,
    /// The layers.
    pub rootfs: RootfsConfig,
}

/// The layers of a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsConfig {
    /// `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed tars, lowest first.
    #[serde(default, deserialize_with = "null_default")]
    pub diff_ids: Vec<Digest>,
}

/// How an image wants to be run. Docker writes `null` for empty fields; that is the default here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Keys like `8080/tcp`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `KEY=value`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Prefix of the command.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or arguments to the entrypoint.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths the image calls volumes.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Working directory; empty is `/`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15`; empty is SIGTERM.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// `{}`, the value of Go's sets in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

fn null_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// What a manifest-like blob turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of images.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

impl Document {
    /// Parses a manifest or index. `media_type` is the descriptor's; where it is empty the body's own decides.
    pub fn parse(bytes: &[u8], media_type: &str) -> Result<Document> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Peek {
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let peek: Peek =
            serde_json::from_slice(bytes).map_err(|e| Error::json("image manifest", &e))?;
        let own = peek.media_type.as_deref().unwrap_or("");
        // A document that is an index to one reader and a manifest to another is CVE-2021-41190.
        if !own.is_empty() && !media_type.is_empty() && own != media_type {
            return Err(Error::MediaType { found: format!("{own} in a {media_type}") });
        }
        let kind = if media_type.is_empty() { own } else { media_type };
        let index = match kind {
            media::INDEX | media::DOCKER_INDEX => true,
            media::MANIFEST | media::DOCKER_MANIFEST => false,
            "" => peek.manifests.is_some(),
            other => return Err(Error::MediaType { found: other.chars().take(100).collect() }),
        };
        let what = if index { "image index" } else { "image manifest" };
        let bad = |e: serde_json::Error| Error::json(what, &e);
        Ok(if index {
            Document::Index(serde_json::from_slice(bytes).map_err(bad)?)
        } else {
            let m: Manifest = serde_json::from_slice(bytes).map_err(bad)?;
            m.check()?;
            Document::Manifest(m)
        })
    }
}

impl Manifest {
    fn check(&self) -> Result<()> {
        match self.config.media_type.as_str() {
            media::CONFIG | media::DOCKER_CONFIG => {}
            other => return Err(Error::MediaType { found: other.chars().take(100).collect() }),
        }
        for layer in &self.layers {
            check_layer_type(&layer.media_type)?;
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(Error::TooBig {
                what: "layers of an image",
                limit: LAYERS_MAX as u64,
                found: self.layers.len() as u64,
            });
        }
        Ok(())
    }
}

fn check_layer_type(media_type: &str) -> Result<()> {
    match media_type {
        media::LAYER
        | media::LAYER_GZIP
        | media::LAYER_ZSTD
        | media::DOCKER_LAYER
        | media::DOCKER_LAYER_GZIP
        | media::DOCKER_LAYER_ZSTD => Ok(()),
        other => Err(Error::MediaType { found: other.chars().take(100).collect() }),
    }
}

impl Config {
    /// Parses and checks a config blob.
    pub fn parse(bytes: &[u8]) -> Result<Config> {
        let c: Config =
            serde_json::from_slice(bytes).map_err(|e| Error::json("image config", &e))?;
        if c.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(Error::TooBig {
                what: "layers of an image",
                limit: LAYERS_MAX as u64,
                found: c.rootfs.diff_ids.len() as u64,
            });
        }
        Ok(c)
    }
}
