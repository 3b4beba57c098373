//! Every form an image arrives in, and what is refused.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use imagefs::oci::media;
use imagefs::{Digest, Error, ImageRecord, Limits, PackOptions, Store, TarFault, pack};
use serde_json::{Value, json};

use crate::kit::{M, Scratch, gzip, layout, tar};

/// zstd by the program of that name; None (and a SKIP line) where it is missing.
fn zstd(test: &str, bytes: &[u8], args: &[&str]) -> Option<Vec<u8>> {
    let child = Command::new("zstd")
        .args(["-q", "-c"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        skip::because(test, "no zstd program");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let out = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Some(out.stdout)
}

fn import(s: &Scratch, source: &Path, name: Option<&str>) -> Result<ImageRecord, Error> {
    Store::open(s.join("store")).unwrap().import(source, name, &mut |_| {})
}

fn sample() -> Vec<u8> {
    let noise: Vec<u8> =
        (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    tar(&[M::Dir("d/", 0o755), M::File("d/f", &noise), M::Link("l", "d/f"), M::Hard("h", "d/f")])
}

fn skippable(len: u32) -> Vec<u8> {
    let mut out = vec![0x50, 0x2a, 0x4d, 0x18];
    out.extend(len.to_le_bytes());
    out.resize(8 + len as usize, 9);
    out
}

#[test]
fn compressions() {
    let t = sample();
    let Some(z) = zstd("compressions", &t, &["-3"]) else { return };
    let Some(checked) = zstd("compressions", &t, &["-19", "--check"]) else { return };
    let (head, tail) = t.split_at(t.len() / 2);
    let halves = |f: &dyn Fn(&[u8]) -> Vec<u8>| [f(head), f(tail)].concat();
    let two = halves(&|b| zstd("", b, &[]).unwrap());
    let framed = [skippable(0), z.clone(), skippable(5000)].concat();
    for (kind, blob) in [
        (media::LAYER, t.clone()),
        (media::LAYER_GZIP, gzip(&t)),
        (media::LAYER_GZIP, halves(&gzip)),
        (media::LAYER_ZSTD, z.clone()),
        (media::LAYER_ZSTD, checked),
        (media::LAYER_ZSTD, two),
        (media::LAYER_ZSTD, framed),
        (media::DOCKER_LAYER_GZIP, gzip(&t)),
        // A media type that is wrong about the compression, as Docker's often is.
        (media::DOCKER_LAYER_GZIP, t.clone()),
    ] {
        let s = Scratch::new("compress");
        layout(&s.join("l"), "a:1", &[(kind, blob, t.clone())]);
        let r = import(&s, &s.join("l"), None).unwrap();
        assert_eq!(r.layers[0].diff_id, Digest::of(&t));
    }
    let gz = gzip(&t);
    for (kind, blob) in [
        (media::LAYER_GZIP, gz[..gz.len() - 9].to_vec()),
        (media::LAYER_GZIP, [&gz[..], b"trailing"].concat()),
        (media::LAYER_ZSTD, z[..z.len() - 9].to_vec()),
        (media::LAYER_ZSTD, [&z[..], b"trailing"].concat()),
        (media::LAYER_ZSTD, [&z[..], &skippable(100)[..50]].concat()),
    ] {
        let s = Scratch::new("compress");
        layout(&s.join("l"), "a:1", &[(kind, blob, t.clone())]);
        let e = import(&s, &s.join("l"), None).unwrap_err();
        assert!(matches!(e, Error::Compression { .. }), "{e}");
        assert!(e.is_source_fault());
        let empty = |d: &str| fs::read_dir(s.join("store").join(d)).unwrap().count() == 0;
        assert!(empty("ingest") && empty("layers") && empty("refs"));
    }
}

#[test]
fn oci_layout_in_a_tar() {
    let s = Scratch::new("ocitar");
    let t = sample();
    let manifest = layout(&s.join("l"), "1.0", &[(media::LAYER_GZIP, gzip(&t), t.clone())]);
    let make = |name: &str, flag: &str| {
        let mut c = Command::new("tar");
        c.current_dir(s.join("l")).arg(format!("-c{flag}f")).arg(s.join(name)).arg(".");
        assert!(c.status().unwrap().success());
    };
    make("app.tar", "");
    make("app.tar.gz", "z");
    for name in ["app.tar", "app.tar.gz"] {
        let store = s.join(&format!("store-{name}"));
        let store = Store::open(store).unwrap();
        // A bare word in a layout is a tag; the file gives the name.
        let r = store.import(&s.join(name), None, &mut |_| {}).unwrap();
        assert_eq!((r.reference.as_str(), r.manifest_digest), ("app:1.0", manifest));
        let r = store.import(&s.join(name), Some("other"), &mut |_| {}).unwrap();
        assert_eq!(r.reference, "other:latest");
    }
    // Cut short anywhere, it is refused and not half-imported.
    let whole = fs::read(s.join("app.tar")).unwrap();
    for cut in [100, 512, 5000, whole.len() / 2] {
        fs::write(s.join("cut.tar"), &whole[..cut]).unwrap();
        assert!(import(&s, &s.join("cut.tar"), None).is_err(), "{cut}");
    }
    fs::write(s.join("text"), "not an image\n".repeat(100)).unwrap();
    let e = import(&s, &s.join("text"), None).unwrap_err();
    assert!(matches!(e, Error::NotAnImage { .. }), "{e}");
    let e = import(&s, &s.join("nothing"), None).unwrap_err();
    assert!(matches!(e, Error::Io { .. }), "{e}");
    fs::create_dir(s.join("empty")).unwrap();
    let e = import(&s, &s.join("empty"), None).unwrap_err();
    assert!(matches!(e, Error::NotAnImage { .. }), "{e}");
}

/// A `docker save` archive of old: `<id>/layer.tar`, the second a symlink to the first.
fn docker_save(s: &Scratch, tags: Value, layers: &[Vec<u8>], same: bool) {
    let d = s.join("save");
    fs::create_dir_all(&d).unwrap();
    let diff_ids: Vec<_> = layers.iter().map(|l| Digest::of(l)).collect();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({
        "architecture": arch, "os": "linux", "config": {"Entrypoint": ["/x"], "Cmd": null, "Labels": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [{"created_by": "x"}],
    });
    fs::write(d.join("config.json"), config.to_string()).unwrap();
    let mut names = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        fs::create_dir_all(d.join(format!("id{i}"))).unwrap();
        let path = d.join(format!("id{i}/layer.tar"));
        if same && i > 0 {
            std::os::unix::fs::symlink("../id0/layer.tar", path).unwrap();
        } else {
            fs::write(path, layer).unwrap();
        }
        names.push(format!("id{i}/layer.tar"));
    }
    let list = json!([{"Config": "config.json", "RepoTags": tags, "Layers": names}]);
    fs::write(d.join("manifest.json"), list.to_string()).unwrap();
    let mut c = Command::new("tar");
    c.current_dir(&d).arg("-cf").arg(s.join("save.tar")).arg("manifest.json").arg("config.json");
    (0..layers.len()).for_each(|i| {
        c.arg(format!("id{i}"));
    });
    assert!(c.status().unwrap().success());
}

#[test]
fn docker_save_archives() {
    let t = sample();
    let s = Scratch::new("save");
    docker_save(&s, json!(["app:1", "app:2"]), &[t.clone(), tar(&[M::File("x", b"1")])], false);
    let store = Store::open(s.join("store")).unwrap();
    let r = store.import(&s.join("save.tar"), None, &mut |_| {}).unwrap();
    assert_eq!(r.reference, "app:1");
    assert_eq!(store.get(&r.manifest_digest).unwrap().unwrap().config.entrypoint, ["/x"]);
    // The made-up manifest is the same every time, so two nodes that import agree.
    let again = store.import(&s.join("save.tar"), Some("app:2"), &mut |_| {}).unwrap();
    assert_eq!(again.manifest_digest, r.manifest_digest);
    // A directory with the same files is fine too.
    store.import(&s.join("save"), Some("dir"), &mut |_| {}).unwrap();
    drop(store);
    let s = Scratch::new("save");
    docker_save(&s, json!(null), &[t.clone(), t.clone()], true);
    let e = import(&s, &s.join("save.tar"), None).unwrap_err();
    assert!(matches!(e, Error::BadReference { .. }), "{e}");
    let r = import(&s, &s.join("save.tar"), Some("twice")).unwrap();
    assert_eq!(r.layers.len(), 2);
    // A layer that is not what the config says.
    let s = Scratch::new("save");
    docker_save(&s, json!(["a:1"]), &[t.clone(), tar(&[])], true);
    let e = import(&s, &s.join("save.tar"), None).unwrap_err();
    assert!(matches!(e, Error::DigestMismatch { .. }), "{e}");
}

/// Changes one JSON blob of a layout and every digest above it.
fn edit(dir: &Path, f: impl FnOnce(&mut Value, &mut Value)) {
    let read = |p: &Path| serde_json::from_slice::<Value>(&fs::read(p).unwrap()).unwrap();
    let blob = |d: &Value| {
        dir.join("blobs/sha256").join(d.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let put = |v: &Value| {
        let bytes = v.to_string().into_bytes();
        let d = Digest::of(&bytes);
        fs::write(dir.join("blobs/sha256").join(d.hex()), &bytes).unwrap();
        (json!(d), json!(bytes.len()))
    };
    let mut index = read(&dir.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]["digest"]));
    let mut config = read(&blob(&manifest["config"]["digest"]));
    let before = config.clone();
    f(&mut manifest, &mut config);
    if config != before {
        let (d, n) = put(&config);
        (manifest["config"]["digest"], manifest["config"]["size"]) = (d, n);
    }
    let (d, n) = put(&manifest);
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (d, n);
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn refused(f: impl FnOnce(&mut Value, &mut Value)) -> Error {
    let s = Scratch::new("edit");
    let t = sample();
    layout(&s.join("l"), "a:1", &[(media::LAYER_GZIP, gzip(&t), t)]);
    edit(&s.join("l"), f);
    let e = import(&s, &s.join("l"), None).unwrap_err();
    assert_eq!(fs::read_dir(s.join("store/refs")).unwrap().count(), 0);
    assert!(!e.to_string().is_empty());
    e
}

#[test]
fn manifests_that_lie() {
    let other = json!(Digest::of(b"other"));
    let e = refused(|m, _| m["layers"][0]["digest"] = other.clone());
    assert!(matches!(e, Error::MissingBlob { .. }), "{e}");
    let e = refused(|m, _| m["layers"][0]["size"] = json!(5));
    assert!(matches!(e, Error::SizeMismatch { .. }), "{e}");
    let e = refused(|m, _| m["config"]["size"] = json!(5));
    assert!(matches!(e, Error::SizeMismatch { .. }), "{e}");
    let e = refused(|m, _| {
        m["layers"][0]["mediaType"] =
            json!("application/vnd.oci.image.layer.nondistributable.v1.tar")
    });
    assert!(matches!(e, Error::MediaType { .. }), "{e}");
    let e = refused(|m, _| {
        m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")
    });
    assert!(matches!(e, Error::MediaType { .. }), "{e}");
    let e = refused(|m, _| m["mediaType"] = json!(media::INDEX));
    assert!(matches!(e, Error::MediaType { .. }), "{e}");
    let e = refused(|m, _| m["layers"] = json!([]));
    assert!(matches!(e, Error::Inconsistent { .. }), "{e}");
    let e = refused(|_, c| c["rootfs"]["diff_ids"] = json!([]));
    assert!(matches!(e, Error::Inconsistent { .. }), "{e}");
    let e = refused(|_, c| c["rootfs"]["diff_ids"][0] = other.clone());
    assert!(matches!(e, Error::DigestMismatch { .. }), "{e}");
    let e = refused(|_, c| c["rootfs"]["diff_ids"][0] = json!("sha256:zz"));
    assert!(matches!(e, Error::Json { .. }), "{e}");
    let e = refused(|_, c| c["architecture"] = json!("s390x"));
    assert!(matches!(&e, Error::NoPlatform { have, .. } if have == &["linux/s390x"]), "{e}");
    let e = refused(|_, c| c["os"] = json!("windows"));
    assert!(matches!(e, Error::NoPlatform { .. }), "{e}");
    let e = refused(|m, c| {
        m["layers"] = json!(vec![m["layers"][0].clone(); 200]);
        c["rootfs"]["diff_ids"] = json!(vec![c["rootfs"]["diff_ids"][0].clone(); 200]);
    });
    assert!(matches!(e, Error::TooBig { limit: 127, .. }), "{e}");
}

#[test]
fn blobs_that_lie() {
    let t = sample();
    let gz = gzip(&t);
    let s = Scratch::new("lies");
    layout(&s.join("l"), "a:1", &[(media::LAYER_GZIP, gz.clone(), t.clone())]);
    let path = s.join("l/blobs/sha256").join(Digest::of(&gz).hex());
    // The right tar, compressed into the same number of other bytes: gzip's OS field.
    let mut other = gz.clone();
    other[9] ^= 1;
    fs::write(&path, other).unwrap();
    let e = import(&s, &s.join("l"), None).unwrap_err();
    assert!(matches!(e, Error::DigestMismatch { .. }), "{e}");
    assert_eq!(fs::read_dir(s.join("store/layers")).unwrap().count(), 0);
    fs::write(&path, &gz).unwrap();
    let r = import(&s, &s.join("l"), None).unwrap();
    let manifest = s.join("l/blobs/sha256").join(r.manifest_digest.hex());
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"schemaVersion\":2", "\"schemaVersion\":3")).unwrap();
    let e = import(&s, &s.join("l"), None).unwrap_err();
    assert!(matches!(e, Error::DigestMismatch { .. }), "{e}");
    // Larger than any manifest.
    fs::write(s.join("l/index.json"), vec![b' '; 5 << 20]).unwrap();
    let e = import(&s, &s.join("l"), None).unwrap_err();
    assert!(matches!(e, Error::TooBig { .. }), "{e}");
}

#[test]
fn choosing_among_images_and_platforms() {
    let s = Scratch::new("choose");
    fs::create_dir(s.join("d")).unwrap();
    let options = |name: &str, arch: &str| PackOptions {
        reference: name.into(),
        architecture: Some(arch.into()),
        ..Default::default()
    };
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let l = s.join("l");
    pack(&s.join("d"), &l, &options("one:1", here)).unwrap();
    pack(&s.join("d"), &l, &options("two:1", "riscv64")).unwrap();
    let e = import(&s, &l, None).unwrap_err();
    assert!(matches!(&e, Error::WhichImage { have, .. } if have == &["one:1", "two:1"]), "{e}");
    let e = import(&s, &l, Some("three")).unwrap_err();
    assert!(matches!(&e, Error::WhichImage { wanted: Some(w), .. } if w == "three:latest"), "{e}");
    assert_eq!(import(&s, &l, Some("one:1")).unwrap().platform, format!("linux/{here}"));
    let e = import(&s, &l, Some("two:1")).unwrap_err();
    assert!(matches!(&e, Error::NoPlatform { have, .. } if have == &["linux/riscv64"]), "{e}");
    // As a multi-platform index, with an attestation beside: this machine's is taken.
    let top: Value = serde_json::from_slice(&fs::read(l.join("index.json")).unwrap()).unwrap();
    let mut list = top["manifests"].as_array().unwrap().clone();
    let mut attestation = list[0].clone();
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    list.insert(0, attestation);
    list.reverse();
    let inner =
        json!({"schemaVersion": 2, "mediaType": media::INDEX, "manifests": list}).to_string();
    let d = Digest::of(inner.as_bytes());
    fs::write(l.join("blobs/sha256").join(d.hex()), &inner).unwrap();
    let outer = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media::INDEX, "digest": d, "size": inner.len(), "annotations": {"org.opencontainers.image.ref.name": "multi:1"}}
    ]});
    fs::write(l.join("index.json"), outer.to_string()).unwrap();
    let r = import(&s, &l, None).unwrap();
    assert_eq!((r.reference.as_str(), r.platform), ("multi:1", format!("linux/{here}")));
    // An index that contains itself ends.
    let mut nested = inner;
    for _ in 0..6 {
        let d = Digest::of(nested.as_bytes());
        fs::write(l.join("blobs/sha256").join(d.hex()), &nested).unwrap();
        nested = json!({"schemaVersion": 2, "mediaType": media::INDEX,
            "manifests": [{"mediaType": media::INDEX, "digest": d, "size": nested.len()}]})
        .to_string();
    }
    fs::write(l.join("index.json"), nested).unwrap();
    let e = import(&s, &l, Some("deep")).unwrap_err();
    assert!(matches!(e, Error::NoPlatform { .. }), "{e}");
}

