use super::*;

fn member(path: &str, kind: Kind, link: &str) -> Member {
    Member {
        offset: 0,
        data_offset: 512,
        size: 0,
        path: path.into(),
        link: link.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        major: 0,
        minor: 0,
        xattrs: Vec::new(),
    }
}

fn build(members: &[Member]) -> Result<Tree, TarFault> {
    let mut b = Builder::new();
    members.iter().try_for_each(|m| b.add(m.clone()))?;
    b.finish()
}

fn fault(members: &[Member]) -> TarFault {
    build(members).unwrap_err()
}

fn file(path: &str) -> Member {
    member(path, Kind::File, "")
}
fn dir(path: &str) -> Member {
    member(path, Kind::Dir, "")
}
fn sym(path: &str) -> Member {
    member(path, Kind::Symlink, "/etc")
}
fn hard(path: &str, to: &str) -> Member {
    member(path, Kind::Hardlink, to)
}

#[test]
fn refusals() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(257);
    for (members, want) in [
        (vec![file("")], TarFault::EmptyName),
        (vec![file("/")], TarFault::Root),
        (vec![sym("./.")], TarFault::Root),
        (vec![file("a/../b")], TarFault::DotDot),
        (vec![file("..")], TarFault::DotDot),
        (vec![file("a\0b")], TarFault::Nul),
        (vec![file(&long)], TarFault::NameTooLong),
        (vec![file(&deep)], TarFault::TooDeep),
        (vec![file("a"), file("a/b")], TarFault::ThroughNonDir),
        (vec![sym("a"), file("a/b")], TarFault::ThroughNonDir),
        (vec![sym("a"), file("a/.wh.b")], TarFault::ThroughNonDir),
        (vec![hard("a", "b")], TarFault::HardlinkMissing),
        (vec![hard("a", "../b")], TarFault::DotDot),
        (vec![file("b"), hard("a", "b/c")], TarFault::HardlinkMissing),
        (vec![dir("b"), hard("a", "b")], TarFault::HardlinkDir),
        (vec![hard("a", "/")], TarFault::HardlinkDir),
        (vec![hard("a", "")], TarFault::EmptyName),
        (vec![file("a"), hard("./a", "/a")], TarFault::HardlinkSelf),
        (vec![member("a", Kind::Char, "")], TarFault::RawWhiteout),
        (vec![file(".wh.")], TarFault::WhiteoutName),
        (vec![file(".wh..")], TarFault::WhiteoutName),
        (vec![file(".wh...")], TarFault::WhiteoutName),
        (vec![dir(".wh.a")], TarFault::WhiteoutName),
        (vec![file(".wh.a/b")], TarFault::WhiteoutName),
        (vec![member("a", Kind::Symlink, "")], TarFault::LinkLength),
        (vec![member("a", Kind::Symlink, &"l".repeat(4096))], TarFault::LinkLength),
        (vec![member("a", Kind::Symlink, "x\0")], TarFault::Nul),
        (vec![Member { minor: 1 << 20, ..member("a", Kind::Char, "") }], TarFault::Number),
        (vec![Member { data_offset: TAR_MAX, ..file("a") }], TarFault::TooLarge),
        (vec![Member { size: u64::MAX, ..file("a") }], TarFault::TooLarge),
    ] {
        assert_eq!(fault(&members), want, "{members:?}");
    }
}

const TAR_MAX: u64 = crate::erofs::TAR_BYTES_MAX;

#[test]
fn xattrs() {
    let with = |name: &str, value: &[u8]| {
        build(&[Member { xattrs: vec![(name.into(), value.into())], ..file("a") }])
            .map(|t| t.nodes[1].attrs.xattrs.clone())
    };
    for ok in ["user.a", "security.capability", "trusted.x"] {
        assert_eq!(with(ok, b"v").unwrap(), [(ok.as_bytes().to_vec(), b"v".to_vec())]);
    }
    for stripped in ["trusted.overlay.opaque", "trusted.overlay.redirect", "security.selinux"] {
        assert!(with(stripped, b"y").unwrap().is_empty());
    }
    for bad in
        ["", "user", "user.", "os2.x", "system.x", "a.b", &format!("user.{}", "n".repeat(256))]
    {
        assert_eq!(with(bad, b"").unwrap_err(), TarFault::XattrName, "{bad}");
    }
    assert_eq!(with("system.posix_acl_access", b"").unwrap_err(), TarFault::XattrName);
    assert!(with("system.posix_acl_access", &[2, 0, 0, 0]).is_ok());
    assert_eq!(with("user.a", &[0; 65536]).unwrap_err(), TarFault::XattrSize);
    assert!(with("user.a", &[0; 65535]).is_ok());
    let many = (0..4).map(|i| (format!("user.{i}").into_bytes(), vec![0; 65000])).collect();
    assert_eq!(fault(&[Member { xattrs: many, ..file("a") }]), TarFault::XattrSize);
}

