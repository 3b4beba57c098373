//! A directory as a one-layer OCI image, the same bytes every time.
//!
//! Members are sorted, times are fixed, owners are root unless asked otherwise, gzip has no name and no time. So two
//! machines with equal trees and equal versions of this crate get one digest.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde::Serialize;

use crate::digest::{Digest, Hasher};
use crate::disk;
use crate::error::{Error, Result};
use crate::oci::{
    Config, Descriptor, Document, Empty, Index, MANIFEST_BYTES_MAX, Manifest, Platform, REF_NAME,
    RootfsConfig, RunConfig, media,
};
use crate::record::reference;
use crate::tarfmt::{Header, header, padding};
use crate::tree::{DEPTH_MAX, MEMBERS_MAX};

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
    /// `amd64`, `arm64`; the machine's own when None.
    pub architecture: Option<String>,
    /// Keep the owners found on disk; otherwise everything is 0:0.
    pub keep_owners: bool,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The name in the index.
    pub reference: String,
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
/// replaced). Sockets are left out. The root directory is always 0755.
pub fn pack(dir: &Path, out: &Path, options: &PackOptions) -> Result<Packed> {
    let name = reference(&options.reference)?;
    if !fs::metadata(dir).map_err(|e| Error::io("open", dir, e))?.is_dir() {
        return Err(Error::NotAnImage { path: dir.into(), why: "not a directory" });
    }
    let blobs = out.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|e| Error::io("mkdir", &blobs, e))?;
    let layer = write_layer(dir, &blobs, options)?;
    let config_bytes = json(&config(options, layer.diff_id))?;
    let config_digest = put(&blobs, &config_bytes)?;
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media::MANIFEST.into()),
        config: descriptor(media::CONFIG, config_digest, config_bytes.len() as u64),
        layers: vec![descriptor(media::LAYER_GZIP, layer.digest, layer.compressed)],
        annotations: BTreeMap::new(),
    };
    let bytes = json(&manifest)?;
    let manifest_digest = put(&blobs, &bytes)?;
    let mut entry = descriptor(media::MANIFEST, manifest_digest, bytes.len() as u64);
    entry.annotations.insert(REF_NAME.into(), name.clone());
    entry.platform = Some(platform(options));
    add_to_index(out, &name, entry)?;
    Ok(Packed {
        reference: name,
        manifest_digest,
        config_digest,
        diff_id: layer.diff_id,
        layer_bytes: layer.size,
        compressed_bytes: layer.compressed,
    })
}

fn platform(options: &PackOptions) -> Platform {
    let here = Platform::here();
    Platform { architecture: options.architecture.clone().unwrap_or(here.architecture), ..here }
}

fn config(o: &PackOptions, diff_id: Digest) -> Config {
    let p = platform(o);
    Config {
        architecture: p.architecture,
        os: p.os,
        variant: p.variant,
        config: RunConfig {
            user: o.user.clone(),
            exposed_ports: o.ports.iter().map(|p| (p.clone(), Empty {})).collect(),
            env: o.env.clone(),
            entrypoint: o.entrypoint.clone(),
            cmd: o.cmd.clone(),
            volumes: BTreeMap::new(),
            working_dir: o.workdir.clone(),
            labels: o.labels.clone(),
            stop_signal: o.stop_signal.clone(),
        },
        rootfs: RootfsConfig { kind: "layers".into(), diff_ids: vec![diff_id] },
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    let annotations = BTreeMap::new();
    Descriptor { media_type: media_type.into(), digest, size, platform: None, annotations }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::json("image document", &e))
}

/// Puts a file in place by rename: a layout is never seen half-written.
fn place(bytes: &[u8], to: &Path) -> Result<()> {
    let tmp = to.with_extension(format!("tmp{}", std::process::id()));
    let _ = fs::remove_file(&tmp);
    disk::write_file(tmp.clone(), bytes)?;
    disk::rename(&tmp, to)
}

