//! From tar members to the tree of one layer, with OCI whiteouts turned into overlayfs' own.
//!
//! The result is what overlayfs needs to see in *this* layer so that the stack looks as if the tars had been extracted
//! one over the other (OCI image spec, layer.md): `.wh.x` is a character device 0:0, `.wh..wh..opq` an opaque mark, and a
//! directory that was removed and made again in one layer is opaque. Members may come in any order; the last of two of
//! one name wins. Parents that no member declares exist with default attributes and are told apart, because in the
//! stack they take the attributes of the layers below ([`Tree::inherit`]).

use std::collections::{BTreeMap, BTreeSet};

use crate::tarfmt::{Kind, Member, TarFault};

/// Most path components.
pub(crate) const DEPTH_MAX: usize = 256;
/// Longest component, bytes (Linux NAME_MAX).
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Longest symlink target (Linux PATH_MAX less the NUL).
pub(crate) const LINK_BYTES_MAX: usize = 4095;
/// Most inodes of a layer, and most members of its tar. About 300 bytes of memory each while a layer is read.
pub(crate) const MEMBERS_MAX: usize = 1 << 20;
/// Largest value of one extended attribute; EROFS counts it in 16 bits.
pub(crate) const XATTR_VALUE_BYTES_MAX: usize = u16::MAX as usize;
/// All extended attributes of one inode; EROFS counts their words in 16 bits.
pub(crate) const XATTR_INODE_BYTES_MAX: usize = 240 << 10;
/// All names and extended attributes of a layer.
pub(crate) const TEXT_BYTES_MAX: usize = 256 << 20;

/// Index into [`Tree::nodes`].
pub(crate) type NodeId = u32;
/// The root directory's.
pub(crate) const ROOT: NodeId = 0;

/// Attributes every inode has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attrs {
    /// Permission bits with setuid, setgid, sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime_s: i64,
    pub(crate) mtime_ns: u32,
    /// Sorted by name; names with their namespace.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attrs {
    fn undeclared() -> Attrs {
        Attrs { mode: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs: Vec::new() }
    }
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Dir(Dir),
    /// Where its data lies in the tar.
    File {
        offset: u64,
        size: u64,
    },
    Symlink(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dir {
    pub(crate) entries: BTreeMap<Vec<u8>, NodeId>,
    pub(crate) parent: NodeId,
    /// A member of the tar, not just somebody's parent.
    declared: bool,
    /// Hides what lower layers have in it.
    pub(crate) opaque: bool,
    /// Was removed and made again in this layer: opaque, and takes no attributes from below either.
    cleared: bool,
    whiteouts: BTreeSet<Vec<u8>>,
}

impl Dir {
    fn new(parent: NodeId, declared: bool) -> Dir {
        Dir {
            entries: BTreeMap::new(),
            parent,
            declared,
            opaque: false,
            cleared: false,
            whiteouts: BTreeSet::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) attrs: Attrs,
    pub(crate) body: Body,
    /// Links to it; valid after [`Builder::finish`].
    pub(crate) nlink: u32,
}

/// A finished layer. Nodes that nothing refers to any more may be among `nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
    /// Directories (paths without a leading slash, the root is empty) that take their attributes from the layers below.
    pub(crate) inherit: Vec<Vec<u8>>,
}

impl Tree {
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }
}

