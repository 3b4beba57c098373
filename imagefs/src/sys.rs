//! System calls that rustix lacks: mount_setattr(2), the ioctls of loop devices (loop(4)), projects and quotactl_fd(2).

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::io::Errno;

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// struct mount_attr of linux/mount.h.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Makes a detached mount show its owners through the map of a user namespace.
pub(crate) fn idmap(tree: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> Result<(), Errno> {
    let attr = MountAttr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns.as_raw_fd() as u64,
    };
    // SAFETY: both fds are open for the call; the path is a NUL-terminated empty string; `attr` is a mount_attr of the
    // size given, and the kernel only reads it.
    let r = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if r == 0 { Ok(()) } else { Err(last_errno()) }
}

const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// struct loop_info64 of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// struct loop_config of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// Tries for a free loop device before giving up; somebody else may take it between the two calls.
const LOOP_TRIES_MAX: usize = 32;

/// Attaches a file read-only to a free loop device. The device is freed by the kernel when the returned file and every
/// mount of it are gone.
pub(crate) fn attach_loop(file: &File) -> Result<(File, PathBuf), Errno> {
    let open = |path: &str| {
        File::options()
            .read(true)
            .open(path)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    };
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for _ in 0..LOOP_TRIES_MAX {
        // SAFETY: the ioctl takes no argument and returns a device number.
        let n = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if n < 0 {
            return Err(last_errno());
        }
        let path = format!("/dev/loop{n}");
        let device = open(&path)?;
        let config = LoopConfig {
            fd: file.as_raw_fd() as u32,
            block_size: 512,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                sizelimit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` is a loop_config that outlives the call; the fd in it is open; the kernel only reads it.
        let r = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if r == 0 {
            return Ok((device, PathBuf::from(path)));
        }
        match last_errno() {
            Errno::BUSY => {}
            e => return Err(e),
        }
    }
    Err(Errno::BUSY)
}

/// struct fsxattr of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

fn fs_xattr(dir: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    let mut attr = FsXattr::default();
    // SAFETY: the fd is open and `attr` is a struct fsxattr that the kernel fills.
    let r = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attr) };
    if r == 0 { Ok(attr) } else { Err(last_errno()) }
}

/// The project of a file or directory.
pub(crate) fn project(dir: BorrowedFd<'_>) -> Result<u32, Errno> {
    Ok(fs_xattr(dir)?.projid)
}

/// Makes a directory, and what is made in it from now on, count for a project.
pub(crate) fn set_project(dir: BorrowedFd<'_>, project: u32) -> Result<(), Errno> {
    let mut attr = fs_xattr(dir)?;
    attr.projid = project;
    attr.xflags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the fd is open and `attr` is a struct fsxattr that the kernel only reads.
    let r = unsafe { libc::ioctl(dir.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attr) };
    if r == 0 { Ok(()) } else { Err(last_errno()) }
}

/// struct if_dqblk of linux/quota.h.
#[repr(C)]
#[derive(Default)]
struct DqBlk {
    bhardlimit: u64,
    bsoftlimit: u64,
    curspace: u64,
    ihardlimit: u64,
    isoftlimit: u64,
    curinodes: u64,
    btime: u64,
    itime: u64,
    valid: u32,
}

/// Limits count in blocks of so many bytes (`QIF_DQBLKSIZE`), on every file system.
const QUOTA_BLOCK_BYTES: u64 = 1024;
/// `QCMD(Q_SETQUOTA, PRJQUOTA)`.
const SET_PROJECT_QUOTA: u32 = 0x80_0008 << 8 | 2;
/// `QIF_LIMITS`: only the limits are meant.
const LIMITS: u32 = 1 | 4;

/// Bounds a project of the file system that `on` is on (quotactl_fd(2), Linux 5.14).
pub(crate) fn set_quota(
    on: BorrowedFd<'_>,
    project: u32,
    bytes: u64,
    files: u64,
) -> Result<(), Errno> {
    let limits = DqBlk {
        bhardlimit: bytes / QUOTA_BLOCK_BYTES,
        ihardlimit: files,
        valid: LIMITS,
        ..DqBlk::default()
    };
    // SAFETY: the fd is open; `limits` is a struct if_dqblk that the kernel only reads.
    let r = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            on.as_raw_fd(),
            SET_PROJECT_QUOTA,
            project,
            &raw const limits,
        )
    };
    if r == 0 { Ok(()) } else { Err(last_errno()) }
}
