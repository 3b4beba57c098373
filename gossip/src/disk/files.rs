//! The file operations of the log, apart from it, so that a test can fail or end the world at each of them.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
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
    /// Keeps others out of a directory for as long as what is returned lives; `None` for good where there are no others.
    /// An error of `EWOULDBLOCK`: somebody else has it.
    fn lock(&self, dir: &Path) -> io::Result<Option<File>>;
    /// A new, empty file in place of any of that name: never the same one again, whose fsync may have failed.
    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// An existing file, to write to.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
    /// Removes a file; fine when there is none.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Puts one file in the place of another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file that grows at its end.
pub(super) trait LogFile: fmt::Debug + Send {
    /// Appends.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts it to `from` and these bytes behind it, which stand there already: they are written again. What is written next
    /// follows there.
    fn rewrite(&mut self, from: u64, bytes: &[u8]) -> io::Result<()>;
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

    fn lock(&self, dir: &Path) -> io::Result<Option<File>> {
        // flock(2) on the directory itself: gone with the process, whatever its end, and no file is left.
        let file = File::open(dir)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(io::Error::from_raw_os_error(libc::EWOULDBLOCK)),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        self.remove(path)?;
        File::create_new(path).map(|file| Box::new(file) as Box<dyn LogFile>)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = OpenOptions::new().write(true).open(path);
        file.map(|file| Box::new(file) as Box<dyn LogFile>)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        absent(fs::remove_file(path)).map(drop)
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

    fn rewrite(&mut self, from: u64, bytes: &[u8]) -> io::Result<()> {
        // In place, and cut only then: a crash in between finds the bytes that stood there.
        self.seek(SeekFrom::Start(from))?;
        self.write_all(bytes)?;
        self.set_len(from + bytes.len() as u64)
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
