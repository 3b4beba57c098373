//! The least that a container can cost: one process that makes the same isolation as a launch of ours by the plainest code
//! that does it, runs a program in it, waits and takes it down. `floor ROOT USERNS CGROUP`, as root.
#![allow(missing_docs, unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags as Attr, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, open_tree, unmount,
};

const CAPS: u64 = 0x4fb;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, root, userns, cgroup] = args.as_slice() else { panic!("floor ROOT USERNS CGROUP") };
    let open = |p: &str| {
        rustix::fs::open(p, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("open")
    };
    let userns = open(userns);
    let cgroup = (cgroup != "-").then(|| {
        for dir in ["", "/main"] {
            std::fs::create_dir(format!("{cgroup}{dir}")).expect("cgroup");
        }
        (cgroup, open(&format!("{cgroup}/main")))
    });
    let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let root_tree = open_tree(CWD, root.as_str(), tree).expect("open_tree");
    set(root_tree.as_fd(), libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID, Some(userns.as_fd()));
    // In the cgroup nobody may make nodes.
    let dev = mounted(c"tmpfs", &[("mode", "755"), ("size", "64k")], Attr::MOUNT_ATTR_NOSUID);
    for (name, minor) in [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)] {
        let number = rustix::fs::makedev(1, minor);
        let mode = Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, number).expect("mknod");
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).expect("mkdir");
    }
    let mut flags = libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_PIDFD;
    if cgroup.is_none() {
        flags |= libc::CLONE_NEWCGROUP;
    }
    let mut pidfd = -1;
    // SAFETY: all zeroes is valid; both live as long as the call, and the child has a copy of everything.
    let pid = unsafe {
        let mut a: libc::clone_args = std::mem::zeroed();
        a.flags = flags as u64;
        a.pidfd = &raw mut pidfd as u64;
        a.exit_signal = libc::SIGCHLD as u64;
        if let Some((_, dir)) = &cgroup {
            a.flags |= 0x2_0000_0000;
            a.cgroup = dir.as_raw_fd() as u64;
        }
        libc::syscall(libc::SYS_clone3, &raw mut a, size_of_val(&a))
    };
    assert!(pid >= 0, "clone3: {}", std::io::Error::last_os_error());
    if pid == 0 {
        child(&root_tree, &dev, root, userns.as_fd(), cgroup.is_some());
    }
    // SAFETY: the kernel has put a new descriptor there.
    let _pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut status = 0;
    // SAFETY: the kernel writes one int.
    unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
    if let Some((dir, _)) = cgroup {
        let _ = std::fs::remove_dir(format!("{dir}/main"));
        let _ = std::fs::remove_dir(dir);
    }
    std::process::exit(i32::from(status != 0));
}

fn set(mount: BorrowedFd<'_>, attributes: u64, userns: Option<BorrowedFd<'_>>) {
    // SAFETY: all zeroes is valid and it outlives the call.
    let r = unsafe {
        let mut a: libc::mount_attr = std::mem::zeroed();
        a.attr_set = attributes;
        if let Some(fd) = userns {
            a.attr_set |= libc::MOUNT_ATTR_IDMAP;
            a.userns_fd = fd.as_raw_fd() as u64;
        }
        let (fd, empty) = (mount.as_raw_fd(), c"".as_ptr());
        let size = size_of_val(&a);
        libc::syscall(libc::SYS_mount_setattr, fd, empty, libc::AT_EMPTY_PATH, &raw const a, size)
    };
    assert_eq!(r, 0, "mount_setattr: {}", std::io::Error::last_os_error());
}

fn mounted(kind: &CStr, options: &[(&str, &str)], attributes: Attr) -> OwnedFd {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    for (k, v) in options {
        fsconfig_set_string(fs.as_fd(), *k, *v).expect("option");
    }
    fsconfig_create(fs.as_fd()).expect("create");
    fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).expect("fsmount")
}

fn put(tree: &OwnedFd, at: &str) {
    move_mount(tree, c"", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).expect("move_mount");
}

fn child(root: &OwnedFd, dev: &OwnedFd, path: &str, userns: BorrowedFd<'_>, cgroup: bool) -> ! {
    let hidden = Attr::MOUNT_ATTR_NOSUID | Attr::MOUNT_ATTR_NODEV | Attr::MOUNT_ATTR_NOEXEC;
    if cgroup {
        // SAFETY: one thread.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }, 0);
    }
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .expect("private");
    put(root, path);
    rustix::process::fchdir(root).expect("fchdir");
    put(&mounted(c"proc", &[], hidden), "proc");
    put(&mounted(c"sysfs", &[], hidden | Attr::MOUNT_ATTR_RDONLY), "sys");
    if cgroup {
        put(&mounted(c"cgroup2", &[], hidden | Attr::MOUNT_ATTR_RDONLY), "sys/fs/cgroup");
    }
    put(dev, "dev");
    let options = [("ptmxmode", "0666"), ("mode", "0620")];
    put(&mounted(c"devpts", &options, Attr::MOUNT_ATTR_NOSUID), "dev/pts");
    put(&mounted(c"tmpfs", &[("size", "64m")], Attr::MOUNT_ATTR_NOSUID), "dev/shm");
    put(&mounted(c"mqueue", &[], hidden), "dev/mqueue");
    let copy = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    for p in ["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"] {
        let Ok(tree) = open_tree(CWD, p, copy) else { continue };
        set(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, None);
        put(&tree, p);
    }
    for p in ["proc/kcore", "proc/keys", "proc/timer_list", "proc/interrupts"] {
        if Path::new(p).exists() {
            put(&open_tree(CWD, "dev/null", copy).expect("null"), p);
        }
    }
    let empty = mounted(c"tmpfs", &[], hidden | Attr::MOUNT_ATTR_RDONLY);
    let mut placed: Option<&str> = None;
    for p in [
        "proc/acpi",
        "proc/scsi",
        "sys/firmware",
        "sys/devices/virtual/powercap",
        "sys/kernel/debug",
    ] {
        if Path::new(p).exists() {
            match placed {
                None => put(&empty, p),
                Some(first) => put(&open_tree(CWD, first, copy).expect("copy"), p),
            }
            placed.get_or_insert(p);
        }
    }
    rustix::process::pivot_root(".", ".").expect("pivot_root");
    unmount(".", UnmountFlags::DETACH).expect("umount");
    rustix::process::chdir("/").expect("chdir");
    // SAFETY: plain numbers, or pointers to what lives on this stack; the process has one thread.
    unsafe {
        assert_eq!(libc::setns(userns.as_raw_fd(), libc::CLONE_NEWUSER), 0);
        for cap in 0..=40 {
            if CAPS >> cap & 1 == 0 {
                libc::prctl(libc::PR_CAPBSET_DROP, cap, 0, 0, 0);
            }
        }
        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>());
        libc::syscall(libc::SYS_setresgid, 0, 0, 0);
        libc::syscall(libc::SYS_setresuid, 0, 0, 0);
        let header: [u32; 2] = [0x2008_0522, 0];
        let data: [u32; 6] = [CAPS as u32, CAPS as u32, 0, 0, 0, 0];
        libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr());
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        let filter = initd::seccomp::DEFAULT;
        let program = libc::sock_fprog {
            len: filter.len() as u16,
            filter: filter.as_ptr().cast_mut().cast(),
        };
        assert_eq!(libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program), 0);
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
        let argv = [c"/bin/true".as_ptr(), c"true".as_ptr(), std::ptr::null()];
        libc::execve(argv[0], argv.as_ptr(), argv.as_ptr().add(2));
    }
    std::process::exit(127)
}
