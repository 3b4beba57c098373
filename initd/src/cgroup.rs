//! Control groups, version 2, by plain file writes.
//!
//! ```text
//!  <root>/<node>/pods/<pod>/<container>[/exec-N]      limits on <pod> and <container>
//!         │      shims/<pod>                          the shim, outside its pod's limits
//! ```
//!
//! A container's processes are in its own directory, which is the root of its cgroup namespace, so that a runtime
//! which sizes itself by `/sys/fs/cgroup/memory.max` sees its limit.

pub mod devices;
mod limits;
mod usage;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use limits::limit;
pub(crate) use usage::oom_kills;
pub use usage::{Pressure, PressureTimes, Usage, pressure, usage};

use crate::error::{Error, Result};
use crate::pod::is_name;

/// The controllers that limits of a pod need.
pub const WANTED: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Those that only some pods ask for.
const SOMETIMES: [&str; 2] = ["cpuset", "hugetlb"];

/// How long [`NodeCgroup::remove_pod`] waits for killed processes to be gone.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Deepest directory below a pod: pod, container, exec.
const DEPTH_MAX: usize = 8;

/// Where cgroup v2 is on this machine, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// The mount point.
    pub root: PathBuf,
    /// Controllers that may be used below it, as the kernel names them.
    pub controllers: Vec<String>,
}

impl Cgroups {
    /// Looks for it in `/proc/self/mountinfo`. `None`: not mounted, or not writable.
    #[must_use]
    pub fn probe() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        // A mount may be hidden below another one.
        let writable = |root: &PathBuf| {
            rustix::fs::access(root.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
        };
        let root = mounts.lines().filter_map(mount_point).find(writable)?;
        let list = std::fs::read_to_string(root.join("cgroup.controllers")).ok()?;
        Some(Self { root, controllers: list.split_whitespace().map(str::to_owned).collect() })
    }

    /// Those of [`WANTED`] that are missing: for the node's conditions.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.into_iter().filter(|w| !self.controllers.iter().any(|c| c == w)).collect()
    }

    /// Makes `<root>/<name>` with `pods` and `shims` below it, hands the controllers down to the children of `pods`, and lets
    /// those use only the devices of [`devices::ALWAYS`].
    ///
    /// # Errors
    /// [`Error::Spec`] for a name that is none, [`Error::Sys`] with the path.
    pub fn node(&self, name: &str) -> Result<NodeCgroup> {
        if !is_name(name) {
            return Err(Error::Spec { field: "cgroup".into(), why: "not a name" });
        }
        let path = self.root.join(name);
        for dir in [&path, &path.join("pods"), &path.join("shims")] {
            make(dir)?;
        }
        for dir in [&self.root, &path, &path.join("pods")] {
            hand_down(dir);
        }
        // Where the kernel takes none, each shim finds out for itself and says so.
        let _ = devices::restrict(&path.join("pods"), &devices::ALWAYS);
        Ok(NodeCgroup { path })
    }
}

/// The mount point of a mountinfo line, when it is one of cgroup2.
fn mount_point(line: &str) -> Option<PathBuf> {
    let (mount, file_system) = line.split_once(" - ")?;
    if file_system.split(' ').next() != Some("cgroup2") {
        return None;
    }
    // Blanks in paths are written as \040; nobody mounts cgroups at such a place.
    mount.split(' ').nth(4).filter(|p| !p.contains('\\')).map(PathBuf::from)
}

fn make(dir: &Path) -> Result<()> {
    match rustix::fs::mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(Error::sys("mkdir", dir.display(), e)),
    }
}

/// Lets children of `dir` have every wanted controller that it has; what fails is noticed when a limit is set.
fn hand_down(dir: &Path) {
    let Ok(there) = std::fs::read_to_string(dir.join("cgroup.controllers")) else { return };
    let has = |w: &&&str| there.split_whitespace().any(|c| c == **w);
    let mut wanted: Vec<String> = WANTED.iter().filter(has).map(|w| format!("+{w}")).collect();
    if !wanted.is_empty() {
        // Where version 1 has the rest of them, taking these away from it helps nobody and disturbs who runs there.
        wanted.extend(SOMETIMES.iter().filter(has).map(|w| format!("+{w}")));
    }
    let file = dir.join("cgroup.subtree_control");
    if !wanted.is_empty() && write(&file, &wanted.join(" ")).is_err() {
        // All or nothing: one that cannot be given must not keep the others back.
        for controller in wanted {
            let _ = write(&file, &controller);
        }
    }
}

