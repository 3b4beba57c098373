//! The ways out of a container, each refused with the errno that says where.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;

use common::{Bed, LONG, finish, root_or_skip};
use initd::pod::{Bind, Caps, ContainerSpec, Root, RootIdmap, Tmpfs};
use initd::shim::{Event, ExecSpec, Exit};

const EPERM: &str = "1";
const ENOENT: &str = "2";
const ESRCH: &str = "3";
const EACCES: &str = "13";
const ETXTBSY: &str = "26";
const EROFS: &str = "30";
const ENOSYS: &str = "38";
const ECONNREFUSED: &str = "111";

fn bed(name: &str) -> Bed {
    let bed = Bed::new(name);
    std::fs::copy(env!("CARGO_BIN_EXE_initd-escape"), bed.root().join("bin/escape")).expect("copy");
    bed
}

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
    ("open_fds", &["[0, 1, 2, 3]"]),
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
    let name = format!("quelea-escape-{}", std::process::id());
    let addr = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("name");
    let _listener = std::os::unix::net::UnixListener::bind_addr(&addr).expect("listen");
    // A device in the image, as a hostile one would bring it.
    let node = bed.root().join("dev-in-image");
    let dev = rustix::fs::makedev(1, 5);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, mode, dev)
        .expect("mknod");
    let env = vec![
        ("ABSTRACT".to_owned(), name),
        ("HOST_PID".to_owned(), std::process::id().to_string()),
    ];
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
    let env = vec![
        ("ABSTRACT".to_owned(), "nobody-listens".to_owned()),
        ("HOST_PID".to_owned(), std::process::id().to_string()),
    ];
    let (exit, found) = escape(&bed, ContainerSpec { env, ..c });
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

#[test]
fn an_image_with_links_at_mount_points_is_refused_or_stays_inside() {
    if !root_or_skip("links") {
        return;
    }
    let outside = std::env::temp_dir().join(format!("quelea-outside-{}", std::process::id()));
    std::fs::create_dir_all(&outside).expect("directory");
    for name in ["dev", "proc", "sys"] {
        let bed = bed(&format!("link{name}"));
        std::os::unix::fs::symlink(&outside, bed.root().join(name)).expect("link");
        let mut shim = bed.spawn(&bed.pod(vec![bed.container(&["true"])]));
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        assert!(events.iter().any(|e| matches!(e, Event::Failed { .. })), "{name}: {events:?}");
        finish(shim);
        assert_eq!(
            std::fs::read_dir(&outside).expect("list").count(),
            0,
            "{name} reached the host"
        );
    }
    // A link in the way of a volume leads to a place inside.
    let bed = bed("linkvol");
    std::fs::create_dir_all(bed.dir.join("volume")).expect("volume");
    std::fs::write(bed.dir.join("volume/hello"), "from the volume").expect("file");
    std::os::unix::fs::symlink(&outside, bed.root().join("data")).expect("link");
    let c = ContainerSpec {
        binds: vec![Bind {
            source: bed.dir.join("volume"),
            target: "/data/v".into(),
            read_only: true,
            idmap: true,
        }],
        ..bed.container(&["cat", "/data/v/hello"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
    finish(shim);
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 0, "a volume reached the host");
    std::fs::remove_dir_all(&outside).expect("clean up");
}

#[test]
fn mounts_of_the_spec() {
    if !root_or_skip("mounts") {
        return;
    }
    let bed = bed("mounts");
    std::fs::create_dir_all(bed.dir.join("volume")).expect("volume");
    std::fs::write(bed.dir.join("volume/hello"), "volume\n").expect("file");
    std::fs::write(bed.dir.join("hosts"), "hosts\n").expect("file");
    let bind = |source: &str, target: &str, read_only| Bind {
        source: bed.dir.join(source),
        target: target.into(),
        read_only,
        idmap: true,
    };
    let c = ContainerSpec {
        read_only: true,
        tmpfs: vec![Tmpfs { target: "/run".into(), size_bytes: 1 << 20, mode: 0o755 }],
        binds: vec![
            bind("hosts", "/etc/hosts", true),
            bind("volume", "/run/quelea", true),
            bind("volume", "/srv/rw", false),
        ],
        ..bed.container(&[
            "sh",
            "cat /etc/hosts",
            "cat /run/quelea/hello",
            "write /run/new",
            "write /etc/hosts",
            "write /run/quelea/x",
            "write /root-is-read-only",
            "write /srv/rw/from-inside",
            "ls /run",
        ])
    };
    let (_, log) = bed.run(c);
    assert_eq!(
        log,
        "hosts\nvolume\nwrite /run/new: ok\nwrite /etc/hosts: 30\nwrite /run/quelea/x: 30\n\
         write /root-is-read-only: 30\nwrite /srv/rw/from-inside: ok\nnew quelea\n"
    );
    // What the pod's root wrote to a mapped volume belongs to the host's root.
    use std::os::unix::fs::MetadataExt as _;
    let meta = std::fs::metadata(bed.dir.join("volume/from-inside")).expect("written");
    assert_eq!((meta.uid(), meta.gid()), (0, 0));
    // The image's own file was made for the bind and nothing was written to it.
    assert_eq!(std::fs::metadata(bed.root().join("etc/hosts")).expect("mount point").len(), 0);
}

#[test]
fn a_mount_point_that_changes_under_the_launch_stays_inside() {
    if !root_or_skip("swap") {
        return;
    }
    let bed = bed("swap");
    let outside = bed.dir.join("outside");
    std::fs::create_dir_all(&outside).expect("directory");
    std::fs::create_dir_all(bed.dir.join("volume")).expect("volume");
    let (dir, link) = (bed.root().join("data"), bed.root().join("data.link"));
    std::fs::create_dir_all(&dir).expect("directory");
    std::os::unix::fs::symlink(&outside, &link).expect("link");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let _ =
                    rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, flags);
            }
        });
        let mut ran = 0;
        for _ in 0..40 {
            let c = ContainerSpec {
                binds: vec![Bind {
                    source: bed.dir.join("volume"),
                    target: "/data/v".into(),
                    read_only: false,
                    idmap: true,
                }],
                ..bed.container(&["sh", "write /data/v/x"])
            };
            let mut shim = bed.spawn(&bed.pod(vec![c]));
            let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
            ran += usize::from(events.iter().any(|e| matches!(e, Event::Started { .. })));
            finish(shim);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        println!("{ran} of 40 ran");
    });
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 0, "a launch reached the host");
}

