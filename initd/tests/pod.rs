//! Pods that really run.
#![allow(missing_docs)]

mod common;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use common::{Bed, LONG, eventually, finish, root_or_skip};
use initd::pod::{
    Backoff, Check, ContainerSpec, Kind, LogPolicy, PodSpec, Probe, Restart, Rlimit, Stop,
};
use initd::shim::{ContainerState, Event, ExecSpec, PodFds, PodPhase, Shim, Zygote};

fn until(shim: &mut Shim, what: &str, ok: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let mut ok = ok;
    let mut hit = false;
    let events = shim
        .wait(LONG, |e| {
            hit |= ok(e);
            hit
        })
        .expect("events");
    assert!(hit, "no {what} in {events:#?}");
    events
}

fn exec(container: &str, words: &[&str]) -> ExecSpec {
    let argv = std::iter::once("/bin/probe").chain(words.iter().copied());
    ExecSpec {
        container: container.into(),
        argv: argv.map(str::to_owned).collect(),
        env: vec![],
        workdir: String::new(),
        user: String::new(),
    }
}

fn alive(pid: u32) -> bool {
    // Whoever is PID 1 here may take its time to reap.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_program_runs_logs_and_ends() {
    if !root_or_skip("a_program_runs_logs_and_ends") {
        return;
    }
    let bed = Bed::new("runs");
    let (exit, log) = bed.run(bed.container(&["echo", "hello", "pod"]));
    assert_eq!(exit.code, Some(0));
    assert_eq!(log, "hello pod\n");
    assert!(!bed.pod_dir().join("shim.sock").exists());
    let status = initd::shim::last_status(&bed.pod_dir()).expect("status");
    assert_eq!(status.phase, PodPhase::Stopped);
    assert_eq!(status.containers[0].last_exit, Some(exit));
    if let Some(node) = &bed.node {
        // What its shim was in waits for who started it.
        assert!(!node.pod("pod-1").exists());
    }
}

#[test]
fn exit_codes_and_signals_come_through_with_and_without_an_init() {
    if !root_or_skip("exit_codes_and_signals") {
        return;
    }
    let bed = Bed::new("codes");
    for init in [false, true] {
        let (exit, _) = bed.run(ContainerSpec { init, ..bed.container(&["exit", "42"]) });
        assert_eq!((exit.code, exit.signal), (Some(42), None), "init {init}");
    }
    // A program that is no PID 1 can be killed by its own signal; the mini-init says by which.
    let (exit, _) = bed.run(ContainerSpec { init: true, ..bed.container(&["raise", "9"]) });
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
}

#[test]
fn environment_working_directory_user_and_host_name() {
    if !root_or_skip("environment") {
        return;
    }
    let bed = Bed::new("env");
    let c = ContainerSpec {
        env: vec![("A".into(), "b=c d".into()), ("PATH".into(), "/nope:/bin".into())],
        workdir: "/srv/deep/er".into(),
        user: "web".into(),
        argv: vec!["probe".into(), "env".into()],
        ..bed.container(&[])
    };
    let (exit, log) = bed.run(c);
    assert_eq!(exit.code, Some(0), "{log}");
    let mut lines: Vec<_> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=b=c d", "HOME=/www", "PATH=/nope:/bin", "cwd=/srv/deep/er"]);

    let c = ContainerSpec {
        user: "web".into(),
        ..bed.container(&["cat", "/proc/self/status", "/proc/sys/kernel/hostname"])
    };
    let (_, log) = bed.run(c);
    assert!(log.contains("Uid:\t33\t33\t33\t33"), "{log}");
    assert!(log.contains("Gid:\t34\t34\t34\t34"), "{log}");
    assert!(log.contains("Groups:\t29 \n"), "{log}");
    assert!(log.ends_with("web-0\n"), "{log}");
}

