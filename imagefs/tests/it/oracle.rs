//! The same tars through GNU tar and a naive model: what they extract is what the mount shows.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use imagefs::oci::media;
use imagefs::{Error, Mounts, Store, Upper};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::kit::{M, Scratch, layout, private_mounts, tar};

const MIB: Upper = Upper::Tmpfs { size_bytes: 4 << 20 };

/// Everything that stat, readlink, read and getxattr say about a tree; hard links by group.
fn fingerprint(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut out = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut work = vec![root.to_path_buf()];
    while let Some(path) = work.pop() {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let m = fs::symlink_metadata(&path).unwrap();
        let mut text =
            format!("{:o} {}:{} {}.{:09}", m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
        if m.is_dir() {
            work.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            text += &format!(" nlink {} rdev {:x}", m.nlink(), m.rdev());
            links.entry((m.dev(), m.ino())).or_insert_with(Vec::new).push(name.clone());
        }
        if m.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if m.is_file() {
            text += &format!(" {}", imagefs::Digest::of(&fs::read(&path).unwrap()));
        }
        for (k, v) in xattrs(&path) {
            text += &format!(" {k}={v:?}");
        }
        out.insert(name, text);
    }
    // Names of one inode are told by the first of them.
    for mut names in links.into_values() {
        names.sort();
        for name in &names {
            let first = names[0].escape_ascii();
            out.entry(name.clone()).and_modify(|t| *t += &format!(" same as {first}"));
        }
    }
    out
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 64 << 10];
    let n = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = String::from_utf8(names[..n].to_vec()).unwrap();
    let mut out = BTreeMap::new();
    for name in names.split_terminator('\0') {
        let mut value = vec![0u8; 64 << 10];
        let n = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        out.insert(name.to_string(), value[..n].to_vec());
    }
    out
}

fn run(dir: &Path, program: &str, args: &[&str]) -> bool {
    Command::new(program).current_dir(dir).args(args).status().is_ok_and(|s| s.success())
}

