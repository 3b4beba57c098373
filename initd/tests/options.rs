//! What a pod's spec may ask for beyond the ordinary, and its streams.
#![allow(missing_docs)]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use common::{Bed, LONG, eventually, finish, root_or_skip, running};
use initd::grants::{DeviceGrant, Grants};
use initd::pod::{
    Bind, Check, ContainerSpec, Device, Kind, PodSpec, Probe, Root, Seccomp, Stdin, Volume,
    VolumeMount,
};
use initd::seccomp;
use initd::shim::{Condition, ContainerState, Event, PodFds, Shim};

fn until(shim: &mut Shim, what: &str, mut ok: impl FnMut(&Event) -> bool) -> Event {
    let mut events = shim.wait(LONG, |e| ok(e)).expect("events");
    match events.pop() {
        Some(last) if ok(&last) => last,
        last => panic!("no {what} in {events:#?} {last:#?}"),
    }
}

#[test]
fn containers_share_a_pid_namespace_when_the_pod_says_so() {
    if !root_or_skip("share_pid") {
        return;
    }
    let bed = Bed::new("pids");
    let stays = ContainerSpec {
        name: "stays".into(),
        kind: Kind::Sidecar,
        ..bed.container(&["sleep", "600000"])
    };
    for share_pid in [true, false] {
        let looks = bed.container(&["pids"]);
        let spec = PodSpec { share_pid, ..bed.pod(vec![stays.clone(), looks]) };
        let mut shim = bed.spawn(&spec);
        until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
        finish(shim);
        let log = bed.log("main");
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
        let want = if share_pid { "[1, 2, 3] of 3\n" } else { "[1] of 1\n" };
        assert_eq!(log, want);
    }
}

#[test]
fn containers_of_a_pod_share_network_ipc_and_host_name_and_nothing_else() {
    if !root_or_skip("share_namespaces") {
        return;
    }
    let bed = Bed::new("namespaces");
    let container =
        |name: &str| ContainerSpec { name: name.into(), ..bed.container(&["sleep", "600000"]) };
    let mut shim = bed.spawn(&bed.pod(vec![container("one"), container("two")]));
    let mut pids = Vec::new();
    while pids.len() < 2 {
        let started = |e: &Event| matches!(e, Event::Started { .. });
        for event in shim.wait(LONG, started).expect("events") {
            if let Event::Started { pid, .. } = event {
                pids.push(pid);
            }
        }
    }
    let shared = |kind: &str| {
        let of = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("process");
        // The network is that of who made the pod where none is given, as here.
        let ours = of(pids[0]) == of(std::process::id());
        assert_eq!(ours, kind == "net", "{kind}");
        of(pids[0]) == of(pids[1])
    };
    for (kind, together) in
        [("net", true), ("ipc", true), ("uts", true), ("pid", false), ("mnt", false)]
    {
        assert_eq!(shared(kind), together, "{kind}");
    }
    finish(shim);
}

#[test]
fn what_a_container_leaves_in_a_shared_pid_namespace_ends_with_it() {
    if !root_or_skip("share_pid_leftovers") {
        return;
    }
    let bed = Bed::new("left");
    if bed.node.is_none() {
        skip::because("share_pid_leftovers", "needs cgroup v2");
        return;
    }
    let stays = ContainerSpec {
        name: "stays".into(),
        kind: Kind::Sidecar,
        ..bed.container(&["sleep", "600000"])
    };
    let again =
        ContainerSpec { restart: initd::pod::Restart::Always, ..bed.container(&["daemon"]) };
    let mut shim = bed.spawn(&PodSpec { share_pid: true, ..bed.pod(vec![stays, again]) });
    until(&mut shim, "restart", |e| matches!(e, Event::Started { restarts: 2, .. }));
    eventually("at most the last one's daemon", || running("599996") <= 1);
    finish(shim);
    assert_eq!(running("599996"), 0);
}

