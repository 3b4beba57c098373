//! Early: the root, the kernel's file systems, cgroup v2, limits and kernel settings.

use super::console::say;
use crate::{Error, Result, cgroup};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};
use std::{ffi::CStr, path::Path};

/// Where the cgroup v2 tree is mounted.
pub(super) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
    /// Without it the machine runs on and says nothing: hardware or kernel may not have it.
    optional: bool,
}

const NOSUID: MountFlags = MountFlags::NOSUID;
const SAFE: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC)
    .union(MountFlags::RELATIME);

const fn must(kind: &'static str, target: &'static str, flags: MountFlags) -> Mount {
    Mount { kind, target, flags, data: None, optional: false }
}

const fn may(kind: &'static str, target: &'static str) -> Mount {
    Mount { kind, target, flags: SAFE, data: None, optional: true }
}

const fn with(mount: Mount, data: &'static CStr) -> Mount {
    Mount {
        kind: mount.kind,
        target: mount.target,
        flags: mount.flags,
        data: Some(data),
        optional: mount.optional,
    }
}

/// In mount order. Sizes are shares of the machine's memory: a full log or image store must not take it all.
const MOUNTS: &[Mount] = &[
    must("proc", "/proc", SAFE),
    must("sysfs", "/sys", SAFE),
    must("devtmpfs", "/dev", NOSUID),
    with(
        must("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC)),
        c"ptmxmode=0666,mode=0620,gid=5",
    ),
    with(must("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV)), c"mode=1777"),
    with(must("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV)), c"mode=0755,size=25%"),
    with(must("tmpfs", "/tmp", MountFlags::NOSUID.union(MountFlags::NODEV)), c"mode=1777,size=10%"),
    may("securityfs", "/sys/kernel/security"),
    may("pstore", "/sys/fs/pstore"),
    may("efivarfs", "/sys/firmware/efi/efivars"),
    may("bpf", "/sys/fs/bpf"),
];

/// What outlives a reboot lives here; on a machine without a state disk it is memory.
pub(super) const STATE_DIR: &str = "/var/lib/quelea";

/// Settings every node needs; a kernel without one is fine.
const SYSCTLS: &[(&str, &str)] = &[
    // A pod for every process of a big image must not exhaust numbers.
    ("kernel/pid_max", "4194304"),
    // An oops in a driver leaves a half-dead node: the mesh copes better with a dead one.
    ("kernel/panic_on_oops", "1"),
    ("fs/inotify/max_user_instances", "1024"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    // Pod traffic passes through the node; its own address still comes from router advertisements.
    ("net/ipv6/conf/default/accept_ra", "2"),
    ("net/ipv6/conf/all/accept_ra", "2"),
];

/// Puts a copy of the root mount over itself. The kernel's first mount has no parent, and `pivot_root(2)` of a
/// container refuses to leave such a root; a bind mount of it moved over it has one, and costs no memory.
pub(super) fn leave_rootfs() -> Result<()> {
    let at = |op: &'static str, what: &'static str| move |e: Errno| Error::sys(op, what, e);
    // `root` is in every image and empty.
    rustix::fs::mkdir("/root", Mode::from_raw_mode(0o700))
        .or_else(there_already)
        .map_err(at("mkdir", "/root"))?;
    rustix::mount::mount_bind_recursive("/", "/root").map_err(at("mount --bind", "/root"))?;
    rustix::process::chdir("/root").map_err(at("chdir", "/root"))?;
    rustix::mount::mount_move(".", "/").map_err(at("mount --move", "/"))?;
    rustix::process::chroot(".").map_err(at("chroot", "."))?;
    rustix::process::chdir("/").map_err(at("chdir", "/"))
}

/// Mounts the table. Returns what must be there and is not, a sentence each.
pub(super) fn mount_all() -> Vec<String> {
    let mut faults = Vec::new();
    for mount in MOUNTS {
        // Mount points in sysfs are the kernel's to make; where they are missing so is the file system.
        let _ = std::fs::create_dir_all(mount.target);
        match rustix::mount::mount(mount.kind, mount.target, mount.kind, mount.flags, mount.data) {
            Ok(()) => {}
            // Already there: a test's init or a debugger's.
            Err(Errno::BUSY) => {}
            Err(_) if mount.optional => {}
            Err(e) => faults.push(format!("mount {} on {}: {e}", mount.kind, mount.target)),
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = rustix::fs::symlink(target, link);
    }
    faults
}

/// Memory for what should outlive a reboot, where there is no disk for it.
pub(super) fn mount_state_in_memory() -> Result<()> {
    std::fs::create_dir_all(STATE_DIR).map_err(|e| Error::io("mkdir", STATE_DIR, &e))?;
    let flags = MountFlags::NOSUID.union(MountFlags::NODEV);
    rustix::mount::mount("tmpfs", STATE_DIR, "tmpfs", flags, c"mode=0700,size=50%")
        .map_err(|e| Error::sys("mount tmpfs", STATE_DIR, e))
}

/// Puts what is mounted there in the place of state.
pub(super) fn move_to_state(from: &str) -> Result<()> {
    std::fs::create_dir_all(STATE_DIR).map_err(|e| Error::io("mkdir", STATE_DIR, &e))?;
    rustix::mount::mount_move(from, STATE_DIR).map_err(|e| Error::sys("mount --move", from, e))
}

/// Opens the console where the kernel could not do it (an image without `/dev/console`), after `/dev` is there.
pub(super) fn open_console() {
    if rustix::io::fcntl_getfd(rustix::stdio::stderr()).is_ok() {
        return;
    }
    for path in ["/dev/console", "/dev/null"] {
        let Ok(fd) = rustix::fs::open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()) else {
            continue;
        };
        let _ = rustix::stdio::dup2_stdin(&fd);
        let _ = rustix::stdio::dup2_stdout(&fd);
        let _ = rustix::stdio::dup2_stderr(&fd);
        return;
    }
}

/// Mounts cgroup v2, moves PID 1 into `/init` and hands every controller that pods need down the tree.
/// Returns those that this kernel lacks.
///
/// # Errors
/// [`Error::Sys`] when there is no cgroup v2 at all.
pub(super) fn cgroups() -> Result<Vec<&'static str>> {
    let _ = std::fs::create_dir_all(CGROUP_ROOT);
    let try_with = |data: Option<&'static CStr>| {
        rustix::mount::mount("cgroup2", CGROUP_ROOT, "cgroup2", SAFE, data)
    };
    try_with(Some(c"nsdelegate,memory_recursiveprot"))
        .or_else(|_| try_with(Some(c"nsdelegate")))
        .or_else(|e| if e == Errno::BUSY { Ok(()) } else { Err(e) })
        .map_err(|e| Error::sys("mount cgroup2", CGROUP_ROOT, e))?;
    let init = Path::new(CGROUP_ROOT).join("init");
    let procs = init.join("cgroup.procs");
    std::fs::create_dir_all(&init).map_err(|e| Error::io("mkdir", init.display(), &e))?;
    std::fs::write(&procs, "0").map_err(|e| Error::io("write", procs.display(), &e))?;
    let control = Path::new(CGROUP_ROOT).join("cgroup.subtree_control");
    // One by one: the kernel takes all of a line or nothing.
    let lacking = |name: &&str| std::fs::write(&control, format!("+{name}")).is_err();
    let _ = lacking(&"cpuset");
    Ok(cgroup::WANTED.into_iter().filter(lacking).collect())
}

/// Kernel settings and the limits that every child inherits.
pub(super) fn limits() {
    for (name, value) in SYSCTLS {
        let _ = std::fs::write(Path::new("/proc/sys").join(name), value);
    }
    use rustix::process::{Resource, Rlimit, setrlimit};
    let files = Rlimit { current: Some(1_048_576), maximum: Some(1_048_576) };
    if let Err(e) = setrlimit(Resource::Nofile, files) {
        say!("setrlimit NOFILE: {e}");
    }
    // Ctrl-Alt-Del becomes a SIGINT to PID 1: an orderly reboot instead of a power cut.
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
}

/// Unmounts everything but the kernel's own, last mounted first; what is busy is detached.
pub(super) fn unmount_all() {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    // Field five is the mount point, with octal escapes; those belong to pods and go with their namespaces.
    let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for point in points.iter().rev() {
        let keep = *point == "/"
            || ["/proc", "/sys", "/dev"].iter().any(|top| {
                point.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
        if keep || point.contains('\\') {
            continue;
        }
        if rustix::mount::unmount(*point, UnmountFlags::NOFOLLOW).is_err() {
            let _ = rustix::mount::mount_remount(*point, MountFlags::RDONLY, c"");
            let _ = rustix::mount::unmount(*point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn there_already(e: Errno) -> Result<(), Errno> {
    if e == Errno::EXIST { Ok(()) } else { Err(e) }
}
