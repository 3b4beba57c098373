//! The child, from `clone3` to `execve`. Nothing here allocates, and nothing returns.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsmount, fsopen, move_mount, open_tree,
};

use super::attach::Attach;
use super::mounts::RESOLVE;
use super::plan::{Plan, Space};
use super::{REPORT_BYTES, Step, mini_init};
use crate::sys;

/// Ends of pipes that the child keeps.
pub(super) struct Pipes<'a> {
    pub(super) errors: BorrowedFd<'a>,
    pub(super) report: Option<BorrowedFd<'a>>,
}

/// Step, index of what it was about, errno.
type Stop = (Step, usize, Errno);

/// Highest capability number that is tried; the kernel refuses those it does not know.
const CAP_MAX: u32 = 63;
/// Numbers of the two pipes once everything else is closed.
const ERRORS: RawFd = 3;
const REPORT: RawFd = 4;

/// Files that would show or change the machine, and directories (an empty one is put over them).
const MASKED_FILES: [&CStr; 8] = [
    c"proc/kcore",
    c"proc/keys",
    c"proc/latency_stats",
    c"proc/timer_list",
    c"proc/timer_stats",
    c"proc/sched_debug",
    c"proc/interrupts",
    c"proc/kpagecount",
];
const MASKED_DIRS: [&CStr; 6] = [
    c"proc/acpi",
    c"proc/asound",
    c"proc/scsi",
    c"sys/firmware",
    c"sys/devices/virtual/powercap",
    c"sys/kernel/debug",
];
const READ_ONLY: [&CStr; 5] =
    [c"proc/bus", c"proc/fs", c"proc/irq", c"proc/sys", c"proc/sysrq-trigger"];

/// Becomes the program, or says why not.
pub(super) fn run(plan: &Plan<'_>, pipes: &Pipes<'_>) -> Infallible {
    let stop = match prepare(plan, pipes) {
        Ok(()) => {
            if plan.init {
                with_mini_init(plan)
            } else {
                execute(plan)
            }
        }
        Err((stop, before_close)) => {
            let fd = if before_close { pipes.errors.as_raw_fd() } else { ERRORS };
            report(fd, stop)
        }
    };
    report(ERRORS, stop)
}

fn report(fd: RawFd, (step, index, errno): Stop) -> ! {
    let e = errno.raw_os_error().to_le_bytes();
    let bytes: [u8; REPORT_BYTES] = [step as u8, index.min(255) as u8, e[0], e[1], e[2], e[3]];
    sys::write_raw(fd, &bytes);
    sys::exit(127)
}

/// All steps but the last. The flag of an error: descriptors still have their first numbers.
fn prepare(plan: &Plan<'_>, pipes: &Pipes<'_>) -> Result<(), (Stop, bool)> {
    let early = |stop| (stop, true);
    // What the shim ignores would stay ignored.
    for signal in
        [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGUSR1]
    {
        sys::set_signal(signal, false);
    }
    let _ = rustix::process::setsid();
    if let Some(score) = &plan.oom_score_adj {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        // Through the host's own procfs, which no image or volume can have redirected (CVE-2025-52881). Lowering needs a
        // capability that a node may lack; it is a wish, not isolation.
        let file = c"self/oom_score_adj";
        if let Ok(fd) = rustix::fs::openat(&plan.proc, file, flags, Mode::empty()) {
            let _ = rustix::io::write(&fd, score.to_bytes());
        }
    }
    match &plan.space {
        Space::New { root, attach, cgroup, .. } => {
            enter_new(root, attach, *cgroup).map_err(early)?;
        }
        Space::Join { pidfd, .. } => enter_running(*pidfd).map_err(early)?,
    }
    become_user(plan).map_err(early)?;
    stdio(plan, pipes).map_err(early)?;
    last_rights(plan).map_err(|stop| (stop, false))
}

fn at<T>(step: Step, index: usize, r: rustix::io::Result<T>) -> Result<T, Stop> {
    r.map_err(|e| (step, index, e))
}

