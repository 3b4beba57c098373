//! System calls that rustix lacks or wraps in ways that do not fit a cloned child. The crate's only unsafe code.
//!
//! Functions marked *child* are for a process between `clone3` and `execve`: they do not allocate.
#![allow(unsafe_code)]

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

type Result<T> = rustix::io::Result<T>;

fn errno() -> Errno {
    // SAFETY: the location is the calling thread's own and always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn check(r: c_long) -> Result<c_long> {
    if r == -1 { Err(errno()) } else { Ok(r) }
}

/// The libc crate's constant of this name is cut to 32 bits, which leaves nothing of it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3` without CLONE_VM: the child has a copy of the memory, so it may read everything that the parent prepared.
/// It runs `child` and nothing else. Returns the child's PID here and its pidfd.
///
/// Shims have one thread; in a process with several the child could find a lock held for ever, which is why nothing
/// that runs there allocates.
pub(crate) fn clone(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> Result<(u32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: `args` and `pidfd` outlive the call; without CLONE_VM the child runs on its own copy of this stack, and
    // it never leaves this function.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) })?;
    if pid == 0 {
        // The child ends in there.
        child();
    }
    // SAFETY: the kernel has put a new descriptor there, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((pid as u32, pidfd))
}

/// What a spawned process gets, and what it says when it cannot be executed. Lives on the spawner's stack, which waits.
struct Spawned<'a> {
    path: &'a CStr,
    argv: &'a Strings,
    envp: &'a Strings,
    stdin: RawFd,
    stdout: RawFd,
    errno: c_int,
}

const SPAWN_STACK_BYTES: usize = 64 << 10;

/// The child of [`spawn`]. Its memory is the spawner's, which is suspended until this executes or ends.
extern "C" fn spawned(arg: *mut Spawned<'_>) -> ! {
    // SAFETY: the spawner keeps it alive and does not run.
    let what = unsafe { &mut *arg };
    let ready = dup_to(what.stdin, 0, false).and_then(|()| dup_to(what.stdout, 1, false));
    // Handlers have been cleared by the clone, so nothing of ours runs when the mask goes.
    block_signals(false);
    let failed = match ready {
        Ok(()) => execve(what.path, what.argv, what.envp),
        Err(e) => e,
    };
    what.errno = failed.raw_os_error();
    exit(127)
}

/// Executes a program as a child in a cgroup without copying this process, however large it is and however many
/// threads it has. Standard error is shared; every descriptor but 0, 1 and 2 must be close-on-exec.
pub(crate) fn spawn(
    path: &CStr,
    argv: &Strings,
    envp: &Strings,
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd> {
    let mut stack = vec![0u8; SPAWN_STACK_BYTES];
    let top = (stack.as_mut_ptr() as usize + SPAWN_STACK_BYTES) & !15;
    let bottom = (stack.as_mut_ptr() as usize + 15) & !15;
    let mut pidfd: RawFd = -1;
    // SAFETY: all zeroes is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags =
        (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = bottom as u64;
    args.stack_size = (top - bottom) as u64;
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    let mut what = Spawned {
        path,
        argv,
        envp,
        stdin: stdin.as_raw_fd(),
        stdout: stdout.as_raw_fd(),
        errno: 0,
    };
    let all = signal_set(true);
    let mut before = signal_set(false);
    // SAFETY: both sets are valid. No signal is handled on the child's stack or in its memory.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) };
    // SAFETY: the child runs `spawned` on its own stack and never comes back here; this thread is suspended meanwhile,
    // so everything it is given stays as it is. `args` is right for clone3.
    let r = unsafe { clone3_call(&raw mut args, spawned, &raw mut what) };
    // SAFETY: puts the mask back.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    drop(stack);
    if r < 0 {
        return Err(Errno::from_raw_os_error(-(r as i32)));
    }
    // SAFETY: the kernel has put a new descriptor there, which nobody else knows.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if what.errno != 0 {
        while let Err(Errno::INTR) = reap_pidfd(pidfd.as_fd(), true) {}
        return Err(Errno::from_raw_os_error(what.errno));
    }
    Ok(pidfd)
}

/// Handlers of the child are set to default. The libc crate's constant is cut like CLONE_INTO_CGROUP's.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `clone3`, and in the child a call of `f(arg)` on the stack that `args` names. A wrapper that returned in the child
/// would return into the parent's frames. Gives the PID or a negative errno.
///
/// # Safety
/// `args` has a stack; `f` must not return and everything it uses outlives it.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_call(
    args: *mut libc::clone_args,
    f: extern "C" fn(*mut Spawned<'_>) -> !,
    arg: *mut Spawned<'_>,
) -> isize {
    let r: isize;
    // SAFETY: see above; the registers that a system call changes are declared.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => r,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") arg,
            in("r13") f,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    r
}

/// As for the other architecture.
///
/// # Safety
/// As there.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_call(
    args: *mut libc::clone_args,
    f: extern "C" fn(*mut Spawned<'_>) -> !,
    arg: *mut Spawned<'_>,
) -> isize {
    let r: isize;
    // SAFETY: see above.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") args => r,
            in("x1") size_of::<libc::clone_args>(),
            in("x20") arg,
            in("x21") f,
        );
    }
    r
}

