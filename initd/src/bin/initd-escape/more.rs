//! Further tries: what newer kernels, other tables and other doors offer.

use std::ffi::c_long;
use std::io::Read as _;

use super::{note, note_io, open};

const NONE: *const u8 = std::ptr::null();

/// The newer mount calls, and old ones on what hides `/proc`.
pub(super) fn mounts() {
    call!("fsconfig", SYS_fsconfig, -1, 6, NONE, NONE, 0);
    call!("fsmount", SYS_fsmount, -1, 0, 0);
    call!("fspick", SYS_fspick, libc::AT_FDCWD, c"/".as_ptr(), 0);
    call!("open_tree_plain", SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 0);
    call!(
        "bind_proc_sys",
        SYS_mount,
        c"/tmp".as_ptr(),
        c"/proc/sys".as_ptr(),
        NONE,
        libc::MS_BIND,
        NONE
    );
    call!(
        "move_mask",
        SYS_mount,
        c"/proc/kcore".as_ptr(),
        c"/tmp".as_ptr(),
        NONE,
        libc::MS_MOVE,
        NONE
    );
    call!("mount_proc", SYS_mount, c"proc".as_ptr(), c"/tmp".as_ptr(), c"proc".as_ptr(), 0, NONE);
    call!(
        "mount_cgroup1",
        SYS_mount,
        c"x".as_ptr(),
        c"/tmp".as_ptr(),
        c"cgroup".as_ptr(),
        0,
        c"rdma".as_ptr()
    );
    for (name, nr) in [
        ("statmount", 457),
        ("listmount", 458),
        ("lsm_set_self_attr", 460),
        ("open_tree_attr", 467),
    ] {
        // SAFETY: null pointers and numbers.
        note(name, unsafe { libc::syscall(nr, 0, 0, 0, 0, 0) });
    }
}

/// Every flag that makes a namespace, by both calls, and the pidfd form of `setns`.
pub(super) fn namespaces() {
    const NEWTIME: i32 = 0x80;
    for (name, flag) in [
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("time", NEWTIME),
    ] {
        call!(&format!("unshare_{name}"), SYS_unshare, flag);
    }
    for (name, flag) in [
        ("mount", libc::CLONE_NEWNS),
        ("net", libc::CLONE_NEWNET),
        ("pid", libc::CLONE_NEWPID),
        ("ipc", libc::CLONE_NEWIPC),
        ("uts", libc::CLONE_NEWUTS),
        ("cgroup", libc::CLONE_NEWCGROUP),
    ] {
        call!(&format!("clone_{name}"), SYS_clone, flag | libc::SIGCHLD, 0, 0, 0, 0);
    }
    // SAFETY: numbers only.
    let one = unsafe { libc::syscall(libc::SYS_pidfd_open, 1, 0) };
    call!("setns_pidfd", SYS_setns, one, libc::CLONE_NEWNS | libc::CLONE_NEWNET);
    // SAFETY: closes what was opened above.
    unsafe { libc::close(one as i32) };
    // Of one's own, which maps nothing new.
    for file in ["uid_map", "gid_map"] {
        write(&format!("write_{file}"), &format!("/proc/self/{file}"), "0 0 1");
    }
}

/// Opens for writing and writes what does no harm where it gets through.
fn write(name: &str, path: &str, text: &str) {
    use std::io::Write as _;
    let file = std::fs::OpenOptions::new().write(true).open(path);
    note_io(name, file.and_then(|mut f| f.write_all(text.as_bytes())));
}

/// The names in a directory, with commas.
fn names(path: &str) -> String {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.join(",")
}

