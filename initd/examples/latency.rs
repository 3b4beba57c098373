//! How long a container takes, as JSON lines: `{"bench","metric","value","unit","goal","better","peer","pass"}`.
//!
//! `latency PROBE-BINARY ROUNDS [true-binary]`, as root. Where `crun` is installed the same program runs through it,
//! round by round in turn.
#![allow(missing_docs)]

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use initd::cgroup::Cgroups;
use initd::pod::{Bind, ContainerSpec, PodSpec, Restart, Root, RootIdmap};
use initd::shim::{Event, ExecSpec, PodFds, Shim};
use initd::userns::{self, IdMap};

const LONG: Duration = Duration::from_secs(20);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let probe = PathBuf::from(args.get(1).map_or("target/debug/initd-probe", String::as_str));
    let rounds: usize = args.get(2).and_then(|n| n.parse().ok()).unwrap_or(50);
    let dir = std::env::temp_dir().join(format!("quelea-latency-{}", std::process::id()));
    let root = dir.join("rootfs");
    std::fs::create_dir_all(root.join("bin")).expect("root");
    std::fs::create_dir_all(dir.join("pod")).expect("pod");
    let probe = std::fs::canonicalize(&probe).expect("probe binary");
    let program = args.get(3).map_or(probe.clone(), PathBuf::from);
    std::fs::copy(&program, root.join("bin/true")).expect("program");
    for d in ["proc", "sys", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(d)).expect("root");
    }
    let node = Cgroups::probe()
        .and_then(|c| c.node(&format!("quelea-latency-{}", std::process::id())).ok());
    let map = IdMap::slot(20_000).expect("slot");
    let userns = userns::create(map).expect("user namespace");
    let container = |words: &[&str]| ContainerSpec {
        root: Root::Mounted { path: root.clone(), idmap: RootIdmap::Here },
        restart: Restart::Never,
        ..ContainerSpec::new("main", &root, words.iter().copied())
    };
    let pod = |c: ContainerSpec| PodSpec {
        cgroup: node.as_ref().map(|n| n.pod("p")),
        shim_cgroup: node.as_ref().map(|n| n.shim("p")),
        host_network: true,
        containers: vec![c],
        ..PodSpec::new("p", dir.join("pod"))
    };
    let fds = PodFds { userns: Some((userns.as_fd(), map)), ..PodFds::default() };

    let crun = Command::new("crun").arg("--version").output().is_ok_and(|o| o.status.success());
    if crun {
        bundle(&dir);
    }
    let (mut bare, mut run, mut whole, mut peer) = (vec![], vec![], vec![], vec![]);
    let (mut cpu, mut peer_cpu) = (vec![], vec![]);
    for round in 0..rounds + 3 {
        let t = Instant::now();
        let ok = Command::new(&program).arg("true").status().is_ok_and(|s| s.success());
        assert!(ok, "program");
        let bare_us = t.elapsed();

        let before = children_cpu();
        let t = Instant::now();
        let mut shim =
            Shim::spawn(&probe, &pod(container(&["/bin/true", "true"])), fds).expect("spawn");
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        let run_us = t.elapsed();
        assert!(
            events.iter().any(|e| matches!(e, Event::Exited { exit, .. } if exit.success())),
            "{events:?}"
        );
        shim.quit().expect("quit");
        shim.wait(LONG, |e| matches!(e, Event::Gone)).expect("gone");
        while !shim.reap() {
            std::thread::yield_now();
        }
        let whole_us = t.elapsed();
        let between = children_cpu();
        let mut peer_us = Duration::ZERO;
        if crun {
            let t = Instant::now();
            let status = Command::new("crun")
                .args(["--cgroup-manager=disabled", "run", "--bundle"])
                .arg(&dir)
                .arg(format!("quelea-{}", std::process::id()))
                .stdin(Stdio::null())
                .status();
            assert!(status.is_ok_and(|s| s.success()), "crun");
            peer_us = t.elapsed();
        }
        if round >= 3 {
            bare.push(bare_us);
            run.push(run_us);
            whole.push(whole_us);
            cpu.push(between - before);
            peer_cpu.push(children_cpu() - between);
            peer.push(peer_us);
        }
    }
    let least = |v: &[Duration]| v.iter().min().map_or(0.0, Duration::as_secs_f64) * 1000.0;
    let (run_least, peer_least) = (least(&run), least(&peer));
    let (bare, run, whole, peer) = (median(bare), median(run), median(whole), median(peer));
    line("run_true_least", run_least, None, Some(peer_least).filter(|_| crun));
    line("run_true_cpu", median(cpu), None, Some(median(peer_cpu)).filter(|_| crun));
    line("spawn_and_wait_without_container", bare, None, None);
    line(
        "run_true_to_stopped",
        run,
        Some(0.45 * peer).filter(|_| crun),
        Some(peer).filter(|_| crun),
    );
    line("run_true_to_shim_reaped", whole, None, Some(peer).filter(|_| crun));
    if crun {
        println!(
            "{{\"bench\":\"container\",\"metric\":\"run_true_vs_crun\",\"value\":{:.3},\"unit\":\"ratio\",\"goal\":0.45,\"better\":\"lower\",\"peer\":\"crun\",\"pass\":{}}}",
            run / peer,
            run / peer <= 0.45
        );
    }

    burst(&dir, &probe, &container, fds, node.as_ref(), crun);

    // A program that joins: needs one that stays.
    let stays = ContainerSpec {
        binds: vec![Bind {
            source: probe.clone(),
            target: "/bin/probe".into(),
            read_only: true,
            idmap: false,
        }],
        ..container(&["/bin/probe", "sleep", "600000"])
    };
    let mut shim = Shim::spawn(&probe, &pod(stays), fds).expect("spawn");
    shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
    let null = std::fs::File::open("/dev/null").expect("null");
    let spec = ExecSpec {
        container: "main".into(),
        argv: vec!["/bin/true".into(), "true".into()],
        env: vec![],
        workdir: String::new(),
        user: String::new(),
    };
    let mut exec = vec![];
    for _ in 0..rounds {
        let t = Instant::now();
        shim.exec(&spec, [null.as_fd(); 3]).expect("exec");
        let end = |e: &Event| matches!(e, Event::ExecExited { .. } | Event::ExecFailed { .. });
        let events = shim.wait(LONG, end).expect("events");
        assert!(
            events.iter().any(|e| matches!(e, Event::ExecExited { exit, .. } if exit.success())),
            "{events:?}"
        );
        exec.push(t.elapsed());
    }
    line("exec_true", median(exec), None, None);
    shim.request_status().expect("status");
    let events = shim.wait(LONG, |e| matches!(e, Event::Status(_))).expect("status");
    if let Some(Event::Status(s)) = events.last() {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", s.shim_pid))
            .unwrap_or_default();
        let kb = smaps.lines().find_map(|l| {
            l.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB")?.trim().parse::<u32>().ok()
        });
        let kb = kb.unwrap_or(0);
        println!(
            "{{\"bench\":\"container\",\"metric\":\"shim_private\",\"value\":{kb},\"unit\":\"kB\",\"goal\":250,\"better\":\"lower\",\"peer\":null,\"pass\":{}}}",
            kb <= 250
        );
    }
    let _ = shim.stop(Some(0));
    let _ = shim.wait(LONG, |e| matches!(e, Event::Stopped));
    let _ = shim.quit();
    let _ = shim.wait(LONG, |e| matches!(e, Event::Gone));
    if let Some(node) = node {
        let _ = node.remove();
    }
    let _ = std::fs::remove_dir_all(&dir);
}