fn put(blobs: &Path, bytes: &[u8]) -> Result<Digest> {
    let digest = Digest::of(bytes);
    place(bytes, &blobs.join(digest.hex()))?;
    Ok(digest)
}

fn add_to_index(out: &Path, name: &str, entry: Descriptor) -> Result<()> {
    let path = out.join("index.json");
    let old = disk::read_file(&path, "index.json, bytes", MANIFEST_BYTES_MAX)?;
    let mut manifests = match old.as_deref().map(|b| Document::parse(b, media::INDEX)) {
        None => Vec::new(),
        Some(Ok(Document::Index(i))) => i.manifests,
        Some(Ok(Document::Manifest(_))) => {
            return Err(Error::NotAnImage { path, why: "index.json is no index" });
        }
        Some(Err(e)) => return Err(e),
    };
    manifests.retain(|d| !d.names().any(|n| n == name));
    manifests.push(entry);
    let index = Index { schema_version: 2, media_type: Some(media::INDEX.into()), manifests };
    place(br#"{"imageLayoutVersion":"1.0.0"}"#, &out.join("oci-layout"))?;
    place(&json(&index)?, &path)
}

struct Layer {
    digest: Digest,
    compressed: u64,
    diff_id: Digest,
    size: u64,
}

/// Hashes and counts what is written through it.
struct Tee<W> {
    inner: W,
    sha: Hasher,
    count: u64,
}

impl<W> Tee<W> {
    fn new(inner: W) -> Tee<W> {
        Tee { inner, sha: Hasher::new(), count: 0 }
    }
}

impl<W: Write> Write for Tee<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.sha.update(bytes.get(..n).unwrap_or_default());
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn write_layer(dir: &Path, blobs: &Path, options: &PackOptions) -> Result<Layer> {
    let tmp = blobs.join(format!(".layer-{}", std::process::id()));
    let done = write_layer_to(dir, &tmp, options).and_then(|layer| {
        disk::rename(&tmp, &blobs.join(layer.digest.hex()))?;
        Ok(layer)
    });
    if done.is_err() {
        let _ = fs::remove_file(&tmp);
    }
    done
}

fn write_layer_to(dir: &Path, tmp: &Path, options: &PackOptions) -> Result<Layer> {
    let io = |e| Error::io("write", tmp, e);
    let file = File::create(tmp).map_err(io)?;
    let compressed = Tee::new(BufWriter::new(file));
    let gzip = GzBuilder::new().mtime(0).write(compressed, Compression::default());
    let mut packer = Packer { out: Tee::new(gzip), tmp, options, links: BTreeMap::new(), count: 0 };
    packer.member(dir, b"./", &fs::metadata(dir).map_err(|e| Error::io("stat", dir, e))?)?;
    packer.directory(dir, b"", 0)?;
    let mut plain = packer.out;
    plain.write_all(&[0; 1024]).map_err(io)?;
    let compressed = plain.inner.finish().map_err(io)?;
    let file = compressed.inner.into_inner().map_err(|e| io(e.into_error()))?;
    file.sync_all().map_err(|e| Error::io("fsync", tmp, e))?;
    Ok(Layer {
        digest: compressed.sha.finish(),
        compressed: compressed.count,
        diff_id: plain.sha.finish(),
        size: plain.count,
    })
}

struct Packer<'a, W> {
    out: W,
    tmp: &'a Path,
    options: &'a PackOptions,
    /// First path of every file with several links.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    count: usize,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, dir: &Path, prefix: &[u8], depth: usize) -> Result<()> {
        let io = |e| Error::io("readdir", dir, e);
        if depth >= DEPTH_MAX {
            let what = "depth of the directory tree";
            return Err(Error::TooBig { what, limit: DEPTH_MAX as u64, found: depth as u64 + 1 });
        }
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir).map_err(io)? {
            entries.push(entry.map_err(io)?.file_name());
        }
        entries.sort();
        for name in entries {
            let path = dir.join(&name);
            let mut inside = [prefix, name.as_bytes()].concat();
            let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", &path, e))?;
            if meta.is_dir() {
                inside.push(b'/');
                self.member(&path, &inside, &meta)?;
                self.directory(&path, &inside, depth + 1)?;
            } else if !meta.file_type().is_socket() {
                self.member(&path, &inside, &meta)?;
            }
        }
        Ok(())
    }

    fn member(&mut self, path: &Path, inside: &[u8], meta: &Metadata) -> Result<()> {
        self.count += 1;
        if self.count > MEMBERS_MAX {
            let found = self.count as u64;
            return Err(Error::TooBig {
                what: "files in an image",
                limit: MEMBERS_MAX as u64,
                found,
            });
        }
        let t = meta.file_type();
        let mut link = PathBuf::new();
        let mut kind = if t.is_dir() {
            b'5'
        } else if t.is_symlink() {
            link = fs::read_link(path).map_err(|e| Error::io("readlink", path, e))?;
            b'2'
        } else if t.is_char_device() {
            b'3'
        } else if t.is_block_device() {
            b'4'
        } else if t.is_fifo() {
            b'6'
        } else {
            b'0'
        };
        let mut target = link.as_os_str().as_bytes().to_vec();
        if !t.is_dir() && meta.nlink() > 1 {
            match self.links.get(&(meta.dev(), meta.ino())) {
                Some(first) => {
                    kind = b'1';
                    target.clone_from(first);
                }
                None => {
                    self.links.insert((meta.dev(), meta.ino()), inside.to_vec());
                }
            }
        }
        let owner = |id| if self.options.keep_owners { id } else { 0 };
        let size = if kind == b'0' { meta.len() } else { 0 };
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let xattrs = if kind == b'1' { Vec::new() } else { xattrs(path)? };
        let device = matches!(kind, b'3' | b'4');
        let head = header(&Header {
            path: inside,
            link: &target,
            kind,
            // A scratch directory is 0700; as a root directory it would lock every other user out.
            mode: if inside == b"./" { 0o755 } else { meta.mode() },
            uid: owner(meta.uid()),
            gid: owner(meta.gid()),
            size,
            mtime_s: self.options.mtime_s,
            major: if device { major } else { 0 },
            minor: if device { minor } else { 0 },
            xattrs: &xattrs,
        });
        self.write(&head)?;
        if kind == b'0' {
            self.data(path, size)?;
        }
        Ok(())
    }

    fn data(&mut self, path: &Path, size: u64) -> Result<()> {
        let io = |e| Error::io("read", path, e);
        let mut file = File::open(path).map_err(io)?;
        let mut buffer = vec![0; 128 << 10];
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).map_or(buffer.len(), |l| l.min(buffer.len()));
            let part = buffer.get_mut(..want).unwrap_or_default();
            // A file that shrinks under us is an error; one that grows is taken at its first size.
            file.read_exact(part).map_err(io)?;
            self.out.write_all(part).map_err(|e| Error::io("write", self.tmp, e))?;
            left -= want as u64;
        }
        self.write(&vec![0; padding(size) as usize])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::io("write", self.tmp, e))
    }
}

/// The attributes worth shipping, sorted: the user's own and file capabilities.
fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    use rustix::fs::{lgetxattr, llistxattr};
    use rustix::io::Errno;
    let mut names = vec![0u8; 64 << 10];
    let len = match llistxattr(path, &mut names[..]) {
        Ok(n) => n,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(Error::io("listxattr", path, e)),
    };
    let mut out = Vec::new();
    for name in names.get(..len).unwrap_or_default().split(|b| *b == 0) {
        if !name.starts_with(b"user.") && name != b"security.capability" {
            continue;
        }
        let mut value = vec![0u8; 64 << 10];
        let n =
            lgetxattr(path, name, &mut value[..]).map_err(|e| Error::io("getxattr", path, e))?;
        value.truncate(n);
        out.push((name.to_vec(), value));
    }
    out.sort();
    Ok(out)
}
