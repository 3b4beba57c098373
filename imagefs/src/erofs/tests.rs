//! Reads indexes back with a reader written from the format alone, and compares with the tree.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::tarfmt::{Kind, Member};
use crate::tree::{Attrs, Builder};

/// What a path is, in one line.
type Listing = BTreeMap<Vec<u8>, String>;

fn u16_at(b: &[u8], at: u64) -> u64 {
    u64::from(u16::from_le_bytes(b[at as usize..][..2].try_into().unwrap()))
}

fn u32_at(b: &[u8], at: u64) -> u64 {
    u64::from(u32::from_le_bytes(b[at as usize..][..4].try_into().unwrap()))
}

fn u64_at(b: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(b[at as usize..][..8].try_into().unwrap())
}

struct Reader<'a> {
    b: &'a [u8],
    tar_blocks: u64,
}

impl<'a> Reader<'a> {
    fn new(b: &'a [u8]) -> Reader<'a> {
        assert_eq!(b.len() % 512, 0);
        assert_eq!(u32_at(b, 1024), 0xE0F5E1E2);
        let mut block = b[1024..1536].to_vec();
        let sum = u32_at(b, 1028);
        block[4..8].fill(0);
        assert_eq!(u64::from(crc32c(&block)), sum);
        assert_eq!(b[1024 + 12], 9);
        assert_eq!(u32_at(b, 1024 + 36) * 512, b.len() as u64, "blocks");
        let slot = u16_at(b, 1024 + 88) * 128;
        assert_eq!(u16_at(b, 1024 + 86), 1);
        Reader { b, tar_blocks: u32_at(b, slot + 64) }
    }

    fn inode(&self, nid: u64) -> u64 {
        let at = nid * 32;
        assert_eq!(at / 512, (at + 63) / 512, "inode crosses a block");
        assert_eq!(u16_at(self.b, at) & 1, 1, "extended");
        at
    }

    fn xattrs(&self, at: u64) -> (u64, Vec<String>) {
        let count = u16_at(self.b, at + 2);
        if count == 0 {
            return (0, Vec::new());
        }
        let size = 12 + 4 * (count - 1);
        let (mut p, end) = (at + 64 + 12, at + 64 + size);
        assert_eq!(self.b[(at + 64 + 4) as usize], 0, "shared xattrs");
        let mut out = Vec::new();
        while p < end {
            let name_len = u64::from(self.b[p as usize]);
            let index = self.b[p as usize + 1];
            let value_len = u16_at(self.b, p + 2);
            let name = &self.b[(p + 4) as usize..][..name_len as usize];
            let value = &self.b[(p + 4 + name_len) as usize..][..value_len as usize];
            let prefix = [
                "",
                "user.",
                "system.posix_acl_access",
                "system.posix_acl_default",
                "trusted.",
                "",
                "security.",
            ];
            out.push(format!("{}{}={value:?}", prefix[usize::from(index)], name.escape_ascii()));
            p = (p + 4 + name_len + value_len).next_multiple_of(4);
        }
        assert_eq!(p, end);
        (size, out)
    }

    /// Data of a directory or symlink.
    fn data(&self, at: u64, xattrs: u64) -> Vec<u8> {
        let (layout, size) = (u16_at(self.b, at) >> 1, u64_at(self.b, at + 8));
        let block = u32_at(self.b, at + 16);
        let tail = if layout == 2 { size % 512 } else { 0 };
        let full = (size - tail) as usize;
        let mut out =
            if full > 0 { self.b[(block * 512) as usize..][..full].to_vec() } else { Vec::new() };
        let tail_at = at + 64 + xattrs;
        if tail > 0 {
            assert_eq!(tail_at / 512, (tail_at + tail - 1) / 512, "tail crosses a block");
        }
        out.extend(&self.b[tail_at as usize..][..tail as usize]);
        out
    }

    fn list(&self) -> Listing {
        let mut out = Listing::new();
        let root = u16_at(self.b, 1024 + 14);
        let mut work = vec![(root, root, Vec::new(), 2)];
        let mut inodes = std::collections::BTreeSet::new();
        while let Some((nid, parent, path, kind)) = work.pop() {
            inodes.insert(nid);
            let at = self.inode(nid);
            let (xsize, xattrs) = self.xattrs(at);
            let mode = u16_at(self.b, at + 4);
            let mut text = format!(
                "{mode:o} {}:{} {}.{} n{} {xattrs:?}",
                u32_at(self.b, at + 24),
                u32_at(self.b, at + 28),
                u64_at(self.b, at + 32) as i64,
                u32_at(self.b, at + 40),
                u32_at(self.b, at + 44),
            );
            let want = match mode >> 12 {
                0o10 => 1,
                0o4 => 2,
                0o2 => 3,
                0o6 => 4,
                0o1 => 5,
                _ => 7,
            };
            assert_eq!(kind, want, "directory entry's type");
            match mode >> 12 {
                0o4 => {
                    let data = self.data(at, xsize);
                    let mut last: Vec<u8> = Vec::new();
                    let mut dots = Vec::new();
                    for block in data.chunks(512) {
                        let n = u16_at(block, 8) / 12;
                        for i in 0..n {
                            let name_at = u16_at(block, i * 12 + 8) as usize;
                            let end = if i + 1 < n {
                                u16_at(block, i * 12 + 20) as usize
                            } else {
                                block.len()
                            };
                            let name = block[name_at..end].split(|b| *b == 0).next().unwrap();
                            assert!(last.as_slice() < name || last.is_empty(), "order");
                            last = name.to_vec();
                            let child = u64_at(block, i * 12);
                            match name {
                                b"." | b".." => dots.push((name.to_vec(), child)),
                                _ => {
                                    let path = [&path[..], b"/", name].concat();
                                    work.push((child, nid, path, block[i as usize * 12 + 10]));
                                }
                            }
                        }
                    }
                    assert_eq!(dots, [(b".".to_vec(), nid), (b"..".to_vec(), parent)]);
                }
                0o12 => text += &format!(" -> {}", self.data(at, xsize).escape_ascii()),
                0o10 => {
                    let size = u64_at(self.b, at + 8);
                    let mut offset = 0;
                    if size > 0 {
                        let format = u32_at(self.b, at + 16);
                        assert!(512u64 << (format & 31) >= size && format & 0x20 != 0);
                        let chunk = (at + 64 + xsize).next_multiple_of(8);
                        assert_eq!(u16_at(self.b, chunk + 2), 1, "device");
                        offset = u32_at(self.b, chunk + 4);
                        assert!(offset + size.div_ceil(512) <= self.tar_blocks);
                    }
                    text += &format!(" {size}@{offset}");
                }
                _ => text += &format!(" {:x}", u32_at(self.b, at + 16)),
            }
            out.insert(path, text);
        }
        assert_eq!(u64_at(self.b, 1024 + 16), inodes.len() as u64);
        out
    }
}

fn listing(tree: &Tree) -> Listing {
    let mut out = Listing::new();
    let mut work = vec![(ROOT, Vec::new())];
    while let Some((id, path)) = work.pop() {
        let node = tree.node(id).unwrap();
        let Attrs { mode, uid, gid, mtime_s, mtime_ns, xattrs } = &node.attrs;
        let xattrs: Vec<_> =
            xattrs.iter().map(|(n, v)| format!("{}={v:?}", n.escape_ascii())).collect();
        let kind = type_bits(&node.body);
        let mut text = format!(
            "{:o} {uid}:{gid} {mtime_s}.{mtime_ns} n{} {xattrs:?}",
            kind | mode,
            node.nlink
        );
        match &node.body {
            Body::Dir(d) => {
                for (name, child) in &d.entries {
                    work.push((*child, [&path[..], b"/", name].concat()));
                }
            }
            Body::File { offset, size } => {
                text += &format!(" {size}@{}", if *size > 0 { offset / 512 } else { 0 });
            }
            Body::Symlink(to) => text += &format!(" -> {}", to.escape_ascii()),
            Body::Char { major, minor } | Body::Block { major, minor } => {
                text += &format!(" {:x}", encode_dev(*major, *minor));
            }
            Body::Fifo => text += " 0",
        }
        out.insert(path, text);
    }
    out
}

fn member() -> impl Strategy<Value = Member> {
    let name = prop_oneof![
        4 => "[a-d]",
        2 => "[!-.0-~]{1,20}",
        1 => "[x-z]{200,255}",
    ];
    let path = prop::collection::vec(name, 1..4).prop_map(|p| p.join("/").into_bytes());
    let kind = prop::sample::select(vec![
        Kind::File,
        Kind::File,
        Kind::Dir,
        Kind::Symlink,
        Kind::Hardlink,
        Kind::Char,
        Kind::Block,
        Kind::Fifo,
    ]);
    let lengths = prop_oneof![0usize..600, 3900usize..4096];
    let xattr =
        (prop::sample::select(vec!["user.", "trusted.", "security."]), "[a-z]{1,40}", 0usize..700);
    (
        path,
        kind,
        (0u64..1 << 20, 0u64..5000, lengths),
        prop::collection::vec(xattr, 0..3),
        (0u16..0o10000, any::<u32>(), any::<u32>(), any::<i64>(), 0u32..1_000_000_000),
        (0u32..4096, 1u32..1 << 20),
    )
        .prop_map(
            |(
                path,
                kind,
                (block, size, link),
                xattrs,
                (mode, uid, gid, mtime_s, mtime_ns),
                (major, minor),
            )| {
                let link = match kind {
                    Kind::Symlink => vec![b's'; link.max(1)],
                    Kind::Hardlink => b"a".to_vec(),
                    _ => Vec::new(),
                };
                let mut seen = std::collections::BTreeSet::new();
                let xattrs = xattrs
                    .into_iter()
                    .map(|(ns, name, len)| {
                        (format!("{ns}{name}").into_bytes(), vec![len as u8; len])
                    })
                    .filter(|(n, _)| seen.insert(n.clone()))
                    .collect();
                let size = if kind == Kind::File { size } else { 0 };
                Member {
                    offset: 0,
                    data_offset: block * 512,
                    size,
                    path,
                    link,
                    kind,
                    mode,
                    uid,
                    gid,
                    mtime_s,
                    mtime_ns,
                    major,
                    minor,
                    xattrs,
                }
            },
        )
}

/// A tree of those members that are no refusal in their place.
fn build(members: &[Member]) -> Tree {
    let mut good: Vec<Member> = Vec::new();
    for m in members {
        let mut b = Builder::new();
        good.iter().for_each(|m| b.add(m.clone()).unwrap());
        if b.add(m.clone()).is_ok() {
            good.push(m.clone());
        }
    }
    let mut b = Builder::new();
    good.into_iter().for_each(|m| b.add(m).unwrap());
    b.finish().unwrap()
}

const TAR_BYTES: u64 = 1 << 30;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_index_says_what_the_tree_says(members in prop::collection::vec(member(), 0..25)) {
        let tree = build(&members);
        let index = write(&tree, TAR_BYTES).unwrap();
        prop_assert_eq!(&write(&tree, TAR_BYTES).unwrap(), &index);
        prop_assert_eq!(Reader::new(&index).list(), listing(&tree));
    }

