//! The record of one assembled root filesystem, in `held/`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Upper;
use crate::digest::Digest;
use crate::disk;
use crate::error::{Error, Result};

/// Largest record: two paths and [`LAYERS_MAX`](crate::oci::LAYERS_MAX) digests.
const HOLDER_BYTES_MAX: u64 = 16 << 10;
/// First byte of a record.
const VERSION: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) ctr_dir: PathBuf,
    /// Topmost first, distinct.
    pub(super) layers: Vec<Digest>,
    /// Directory to remove at the end, when the upper is on disk.
    pub(super) upper_dir: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    ctr_dir: Vec<u8>,
    layers: Vec<Digest>,
    upper_dir: Option<Vec<u8>>,
}

impl Holder {
    pub(super) fn new(ctr_dir: PathBuf, layers: Vec<Digest>, upper: &Upper) -> Holder {
        let upper_dir = match upper {
            // A later process may run elsewhere.
            Upper::Disk { dir, .. } => {
                Some(std::path::absolute(dir).unwrap_or_else(|_| dir.clone()))
            }
            Upper::Tmpfs { .. } => None,
        };
        Holder { ctr_dir, layers, upper_dir }
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.ctr_dir.join("rootfs")
    }

    fn path(&self, dir: &Path) -> PathBuf {
        let id = Digest::of(self.ctr_dir.as_os_str().as_bytes()).hex();
        dir.join(id)
    }

    /// Atomic against the death of this process. Not synced: after a power cut there are no mounts to know about.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let bytes = |p: &PathBuf| p.as_os_str().as_bytes().to_vec();
        let wire = Wire {
            ctr_dir: bytes(&self.ctr_dir),
            layers: self.layers.clone(),
            upper_dir: self.upper_dir.as_ref().map(bytes),
        };
        let mut out = vec![VERSION];
        // Serialising plain data into a growing vector has no failure.
        out.extend(postcard::to_stdvec(&wire).unwrap_or_default());
        let to = self.path(dir);
        let tmp = to.with_extension("new");
        std::fs::write(&tmp, &out).map_err(|e| Error::io("write", &tmp, e))?;
        std::fs::rename(&tmp, &to).map_err(|e| Error::io("rename", &to, e))
    }

    pub(super) fn forget(&self, dir: &Path) -> Result<()> {
        let path = self.path(dir);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("unlink", path, e)),
            _ => Ok(()),
        }
    }

    fn parse(bytes: &[u8]) -> Option<Holder> {
        let (&VERSION, body) = bytes.split_first()? else { return None };
        let w: Wire = postcard::from_bytes(body).ok()?;
        let path = |b| PathBuf::from(OsString::from_vec(b));
        Some(Holder {
            ctr_dir: path(w.ctr_dir),
            layers: w.layers,
            upper_dir: w.upper_dir.map(path),
        })
    }
}

/// All records that can be read. Others are unfinished writes of a process that died before it mounted anything.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Holder>> {
    let mut out = Vec::new();
    for name in disk::names(dir)? {
        let path = dir.join(&name);
        let holder = disk::read_file(&path, "holder record, bytes", HOLDER_BYTES_MAX)?
            .and_then(|b| Holder::parse(&b))
            // A record under another name than its own is none of ours.
            .filter(|h| h.path(dir) == path);
        match holder {
            Some(h) => out.push(h),
            None => {
                disk::remove_file(&path)?;
            }
        }
    }
    Ok(out)
}