/// Devices, and files of `/proc`, `/sys` and the cgroup tree.
pub(super) fn files() {
    println!("dev_names {}", names("/dev"));
    println!("pts_names {}", names("/dev/pts"));
    open("dev_tty", "/dev/tty", libc::O_RDWR);
    for dev in [
        "port",
        "sda",
        "nvme0n1",
        "net/tun",
        "vhost-vsock",
        "vfio/vfio",
        "cpu/0/msr",
        "mapper/control",
        "uinput",
    ] {
        open(&format!("dev_{}", dev.replace('/', "_")), &format!("/dev/{dev}"), libc::O_RDWR);
    }
    call!(
        "mknodat",
        SYS_mknodat,
        libc::AT_FDCWD,
        c"/tmp/port".as_ptr(),
        libc::S_IFCHR | 0o600,
        0x104
    );
    for sysctl in [
        "kernel/modprobe",
        "kernel/ns_last_pid",
        "kernel/panic",
        "vm/drop_caches",
        "fs/suid_dumpable",
        "net/ipv4/ip_forward",
    ] {
        let name = format!("sysctl_{}", sysctl.rsplit('/').next().unwrap_or_default());
        open(&name, &format!("/proc/sys/{sysctl}"), libc::O_WRONLY);
    }
    open("binfmt_misc", "/proc/sys/fs/binfmt_misc/register", libc::O_WRONLY);
    open("irq_affinity", "/proc/irq/default_smp_affinity", libc::O_WRONLY);
    open("proc_kmsg", "/proc/kmsg", libc::O_RDONLY);
    open("proc_vmcore", "/proc/vmcore", libc::O_RDONLY);
    open("proc_bus", "/proc/bus/input/devices", libc::O_WRONLY);
    write("oom_score_adj_down", "/proc/self/oom_score_adj", "-1000");
    // The first of them say it for all; the rest takes seconds on a slow machine.
    let mut symbols = [0; 64 << 10];
    let read = std::fs::File::open("/proc/kallsyms").and_then(|mut f| f.read(&mut symbols));
    let symbols = symbols.get(..read.unwrap_or(0)).unwrap_or_default();
    let lines = symbols.split(|b| *b == b'\n').filter(|l| l.len() > 16);
    let known = lines.filter(|l| !l.starts_with(b"0000000000000000")).count();
    println!("kernel_addresses {known}");
    for dir in ["/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/bpf", "/sys/kernel/security"] {
        let n = std::fs::read_dir(dir).map(Iterator::count).unwrap_or(0);
        println!("list_{} {n} entries", dir.replace('/', "_"));
    }
    open("power_state", "/sys/power/state", libc::O_WRONLY);
    open("cpu_online", "/sys/devices/system/cpu/cpu1/online", libc::O_WRONLY);
    open("cgroup_memory_max", "/sys/fs/cgroup/memory.max", libc::O_WRONLY);
    open("cgroup_kill", "/sys/fs/cgroup/cgroup.kill", libc::O_WRONLY);
    open("notify_on_release", "/sys/fs/cgroup/notify_on_release", libc::O_WRONLY);
    call!("cgroup_mkdir", SYS_mkdir, c"/sys/fs/cgroup/own".as_ptr(), 0o755);
    own_files();
}

/// What files in the container may not become.
fn own_files() {
    let _ = std::fs::write("/tmp/own", "x");
    // Version 2 of `struct vfs_cap_data`: CAP_SYS_ADMIN, permitted and effective.
    let cap: [u32; 5] = [0x0200_0001, 1 << 21, 0, 0, 0];
    let own = c"/tmp/own".as_ptr();
    call!(
        "file_capability",
        SYS_setxattr,
        own,
        c"security.capability".as_ptr(),
        cap.as_ptr(),
        20,
        0
    );
    call!(
        "trusted_attribute",
        SYS_setxattr,
        own,
        c"trusted.overlay.opaque".as_ptr(),
        c"y".as_ptr(),
        1,
        0
    );
}

/// Calls that no container needs, by number, and other tables of calls.
pub(super) fn kernel() {
    call!("kexec_file_load", SYS_kexec_file_load, -1, -1, 0, c"".as_ptr(), 0);
    call!("swapoff", SYS_swapoff, c"/tmp".as_ptr());
    call!("quotactl", SYS_quotactl, 0x0080_0002_u32, c"/".as_ptr(), 0, 0);
    call!("quotactl_fd", SYS_quotactl_fd, 0, 0x0080_0002_u32, 0, 0);
    call!("vhangup", SYS_vhangup);
    #[cfg(target_arch = "x86_64")]
    call!("ioperm", SYS_ioperm, 0x80, 1, 1);
    call!("clock_settime", SYS_clock_settime, 0, 0);
    call!("setdomainname", SYS_setdomainname, c"x".as_ptr(), 1);
    call!("fanotify_init", SYS_fanotify_init, 0, 0);
    call!("move_pages", SYS_move_pages, 0, 0, 0, 0, 0, 0);
    call!("migrate_pages", SYS_migrate_pages, 0, 0, 0, 0);
    call!("mbind", SYS_mbind, 0, 0, 0, 0, 0, 0);
    call!("set_mempolicy", SYS_set_mempolicy, 0, 0, 0);
    call!("io_uring_enter", SYS_io_uring_enter, -1, 0, 0, 0, 0, 0);
    call!("io_uring_register", SYS_io_uring_register, -1, 0, 0, 0);
    // SAFETY: zeroes are a valid timex; the pointer is to live data.
    let mut t: libc::timex = unsafe { std::mem::zeroed() };
    t.modes = libc::ADJ_TICK;
    t.tick = 10_000;
    call!("adjtimex_set", SYS_adjtimex, &raw mut t);
    call!("clock_adjtime_set", SYS_clock_adjtime, 0, &raw mut t);
    #[cfg(target_arch = "x86_64")]
    for table in ["x32", "int80"] {
        use std::os::unix::process::ExitStatusExt as _;
        // In a child: a kernel without that table, or a filter that kills, ends it by a signal.
        match std::process::Command::new("/bin/escape").arg(table).status() {
            Ok(status) => println!("{table} {}", status.code().or(status.signal()).unwrap_or(-1)),
            Err(e) => println!("{table} none {e}"),
        }
    }
    rights();
}

