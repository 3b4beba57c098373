//! Tries to get out of a container, and prints what each try gave: `name errno`, or `name ok`. Runs as the program of
//! a test pod; static, so that the image holds nothing else.
#![allow(unsafe_code)] // raw system calls are what it is for

use std::ffi::{CString, c_long};

/// One try: 0 or more is success.
fn note(name: &str, r: c_long) {
    if r == -1 {
        let e = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        println!("{name} {e}");
    } else {
        println!("{name} ok");
    }
}

macro_rules! call {
    ($name:expr, $nr:ident $(, $arg:expr)* $(,)?) => {
        // SAFETY: arguments are numbers or pointers to live data; the process is there to be refused.
        note($name, unsafe { libc::syscall(libc::$nr $(, $arg)*) })
    };
}

mod more;

fn open(name: &str, path: &str, flags: i32) {
    let Ok(c) = CString::new(path) else { return };
    // SAFETY: a valid string and numbers.
    note(name, unsafe { libc::open(c.as_ptr(), flags) }.into());
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("watch") => watch(),
        Some("overwrite") => overwrite(),
        Some("euid") => println!("euid {}", rustix::process::geteuid().as_raw()),
        Some("chroot") => more::chroot_out(),
        Some("calls") => more::calls(std::env::args().skip(2).filter_map(|nr| nr.parse().ok())),
        #[cfg(target_arch = "x86_64")]
        Some("int80") => more::call_int80(),
        #[cfg(target_arch = "x86_64")]
        Some("x32") => more::call_x32(),
        _ => {
            descriptors();
            more::inherited();
            mounts();
            more::mounts();
            namespaces();
            more::namespaces();
            files();
            more::files();
            kernel();
            more::kernel();
            sockets();
            more::sockets();
            processes();
            inside();
        }
    }
}

/// Tries to write to every executable that can be named through `/proc`, for a moment.
fn overwrite() {
    for _ in 0..50 {
        for pid in std::iter::once("self".to_owned()).chain((1..20).map(|p: u32| p.to_string())) {
            let path = format!("/proc/{pid}/exe");
            // The image's own programs may be written to by the image.
            let ours = std::fs::read_link(&path).is_ok_and(|p| p.starts_with("/bin"));
            if !ours && std::fs::OpenOptions::new().append(true).open(&path).is_ok() {
                println!("overwrite ok {path}");
            }
        }
    }
    println!("overwrite tried");
}

/// Before anything is opened here.
fn descriptors() {
    let mut fds: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| e.file_name().to_string_lossy().parse().ok())
        .collect();
    fds.sort_unstable();
    // One is the listing itself.
    let fds: Vec<String> = fds.iter().map(ToString::to_string).collect();
    println!("open_fds {}", fds.join(" "));
}

fn mounts() {
    let none = std::ptr::null::<u8>();
    call!("mount", SYS_mount, c"none".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), 0, none);
    call!("fsopen", SYS_fsopen, c"tmpfs".as_ptr(), 0);
    call!("open_tree", SYS_open_tree, libc::AT_FDCWD, c"/".as_ptr(), 1);
    call!("move_mount", SYS_move_mount, -1, c"".as_ptr(), -1, c"".as_ptr(), 4);
    call!("mount_setattr", SYS_mount_setattr, libc::AT_FDCWD, c"/".as_ptr(), 0, none, 0);
    call!("umount_mask", SYS_umount2, c"/proc/kcore".as_ptr(), 0);
    let remount = libc::MS_REMOUNT | libc::MS_BIND;
    call!("remount_proc_sys", SYS_mount, none, c"/proc/sys".as_ptr(), none, remount, none);
    call!("pivot_root", SYS_pivot_root, c"/".as_ptr(), c"/".as_ptr());
    call!("chroot", SYS_chroot, c"/tmp".as_ptr());
}

fn namespaces() {
    for (name, flag) in [
        ("unshare_user", libc::CLONE_NEWUSER),
        ("unshare_mount", libc::CLONE_NEWNS),
        ("unshare_net", libc::CLONE_NEWNET),
        ("unshare_cgroup", libc::CLONE_NEWCGROUP),
    ] {
        call!(name, SYS_unshare, flag);
    }
    call!("clone_user", SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0);
    call!("clone3", SYS_clone3, 0, 0);
    // SAFETY: a valid string and numbers.
    let ns = unsafe { libc::open(c"/proc/self/ns/mnt".as_ptr(), libc::O_RDONLY) };
    call!("setns", SYS_setns, ns, 0);
    // SAFETY: closes what was opened above.
    unsafe { libc::close(ns) };
}

