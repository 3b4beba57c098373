//! Writing the index of a layer: an EROFS image with metadata only, whose file data lie in the tar.
//!
//! Block size 512, so that every tar member is block-aligned. Two devices: the index itself and the tar, named by a
//! one-slot device table. A file is one chunk on the tar device; directories and symlinks lie in the index with their
//! tails inline behind the inode where they fit. Format: Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of
//! Linux 6.12. The bytes depend on nothing but the tree.
//!
//! ```text
//! 0        1024         1152          1536                          data
//! | zeros | super block | device slot | inodes, xattrs, chunks, tails | full blocks of directories and symlinks |
//! ```

use crate::tree::{Body, Dir, NodeId, ROOT, Tree};

/// Block size of the index, and the alignment of file data in a tar.
pub(crate) const BLOCK: usize = 512;
const BLOCK_BITS: u8 = 9;
/// A chunk, and with it a file, has at most 2^31 blocks.
pub(crate) const TAR_BYTES_MAX: u64 = 1 << 40;
/// The index of the most members a tree may have stays below this; nids of inodes then fit any field.
const INDEX_BYTES_MAX: u64 = 4 << 30;

const SUPER_OFFSET: usize = 1024;
const SLOT_OFFSET: usize = SUPER_OFFSET + 128;
const META_OFFSET: u64 = 1536;
const MAGIC: u32 = 0xE0F5_E1E2;
/// SB_CHKSUM | MTIME.
const COMPAT: u32 = 0x1 | 0x2;
/// CHUNKED_FILE | DEVICE_TABLE.
const INCOMPAT: u32 = 0x4 | 0x8;

const INODE_BYTES: u64 = 64;
/// Inodes start at multiples of this; a nid counts in it.
const SLOT_BYTES: u64 = 32;
const XATTR_HEADER_BYTES: usize = 12;
const DIRENT_BYTES: usize = 12;

/// Layouts; 0, the plain one, has all data in full blocks of the index.
const LAYOUT_INLINE: u16 = 2;
const LAYOUT_CHUNK: u16 = 4;
const CHUNK_INDEXES: u32 = 0x20;

/// Splits an attribute name into EROFS' namespace number and the rest. None: not storable.
pub(crate) fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (index, rest) = match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        n if n.starts_with(b"user.") => (1, n.get(5..)?),
        n if n.starts_with(b"trusted.") => (4, n.get(8..)?),
        n if n.starts_with(b"security.") => (6, n.get(9..)?),
        _ => return None,
    };
    ((1..=255).contains(&rest.len()) && !rest.contains(&0)).then_some((index, rest))
}

/// Where an inode's parts went.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Byte offset of the inode; 0 is "not placed".
    at: u64,
    layout: u16,
    xattrs: Vec<u8>,
    /// Directory or symlink data, bytes.
    size: u64,
    /// First full block of those.
    block: u32,
}

impl Place {
    fn nid(&self) -> u64 {
        self.at / SLOT_BYTES
    }

    /// Data bytes kept behind the inode.
    fn tail(&self) -> u64 {
        if self.layout == LAYOUT_INLINE { self.size % BLOCK as u64 } else { 0 }
    }

    fn full_blocks(&self) -> u64 {
        match self.layout {
            LAYOUT_INLINE => self.size / BLOCK as u64,
            _ => self.size.div_ceil(BLOCK as u64),
        }
    }
}

/// The index of a tree whose tar is `tar_bytes` long. None: larger than the format can address (the tree's own limits
/// keep every real layer far below).
pub(crate) fn write(tree: &Tree, tar_bytes: u64) -> Option<Vec<u8>> {
    if tar_bytes > TAR_BYTES_MAX {
        return None;
    }
    let order = walk(tree);
    let (places, end) = place(tree, &order)?;
    let mut out = vec![0u8; usize::try_from(end).ok()?];
    for id in &order {
        let place = places.get(*id as usize)?;
        write_inode(&mut out, tree, *id, place, &places)?;
    }
    super_block(&mut out, places.first()?.nid(), order.len() as u64, tar_bytes)?;
    Some(out)
}