/// Puts `root` on top of the empty one that this process's own mount namespace has so far.
fn enter_new(root: &OwnedFd, attach: &[Attach], cgroup: bool) -> Result<(), Stop> {
    if cgroup {
        // Not by clone3: with CLONE_INTO_CGROUP that would take the shim's cgroup as the root.
        at(Step::Cgroup, 0, sys::unshare(libc::CLONE_NEWCGROUP))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    at(Step::Mountns, 0, move_mount(root, c"", CWD, c"/", flags))?;

    let hidden = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = at(Step::Proc, 0, mounted(c"proc", hidden))?;
    at(Step::Proc, 1, put(root, &proc, c"proc", false))?;
    for (i, a) in attach.iter().enumerate() {
        at(a.step, i, put(root, &a.tree, &a.target, a.follow))?;
        if i == 0 && cgroup {
            // /sys is the first; the kernel made an empty fs/cgroup there for this.
            let view = hidden | MountAttrFlags::MOUNT_ATTR_RDONLY;
            let tree = at(Step::Sys, 0, mounted(c"cgroup2", view))?;
            at(Step::Sys, 0, put(root, &tree, c"sys/fs/cgroup", false))?;
        }
    }
    mask(root)?;

    // It is on top of the namespace's root, so this leaves nothing above it to climb to; below there is an empty directory.
    at(Step::Pivot, 0, rustix::process::fchdir(root))?;
    at(Step::Pivot, 1, rustix::process::chroot(c"."))?;
    at(Step::Pivot, 2, rustix::process::chdir(c"/"))
}

/// A new file system without options.
fn mounted(kind: &CStr, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A path below the root, which may be that of a mount.
fn find(root: &OwnedFd, path: &CStr, follow: bool) -> rustix::io::Result<OwnedFd> {
    let resolve = if follow { RESOLVE } else { RESOLVE | ResolveFlags::NO_SYMLINKS };
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn put(root: &OwnedFd, tree: &OwnedFd, target: &CStr, follow: bool) -> rustix::io::Result<()> {
    let target = find(root, target, follow)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, c"", &target, c"", flags)
}

fn copy(of: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(of, c"", flags)
}

/// Hides and write-protects what `/proc` and `/sys` say about the machine. What a kernel does not have is fine.
fn mask(root: &OwnedFd) -> Result<(), Stop> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    for (i, path) in READ_ONLY.iter().enumerate() {
        let Ok(target) = find(root, path, false) else { continue };
        let tree = at(Step::Mask, i, copy(&target))?;
        at(Step::Mask, i, sys::mount_setattr(tree.as_fd(), false, libc::MOUNT_ATTR_RDONLY, None))?;
        at(Step::Mask, i, move_mount(&tree, c"", &target, c"", flags))?;
    }
    let null = at(Step::Mask, 0, find(root, c"dev/null", false))?;
    for (i, path) in MASKED_FILES.iter().enumerate() {
        let Ok(target) = find(root, path, false) else { continue };
        let tree = at(Step::Mask, i, copy(&null))?;
        at(Step::Mask, i, move_mount(&tree, c"", &target, c"", flags))?;
    }
    let mut empty: Option<OwnedFd> = None;
    for (i, path) in MASKED_DIRS.iter().enumerate() {
        let Ok(target) = find(root, path, false) else { continue };
        // The first is a tmpfs, the others copies of it: one file system for all.
        let tree = match &empty {
            None => {
                let view = MountAttrFlags::MOUNT_ATTR_RDONLY
                    | MountAttrFlags::MOUNT_ATTR_NOSUID
                    | MountAttrFlags::MOUNT_ATTR_NODEV
                    | MountAttrFlags::MOUNT_ATTR_NOEXEC;
                at(Step::Mask, i, mounted(c"tmpfs", view))?
            }
            Some(first) => at(Step::Mask, i, copy(first))?,
        };
        at(Step::Mask, i, move_mount(&tree, c"", &target, c"", flags))?;
        if empty.is_none() {
            empty = Some(tree);
        }
    }
    Ok(())
}

/// Namespaces of a running container, but the PID namespace (the shim's clone did that) and the user namespace
/// (comes last). Network, IPC and UTS are the shim's own.
fn enter_running(pidfd: BorrowedFd<'_>) -> Result<(), Stop> {
    at(Step::Setns, 0, sys::setns(pidfd, libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP))?;
    at(Step::Setns, 1, rustix::process::chdir(c"/"))
}

/// From host root to the spec's user, with all capabilities still at hand for the few things that need them.
fn become_user(plan: &Plan<'_>) -> Result<(), Stop> {
    for (i, (resource, soft, hard)) in plan.rlimits.iter().enumerate() {
        at(Step::Rlimit, i, sys::set_rlimit(*resource, *soft, *hard))?;
    }
    if let Some(fd) = plan.userns {
        at(Step::Userns, 0, sys::setns(fd, libc::CLONE_NEWUSER))?;
    }
    for cap in 0..=CAP_MAX {
        if plan.caps >> cap & 1 == 0 {
            match sys::drop_bounding(cap) {
                Ok(()) => {}
                // The first number that the kernel does not know.
                Err(Errno::INVAL) => break,
                Err(e) => return Err((Step::Bounding, cap as usize, e)),
            }
        }
    }
    at(Step::Ids, 0, sys::set_groups(&plan.groups))?;
    // The pod's root first: a new working directory belongs to it.
    at(Step::Ids, 1, sys::set_gid(0))?;
    at(Step::Ids, 2, sys::set_uid(0))?;
    let workdir = enter_workdir(&plan.workdir)?;
    at(Step::Ids, 3, sys::set_gid(plan.gid))?;
    at(Step::Ids, 4, sys::set_uid(plan.uid))?;
    at(Step::Workdir, plan.workdir.len(), rustix::process::fchdir(&workdir))
}

/// Makes and opens the working directory. A link out of the root, or one of `/proc`, leads nowhere (CVE-2024-21626).
fn enter_workdir(prefixes: &[std::ffi::CString]) -> Result<OwnedFd, Stop> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = at(Step::Workdir, 0, rustix::fs::open(c"/", flags, Mode::empty()))?;
    let open = |p: &CStr| rustix::fs::openat2(&root, p, flags, Mode::empty(), RESOLVE);
    if let Some(last) = prefixes.last()
        && let Ok(dir) = open(last)
    {
        return Ok(dir);
    }
    for (i, prefix) in prefixes.iter().enumerate() {
        if let Err(Errno::NOENT) = open(prefix) {
            at(
                Step::Workdir,
                i,
                rustix::fs::mkdirat(CWD, prefix.as_c_str(), Mode::from_raw_mode(0o755)),
            )?;
        }
    }
    let last = prefixes.last().map_or(c"/", |p| p.as_c_str());
    at(Step::Workdir, prefixes.len(), open(last))
}

