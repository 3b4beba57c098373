//! The file operations of the log, apart from it, so that a test can fail or end the world at each of them.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// A directory's files.
pub(super) trait Files: fmt::Debug + Send {
    /// Makes a directory and its parents; fine when it is there. `true` when it was not.
    fn make_dir(&self, dir: &Path) -> io::Result<bool>;
    /// Length of a file; `None` when there is none.
    fn len(&self, path: &Path) -> io::Result<Option<u64>>;
    /// Content of a file, at most so many bytes; `None` when there is none.
    fn read(&self, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>>;
    /// A new, empty file in place of any of that name.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// An existing file, to write to.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Puts one file in the place of another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file that grows at its end.
pub(super) trait LogFile: fmt::Debug + Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts it to a length; what is written next follows there.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Makes its content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The kernel's.
#[derive(Debug)]
pub(super) struct Real;

impl Files for Real {
    fn make_dir(&self, dir: &Path) -> io::Result<bool> {
        let new = !dir.try_exists()?;
        fs::create_dir_all(dir).map(|()| new)
    }

    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        absent(fs::metadata(path).map(|meta| meta.len()))
    }

    fn read(&self, path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
        absent(File::open(path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(max).read_to_end(&mut bytes).map(|_| bytes)
        }))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        File::create(path).map(|file| Box::new(file) as Box<dyn LogFile>)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = OpenOptions::new().write(true).open(path);
        file.map(|file| Box::new(file) as Box<dyn LogFile>)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl LogFile for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)?;
        self.seek(SeekFrom::Start(len)).map(drop)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

fn absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