/// Builds a [`Tree`] member by member.
#[derive(Debug)]
pub(crate) struct Builder {
    nodes: Vec<Node>,
    members: usize,
    text_bytes: usize,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        let root =
            Node { attrs: Attrs::undeclared(), body: Body::Dir(Dir::new(ROOT, false)), nlink: 0 };
        Builder { nodes: vec![root], members: 0, text_bytes: 0 }
    }

    /// Adds a member; a fault leaves the builder unusable.
    pub(crate) fn add(&mut self, m: Member) -> Result<(), TarFault> {
        self.members += 1;
        if self.members > MEMBERS_MAX {
            return Err(TarFault::TooMany);
        }
        let path = components(&m.path)?;
        let Some((name, parents)) = path.split_last() else {
            return self.add_root(m);
        };
        if parents.iter().any(|p| p.starts_with(WHITEOUT)) {
            return Err(TarFault::WhiteoutName);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parents, hidden, m.kind);
        }
        let attrs = attrs(&m)?;
        self.charge(
            name.len() + attrs.xattrs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>(),
        )?;
        let parent = self.parents(parents)?;
        let body = match m.kind {
            Kind::Dir => return self.add_dir(parent, name, attrs),
            Kind::Hardlink => return self.add_hardlink(parent, name, &path, &m.link),
            Kind::File => {
                let end = m.data_offset.checked_add(m.size).ok_or(TarFault::TooLarge)?;
                if end >= crate::erofs::TAR_BYTES_MAX {
                    return Err(TarFault::TooLarge);
                }
                Body::File { offset: m.data_offset, size: m.size }
            }
            Kind::Symlink => {
                if m.link.is_empty() || m.link.len() > LINK_BYTES_MAX {
                    return Err(TarFault::LinkLength);
                }
                if m.link.contains(&0) {
                    return Err(TarFault::Nul);
                }
                self.charge(m.link.len())?;
                Body::Symlink(m.link)
            }
            Kind::Char if m.major == 0 && m.minor == 0 => return Err(TarFault::RawWhiteout),
            Kind::Char => Body::Char { major: device(m.major, 12)?, minor: device(m.minor, 20)? },
            Kind::Block => Body::Block { major: device(m.major, 12)?, minor: device(m.minor, 20)? },
            Kind::Fifo => Body::Fifo,
        };
        let id = self.push(Node { attrs, body, nlink: 0 })?;
        self.dir(parent)?.entries.insert(name.to_vec(), id);
        Ok(())
    }

    fn charge(&mut self, bytes: usize) -> Result<(), TarFault> {
        self.text_bytes += bytes;
        if self.text_bytes > TEXT_BYTES_MAX { Err(TarFault::TooMany) } else { Ok(()) }
    }

    fn push(&mut self, node: Node) -> Result<NodeId, TarFault> {
        if self.nodes.len() >= MEMBERS_MAX {
            return Err(TarFault::TooMany);
        }
        let id = self.nodes.len() as NodeId;
        self.nodes.push(node);
        Ok(id)
    }

    fn dir(&mut self, id: NodeId) -> Result<&mut Dir, TarFault> {
        match self.nodes.get_mut(id as usize).map(|n| &mut n.body) {
            Some(Body::Dir(d)) => Ok(d),
            _ => Err(TarFault::ThroughNonDir),
        }
    }

    fn is_dir(&self, id: NodeId) -> bool {
        matches!(self.nodes.get(id as usize), Some(Node { body: Body::Dir(_), .. }))
    }

    fn add_root(&mut self, m: Member) -> Result<(), TarFault> {
        if m.kind != Kind::Dir {
            return Err(TarFault::Root);
        }
        let attrs = attrs(&m)?;
        self.dir(ROOT)?.declared = true;
        if let Some(root) = self.nodes.get_mut(ROOT as usize) {
            root.attrs = attrs;
        }
        Ok(())
    }

    /// The directory at this path, its missing parts made.
    fn parents(&mut self, path: &[&[u8]]) -> Result<NodeId, TarFault> {
        let mut at = ROOT;
        for name in path {
            let next = self.dir(at)?.entries.get(*name).copied();
            at = match next {
                // A symlink is not followed either: extracting tools differ on it, and one that follows writes elsewhere.
                Some(id) if self.is_dir(id) => id,
                Some(_) => return Err(TarFault::ThroughNonDir),
                None => {
                    self.charge(name.len())?;
                    let body = Body::Dir(Dir::new(at, false));
                    let id = self.push(Node { attrs: Attrs::undeclared(), body, nlink: 0 })?;
                    self.dir(at)?.entries.insert(name.to_vec(), id);
                    id
                }
            };
        }
        Ok(at)
    }

    fn add_dir(&mut self, parent: NodeId, name: &[u8], attrs: Attrs) -> Result<(), TarFault> {
        let old = self.dir(parent)?.entries.get(name).copied();
        if let Some(id) = old.filter(|id| self.is_dir(*id)) {
            self.dir(id)?.declared = true;
            if let Some(node) = self.nodes.get_mut(id as usize) {
                node.attrs = attrs;
            }
            return Ok(());
        }
        let mut dir = Dir::new(parent, true);
        // The member it replaces had already replaced what lower layers have there.
        (dir.opaque, dir.cleared) = (old.is_some(), old.is_some());
        let id = self.push(Node { attrs, body: Body::Dir(dir), nlink: 0 })?;
        self.dir(parent)?.entries.insert(name.to_vec(), id);
        Ok(())
    }

    fn add_hardlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[&[u8]],
        link: &[u8],
    ) -> Result<(), TarFault> {
        let target = components(link)?;
        if target == path {
            return Err(TarFault::HardlinkSelf);
        }
        let mut id = ROOT;
        for part in &target {
            let dir = self.dir(id).map_err(|_| TarFault::HardlinkMissing)?;
            id = *dir.entries.get(*part).ok_or(TarFault::HardlinkMissing)?;
        }
        if self.is_dir(id) {
            return Err(TarFault::HardlinkDir);
        }
        self.dir(parent)?.entries.insert(name.to_vec(), id);
        Ok(())
    }

    fn whiteout(&mut self, parents: &[&[u8]], hidden: &[u8], kind: Kind) -> Result<(), TarFault> {
        if kind == Kind::Dir || matches!(hidden, b"" | b"." | b"..") {
            return Err(TarFault::WhiteoutName);
        }
        self.charge(hidden.len())?;
        let parent = self.parents(parents)?;
        let dir = self.dir(parent)?;
        if hidden == OPAQUE {
            dir.opaque = true;
        } else if !hidden.starts_with(WHITEOUT) {
            dir.whiteouts.insert(hidden.to_vec());
        }
        // What is left is AUFS' own bookkeeping (.wh..wh.plnk and friends); every tool drops it.
        Ok(())
    }

    /// Turns whiteouts into nodes and marks, counts links.
    pub(crate) fn finish(mut self) -> Result<Tree, TarFault> {
        let mut inherit = Vec::new();
        // (directory, its path, something above it hides lower layers)
        let mut work = vec![(ROOT, Vec::new(), false)];
        while let Some((id, path, hidden)) = work.pop() {
            let dir = self.dir(id)?;
            if !dir.declared && !dir.cleared && !hidden {
                inherit.push(path.clone());
            }
            let hidden = hidden || dir.opaque;
            let whiteouts = std::mem::take(&mut dir.whiteouts);
            self.apply_whiteouts(id, whiteouts, hidden)?;
            let dir = self.dir(id)?;
            let children: Vec<_> = dir.entries.iter().map(|(n, c)| (n.clone(), *c)).collect();
            let mut nlink = if id == ROOT { 2 } else { 0 };
            for (name, child) in children {
                let is_dir = self.is_dir(child);
                if let Some(node) = self.nodes.get_mut(child as usize) {
                    node.nlink += if is_dir { 2 } else { 1 };
                }
                if is_dir {
                    nlink += 1;
                    let sep: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    work.push((child, [&path, sep, &name[..]].concat(), hidden));
                }
            }
            if let Some(node) = self.nodes.get_mut(id as usize) {
                node.nlink += nlink;
            }
        }
        inherit.sort();
        self.mark();
        Ok(Tree { nodes: self.nodes, inherit })
    }

    fn apply_whiteouts(
        &mut self,
        id: NodeId,
        whiteouts: BTreeSet<Vec<u8>>,
        hidden: bool,
    ) -> Result<(), TarFault> {
        let mut made = false;
        for name in whiteouts {
            match self.dir(id)?.entries.get(&name).copied() {
                Some(child) if self.is_dir(child) => {
                    let child = self.dir(child)?;
                    (child.opaque, child.cleared) = (true, true);
                }
                Some(_) => {}
                // Below an opaque directory there is nothing to hide.
                None if hidden => {}
                None => {
                    let body = Body::Char { major: 0, minor: 0 };
                    let attrs = Attrs { mode: 0, ..Attrs::undeclared() };
                    let node = self.push(Node { attrs, body, nlink: 0 })?;
                    self.dir(id)?.entries.insert(name, node);
                    made = true;
                }
            }
        }
        if made && let Some(node) = self.nodes.get_mut(id as usize) {
            // Overlay looks for whiteouts while listing a directory that only one layer has only where this mark says
            // that there was something below.
            node.attrs.xattrs.push((b"trusted.overlay.origin".to_vec(), Vec::new()));
        }
        Ok(())
    }

    /// The opaque marks as extended attributes.
    fn mark(&mut self) {
        for node in &mut self.nodes {
            if matches!(&node.body, Body::Dir(d) if d.opaque) {
                node.attrs.xattrs.push((b"trusted.overlay.opaque".to_vec(), b"y".to_vec()));
            }
            node.attrs.xattrs.sort();
        }
    }
}

