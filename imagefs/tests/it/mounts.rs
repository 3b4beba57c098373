//! Assembling, sharing, recovering, idmapping: what containers see.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use imagefs::{Backing, Error, Mounts, Store, Upper};

use crate::kit::{M, Scratch, fetch, private_mounts, store_with, tar};

const MIB: Upper = Upper::Tmpfs { size_bytes: 1 << 20 };

fn names(dir: &Path) -> Vec<String> {
    let mut out: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    out.sort();
    out
}

/// Lines of mountinfo below a directory.
fn mounted(below: &Path) -> usize {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    text.lines().filter(|l| Path::new(l.split(' ').nth(4).unwrap()).starts_with(below)).count()
}

#[test]
fn whiteouts_and_opaque_directories() {
    let s = Scratch::new("whiteouts");
    if !private_mounts("whiteouts_and_opaque_directories") {
        return;
    }
    let base = tar(&[
        M::Dir("./", 0o755),
        M::Dir("d/", 0o755),
        M::File("d/gone", b"1"),
        M::File("d/kept", b"1"),
        M::Dir("o/", 0o755),
        M::File("o/old", b"1"),
        M::Dir("again/", 0o755),
        M::File("again/old", b"1"),
        M::File("file-to-dir", b"1"),
        M::Dir("dir-to-file/", 0o755),
        M::File("dir-to-file/x", b"1"),
    ]);
    let top = tar(&[
        M::Dir("./", 0o755),
        M::Dir("d/", 0o755),
        M::File("d/.wh.gone", b""),
        M::Dir("o/", 0o755),
        M::File("o/.wh..wh..opq", b""),
        M::File("o/new", b"2"),
        M::File(".wh.again", b""),
        M::Dir("again/", 0o755),
        M::File("again/new", b"2"),
        M::Dir("file-to-dir/", 0o755),
        M::File("file-to-dir/x", b"2"),
        M::File("dir-to-file", b"2"),
        // Hides something that no layer has, in a directory that only this layer has.
        M::Dir("only/", 0o755),
        M::File("only/.wh.nothing", b""),
        M::File("only/x", b"2"),
    ]);
    let (store, image) = store_with(&s, &[base, top]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    assert_eq!(names(&root.join("d")), ["kept"]);
    assert_eq!(names(&root.join("o")), ["new"]);
    assert_eq!(names(&root.join("again")), ["new"]);
    assert_eq!(names(&root.join("file-to-dir")), ["x"]);
    assert_eq!(fs::read(root.join("dir-to-file")).unwrap(), b"2");
    assert_eq!(names(&root.join("only")), ["x"]);
    assert!(!root.join("d/gone").exists() && !root.join("only/nothing").exists());
    // The directory can be emptied and removed although a whiteout lies in it.
    fs::remove_file(root.join("only/x")).unwrap();
    fs::remove_dir(root.join("only")).unwrap();
    mounts.release(&s.join("c")).unwrap();
    assert_eq!(mounted(s.path()), 0);
}

#[test]
fn undeclared_directories_look_like_the_layers_below() {
    let s = Scratch::new("implicit");
    if !private_mounts("undeclared_directories_look_like_the_layers_below") {
        return;
    }
    let base = tar(&[
        M::Dir("./", 0o711),
        M::Dir("tmp/", 0o1777),
        M::Dir("a/", 0o700),
        M::Dir("a/b/", 0o2750),
        M::Dir("hidden/", 0o700),
        M::Dir("hidden/in/", 0o700),
    ]);
    let middle = tar(&[M::File("a/b/middle", b""), M::File("hidden/.wh..wh..opq", b"")]);
    let top = tar(&[
        M::File("tmp/x", b""),
        M::File("a/b/top", b""),
        M::File("a/b/new/x", b""),
        M::File("hidden/in/x", b""),
    ]);
    let (store, image) = store_with(&s, &[base, middle, top]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    let mode = |p: &str| fs::metadata(root.join(p)).unwrap().mode() & 0o7777;
    assert_eq!(mode(""), 0o711);
    assert_eq!(mode("tmp"), 0o1777);
    assert_eq!(mode("a"), 0o700);
    assert_eq!(mode("a/b"), 0o2750);
    assert_eq!(mode("a/b/new"), 0o755);
    // The opaque directory keeps its own attributes, what was in it is gone for good.
    assert_eq!(mode("hidden"), 0o700);
    assert_eq!(mode("hidden/in"), 0o755);
    assert_eq!(fs::metadata(root.join("a/b")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(names(&root.join("a/b")), ["middle", "new", "top"]);
    mounts.release(&s.join("c")).unwrap();
}

#[test]
fn a_layer_that_writes_through_a_lower_symlink_is_refused() {
    let s = Scratch::new("through");
    if !private_mounts("a_layer_that_writes_through_a_lower_symlink_is_refused") {
        return;
    }
    let base = tar(&[
        M::Dir("usr/lib/", 0o755),
        M::File("usr/lib/ld.so", b"1"),
        M::Link("lib", "usr/lib"),
    ]);
    let bad = tar(&[M::File("lib/x/y", b"")]);
    let (store, image) = store_with(&s, &[base.clone(), bad]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let e = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap_err();
    assert!(matches!(&e, Error::ThroughSymlink { path, .. } if path == "lib"), "{e}");
    assert_eq!(mounted(s.path()), 0);
    assert!(mounts.held().is_empty() && mounts.layers().count() == 0);
    drop(store);
    // One that declares the directory replaces the link and says so.
    let s = Scratch::new("through");
    let good = tar(&[M::Dir("lib/", 0o755), M::File("lib/x/y", b"")]);
    let (store, image) = store_with(&s, &[base, good]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    assert!(fs::symlink_metadata(root.join("lib")).unwrap().is_dir());
    mounts.release(&s.join("c")).unwrap();
}

#[test]
fn missing_mount_points_are_made_inside_the_root() {
    let s = Scratch::new("base");
    if !private_mounts("missing_mount_points_are_made_inside_the_root") {
        return;
    }
    fs::create_dir(s.join("outside")).unwrap();
    let out = s.join("outside").to_str().unwrap().to_string();
    let up = format!("../../../../../../../../../../../..{out}");
    let hosts = format!("{out}/hosts");
    let layer = tar(&[
        // Dangling, absolute out of the root, relative out of the root, a loop, and one that stays inside.
        M::Link("proc", "/nowhere"),
        M::Link("sys", &out),
        M::Link("dev", &up),
        M::Link("tmp", "tmp"),
        M::Link("run", "var/run"),
        M::Dir("var/run/", 0o711),
        M::Dir("etc/", 0o755),
        M::Link("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        M::Link("etc/hosts", &hosts),
        M::File("etc/hostname", b"mine"),
    ]);
    let (store, image) = store_with(&s, &[layer]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    for dir in ["proc", "sys", "dev", "tmp"] {
        assert!(fs::symlink_metadata(root.join(dir)).unwrap().is_dir(), "{dir}");
    }
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(fs::read_link(root.join("run")).unwrap(), Path::new("var/run"));
    assert_eq!(fs::read(root.join("etc/hostname")).unwrap(), b"mine");
    for file in ["etc/hosts", "etc/resolv.conf"] {
        let m = fs::symlink_metadata(root.join(file)).unwrap();
        assert!(m.is_file() && m.len() == 0 && m.mode() & 0o7777 == 0o644, "{file}");
    }
    assert!(names(&s.join("outside")).is_empty());
    mounts.release(&s.join("c")).unwrap();
    // An image that makes it impossible is refused and leaves nothing.
    drop(store);
    let s = Scratch::new("base");
    let (store, image) = store_with(&s, &[tar(&[M::Dir("etc/hosts/", 0o755)])]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    assert!(mounts.assemble(&store, &image, &s.join("c"), MIB, None).is_err());
    assert_eq!(mounted(s.path()), 0);
}

#[test]
fn layers_are_shared_counted_and_survive_a_restart() {
    let s = Scratch::new("shared");
    if !private_mounts("layers_are_shared_counted_and_survive_a_restart") {
        return;
    }
    let layers = [tar(&[M::File("a", b"1")]), tar(&[M::File("b", b"2")])];
    // The first layer is in the image twice.
    let layers = [layers[0].clone(), layers[1].clone(), layers[0].clone()];
    let (store, image) = store_with(&s, &layers);
    let run = s.join("run");
    let counts = |m: &Mounts| m.layers().map(|(_, n)| n).collect::<Vec<_>>();
    let mut mounts = Mounts::new(&run).unwrap();
    let disk = |n: &str| Upper::Disk { dir: store.upper_dir(n), quota: None };
    let a = mounts.assemble(&store, &image, &s.join("c/a"), disk("a"), None).unwrap().path;
    let b = mounts.assemble(&store, &image, &s.join("c/b"), MIB, None).unwrap().path;
    assert_eq!(counts(&mounts), [2, 2]);
    // Two layers, two overlays, one tmpfs.
    assert_eq!(mounted(s.path()), 5);
    let busy = mounts.assemble(&store, &image, &s.join("c/a"), MIB, None).unwrap_err();
    assert!(matches!(busy, Error::Busy { .. }));
    fs::write(a.join("mine"), "1").unwrap();
    assert!(!b.join("mine").exists());
    drop(mounts);

    let mut mounts = Mounts::new(&run).unwrap();
    assert_eq!(mounts.held(), [s.join("c/a"), s.join("c/b")]);
    assert_eq!(counts(&mounts), [2, 2]);
    assert!(a.join("mine").exists());
    let swept = mounts.sweep(&[s.join("c/a"), s.join("c/b")]).unwrap();
    assert_eq!(swept, Default::default());
    mounts.release(&s.join("c/a")).unwrap();
    assert_eq!(counts(&mounts), [1, 1]);
    assert_eq!(fs::read(b.join("b")).unwrap(), b"2");
    // Someone else unmounts an overlay: what is left of it goes with the sweep, the rest stays.
    mounts.assemble(&store, &image, &s.join("c/a"), disk("a"), None).unwrap();
    rustix::mount::unmount(&b, rustix::mount::UnmountFlags::empty()).unwrap();
    let mut mounts = Mounts::new(&run).unwrap();
    assert_eq!(mounts.held(), [s.join("c/a")]);
    let swept = mounts.sweep(&[s.join("c/a")]).unwrap();
    assert_eq!(swept.released, [s.join("c/b")]);
    assert_eq!(counts(&mounts), [1, 1]);
    assert_eq!(mounted(s.path()), 3);
    let swept = mounts.sweep(&[]).unwrap();
    assert_eq!((swept.released.len(), swept.layers), (1, 2));
    assert_eq!(mounted(s.path()), 0);
    assert!(names(&run.join("held")).is_empty() && names(&run.join("layers")).is_empty());
    assert!(!store.upper_dir("a").exists());
}

#[test]
fn a_power_cut_leaves_leftovers_that_a_sweep_removes() {
    let s = Scratch::new("cut");
    if !private_mounts("a_power_cut_leaves_leftovers_that_a_sweep_removes") {
        return;
    }
    let (store, image) = store_with(&s, &[tar(&[M::File("a", b"1")])]);
    let run = s.join("run");
    let up = store.upper_dir("a");
    // In another thread's mount namespace, which goes away with the thread: the mounts vanish, the files stay.
    let (st, im, r, c, u) = (store.clone(), image.clone(), run.clone(), s.join("c"), up.clone());
    std::thread::spawn(move || {
        assert!(private_mounts("power cut"));
        let mut mounts = Mounts::new(&r).unwrap();
        mounts.assemble(&st, &im, &c, Upper::Disk { dir: u, quota: None }, None).unwrap();
    })
    .join()
    .unwrap();
    assert!(up.join("u").exists());
    let mut mounts = Mounts::new(&run).unwrap();
    assert!(mounts.held().is_empty());
    // A start in the same place cleans up first.
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
    assert!(!up.exists());
    mounts.sweep(&[]).unwrap();
    assert_eq!(mounted(s.path()), 0);
}

#[test]
fn a_store_in_memory_uses_loop_devices() {
    if !private_mounts("a_store_in_memory_uses_loop_devices") {
        return;
    }
    if !Path::new("/dev/loop-control").exists() {
        skip::because("a_store_in_memory_uses_loop_devices", "no /dev/loop-control");
        return;
    }
    let outer = Scratch::new("tmpfs");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", outer.path(), "tmpfs", flags, None::<&std::ffi::CStr>).unwrap();
    let s = Scratch::below(outer.path(), "store");
    let data = vec![5; 300_000];
    let (store, image) = store_with(&s, &[tar(&[M::File("a", &data)])]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    assert_eq!(mounts.backing(), Some(Backing::Loop));
    assert!(fs::read(root.join("a")).unwrap() == data);
    mounts.release(&s.join("c")).unwrap();
    assert_eq!(mounted(s.path()), 0);
    // The devices are free again: none is backed by a file of ours.
    for dev in fs::read_dir("/sys/block").unwrap() {
        let file = dev.unwrap().path().join("loop/backing_file");
        let file = fs::read_to_string(file).unwrap_or_default();
        assert!(!file.contains(s.path().to_str().unwrap()), "{file}");
    }
}

#[test]
fn long_paths_and_images_without_layers() {
    let outer = Scratch::new("long");
    if !private_mounts("long_paths_and_images_without_layers") {
        return;
    }
    let deep = outer.join(&format!("{0}/{0}/{0}", "d".repeat(90)));
    fs::create_dir_all(&deep).unwrap();
    let s = Scratch::below(&deep, "s");
    let (store, image) = store_with(&s, &[tar(&[M::File("a", b"1")]), tar(&[M::File("b", b"2")])]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let upper = Upper::Disk { dir: store.upper_dir("c"), quota: None };
    let root = mounts.assemble(&store, &image, &s.join("c"), upper, None).unwrap().path;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
    mounts.release(&s.join("c")).unwrap();
    drop(store);
    let s = Scratch::new("none");
    let (store, image) = store_with(&s, &[]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    assert_eq!(names(&root), ["dev", "etc", "proc", "run", "sys", "tmp"]);
    mounts.release(&s.join("c")).unwrap();
}

/// A process that holds a user namespace mapping 0.. to 100000.. until dropped.
struct UserNs(Child);

impl UserNs {
    fn new(count: u32) -> Option<UserNs> {
        let mut child = Command::new("unshare")
            .args(["-U", "sh", "-c", "echo ready; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        let ns = UserNs(child);
        if line != "ready\n" {
            return None;
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", ns.0.id()), format!("0 100000 {count}\n")).unwrap();
        }
        Some(ns)
    }

    fn open(&self) -> fs::File {
        fs::File::open(format!("/proc/{}/ns/user", self.0.id())).unwrap()
    }
}

impl Drop for UserNs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn everything_is_shifted_by_a_user_namespace() {
    let s = Scratch::new("idmap");
    if !private_mounts("everything_is_shifted_by_a_user_namespace") {
        return;
    }
    let Some(ns) = UserNs::new(65536) else {
        skip::because("everything_is_shifted_by_a_user_namespace", "cannot make a user namespace");
        return;
    };
    let root = s.join("dir");
    fs::create_dir_all(root.join("home")).unwrap();
    fs::write(root.join("f"), "1").unwrap();
    fs::write(root.join("home/g"), "2").unwrap();
    std::os::unix::fs::chown(root.join("home/g"), Some(1000), Some(1001)).unwrap();
    let options =
        imagefs::PackOptions { reference: "x".into(), keep_owners: true, ..Default::default() };
    imagefs::pack(&root, &s.join("layout"), &options).unwrap();
    let store = Store::open(s.join("store")).unwrap();
    let record = store.import(&s.join("layout"), None, &mut |_| {}).unwrap();
    let image = store.get(&record.manifest_digest).unwrap().unwrap();
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let user = ns.open();
    for upper in [MIB, Upper::Disk { dir: store.upper_dir("c"), quota: None }] {
        let fd = Some(user.as_fd());
        let root = mounts.assemble(&store, &image, &s.join("c"), upper, fd).unwrap().path;
        let owner = |p: &str| {
            let m = fs::symlink_metadata(root.join(p)).unwrap();
            (m.uid(), m.gid())
        };
        for p in ["", "f", "home", "proc", "tmp", "etc", "etc/hosts"] {
            assert_eq!(owner(p), (100_000, 100_000), "{p:?}");
        }
        assert_eq!(owner("home/g"), (101_000, 101_001));
        // Copied up, the owner stays; and inside the namespace it is the image's own.
        fs::OpenOptions::new().append(true).open(root.join("home/g")).unwrap();
        assert_eq!(owner("home/g"), (101_000, 101_001));
        let target = format!("/proc/{}/ns/user", ns.0.id());
        let seen = Command::new("nsenter")
            .arg(format!("--user={target}"))
            .args(["sh", "-c", "stat -c %u:%g f home/g && touch new && stat -c %u:%g new && chown 5:6 f && stat -c %u:%g f"])
            .current_dir(&root)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&seen.stdout);
        assert_eq!(text, "0:0\n1000:1001\n0:0\n5:6\n", "{}", String::from_utf8_lossy(&seen.stderr));
        assert_eq!(owner("new"), (100_000, 100_000));
        // The temporary copies of the layers are gone.
        assert!(!s.join("c/l").exists());
        mounts.release(&s.join("c")).unwrap();
        assert_eq!(mounted(s.path()), 0);
    }
    // Beside an unshifted one of the same layer.
    let a = mounts.assemble(&store, &image, &s.join("a"), MIB, None).unwrap().path;
    let b = mounts.assemble(&store, &image, &s.join("b"), MIB, Some(user.as_fd())).unwrap().path;
    assert_eq!(fs::metadata(a.join("f")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(b.join("f")).unwrap().uid(), 100_000);
    mounts.sweep(&[]).unwrap();
    assert_eq!(mounted(s.path()), 0);
}

#[test]
fn a_namespace_that_does_not_map_root_is_refused() {
    let s = Scratch::new("nomap");
    if !private_mounts("a_namespace_that_does_not_map_root_is_refused") {
        return;
    }
    let Ok(mut child) = Command::new("unshare")
        .args(["-U", "sh", "-c", "echo ready; exec sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
    else {
        skip::because("a_namespace_that_does_not_map_root_is_refused", "no unshare program");
        return;
    };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", child.id()), "1 100000 10\n").unwrap();
    }
    let user = fs::File::open(format!("/proc/{}/ns/user", child.id())).unwrap();
    let (store, image) = store_with(&s, &[tar(&[M::File("a", b"1")])]);
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let made = mounts.assemble(&store, &image, &s.join("c"), MIB, Some(user.as_fd()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(made, Err(Error::Unmapped { id: 0 })), "{made:?}");
    assert_eq!(mounted(s.path()), 0);
}

#[test]
fn two_nodes_on_one_machine_do_not_disturb_each_other() {
    let s = Scratch::new("nodes");
    let (store, image) = store_with(&s, &[tar(&[M::File("a", b"1")])]);
    if !private_mounts("two_nodes_on_one_machine_do_not_disturb_each_other") {
        return;
    }
    let other = Store::open(s.join("other-store")).unwrap();
    let image2 = fetch(&store, &other, &image.record);
    let dir = s.path().to_path_buf();
    let node = move |n: &str, store: &Store, image: &imagefs::Image| {
        assert!(private_mounts("node"));
        let mut mounts = Mounts::new(dir.join(n)).unwrap();
        for round in 0..5 {
            let ctr = dir.join(format!("{n}-c{round}"));
            let root = mounts.assemble(store, image, &ctr, MIB, None).unwrap().path;
            assert_eq!(fs::read(root.join("a")).unwrap(), b"1");
        }
        mounts.sweep(&[]).unwrap();
        assert_eq!(mounted(&dir), 0);
    };
    std::thread::scope(|t| {
        t.spawn(|| node("n1", &store, &image));
        t.spawn(|| node("n2", &other, &image2));
    });
}

#[test]
fn devices_and_fifos_are_there_but_inert() {
    let s = Scratch::new("devices");
    if !private_mounts("devices_and_fifos_are_there_but_inert") {
        return;
    }
    let dir = s.join("dir");
    fs::create_dir_all(dir.join("dev")).unwrap();
    for (args, name) in [("c 1 3", "null"), ("b 259 70000", "disk"), ("p", "fifo")] {
        let mut mknod = Command::new("mknod");
        mknod.arg(dir.join("dev").join(name)).args(args.split(' '));
        assert!(mknod.status().unwrap().success());
    }
    symlink("null", dir.join("dev/link")).unwrap();
    let options = imagefs::PackOptions { reference: "x".into(), ..Default::default() };
    imagefs::pack(&dir, &s.join("layout"), &options).unwrap();
    let store = Store::open(s.join("store")).unwrap();
    let record = store.import(&s.join("layout"), None, &mut |_| {}).unwrap();
    let image = store.get(&record.manifest_digest).unwrap().unwrap();
    let mut mounts = Mounts::new(s.join("run")).unwrap();
    let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
    let stat = |n: &str| fs::symlink_metadata(root.join("dev").join(n)).unwrap();
    assert!(stat("null").file_type().is_char_device());
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(stat("disk").file_type().is_block_device());
    assert_eq!(stat("disk").rdev(), rustix::fs::makedev(259, 70000));
    assert!(stat("fifo").file_type().is_fifo());
    let opened = fs::File::open(root.join("dev/null"));
    assert_eq!(opened.unwrap_err().raw_os_error(), Some(libc::EACCES));
    mounts.release(&s.join("c")).unwrap();
}