#[test]
fn volumes_are_shared_bounded_and_end_with_the_pod() {
    if !root_or_skip("volumes") {
        return;
    }
    let bed = Bed::new("volumes");
    let volume = Volume { name: "data".into(), size_bytes: 1 << 20, mode: 0o1777 };
    let mount = |target: &str, read_only| VolumeMount {
        volume: "data".into(),
        target: target.into(),
        read_only,
    };
    let writes = ContainerSpec {
        name: "writes".into(),
        kind: Kind::Init,
        volumes: vec![mount("/out", false)],
        user: "web".into(),
        ..bed.container(&["sh", "write /out/hello", "fill /out/big"])
    };
    let reads = ContainerSpec {
        volumes: vec![mount("/in", true)],
        ..bed.container(&["sh", "ls /in", "write /in/x", "cat /in/hello"])
    };
    let before = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
    let spec = PodSpec { volumes: vec![volume], ..bed.pod(vec![writes, reads]) };
    for _ in 0..2 {
        let mut shim = bed.spawn(&spec);
        until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
        let now = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts").lines().count();
        assert_eq!(now, before, "a mount on the host");
        finish(shim);
        assert_eq!(bed.log("main"), "big hello\nwrite /in/x: 30\nx\n");
        assert_eq!(bed.log("writes"), "write /out/hello: ok\nfull after 1044480: 28\n");
        for log in ["main", "writes"] {
            let path = bed.pod_dir().join(format!("logs/{log}.log"));
            std::fs::remove_file(path).expect("log");
        }
    }
}

#[test]
fn a_device_is_there_when_granted_and_no_other() {
    if !root_or_skip("devices") {
        return;
    }
    let bed = Bed::new("devices");
    let grants = Grants {
        devices: std::collections::BTreeMap::from([(
            "log".into(),
            vec![DeviceGrant { path: "/dev/kmsg".into(), read_only: false }],
        )]),
        ..Grants::default()
    };
    let words = ["open", "/dev/kmsg", "/dev/null", "/dev/full", "/dev/ptmx"];
    let (_, log) = bed.run(bed.container(&words));
    assert_eq!(log, "/dev/kmsg 2 2\n/dev/null ok ok\n/dev/full ok ok\n/dev/ptmx ok ok\n");
    std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
    let devices = grants.devices("log").expect("granted");
    let (_, log) = bed.run(ContainerSpec { devices, ..bed.container(&words) });
    // Reading it is a matter of dmesg_restrict.
    let line = log.lines().next().unwrap_or_default();
    assert!(line == "/dev/kmsg ok ok" || line == "/dev/kmsg 1 ok", "{log}");
    assert!(log.contains("/dev/null ok ok\n"), "{log}");
    // What is no device, or not there, says so.
    for (source, want) in [("/etc/passwd", "No such device"), ("/dev/nope", "No such file")] {
        let device = Device { name: "x".into(), source: source.into(), read_only: false };
        let c = ContainerSpec { devices: vec![device], ..bed.container(&words) };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        let failed = until(&mut shim, "failure", |e| matches!(e, Event::Failed { .. }));
        assert!(matches!(&failed, Event::Failed { text, .. } if text.contains(want)), "{failed:?}");
        finish(shim);
    }
}