fn write(file: &Path, text: &str) -> rustix::io::Result<()> {
    let fd = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&fd, text.as_bytes()).map(drop)
}

/// A pod's or a container's directory, made by its shim. `deeper`: its children have limits too.
pub(crate) fn create(dir: &Path, deeper: bool) -> Result<()> {
    make(dir)?;
    if deeper {
        hand_down(dir);
    }
    Ok(())
}

/// Kills everything in and below a cgroup, at once.
///
/// # Errors
/// [`Error::Sys`]: `ENOENT` when it is not there.
pub fn kill(dir: &Path) -> Result<()> {
    write(&dir.join("cgroup.kill"), "1").map_err(|e| Error::sys("kill cgroup", dir.display(), e))
}

/// Removes a cgroup and what is below it; nothing may live in there any more (EBUSY).
pub(crate) fn remove_tree(dir: &Path) -> rustix::io::Result<()> {
    remove_below(dir, 0)
}

fn remove_below(dir: &Path, depth: usize) -> rustix::io::Result<()> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY) if depth < DEPTH_MAX => {}
        Err(e) => return Err(e),
    }
    let entries =
        std::fs::read_dir(dir).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_below(&entry.path(), depth + 1)?;
        }
    }
    match rustix::fs::rmdir(dir) {
        Err(Errno::NOENT) => Ok(()),
        r => r,
    }
}

/// Kills and removes, waiting (at most 2 s) for the killed to be gone.
pub(crate) fn clear(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + KILL_WAIT;
    loop {
        match kill(dir) {
            Err(e) if e.errno() == Some(libc::ENOENT) && !dir.exists() => return Ok(()),
            _ => {}
        }
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(Error::sys("rmdir", dir.display(), e)),
        }
    }
}

/// The part of the tree that one node uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCgroup {
    path: PathBuf,
}

impl NodeCgroup {
    /// Of a pod: for [`PodSpec::cgroup`](crate::pod::PodSpec).
    #[must_use]
    pub fn pod(&self, id: &str) -> PathBuf {
        self.path.join("pods").join(id)
    }

    /// Of its shim: for [`PodSpec::shim_cgroup`](crate::pod::PodSpec).
    #[must_use]
    pub fn shim(&self, id: &str) -> PathBuf {
        self.path.join("shims").join(id)
    }

    /// Ids of the pods that have a cgroup, or whose shim has: what a new agent reconciles its pod directories against.
    ///
    /// # Errors
    /// [`Error::Sys`].
    pub fn pods(&self) -> Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for dir in [self.path.join("pods"), self.path.join("shims")] {
            let entries =
                std::fs::read_dir(&dir).map_err(|e| Error::io("read", dir.display(), &e))?;
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            ids.extend(dirs.filter_map(|e| e.file_name().into_string().ok()));
        }
        Ok(ids)
    }

    /// Kills everything in a pod whose shim is gone (the shim too, should it live) and removes both cgroups.
    ///
    /// # Errors
    /// [`Error::Spec`] for an id that is none, [`Error::Sys`] when something is still there after two seconds.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        if !is_name(id) {
            return Err(Error::Spec { field: "id".into(), why: "not a name" });
        }
        clear(&self.shim(id))?;
        clear(&self.pod(id))
    }

    /// Removes the node's whole tree, killing what is in it.
    ///
    /// # Errors
    /// As [`remove_pod`](Self::remove_pod).
    pub fn remove(self) -> Result<()> {
        clear(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_in_hybrid_and_unified_layouts() {
        let hybrid =
            "37 35 0:31 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw";
        assert_eq!(mount_point(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let v1 = "36 35 0:30 / /sys/fs/cgroup/cpu rw,relatime shared:8 - cgroup cgroup rw,cpu";
        assert_eq!(mount_point(v1), None);
        assert_eq!(mount_point(""), None);
    }
}