/// A new terminal of a devpts mount, by descriptors only: its two ends. The program gets the second.
pub(crate) fn terminal(pts: BorrowedFd<'_>) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let ours = rustix::fs::openat(pts, c"ptmx", flags, Mode::empty())?;
    let unlocked: c_int = 0;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes a number and gives a new descriptor that nobody else knows.
    let theirs = unsafe {
        let fd = check(libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags).into())?;
        OwnedFd::from_raw_fd(fd as RawFd)
    };
    Ok((ours, theirs))
}

/// Makes a terminal the controlling one of this session. *child*
pub(crate) fn control_terminal(fd: RawFd) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::ioctl(fd, libc::TIOCSCTTY, 0) }.into()).map(drop)
}

/// The mount namespace of a pidfd's process; since Linux 6.11.
pub(crate) fn mount_namespace(pidfd: BorrowedFd<'_>) -> Option<OwnedFd> {
    /// `_IO(PIDFS_IOCTL_MAGIC, 3)`.
    const PIDFD_GET_MNT_NAMESPACE: libc::Ioctl = 0xff03;
    // SAFETY: takes no argument and gives a new descriptor that nobody else knows.
    unsafe {
        let fd = libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_MNT_NAMESPACE, 0);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// Reaps the child of a pidfd: its raw status, or `None` while it runs.
pub(crate) fn reap_pidfd(pidfd: BorrowedFd<'_>, wait: bool) -> Result<Option<c_int>> {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | if wait { 0 } else { libc::WNOHANG };
    let id = pidfd.as_raw_fd() as libc::id_t;
    // SAFETY: the kernel writes one siginfo_t.
    check(unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) }.into())?;
    // SAFETY: waitid fills the fields of a child, or leaves them zero.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some(status))
}

/// Plain `fork` by raw system call, for the mini-init, whose process has one thread. Zero in the child. *child*
pub(crate) fn fork() -> Result<u32> {
    // SAFETY: no pointers are passed; both processes go on with the same code and their own memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    check(pid).map(|p| p as u32)
}

/// `_exit`. *child*
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything else.
    unsafe { libc::_exit(code) }
}

/// A null-terminated array of pointers to strings that it owns, as `execve` wants.
pub(crate) struct Strings {
    _owned: Vec<std::ffi::CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    /// Strings with a NUL byte inside are left out: callers have checked.
    pub(crate) fn new(items: impl IntoIterator<Item = String>) -> Self {
        let owned: Vec<_> =
            items.into_iter().filter_map(|s| std::ffi::CString::new(s).ok()).collect();
        let mut pointers: Vec<_> = owned.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { _owned: owned, pointers }
    }
}

