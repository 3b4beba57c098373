//! pack -> import -> serve -> ingest elsewhere -> mount -> read, and every format an image comes in.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use imagefs::{Mounts, PackOptions, Progress, Store, Upper, pack};

use crate::kit::{Scratch, fetch, private_mounts};

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::create_dir_all(dir.join("etc/deep/er")).unwrap();
    fs::write(dir.join("bin/hello"), vec![7u8; 100_000]).unwrap();
    fs::set_permissions(dir.join("bin/hello"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(dir.join("etc/empty"), "").unwrap();
    fs::write(dir.join("etc/one"), "x").unwrap();
    fs::hard_link(dir.join("etc/one"), dir.join("etc/two")).unwrap();
    symlink("/etc/one", dir.join("etc/deep/link")).unwrap();
    symlink("x".repeat(2000), dir.join("etc/deep/er/long")).unwrap();
    let long = "n".repeat(200);
    fs::create_dir_all(dir.join(&long)).unwrap();
    fs::write(dir.join(&long).join(&long), "long").unwrap();
    for i in 0..300 {
        fs::write(dir.join(format!("etc/deep/f{i}")), format!("{i}")).unwrap();
    }
}

fn options() -> PackOptions {
    PackOptions {
        reference: "hello".into(),
        entrypoint: vec!["/bin/hello".into()],
        cmd: vec!["--port".into(), "8080".into()],
        env: vec!["A=1".into()],
        user: "1000:1000".into(),
        workdir: "/etc".into(),
        ports: vec!["8080/tcp".into()],
        ..PackOptions::default()
    }
}

#[test]
fn packing_is_deterministic_and_keeps_other_images() {
    let s = Scratch::new("pack");
    for d in ["a", "b"] {
        sample(&s.join(d));
    }
    let a = pack(&s.join("a"), &s.join("out-a"), &options()).unwrap();
    let b = pack(&s.join("b"), &s.join("out-b"), &options()).unwrap();
    assert_eq!(a, b);
    assert_eq!(a.reference, "hello:latest");
    let again = pack(&s.join("a"), &s.join("out-a"), &options()).unwrap();
    assert_eq!(a, again);
    let other = PackOptions { reference: "other:2".into(), ..options() };
    pack(&s.join("a/etc"), &s.join("out-a"), &other).unwrap();
    let store = Store::open(s.join("store")).unwrap();
    for name in ["hello", "other:2"] {
        store.import(&s.join("out-a"), Some(name), &mut |_| {}).unwrap();
    }
    let names: Vec<_> = store.list().unwrap().into_iter().map(|r| r.reference).collect();
    assert_eq!(names, ["hello:latest", "other:2"]);
}

#[test]
fn from_a_directory_to_another_nodes_container() {
    let s = Scratch::new("whole");
    if !private_mounts("from_a_directory_to_another_nodes_container") {
        return;
    }
    let root = s.join("root");
    sample(&root);
    let packed = pack(&root, &s.join("layout"), &options()).unwrap();
    let one = Store::open(s.join("one")).unwrap();
    let mut told = Vec::new();
    let record = one.import(&s.join("layout"), None, &mut |p| told.push(p)).unwrap();
    assert_eq!(record.reference, "hello:latest");
    assert_eq!(record.manifest_digest, packed.manifest_digest);
    assert_eq!(record.layers[0].diff_id, packed.diff_id);
    assert_eq!(record.layers[0].size_bytes, packed.layer_bytes);
    assert_eq!(told[0], Progress::Image { reference: "hello:latest".into(), layers: 1 });
    assert!(
        matches!(told.last(), Some(Progress::Layer { done_bytes, of_bytes, .. }) if done_bytes == of_bytes)
    );

    let two = Store::open(s.join("two")).unwrap();
    assert_eq!(two.missing(&record).len(), 3);
    assert!(two.get(&record.manifest_digest).unwrap().is_none());
    assert!(two.link(&record).is_err());
    let image = fetch(&one, &two, &record);
    assert!(two.missing(&record).is_empty());
    assert_eq!(two.resolve("hello").unwrap().unwrap(), image);
    assert_eq!(image.config.entrypoint, ["/bin/hello"]);
    assert_eq!(image.config.user, "1000:1000");
    assert_eq!(image.config.working_dir, "/etc");

    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let upper = Upper::Disk { dir: two.upper_dir("c1"), quota: None };
    let rootfs = mounts.assemble(&two, &image, &s.join("c1"), upper, None).unwrap();
    println!("backing: {:?}", mounts.backing());
    compare(&root, &rootfs.path, 0);
    fs::write(rootfs.path.join("etc/one"), "changed").unwrap();
    assert_eq!(fs::read_to_string(rootfs.path.join("etc/one")).unwrap(), "changed");
    fs::remove_file(rootfs.path.join("bin/hello")).unwrap();
    mounts.release(&s.join("c1")).unwrap();
    assert!(!rootfs.path.exists());
    assert!(!two.upper_dir("c1").exists());
    // Fresh at every start.
    let upper = Upper::Tmpfs { size_bytes: 1 << 20 };
    let rootfs = mounts.assemble(&two, &image, &s.join("c1"), upper, None).unwrap();
    compare(&root, &rootfs.path, 0);
    let full = fs::write(rootfs.path.join("big"), vec![1; 2 << 20]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    mounts.release(&s.join("c1")).unwrap();
    assert_eq!(mounts.layers().count(), 0);
    let left = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!left.contains(s.path().to_str().unwrap()), "{left}");
}

/// `have` shows everything of `want`, with `want`'s metadata shifted by `ids`.
pub(crate) fn compare(want: &Path, have: &Path, ids: u32) {
    for entry in fs::read_dir(want).unwrap() {
        let name = entry.unwrap().file_name();
        let (a, b) = (want.join(&name), have.join(&name));
        let (ma, mb) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        assert_eq!(ma.mode(), mb.mode(), "{b:?}");
        assert_eq!((ids, ids), (mb.uid(), mb.gid()), "{b:?}");
        if ma.is_dir() {
            compare(&a, &b, ids);
        } else if ma.is_symlink() {
            assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap());
        } else {
            assert_eq!(ma.nlink(), mb.nlink(), "{b:?}");
            assert!(fs::read(&a).unwrap() == fs::read(&b).unwrap(), "{b:?}");
        }
    }
    let (want, have) = (fs::read_dir(want).unwrap().count(), fs::read_dir(have).unwrap().count());
    assert!(have >= want);
}