/// The filter, apart from the absence of nodes: nodes are there, and only some may be opened.
#[test]
fn the_filter_of_a_cgroup_refuses_nodes_that_are_there() {
    if !root_or_skip("device_filter") {
        return;
    }
    let bed = Bed::new("filter");
    let Some(node) = &bed.node else {
        skip::because("device_filter", "needs cgroup v2");
        return;
    };
    let kmsg =
        |name: &str, read_only| Device { name: name.into(), source: "/dev/kmsg".into(), read_only };
    let c = ContainerSpec {
        devices: vec![kmsg("reads", true)],
        ..bed.container(&["open", "/dev/reads", "/dev/null"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    let mut refused = None;
    until(&mut shim, "stop", |e| {
        if let Event::Condition(Condition::NoDeviceFilter { errno, .. }) = e {
            refused = Some(*errno);
        }
        matches!(e, Event::Stopped)
    });
    finish(shim);
    if let Some(errno) = refused {
        // Without filters a device for reading only is not given at all.
        skip::because("device_filter", format_args!("the kernel takes none ({errno})"));
        return;
    }
    let log = bed.log("main");
    let lines: Vec<&str> = log.lines().collect();
    assert!(
        matches!(lines[..], ["/dev/reads ok 1" | "/dev/reads 1 1", "/dev/null ok ok"]),
        "{log}"
    );
    // By hand: a process of the host, with every right, in a cgroup without any device.
    let dir = node.pod("by-hand");
    std::fs::create_dir_all(&dir).expect("cgroup");
    initd::cgroup::devices::restrict(&dir, &[]).expect("filter");
    let script =
        format!("echo $$ > {}/cgroup.procs; : < /dev/zero || : < /etc/passwd", dir.display());
    let out = std::process::Command::new("sh").args(["-c", &script]).output().expect("sh");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Operation not permitted"), "{out:?}");
    eventually("the cgroup's end", || std::fs::remove_dir(&dir).is_ok());
}

#[test]
fn a_filter_of_the_nodes_owner_is_what_counts() {
    if !root_or_skip("own_seccomp") {
        return;
    }
    let bed = Bed::new("ownfilter");
    let run = |text: &str, nr: i64| {
        let program = seccomp::own::compile(text).expect("a profile");
        let seccomp = Seccomp::Own { name: "own".into(), program };
        let c = ContainerSpec { seccomp, ..bed.container(&["call", &nr.to_string()]) };
        let (_, log) = bed.run(c);
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
        log
    };
    assert_eq!(run("deny getpid", libc::SYS_getpid), "1\n");
    assert_eq!(run("absent getpid", libc::SYS_getpid), "38\n");
    assert_eq!(run("base default", libc::SYS_getpid), "ok\n");
    // Allowed by the filter: the kernel itself says what it thinks of the arguments.
    assert_eq!(run("base default", libc::SYS_keyctl), "1\n");
    assert_ne!(run("allow keyctl", libc::SYS_keyctl), "1\n");
}

#[test]
fn a_program_of_the_host_runs_in_a_root_of_what_was_granted() {
    if !root_or_skip("host_workload") {
        return;
    }
    let bed = Bed::new("host");
    let paths = ["/usr/bin", "/usr/lib", "/lib", "/lib64"].map(PathBuf::from);
    let paths: Vec<PathBuf> = paths.into_iter().filter(|p| p.exists()).collect();
    let grants = Grants {
        host_paths: std::collections::BTreeMap::from([("tools".into(), paths)]),
        ..Grants::default()
    };
    let script = "cat /proc/1/status; ls /; touch /usr/bin/x; touch /own; ls /etc || echo none";
    let argv = ["/usr/bin/sh", "-c", script].map(str::to_owned);
    let host = grants.host_workload("main", ["tools"], &argv).expect("granted");
    let c = ContainerSpec { restart: initd::pod::Restart::Never, init: false, ..host };
    assert!(matches!(c.root, Root::Fresh { .. }));
    let (exit, log) = bed.run(c);
    assert_eq!(exit.code, Some(0), "{log}");
    assert!(log.contains("NoNewPrivs:\t1") && log.contains("Seccomp:\t2"), "{log}");
    assert!(log.contains("CapBnd:\t00000000000004fb"), "{log}");
    assert!(log.contains("Read-only file system"), "{log}");
    // Which of the two streams is read first is nobody's promise.
    assert!(log.contains("\nnone\n"), "{log}");
    assert!(!log.contains("\nhome\n") && !log.contains("\nroot\n"), "{log}");
    // Not granted, not there.
    assert!(grants.host_workload("main", ["others"], &argv).is_err());
    // A pod that says nothing of its network and gets none is not run in the node's.
    let spec = PodSpec { host_network: false, ..bed.pod(vec![bed.container(&["true"])]) };
    let e = Shim::spawn(std::path::Path::new(common::PROBE), &spec, PodFds::default());
    assert!(e.expect_err("refused").to_string().contains("host_network"));
}

/// Reads until the text has come.
fn read_until(fd: &mut File, text: &str) -> String {
    let mut got = String::new();
    let mut buffer = [0u8; 256];
    while !got.contains(text) {
        match fd.read(&mut buffer) {
            Ok(n @ 1..) => got += &String::from_utf8_lossy(&buffer[..n]),
            other => panic!("{other:?} after {got:?}"),
        }
    }
    got
}

#[test]
fn standard_input_is_written_by_who_attaches() {
    if !root_or_skip("attach") {
        return;
    }
    let bed = Bed::new("attach");
    let c = ContainerSpec { stdin: Stdin::Pipe, ..bed.container(&["lines"]) };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    let attach = |shim: &mut Shim| {
        shim.attach_to("main").expect("asked");
        match until(shim, "attached", |e| matches!(e, Event::Attached { .. })) {
            Event::Attached { input, output, errors: Some(_), terminal: false, .. } => {
                (File::from(input.expect("input")), File::from(output))
            }
            other => panic!("{other:?}"),
        }
    };
    let (mut input, mut output) = attach(&mut shim);
    input.write_all(b"one\n").expect("write");
    assert_eq!(read_until(&mut output, "\n"), "got one\n");
    // Who goes away takes nothing with it.
    drop((input, output));
    let mut second = Shim::attach(&bed.pod_dir()).expect("a second client");
    let (mut input, mut output) = attach(&mut second);
    input.write_all(b"two\n").expect("write");
    assert_eq!(read_until(&mut output, "\n"), "got two\n");
    shim.close_stdin("main").expect("asked");
    shim.request_status().expect("asked");
    until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
    drop(input);
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "end\n");
    until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
    assert_eq!(bed.log("main"), "got one\ngot two\nend\n");
    shim.attach_to("main").expect("asked");
    let refused = until(&mut shim, "refusal", |e| matches!(e, Event::AttachFailed { .. }));
    assert!(matches!(refused, Event::AttachFailed { errno: libc::ESRCH, .. }), "{refused:?}");
    finish(shim);
}

#[test]
fn a_program_on_a_terminal_of_its_own_can_be_attached_to() {
    if !root_or_skip("tty") {
        return;
    }
    let bed = Bed::new("tty");
    let c = ContainerSpec {
        stdin: Stdin::Terminal,
        init: true,
        user: "web".into(),
        ..bed.container(&["terminal"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    shim.attach_to("main").expect("asked");
    let Event::Attached { input: Some(input), output, errors: None, terminal: true, .. } =
        until(&mut shim, "attached", |e| matches!(e, Event::Attached { .. }))
    else {
        panic!("not attached")
    };
    let (mut input, mut output) = (File::from(input), File::from(output));
    let size = rustix::termios::Winsize { ws_row: 44, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&input, size).expect("resize");
    input.write_all(b"go\n").expect("write");
    let text = read_until(&mut output, "name /dev/pts/0");
    assert!(text.contains("44 rows 99 columns"), "{text}");
    assert!(text.contains("/dev/tty ok"), "{text}");
    until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
    finish(shim);
    let log = bed.log("main");
    assert!(log.contains("44 rows 99 columns"), "{log}");
}

#[test]
fn a_client_that_reads_slowly_holds_nobody_up() {
    if !root_or_skip("slow_attach") {
        return;
    }
    let bed = Bed::new("slowattach");
    let c = ContainerSpec { stdin: Stdin::Pipe, ..bed.container(&["sh", "lines", "flood 3000"]) };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    shim.attach_to("main").expect("asked");
    let attached = until(&mut shim, "attached", |e| matches!(e, Event::Attached { .. }));
    let Event::Attached { input: Some(input), output, .. } = attached else { panic!() };
    File::from(input).write_all(b"leave\n").expect("write");
    // 600 kB, which no pipe holds, and nobody reads.
    until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
    assert_eq!(bed.log("main").lines().count(), 3002);
    drop(output);
    finish(shim);
}

#[test]
fn a_port_of_the_pod_is_reached_through_the_shim() {
    if !root_or_skip("forward") {
        return;
    }
    let mut bed = Bed::new("forward");
    bed.netns = Some(common::netns());
    for address in ["127.0.0.1:7007", "[::1]:7007"] {
        let mut shim = bed.spawn(&bed.pod(vec![bed.container(&["echo-server", address])]));
        until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
        eventually("the server", || bed.log("main") == "listening\n");
        let connect = |shim: &mut Shim, port| {
            let id = shim.connect(port).expect("asked");
            until(shim, "answer", |e| match e {
                Event::Connected { connect, .. } | Event::ConnectFailed { connect, .. } => {
                    *connect == id
                }
                _ => false,
            })
        };
        let Event::Connected { socket, .. } = connect(&mut shim, 7007) else { panic!("{address}") };
        let mut stream = std::net::TcpStream::from(socket);
        stream.write_all(b"through").expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
        let refused = connect(&mut shim, 8);
        assert!(
            matches!(refused, Event::ConnectFailed { errno: libc::ECONNREFUSED, .. }),
            "{refused:?}"
        );
        finish(shim);
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
    }
}

#[test]
fn readiness_by_grpc() {
    if !root_or_skip("grpc") {
        return;
    }
    let mut bed = Bed::new("grpc");
    bed.netns = Some(common::netns());
    let status = bed.root().join("status");
    let probe = |service: &str| Probe {
        every_ms: 20,
        failures: 2,
        ..Probe::new(Check::Grpc { port: 9000, service: service.into() })
    };
    let c = ContainerSpec {
        ready: Some(probe("there")),
        ..bed.container(&["grpc", "9000", "/status"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c.clone()]));
    until(&mut shim, "ready", |e| matches!(e, Event::Ready { ready: true, .. }));
    std::fs::write(&status, "2").expect("status");
    until(&mut shim, "not ready", |e| matches!(e, Event::Ready { ready: false, .. }));
    std::fs::write(&status, "1").expect("status");
    until(&mut shim, "ready", |e| matches!(e, Event::Ready { ready: true, .. }));
    finish(shim);
    // A service that the server does not know keeps it unready, and as liveness kills it.
    let c = ContainerSpec { ready: None, live: Some(probe("")), init: true, ..c };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "unhealthy", |e| matches!(e, Event::Unhealthy { .. }));
    finish(shim);
}

/// On most machines everything that is mounted is shared with every namespace made later.
#[test]
fn what_a_container_mounts_does_not_show_where_mounts_are_shared() {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    if !root_or_skip("shared_mounts") {
        return;
    }
    // SAFETY: this thread's view of files becomes its own; nothing else is shared.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .expect("unshare");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).expect("private");
    let bed = Bed::new("shared");
    let source = bed.dir.join("source");
    std::fs::create_dir_all(source.join("below")).expect("source");
    for dir in [bed.root(), source.clone()] {
        mount_bind(&dir, &dir).expect("bind");
        mount_change(&dir, MountPropagationFlags::SHARED).expect("shared");
    }
    let mounts = || {
        let text = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo");
        let of = bed.dir.to_string_lossy().into_owned();
        text.lines().filter(|l| l.contains(&of)).count()
    };
    assert_eq!(mounts(), 2);
    let (source_is, target) = (source.clone(), "/data".to_owned());
    let bind = Bind { source: source_is, target, read_only: false, idmap: false };
    let c = ContainerSpec { binds: vec![bind], ..bed.container(&["sleep", "600000"]) };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
    assert_eq!(mounts(), 2);
    // And the other way round: what the host mounts later is not the container's.
    mount_bind(&source, source.join("below")).expect("bind");
    shim.request_status().expect("status");
    let events = shim.wait(LONG, |e| matches!(e, Event::Status(_))).expect("status");
    let Some(Event::Status(status)) = events.last() else { panic!("{events:?}") };
    let ContainerState::Running { pid, .. } = status.containers[0].state else { panic!() };
    let inside = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mountinfo");
    assert!(inside.contains(" /data ") && !inside.contains("/data/below"), "{inside}");
    // Nothing but the container's root is at or above it.
    assert_eq!(inside.lines().filter(|l| l.split(' ').nth(4) == Some("/")).count(), 1, "{inside}");
    finish(shim);
    for dir in [source.join("below"), source, bed.root()] {
        let _ = rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH);
    }
}
