use super::*;

pub(crate) fn parse(tar: &[u8], chunk: usize) -> Result<Vec<Member>, TarError> {
    let mut out = Vec::new();
    let mut p = Parser::new();
    for c in tar.chunks(chunk.max(1)) {
        p.feed(c, &mut |m| {
            out.push(m);
            Ok(())
        })?;
    }
    p.finish()?;
    Ok(out)
}

fn plain(path: &[u8], kind: u8, size: u64) -> Vec<u8> {
    header(&Header {
        path,
        link: b"",
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        size,
        mtime_s: 3,
        major: 0,
        minor: 0,
        xattrs: &[],
    })
}

#[test]
fn round_trip_with_everything_too_long_for_ustar() {
    let xattrs = vec![(b"user.a".to_vec(), vec![0, 10, 61, 255]), (b"user.b".to_vec(), vec![])];
    let long = vec![b'p'; 300];
    let h = Header {
        path: &long,
        link: &[b'l'; 101],
        kind: b'2',
        mode: 0o4755,
        uid: 3_000_000,
        gid: u32::MAX,
        size: 0,
        mtime_s: 1 << 40,
        major: 0,
        minor: 0,
        xattrs: &xattrs,
    };
    let tar = header(&h);
    for chunk in [1, 7, 511, 512, 513, 1 << 20] {
        let m = &parse(&tar, chunk).unwrap()[0];
        assert_eq!(m.path, long);
        assert_eq!(m.link, h.link);
        assert_eq!((m.mode, m.uid, m.gid, m.mtime_s), (0o4755, h.uid, h.gid, 1 << 40));
        assert_eq!(m.xattrs, xattrs);
        assert_eq!(m.kind, Kind::Symlink);
    }
}

#[test]
fn data_is_skipped_and_offsets_are_right() {
    let mut tar = plain(b"a", b'0', 513);
    tar.extend(vec![9; 1024]);
    tar.extend(plain(b"b", b'0', 0));
    tar.extend(vec![0; 1024]);
    let m = parse(&tar, 100).unwrap();
    assert_eq!((m[0].data_offset, m[0].size), (512, 513));
    assert_eq!((m[1].data_offset, m[1].size), (512 + 1024 + 512, 0));
}

#[test]
fn ends() {
    let a = plain(b"a", b'0', 0);
    assert_eq!(parse(b"", 1).unwrap().len(), 0);
    assert_eq!(parse(&a, 64).unwrap().len(), 1);
    let with =
        |tail: &[u8]| parse(&[&a[..], tail].concat(), 100).map(|m| m.len()).map_err(|e| e.fault);
    assert_eq!(with(&[0; 512]), Ok(1));
    assert_eq!(with(&[0; 1024 + 5]), Ok(1));
    assert_eq!(with(&[[0u8; 1024].to_vec(), vec![1]].concat()), Err(TarFault::Trailing));
    assert_eq!(with(&[vec![0u8; 512], a.clone()].concat()), Err(TarFault::Trailing));
    assert_eq!(with(&a[..100]), Err(TarFault::Truncated));
    assert_eq!(with(&plain(b"b", b'0', 1)), Err(TarFault::Truncated));
    assert_eq!(with(&[plain(b"b", b'0', 1), vec![0; 511]].concat()), Err(TarFault::Truncated));
}

fn fault(tar: &[u8]) -> TarFault {
    parse(tar, 77).unwrap_err().fault
}

#[test]
fn malformed_headers() {
    let mut bad = plain(b"a", b'0', 0);
    bad[0] = b'b';
    assert_eq!(fault(&bad), TarFault::Checksum);
    assert_eq!(fault(&[7; 512]), TarFault::Checksum);
    for t in [b'S', b'D', b'M', b'V', b'N', b'A', b'X', b'?'] {
        assert_eq!(fault(&plain(b"a", t, 0)), TarFault::Type(t));
    }
    for t in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        assert_eq!(fault(&[plain(b"a", t, 1), vec![0; 512]].concat()), TarFault::UnexpectedData);
    }
}

fn with_field(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut b = plain(b"a", b'0', 0);
    b[at..at + bytes.len()].copy_from_slice(bytes);
    b[148..156].copy_from_slice(b"        ");
    let sum: u64 = b.iter().map(|b| u64::from(*b)).sum();
    b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    b
}

#[test]
fn numbers() {
    assert_eq!(fault(&with_field(124, b"0000000008\0")), TarFault::Number);
    assert_eq!(fault(&with_field(124, b"12 34567890\0")), TarFault::Number);
    // Negative size, oversized size, size that overflows with its padding.
    assert_eq!(fault(&with_field(124, &[0xff; 12])), TarFault::Number);
    assert_eq!(fault(&with_field(124, &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])), TarFault::Number);
    let huge = [0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(fault(&with_field(124, &huge)), TarFault::Number);
    let m = parse(&with_field(136, &[0xff; 12]), 512).unwrap();
    assert_eq!(m[0].mtime_s, -1);
    assert_eq!(fault(&with_field(108, b"\x00000001\0")), TarFault::Number);
    let m = parse(&with_field(108, b"       \0"), 512).unwrap();
    assert_eq!(m[0].uid, 0);
}