fn stdio(plan: &Plan<'_>, pipes: &Pipes<'_>) -> Result<(), Stop> {
    for (i, fd) in plan.stdio.iter().enumerate() {
        match fd {
            Some(fd) => at(Step::Stdio, i, sys::dup_to(fd.as_raw_fd(), i as RawFd, false))?,
            None => {
                // For reading and writing: should it be a FIFO by now, this does not wait.
                let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
                let null =
                    at(Step::Stdio, i, rustix::fs::open(c"/dev/null", flags, Mode::empty()))?;
                at(Step::Stdio, i, sys::dup_to(null.as_raw_fd(), i as RawFd, false))?;
            }
        }
    }
    if plan.terminal && !plan.init {
        at(Step::Stdio, 0, sys::control_terminal(0))?;
    }
    // Both pipes are above every number that is overwritten here.
    if let Some(report) = pipes.report {
        at(Step::Stdio, 3, sys::dup_to(report.as_raw_fd(), REPORT, true))?;
    } else {
        // Keeps the numbers apart from what is closed next.
        at(Step::Stdio, 3, sys::dup_to(pipes.errors.as_raw_fd(), REPORT, true))?;
    }
    at(Step::Stdio, 4, sys::dup_to(pipes.errors.as_raw_fd(), ERRORS, true))?;
    at(Step::Stdio, 5, sys::close_range(REPORT as u32 + 1, false))
}

fn last_rights(plan: &Plan<'_>) -> Result<(), Stop> {
    // A program that is not root gets none: the kernel would take them at execve anyway.
    let permitted = at(Step::Caps, 0, sys::permitted_caps())?;
    let caps = if plan.uid == 0 { plan.caps & permitted } else { 0 };
    at(Step::Caps, 1, sys::set_caps(caps, caps))?;
    at(Step::Caps, 2, sys::die_with_parent())?;
    at(Step::NoNewPrivs, 0, rustix::thread::set_no_new_privs(true))?;
    if plan.init {
        sys::block_signals(true);
    } else {
        sys::block_signals(false);
    }
    match plan.seccomp {
        Some(insns) => at(Step::Seccomp, 0, sys::seccomp(insns)),
        None => Ok(()),
    }
}

/// Tries the program at each place; the most telling errno wins.
fn execute(plan: &Plan<'_>) -> Stop {
    let mut worst = (Step::Exec, 0, Errno::NOENT);
    for (i, program) in plan.programs.iter().enumerate() {
        let errno = sys::execve(program, &plan.argv, &plan.envp);
        if !matches!(errno, Errno::NOENT | Errno::NOTDIR) {
            worst = (Step::Exec, i, errno);
            if errno != Errno::ACCESS {
                break;
            }
        }
    }
    worst
}

fn with_mini_init(plan: &Plan<'_>) -> Stop {
    match sys::fork() {
        Ok(0) => {
            let _ = rustix::process::setsid();
            if plan.terminal
                && let Err(e) = sys::control_terminal(0)
            {
                return (Step::Stdio, 0, e);
            }
            sys::block_signals(false);
            execute(plan)
        }
        Ok(program) => {
            // Only the program's end of the pipe may stay open, or end of file would never come.
            sys::close_raw(ERRORS);
            for fd in 0..3 {
                sys::close_raw(fd);
            }
            mini_init::run(program, REPORT)
        }
        Err(e) => (Step::Clone, 0, e),
    }
}
