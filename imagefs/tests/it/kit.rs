//! Scratch directories, private mount namespaces, hand-made layers and images.

#![allow(unsafe_code)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use imagefs::oci::media;
use imagefs::{Digest, Image, ImageRecord, Store};

/// A directory that goes away with the value, whatever is mounted below it in this thread's namespace.
pub(crate) struct Scratch(PathBuf);

static NEXT: AtomicU32 = AtomicU32::new(0);

impl Scratch {
    pub(crate) fn new(name: &str) -> Scratch {
        Scratch::below(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
    }

    pub(crate) fn below(base: &Path, name: &str) -> Scratch {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = base.join(format!("{name}-{}-{n}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Scratch(dir.canonicalize().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, p: &str) -> PathBuf {
        self.0.join(p)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        let mut below: Vec<_> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(4))
            .filter(|m| Path::new(m).starts_with(&self.0))
            .collect();
        below.reverse();
        for m in below {
            let _ = rustix::mount::unmount(m, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Gives the calling thread its own mount namespace; false (and a SKIP line) where that is not allowed.
pub(crate) fn private_mounts(test: &str) -> bool {
    use rustix::mount::{MountPropagationFlags, mount_change};
    // SAFETY: unshare(CLONE_NEWNS) touches no memory; it gives this thread its own fs_struct and mount namespace.
    if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
        let why = std::io::Error::last_os_error();
        skip::because(test, format_args!("unshare(CLONE_NEWNS): {why}"));
        return false;
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let known = fs::read_to_string("/proc/filesystems").unwrap();
    for fs in ["erofs", "overlay"] {
        if !known.split_whitespace().any(|w| w == fs) {
            skip::because(test, format_args!("kernel without {fs}"));
            return false;
        }
    }
    true
}

/// One member of a hand-made layer.
pub(crate) enum M<'a> {
    Dir(&'a str, u32),
    File(&'a str, &'a [u8]),
    Link(&'a str, &'a str),
    Hard(&'a str, &'a str),
}

/// A tar by an independent writer (the `tar` crate).
pub(crate) fn tar(members: &[M<'_>]) -> Vec<u8> {
    let mut b = tar::Builder::new(Vec::new());
    for m in members {
        let mut h = tar::Header::new_gnu();
        h.set_mtime(1_000_000_000);
        h.set_uid(0);
        h.set_gid(0);
        h.set_mode(0o644);
        h.set_size(0);
        match m {
            M::Dir(path, mode) => {
                h.set_entry_type(tar::EntryType::Directory);
                h.set_mode(*mode);
                b.append_data(&mut h, path, &[][..]).unwrap();
            }
            M::File(path, data) => {
                h.set_size(data.len() as u64);
                b.append_data(&mut h, path, *data).unwrap();
            }
            M::Link(path, to) => {
                h.set_entry_type(tar::EntryType::Symlink);
                b.append_link(&mut h, path, to).unwrap();
            }
            M::Hard(path, to) => {
                h.set_entry_type(tar::EntryType::Link);
                b.append_link(&mut h, path, to).unwrap();
            }
        }
    }
    b.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(bytes).unwrap();
    e.finish().unwrap()
}

/// Writes an OCI layout with one image of these layers (media type, blob, uncompressed tar) and returns the manifest.
pub(crate) fn layout(dir: &Path, name: &str, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> Digest {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let d = Digest::of(bytes);
        fs::write(blobs.join(d.hex()), bytes).unwrap();
        (d, bytes.len())
    };
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let diff_ids: Vec<_> = layers.iter().map(|(_, _, t)| Digest::of(t).to_string()).collect();
    let config = serde_json::json!({
        "architecture": arch, "os": "linux",
        "config": {"Cmd": ["/bin/x"], "Env": null, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (config, config_len) = put(config.to_string().as_bytes());
    let layers: Vec<_> = layers
        .iter()
        .map(|(kind, blob, _)| {
            let (d, len) = put(blob);
            serde_json::json!({"mediaType": kind, "digest": d, "size": len})
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::MANIFEST,
        "config": {"mediaType": media::CONFIG, "digest": config, "size": config_len},
        "layers": layers,
    });
    let (manifest, len) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": media::MANIFEST, "digest": manifest, "size": len,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }],
    });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest
}

/// A store with one image of these plain layers.
pub(crate) fn store_with(scratch: &Scratch, layers: &[Vec<u8>]) -> (Store, Image) {
    let dir = scratch.join("layout");
    let layers: Vec<_> = layers.iter().map(|t| (media::LAYER, t.clone(), t.clone())).collect();
    layout(&dir, "test:1", &layers);
    let store = Store::open(scratch.join("store")).unwrap();
    let record = store.import(&dir, None, &mut |_| {}).unwrap();
    let image = store.get(&record.manifest_digest).unwrap().unwrap();
    (store, image)
}

/// Copies an image from one store to another the way two nodes do.
pub(crate) fn fetch(from: &Store, to: &Store, record: &ImageRecord) -> Image {
    use std::io::Read;
    let _pin = to.pin(record);
    for blob in to.missing(record) {
        let (mut file, len) = from.open_blob(&blob).unwrap();
        assert_eq!(len, blob.size_bytes);
        let mut ingest = to.ingest(blob).unwrap();
        let mut buffer = [0; 10_000];
        loop {
            match file.read(&mut buffer).unwrap() {
                0 => break,
                n => ingest.write(&buffer[..n]).unwrap(),
            }
        }
        ingest.commit().unwrap();
    }
    to.link(record).unwrap()
}
