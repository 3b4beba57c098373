//! The store between processes and nodes: serving, ingesting, pins, garbage, locks.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};

use imagefs::{BlobKind, BlobRef, Digest, Error, Store};

use crate::kit::{M, Scratch, fetch, private_mounts, store_with, tar};

fn layer(n: u8, len: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..len).map(|i| (i / 7) as u8 ^ n).collect();
    tar(&[M::File(&format!("f{n}"), &data)])
}

fn names(s: &Scratch, dir: &str) -> Vec<String> {
    let mut v: Vec<_> = fs::read_dir(s.join(dir))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    v.sort();
    v
}

#[test]
fn handles_cross_threads_and_uppers_are_swept() {
    fn both<T: Send + Sync>() {}
    fn send<T: Send>() {}
    both::<Store>();
    both::<imagefs::Pin>();
    send::<imagefs::Ingest>();
    send::<imagefs::Mounts>();
    let s = Scratch::new("uppers");
    let store = Store::open(s.join("store")).unwrap();
    for name in ["a", "b", "../c"] {
        fs::create_dir_all(store.upper_dir(name).join("u")).unwrap();
    }
    assert_eq!(store.sweep_uppers(&[store.upper_dir("a")]).unwrap(), 2);
    assert_eq!(names(&s, "store/up"), ["a"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(s.join("store")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn one_process_at_a_time() {
    let s = Scratch::new("lock");
    let a = Store::open(s.join("store")).unwrap();
    assert!(matches!(Store::open(s.join("store")), Err(Error::StoreInUse { .. })));
    let pin = a.clone();
    drop(a);
    assert!(matches!(Store::open(s.join("store")), Err(Error::StoreInUse { .. })));
    drop(pin);
    Store::open(s.join("store")).unwrap();
}

#[test]
fn ingest_takes_exactly_what_was_announced() {
    let s = Scratch::new("ingest");
    let (one, image) = store_with(&s, &[layer(1, 1000)]);
    let two = Store::open(s.join("two")).unwrap();
    let clean = || names(&s, "two/ingest").is_empty() && names(&s, "two/layers").is_empty();
    for blob in image.record.blobs() {
        let mut bytes = Vec::new();
        one.open_blob(&blob).unwrap().0.read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest);
        let mut short = two.ingest(blob).unwrap();
        short.write(&bytes[..bytes.len() - 1]).unwrap();
        assert!(short.commit().is_err());
        let mut long = two.ingest(blob).unwrap();
        long.write(&bytes).unwrap();
        assert!(matches!(long.write(b"x"), Err(Error::SizeMismatch { .. })));
        drop(long);
        let mut wrong = two.ingest(blob).unwrap();
        let mut other = bytes.clone();
        // Inside a file's data, or in JSON: well-formed, but not what was asked for.
        let at = if blob.kind == BlobKind::Layer { 600 } else { bytes.len() - 2 };
        other[at] ^= 1;
        wrong.write(&other).unwrap();
        assert!(matches!(wrong.commit(), Err(Error::DigestMismatch { .. })));
        let mut dropped = two.ingest(blob).unwrap();
        dropped.write(&bytes[..10]).unwrap();
        drop(dropped);
        assert!(!two.has(&blob) && clean());
    }
    let huge = BlobRef { kind: BlobKind::Manifest, digest: Digest::of(b""), size_bytes: 1 << 40 };
    assert!(matches!(two.ingest(huge), Err(Error::TooBig { .. })));
    // A digest that names something that is no manifest.
    let bytes = b"{}";
    let blob = BlobRef { kind: BlobKind::Manifest, digest: Digest::of(bytes), size_bytes: 2 };
    let mut i = two.ingest(blob).unwrap();
    i.write(bytes).unwrap();
    assert!(matches!(i.commit(), Err(Error::Json { .. })));
    fetch(&one, &two, &image.record);
    // Again is fine.
    for blob in image.record.blobs() {
        let mut bytes = Vec::new();
        one.open_blob(&blob).unwrap().0.read_to_end(&mut bytes).unwrap();
        let mut i = two.ingest(blob).unwrap();
        i.write(&bytes).unwrap();
        i.commit().unwrap();
    }
    assert!(names(&s, "two/ingest").is_empty());
}

#[test]
fn a_bad_piece_is_noticed_when_it_completes() {
    let s = Scratch::new("pieces");
    let (one, image) = store_with(&s, &[layer(1, 2_000_000)]);
    let two = Store::open(s.join("two")).unwrap();
    let l = image.record.layers[0];
    let blob = image.record.blobs()[2];
    let pieces = one.pieces(&l.diff_id).unwrap().unwrap();
    assert_eq!(pieces.len(), 32 * (l.size_bytes as usize).div_ceil(512 << 10));
    let mut bytes = Vec::new();
    one.open_blob(&blob).unwrap().0.read_to_end(&mut bytes).unwrap();
    let mut forged = pieces.clone();
    forged[40] ^= 1;
    let mut i = two.ingest(blob).unwrap();
    assert!(i.expect_pieces(&l.verity, &forged).is_err());
    assert!(i.expect_pieces(&l.verity, &pieces[1..]).is_err());
    assert!(i.expect_pieces(&l.verity, &pieces[32..]).is_err());
    i.expect_pieces(&l.verity, &pieces).unwrap();
    bytes[700_000] ^= 1;
    let at = bytes.chunks(100_000).position(|c| i.write(c).is_err()).unwrap();
    // Piece 1 ends at 1,048,576: in the eleventh chunk.
    assert_eq!(at, 10);
    let e = i.write(&[]).err();
    assert!(e.is_none());
    drop(i);
    bytes[700_000] ^= 1;
    let mut i = two.ingest(blob).unwrap();
    i.expect_pieces(&l.verity, &pieces).unwrap();
    bytes.chunks(77_777).for_each(|c| i.write(c).unwrap());
    i.commit().unwrap();
    assert_eq!(two.pieces(&l.diff_id).unwrap().unwrap(), pieces);
}

#[test]
fn garbage_is_what_nothing_names() {
    let s = Scratch::new("gc");
    let (store, a) = store_with(&s, &[layer(1, 10), layer(2, 10)]);
    crate::kit::layout(
        &s.join("layout2"),
        "b:1",
        &[layer(2, 10), layer(3, 10)].map(|t| (imagefs::oci::media::LAYER, t.clone(), t)),
    );
    let b = store.import(&s.join("layout2"), None, &mut |_| {}).unwrap();
    assert_eq!(store.gc(&[]).unwrap(), Default::default());
    assert_eq!(names(&s, "store/layers").len(), 3);
    assert!(store.remove("b:1").unwrap() && !store.remove("b:1").unwrap());
    // Held by a running container, or by a fetch.
    assert_eq!(store.gc(std::slice::from_ref(&b)).unwrap(), Default::default());
    let pins = (store.pin(&b), store.pin(&b));
    drop(pins.0);
    assert_eq!(store.gc(&[]).unwrap(), Default::default());
    drop(pins.1);
    let r = store.gc(&[]).unwrap();
    assert_eq!((r.blobs, r.layers), (2, 1));
    assert!(r.freed_bytes > b.layers[1].size_bytes);
    assert_eq!(store.missing(&b).len(), 3);
    assert!(store.get(&b.manifest_digest).unwrap().is_none());
    assert_eq!(store.get(&a.record.manifest_digest).unwrap().unwrap(), a);
    assert!(names(&s, "store/trash").is_empty());
    store.remove("test:1").unwrap();
    store.gc(&[]).unwrap();
    for dir in ["layers", "blobs/sha256", "refs", "ingest", "trash"] {
        assert!(names(&s, &format!("store/{dir}")).is_empty(), "{dir}");
    }
}

#[test]
fn link_refuses_a_record_that_contradicts_the_image() {
    let s = Scratch::new("link");
    let (store, image) = store_with(&s, &[layer(1, 10), layer(2, 10)]);
    let mut r = image.record.clone();
    r.layers.reverse();
    assert!(matches!(store.link(&r), Err(Error::Inconsistent { .. })));
    let mut r = image.record.clone();
    r.layers[0].verity = Digest::of(b"");
    assert!(matches!(store.link(&r), Err(Error::Inconsistent { .. })));
    let mut r = image.record.clone();
    r.manifest_digest = r.config_digest;
    assert!(store.link(&r).is_err());
    let mut r = image.record.clone();
    r.reference = "new/name".into();
    store.link(&r).unwrap();
    assert_eq!(store.resolve("new/name:latest").unwrap().unwrap().config, image.config);
    assert!(store.resolve("../x").is_err());
    assert!(store.resolve("absent").unwrap().is_none());
}

#[test]
fn after_an_unclean_end_layers_are_rehashed_before_use() {
    let s = Scratch::new("unclean");
    if !private_mounts("after_an_unclean_end_layers_are_rehashed_before_use") {
        return;
    }
    let (store, image) = store_with(&s, &[layer(1, 5000), layer(2, 5000)]);
    drop(store);
    let corrupt = |n: usize, file: &str, at: u64| {
        let l = s.join("store/layers").join(image.record.layers[n].diff_id.hex()).join(file);
        let mut f = fs::OpenOptions::new().write(true).read(true).open(l).unwrap();
        let mut byte = [0];
        f.seek(SeekFrom::Start(at)).unwrap();
        f.read_exact(&mut byte).unwrap();
        f.seek(SeekFrom::Start(at)).unwrap();
        f.write_all(&[byte[0] ^ 1]).unwrap();
    };
    let mut mounts = imagefs::Mounts::new(s.join("run")).unwrap();
    let upper = imagefs::Upper::Tmpfs { size_bytes: 1 << 20 };
    // The state file of another boot, as a power cut leaves it.
    fs::write(s.join("store/state"), "another-boot\n").unwrap();
    let store = Store::open(s.join("store")).unwrap();
    mounts.assemble(&store, &image, &s.join("c"), upper.clone(), None).unwrap();
    mounts.release(&s.join("c")).unwrap();
    drop(store);
    for (n, file, at) in [(0, "tar", 700), (1, "idx.v1", 1600), (1, "pieces", 3), (0, "meta.v1", 9)]
    {
        fs::write(s.join("store/state"), "another-boot\n").unwrap();
        let store = Store::open(s.join("store")).unwrap();
        corrupt(n, file, at);
        let e = mounts.assemble(&store, &image, &s.join("c"), upper.clone(), None).unwrap_err();
        let digest = image.record.layers[n].diff_id;
        assert!(matches!(e, Error::MissingBlob { digest: d, .. } if d == digest), "{file}: {e}");
        assert_eq!(store.missing(&image.record).len(), 1);
        // It can be had again.
        store.import(&s.join("layout"), None, &mut |_| {}).unwrap();
        mounts.assemble(&store, &image, &s.join("c"), upper.clone(), None).unwrap();
        mounts.release(&s.join("c")).unwrap();
    }
}