/// Every inode once, directories before their children, siblings together.
fn walk(tree: &Tree) -> Vec<NodeId> {
    let mut order = vec![ROOT];
    let mut seen = vec![false; tree.nodes.len()];
    let mut next = 0;
    while let Some(id) = order.get(next).copied() {
        next += 1;
        let Some(Body::Dir(dir)) = tree.node(id).map(|n| &n.body) else { continue };
        for child in dir.entries.values() {
            if let Some(seen) = seen.get_mut(*child as usize)
                && !std::mem::replace(seen, true)
            {
                order.push(*child);
            }
        }
    }
    order
}

fn place(tree: &Tree, order: &[NodeId]) -> Option<(Vec<Place>, u64)> {
    let mut places = vec![Place::default(); tree.nodes.len()];
    let mut cursor = META_OFFSET;
    for id in order {
        let node = tree.node(*id)?;
        let mut place = Place { xattrs: xattr_body(&node.attrs.xattrs)?, ..Place::default() };
        let fixed = INODE_BYTES + place.xattrs.len() as u64;
        match &node.body {
            Body::Dir(dir) => place.size = dir_size(dir),
            Body::Symlink(target) => place.size = target.len() as u64,
            Body::File { size, .. } if *size > 0 => place.layout = LAYOUT_CHUNK,
            _ => {}
        }
        place.at = cursor.next_multiple_of(SLOT_BYTES);
        let tail = place.size % BLOCK as u64;
        if tail > 0
            && let Some(at) = inline_at(place.at, fixed, tail)
        {
            (place.at, place.layout) = (at, LAYOUT_INLINE);
        } else if !fits_block(place.at, INODE_BYTES) {
            place.at = place.at.next_multiple_of(BLOCK as u64);
        }
        cursor = place.at + fixed + place.tail();
        if place.layout == LAYOUT_CHUNK {
            cursor = (place.at + fixed).next_multiple_of(8) + 8;
        }
        if cursor > INDEX_BYTES_MAX {
            return None;
        }
        *places.get_mut(*id as usize)? = place;
    }
    cursor = cursor.next_multiple_of(BLOCK as u64);
    for id in order {
        let place = places.get_mut(*id as usize)?;
        place.block = u32::try_from(cursor / BLOCK as u64).ok()?;
        cursor += place.full_blocks() * BLOCK as u64;
    }
    (cursor <= INDEX_BYTES_MAX).then_some((places, cursor))
}

/// Whether `len` bytes from `at` stay within one block.
fn fits_block(at: u64, len: u64) -> bool {
    at % BLOCK as u64 + len <= BLOCK as u64
}

/// The first slot from `at` where neither the inode nor its tail crosses a block.
fn inline_at(at: u64, fixed: u64, tail: u64) -> Option<u64> {
    (0..BLOCK as u64 / SLOT_BYTES)
        .map(|i| at + i * SLOT_BYTES)
        .find(|at| fits_block(*at, INODE_BYTES) && fits_block(at + fixed, tail))
}