/// Returns only when it failed. *child*
pub(crate) fn execve(path: &CStr, argv: &Strings, envp: &Strings) -> Errno {
    // SAFETY: both arrays are null-terminated and own what they point to.
    unsafe { libc::execve(path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    errno()
}

/// `mount_setattr` on the mount of a descriptor. *child*
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    // SAFETY: all zeroes is a valid mount_attr.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = set;
    if let Some(fd) = userns {
        attr.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attr.userns_fd = fd.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant, `attr` outlives the call and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of_val(&attr),
        )
    })
    .map(drop)
}

/// Marks every descriptor from `first` on close-on-exec, or closes it. *child*
pub(crate) fn close_range(first: u32, cloexec: bool) -> Result<()> {
    let flags = if cloexec { libc::CLOSE_RANGE_CLOEXEC as c_long } else { 0 };
    // SAFETY: callers are about to exec or to go on with known descriptors only.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) }).map(drop)
}

/// `dup3` to a fixed number. *child*
pub(crate) fn dup_to(from: RawFd, to: RawFd, cloexec: bool) -> Result<()> {
    if from == to {
        // dup3 refuses this; all that may have to change is the flag.
        let flags = if cloexec { libc::FD_CLOEXEC } else { 0 };
        // SAFETY: sets a flag on a descriptor.
        return check(unsafe { libc::fcntl(from, libc::F_SETFD, flags) }.into()).map(drop);
    }
    // SAFETY: the child owns its whole table and nothing uses `to`.
    check(unsafe { libc::dup3(from, to, if cloexec { libc::O_CLOEXEC } else { 0 }) }.into())
        .map(drop)
}

/// Loads a system call filter. NO_NEW_PRIVS must be set. *child*
pub(crate) fn seccomp(insns: &[crate::seccomp::Insn]) -> Result<()> {
    let prog = libc::sock_fprog {
        len: insns.len() as u16,
        filter: insns.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    // SAFETY: `Insn` has the layout of sock_filter and the kernel copies the program.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const prog)
    })
    .map(drop)
}

/// Removes a capability from the bounding set. *child*
pub(crate) fn drop_bounding(cap: u32) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0) }.into()).map(drop)
}

/// Effective and permitted to this; inheritable to none. *child*
pub(crate) fn set_caps(effective: u64, permitted: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let data: [u32; 6] = [
        effective as u32,
        permitted as u32,
        0,
        (effective >> 32) as u32,
        (permitted >> 32) as u32,
        0,
    ];
    // SAFETY: version 3 takes two triples of words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// The permitted set of the calling process. *child*
pub(crate) fn permitted_caps() -> Result<u64> {
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut data = [0u32; 6];
    // SAFETY: version 3 gives two triples of words.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), data.as_mut_ptr()) })?;
    Ok(u64::from(data[1]) | u64::from(data[4]) << 32)
}

/// Real, effective and saved group id of this thread. *child*
pub(crate) fn set_gid(id: u32) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, id, id, id) }).map(drop)
}

/// Real, effective and saved user id of this thread. *child*
pub(crate) fn set_uid(id: u32) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, id, id, id) }).map(drop)
}

/// Supplementary groups of this thread. *child*
pub(crate) fn set_groups(ids: &[u32]) -> Result<()> {
    // SAFETY: the kernel reads `len` words.
    check(unsafe { libc::syscall(libc::SYS_setgroups, ids.len(), ids.as_ptr()) }).map(drop)
}

/// File system ids of this thread; files made from now on belong to them. *child*
pub(crate) fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: takes numbers only; never fails for a caller with CAP_SETUID and CAP_SETGID.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

/// Enters namespaces of a pidfd or of one namespace file. *child*
pub(crate) fn setns(fd: BorrowedFd<'_>, flags: c_int) -> Result<()> {
    // SAFETY: callers are single-threaded; no memory is involved.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) }.into()).map(drop)
}

