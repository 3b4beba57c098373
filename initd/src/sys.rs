//! System calls that rustix lacks or wraps in ways that do not fit a cloned child. The crate's only unsafe code.
//!
//! Functions marked *child* are for a process between `clone3` and `execve`: they do not allocate.
#![allow(unsafe_code)]

mod device_filter;
mod fd;
mod process;
mod program;
mod rights;
mod signal;
mod title;

use std::ffi::c_long;

use rustix::io::Errno;

pub(crate) use device_filter::{attach_device_filter, device_filters, load_device_filter};
pub(crate) use fd::{
    close_range, close_raw, control_terminal, dup_to, inherited_fd, mount_setattr, terminal,
    write_raw,
};
pub(crate) use process::{Sleeper, Strings, clone, execve, exit, fork, spawn};
pub(crate) use program::let_program_go;
pub(crate) use rights::{
    drop_bounding, mount_namespace, permitted_caps, seccomp, set_caps, set_fs_ids, set_gid,
    set_groups, set_rlimit, set_uid, set_undumpable, setns, unshare,
};
pub(crate) use signal::{
    block_signals, die_with_parent, kill, peek_ended, pid_of, pidfd_signal, reap, reap_any,
    reap_pidfd, set_signal, signal_pipe, terminate_fd, wait_signal,
};
pub(crate) use title::Title;

type Result<T> = rustix::io::Result<T>;

fn errno() -> Errno {
    // SAFETY: the location is the calling thread's own and always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

fn check(r: c_long) -> Result<c_long> {
    if r == -1 { Err(errno()) } else { Ok(r) }
}