/// Ends with the errno of `getpid` by a number of the x32 table, 0 when it went through.
#[cfg(target_arch = "x86_64")]
pub(super) fn call_x32() -> ! {
    // SAFETY: a number, without arguments.
    let r = unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) };
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    std::process::exit(if r == -1 { errno } else { 0 })
}

/// As [`call_x32`], by the i386 table.
#[cfg(target_arch = "x86_64")]
pub(super) fn call_int80() -> ! {
    let r: i64;
    // SAFETY: an interrupt that takes a number and returns one; it may change these registers.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") 20i64 => r, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    std::process::exit(i32::try_from(-r).unwrap_or(0).clamp(0, 255))
}

/// What would give back a right that was taken.
fn rights() {
    const SET_MM_START_BRK: i32 = 6;
    const AMBIENT_RAISE: i32 = 2;
    call!("no_new_privs_off", SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0);
    call!("seccomp_off", SYS_prctl, libc::PR_SET_SECCOMP, 0, 0, 0, 0);
    call!("ambient_admin", SYS_prctl, libc::PR_CAP_AMBIENT, AMBIENT_RAISE, 21, 0, 0);
    call!("securebits", SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0);
    call!("set_mm", SYS_prctl, libc::PR_SET_MM, SET_MM_START_BRK, 0, 0, 0);
    let fifo = [1i32];
    call!("sched_fifo", SYS_sched_setscheduler, 0, libc::SCHED_FIFO, fifo.as_ptr());
    // Class 1 is real time.
    call!("ioprio_realtime", SYS_ioprio_set, 1, 0, 1 << 13);
}