/// Leaves namespaces. *child*
pub(crate) fn unshare(flags: c_int) -> Result<()> {
    // SAFETY: callers are single-threaded and do not unshare the descriptor table.
    check(unsafe { libc::unshare(flags) }.into()).map(drop)
}

/// A process limit. *child*
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the kernel reads one rlimit64.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            &raw const limit,
            std::ptr::null_mut::<c_void>(),
        )
    })
    .map(drop)
}

/// SIGKILL when the parent (thread) ends. Cleared by every change of ids. *child*
pub(crate) fn die_with_parent() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into()).map(drop)
}

/// Makes the memory and `/proc` files of this process and of the children it clones belong to the host's root.
pub(crate) fn set_undumpable() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).map(drop)
}

/// Sets a signal to its default, or to ignored. *child*
pub(crate) fn set_signal(signal: c_int, ignore: bool) {
    let disposition = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition runs code of ours.
    unsafe { libc::signal(signal, disposition) };
}

/// A full or an empty signal set.
fn signal_set(full: bool) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data and the calls initialise it.
    unsafe {
        let mut set = std::mem::zeroed();
        if full {
            libc::sigfillset(&raw mut set);
        } else {
            libc::sigemptyset(&raw mut set);
        }
        set
    }
}

/// Blocks all signals, or none. *child*
pub(crate) fn block_signals(all: bool) {
    let set = signal_set(all);
    // SAFETY: both pointers are valid or null; this cannot fail with a valid `how`.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()) };
}

/// Blocks SIGTERM and gives a descriptor that is readable when it came.
pub(crate) fn terminate_fd() -> Result<OwnedFd> {
    let mut set = signal_set(false);
    // SAFETY: the set is initialised; signalfd gives a new descriptor that nobody else knows.
    unsafe {
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        let fd = check(libc::signalfd(-1, &raw const set, flags).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Write end of the pipe that [`signal_pipe`] made.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note_signal(signal: c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; errno is put back for whoever was interrupted. A full pipe loses what it
    // holds many times already.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// A pipe that gets a byte for each of these signals. Handlers instead of a blocked mask, because those end at
/// `execve` while a mask would be inherited by every child. Once per process: the write end stays open.
pub(crate) fn signal_pipe(signals: &[c_int]) -> Result<OwnedFd> {
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::fd::IntoRawFd as _;
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    SIGNAL_PIPE.store(write.into_raw_fd(), Ordering::Relaxed);
    for signal in signals {
        // SAFETY: all zeroes is a valid sigaction; the handler does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = note_signal as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            check(libc::sigaction(*signal, &raw const action, std::ptr::null_mut()).into())?;
        }
    }
    // Whoever started this process may have blocked them for itself, and a mask is inherited.
    // SAFETY: an empty set is made, then filled with the numbers given; the old mask is not asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
    Ok(read)
}

/// Waits for any blocked signal. *child*
pub(crate) fn wait_signal() -> Option<i32> {
    let set = signal_set(true);
    // SAFETY: both pointers are valid or null.
    let signal = unsafe { libc::sigwaitinfo(&raw const set, std::ptr::null_mut()) };
    (signal > 0).then_some(signal)
}

/// Sends a signal by PID. *child*
pub(crate) fn kill(pid: i32, signal: c_int) -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Reaps one child if there is one that ended: PID and raw status. *child*
pub(crate) fn reap_any() -> Result<Option<(u32, i32)>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) }.into())?;
    Ok((pid > 0).then_some((pid as u32, status)))
}

/// The PID of a child that has ended, without reaping it. `Ok(None)`: none has; ECHILD: there are no children.
pub(crate) fn peek_ended() -> Result<Option<u32>> {
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the kernel writes one siginfo_t.
    check(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) }.into())?;
    // SAFETY: waitid fills the fields of a child, or leaves them zero.
    let pid = unsafe { info.si_pid() };
    Ok((pid > 0).then_some(pid as u32))
}

