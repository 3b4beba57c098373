//! Power cuts between any two disk operations, and every operation failing.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::disk::log::{self, Unsynced};
use crate::tarfmt::{Header, header};

struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // In memory where there is such a place: thousands of real fsyncs would prove nothing here.
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
        let dir = base.join(format!("imagefs-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Scratch(dir.canonicalize().unwrap())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tar(n: u8) -> Vec<u8> {
    let mut out = header(&Header {
        path: &[b'f', n],
        link: b"",
        kind: b'0',
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 600,
        mtime_s: 0,
        major: 0,
        minor: 0,
        xattrs: &[],
    });
    out.extend([n; 600]);
    out.resize(out.len() + 424 + 1024, 0);
    out
}

/// An image's record and its blobs.
type Sample = (ImageRecord, Vec<(BlobRef, Vec<u8>)>);

/// An image of layers `ns`.
fn image(name: &str, ns: &[u8]) -> Sample {
    let tars: Vec<_> = ns.iter().map(|n| tar(*n)).collect();
    let ids: Vec<_> = tars.iter().map(|t| Digest::of(t)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
    })
    .to_string()
    .into_bytes();
    let layer = |t: &Vec<u8>| {
        serde_json::json!({
            "mediaType": crate::oci::media::LAYER, "digest": Digest::of(t), "size": t.len(),
        })
    };
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::oci::media::MANIFEST,
        "config": {"mediaType": crate::oci::media::CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": tars.iter().map(layer).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let verity = |t: &[u8]| {
        let mut h = crate::verity::Hasher::new();
        h.update(t);
        crate::verity::digest(t.len() as u64, &h.finish())
    };
    let layers = tars
        .iter()
        .map(|t| LayerRecord {
            diff_id: Digest::of(t),
            size_bytes: t.len() as u64,
            verity: verity(t),
        })
        .collect();
    let record = ImageRecord {
        reference: name.into(),
        manifest_digest: Digest::of(&manifest),
        manifest_bytes: manifest.len() as u64,
        config_digest: Digest::of(&config),
        config_bytes: config.len() as u64,
        platform: "linux/amd64".into(),
        layers,
    };
    let bytes: Vec<_> = [vec![manifest, config], tars].concat();
    let find = |b: &BlobRef| bytes.iter().find(|x| Digest::of(x) == b.digest).unwrap().clone();
    let blobs = record.blobs().into_iter().map(|b| (b, find(&b))).collect();
    (record, blobs)
}

fn put(store: &Store, image: &Sample) -> Result<()> {
    let _pin = store.pin(&image.0);
    for blob in store.missing(&image.0) {
        let (_, bytes) = image.1.iter().find(|(b, _)| *b == blob).unwrap();
        let mut ingest = store.ingest(blob)?;
        ingest.write(bytes)?;
        ingest.commit()?;
    }
    store.link(&image.0).map(|_| ())
}

/// Everything the store says it has it has, byte for byte; and it works.
fn check(root: &Path, images: &[Sample]) -> Vec<String> {
    let store = Store::open(root).unwrap();
    let names: Vec<_> = store.list().unwrap().into_iter().map(|r| r.reference).collect();
    for image in images {
        let (record, blobs) = image;
        for (blob, bytes) in blobs.iter().filter(|(b, _)| store.has(b)) {
            let path = store.open_blob(blob).unwrap().0;
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut { path }, &mut got).unwrap();
            assert!(got == *bytes, "{blob:?}");
            if blob.kind == BlobKind::Layer {
                assert!(store.layer_is_sound(&blob.digest).unwrap());
            }
        }
        if names.contains(&record.reference) {
            assert!(
                store.missing(record).is_empty(),
                "{} names what is not there",
                record.reference
            );
            assert_eq!(store.resolve(&record.reference).unwrap().unwrap().record, *record);
        }
    }
    for dir in ["ingest", "trash"] {
        assert!(disk::names(&root.join(dir)).unwrap().is_empty());
    }
    for image in images {
        put(&store, image).unwrap();
        assert_eq!(store.resolve(&image.0.reference).unwrap().unwrap().record, image.0);
    }
    names
}

fn story(root: &Path, images: &[Sample]) -> Result<()> {
    let store = Store::open(root)?;
    put(&store, &images[0])?;
    put(&store, &images[1])?;
    store.remove(&images[0].0.reference)?;
    store.gc(&[])?;
    Ok(())
}

#[test]
fn power_cuts_at_every_operation() {
    let s = Scratch::new();
    let images = [image("a:1", &[1, 2]), image("b:1", &[2, 3])];
    let root = s.0.join("store");
    std::fs::create_dir(&root).unwrap();
    let ops = log::record(|| story(&root, &images).unwrap());
    assert!(ops.len() > 60, "{}", ops.len());
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..=ops.len() {
        for unsynced in [Unsynced::Lost, Unsynced::NamesOnly, Unsynced::Garbage, Unsynced::Kept] {
            let replay = s.0.join(format!("{n}-{unsynced:?}"));
            log::power_cut(&ops[..n], &root, &replay, unsynced);
            let names = std::panic::catch_unwind(|| check(&replay, &images));
            let Ok(names) = names else {
                panic!("after {n} operations ({:?}), unsynced {unsynced:?}", ops[..n].last());
            };
            if n == ops.len() {
                assert_eq!(names, ["b:1"], "a finished story is durable: {unsynced:?}");
            }
            seen.insert(names);
            std::fs::remove_dir_all(&replay).unwrap();
        }
    }
    // All states in between were seen: nothing, the first image, both, the second.
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn an_error_at_every_operation() {
    let s = Scratch::new();
    let images = [image("a:1", &[1, 2]), image("b:1", &[2, 3])];
    let mut n = 0;
    loop {
        let root = s.0.join(n.to_string());
        std::fs::create_dir(&root).unwrap();
        let done = log::fail_after(n, || story(&root, &images).is_ok());
        check(&root, &images);
        std::fs::remove_dir_all(&root).unwrap();
        if done {
            break;
        }
        n += 1;
        assert!(n < 500);
    }
    assert!(n > 60);
}

#[test]
fn a_small_filesystem_keeps_a_smaller_reserve() {
    let reserve = |mib: u64| Limits::of_filesystem(mib << 20).reserve_bytes >> 20;
    assert_eq!((reserve(64), reserve(512), reserve(4000), reserve(1 << 20)), (8, 64, 200, 1024));
}