/// The pod's network is its own, and not its to change.
pub(super) fn sockets() {
    const AF_XDP: i32 = 44;
    call!("af_xdp", SYS_socket, AF_XDP, libc::SOCK_RAW, 0);
    // SAFETY: numbers only.
    let udp = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let one = 1i32;
    for (name, level, option) in [
        ("so_mark", libc::SOL_SOCKET, libc::SO_MARK),
        ("so_rcvbufforce", libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
        ("ip_transparent", libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        // IPT_SO_SET_REPLACE
        ("iptables", libc::IPPROTO_IP, 64),
    ] {
        call!(name, SYS_setsockopt, udp, level, option, &raw const one, 4);
    }
    let mut request = [0u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16] = 1; // IFF_UP
    call!("link_flags", SYS_ioctl, udp, libc::SIOCSIFFLAGS, request.as_mut_ptr());
    // SAFETY: closes what was opened above.
    unsafe { libc::close(udp) };
    println!("new_link {}", new_link());
    let name = std::env::var("ABSTRACT").unwrap_or_default();
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    println!("abstract_seen {}", !name.is_empty() && table.contains(&name));
    let key: i32 = std::env::var("SHM_KEY").ok().and_then(|k| k.parse().ok()).unwrap_or(1);
    call!("sysv_of_host", SYS_shmget, key, 0, 0);
}

/// The kernel's answer to a request for a dummy device: rtnetlink(7).
fn new_link() -> i64 {
    let mut m = [0u8; 52];
    // Length; RTM_NEWLINK with REQUEST, ACK, CREATE, EXCL.
    m[..4].copy_from_slice(&52u32.to_ne_bytes());
    m[4..8].copy_from_slice(&(16u32 | (1 | 4 | 0x400 | 0x200) << 16).to_ne_bytes());
    // IFLA_LINKINFO with IFLA_INFO_KIND.
    m[32..36].copy_from_slice(&(20u32 | 18 << 16).to_ne_bytes());
    m[36..40].copy_from_slice(&(10u32 | 1 << 16).to_ne_bytes());
    m[40..46].copy_from_slice(b"dummy\0");
    let mut answer = [0u8; 1024];
    // SAFETY: pointers to live data with their lengths.
    let (sent, got) = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        let sent = libc::send(socket, m.as_ptr().cast(), m.len(), 0);
        let got = libc::recv(socket, answer.as_mut_ptr().cast(), answer.len(), 0);
        libc::close(socket);
        (sent, got)
    };
    if sent < 0 || got < 20 {
        return -1;
    }
    // The error after the header of the answer.
    let error = [16, 17, 18, 19].map(|at| answer[at]);
    -i64::from(i32::from_ne_bytes(error))
}

/// Processes of the host by number: each call looks in the container's own namespace.
pub(super) fn processes(host: i32) {
    call!("pidfd_host", SYS_pidfd_open, host, 0);
    call!("affinity_host", SYS_sched_getaffinity, host, 8, [0u64; 1].as_mut_ptr());
    call!("prlimit_host", SYS_prlimit64, host, libc::RLIMIT_NOFILE, 0, [0u64; 2].as_mut_ptr());
    let mut word = 0u64;
    let iov = [&raw mut word as usize, 8];
    call!(
        "vm_read_host",
        SYS_process_vm_readv,
        host,
        iov.as_ptr(),
        1usize,
        iov.as_ptr(),
        1usize,
        0usize
    );
    // SI_QUEUE, which is what may be sent.
    let mut info = [0u64; 16];
    info[1] = 0xffff_ffff;
    call!("signal_queue_host", SYS_rt_sigqueueinfo, host, 0, info.as_ptr());
    open("proc_host", &format!("/proc/{host}/status"), libc::O_RDONLY);
    open("root_of_host", &format!("/proc/{host}/root"), libc::O_PATH);
}

/// What the launch handed over: CVE-2024-21626 was a directory among the descriptors, or as working directory.
pub(super) fn inherited() {
    for fd in 0..3 {
        // SAFETY: zeroes are a valid stat; the pointer is to live data.
        let kind = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            let r = libc::fstat(fd, &raw mut stat);
            match (r, stat.st_mode & libc::S_IFMT) {
                (0, libc::S_IFCHR) => {
                    format!("char {}:{}", libc::major(stat.st_rdev), libc::minor(stat.st_rdev))
                }
                (0, libc::S_IFIFO) => "pipe".to_owned(),
                (0, other) => format!("{other:o}"),
                _ => "none".to_owned(),
            }
        };
        println!("fd{fd} {kind}");
    }
    let mut buffer = [0u8; 256];
    // SAFETY: a live buffer with its length.
    let n = unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) };
    let cwd = buffer.get(..usize::try_from(n).unwrap_or(1).max(1) - 1).unwrap_or_default();
    println!("cwd {}", String::from_utf8_lossy(cwd));
    let mut environment: Vec<_> = std::env::vars().map(|(k, _)| k).collect();
    environment.sort();
    println!("environment {}", environment.join(","));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|l| l.starts_with("SigBlk") || l.starts_with("SigIgn")) {
        let (name, set) = line.split_once(":\t").unwrap_or_default();
        // Rust's own start ignores SIGPIPE; 32 is the C library's own, which its posix_spawn leaves ignored.
        let set = u64::from_str_radix(set, 16).unwrap_or(u64::MAX) & !(1 << 12 | 1 << 31);
        println!("{name} {set:#x}");
    }
}

/// With the right to `chroot`: out of a root inside the root, as chroot(2) says how, to where the container's root ends.
pub(super) fn chroot_out() {
    let _ = std::fs::create_dir("/tmp/jail");
    note_io("chroot_in", std::os::unix::fs::chroot("/tmp/jail"));
    for _ in 0..32 {
        let _ = std::env::set_current_dir("..");
    }
    note_io("chroot_up", std::os::unix::fs::chroot("."));
    println!("chroot_top {}", names("/"));
}

/// Calls that wait for ever when their arguments are zeroes.
#[cfg(target_arch = "x86_64")]
const WAITING: [c_long; 3] = [libc::SYS_pselect6, libc::SYS_ppoll, libc::SYS_select];
#[cfg(not(target_arch = "x86_64"))]
const WAITING: [c_long; 2] = [libc::SYS_pselect6, libc::SYS_ppoll];

/// Each number with zeroes, in a child of its own: `number end`, which is an errno, `ok` or how the child ended.
pub(super) fn calls(numbers: impl Iterator<Item = c_long>) {
    use std::io::Write as _;
    for nr in numbers {
        let _ = std::io::stdout().flush();
        let arg: c_long = if WAITING.contains(&nr) { -1 } else { 0 };
        // SAFETY: this process has one thread. The child calls nothing of the library but `_exit`, and what waits for ever
        // is ended by the alarm.
        let status = unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::alarm(1);
                let r = libc::syscall(nr, arg, arg, arg, arg, arg, arg);
                libc::_exit(if r == -1 { *libc::__errno_location() } else { 0 });
            }
            let mut status = 0;
            libc::waitpid(child, &raw mut status, 0);
            status
        };
        match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
            (true, _) => println!("{nr} signal {}", libc::WTERMSIG(status)),
            (false, 0) => println!("{nr} ok"),
            (false, errno) => println!("{nr} {errno}"),
        }
    }
}
