//! Named files, from a directory or from a tar on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Result as IoResult};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::decompress::Decoder;
use crate::disk::NewFile;
use crate::error::{Error, Result};
use crate::store::{IngestDir, Store};
use crate::tarfmt::{BLOCK, Kind, Parser, TarFault};

/// Most members of an archive that holds an image; images have three per layer.
const ARCHIVE_MEMBERS_MAX: usize = 10_000;
/// Links followed to find a layer in an old `docker save` archive.
const LINKS_MAX: usize = 4;

/// Where an image's files are.
pub(super) struct Source {
    path: PathBuf,
    archive: Option<Archive>,
}

struct Archive {
    file: Arc<File>,
    members: BTreeMap<String, Member>,
    /// Holds the file when it had to be decompressed first.
    _spool: Option<IngestDir>,
}

enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// An open file of a source.
pub(super) struct Blob {
    file: Arc<File>,
    at: u64,
    end: u64,
    pub(super) size: u64,
}

impl Read for Blob {
    fn read(&mut self, out: &mut [u8]) -> IoResult<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = out.len().min(left);
        let n = self.file.read_at(out.get_mut(..want).unwrap_or_default(), self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Source {
    pub(super) fn open(store: &Store, path: &Path) -> Result<Source> {
        let kind = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let archive = if kind.is_dir() { None } else { Some(Archive::open(store, path)?) };
        Ok(Source { path: path.to_path_buf(), archive })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file by its name in the layout. The name may come from an untrusted manifest.json.
    pub(super) fn get(&mut self, name: &str) -> Result<Option<Blob>> {
        let name = normal(name);
        match &self.archive {
            Some(a) => Ok(a.get(&name)),
            None if name.split('/').any(|p| p == "..") => Ok(None),
            None => {
                let path = self.path.join(&name);
                let file = match File::open(&path) {
                    Ok(f) => f,
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(e) => return Err(Error::io("open", path, e)),
                };
                let meta = file.metadata().map_err(|e| Error::io("stat", &path, e))?;
                if !meta.is_file() {
                    return Ok(None);
                }
                let size = meta.len();
                Ok(Some(Blob { file: Arc::new(file), at: 0, end: size, size }))
            }
        }
    }
}

/// Without `./`, doubled and leading slashes.
fn normal(name: &str) -> String {
    let parts: Vec<_> = name.split('/').filter(|p| !matches!(*p, "" | ".")).collect();
    parts.join("/")
}

/// A link target seen from the member at `from`.
fn resolve(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            p => parts.push(p),
        }
    }
    Some(parts.join("/"))
}

impl Archive {
    fn open(store: &Store, path: &Path) -> Result<Archive> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let size = file.metadata().map_err(|e| Error::io("stat", path, e))?.len();
        let bad = |e: std::io::Error| match e.raw_os_error() {
            Some(_) => Error::io("read", path, e),
            None => Error::Compression { what: path.display().to_string(), detail: e.to_string() },
        };
        let mut reader = BufReader::with_capacity(128 << 10, &file);
        let mut decoder = Decoder::new(&mut reader).map_err(bad)?;
        if matches!(decoder, Decoder::Plain(_)) {
            return Archive::scan(Arc::new(file), size, path, None);
        }
        // Blobs are read out of order, so a compressed archive is unpacked beside the layers first.
        let spool = store.ingest_dir()?;
        let to = spool.path.join("archive");
        let mut out = NewFile::create(to.clone())?;
        let limits = store.limits();
        let ceiling = limits
            .ratio_slack_bytes
            .saturating_add(size.saturating_mul(limits.ratio_max))
            .min(limits.image_bytes_max);
        let mut buffer = vec![0; 128 << 10];
        let mut total = 0;
        loop {
            let n = decoder.read(&mut buffer).map_err(bad)?;
            if n == 0 {
                break;
            }
            total += n as u64;
            if total > ceiling {
                let what = "archive, bytes after decompression";
                return Err(Error::TooBig { what, limit: ceiling, found: total });
            }
            store.check_space(n as u64)?;
            out.write(buffer.get(..n).unwrap_or_default())?;
        }
        let file = File::open(&to).map_err(|e| Error::io("open", &to, e))?;
        Archive::scan(Arc::new(file), total, path, Some(spool))
    }

    /// Lists the members, seeking over their data.
    fn scan(file: Arc<File>, size: u64, path: &Path, spool: Option<IngestDir>) -> Result<Archive> {
        let mut members = BTreeMap::new();
        let mut parser = Parser::new();
        let mut at = 0;
        let mut block = [0; BLOCK];
        while at < size {
            let want = BLOCK.min(usize::try_from(size - at).unwrap_or(BLOCK));
            let part = block.get_mut(..want).unwrap_or_default();
            file.read_exact_at(part, at).map_err(|e| Error::io("read", path, e))?;
            at += want as u64;
            let fed = parser.feed(part, &mut |m| {
                if members.len() >= ARCHIVE_MEMBERS_MAX {
                    return Err(TarFault::TooMany);
                }
                let Ok(name) = String::from_utf8(m.path) else { return Ok(()) };
                let name = normal(&name);
                let link = String::from_utf8(m.link).unwrap_or_default();
                let member = match m.kind {
                    Kind::File => Some(Member::Data { offset: m.data_offset, size: m.size }),
                    Kind::Symlink => resolve(&name, &link).map(Member::Link),
                    Kind::Hardlink => Some(Member::Link(normal(&link))),
                    _ => None,
                };
                if let Some(member) = member {
                    members.insert(name, member);
                }
                Ok(())
            });
            if let Err(e) = fed {
                if e.offset == 0 && e.fault == TarFault::Checksum {
                    let why = "neither a directory nor a tar (plain, gzip or zstd)";
                    return Err(Error::NotAnImage { path: path.into(), why });
                }
                return Err(crate::store::tar_error(e));
            }
            at += parser.skippable();
            parser.skip();
        }
        if at > size || parser.finish().is_err() {
            let why = "the tar is cut short";
            return Err(Error::NotAnImage { path: path.into(), why });
        }
        Ok(Archive { file, members, _spool: spool })
    }

    fn get(&self, name: &str) -> Option<Blob> {
        let mut name = name;
        for _ in 0..=LINKS_MAX {
            match self.members.get(name)? {
                Member::Link(to) => name = to,
                Member::Data { offset, size } => {
                    let (at, size) = (*offset, *size);
                    return Some(Blob { file: Arc::clone(&self.file), at, end: at + size, size });
                }
            }
        }
        None
    }
}