#[test]
fn what_cannot_run_says_why() {
    if !root_or_skip("what_cannot_run_says_why") {
        return;
    }
    let bed = Bed::new("why");
    let root = bed.root();
    std::fs::write(root.join("bin/text"), "no program\n").expect("file");
    std::fs::write(root.join("bin/script"), "#!/bin/zsh -e\n").expect("file");
    let mut elf = std::fs::read(common::PROBE).expect("probe");
    elf.truncate(4096);
    elf[18] = 183; // aarch64
    std::fs::write(root.join("bin/arm"), elf).expect("file");
    std::fs::write(root.join("bin/plain"), "x").expect("file");
    for f in ["text", "script", "arm"] {
        set_mode(&root.join("bin").join(f), 0o755);
    }
    std::os::unix::fs::symlink("/proc/self/fd/9", root.join("link")).expect("link");
    let cases: [(&str, &[&str], &str, &str, &str); 9] = [
        ("absent", &["/bin/absent"], "", "", "no program \"/bin/absent\" in the image"),
        ("no path", &["absent"], "", "", "no program \"absent\" in PATH of the image"),
        ("mode", &["/bin/plain"], "", "", "not executable"),
        ("text", &["/bin/text"], "", "", "neither a program"),
        ("script", &["/bin/script"], "", "", "interpreter /bin/zsh is not in the image"),
        ("arch", &["/bin/arm"], "", "", "built for aarch64"),
        (
            "user",
            &["/bin/probe"],
            "nobody",
            "",
            "user \"nobody\" is not in the image's /etc/passwd",
        ),
        ("workdir file", &["/bin/probe"], "", "/bin/probe", "working directory /bin/probe"),
        ("workdir out", &["/bin/probe"], "", "/link", "working directory /link"),
    ];
    let cases = cases.iter().flat_map(|c| [(c, false), (c, true)]);
    for (&(name, argv, user, workdir, want), init) in cases {
        let c = ContainerSpec {
            init,
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            user: user.into(),
            workdir: workdir.into(),
            ..bed.container(&[])
        };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        let events = until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
        let text = events.iter().find_map(|e| match e {
            Event::Failed { text, .. } => Some(text.clone()),
            _ => None,
        });
        let text = text.unwrap_or_else(|| panic!("{name}: {events:#?}"));
        assert!(text.contains(want), "{name}: {text}");
        finish(shim);
    }
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
}

