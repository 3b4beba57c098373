//! The ways out of a container, each refused with the errno that says where.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;

use common::{Bed, LONG, escape_bed as bed, finish, root_or_skip};
use initd::pod::{Caps, ContainerSpec, Root, RootIdmap, Seccomp};
use initd::seccomp::table::Verdict;
use initd::shim::{Event, ExecSpec, Exit};

const EPERM: &str = "1";
const ENOENT: &str = "2";
const ESRCH: &str = "3";
const ENXIO: &str = "6";
const EACCES: &str = "13";
const ETXTBSY: &str = "26";
const EINVAL: &str = "22";
const EROFS: &str = "30";
const ENOSYS: &str = "38";
const ENOPROTOOPT: &str = "92";
const ECONNREFUSED: &str = "111";

fn escape(bed: &Bed, c: ContainerSpec) -> (Exit, BTreeMap<String, String>) {
    let (exit, log) = bed.run(ContainerSpec { argv: vec!["/bin/escape".into()], ..c });
    let lines = log.lines().filter_map(|l| l.split_once(' '));
    (exit, lines.map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

/// Name, and the answers that are right.
const REFUSED: &[(&str, &[&str])] = &[
    ("mount", &[EPERM]),
    ("fsopen", &[EPERM]),
    ("open_tree", &[EPERM]),
    ("move_mount", &[EPERM]),
    ("mount_setattr", &[EPERM]),
    ("umount_mask", &[EPERM]),
    ("remount_proc_sys", &[EPERM]),
    ("pivot_root", &[EPERM]),
    ("chroot", &[EPERM]),
    ("unshare_user", &[EPERM]),
    ("unshare_mount", &[EPERM]),
    ("unshare_net", &[EPERM]),
    ("unshare_cgroup", &[EPERM]),
    ("clone_user", &[EPERM]),
    ("clone3", &[ENOSYS]),
    ("setns", &[EPERM]),
    ("mknod_char", &[EPERM]),
    ("mknod_block", &[EPERM]),
    ("dev_mem", &[ENOENT]),
    ("dev_kmsg", &[ENOENT]),
    ("dev_fuse", &[ENOENT]),
    ("dev_vda", &[ENOENT]),
    ("dev_kvm", &[ENOENT]),
    ("dev_console", &[ENOENT]),
    ("dev_loop-control", &[ENOENT]),
    ("image_device", &[EACCES]),
    ("core_pattern", &[EROFS, EACCES]),
    ("sysrq", &[EROFS, EACCES, ENOENT]),
    ("uevent_helper", &[EROFS, EACCES, ENOENT]),
    ("release_agent", &[ENOENT, EROFS, EACCES]),
    ("cgroup_procs", &[EROFS, EACCES, ENOENT]),
    ("sys_write", &[EROFS, EACCES, ENOENT]),
    ("read_keys", &["0 bytes", ENOENT]),
    ("read_kcore", &["0 bytes", ENOENT]),
    ("read_timer_list", &["0 bytes", ENOENT]),
    ("read_interrupts", &["0 bytes", ENOENT]),
    ("list__sys_firmware", &["0 entries"]),
    ("list__proc_acpi", &["0 entries"]),
    ("list__proc_scsi", &["0 entries"]),
    ("own_exe_write", &[ETXTBSY]),
    ("open_by_handle_at", &[EPERM]),
    ("root_is_top", &["true"]),
    ("keyctl", &[EPERM]),
    ("add_key", &[EPERM]),
    ("request_key", &[EPERM]),
    ("bpf", &[EPERM]),
    ("perf_event_open", &[EPERM]),
    ("init_module", &[EPERM]),
    ("finit_module", &[EPERM]),
    ("delete_module", &[EPERM]),
    ("kexec_load", &[EPERM]),
    ("reboot", &[EPERM]),
    ("iopl", &[EPERM]),
    ("io_uring_setup", &[EPERM]),
    ("userfaultfd", &[EPERM]),
    ("syslog", &[EPERM]),
    ("swapon", &[EPERM]),
    ("acct", &[EPERM]),
    ("sethostname", &[EPERM]),
    ("settimeofday", &[EPERM]),
    ("unknown_number", &[ENOSYS]),
    ("personality_odd", &[EPERM]),
    ("personality_query", &["ok"]),
    ("capset_all", &[EPERM]),
    ("tiocsti", &[EPERM]),
    ("setrlimit_up", &[EPERM]),
    ("nice_up", &[EPERM, EACCES]),
    ("af_alg", &[EPERM]),
    ("af_vsock", &[EPERM]),
    ("raw", &[EPERM]),
    ("packet", &[EPERM]),
    ("abstract", &[ECONNREFUSED]),
    ("ptrace_host", &[ESRCH]),
    ("kill_host", &[ESRCH]),
    ("pidfd_getfd", &[EPERM]),
    ("kcmp", &[EPERM]),
    ("open_fds", &["0 1 2 3"]),
    // The newer mount calls, and the masks.
    ("fsconfig", &[EPERM]),
    ("fsmount", &[EPERM]),
    ("fspick", &[EPERM]),
    ("open_tree_plain", &[EPERM]),
    ("open_tree_attr", &[EPERM]),
    ("statmount", &[EPERM]),
    ("listmount", &[EPERM]),
    ("lsm_set_self_attr", &[EPERM]),
    ("bind_proc_sys", &[EPERM]),
    ("move_mask", &[EPERM]),
    ("mount_proc", &[EPERM]),
    ("mount_cgroup1", &[EPERM]),
    ("unshare_pid", &[EPERM]),
    ("unshare_ipc", &[EPERM]),
    ("unshare_uts", &[EPERM]),
    ("unshare_time", &[EPERM]),
    ("clone_mount", &[EPERM]),
    ("clone_net", &[EPERM]),
    ("clone_pid", &[EPERM]),
    ("clone_ipc", &[EPERM]),
    ("clone_uts", &[EPERM]),
    ("clone_cgroup", &[EPERM]),
    ("setns_pidfd", &[EPERM]),
    ("write_uid_map", &[EPERM]),
    ("write_gid_map", &[EPERM]),
    // Devices and files.
    (
        "dev_names",
        &["fd,full,mqueue,null,ptmx,pts,random,shm,stderr,stdin,stdout,tty,urandom,zero"],
    ),
    ("pts_names", &["ptmx"]),
    ("dev_tty", &[ENXIO]),
    ("dev_port", &[ENOENT]),
    ("dev_sda", &[ENOENT]),
    ("dev_nvme0n1", &[ENOENT]),
    ("dev_net_tun", &[ENOENT]),
    ("dev_vhost-vsock", &[ENOENT]),
    ("dev_vfio_vfio", &[ENOENT]),
    ("dev_cpu_0_msr", &[ENOENT]),
    ("dev_mapper_control", &[ENOENT]),
    ("dev_uinput", &[ENOENT]),
    ("mknodat", &[EPERM]),
    ("sysctl_modprobe", &[EROFS, EACCES, ENOENT]),
    ("sysctl_ns_last_pid", &[EROFS, EACCES, ENOENT]),
    ("sysctl_panic", &[EROFS, EACCES]),
    ("sysctl_drop_caches", &[EROFS, EACCES]),
    ("sysctl_suid_dumpable", &[EROFS, EACCES]),
    ("sysctl_ip_forward", &[EROFS, EACCES]),
    ("binfmt_misc", &[EROFS, EACCES, ENOENT]),
    ("irq_affinity", &[EROFS, EACCES, ENOENT]),
    ("proc_kmsg", &[EPERM, EACCES]),
    ("proc_vmcore", &[ENOENT, EACCES]),
    ("proc_bus", &[EROFS, EACCES, ENOENT]),
    ("oom_score_adj_down", &[EACCES]),
    ("kernel_addresses", &["0"]),
    ("list__sys_kernel_debug", &["0 entries"]),
    ("list__sys_kernel_tracing", &["0 entries"]),
    ("list__sys_fs_bpf", &["0 entries"]),
    ("list__sys_kernel_security", &["0 entries"]),
    ("power_state", &[EROFS, EACCES, ENOENT]),
    ("cpu_online", &[EROFS, EACCES, ENOENT]),
    ("cgroup_memory_max", &[EROFS, EACCES, ENOENT]),
    ("cgroup_kill", &[EROFS, EACCES, ENOENT]),
    ("notify_on_release", &[EROFS, EACCES, ENOENT]),
    ("cgroup_mkdir", &[EROFS, EACCES, ENOENT]),
    ("file_capability", &[EPERM]),
    ("trusted_attribute", &[EPERM]),
    // Calls, and other tables of calls.
    ("kexec_file_load", &[EPERM]),
    ("swapoff", &[EPERM]),
    ("quotactl", &[EPERM]),
    ("quotactl_fd", &[EPERM]),
    ("vhangup", &[EPERM]),
    ("ioperm", &[EPERM]),
    ("clock_settime", &[EPERM]),
    ("setdomainname", &[EPERM]),
    ("fanotify_init", &[EPERM]),
    ("move_pages", &[EPERM]),
    ("migrate_pages", &[EPERM]),
    ("mbind", &[EPERM]),
    ("set_mempolicy", &[EPERM]),
    ("io_uring_enter", &[EPERM]),
    ("io_uring_register", &[EPERM]),
    ("adjtimex_set", &[EPERM]),
    ("clock_adjtime_set", &[EPERM]),
    ("x32", &[ENOSYS]),
    // Or SIGSEGV, where the kernel has no such table.
    ("int80", &[ENOSYS, "11"]),
    ("no_new_privs_off", &[EINVAL]),
    ("seccomp_off", &[EINVAL]),
    ("ambient_admin", &[EPERM]),
    ("securebits", &[EPERM]),
    ("set_mm", &[EPERM]),
    ("sched_fifo", &[EPERM]),
    ("ioprio_realtime", &[EPERM]),
    // The network, and who else is there.
    ("af_xdp", &[EPERM]),
    ("so_mark", &[EPERM]),
    ("so_rcvbufforce", &[EPERM]),
    ("ip_transparent", &[EPERM]),
    ("iptables", &[EPERM, ENOPROTOOPT]),
    ("link_flags", &[EPERM]),
    ("new_link", &[EPERM]),
    ("abstract_seen", &["false"]),
    ("sysv_of_host", &[ENOENT]),
    ("pidfd_host", &[ESRCH]),
    ("affinity_host", &[ESRCH]),
    ("prlimit_host", &[ESRCH]),
    ("vm_read_host", &[ESRCH]),
    ("signal_queue_host", &[ESRCH]),
    ("proc_host", &[ENOENT]),
    ("root_of_host", &[ENOENT]),
    // What the launch hands over.
    ("fd0", &["char 1:3"]),
    ("fd1", &["pipe"]),
    ("fd2", &["pipe"]),
    ("cwd", &["/"]),
    ("environment", &["ABSTRACT,HOME,HOST_PID,SHM_KEY"]),
    ("SigBlk", &["0x0"]),
    ("SigIgn", &["0x0"]),
    // And what must work.
    ("tcp", &["ok"]),
    ("write_tmp", &["ok"]),
    ("chown", &["ok"]),
    ("write_root", &["ok"]),
    ("dev_null", &["ok"]),
    ("dev_zero", &["ok"]),
    ("ptmx", &["ok"]),
    ("shm", &["ok"]),
    ("thread", &["ok"]),
    ("child", &["ok"]),
    ("NoNewPrivs", &["1"]),
    ("Seccomp", &["2"]),
];

/// What the host has and a container is not to see: a socket by an abstract name, a System V segment, a process.
struct Host {
    name: String,
    shm_key: i32,
    shm: i32,
    _listener: std::os::unix::net::UnixListener,
}

#[allow(unsafe_code)]
impl Host {
    fn new() -> Self {
        let name = format!("quelea-escape-{}", std::process::id());
        let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("name");
        let listener = std::os::unix::net::UnixListener::bind_addr(&addr).expect("listen");
        let shm_key = 0x0071_0000 + i32::try_from(std::process::id() % 65_536).expect("small");
        // SAFETY: numbers only.
        let shm = unsafe { libc::shmget(shm_key, 4096, libc::IPC_CREAT | 0o666) };
        assert!(shm >= 0, "shmget: {}", std::io::Error::last_os_error());
        Self { name, shm_key, shm, _listener: listener }
    }

    fn environment(&self) -> Vec<(String, String)> {
        vec![
            ("ABSTRACT".to_owned(), self.name.clone()),
            ("HOST_PID".to_owned(), std::process::id().to_string()),
            ("SHM_KEY".to_owned(), self.shm_key.to_string()),
        ]
    }
}

#[allow(unsafe_code)]
impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: removes what was made above.
        unsafe { libc::shmctl(self.shm, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

fn check(found: &BTreeMap<String, String>, what: &str, changed: &[(&str, &[&str])]) {
    let mut wrong = Vec::new();
    for (name, right) in REFUSED {
        let right = changed.iter().find(|(n, _)| n == name).map_or(*right, |(_, r)| *r);
        let got = found.get(*name).map_or("(nothing)", String::as_str);
        if !right.contains(&got) {
            wrong.push(format!("{name}: {got}, not {right:?}"));
        }
    }
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

fn strict(found: &BTreeMap<String, String>, caps: Caps) {
    let hex = format!("{:016x}", caps.0);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(found.get(set), Some(&hex), "{set}");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(found.get(set).map(String::as_str), Some("0000000000000000"), "{set}");
    }
}

#[test]
fn nothing_gets_out_of_a_user_namespace() {
    if !root_or_skip("escape_userns") {
        return;
    }
    let mut bed = bed("escape");
    bed.netns = Some(common::netns());
    let host = Host::new();
    // A device in the image, as a hostile one would bring it.
    let node = bed.root().join("dev-in-image");
    let dev = rustix::fs::makedev(1, 5);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, mode, dev)
        .expect("mknod");
    let env = host.environment();
    for init in [false, true] {
        let c = ContainerSpec { init, env: env.clone(), ..bed.container(&[]) };
        let (exit, found) = escape(&bed, c);
        assert_eq!(exit.code, Some(0), "{found:?}");
        // The mini-init is the shim's code: closed. Without it PID 1 is the program itself.
        let own: &[(&str, &[&str])] = if init {
            &[("init_exe", &[EACCES]), ("init_mem", &[EACCES]), ("visible_pids", &["2"])]
        } else {
            &[("init_exe", &["/bin/escape"]), ("visible_pids", &["1"])]
        };
        check(&found, &format!("init {init}"), &[]);
        for (name, right) in own {
            let got = found.get(*name).map_or("(nothing)", String::as_str);
            assert!(right.contains(&got), "init {init}: {name}: {got}, not {right:?}");
        }
        strict(&found, Caps::STRICT);
        let (_, map) = bed.userns.as_ref().expect("user namespace");
        assert_eq!(found.get("uid_map"), Some(&format!("0,{},{}", map.outside, map.len)));
        if bed.node.is_some() {
            assert_eq!(found.get("cgroup").map(String::as_str), Some("0::/"));
        }
    }
}

#[test]
fn nothing_gets_out_without_a_user_namespace_either() {
    if !root_or_skip("escape_no_userns") {
        return;
    }
    let mut bed = bed("escapeno");
    bed.userns = None;
    bed.netns = Some(common::netns());
    std::fs::write(bed.root().join("dev-in-image"), "").expect("file");
    let root = Root::Mounted { path: bed.root(), idmap: RootIdmap::Done };
    let c = ContainerSpec { root, ..bed.container(&[]) };
    let host = Host::new();
    let (exit, found) = escape(&bed, ContainerSpec { env: host.environment(), ..c });
    assert_eq!(exit.code, Some(0), "{found:?}");
    check(&found, "without user namespace", &[("image_device", &["ok"])]);
    strict(&found, Caps::STRICT);
}

#[test]
fn capabilities_are_those_of_the_spec() {
    if !root_or_skip("caps") {
        return;
    }
    let bed = bed("caps");
    for caps in
        [Caps::NONE, Caps::COMPAT, Caps::named("NET_RAW").expect("known").with(Caps::STRICT)]
    {
        let (_, found) = escape(&bed, ContainerSpec { caps, ..bed.container(&[]) });
        strict(&found, caps);
    }
    // Who is not root has none, but the bounding set is the same.
    let (_, found) = escape(&bed, ContainerSpec { user: "web".into(), ..bed.container(&[]) });
    assert_eq!(found["CapEff"], "0000000000000000");
    assert_eq!(found["CapPrm"], "0000000000000000");
    assert_eq!(found["CapBnd"], format!("{:016x}", Caps::STRICT.0));
}

#[test]
fn a_setuid_program_stays_what_it_is() {
    if !root_or_skip("setuid") {
        return;
    }
    let bed = bed("setuid");
    use std::os::unix::fs::PermissionsExt as _;
    let path = bed.root().join("bin/escape");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    let c = ContainerSpec {
        argv: vec!["/bin/escape".into(), "euid".into()],
        user: "web".into(),
        ..bed.container(&[])
    };
    let (_, log) = bed.run(c);
    assert_eq!(log, "euid 33\n");
}

#[test]
fn an_exec_helper_is_never_open_to_the_container() {
    if !root_or_skip("exec_helper") {
        return;
    }
    let bed = bed("helper");
    // Without a user namespace the watcher is as strong as it can be.
    for userns in [true, false] {
        let mut bed_fds = bed.userns.as_ref();
        if !userns {
            bed_fds = None;
        }
        let c = ContainerSpec {
            argv: vec!["/bin/escape".into(), "watch".into()],
            root: Root::Mounted {
                path: bed.root(),
                idmap: if userns { RootIdmap::Here } else { RootIdmap::Done },
            },
            ..bed.container(&[])
        };
        let fds = initd::shim::PodFds {
            userns: bed_fds.map(|(fd, map)| (fd.as_fd(), *map)),
            ..Default::default()
        };
        let mut shim =
            initd::shim::Shim::spawn(std::path::Path::new(common::PROBE), &bed.pod(vec![c]), fds)
                .expect("spawn");
        shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
        let null = std::fs::File::open("/dev/null").expect("null");
        let mut ended = 0;
        'watching: loop {
            let spec = ExecSpec {
                container: "main".into(),
                argv: vec!["/bin/probe".into(), "sleep".into(), "5".into()],
                env: vec![],
                workdir: String::new(),
                user: String::new(),
            };
            shim.exec(&spec, [null.as_fd(); 3]).expect("exec");
            for e in shim
                .wait(LONG, |e| {
                    matches!(
                        e,
                        Event::ExecExited { .. } | Event::ExecFailed { .. } | Event::Stopped
                    )
                })
                .expect("events")
            {
                match e {
                    Event::ExecExited { .. } => ended += 1,
                    Event::Stopped => break 'watching,
                    // The watcher has just ended.
                    Event::ExecFailed { step, errno, text, .. } => {
                        println!("{step:?} {errno} {text}")
                    }
                    _ => {}
                }
            }
        }
        let log = bed.log("main");
        finish(shim);
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
        let last = log.lines().last().unwrap_or_default();
        let words: Vec<_> = last.split(' ').collect();
        assert_eq!(words.first(), Some(&"watched"), "{log}");
        // It did see them once they were programs of its own container.
        assert_ne!(words.get(1), Some(&"0"), "{ended} programs ran: {log}");
        assert_eq!(words.get(3), Some(&"0"), "{log}");
    }
}

/// Firecracker's rule: each rule of a filter is executed, by the real kernel, allowed and denied.
#[test]
fn each_rule_of_the_filter_is_what_the_kernel_does() {
    if !root_or_skip("rules") {
        return;
    }
    // `vfork` would return twice on one stack; `sync` waits for the disks of the whole machine; `seccomp` with zeroes is strict
    // mode, which a filter rules out; 335 and 336, `uretprobe` and
    // `uprobe`, answer by themselves before a filter is asked, with a signal or an errno unless a probe's code calls.
    let left_out = [libc::SYS_sync, libc::SYS_vfork, libc::SYS_seccomp, 335, 336];
    let table = initd::seccomp::table::profile(false);
    let above = [table.len(), 500, 1000, 65_535];
    let numbers = |wanted: Verdict| {
        let of_table = table.iter().enumerate().filter(move |(_, v)| **v == wanted);
        of_table.map(|(nr, _)| nr).filter(|nr| !left_out.contains(&(*nr as i64)))
    };
    let bed = bed("rules");
    let run = |seccomp: Seccomp, numbers: &[usize]| {
        let words = ["/bin/escape".to_owned(), "calls".to_owned()];
        let argv = words.into_iter().chain(numbers.iter().map(ToString::to_string)).collect();
        let (exit, log) = bed.run(ContainerSpec { argv, seccomp, ..bed.container(&[]) });
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
        assert_eq!((exit.code, log.lines().count()), (Some(0), numbers.len()), "{log}");
        log
    };
    for (verdict, errno) in [(Verdict::Eperm, EPERM), (Verdict::Enosys, ENOSYS)] {
        let mut list: Vec<usize> = numbers(verdict).collect();
        if verdict == Verdict::Enosys {
            list.extend(above);
        }
        let want: String = list.iter().map(|nr| format!("{nr} {errno}\n")).collect();
        assert_eq!(run(Seccomp::Default, &list), want);
        println!("{} numbers give {errno}", list.len());
    }
    // What is allowed ends as it does without a filter.
    let list: Vec<usize> = numbers(Verdict::Allow).collect();
    let (with, without) = (run(Seccomp::Default, &list), run(Seccomp::Unconfined, &list));
    assert_eq!(with, without);
    println!("{} numbers go through", list.len());
}

#[test]
fn who_may_chroot_does_not_leave_the_containers_root() {
    if !root_or_skip("chroot") {
        return;
    }
    let bed = bed("chroot");
    let c = ContainerSpec {
        caps: Caps::COMPAT,
        seccomp: Seccomp::Compat,
        argv: vec!["/bin/escape".into(), "chroot".into()],
        ..bed.container(&[])
    };
    let (_, log) = bed.run(c);
    assert_eq!(log, "chroot_in ok\nchroot_up ok\nchroot_top bin,dev,etc,proc,sys,tmp\n");
}
