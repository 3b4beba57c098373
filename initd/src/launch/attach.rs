//! What a container sees: its root and everything that is mounted below it, made detached.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use super::mounts::{self, AsPodRoot, NODEV, NOSUID, RDONLY};
use super::plan::{Context, cstring};
use super::{Failure, Step};
use crate::cgroup::devices;
use crate::pod::{ContainerSpec, Root, RootIdmap};
use crate::shim::Condition;
use crate::sys;
use crate::userns::IdMap;

/// `/dev/shm` of each container.
const SHM_BYTES: u64 = 64 << 20;

/// A detached mount and where it goes.
pub(super) struct Attach {
    pub(super) tree: OwnedFd,
    pub(super) target: CString,
    pub(super) step: Step,
    /// Links in the target are followed, inside the root: images have `/var/run -> /run`. Never for ours.
    pub(super) follow: bool,
}

/// The root, mapped into the user namespace where that is asked for and possible; the user namespace to run in.
#[allow(clippy::type_complexity)]
pub(super) fn open_root<'a>(
    context: &Context<'a>,
    spec: &ContainerSpec,
    conditions: &mut Vec<Condition>,
) -> Result<(OwnedFd, Option<(BorrowedFd<'a>, IdMap)>), Failure> {
    let mut userns = context.userns;
    let (path, idmap) = match &spec.root {
        Root::Mounted { path, idmap } => (path, *idmap),
        Root::Fresh { size_bytes } => {
            let outside = userns.map_or(0, |(_, map)| map.outside);
            let root = mounts::tmpfs(outside, *size_bytes, 0o755)
                .map_err(|e| Failure::new(Step::Rootfs, e, "a fresh tmpfs"))?;
            return Ok((root, userns));
        }
    };
    let fail = |e, what| Failure::new(Step::Rootfs, e, format!("{what} {}", path.display()));
    let root = mounts::tree(path, false).map_err(|e| fail(e, "open_tree"))?;
    if let (Some((fd, _)), RootIdmap::Here) = (userns, idmap)
        && let Err(e) = sys::mount_setattr(root.as_fd(), false, 0, Some(fd))
    {
        conditions
            .push(Condition::NoIdmap { container: spec.name.clone(), errno: e.raw_os_error() });
        userns = None;
    }
    // A device node in an image is no device.
    sys::mount_setattr(root.as_fd(), false, NODEV | NOSUID, None)
        .map_err(|e| fail(e, "mount_setattr"))?;
    Ok((root, userns))
}

/// Whose the files are that a launch makes.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    /// The pod's root, as the host numbers it.
    pub(super) outside: u32,
    pub(super) userns: Option<BorrowedFd<'a>>,
}