fn ext(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut t = plain(b"x", kind, data.len() as u64);
    t.extend_from_slice(data);
    t.resize(t.len().next_multiple_of(512), 0);
    t
}

fn ext_then(kind: u8, data: &[u8]) -> Vec<u8> {
    [ext(kind, data), plain(b"a", b'0', 0)].concat()
}

#[test]
fn extensions() {
    let one = |tar: &[u8]| parse(tar, 99).map(|m| m[0].clone()).map_err(|e| e.fault);
    assert_eq!(one(&ext_then(b'L', b"long\0")).unwrap().path, b"long");
    assert_eq!(one(&ext_then(b'L', b"lo\0ng")), Err(TarFault::Nul));
    let mut beyond = ext_then(b'L', b"lo");
    beyond[514] = b'n';
    assert_eq!(one(&beyond), Err(TarFault::Extension));
    assert_eq!(one(&ext_then(b'x', b"12 path=x/y\n")).unwrap().path, b"x/y");
    assert_eq!(one(&ext_then(b'x', b"12 path=x\0y\n")), Err(TarFault::Nul));
    let m = one(&ext_then(b'x', b"14 mtime=-1.5\n")).unwrap();
    assert_eq!((m.mtime_s, m.mtime_ns), (-2, 500_000_000));
    let m = one(&ext_then(b'x', b"21 mtime=12.00000001\n")).unwrap();
    assert_eq!((m.mtime_s, m.mtime_ns), (12, 10));
    for bad in [
        &b"13 path=x/y\n"[..],
        b"11 path=x/y\n",
        b"path=x/y\n",
        b"0 \n",
        b"5 abc\n",
        b"99999999999999999999 path=x\n",
        b"12 path=x/y\n\0\0",
        b"12 mtime=1x\n",
        b"9 uid=-1\n",
        b"5 =a\n",
    ] {
        assert_eq!(one(&ext_then(b'x', bad)), Err(TarFault::Pax), "{:?}", bad.escape_ascii());
    }
    assert_eq!(one(&ext_then(b'x', b"22 GNU.sparse.major=1\n")), Err(TarFault::Type(b'S')));
    assert_eq!(one(&ext_then(b'g', b"12 path=x/y\n")), Err(TarFault::Pax));
    assert_eq!(one(&ext_then(b'g', b"13 comment=a\n")).unwrap().path, b"a");
    // Doubled, mixed and dangling extensions.
    let x = ext(b'x', b"12 path=x/y\n");
    let l = ext(b'L', b"z");
    let a = plain(b"a", b'0', 0);
    for bad in [
        [&x[..], &x, &a],
        [&x, &l, &a],
        [&l, &x, &a],
        [&l, &l, &a],
        [&a, &a, &x],
        [&a, &l, &[0; 512]],
    ] {
        assert_eq!(fault(&bad.concat()), TarFault::Extension);
    }
    assert_eq!(fault(&plain(b"x", b'x', 2 << 20)), TarFault::Extension);
    // A PAX size overrides the header's; the data must then be there.
    assert_eq!(one(&ext_then(b'x', b"10 size=9\n")), Err(TarFault::Truncated));
}