/// Reaps one child that has ended: its raw status.
pub(crate) fn reap(pid: u32) -> Result<Option<i32>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    let got = check(unsafe { libc::waitpid(pid as i32, &raw mut status, libc::WNOHANG) }.into())?;
    Ok((got > 0).then_some(status))
}

/// Sends a signal to the process of a pidfd.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<()> {
    // SAFETY: a null siginfo means what kill(2) sends.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
    .map(drop)
}

/// A process that does nothing in a new user namespace, sharing our memory so that it costs nothing to make. It sleeps
/// in a read from a pipe until it is killed.
pub(crate) struct Sleeper {
    /// Its PID here.
    pub(crate) pid: u32,
    stack: *mut c_void,
}

const SLEEPER_STACK_BYTES: usize = 16 << 10;

extern "C" fn sleeper(hold: *mut c_void) -> c_int {
    let mut byte = 0u8;
    // SAFETY: reads into this stack. It never returns (this process holds the write end too, and all signals but
    // SIGKILL are blocked), so errno, which it shares with the thread that made it, is not written.
    unsafe { libc::read(hold as usize as RawFd, (&raw mut byte).cast(), 1) };
    0
}

impl Sleeper {
    /// Starts one that reads from `hold`, the read end of a pipe that nobody writes to.
    pub(crate) fn start(hold: BorrowedFd<'_>) -> Result<Self> {
        // SAFETY: a fresh private mapping.
        let stack = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLEEPER_STACK_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK,
                -1,
                0,
            )
        };
        if stack == libc::MAP_FAILED {
            return Err(errno());
        }
        let all = signal_set(true);
        let mut before = signal_set(false);
        // SAFETY: signals are blocked while the child is made, so that no handler of ours ever runs in it; the stack
        // is its own and outlives it (see `reap`); it calls nothing but `read` and `_exit`.
        let pid = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let pid = libc::clone(
                sleeper,
                stack.byte_add(SLEEPER_STACK_BYTES),
                libc::CLONE_VM | libc::CLONE_NEWUSER | libc::SIGCHLD,
                hold.as_raw_fd() as usize as *mut c_void,
            );
            let failed = errno();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            if pid == -1 {
                libc::munmap(stack, SLEEPER_STACK_BYTES);
                return Err(failed);
            }
            pid
        };
        Ok(Self { pid: pid as u32, stack })
    }

    /// Kills it and waits for its end.
    pub(crate) fn reap(self) {
        let _ = kill(self.pid as i32, libc::SIGKILL);
        loop {
            // SAFETY: the PID is our child's until it has been reaped here.
            let r = unsafe { libc::waitpid(self.pid as i32, std::ptr::null_mut(), libc::__WALL) };
            if r != -1 || errno() != Errno::INTR {
                break;
            }
        }
        // SAFETY: its only user has ended.
        unsafe { libc::munmap(self.stack, SLEEPER_STACK_BYTES) };
    }
}

/// One write of a few bytes; what cannot be written is lost. *child*
pub(crate) fn write_raw(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the pointer and the length belong together.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
}

/// Closes a descriptor by number. *child*
pub(crate) fn close_raw(fd: RawFd) {
    // SAFETY: the child owns its whole table and does not use this one again.
    unsafe { libc::close(fd) };
}

