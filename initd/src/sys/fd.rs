//! Descriptors by number, terminals and the flags of mounts.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use super::{Result, check};

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

/// `mount_setattr` on the mount of a descriptor, which also takes it out of its peer group: a clone of a shared mount would
/// show on the host what is mounted in it. *child*
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    // SAFETY: all zeroes is a valid mount_attr.
    let mut attr: libc::mount_attr = unsafe { std::mem::zeroed() };
    attr.attr_set = set;
    attr.propagation = libc::MS_PRIVATE;
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