#[test]
fn limits() {
    let zeros = tar(&[M::File("zeros", &vec![0; 4 << 20])]);
    let try_with = |limits: Limits| {
        let s = Scratch::new("limits");
        layout(&s.join("l"), "a:1", &[(media::LAYER_GZIP, gzip(&zeros), zeros.clone())]);
        let store = Store::open_with(s.join("store"), limits).unwrap();
        let r = store.import(&s.join("l"), None, &mut |_| {});
        if r.is_err() {
            assert_eq!(fs::read_dir(s.join("store/layers")).unwrap().count(), 0);
            assert_eq!(fs::read_dir(s.join("store/ingest")).unwrap().count(), 0);
        }
        r
    };
    try_with(Limits::default()).unwrap();
    let tight = Limits { ratio_slack_bytes: 1 << 20, ratio_max: 10, ..Limits::default() };
    let e = try_with(tight).unwrap_err();
    assert!(matches!(e, Error::TooBig { .. }), "{e}");
    try_with(Limits { ratio_slack_bytes: 1 << 20, ratio_max: 1000, ..Limits::default() }).unwrap();
    let e = try_with(Limits { image_bytes_max: 3 << 20, ..Limits::default() }).unwrap_err();
    assert!(matches!(e, Error::TooBig { limit, .. } if limit == 3 << 20), "{e}");
    let e = try_with(Limits { reserve_bytes: u64::MAX / 2, ..Limits::default() }).unwrap_err();
    assert!(matches!(e, Error::NoSpace { .. }), "{e}");
    // Three layers of 2 MiB each: none too large, the image is.
    let s = Scratch::new("limits");
    let layers: Vec<_> = (0..3)
        .map(|i| tar(&[M::File(&format!("f{i}"), &vec![1; 2 << 20])]))
        .map(|t| (media::LAYER_GZIP, gzip(&t), t))
        .collect();
    layout(&s.join("l"), "a:1", &layers);
    let limits = Limits { image_bytes_max: 5 << 20, ..Limits::default() };
    let store = Store::open_with(s.join("store"), limits).unwrap();
    let e = store.import(&s.join("l"), None, &mut |_| {}).unwrap_err();
    assert!(matches!(e, Error::TooBig { what: "uncompressed image, bytes", .. }), "{e}");
}