#[test]
fn restarts_with_backoff_and_counts() {
    if !root_or_skip("restarts") {
        return;
    }
    let bed = Bed::new("restarts");
    let c = ContainerSpec {
        restart: Restart::OnFailure,
        backoff: Backoff { first_ms: 10, max_ms: 20, reset_ms: 60_000 },
        ..bed.container(&["exit", "3"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "third start", |e| matches!(e, Event::Started { restarts: 3, .. }));
    shim.request_status().expect("status");
    until(&mut shim, "status", |e| matches!(e, Event::Status(s) if s.containers[0].restarts >= 3));
    finish(shim);
}

#[test]
fn stop_is_heard_and_who_does_not_listen_is_killed() {
    if !root_or_skip("stop") {
        return;
    }
    let bed = Bed::new("stop");
    // Not an init, no handler: as PID 1 it does not feel SIGTERM. With the mini-init it does.
    for (init, graceful) in [(true, true), (false, false)] {
        let c = ContainerSpec {
            init,
            stop: Stop { signal: libc::SIGTERM, grace_ms: 300 },
            restart: Restart::Always,
            ..bed.container(&["sleep", "600000"])
        };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
        shim.stop(None).expect("stop");
        let events = until(&mut shim, "stopped", |e| matches!(e, Event::Stopped));
        let signal = events.iter().find_map(|e| match e {
            Event::Exited { exit, restart_in_ms: None, .. } => exit.signal,
            _ => None,
        });
        assert_eq!(signal, Some(if graceful { libc::SIGTERM } else { libc::SIGKILL }));
        finish(shim);
    }
}

#[test]
fn a_mini_init_reaps_orphans() {
    if !root_or_skip("mini_init") {
        return;
    }
    let bed = Bed::new("reaps");
    let (_, with) = bed.run(ContainerSpec { init: true, ..bed.container(&["forks"]) });
    assert_eq!(with, "zombies=0\n");
}

#[test]
fn exec_runs_inside_with_its_own_stdio_and_code() {
    if !root_or_skip("exec") {
        return;
    }
    let bed = Bed::new("exec");
    let c = ContainerSpec {
        env: vec![("A".into(), "1".into()), ("B".into(), "2".into())],
        user: "web".into(),
        ..bed.container(&["sleep", "600000"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));

    let (mut out_read, out_write) = std::io::pipe().expect("pipe");
    let null = std::fs::File::open("/dev/null").expect("null");
    let (input, mut feed) = std::io::pipe().expect("pipe");
    let id = shim
        .exec(&exec("main", &["upper"]), [input.as_fd(), out_write.as_fd(), null.as_fd()])
        .expect("exec");
    drop((input, out_write));
    feed.write_all(b"shout").expect("feed");
    drop(feed);
    let events = until(&mut shim, "exec end", |e| matches!(e, Event::ExecExited { .. }));
    assert!(
        matches!(events.last(), Some(Event::ExecExited { exec, exit }) if *exec == id && exit.code == Some(0))
    );
    let mut text = String::new();
    out_read.read_to_string(&mut text).expect("output");
    assert_eq!(text, "SHOUT");

    // Codes, environment, user, and who may be seen.
    let run = |shim: &mut Shim, spec: &ExecSpec| {
        let (mut out_read, out_write) = std::io::pipe().expect("pipe");
        shim.exec(spec, [null.as_fd(), out_write.as_fd(), out_write.as_fd()]).expect("exec");
        drop(out_write);
        let end = |e: &Event| matches!(e, Event::ExecExited { .. } | Event::ExecFailed { .. });
        let last = until(shim, "end", end).pop();
        let mut text = String::new();
        out_read.read_to_string(&mut text).expect("output");
        (last, text)
    };
    let (last, _) = run(&mut shim, &exec("main", &["exit", "7"]));
    assert!(
        matches!(last, Some(Event::ExecExited { exit, .. }) if exit.code == Some(7)),
        "{last:?}"
    );
    let mut spec = exec("main", &["env"]);
    spec.env = vec![("B".into(), "3".into())];
    spec.workdir = "/etc".into();
    let (_, text) = run(&mut shim, &spec);
    assert!(
        text.contains("A=1\n") && text.contains("B=3\n") && text.contains("cwd=/etc\n"),
        "{text}"
    );
    let (_, text) = run(&mut shim, &exec("main", &["cat", "/proc/self/status"]));
    assert!(text.contains("Uid:\t33\t"), "{text}");
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    let (last, _) = run(&mut shim, &exec("main", &["nothing-like-it"]));
    assert!(
        matches!(last, Some(Event::ExecExited { exit, .. }) if exit.code == Some(2)),
        "{last:?}"
    );
    let mut spec = exec("main", &[]);
    spec.argv = vec!["/bin/none".into()];
    let (last, _) = run(&mut shim, &spec);
    assert!(matches!(last, Some(Event::ExecFailed { errno: libc::ENOENT, .. })), "{last:?}");
    let (last, _) = run(&mut shim, &exec("other", &["true"]));
    assert!(matches!(last, Some(Event::ExecFailed { .. })), "{last:?}");
    finish(shim);
}

#[test]
fn what_a_client_started_ends_with_it() {
    if !root_or_skip("exec_ends") {
        return;
    }
    let bed = Bed::new("execend");
    let mut shim = bed.spawn(&bed.pod(vec![bed.container(&["sleep", "600000"])]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    let mut other = Shim::attach(&bed.pod_dir()).expect("attach");
    let null = std::fs::File::open("/dev/null").expect("null");
    other.exec(&exec("main", &["sleep", "600000"]), [null.as_fd(); 3]).expect("exec");
    let events = until(&mut other, "exec start", |e| matches!(e, Event::ExecStarted { .. }));
    let Some(Event::ExecStarted { pid, .. }) = events.last() else { panic!() };
    assert!(alive(*pid));
    drop(other);
    eventually("the end of the program", || !alive(*pid));
    finish(shim);
}

#[test]
fn the_pod_outlives_its_spawner_and_gives_its_descriptors_back() {
    if !root_or_skip("outlives") {
        return;
    }
    let bed = Bed::new("outlives");
    let tun = std::fs::File::open("/etc/hostname")
        .or_else(|_| std::fs::File::open("/etc/passwd"))
        .expect("a file");
    let spec = bed.pod(vec![bed.container(&["sleep", "600000"])]);
    let mut shim = Shim::spawn(
        std::path::Path::new(common::PROBE),
        &spec,
        PodFds {
            tun: Some(tun.as_fd()),
            userns: bed.userns.as_ref().map(|(f, m)| (f.as_fd(), *m)),
            netns: None,
        },
    )
    .expect("spawn");
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    drop(shim);

    let mut shim = Shim::attach(&bed.pod_dir()).expect("attach");
    let events = until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
    let Some(Event::Status(status)) = events.last() else { panic!() };
    assert_eq!(status.phase, PodPhase::Running);
    assert!(matches!(status.containers[0].state, ContainerState::Running { ready: true, .. }));
    shim.request_fds().expect("ask");
    let events = until(&mut shim, "descriptors", |e| matches!(e, Event::Fds { .. }));
    let Some(Event::Fds { netns: None, tun: Some(back), userns: Some(_) }) = events.last() else {
        panic!("{events:?}")
    };
    let ino = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).expect("stat").st_ino;
    assert_eq!(ino(back.as_fd()), ino(tun.as_fd()));
    // A pod that runs is not forgotten.
    shim.quit().expect("quit");
    shim.request_status().expect("status");
    until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
    finish(shim);
    assert!(matches!(Shim::attach(&bed.pod_dir()), Err(initd::Error::Gone { .. })));
}

#[test]
fn the_containers_end_with_the_shim() {
    if !root_or_skip("shim_dies") {
        return;
    }
    let bed = Bed::new("shimdies");
    for init in [false, true] {
        let c = ContainerSpec { init, ..bed.container(&["sleep", "600000"]) };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        let events = until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
        let Some(Event::Started { pid, .. }) = events.last() else { panic!() };
        let mut attached = Shim::attach(&bed.pod_dir()).expect("attach");
        let events = until(&mut attached, "status", |e| matches!(e, Event::Status(_)));
        let Some(Event::Status(status)) = events.last() else { panic!() };
        let shim_pid = rustix::process::Pid::from_raw(status.shim_pid as i32).expect("pid");
        rustix::process::kill_process(shim_pid, rustix::process::Signal::KILL).expect("kill");
        until(&mut shim, "the end of the connection", |e| matches!(e, Event::Gone));
        eventually("the end of the container", || !alive(*pid));
        eventually("reaping", || shim.reap());
        assert!(matches!(Shim::attach(&bed.pod_dir()), Err(initd::Error::Gone { .. })));
        if let Some(node) = &bed.node {
            assert!(node.pods().expect("pods").iter().eq(["pod-1"]));
            node.remove_pod("pod-1").expect("remove");
            assert!(node.pods().expect("pods").is_empty());
        }
    }
}

#[test]
fn readiness_follows_an_http_server_in_the_pods_network() {
    if !root_or_skip("readiness") {
        return;
    }
    let mut bed = Bed::new("ready");
    bed.netns = Some(common::netns());
    let status = bed.root().join("tmp/status");
    let c = ContainerSpec {
        ready: Some(Probe {
            every_ms: 20,
            failures: 2,
            ..Probe::new(Check::Http { port: 8080, path: "/".into() })
        }),
        ..bed.container(&["http", "8080", "/tmp/status"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "ready", |e| matches!(e, Event::Ready { ready: true, pod_ready: true, .. }));
    std::fs::write(&status, "503").expect("status");
    until(&mut shim, "unready", |e| {
        matches!(e, Event::Ready { ready: false, pod_ready: false, .. })
    });
    std::fs::write(&status, "204").expect("status");
    until(&mut shim, "ready", |e| matches!(e, Event::Ready { ready: true, pod_ready: true, .. }));
    finish(shim);
}

#[test]
fn liveness_by_exec_and_tcp_starts_a_container_again() {
    if !root_or_skip("liveness") {
        return;
    }
    let mut bed = Bed::new("live");
    bed.netns = Some(common::netns());
    let argv = vec!["/bin/probe".into(), "exit".into(), "1".into()];
    for check in [Check::Exec { argv }, Check::Tcp { port: 9 }] {
        let c = ContainerSpec {
            restart: Restart::OnFailure,
            init: true,
            backoff: Backoff { first_ms: 1, max_ms: 1, reset_ms: 60_000 },
            live: Some(Probe { every_ms: 20, failures: 2, ..Probe::new(check) }),
            ..bed.container(&["sleep", "600000"])
        };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        until(&mut shim, "unhealthy", |e| matches!(e, Event::Unhealthy { .. }));
        until(&mut shim, "second start", |e| matches!(e, Event::Started { restarts: 1, .. }));
        finish(shim);
    }
}

/// Each life lasts until its own probe gives it up, also where the one before had to be killed with all in its cgroup.
#[test]
fn who_was_killed_starts_again_and_lives() {
    if !root_or_skip("killed") {
        return;
    }
    let bed = Bed::new("killed");
    let argv = vec!["/bin/probe".into(), "exit".into(), "1".into()];
    let probe = Probe { every_ms: 20, failures: 2, ..Probe::new(Check::Exec { argv }) };
    for share_pid in [false, true] {
        let c = ContainerSpec {
            restart: Restart::Always,
            stop: Stop { signal: libc::SIGUSR1, grace_ms: 0 },
            backoff: Backoff { first_ms: 1, max_ms: 1, reset_ms: 60_000 },
            live: Some(probe.clone()),
            ..bed.container(&["sleep", "600000"])
        };
        let mut shim = bed.spawn(&PodSpec { share_pid, ..bed.pod(vec![c]) });
        for life in 0..3 {
            let events = until(&mut shim, "its end", |e| matches!(e, Event::Exited { .. }));
            let given_up = events.iter().any(|e| matches!(e, Event::Unhealthy { .. }));
            assert!(given_up, "life {life}, shared PIDs {share_pid}: {events:?}");
        }
        finish(shim);
    }
    // With shared PIDs all in the cgroup is killed after each end.
    let c = ContainerSpec {
        restart: Restart::Always,
        backoff: Backoff { first_ms: 1, max_ms: 1, reset_ms: 60_000 },
        ..bed.container(&["exit", "3"])
    };
    let mut shim = bed.spawn(&PodSpec { share_pid: true, ..bed.pod(vec![c]) });
    for _ in 0..3 {
        let events = until(&mut shim, "its end", |e| matches!(e, Event::Exited { .. }));
        let Some(Event::Exited { exit, .. }) = events.last() else { panic!("{events:?}") };
        assert_eq!(exit.code, Some(3));
    }
    finish(shim);
}

#[test]
fn init_containers_and_sidecars_in_order() {
    if !root_or_skip("order") {
        return;
    }
    let bed = Bed::new("order");
    let named = |name: &str, kind, words: &[&str]| ContainerSpec {
        name: name.into(),
        kind,
        init: true,
        ..bed.container(words)
    };
    let mut shim = bed.spawn(&bed.pod(vec![
        named("one", Kind::Init, &["echo", "1"]),
        named("side", Kind::Sidecar, &["sleep", "600000"]),
        named("two", Kind::Init, &["echo", "2"]),
        named("main", Kind::Main, &["sleep", "600000"]),
    ]));
    let mut order = Vec::new();
    let note = |order: &mut Vec<String>, e: &Event| match e {
        Event::Started { container, .. } => order.push(format!("+{container}")),
        Event::Exited { container, .. } => order.push(format!("-{container}")),
        _ => {}
    };
    until(&mut shim, "main", |e| {
        note(&mut order, e);
        matches!(e, Event::Started { container, .. } if container == "main")
    });
    shim.stop(None).expect("stop");
    until(&mut shim, "stopped", |e| {
        note(&mut order, e);
        matches!(e, Event::Stopped)
    });
    assert_eq!(order, ["+one", "-one", "+side", "+two", "-two", "+main", "-main", "-side"]);
    finish(shim);
}

#[test]
fn output_of_both_streams_is_logged_and_rotated() {
    if !root_or_skip("rotated") {
        return;
    }
    let bed = Bed::new("rotate");
    let log = LogPolicy { file_bytes: 8192, files: 2, ..LogPolicy::default() };
    let (exit, _) = bed.run(ContainerSpec { log, ..bed.container(&["chatter", "2000"]) });
    assert_eq!(exit.code, Some(0));
    let dir = bed.pod_dir().join("logs");
    let read = |f: &str| std::fs::read(dir.join(f)).expect(f);
    let text = [read("main.log.1"), read("main.log")].concat();
    assert!(!dir.join("main.log.2").exists());
    let lines: Vec<_> = text.split(|b| *b == b'\n').filter_map(initd::log::parse).collect();
    let last = lines.last().expect("lines");
    assert_eq!(last.text, b"line 1999");
    let numbers: Vec<u32> = lines
        .iter()
        .map(|l| String::from_utf8_lossy(&l.text[5..]).parse().expect("number"))
        .collect();
    assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]), "{numbers:?}");
}

#[test]
fn a_client_that_does_not_read_gets_a_status_instead_of_every_event() {
    if !root_or_skip("slow_client") {
        return;
    }
    let bed = Bed::new("slow");
    let c = ContainerSpec {
        restart: Restart::Always,
        backoff: Backoff { first_ms: 1, max_ms: 1, reset_ms: 60_000 },
        ..bed.container(&["true"])
    };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    let mut other = Shim::attach(&bed.pod_dir());
    eventually("the socket", || {
        other = Shim::attach(&bed.pod_dir());
        other.is_ok()
    });
    let mut other = other.expect("attached");
    // Three events a start: far more than a socket holds (net.unix.max_dgram_qlen and its buffer).
    until(&mut other, "many restarts", |e| matches!(e, Event::Started { restarts: 300, .. }));
    let events = shim.wait(LONG, |e| matches!(e, Event::Status(_))).expect("events");
    assert!(matches!(events.last(), Some(Event::Status(_))), "{} events", events.len());
    finish(shim);
}

#[test]
fn a_directory_has_one_shim_and_a_fresh_one_is_found() {
    if !root_or_skip("one_shim") {
        return;
    }
    let bed = Bed::new("one");
    let spec = bed.pod(vec![bed.container(&["sleep", "600000"])]);
    // The spawner forgets it at once, as if it had fallen.
    drop(bed.spawn(&spec));
    let mut first = Shim::attach(&bed.pod_dir()).expect("attach");
    until(&mut first, "running", |e| match e {
        Event::Started { .. } => true,
        Event::Status(s) => matches!(s.containers[0].state, ContainerState::Running { .. }),
        _ => false,
    });
    let second = Shim::spawn(std::path::Path::new(common::PROBE), &spec, PodFds::default());
    assert_eq!(second.expect_err("refused").errno(), Some(libc::EAGAIN));
    first.request_status().expect("status");
    until(&mut first, "status", |e| matches!(e, Event::Status(s) if s.phase == PodPhase::Running));
    finish(first);
}

#[test]
fn shims_are_copies_of_a_process_that_may_fall() {
    if !root_or_skip("zygote") {
        return;
    }
    let bed = Bed::new("zygote");
    let mut zygote = Zygote::new(std::path::Path::new(common::PROBE));
    let first = zygote.pid().expect("a process");
    let spec = bed.pod(vec![bed.container(&["sleep", "600000"])]);
    let userns = bed.userns.as_ref().map(|(f, m)| (f.as_fd(), *m));
    let fds = PodFds { userns, ..PodFds::default() };
    for fallen in [false, true] {
        let mut shim = zygote.spawn(&spec, fds).expect("spawn");
        until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
        shim.request_status().expect("status");
        let events = until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
        let Some(Event::Status(status)) = events.last() else { panic!() };
        // Ours to reap, and named for its pod.
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", status.shim_pid)).expect("stat");
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1));
        assert_eq!(parent, Some(std::process::id().to_string().as_str()));
        let words = std::fs::read(format!("/proc/{}/cmdline", status.shim_pid)).expect("cmdline");
        assert!(words.starts_with(b"quelea-shim\0shim\0pod-1\0"), "{words:?}");
        if !fallen {
            // The pod does not notice, and the next one comes to be without it.
            let pid = rustix::process::Pid::from_raw(first as i32).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
            let state = || std::fs::read_to_string(format!("/proc/{first}/stat")).expect("ours");
            eventually("its end", || state().contains(") Z "));
            shim.request_status().expect("status");
            until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
        }
        finish(shim);
    }
    let mut shim = zygote.spawn(&spec, fds).expect("spawn");
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    finish(shim);
    let second = zygote.pid().expect("a new one");
    assert_ne!(first, second);
    drop(zygote);
    for pid in [first, second] {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "{pid}");
    }
}

