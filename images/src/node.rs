//! A node's own archive: its configuration and credentials, as a second initrd.

use crate::{Error, Result, cpio::Archive};
use std::path::{Path, PathBuf};

/// Most files in a node's archive. More are refused: it is configuration, not a file store.
pub const NODE_FILES_MAX: usize = 256;

/// A node's own archive, to be given as a second initrd: its files, unread, below `etc/quelea`.
///
/// # Errors
/// [`Error::Cpio`] for a bad name or more than [`NODE_FILES_MAX`] files; [`Error::Io`].
pub fn node_archive(files: &[(String, Vec<u8>)]) -> Result<Archive> {
    let mut archive = Archive::new();
    if files.len() > NODE_FILES_MAX {
        return Err(Error::Cpio {
            path: "etc/quelea".into(),
            what: "more than NODE_FILES_MAX files",
        });
    }
    archive.dir("etc/quelea", 0o700)?;
    for (name, bytes) in files {
        archive.file(&format!("etc/quelea/{name}"), 0o600, bytes.clone())?;
    }
    Ok(archive)
}

/// The same from a directory, one level of subdirectories included.
///
/// # Errors
/// As [`node_archive`].
pub fn node_archive_of_dir(dir: &Path) -> Result<Archive> {
    let mut files = Vec::new();
    let list = |dir: &Path| -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
        entries.map(|e| e.map(|e| e.path()).map_err(Error::io("list", dir))).collect()
    };
    let mut add = |path: &Path| -> Result<()> {
        let name = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
        files.push((name, std::fs::read(path).map_err(Error::io("read", path))?));
        Ok(())
    };
    for path in list(dir)? {
        if path.is_dir() {
            list(&path)?.iter().filter(|p| p.is_file()).try_for_each(|p| add(p))?;
        } else {
            add(&path)?;
        }
    }
    node_archive(&files)
}