/// Many pods at once, until the last has stopped, in turn with the same number of runs of the peer.
fn burst(
    dir: &Path,
    probe: &Path,
    container: &dyn Fn(&[&str]) -> ContainerSpec,
    fds: PodFds<'_>,
    node: Option<&initd::cgroup::NodeCgroup>,
    crun: bool,
) {
    const PODS: usize = 100;
    const ROUNDS: usize = 3;
    let (mut ours, mut peers) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        let t = Instant::now();
        let mut shims: Vec<Shim> = (0..PODS)
            .map(|i| {
                let id = format!("b{i}");
                let pod_dir = dir.join(&id);
                std::fs::create_dir_all(&pod_dir).expect("pod directory");
                let spec = PodSpec {
                    cgroup: node.map(|n| n.pod(&id)),
                    shim_cgroup: node.map(|n| n.shim(&id)),
                    host_network: true,
                    containers: vec![container(&["/bin/true", "true"])],
                    ..PodSpec::new(id, pod_dir)
                };
                Shim::spawn(probe, &spec, fds).expect("spawn")
            })
            .collect();
        for shim in &mut shims {
            shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("stopped");
        }
        ours.push(t.elapsed());
        for shim in &mut shims {
            let _ = shim.quit();
        }
        for mut shim in shims {
            shim.wait(LONG, |e| matches!(e, Event::Gone)).expect("gone");
            while !shim.reap() {
                std::thread::yield_now();
            }
        }
        if crun {
            let t = Instant::now();
            let children: Vec<_> = (0..PODS)
                .map(|i| {
                    Command::new("crun")
                        .args(["--cgroup-manager=disabled", "run", "--bundle"])
                        .arg(dir)
                        .arg(format!("quelea-{}-{i}", std::process::id()))
                        .stdin(Stdio::null())
                        .spawn()
                        .expect("crun")
                })
                .collect();
            for mut c in children {
                assert!(c.wait().is_ok_and(|s| s.success()), "crun");
            }
            peers.push(t.elapsed());
        }
    }
    let (ours, peers) = (median(ours), median(peers));
    line(
        "hundred_pods_at_once",
        ours,
        Some(0.5 * peers).filter(|_| crun),
        Some(peers).filter(|_| crun),
    );
}