/// Takes over a descriptor that this process was started with, by its number. `EBADF`: there is none.
///
/// For a number that whoever started this process has named for this purpose, once.
pub(crate) fn inherited_fd(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointer, whatever the number.
    check(c_long::from(unsafe { libc::fcntl(fd, libc::F_GETFD) }))?;
    // SAFETY: it is open, and by the contract above nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `bpf(2)` commands and kinds (include/uapi/linux/bpf.h).
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_PROG_QUERY: c_int = 16;
const BPF_F_ALLOW_OVERRIDE: u32 = 1;

fn bpf<T>(command: c_int, attr: &T) -> Result<c_long> {
    // SAFETY: the kernel reads `size` bytes of a structure that is laid out as `union bpf_attr` is for this command.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) })
}

/// Loads a device filter.
pub(crate) fn load_device_filter(insns: &[crate::cgroup::devices::Insn]) -> Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
    }
    let attr = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"quelea_devices\0\0",
    };
    let fd = bpf(BPF_PROG_LOAD, &attr)?;
    // SAFETY: the kernel has given a new descriptor, close-on-exec, that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a device filter to a cgroup, in place of one that was there; it holds for those below that have none of their
/// own.
pub(crate) fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<()> {
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    let attr = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_OVERRIDE,
    };
    bpf(BPF_PROG_ATTACH, &attr).map(drop)
}

/// How many device filters are attached to a cgroup itself.
pub(crate) fn device_filters(cgroup: BorrowedFd<'_>) -> Result<u32> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
    }
    let mut attr = Query {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: 0,
        prog_cnt: 0,
    };
    // SAFETY: the kernel reads and writes the fields of this structure, which outlives the call.
    check(unsafe {
        let size = std::mem::offset_of!(Query, prog_cnt) + size_of::<u32>();
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size)
    })?;
    Ok(attr.prog_cnt)
}

/// Lets go of this process's own pages of read-only file mappings: its program. What runs again is mapped again, from
/// the page cache. Returns how many bytes of address space that was.
///
/// A mapping with private pages (`Anonymous` in smaps, such as relocations that were made read-only) is left alone.
pub(crate) fn let_program_go() -> usize {
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return 0 };
    let mut all = 0;
    for (start, end) in clean_mappings(&smaps) {
        // SAFETY: the mapping is of a file and has never been written, so its bytes come back as they were; a program's
        // file cannot be written while it runs (ETXTBSY), and this one is in memory only.
        if unsafe { libc::madvise(start as *mut c_void, end - start, libc::MADV_DONTNEED) } == 0 {
            all += end - start;
        }
    }
    all
}

/// Address ranges of read-only mappings of files without a private page, from `/proc/self/smaps` (proc(5)).
fn clean_mappings(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).ok();
            // perms offset dev inode path
            let inode = words.nth(2).unwrap_or("0");
            let is_file = inode != "0" && second.starts_with('r') && !second.contains('w');
            current = number(start).zip(number(end)).filter(|_| is_file);
        } else if first == "Anonymous:" && second == "0" {
            found.extend(current.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_let_go_and_goes_on() {
        let rss = || {
            let status = std::fs::read_to_string("/proc/self/status").expect("status");
            let line = status.lines().find(|l| l.starts_with("RssFile")).expect("RssFile");
            line.split_ascii_whitespace()
                .nth(1)
                .and_then(|kib| kib.parse::<u64>().ok())
                .expect("KiB")
        };
        let before = rss();
        assert!(let_program_go() > 0);
        let after = rss();
        assert!(after < before, "{before} -> {after} KiB");
        // Everything is still there.
        assert_eq!(clean_mappings(""), []);
    }

    #[test]
    fn what_has_been_written_is_left_alone() {
        let smaps = "\
00400000-00500000 r-xp 00000000 00:02 17 /usr/bin/quelead
Rss:                 512 kB
Anonymous:             0 kB
00500000-00510000 r--p 00100000 00:02 17 /usr/bin/quelead
Anonymous:             4 kB
00510000-00520000 rw-p 00110000 00:02 17 /usr/bin/quelead
Anonymous:             0 kB
00520000-00530000 r--p 00000000 00:00 0
Anonymous:             0 kB
00530000-00531000 r--p 00000000 00:02 18 /usr/lib/x y
Anonymous:             0 kB
";
        assert_eq!(clean_mappings(smaps), [(0x0040_0000, 0x0050_0000), (0x0053_0000, 0x0053_1000)]);
    }
}