/// A tree with one of everything.
fn make_tree(dir: &Path, rich: bool) {
    for d in ["d/deep/er", "empty", "many", "sticky"] {
        fs::create_dir_all(dir.join(d)).unwrap();
    }
    for (i, len) in [0usize, 1, 511, 512, 513, 4095, 4096, 4097, 70_000, 600_000].iter().enumerate()
    {
        let data: Vec<u8> = (0..*len).map(|j| (j * 31 + i) as u8).collect();
        fs::write(dir.join(format!("d/size-{len}")), data).unwrap();
    }
    for i in 0..1200 {
        fs::write(dir.join(format!("many/file-with-a-name-{i}")), format!("{i}")).unwrap();
    }
    fs::hard_link(dir.join("d/size-513"), dir.join("d/deep/hard")).unwrap();
    fs::hard_link(dir.join("d/size-513"), dir.join("hard")).unwrap();
    std::os::unix::fs::symlink("../size-513", dir.join("d/deep/soft")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(40), dir.join("d/deep/softer")).unwrap();
    for args in ["1 3", "7 300"] {
        let name = format!("d/char-{}", args.replace(' ', "-"));
        let args: Vec<_> = [name.as_str(), "c"].into_iter().chain(args.split(' ')).collect();
        assert!(run(dir, "mknod", &args));
    }
    assert!(run(dir, "mknod", &["d/fifo", "p"]));
    for mode in [0o4755, 0o2755, 0o1777, 0o600, 0o000] {
        let path = dir.join(format!("d/mode-{mode:o}"));
        fs::write(&path, "m").unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::set_permissions(dir.join("sticky"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
        .unwrap();
    if rich {
        // What ustar has no room for.
        let long = "l".repeat(120);
        fs::create_dir_all(dir.join(&long).join(&long)).unwrap();
        fs::write(dir.join(&long).join(&long).join("ü-name"), "x").unwrap();
        std::os::unix::fs::symlink("t".repeat(3000), dir.join("d/softest")).unwrap();
        std::os::unix::fs::chown(dir.join("hard"), Some(3_000_000_000), Some(2_500_000)).unwrap();
        let raw = std::ffi::OsStr::from_bytes(b"not-utf8-\xff\xfe");
        fs::write(dir.join(raw), "x").unwrap();
    }
}

#[test]
fn what_gnu_tar_extracts_is_what_is_mounted() {
    let name = "what_gnu_tar_extracts_is_what_is_mounted";
    let s = Scratch::new("gnu");
    if !private_mounts(name) {
        return;
    }
    if !run(s.path(), "tar", &["--version"]) {
        skip::because(name, "no tar program");
        return;
    }
    for (format, rich) in
        [("v7", false), ("ustar", false), ("oldgnu", true), ("gnu", true), ("pax", true)]
    {
        let s = Scratch::new(&format!("gnu-{format}"));
        fs::create_dir(s.join("in")).unwrap();
        make_tree(&s.join("in"), rich);
        if format == "v7" {
            for special in ["d/char-1-3", "d/char-7-300", "d/fifo"] {
                fs::remove_file(s.join("in").join(special)).unwrap();
            }
        }
        if format == "pax" {
            let set = |path: &str, key: &str, value: &[u8]| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(s.join("in").join(path), key, value, flags).unwrap();
            };
            set("d/size-1", "user.small", b"v");
            set("d/size-1", "user.binary", &[0, 1, 2, 10, 61, 255]);
            set("d/size-4096", "user.large", &[7; 3000]);
            set("d", "user.dir", b"on a directory");
            set("d/size-1", "trusted.kept", b"t");
            // cap_net_bind_service=ep
            set(
                "d/size-512",
                "security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
        }
        let f = format!("--format={format}");
        let create = [
            "-C",
            "in",
            &f,
            "--xattrs",
            "--xattrs-include=*",
            "--sort=name",
            "-cf",
            "layer.tar",
            ".",
        ];
        let plain = ["-C", "in", &f, "--sort=name", "-cf", "layer.tar", "."];
        assert!(run(s.path(), "tar", if format == "pax" { &create } else { &plain }));
        fs::create_dir(s.join("out")).unwrap();
        let extract = [
            "-C",
            "out",
            "-p",
            "--same-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-xf",
            "layer.tar",
        ];
        assert!(run(s.path(), "tar", &extract));
        let t = fs::read(s.join("layer.tar")).unwrap();
        layout(&s.join("layout"), "a:1", &[(media::LAYER, t.clone(), t)]);
        let store = Store::open(s.join("store")).unwrap();
        let r = store.import(&s.join("layout"), None, &mut |_| {}).unwrap();
        let image = store.get(&r.manifest_digest).unwrap().unwrap();
        let mut mounts = Mounts::new(s.join("run")).unwrap();
        mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap();
        let layer = s.join("run/layers").join(r.layers[0].diff_id.hex());
        let (want, have) = (fingerprint(&s.join("out")), fingerprint(&layer));
        for (k, v) in &want {
            assert_eq!(Some(v), have.get(k), "{format}: {}", k.escape_ascii());
        }
        assert_eq!(want.len(), have.len());
        // And name by name, as the kernel looks names up by binary search.
        for k in want.keys() {
            fs::symlink_metadata(layer.join(std::ffi::OsStr::from_bytes(k))).unwrap();
        }
        assert!(fs::symlink_metadata(layer.join("many/file-with-a-name-x")).is_err());
        mounts.sweep(&[]).unwrap();
    }
}

/// An operation in a random layer. Paths are over three names, so that layers collide.
#[derive(Debug, Clone)]
enum Op {
    Dir(String, u32),
    File(String, u8),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|p| p.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), prop::sample::select(vec![0o755u32, 0o700, 0o1777, 0o2750])).prop_map(|(p, m)| Op::Dir(p, m)),
        4 => (path(), any::<u8>()).prop_map(|(p, n)| Op::File(p, n)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn layers() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(), 0..9), 1..5)
}

/// What an extractor has: path to mode (directories) or content (files).
type Model = BTreeMap<String, Result<u32, u8>>;

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(move |(i, _)| &path[..i])
}

fn remove(m: &mut Model, path: &str) {
    let below = format!("{path}/");
    m.retain(|k, _| k != path && !k.starts_with(&below));
}

/// Extracts one layer over the rest: first what it hides, then what it has, in order (OCI image spec, layer.md).
fn extract(m: &mut Model, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Whiteout(p) => remove(m, p),
            Op::Opaque(p) => {
                let below = format!("{p}/");
                m.retain(|k, _| !k.starts_with(&below));
            }
            _ => {}
        }
    }
    for op in ops {
        let path = match op {
            Op::Dir(p, _) | Op::File(p, _) => p.clone(),
            // A marker is a member too: its directory comes to exist.
            Op::Whiteout(p) => format!("{p}-marker"),
            Op::Opaque(p) => format!("{p}/marker"),
        };
        for parent in parents(&path) {
            if !matches!(m.get(parent), Some(Ok(_))) {
                m.insert(parent.to_string(), Ok(0o755));
            }
        }
        match op {
            Op::Dir(p, mode) => {
                m.insert(p.clone(), Ok(*mode));
            }
            Op::File(p, n) => {
                remove(m, p);
                m.insert(p.clone(), Err(*n));
            }
            _ => {}
        }
    }
}

