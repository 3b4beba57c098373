//! The few disk operations the store is made of, each with its error and, in tests, in a log that is replayed as power
//! cuts between any two of them.
//!
//! The rule they serve: write, fsync the file, fsync its directory, rename, fsync the target's directory; a failed fsync
//! is never retried (the page cache may have dropped what it could not write), the whole piece of work fails instead.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A file being written.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    path: PathBuf,
}

impl NewFile {
    pub(crate) fn create(path: PathBuf) -> Result<NewFile> {
        log::op(|| log::Op::Create(path.clone()))?;
        let file = File::create_new(&path).map_err(|e| Error::io("create", &path, e))?;
        Ok(NewFile { file, path })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        log::op(|| log::Op::Write(self.path.clone(), bytes.to_vec()))?;
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }

    pub(crate) fn sync(self) -> Result<()> {
        log::op(|| log::Op::SyncFile(self.path.clone()))?;
        self.file.sync_all().map_err(|e| Error::io("fsync", &self.path, e))
    }
}

/// Writes and syncs a whole file. Its name is not durable until its directory is synced.
pub(crate) fn write_file(path: PathBuf, bytes: &[u8]) -> Result<()> {
    let mut f = NewFile::create(path)?;
    f.write(bytes)?;
    f.sync()
}

/// Reads a file of at most `max` bytes; None where there is none.
pub(crate) fn read_file(path: &Path, what: &'static str, max: u64) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    let found = bytes.len() as u64;
    if found > max { Err(Error::TooBig { what, limit: max, found }) } else { Ok(Some(bytes)) }
}

/// Makes a directory; one that is there already is fine.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(Error::io("mkdir", path, e)),
        Ok(()) => log::op(|| log::Op::MakeDir(path.into())),
    }
}

pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    log::op(|| log::Op::SyncDir(path.into()))?;
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|e| Error::io("fsync", path, e))
}

/// Renames and makes both directories' changes durable.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    log::op(|| log::Op::Rename(from.into(), to.into()))?;
    fs::rename(from, to).map_err(|e| Error::io("rename", to, e))?;
    for dir in [to.parent(), from.parent()].into_iter().flatten() {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Removes a file durably; false where there is none.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    log::op(|| log::Op::Remove(path.into()))?;
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir).map(|()| true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("unlink", path, e)),
    }
}

/// Removes a directory and what is in it, never following a link out of it; what is not there is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    log::op(|| log::Op::Remove(path.into()))?;
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// [`remove_tree`] for what may be a file.
pub(crate) fn remove_tree_or_file(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(m) if !m.is_dir() => {
            log::op(|| log::Op::Remove(path.into()))?;
            fs::remove_file(path).map_err(|e| Error::io("unlink", path, e))
        }
        _ => remove_tree(path),
    }
}

/// The names in a directory that are UTF-8, sorted.
pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    };
    read().map_err(|e| Error::io("readdir", dir, e))
}

#[cfg(not(test))]
mod log {
    //! Outside tests there is no log; the closures are never run.
    use crate::error::Result;
    use std::path::PathBuf;

    #[allow(dead_code)]
    pub(super) enum Op {
        Create(PathBuf),
        Write(PathBuf, Vec<u8>),
        SyncFile(PathBuf),
        MakeDir(PathBuf),
        SyncDir(PathBuf),
        Rename(PathBuf, PathBuf),
        Remove(PathBuf),
    }

    pub(super) fn op(_: impl FnOnce() -> Op) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod log;