#[test]
fn hostile_layers_are_refused_whole() {
    use TarFault::*;
    let t = |m: &[M<'_>]| tar(m);
    let patched = |at: usize, byte: u8| {
        let mut t = sample();
        t[at] = byte;
        t
    };
    // Paths that the tar crate refuses to write are put in afterwards.
    let rename = |from: &[u8], to: &[u8], members: &[M<'_>]| {
        let mut t = tar(members);
        let at = (0..t.len()).step_by(512).find(|i| t[*i..].starts_with(from)).unwrap();
        t[at..at + from.len()].copy_from_slice(to);
        t[at + 148..at + 156].copy_from_slice(b"        ");
        let sum: u32 = t[at..at + 512].iter().map(|b| u32::from(*b)).sum();
        t[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        t
    };
    let evil = &[M::File("aa/evil", b"x")];
    for (layer, fault) in [
        (rename(b"aa/evil", b"../evil", evil), DotDot),
        (t(&[M::Link("l", "/etc"), M::File("l/passwd", b"x")]), ThroughNonDir),
        (t(&[M::Hard("h", "/etc/passwd")]), HardlinkMissing),
        (t(&[M::Hard("h", "../../etc/passwd")]), DotDot),
        (t(&[M::Dir("d/", 0o755), M::Hard("h", "d")]), HardlinkDir),
        (t(&[M::File(".wh.", b"")]), WhiteoutName),
        (t(&[M::File("d/.wh..", b"")]), WhiteoutName),
        (t(&[M::File(&format!("{}/x", "d/".repeat(300)), b"")]), TooDeep),
        (patched(0, 0xff), Checksum),
        (sample()[..1000].to_vec(), Truncated),
        ([sample(), b"x".to_vec()].concat(), Trailing),
        (gzip(&gzip(&sample())), Checksum),
    ] {
        let s = Scratch::new("hostile");
        let blob = gzip(&layer);
        // Twice gzipped is a gzip stream that is no tar.
        let inner =
            if fault == Checksum && layer.starts_with(&[0x1f]) { gzip(&sample()) } else { layer };
        layout(&s.join("l"), "a:1", &[(media::LAYER_GZIP, blob, inner.clone())]);
        let e = import(&s, &s.join("l"), None).unwrap_err();
        let truncated = matches!(e, Error::Tar { fault: f, .. } if f == fault);
        assert!(truncated, "want {fault:?}, got {e}");
        // The same from a peer.
        let store = Store::open(s.join("store")).unwrap();
        let blob = imagefs::BlobRef {
            kind: imagefs::BlobKind::Layer,
            digest: Digest::of(&inner),
            size_bytes: inner.len() as u64,
        };
        let mut ingest = store.ingest(blob).unwrap();
        let got =
            inner.chunks(333).try_for_each(|c| ingest.write(c)).and_then(|()| ingest.commit());
        assert!(matches!(got, Err(Error::Tar { fault: f, .. }) if f == fault), "{got:?}");
        assert_eq!(fs::read_dir(s.join("store/layers")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(s.join("store/ingest")).unwrap().count(), 0);
    }
}