#[test]
fn a_fork_bomb_is_bounded_and_ends_with_its_container() {
    if !root_or_skip("bomb") {
        return;
    }
    let bed = Bed::new("bomb");
    let limit = Rlimit { resource: libc::RLIMIT_NPROC, soft: 40, hard: 40 };
    for init in [false, true] {
        let c = ContainerSpec { init, rlimits: vec![limit], ..bed.container(&["bomb"]) };
        let mut shim = bed.spawn(&bed.pod(vec![c]));
        eventually("the bomb", || bed.log("main").contains("refused 11 after"));
        let line = bed.log("main");
        let children: u32 =
            line.trim().rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a count");
        assert!((20..=40).contains(&children), "{line}");
        shim.stop(Some(0)).expect("stop");
        until(&mut shim, "stop", |e| matches!(e, Event::Stopped));
        finish(shim);
        std::fs::remove_file(bed.pod_dir().join("logs/main.log")).expect("log");
        let left = std::fs::read_dir("/proc").into_iter().flatten().flatten().filter(|e| {
            let cmdline = std::fs::read(e.path().join("cmdline")).unwrap_or_default();
            cmdline.windows(6).any(|w| w == b"599997")
        });
        assert_eq!(left.count(), 0, "bomblets");
    }
}

#[test]
fn sigterm_to_a_shim_stops_its_pod_in_order() {
    if !root_or_skip("shim_term") {
        return;
    }
    let bed = Bed::new("term");
    let c = ContainerSpec { init: true, ..bed.container(&["sleep", "600000"]) };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    shim.request_status().expect("status");
    let events = until(&mut shim, "status", |e| matches!(e, Event::Status(_)));
    let Some(Event::Status(status)) = events.last() else { panic!() };
    let pid = rustix::process::Pid::from_raw(status.shim_pid as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal");
    let events = until(&mut shim, "end", |e| matches!(e, Event::Gone));
    let stopped =
        |e: &Event| matches!(e, Event::Exited { exit, .. } if exit.signal == Some(libc::SIGTERM));
    assert!(events.iter().any(stopped), "{events:?}");
    eventually("the end of the shim", || shim.reap());
    assert_eq!(initd::shim::last_status(&bed.pod_dir()).expect("status").phase, PodPhase::Stopped);
}

#[test]
fn a_program_on_a_terminal() {
    if !root_or_skip("terminal") {
        return;
    }
    let bed = Bed::new("terminal");
    let c = ContainerSpec { user: "web".into(), ..bed.container(&["sleep", "600000"]) };
    let mut shim = bed.spawn(&bed.pod(vec![c]));
    until(&mut shim, "start", |e| matches!(e, Event::Started { .. }));
    shim.exec_terminal(&exec("main", &["terminal"])).expect("exec");
    let events = until(&mut shim, "terminal", |e| matches!(e, Event::Terminal { .. }));
    let Some(Event::Terminal { fd, .. }) = events.into_iter().next_back() else { panic!() };
    let mut terminal = std::fs::File::from(fd);
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).expect("resize");
    terminal.write_all(b"go\n").expect("write");
    let mut text = Vec::new();
    let mut buffer = [0u8; 256];
    // EIO is the end of a terminal.
    while let Ok(n @ 1..) = terminal.read(&mut buffer) {
        text.extend_from_slice(&buffer[..n]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("33 rows 77 columns"), "{text}");
    assert!(text.contains("/dev/tty ok"), "{text}");
    assert!(text.contains("name /dev/pts/0"), "{text}");
    let ended = |e: &Event| matches!(e, Event::ExecExited { exit, .. } if exit.code == Some(0));
    until(&mut shim, "end", ended);
    shim.exec_terminal(&exec("nobody", &["terminal"])).expect("exec");
    until(&mut shim, "refusal", |e| matches!(e, Event::ExecFailed { .. }));
    finish(shim);
}
