//! What a process may do and where it is: ids, capabilities, filters, limits, namespaces.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::{Result, check};

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

/// Makes the memory and `/proc` files of this process and of the children it clones belong to the host's root.
pub(crate) fn set_undumpable() -> Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into()).map(drop)
}