/// `path -> what` of a tree, in order.
fn listing(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    let mut work = vec![(ROOT, String::new())];
    while let Some((id, path)) = work.pop() {
        let node = tree.node(id).unwrap();
        let what = match &node.body {
            Body::Dir(d) => {
                for (n, c) in &d.entries {
                    work.push((*c, format!("{path}/{}", String::from_utf8_lossy(n))));
                }
                if d.opaque { "dir opaque" } else { "dir" }
            }
            Body::File { .. } => "file",
            Body::Symlink(_) => "link",
            Body::Char { major: 0, minor: 0 } => "whiteout",
            _ => "other",
        };
        out.push(format!("{path} {what} {}", node.nlink));
    }
    out.sort();
    out
}

#[test]
fn accepted_shapes() {
    // A leading slash, ./, doubled slashes; the last of two wins; a file replaces a directory.
    let t = build(&[file("/a//b"), dir("./a/"), file("a/b"), dir("x/y"), file("x")]).unwrap();
    assert_eq!(listing(&t), [" dir 3", "/a dir 2", "/a/b file 1", "/x file 1"]);
    // A hard link outlives its first name; a link to a symlink is fine.
    let t = build(&[file("a"), hard("b", "a"), sym("a"), hard("c", "a")]).unwrap();
    assert_eq!(listing(&t), [" dir 2", "/a link 2", "/b file 1", "/c link 2"]);
    // Names that are not UTF-8.
    let t = build(&[Member { path: vec![0xff, 0xfe], ..file("") }]).unwrap();
    assert_eq!(t.nodes[1].nlink, 1);
}

#[test]
fn whiteouts() {
    let t = build(&[file("d/.wh.gone"), file("d/kept"), file("d/.wh.kept")]).unwrap();
    assert_eq!(listing(&t), [" dir 3", "/d dir 2", "/d/gone whiteout 1", "/d/kept file 1"]);
    assert_eq!(t.inherit, [b"".to_vec(), b"d".to_vec()]);
    let d =
        t.nodes.iter().find(|n| matches!(&n.body, Body::Dir(d) if d.parent == 0 && n.nlink == 2));
    assert_eq!(d.unwrap().attrs.xattrs, [(b"trusted.overlay.origin".to_vec(), vec![])]);
    // Removed and made again, in either order: opaque, and nothing below it needs hiding.
    for order in
        [[file(".wh.d"), dir("d"), file("d/.wh.x")], [file("d/.wh.x"), dir("d"), file(".wh.d")]]
    {
        let t = build(&order).unwrap();
        assert_eq!(listing(&t), [" dir 3", "/d dir opaque 2"]);
        assert_eq!(t.inherit, [b"".to_vec()]);
    }
    // Opaque by marker: the undeclared directory keeps the attributes from below, what is in it does not.
    let t = build(&[file("d/.wh..wh..opq"), file("d/e/f"), file("d/.wh.x")]).unwrap();
    assert_eq!(listing(&t), [" dir 3", "/d dir opaque 3", "/d/e dir 2", "/d/e/f file 1"]);
    assert_eq!(t.inherit, [b"".to_vec(), b"d".to_vec()]);
    // AUFS leftovers are dropped.
    let t = build(&[file(".wh..wh.aufs"), dir("./")]).unwrap();
    assert_eq!(listing(&t), [" dir 2"]);
    assert!(t.inherit.is_empty());
    // A directory that replaces a file of the same layer hides what the file had hidden.
    let t = build(&[file("d"), file("d/x")].map(|m| if m.path == b"d/x" { dir("d") } else { m }))
        .unwrap();
    assert_eq!(listing(&t), [" dir 3", "/d dir opaque 2"]);
}