/// User and system time of all children that have been reaped, and of theirs: says more than the clock does when
/// others use the machine.
fn children_cpu() -> Duration {
    // SAFETY: all zeroes is a valid rusage, and the kernel fills it.
    #[allow(unsafe_code)]
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let of =
        |t: libc::timeval| Duration::from_micros(t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64);
    of(usage.ru_utime) + of(usage.ru_stime)
}

/// Milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |d| d.as_secs_f64() * 1000.0)
}

fn line(metric: &str, ms: f64, goal: Option<f64>, peer: Option<f64>) {
    let number = |n: Option<f64>| n.map_or("null".to_owned(), |n| format!("{n:.3}"));
    let pass = goal.is_none_or(|g| ms <= g);
    println!(
        "{{\"bench\":\"container\",\"metric\":\"{metric}\",\"value\":{ms:.3},\"unit\":\"ms\",\"goal\":{},\"better\":\"lower\",\"peer\":{},\"pass\":{pass}}}",
        number(goal),
        number(peer),
    );
}

/// The same isolation, as an OCI bundle.
fn bundle(dir: &Path) {
    let config = r#"{"ociVersion":"1.0.2","process":{"terminal":false,"user":{"uid":0,"gid":0},"args":["/bin/true","true"],
"env":["PATH=/bin"],"cwd":"/","noNewPrivileges":true,"capabilities":{"bounding":["CAP_CHOWN","CAP_KILL"],"effective":["CAP_CHOWN","CAP_KILL"],"permitted":["CAP_CHOWN","CAP_KILL"]}},
"root":{"path":"rootfs","readonly":false},"hostname":"x",
"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755","size=65536k"]},
{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"]},
{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777"]},
{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"},{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}],
"linux":{"namespaces":[{"type":"pid"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}],
"maskedPaths":["/proc/acpi","/proc/kcore","/proc/keys","/proc/timer_list","/sys/firmware"],"readonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]}}"#;
    std::fs::write(dir.join("config.json"), config).expect("config");
}