fn members(ops: &[Op]) -> Vec<u8> {
    let whiteout = |p: &str| match p.rsplit_once('/') {
        Some((dir, name)) => format!("{dir}/.wh.{name}"),
        None => format!(".wh.{p}"),
    };
    let texts: Vec<_> = ops
        .iter()
        .map(|op| match op {
            Op::Dir(p, _) => format!("{p}/"),
            Op::File(p, _) => p.clone(),
            Op::Whiteout(p) => whiteout(p),
            Op::Opaque(p) => format!("{p}/.wh..wh..opq"),
        })
        .collect();
    let data: Vec<[u8; 1]> =
        ops.iter().map(|o| if let Op::File(_, n) = o { [*n] } else { [0] }).collect();
    let list: Vec<_> = ops
        .iter()
        .zip(texts.iter().zip(&data))
        .map(|(op, (text, data))| match op {
            Op::Dir(_, mode) => M::Dir(text, *mode),
            Op::File(..) => M::File(text, data),
            _ => M::File(text, b""),
        })
        .collect();
    tar(&list)
}

/// Whether a layer on its own runs a path through one of its files: refused, so not compared.
fn runs_through_a_file(ops: &[Op]) -> bool {
    let mut files: BTreeSet<String> = BTreeSet::new();
    for op in ops {
        let (path, file) = match op {
            Op::Dir(p, _) => (p.clone(), false),
            Op::File(p, _) => (p.clone(), true),
            Op::Whiteout(p) => (p.clone(), false),
            Op::Opaque(p) => (format!("{p}/x"), false),
        };
        if parents(&path).any(|p| files.contains(p)) {
            return true;
        }
        if file {
            // What was below it went with the directory that it takes the place of.
            let below = format!("{path}/");
            files.retain(|f| !f.starts_with(&below));
            files.insert(path);
        } else if matches!(op, Op::Dir(..)) {
            files.remove(&path);
        }
    }
    false
}

fn seen(root: &Path) -> Model {
    let mut out = Model::new();
    let mut work: Vec<_> = ["a", "b", "c"].iter().map(|n| root.join(n)).collect();
    while let Some(path) = work.pop() {
        let Ok(m) = fs::symlink_metadata(&path) else { continue };
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        if m.is_dir() {
            out.insert(name, Ok(m.mode() & 0o7777));
            work.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else {
            assert!(m.is_file(), "{name} is neither: {m:?}");
            out.insert(name, Err(fs::read(&path).unwrap()[0]));
        }
    }
    out
}

#[test]
fn a_stack_of_layers_looks_as_if_extracted() {
    if !private_mounts("a_stack_of_layers_looks_as_if_extracted") {
        return;
    }
    let s = Scratch::new("stack");
    let store = Store::open(s.join("store")).unwrap();
    let mounts = RefCell::new(Mounts::new(s.join("run")).unwrap());
    let (n, compared) = (Cell::new(0), Cell::new(0));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(60);
    let mut runner =
        TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
    let result = runner.run(&layers(), |stack| {
        n.set(n.get() + 1);
        let dir = s.join(&format!("l{}", n.get()));
        let tars: Vec<_> = stack.iter().map(|ops| members(ops)).collect();
        let blobs: Vec<_> = tars.iter().map(|t| (media::LAYER, t.clone(), t.clone())).collect();
        layout(&dir, "a:1", &blobs);
        let imported = store.import(&dir, None, &mut |_| {});
        fs::remove_dir_all(&dir).unwrap();
        if stack.iter().any(|ops| runs_through_a_file(ops)) {
            let refused = matches!(imported, Err(Error::Tar { .. }));
            prop_assert!(refused);
            return Ok(());
        }
        let record = imported.unwrap();
        let image = store.get(&record.manifest_digest).unwrap().unwrap();
        let mut mounts = mounts.borrow_mut();
        let root = mounts.assemble(&store, &image, &s.join("c"), MIB, None).unwrap().path;
        let have = seen(&root);
        mounts.release(&s.join("c")).unwrap();
        let mut want = Model::new();
        stack.iter().for_each(|ops| extract(&mut want, ops));
        prop_assert_eq!(have, want);
        compared.set(compared.get() + 1);
        Ok(())
    });
    if let Err(e) = result {
        panic!("{e}");
    }
    assert!(compared.get() > cases / 4, "{compared:?}");
}