/// Everything that is mounted below the root but `/proc` and the cgroup file system, which only the child can make.
pub(super) fn attachments(
    context: &Context<'_>,
    spec: &ContainerSpec,
    root: &OwnedFd,
    owner: Owner<'_>,
    conditions: &mut Vec<Condition>,
) -> Result<Vec<Attach>, Failure> {
    let outside = owner.outside;
    let nodes = device_nodes(context, spec)?;
    let _ids = AsPodRoot::new(outside);
    let mut list: Vec<Attach> = Vec::new();
    let ours = |made: rustix::io::Result<OwnedFd>, target: &str, step| {
        let tree =
            made.map_err(|e| Failure::new(step, e, format!("making the mount of /{target}")))?;
        Ok(Attach { tree, target: cstring(OsStr::new(target))?, step, follow: false })
    };
    for target in ["proc", "sys", "dev"] {
        mounts::ensure(root.as_fd(), target, true)
            .map_err(|e| Failure::new(Step::Rootfs, e, format!("making /{target} in the root")))?;
    }
    list.push(ours(mounts::sysfs(), "sys", Step::Sys)?);
    list.push(ours(mounts::dev(outside, &nodes), "dev", Step::Dev)?);
    list.push(ours(mounts::pts(outside), "dev/pts", Step::Dev)?);
    list.push(ours(mounts::tmpfs(outside, SHM_BYTES, 0o1777), "dev/shm", Step::Dev)?);
    list.push(ours(mounts::mqueue(), "dev/mqueue", Step::Dev)?);

    // What lies above is mounted first, so that a file can be bound into a fresh tmpfs.
    let mut wanted: Vec<(&str, Wanted<'_>)> = Vec::new();
    wanted.extend(spec.tmpfs.iter().map(|t| (t.target.as_str(), Wanted::Tmpfs(t))));
    wanted.extend(spec.volumes.iter().map(|v| (v.target.as_str(), Wanted::Volume(v))));
    wanted.extend(spec.binds.iter().map(|b| (b.target.as_str(), Wanted::Bind(b))));
    wanted.sort_by_key(|(target, _)| target.split('/').filter(|c| !c.is_empty()).count());
    for (target, what) in wanted {
        let (tree, directory) = what.make(context, owner, &spec.name, conditions)?;
        let target = target.trim_matches('/');
        let (base, rest) = enclosing(root, &list, target);
        mounts::ensure(base, rest, directory).map_err(|e| {
            Failure::new(Step::Mount, e, format!("making the mount point /{target}"))
        })?;
        let target = cstring(OsStr::new(target))?;
        list.push(Attach { tree, target, step: Step::Mount, follow: true });
    }
    Ok(list)
}

/// The nodes of the spec's devices.
fn device_nodes(context: &Context<'_>, spec: &ContainerSpec) -> Result<Vec<mounts::Node>, Failure> {
    let node = |d: &crate::pod::Device| {
        let fail = |e, why: &str| {
            Failure::new(Step::Dev, e, format!("device {}: {why}", d.source.display()))
        };
        let rule = devices::rule_of(d).map_err(|e| {
            let errno = Errno::from_raw_os_error(e.errno().unwrap_or(libc::ENODEV));
            fail(errno, &std::io::Error::from(errno).to_string())
        })?;
        if d.read_only && !context.device_filter {
            return Err(fail(
                Errno::OPNOTSUPP,
                "for reading only, which this machine cannot enforce",
            ));
        }
        let block = rule.kind == devices::Kind::Block;
        Ok(mounts::Node {
            name: d.name.clone(),
            block,
            number: rustix::fs::makedev(rule.major, rule.minor.unwrap_or(0)),
        })
    };
    spec.devices.iter().map(node).collect()
}

/// The deepest mount so far that `target` lies in, and the rest of the path.
fn enclosing<'t>(
    root: &'t OwnedFd,
    list: &'t [Attach],
    target: &'t str,
) -> (BorrowedFd<'t>, &'t str) {
    let inside = |a: &'t Attach| {
        let rest = target.strip_prefix(a.target.to_str().ok()?)?.strip_prefix('/')?;
        Some((a.tree.as_fd(), rest))
    };
    list.iter()
        .filter_map(inside)
        .min_by_key(|(_, rest)| rest.len())
        .unwrap_or((root.as_fd(), target))
}

enum Wanted<'a> {
    Tmpfs(&'a crate::pod::Tmpfs),
    Volume(&'a crate::pod::VolumeMount),
    Bind(&'a crate::pod::Bind),
}

impl Wanted<'_> {
    /// The mount, and whether it is a directory.
    fn make(
        &self,
        context: &Context<'_>,
        owner: Owner<'_>,
        container: &str,
        conditions: &mut Vec<Condition>,
    ) -> Result<(OwnedFd, bool), Failure> {
        match self {
            Self::Tmpfs(t) => mounts::tmpfs(owner.outside, t.size_bytes, t.mode)
                .map(|tree| (tree, true))
                .map_err(|e| Failure::new(Step::Mount, e, format!("tmpfs for {}", t.target))),
            Self::Volume(v) => {
                let fail = |e| Failure::new(Step::Mount, e, format!("volume {}", v.volume));
                let volumes = context.volumes.ok_or_else(|| fail(Errno::NOENT))?;
                let tree = volumes.tree(&v.volume).map_err(fail)?;
                if v.read_only {
                    sys::mount_setattr(tree.as_fd(), false, RDONLY, None).map_err(fail)?;
                }
                Ok((tree, true))
            }
            Self::Bind(b) => {
                let fail = |e| {
                    let text = format!("bind of {} to {}", b.source.display(), b.target);
                    Failure::new(Step::Mount, e, text)
                };
                let tree = mounts::tree(&b.source, true).map_err(fail)?;
                if let Some(fd) = owner.userns.filter(|_| b.idmap)
                    && let Err(e) = sys::mount_setattr(tree.as_fd(), true, 0, Some(fd))
                {
                    conditions.push(Condition::BindNotMapped {
                        container: container.to_owned(),
                        target: b.target.clone(),
                        errno: e.raw_os_error(),
                    });
                }
                let read_only = if b.read_only { RDONLY } else { 0 };
                sys::mount_setattr(tree.as_fd(), true, NODEV | NOSUID | read_only, None)
                    .map_err(fail)?;
                let stat = rustix::fs::fstat(&tree).map_err(fail)?;
                let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
                Ok((tree, kind == rustix::fs::FileType::Directory))
            }
        }
    }
}
