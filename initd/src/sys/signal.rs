//! Signals, and the ends of children.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use super::{Result, check};

/// The PID that a pidfd refers to, in this PID namespace; `None`: it has been reaped.
pub(crate) fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?;
    info.lines().find_map(|l| l.strip_prefix("Pid:")?.trim().parse().ok())
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

/// SIGKILL when the parent (thread) ends. Cleared by every change of ids. *child*
pub(crate) fn die_with_parent() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }.into()).map(drop)
}

/// Sets a signal to its default, or to ignored. *child*
pub(crate) fn set_signal(signal: c_int, ignore: bool) {
    let disposition = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition runs code of ours.
    unsafe { libc::signal(signal, disposition) };
}

/// A full or an empty signal set.
pub(super) fn signal_set(full: bool) -> libc::sigset_t {
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