/// What Python's tarfile says of every tar in a directory: one line a member, `!` for a refusal.
const PYTHON: &str = r##"
import os, sys, tarfile
d = sys.argv[1]
for name in sorted(os.listdir(d)):
    print("#", name)
    try:
        with tarfile.open(os.path.join(d, name), encoding="latin-1", errors="strict") as t:
            for m in t:
                kind = "r" if m.isreg() else {b"1": "h", b"2": "s", b"3": "c", b"4": "b", b"5": "d", b"6": "f"}.get(m.type, "?")
                link = m.linkname if kind in "hs" else ""
                size = m.size if kind == "r" else 0
                dev = (m.devmajor, m.devminor) if kind in "cb" else (0, 0)
                # A PAX header is UTF-8, ours are bytes: back to bytes.
                def raw(s, key): return s.encode("utf-8" if key in m.pax_headers else "latin-1", "replace").hex()
                print(raw(m.name.rstrip("/"), "path"), kind, size, m.offset_data, m.mode & 0o7777, m.uid, m.gid,
                      int(m.mtime // 1), raw(link, "linkpath"), *dev)
    except Exception as e:
        print("!", type(e).__name__)
"##;

fn line(m: &Member) -> String {
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let kind = match m.kind {
        Kind::File => "r",
        Kind::Hardlink => "h",
        Kind::Symlink => "s",
        Kind::Char => "c",
        Kind::Block => "b",
        Kind::Dir => "d",
        Kind::Fifo => "f",
    };
    let link: &[u8] = if matches!(kind, "h" | "s") { &m.link } else { b"" };
    let mut path = m.path.as_slice();
    while let Some(p) = path.strip_suffix(b"/") {
        path = p;
    }
    format!(
        "{} {kind} {} {} {} {} {} {} {} {} {}",
        hex(path),
        m.size,
        m.data_offset,
        m.mode,
        m.uid,
        m.gid,
        m.mtime_s,
        hex(link),
        m.major,
        m.minor
    )
}

/// A random tar, often broken: `(bytes)`.
fn random_tar(rng: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
    let mut tar = Vec::new();
    for i in 0..=rng(3) {
        let kind = b"00001234567"[rng(11) as usize];
        let path = match rng(4) {
            0 => vec![b'a' + i as u8; 1 + rng(150) as usize],
            1 => format!("d{i}/e/").into_bytes(),
            _ => format!("f{i}").into_bytes(),
        };
        let size = if matches!(kind, b'0' | b'7') { rng(1500) } else { 0 };
        if rng(6) == 0 {
            tar.extend(ext(b'L', &[&path[..], b"-long\0"].concat()));
        }
        if rng(8) == 0 {
            tar.extend(ext(b'x', b"14 mtime=77.25\n12 uid=12345\n"));
        }
        tar.extend(header(&Header {
            path: &path,
            link: if matches!(kind, b'1' | b'2') { b"to" } else { b"" },
            kind,
            mode: rng(0o10000) as u32,
            uid: rng(1 << 22) as u32,
            gid: rng(1 << 22) as u32,
            size,
            mtime_s: rng(1 << 33),
            major: rng(4096) as u32,
            minor: rng(4096) as u32,
            xattrs: &[],
        }));
        tar.resize((tar.len() + size as usize).next_multiple_of(512), 1);
    }
    if rng(2) == 0 {
        tar.resize(tar.len() + 1024, 0);
    }
    for _ in 0..rng(4) {
        let block = rng(tar.len() as u64 / 512) as usize * 512;
        // Mostly the fields that say where things are and what.
        let at = match rng(4) {
            0 => 124 + rng(12),
            1 => 156 + rng(3),
            2 => 257 + rng(8),
            _ => rng(512),
        } as usize;
        // Base-256 numbers; elsewhere such bytes would only test how Python guesses encodings.
        let header = tar[block + 257..].starts_with(b"ustar");
        let high = header && (124..136).contains(&at) && rng(4) == 0;
        let byte = if high { 0x80 | rng(128) as u8 } else { b"0178 \0/9xS"[rng(10) as usize] };
        let block = &mut tar[block..block + 512];
        block[at] = byte;
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    tar
}

/// Every tar that is taken here reads the same in Python. (The other way round is not wanted: this parser refuses more.)
#[test]
fn what_is_taken_reads_the_same_in_python() {
    let dir = std::env::temp_dir().join(format!("imagefs-python-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut rng = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n.max(1)
    };
    let mut ours = std::collections::BTreeMap::new();
    for i in 0..1500 {
        let tar = random_tar(&mut rng);
        if let Ok(members) = parse(&tar, 4096) {
            let name = format!("{i:05}");
            std::fs::write(dir.join(&name), &tar).unwrap();
            ours.insert(name, members.iter().map(line).collect::<Vec<_>>());
        }
    }
    let out = std::process::Command::new("python3").args(["-c", PYTHON]).arg(&dir).output();
    let keep = std::env::var_os("KEEP").is_some();
    if !keep {
        std::fs::remove_dir_all(&dir).unwrap();
    }
    let Ok(out) = out.map(|o| String::from_utf8(o.stdout).unwrap()).map_err(|e| println!("{e}"))
    else {
        skip::because("what_is_taken_reads_the_same_in_python", "no python3");
        return;
    };
    let mut theirs = std::collections::BTreeMap::<String, Vec<String>>::new();
    let mut current = String::new();
    for l in out.lines() {
        match l.strip_prefix("# ") {
            Some(name) => {
                current = name.to_string();
                theirs.insert(current.clone(), Vec::new());
            }
            None => theirs.get_mut(&current).unwrap().push(l.to_string()),
        }
    }
    assert!(ours.len() > 500, "{}", ours.len());
    let different: Vec<_> = ours.iter().filter(|(k, v)| theirs.get(*k) != Some(v)).collect();
    for (name, lines) in different.iter().take(8) {
        println!("{name}\n  ours   {lines:#?}\n  theirs {:#?}", theirs.get(*name));
    }
    assert!(different.is_empty(), "{} of {} differ", different.len(), ours.len());
}
