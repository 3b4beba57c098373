//! Device filters of cgroups: `bpf(2)`.

use std::ffi::{c_int, c_long};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use super::{Result, check};

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