    #[test]
    fn mutated_tars_never_panic_and_what_is_taken_is_indexed(
        members in prop::collection::vec(member(), 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        repair in any::<bool>(),
        cut in any::<prop::sample::Index>(),
        chunk in 1usize..2000,
    ) {
        let mut tar = Vec::new();
        for m in &members {
            tar.extend(crate::tarfmt::header(&crate::tarfmt::Header {
                path: &m.path,
                link: &m.link,
                kind: match m.kind {
                    Kind::File => b'0', Kind::Hardlink => b'1', Kind::Symlink => b'2', Kind::Char => b'3',
                    Kind::Block => b'4', Kind::Dir => b'5', Kind::Fifo => b'6',
                },
                mode: u32::from(m.mode), uid: m.uid, gid: m.gid, size: m.size, mtime_s: m.mtime_s as u64 >> 24,
                major: m.major, minor: m.minor, xattrs: &m.xattrs,
            }));
            tar.resize((tar.len() + m.size as usize).next_multiple_of(512), 7);
        }
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            if repair {
                // Keep the checksum right, so that the change gets further than the first check.
                let block = &mut tar[at / 512 * 512..][..512];
                block[148..156].fill(b' ');
                let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if cut.index(4) == 0 {
            tar.truncate(cut.index(tar.len()));
        }
        let mut parser = crate::tarfmt::Parser::new();
        let mut tree = Builder::new();
        let fed = tar.chunks(chunk).try_for_each(|c| parser.feed(c, &mut |m| tree.add(m)));
        if fed.is_ok() && parser.finish().is_ok() {
            let tree = tree.finish().unwrap();
            let index = write(&tree, tar.len() as u64).unwrap();
            prop_assert_eq!(Reader::new(&index).list(), listing(&tree));
        }
    }
}

#[test]
fn large_directories_and_boundary_sizes() {
    let base = |path: String, kind| Member {
        offset: 0,
        data_offset: 512,
        size: 0,
        path: path.into_bytes(),
        link: Vec::new(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        mtime_ns: 0,
        major: 0,
        minor: 0,
        xattrs: Vec::new(),
    };
    let mut b = Builder::new();
    for i in 0..20_000 {
        b.add(base(format!("many/{i:x}"), Kind::File)).unwrap();
    }
    for n in 1..=520 {
        let link = vec![b'l'; n];
        b.add(Member { link, ..base(format!("links/{n}"), Kind::Symlink) }).unwrap();
    }
    for bits in 0..40 {
        for size in [1u64 << bits, (1 << bits) + 1, (1u64 << bits) - 1] {
            let m = Member { size, ..base(format!("sizes/{size}"), Kind::File) };
            b.add(m).unwrap();
        }
    }
    let largest = TAR_BYTES_MAX - 1024;
    b.add(Member { size: largest, ..base("sizes/largest".into(), Kind::File) }).unwrap();
    for n in [0usize, 1, 60_000, 65_535] {
        let xattrs = vec![(b"user.x".to_vec(), vec![1; n])];
        b.add(Member { xattrs: xattrs.clone(), ..base(format!("x/{n}"), Kind::Dir) }).unwrap();
        b.add(Member { xattrs, size: 5, ..base(format!("x/f{n}"), Kind::File) }).unwrap();
    }
    let tree = b.finish().unwrap();
    let index = write(&tree, TAR_BYTES_MAX).unwrap();
    assert_eq!(Reader::new(&index).list(), listing(&tree));
    assert!(write(&tree, TAR_BYTES_MAX + 1).is_none());
}
