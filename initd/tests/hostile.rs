//! Images, volumes and specs that try to make the launch itself do the work for them.
#![allow(missing_docs)]

mod common;

use std::os::fd::AsFd as _;

use common::{Bed, LONG, escape_bed as bed, finish, part, root_or_skip};
use initd::pod::{Bind, ContainerSpec, Root, RootIdmap, Tmpfs};
use initd::shim::{Event, ExecSpec};

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
        for _ in 0..part(40) {
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
        println!("{ran} of {} ran", part(40));
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

/// CVE-2025-31133 and CVE-2025-52565: an image that brings its own `/dev/null`, `/dev/console` and `/dev/pts`, so that what hides
/// `/proc` is bound from them. And CVE-2026-47766: one whose `/dev` itself leads elsewhere, by an absolute path.
#[test]
fn an_image_that_brings_devices_changes_no_mask() {
    if !root_or_skip("devices_of_the_image") {
        return;
    }
    let leads = |what: &str| {
        let bed = bed(&format!("dev{}", what.len()));
        let dev = bed.root().join("dev");
        std::fs::create_dir_all(&dev).expect("directory");
        for name in ["null", "console", "pts", "ptmx", "shm", "mqueue", "zero"] {
            std::os::unix::fs::symlink(what, dev.join(name)).expect("link");
        }
        bed
    };
    let targets =
        ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/fd/9", "../../x"];
    for target in targets {
        let bed = leads(target);
        let c = ContainerSpec { argv: vec!["/bin/escape".into()], ..bed.container(&[]) };
        let (exit, log) = bed.run(c);
        assert_eq!(exit.code, Some(0), "{target}: {log}");
        for line in [
            "read_keys 0 bytes",
            "read_timer_list 0 bytes",
            "list__sys_firmware 0 entries",
            "dev_console 2",
            "dev_null ok",
            "fd0 char 1:3",
        ] {
            assert!(log.lines().any(|l| l == line), "{target}: no {line:?} in {log}");
        }
        let closed = |name: &str| {
            log.lines().any(|l| ["2", "13", "30"].iter().any(|e| l == format!("{name} {e}")))
        };
        assert!(closed("core_pattern") && closed("sysrq"), "{target}: {log}");
        // What the image brought lies below the mount, as it was.
        let link = std::fs::read_link(bed.root().join("dev/null")).expect("link");
        assert_eq!(link.to_str(), Some(target));
    }
}

/// CVE-2024-21626: a working directory that is a descriptor of the launch, in any spelling, by the spec, a link of the image, or
/// `exec` into a running container.
#[test]
fn a_working_directory_by_descriptor_is_refused() {
    if !root_or_skip("workdir_by_descriptor") {
        return;
    }
    let bed = bed("workdir");
    for (n, target) in ["/proc/self/fd", "/proc/thread-self/fd", "/proc/1/cwd"].iter().enumerate() {
        std::os::unix::fs::symlink(target, bed.root().join(format!("l{n}"))).expect("link");
    }
    let every = |place: &str| (3..14).map(|fd| format!("{place}/{fd}")).collect::<Vec<_>>();
    let mut workdirs = [every("/proc/self/fd"), every("/l0")].concat();
    for place in ["/proc/self/fd", "/proc/thread-self/fd", "/proc/self/task/1/fd", "/l0", "/l1"] {
        workdirs
            .extend(["4/..", "5/../../..", "6/new", "7/a/b"].map(|end| format!("{place}/{end}")));
    }
    let step = workdirs.len() / part(workdirs.len());
    for workdir in workdirs.into_iter().step_by(step) {
        let c = ContainerSpec { workdir: workdir.clone(), ..bed.container(&["true"]) };
        let text = bed.failure(c);
        assert!(text.starts_with(&format!("working directory {workdir}")), "{text}");
    }
    for workdir in ["/proc/self/cwd", "/proc/1/root", "/l2"] {
        let text =
            bed.failure(ContainerSpec { workdir: workdir.into(), ..bed.container(&["true"]) });
        assert!(text.contains("Too many levels of symbolic links"), "{text}");
    }
    exec_by_descriptor(&bed);
}

fn exec_by_descriptor(bed: &Bed) {
    let mut shim = bed.spawn(&bed.pod(vec![bed.container(&["sleep", "600000"])]));
    shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
    let null = std::fs::File::open("/dev/null").expect("null");
    for fd in 3..20 {
        let spec = ExecSpec {
            container: "main".into(),
            argv: vec!["/bin/probe".into(), "env".into()],
            env: vec![],
            workdir: format!("/proc/self/fd/{fd}"),
            user: String::new(),
        };
        shim.exec(&spec, [null.as_fd(); 3]).expect("exec");
        let end = |e: &Event| matches!(e, Event::ExecExited { .. } | Event::ExecFailed { .. });
        let events = shim.wait(LONG, end).expect("events");
        let last = events.last();
        assert!(matches!(last, Some(Event::ExecFailed { .. })), "{fd}: {last:?}");
    }
    finish(shim);
}