fn files() {
    call!("mknod_char", SYS_mknod, c"/tmp/mem".as_ptr(), libc::S_IFCHR | 0o600, 0x101);
    call!("mknod_block", SYS_mknod, c"/tmp/vda".as_ptr(), libc::S_IFBLK | 0o600, 0xfe00);
    for dev in ["mem", "kmsg", "fuse", "vda", "kvm", "console", "loop-control"] {
        open(&format!("dev_{dev}"), &format!("/dev/{dev}"), libc::O_RDWR);
    }
    open("image_device", "/dev-in-image", libc::O_RDONLY);
    open("core_pattern", "/proc/sys/kernel/core_pattern", libc::O_WRONLY);
    open("sysrq", "/proc/sysrq-trigger", libc::O_WRONLY);
    open("uevent_helper", "/sys/kernel/uevent_helper", libc::O_WRONLY);
    open("release_agent", "/sys/fs/cgroup/release_agent", libc::O_WRONLY);
    open("cgroup_procs", "/sys/fs/cgroup/cgroup.procs", libc::O_WRONLY);
    open("sys_write", "/sys/kernel/mm/transparent_hugepage/enabled", libc::O_WRONLY);
    for file in ["keys", "kcore", "timer_list", "interrupts"] {
        match std::fs::read(format!("/proc/{file}")) {
            Ok(bytes) => println!("read_{file} {} bytes", bytes.len()),
            Err(e) => println!("read_{file} {}", e.raw_os_error().unwrap_or(0)),
        }
    }
    for dir in ["/sys/firmware", "/proc/acpi", "/proc/scsi"] {
        let n = std::fs::read_dir(dir).map(Iterator::count).unwrap_or(0);
        println!("list_{} {n} entries", dir.replace('/', "_"));
    }
    open("own_exe_write", "/proc/self/exe", libc::O_WRONLY);
    let mut handle = [0u32; 34];
    handle[0] = 8;
    call!("open_by_handle_at", SYS_open_by_handle_at, libc::AT_FDCWD, handle.as_ptr(), 0);
    let same = match (std::fs::metadata("/"), std::fs::metadata("/../../../..")) {
        (Ok(a), Ok(b)) => {
            use std::os::unix::fs::MetadataExt as _;
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        }
        _ => false,
    };
    println!("root_is_top {same}");
}

fn kernel() {
    call!("keyctl", SYS_keyctl, 0, -3, 0);
    call!("add_key", SYS_add_key, c"user".as_ptr(), c"k".as_ptr(), c"v".as_ptr(), 1, -3);
    call!("request_key", SYS_request_key, c"user".as_ptr(), c"k".as_ptr(), 0, -3);
    call!("bpf", SYS_bpf, 0, 0, 0);
    call!("perf_event_open", SYS_perf_event_open, 0, 0, -1, -1, 0);
    call!("init_module", SYS_init_module, 0, 0, c"".as_ptr());
    call!("finit_module", SYS_finit_module, 0, c"".as_ptr(), 0);
    call!("delete_module", SYS_delete_module, c"loop".as_ptr(), 0);
    call!("kexec_load", SYS_kexec_load, 0, 0, 0, 0);
    call!("reboot", SYS_reboot, 0xfee1_dead_u32, 672_274_793, 0, 0);
    #[cfg(target_arch = "x86_64")]
    call!("iopl", SYS_iopl, 3);
    call!("io_uring_setup", SYS_io_uring_setup, 1, 0);
    call!("userfaultfd", SYS_userfaultfd, 0);
    call!("syslog", SYS_syslog, 3, 0, 0);
    call!("swapon", SYS_swapon, c"/tmp".as_ptr(), 0);
    call!("acct", SYS_acct, 0);
    call!("sethostname", SYS_sethostname, c"x".as_ptr(), 1);
    call!("settimeofday", SYS_settimeofday, 0, 0);
    // SAFETY: there is no such call.
    note("unknown_number", unsafe { libc::syscall(4000) });
    call!("personality_odd", SYS_personality, 0x004_0000);
    call!("personality_query", SYS_personality, 0xffff_ffff_u32);
    let header: [u32; 2] = [0x2008_0522, 0];
    let all = [u32::MAX, u32::MAX, 0, 0x1ff, 0x1ff, 0];
    call!("capset_all", SYS_capset, header.as_ptr(), all.as_ptr());
    call!("tiocsti", SYS_ioctl, 0, 0x5412, c"x".as_ptr());
    call!("setrlimit_up", SYS_setrlimit, libc::RLIMIT_NOFILE, &raw const HUGE);
    call!("nice_up", SYS_setpriority, 0, 0, -20);
}

