//! A directory as a one-layer OCI image, the same bytes every time.

use std::collections::BTreeMap;
use std::path::Path;

use crate::digest::Digest;
use crate::error::{Error, Result};

/// How the packed image wants to be run, and its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Name in the layout's index, `hello:latest`.
    pub reference: String,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Command or arguments.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// `uid[:gid]` or names; empty is root.
    pub user: String,
    /// Empty is `/`.
    pub workdir: String,
    /// `8080/tcp`.
    pub ports: Vec<String>,
    /// `SIGTERM` when empty.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Modification time of every member, seconds since 1970.
    pub mtime_s: u64,
    /// `os/arch` override; the machine's own when None.
    pub architecture: Option<String>,
    /// Keep the owners found on disk; otherwise everything is 0:0.
    pub keep_owners: bool,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// Of the manifest.
    pub manifest_digest: Digest,
    /// Of the config.
    pub config_digest: Digest,
    /// Of the uncompressed layer.
    pub diff_id: Digest,
    /// Uncompressed layer, bytes.
    pub layer_bytes: u64,
    /// Compressed layer, bytes.
    pub compressed_bytes: u64,
}

/// Packs `dir` into an OCI layout at `out` (made if absent; other images in it are kept, one of the same name is
/// replaced).
pub fn pack(dir: &Path, _out: &Path, _options: &PackOptions) -> Result<Packed> {
    Err(Error::NotAnImage { path: dir.into(), why: "" })
}