const WHITEOUT: &[u8] = b".wh.";
/// What is left of `.wh..wh..opq` without its prefix.
const OPAQUE: &[u8] = b".wh..opq";

/// A path's components without empty ones and `.`.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, TarFault> {
    if path.is_empty() {
        return Err(TarFault::EmptyName);
    }
    if path.contains(&0) {
        return Err(TarFault::Nul);
    }
    let mut out = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(TarFault::DotDot),
            p if p.len() > NAME_BYTES_MAX => return Err(TarFault::NameTooLong),
            p if out.len() < DEPTH_MAX => out.push(p),
            _ => return Err(TarFault::TooDeep),
        }
    }
    Ok(out)
}

/// A device number part of at most this many bits (Linux: 12 and 20).
fn device(n: u32, bits: u32) -> Result<u32, TarFault> {
    if n < 1 << bits { Ok(n) } else { Err(TarFault::Number) }
}

fn attrs(m: &Member) -> Result<Attrs, TarFault> {
    let mut xattrs = Vec::new();
    let mut bytes = 0;
    for (name, value) in &m.xattrs {
        // Overlay's own would let an image redirect a path anywhere; SELinux labels are the host's business.
        if name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        crate::erofs::xattr_name(name).ok_or(TarFault::XattrName)?;
        if name.starts_with(b"system.") && !is_acl(value) {
            return Err(TarFault::XattrName);
        }
        if value.len() > XATTR_VALUE_BYTES_MAX {
            return Err(TarFault::XattrSize);
        }
        bytes += name.len() + value.len() + 8;
        xattrs.push((name.clone(), value.clone()));
    }
    if bytes > XATTR_INODE_BYTES_MAX {
        return Err(TarFault::XattrSize);
    }
    let mode = if m.kind == Kind::Symlink { 0o777 } else { m.mode };
    let (mtime_s, mtime_ns) = (m.mtime_s, m.mtime_ns);
    Ok(Attrs { mode, uid: m.uid, gid: m.gid, mtime_s, mtime_ns, xattrs })
}

/// The kernel's form of a POSIX ACL (linux/posix_acl_xattr.h): version 2, then entries of 8 bytes.
fn is_acl(value: &[u8]) -> bool {
    value.starts_with(&2u32.to_le_bytes()) && value.len() % 8 == 4
}

#[cfg(test)]
mod tests;