/// CVE-2019-5736: an image that makes the runtime's helper execute itself, to be written to through `/proc`.
#[test]
fn the_runtimes_own_binary_stays_as_it_is() {
    if !root_or_skip("own_binary") {
        return;
    }
    let bed = bed("ownbinary");
    use std::os::unix::fs::PermissionsExt as _;
    let before = std::fs::read(common::PROBE).expect("probe");
    let script = bed.root().join("bin/script");
    std::fs::write(&script, "#!/proc/self/exe\n").expect("script");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    std::os::unix::fs::symlink("/proc/self/exe", bed.root().join("bin/link")).expect("link");
    let mut tried = 0;
    for userns in [true, false] {
        for init in [false, true] {
            for program in
                ["/bin/script", "/bin/link", "/bin/escape", "/proc/self/exe", "/proc/1/exe"]
            {
                let c = ContainerSpec {
                    root: Root::Mounted {
                        path: bed.root(),
                        idmap: if userns { RootIdmap::Here } else { RootIdmap::Done },
                    },
                    init,
                    argv: vec![program.into(), "overwrite".into()],
                    ..bed.container(&[])
                };
                let fds = initd::shim::PodFds {
                    userns: bed.userns.as_ref().filter(|_| userns).map(|(fd, m)| (fd.as_fd(), *m)),
                    ..Default::default()
                };
                let spec = bed.pod(vec![c]);
                let mut shim =
                    initd::shim::Shim::spawn(std::path::Path::new(common::PROBE), &spec, fds)
                        .expect("spawn");
                shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
                finish(shim);
                tried += 1;
                let log = bed.log("main");
                assert!(!log.contains("overwrite ok"), "{userns} {init} {program}: {log}");
            }
        }
    }
    assert_eq!(tried, 20);
    assert!(std::fs::read(common::PROBE).expect("probe") == before, "the binary was changed");
}

/// CVE-2025-52881: an image that leads what the runtime writes to `/proc` somewhere else.
#[test]
fn what_the_launch_writes_goes_nowhere_else() {
    if !root_or_skip("redirected") {
        return;
    }
    let bed = bed("redirected");
    let pattern = std::fs::read("/proc/sys/kernel/core_pattern").expect("core_pattern");
    std::os::unix::fs::symlink("/proc", bed.root().join("x")).expect("link");
    for target in ["/x/self", "/x/sys/kernel", "/x/sys"] {
        let c = ContainerSpec {
            tmpfs: vec![Tmpfs { target: target.into(), size_bytes: 1 << 20, mode: 0o755 }],
            oom_score_adj: 77,
            ..bed.container(&["cat", "/proc/thread-self/oom_score_adj"])
        };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        finish(shim);
        // It ran with what its spec says, or not at all.
        let log = bed.log("main");
        let name = bed.pod_dir().join("logs/main.log");
        assert!(log == "77\n" || log.is_empty() || log.contains("No such file"), "{target}: {log}");
        let _ = std::fs::remove_file(name);
    }
    assert_eq!(std::fs::read("/proc/sys/kernel/core_pattern").expect("core_pattern"), pattern);
    // And the spec cannot ask for it.
    let t = Tmpfs { target: "/proc/self".into(), size_bytes: 1, mode: 0o755 };
    let c = ContainerSpec { tmpfs: vec![t], ..bed.container(&["true"]) };
    assert!(bed.pod(vec![c]).check().is_err());
}
