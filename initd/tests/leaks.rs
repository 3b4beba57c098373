//! Nothing is left after many starts and stops.
#![allow(missing_docs)]

mod common;

use std::os::fd::AsFd as _;
use std::path::Path;

use common::{Bed, LONG, eventually, finish, part, root_or_skip};
use initd::pod::{Backoff, ContainerSpec, Kind, Restart, Volume, VolumeMount};
use initd::shim::{Event, ExecSpec};
use initd::userns;

/// What can leak, as seen from this process.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    fds: usize,
    namespaces: usize,
    mounts: usize,
    cgroups: usize,
    children: usize,
}

fn count(path: &str) -> usize {
    std::fs::read_dir(path).map(Iterator::count).unwrap_or(0)
}

fn directories(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| 1 + directories(&e.path()))
        .sum()
}

fn held(bed: &Bed) -> Held {
    let children = format!("/proc/self/task/{}/children", std::process::id());
    let root = bed
        .node
        .as_ref()
        .map(|n| n.pod("x"))
        .and_then(|p| Some(p.parent()?.parent()?.to_path_buf()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = bed.dir.to_string_lossy().into_owned();
    Held {
        fds: count("/proc/self/fd"),
        namespaces: namespaces(),
        mounts: mounts.lines().filter(|l| l.contains(&ours)).count(),
        cgroups: root.map_or(0, |r| directories(&r)),
        children: std::fs::read_to_string(children).unwrap_or_default().split_whitespace().count(),
    }
}

/// Kinds of namespaces, with the flag that makes one.
const KINDS: [(&str, i32); 7] = [
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("ipc", libc::CLONE_NEWIPC),
    ("mnt", libc::CLONE_NEWNS),
    ("net", libc::CLONE_NEWNET),
    ("pid", libc::CLONE_NEWPID),
    ("user", libc::CLONE_NEWUSER),
    ("uts", libc::CLONE_NEWUTS),
];

/// On a machine that runs nothing else (`QUELEA_ALONE`): how many namespaces of each kind root has made that are still there,
/// whoever holds them. The kernel tells by what it refuses: one more than a limit of that many.
fn counted_by_the_kernel() -> Option<Vec<(&'static str, usize)>> {
    std::env::var_os("QUELEA_ALONE")?;
    let count = |(kind, flag): (&'static str, i32)| {
        let file = format!("/proc/sys/user/max_{kind}_namespaces");
        let before = std::fs::read_to_string(&file).expect("limit");
        let refused = |limit: usize| {
            std::fs::write(&file, limit.to_string()).expect("limit");
            let tried = std::process::Command::new(common::PROBE)
                .args(["unshare", &flag.to_string()])
                .status()
                .expect("probe");
            match tried.code() {
                Some(0) => false,
                Some(libc::ENOSPC) => true,
                other => panic!("unshare of {kind}: {other:?}"),
            }
        };
        let there = (1..1000).take_while(|limit| refused(*limit)).count();
        std::fs::write(&file, before).expect("limit");
        (kind, there)
    };
    Some(KINDS.into_iter().map(count).collect())
}

/// Processes of the whole machine, and those that nobody has collected.
fn processes() -> (usize, usize) {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats: Vec<String> =
        entries.filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok()).collect();
    // Kernel threads come and go; they have no parent but kthreadd.
    let field = |s: &str, n: usize| {
        s.rsplit_once(") ").and_then(|(_, r)| r.split(' ').nth(n).map(str::to_owned))
    };
    let ours = stats.iter().filter(|s| field(s, 1).is_some_and(|p| p != "2" && p != "0"));
    let zombies = stats.iter().filter(|s| field(s, 0).is_some_and(|state| state == "Z"));
    (ours.count(), zombies.count())
}

fn rss_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Namespaces that this process holds open. (One that a shim or a container has left behind shows as their cgroup.)
fn namespaces() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let kinds = ["mnt:", "pid:", "ipc:", "uts:", "cgroup:", "user:", "net:"];
    fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|to| kinds.iter().any(|k| to.to_string_lossy().starts_with(k)))
        .count()
}

/// One pod from its start to its end, of one of six kinds.
fn one_pod(bed: &mut Bed, round: usize) {
    let c = ContainerSpec { init: round.is_multiple_of(2), ..bed.container(&["exit", "1"]) };
    let mut spec = bed.pod(vec![c.clone()]);
    match round % 6 {
        // A network and a user namespace of its own.
        1 => {
            bed.netns = Some(common::netns());
            let (_, map) = bed.userns.take().expect("user namespace");
            bed.userns = userns::create(map).ok().map(|fd| (fd, map));
            spec.host_network = false;
        }
        2 => {
            spec.volumes = vec![Volume { name: "v".into(), size_bytes: 1 << 16, mode: 0o777 }];
            let volumes =
                vec![VolumeMount { volume: "v".into(), target: "/v".into(), read_only: false }];
            let sidecar = ContainerSpec {
                name: "side".into(),
                kind: Kind::Sidecar,
                init: true,
                ..bed.container(&["sleep", "600000"])
            };
            spec.containers = vec![sidecar, ContainerSpec { volumes, ..c }];
        }
        // Which cannot start.
        4 => spec.containers[0].argv = vec!["/bin/none".into()],
        // Which leaves a process behind, in a PID namespace of the pod.
        5 => {
            spec.share_pid = true;
            spec.containers[0].argv = vec!["/bin/probe".into(), "daemon".into()];
        }
        _ => {}
    }
    let mut shim = bed.spawn(&spec);
    if round.is_multiple_of(3) {
        // Stopped in the middle of its launch.
        shim.stop(Some(0)).expect("stop");
    }
    let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
    let failed = events.iter().find(|e| matches!(e, Event::Failed { .. }));
    assert!(failed.is_none() || round % 6 == 4, "round {round}: {failed:?}");
    finish(shim);
    bed.netns = None;
}

