//! Making processes: clones, spawned programs, and a process that only sleeps.

use std::convert::Infallible;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Result, block_signals, check, dup_to, errno, kill, reap_pidfd, signal::signal_set};

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
    // A sister (CLONE_PARENT) ends with the signal that this process ends with.
    if flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
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

/// A process that does nothing in a new user namespace, sharing our memory so that it costs nothing to make. It sleeps
/// in a read from a pipe until it is killed.
pub(crate) struct Sleeper {
    /// Its PID here.
    pub(crate) pid: u32,
    stack: *mut c_void,
}

const SLEEPER_STACK_BYTES: usize = 16 << 10;

/// `word` is the descriptor to read from and, in its upper half, the PID of whoever made it.
extern "C" fn sleeper(word: *mut c_void) -> c_int {
    let mut byte = 0u8;
    let (hold, parent) = (word as usize as u32 as RawFd, (word as usize >> 32) as i32);
    // SAFETY: numbers, then a read into this stack. It does not return while who made it lives (this process holds the write
    // end too, and all signals but SIGKILL are blocked), so errno, which it shares with that thread, is not written.
    unsafe {
        // It has a copy of every descriptor, listening sockets too: killed in the middle, its maker must not leave it behind.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() == parent {
            libc::read(hold, (&raw mut byte).cast(), 1);
        }
    }
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
        let word = hold.as_raw_fd() as usize | (std::process::id() as usize) << 32;
        let all = signal_set(true);
        let mut before = signal_set(false);
        // SAFETY: signals are blocked while the child is made, so that no handler of ours ever runs in it; the stack
        // is its own and outlives it (see `reap`); it makes system calls that succeed, and ends.
        let pid = unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            let pid = libc::clone(
                sleeper,
                stack.byte_add(SLEEPER_STACK_BYTES),
                libc::CLONE_VM | libc::CLONE_NEWUSER | libc::SIGCHLD,
                word as *mut c_void,
            );
            // Which returns its error and leaves errno alone.
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
            if pid == -1 {
                let failed = errno();
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