static HUGE: [u64; 2] = [1 << 40, 1 << 40];

fn sockets() {
    call!("af_alg", SYS_socket, libc::AF_ALG, libc::SOCK_SEQPACKET, 0);
    call!("af_vsock", SYS_socket, libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    call!("raw", SYS_socket, libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP);
    call!("packet", SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0);
    call!("tcp", SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
    use std::os::linux::net::SocketAddrExt as _;
    let name = std::env::var("ABSTRACT").unwrap_or_default();
    let addr = std::os::unix::net::SocketAddr::from_abstract_name(name);
    match addr.and_then(|a| std::os::unix::net::UnixStream::connect_addr(&a)) {
        Ok(_) => println!("abstract ok"),
        Err(e) => println!("abstract {}", e.raw_os_error().unwrap_or(0)),
    }
}

fn processes() {
    let none = std::ptr::null::<u8>();
    let host: i32 =
        std::env::var("HOST_PID").ok().and_then(|p| p.parse().ok()).unwrap_or(4_000_000);
    call!("ptrace_host", SYS_ptrace, libc::PTRACE_SEIZE, host, none, none);
    call!("kill_host", SYS_kill, host, 0);
    more::processes(host);
    // SAFETY: numbers only.
    let me = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    call!("pidfd_getfd", SYS_pidfd_getfd, me, 0, 0);
    // SAFETY: closes what was opened above.
    unsafe { libc::close(me as i32) };
    call!("kcmp", SYS_kcmp, 1, 1, 0, 0, 0);
    let pids = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .count();
    println!("visible_pids {pids}");
    match std::fs::read_link("/proc/1/exe") {
        Ok(p) => println!("init_exe {}", p.display()),
        Err(e) => println!("init_exe {}", e.raw_os_error().unwrap_or(0)),
    }
    open("init_mem", "/proc/1/mem", libc::O_RDWR);
}

/// What a container may do all the same.
fn inside() {
    note_io("write_tmp", std::fs::write("/tmp/x", "x"));
    note_io("chown", std::os::unix::fs::chown("/tmp/x", Some(1000), Some(1000)));
    note_io("write_root", std::fs::write("/new", "x"));
    open("dev_null", "/dev/null", libc::O_RDWR);
    open("dev_zero", "/dev/zero", libc::O_RDONLY);
    open("ptmx", "/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY);
    note_io("shm", std::fs::write("/dev/shm/x", "x"));
    let thread = std::thread::Builder::new().spawn(|| ()).map(|t| t.join());
    note_io("thread", thread.map(drop));
    let child = std::process::Command::new("/bin/escape")
        .arg("euid")
        .stdout(std::process::Stdio::null())
        .status();
    note_io("child", child.map(drop));
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        for line in status.lines() {
            if line.starts_with("Cap")
                || line.starts_with("NoNewPrivs")
                || line.starts_with("Seccomp:")
            {
                println!("{}", line.replace(":\t", " "));
            }
        }
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    println!("uid_map {}", map.split_whitespace().collect::<Vec<_>>().join(","));
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = cgroup.lines().find(|l| l.starts_with("0::")).unwrap_or_default();
    println!("cgroup {v2}");
}

fn note_io(name: &str, r: std::io::Result<()>) {
    match r {
        Ok(()) => println!("{name} ok"),
        Err(e) => println!("{name} {}", e.raw_os_error().unwrap_or(0)),
    }
}

/// Looks at every process that appears, as fast as it can, for three seconds: a helper that is on its way to a program
/// in this container must never be open to it.
fn watch() {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
    let mut seen = 0u32;
    let mut foreign = 0u32;
    // SAFETY: numbers only.
    let me = unsafe { libc::getpid() };
    println!("watching");
    while std::time::Instant::now() < end {
        for pid in 2..400 {
            if pid == me {
                continue;
            }
            // A link that cannot be read is a process that is closed to us, or none.
            if let Ok(exe) = std::fs::read_link(format!("/proc/{pid}/exe")) {
                seen += 1;
                if !exe.starts_with("/bin/") {
                    println!("foreign {}", exe.display());
                    foreign += 1;
                }
            }
        }
    }
    println!("watched {seen} foreign {foreign}");
}