fn pods(name: &str, cycles: usize) {
    if !root_or_skip(name) {
        return;
    }
    let mut bed = Bed::new(name);
    // Each kind once: what is made once is no leak.
    (0..6).for_each(|round| one_pod(&mut bed, round));
    let (before, rss, alone) = (held(&bed), rss_kb(), processes());
    let namespaces = counted_by_the_kernel();
    let begun = std::time::Instant::now();
    (0..cycles).for_each(|round| one_pod(&mut bed, round));
    let (after, grown) = (held(&bed), rss_kb().saturating_sub(rss));
    println!(
        "{cycles} pods in {:.1} s: {before:?}, then {after:?}; {grown} kB more of memory",
        begun.elapsed().as_secs_f64()
    );
    assert!(grown < 4096, "this process grew by {grown} kB");
    assert_eq!(after.namespaces, before.namespaces);
    // Other tests of this process may hold a few descriptors and children of their own.
    assert!(
        after.fds < before.fds + 50 && after.children < before.children + 10,
        "{before:?} {after:?}"
    );
    assert_eq!((after.mounts, after.cgroups), (0, before.cgroups));
    assert!(!bed.pod_dir().join("shim.sock").exists());
    if namespaces.is_some() {
        eventually("as many processes as before", || processes() == (alone.0, 0));
        eventually("as many namespaces as before", || counted_by_the_kernel() == namespaces);
        println!("namespaces of the machine, before and after: {namespaces:?}");
    }
}

#[test]
fn pods_leave_nothing() {
    pods("leaks", part(300));
}

/// `cargo test -p initd --test leaks -- --ignored --nocapture`: some minutes.
#[test]
#[ignore = "takes minutes"]
fn ten_thousand_pods_leave_nothing() {
    pods("leaks10000", 10_000);
}

#[test]
fn a_shim_that_restarts_and_joins_keeps_its_size() {
    if !root_or_skip("shim_size") {
        return;
    }
    let bed = Bed::new("size");
    let named = |name: &str, words: &[&str]| ContainerSpec {
        name: name.into(),
        restart: Restart::Always,
        backoff: Backoff { first_ms: 1, max_ms: 1, reset_ms: 60_000 },
        ..bed.container(words)
    };
    let spec = bed.pod(vec![named("restarts", &["true"]), named("stays", &["sleep", "600000"])]);
    let mut shim = bed.spawn(&spec);
    let restarts =
        |n: u32| move |e: &Event| matches!(e, Event::Started { restarts, .. } if *restarts >= n);
    shim.wait(LONG, restarts(20)).expect("events");
    shim.request_status().expect("status");
    let mut pid = 0;
    let note = |e: &Event| {
        if let Event::Status(s) = e {
            pid = s.shim_pid;
        }
        pid != 0
    };
    shim.wait(LONG, note).expect("status");
    let fds = || count(&format!("/proc/{pid}/fd"));
    let children = || {
        let file = format!("/proc/{pid}/task/{pid}/children");
        std::fs::read_to_string(file).unwrap_or_default().split_whitespace().count()
    };
    let private = || private_kb(pid);
    let kb = private();
    let null = std::fs::File::open("/dev/null").expect("null");
    for round in 0..part(100) {
        let exec = ExecSpec {
            container: "stays".into(),
            argv: vec![
                if round.is_multiple_of(2) { "/bin/probe".into() } else { "/bin/none".into() },
                "true".into(),
            ],
            env: vec![],
            workdir: String::new(),
            user: String::new(),
        };
        shim.exec(&exec, [null.as_fd(); 3]).expect("exec");
        let end = |e: &Event| matches!(e, Event::ExecExited { .. } | Event::ExecFailed { .. });
        assert!(shim.wait(LONG, end).expect("events").iter().any(end));
    }
    shim.wait(LONG, restarts(part(300) as u32)).expect("events");
    // Between two starts the container holds nothing: the least of many looks is what the shim itself has.
    let (mut least, mut children_least) = (usize::MAX, usize::MAX);
    for _ in 0..part(200) {
        least = least.min(fds());
        children_least = children_least.min(children());
        shim.wait(LONG, |e| matches!(e, Event::Exited { .. })).expect("events");
    }
    assert!(least <= 24, "{least} descriptors");
    assert_eq!(children_least, 1, "zombies");
    let after = private();
    println!("private memory {kb} kB, then {after} kB");
    assert!(after <= kb + 64, "private memory grew from {kb} to {after} kB");
    if let Some(node) = &bed.node {
        eventually("one cgroup for each container", || directories(&node.pod("pod-1")) == 2);
    }
    finish(shim);
}

/// Anonymous memory: heap, stack, changed data. Pages of the binary are shared by all shims (and count as dirty while the
/// binary itself has not reached the disk).
fn private_kb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    of("Anonymous:").unwrap_or(0)
}