fn xattr_body(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Vec<u8>> {
    if xattrs.is_empty() {
        return Some(Vec::new());
    }
    let mut out = vec![0; XATTR_HEADER_BYTES];
    for (name, value) in xattrs {
        let (index, rest) = xattr_name(name)?;
        out.extend([u8::try_from(rest.len()).ok()?, index]);
        out.extend(u16::try_from(value.len()).ok()?.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    Some(out)
}

/// A directory's entries with `.` and `..` in byte order, which is the order of the binary search in the kernel.
fn dirents(dir: &Dir) -> impl Iterator<Item = (&[u8], Option<NodeId>)> {
    // None stands for the directory itself, which does not know its id.
    let dots = [(&b"."[..], None), (&b".."[..], Some(dir.parent))];
    let mut dots = dots.into_iter().peekable();
    let mut rest = dir.entries.iter().map(|(n, id)| (n.as_slice(), Some(*id))).peekable();
    std::iter::from_fn(move || match (dots.peek(), rest.peek()) {
        (Some(d), Some(r)) if d.0 < r.0 => dots.next(),
        (Some(_), None) => dots.next(),
        _ => rest.next(),
    })
}

/// Cuts entries into blocks: as many as fit with their names.
fn dir_blocks(dir: &Dir) -> Vec<Vec<(&[u8], Option<NodeId>)>> {
    let mut blocks = Vec::new();
    let (mut block, mut used) = (Vec::new(), 0);
    for entry in dirents(dir) {
        let need = DIRENT_BYTES + entry.0.len();
        if used + need > BLOCK {
            blocks.push(std::mem::take(&mut block));
            used = 0;
        }
        used += need;
        block.push(entry);
    }
    blocks.push(block);
    blocks
}

fn dir_size(dir: &Dir) -> u64 {
    let blocks = dir_blocks(dir);
    let last: usize =
        blocks.last().map_or(0, |b| b.iter().map(|(n, _)| DIRENT_BYTES + n.len()).sum());
    ((blocks.len() - 1) * BLOCK + last) as u64
}

fn dir_bytes(dir: &Dir, own: NodeId, tree: &Tree, places: &[Place]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let blocks = dir_blocks(dir);
    for (i, block) in blocks.iter().enumerate() {
        let mut name_at = block.len() * DIRENT_BYTES;
        for (name, id) in block {
            let id = id.unwrap_or(own);
            out.extend(places.get(id as usize)?.nid().to_le_bytes());
            out.extend(u16::try_from(name_at).ok()?.to_le_bytes());
            out.extend([file_type(&tree.node(id)?.body), 0]);
            name_at += name.len();
        }
        block.iter().for_each(|(name, _)| out.extend_from_slice(name));
        if i + 1 < blocks.len() {
            out.resize((i + 1) * BLOCK, 0);
        }
    }
    Some(out)
}

fn file_type(body: &Body) -> u8 {
    match body {
        Body::File { .. } => 1,
        Body::Dir(_) => 2,
        Body::Char { .. } => 3,
        Body::Block { .. } => 4,
        Body::Fifo => 5,
        Body::Symlink(_) => 7,
    }
}

fn type_bits(body: &Body) -> u16 {
    match body {
        Body::File { .. } => 0o100000,
        Body::Dir(_) => 0o040000,
        Body::Char { .. } => 0o020000,
        Body::Block { .. } => 0o060000,
        Body::Fifo => 0o010000,
        Body::Symlink(_) => 0o120000,
    }
}

/// Linux' new_encode_dev().
fn encode_dev(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

fn write_inode(
    out: &mut [u8],
    tree: &Tree,
    id: NodeId,
    place: &Place,
    places: &[Place],
) -> Option<()> {
    let node = tree.node(id)?;
    let (mut size, mut union) = (place.size, 0);
    let mut data = Vec::new();
    let mut chunk = None;
    match &node.body {
        Body::Dir(dir) => data = dir_bytes(dir, id, tree, places)?,
        Body::Symlink(target) => data.clone_from(target),
        Body::File { offset, size: file_size } => {
            size = *file_size;
            if size > 0 {
                // One chunk covers the file: 512 << bits bytes.
                let blocks = size.div_ceil(BLOCK as u64);
                union = blocks.next_power_of_two().trailing_zeros() | CHUNK_INDEXES;
                chunk = Some(u32::try_from(offset / BLOCK as u64).ok()?);
            }
        }
        Body::Char { major, minor } | Body::Block { major, minor } => {
            union = encode_dev(*major, *minor);
        }
        Body::Fifo => {}
    }
    if !data.is_empty() {
        union = place.block;
    }
    let icount = match place.xattrs.len() {
        0 => 0,
        n => u16::try_from((n - XATTR_HEADER_BYTES) / 4 + 1).ok()?,
    };
    let a = &node.attrs;
    let mut w = Writer::new(INODE_BYTES as usize);
    w.u16(1 | place.layout << 1);
    w.u16(icount);
    w.u16(type_bits(&node.body) | a.mode);
    w.u16(0);
    w.u64(size);
    w.u32(union);
    // i_ino is only for 32-bit stat; the nid is unique.
    w.u32(place.nid() as u32);
    w.u32(a.uid);
    w.u32(a.gid);
    w.u64(a.mtime_s as u64);
    w.u32(a.mtime_ns);
    w.u32(node.nlink);
    put(out, place.at, &w.finish())?;
    let mut at = place.at + INODE_BYTES;
    put(out, at, &place.xattrs)?;
    at += place.xattrs.len() as u64;
    if let Some(block) = chunk {
        let mut w = Writer::new(8);
        w.u16(0);
        // Device 1 is the first slot of the table: the tar.
        w.u16(1);
        w.u32(block);
        put(out, at.next_multiple_of(8), &w.finish())?;
    }
    let full = data.len() - place.tail() as usize;
    let (full, tail) = data.split_at_checked(full)?;
    put(out, u64::from(place.block) * BLOCK as u64, full)?;
    put(out, at, tail)
}

fn put(out: &mut [u8], at: u64, bytes: &[u8]) -> Option<()> {
    if !bytes.is_empty() {
        let at = usize::try_from(at).ok()?;
        out.get_mut(at..at.checked_add(bytes.len())?)?.copy_from_slice(bytes);
    }
    Some(())
}

fn super_block(out: &mut [u8], root_nid: u64, inodes: u64, tar_bytes: u64) -> Option<()> {
    let blocks = u32::try_from(out.len() / BLOCK).ok()?;
    let mut w = Writer::new(BLOCK);
    w.u32(MAGIC);
    w.u32(0); // checksum, below
    w.u32(COMPAT);
    w.u8(BLOCK_BITS);
    w.u8(0); // extension slots
    w.u16(u16::try_from(root_nid).ok()?);
    w.u64(inodes);
    w.u64(0); // epoch of compact inodes
    w.u32(0);
    w.u32(blocks);
    w.u32(0); // metadata start: nids count from byte 0
    w.u32(0); // shared xattrs
    w.skip(32); // uuid, volume name
    w.u32(INCOMPAT);
    w.u16(0);
    w.u16(1); // extra devices
    w.u16((SLOT_OFFSET / 128) as u16);
    // The rest of the super block and the slot's tag are zero.
    w.skip(SLOT_OFFSET - SUPER_OFFSET - w.len() + 64);
    w.u32(u32::try_from(tar_bytes.div_ceil(BLOCK as u64)).ok()?);
    let mut block = w.finish();
    let sum = crc32c(&block);
    block.get_mut(4..8)?.copy_from_slice(&sum.to_le_bytes());
    put(out, SUPER_OFFSET as u64, &block)
}

/// CRC-32C without the final inversion, as the kernel's crc32c(~0, …).
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |crc, b| {
        (0..8).fold(
            crc ^ u32::from(*b),
            |c, _| {
                if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 }
            },
        )
    })
}

/// Little-endian fields into a zero-padded record.
struct Writer {
    bytes: Vec<u8>,
    size: usize,
}

impl Writer {
    fn new(size: usize) -> Writer {
        Writer { bytes: Vec::with_capacity(size), size }
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn u8(&mut self, v: u8) {
        self.bytes.push(v);
    }

    fn u16(&mut self, v: u16) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn u32(&mut self, v: u32) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn u64(&mut self, v: u64) {
        self.bytes.extend(v.to_le_bytes());
    }

    fn skip(&mut self, n: usize) {
        self.bytes.resize(self.bytes.len() + n, 0);
    }

    fn finish(mut self) -> Vec<u8> {
        assert!(self.bytes.len() <= self.size, "a record longer than its declared size");
        self.bytes.resize(self.size, 0);
        self.bytes
    }
}

#[cfg(test)]
mod tests;
