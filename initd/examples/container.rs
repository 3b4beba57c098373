//! How long a container takes, ours and the peers', in turn: a JSON line `{"metric","who","value","unit"}` for each median, and
//! for each ratio of ours to a peer's (`"who":"quelea/crun"`). `container ROUNDS`, as root, beside the built `floor` and
//! `initd-probe`.
//!
//! Made for a machine that does other work: everybody takes a turn in each round, in another order each time, at the
//! highest ordinary priority; a ratio is the median of the rounds' own ratios, whose two halves had the same neighbours;
//! and the CPU time is measured beside the clock.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use initd::cgroup::{Cgroups, NodeCgroup};
use initd::pod::{Bind, ContainerSpec, PodSpec, Restart, Root, RootIdmap};
use initd::shim::{Event, ExecSpec, PodFds, Shim, Zygote};
use initd::userns::{self, IdMap};

const LONG: Duration = Duration::from_secs(60);
/// Not counted: the first ones fill caches.
const WARM_UP: usize = 3;
const PODS: usize = 100;
/// Whose ratios are told: ours, then theirs.
const RATIOS: [(&str, &str, &str); 13] = [
    ("run_true", "quelea", "floor"),
    ("run_true", "quelea", "crun"),
    ("run_true", "quelea", "runc"),
    ("run_true_cpu", "quelea", "floor"),
    ("run_true_cpu", "quelea", "crun"),
    ("run_true_cpu", "quelea", "runc"),
    ("exec_true", "quelea", "crun"),
    ("exec_true", "quelea", "runc"),
    ("exec_true_cpu", "quelea", "crun"),
    ("hundred_pods", "quelea", "crun"),
    ("hundred_pods", "quelea", "runc"),
    ("hundred_pods_cpu", "quelea", "crun"),
    ("hundred_pods_cpu", "quelea", "runc"),
];

struct Bench {
    dir: PathBuf,
    zygote: Zygote,
    floor: PathBuf,
    node: Option<NodeCgroup>,
    userns: OwnedFd,
    map: IdMap,
    peers: Vec<&'static str>,
    samples: BTreeMap<(&'static str, String), Vec<f64>>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, rounds] = args.as_slice() else { panic!("container ROUNDS") };
    let rounds: usize = rounds.parse().expect("rounds");
    let examples = std::env::current_exe().expect("own path");
    let examples = examples.parent().expect("a directory");
    // Where the limits allow it; for everybody alike.
    let _ = rustix::process::setpriority_process(None, -20);
    let mut bench = Bench::new(&examples.join("../initd-probe"), &examples.join("floor"));
    bench.starts(rounds);
    bench.execs(rounds);
    bench.bursts(rounds.div_ceil(10).max(3));
    bench.finish();
}

impl Bench {
    fn new(probe: &Path, floor: &Path) -> Self {
        let name = format!("quelea-bench-{}", std::process::id());
        // In memory, where runtimes keep their state by default, so that no disk is measured.
        let dir = Path::new("/dev/shm").join(&name);
        let root = dir.join("rootfs");
        for d in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(d)).expect("root");
        }
        std::fs::create_dir_all(dir.join("pod")).expect("pod");
        let probe = std::fs::canonicalize(probe).expect("initd-probe is built");
        std::fs::copy(&probe, root.join("bin/probe")).expect("probe");
        std::fs::hard_link(root.join("bin/probe"), root.join("bin/true")).expect("link");
        one_cgroup_tree(&dir);
        let node = Cgroups::probe().and_then(|c| c.node(&name).ok());
        let map = IdMap::slot(20_000).expect("slot");
        let userns = userns::create(map).expect("user namespace");
        std::fs::write(dir.join("config.json"), bundle(&["/bin/true", "true"])).expect("config");
        let peers = ["crun", "runc"].into_iter().filter(|p| {
            let there = Command::new(p).arg("--version").output().is_ok_and(|o| o.status.success());
            if !there {
                eprintln!("SKIP {p}: not installed");
            }
            there
        });
        let (peers, floor) = (peers.collect(), floor.to_owned());
        let zygote = Zygote::new(&probe);
        Self { dir, zygote, floor, node, userns, map, peers, samples: BTreeMap::new() }
    }

    fn note(&mut self, metric: &'static str, who: &str, ms: f64) {
        self.samples.entry((metric, who.to_owned())).or_default().push(ms);
    }

    fn pod(&self, id: &str, words: &[&str]) -> PodSpec {
        let root = self.dir.join("rootfs");
        let c = ContainerSpec {
            root: Root::Mounted { path: root.clone(), idmap: RootIdmap::Here },
            restart: Restart::Never,
            binds: Vec::<Bind>::new(),
            ..ContainerSpec::new("main", &root, words.iter().copied())
        };
        let dir = self.dir.join(id);
        std::fs::create_dir_all(&dir).expect("pod directory");
        PodSpec {
            cgroup: self.node.as_ref().map(|n| n.pod(id)),
            shim_cgroup: self.node.as_ref().map(|n| n.shim(id)),
            host_network: true,
            containers: vec![c],
            ..PodSpec::new(id, dir)
        }
    }

    fn spawn(&mut self, spec: &PodSpec) -> Shim {
        let userns = Some((self.userns.as_fd(), self.map));
        self.zygote.spawn(spec, PodFds { userns, ..PodFds::default() }).expect("spawn")
    }

    /// CPU time of everything that was started here and has ended, and of the process that shims are copies of.
    fn cpu(&self) -> Duration {
        children_cpu() + self.zygote.pid().map_or(Duration::ZERO, running_for)
    }

    fn peer(&self, who: &str, verb: &str, id: &str) -> Command {
        let mut c = Command::new(who);
        if who == "crun" && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            c.arg("--cgroup-manager=disabled");
        }
        c.arg("--root").arg(self.dir.join(format!("{who}-state"))).arg(verb);
        if verb == "run" {
            c.arg("--bundle").arg(&self.dir);
        }
        c.arg(format!("quelea-{}-{id}", std::process::id()));
        c.stdin(Stdio::null());
        c
    }

    /// From nothing to reaped; with the CPU time, which others' load changes less.
    fn starts(&mut self, rounds: usize) {
        let mut all = vec!["bare", "floor", "quelea"];
        all.extend(&self.peers);
        for round in 0..rounds + WARM_UP {
            for i in 0..all.len() {
                let who = all[(i + round) % all.len()];
                let (cpu, t) = (self.cpu(), Instant::now());
                let told = self.start(who, round, t);
                let (ms, cpu) = (ms(t), self.cpu().saturating_sub(cpu));
                if round < WARM_UP {
                    continue;
                }
                self.note("run_true_cpu", who, cpu.as_secs_f64() * 1000.0);
                self.note("run_true", who, told.unwrap_or(ms));
                if told.is_some() {
                    self.note("run_true", "quelea_whole", ms);
                }
            }
        }
    }

    /// One container from its start to its end. When that was told, if that is not when everything was cleared away.
    fn start(&mut self, who: &str, round: usize, since: Instant) -> Option<f64> {
        match who {
            "bare" => ok(Command::new(self.dir.join("rootfs/bin/true")).arg("true")),
            "floor" => {
                let cgroup = self.node.as_ref().map_or("-".into(), |n| n.pod("floor"));
                let userns = format!("/proc/{}/fd/{}", std::process::id(), self.userns.as_raw_fd());
                ok(Command::new(&self.floor).arg(self.dir.join("rootfs")).arg(userns).arg(cgroup));
            }
            "quelea" => {
                let spec = self.pod("p", &["/bin/true", "true"]);
                let mut shim = self.spawn(&spec);
                let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
                let told = ms(since);
                let good = |e: &Event| matches!(e, Event::Exited { exit, .. } if exit.success());
                assert!(events.iter().any(good), "{events:?}");
                end(shim);
                return Some(told);
            }
            peer => ok(&mut self.peer(peer, "run", &format!("r{round}"))),
        }
        None
    }

    /// A program that joins a container that stays.
    fn execs(&mut self, rounds: usize) {
        let spec = self.pod("stays", &["/bin/probe", "sleep", "600000"]);
        let mut shim = self.spawn(&spec);
        shim.wait(LONG, |e| matches!(e, Event::Started { .. })).expect("start");
        let shim_pid = shim_pid(&mut shim);
        std::fs::write(self.dir.join("config.json"), bundle(&["/bin/probe", "sleep", "600000"]))
            .expect("config");
        for who in self.peers.clone() {
            let mut c = self.peer(who, "run", "stays");
            // `--detach` must come before the container's name.
            let words: Vec<_> = c.get_args().map(ToOwned::to_owned).collect();
            let (name, rest) = words.split_last().expect("a name");
            c = Command::new(who);
            ok(c.args(rest)
                .arg("--detach")
                .arg(name)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null()));
        }
        let null = std::fs::File::open("/dev/null").expect("null");
        let spec = ExecSpec {
            container: "main".into(),
            argv: vec!["/bin/true".into(), "true".into()],
            env: vec![],
            workdir: String::new(),
            user: String::new(),
        };
        let mut all = vec!["quelea"];
        all.extend(&self.peers);
        let mut ours = None;
        for round in 0..rounds + WARM_UP {
            if round == WARM_UP {
                ours = Some(family_cpu(shim_pid));
            }
            for i in 0..all.len() {
                let who = all[(i + round) % all.len()];
                let (cpu, t) = (children_cpu(), Instant::now());
                if who == "quelea" {
                    exec(&mut shim, &spec, null.as_fd());
                } else {
                    ok(self.peer(who, "exec", "stays").args(["/bin/true", "true"]));
                }
                let (ms, cpu) = (ms(t), children_cpu().saturating_sub(cpu));
                if round >= WARM_UP {
                    self.note("exec_true", who, ms);
                    if who != "quelea" {
                        self.note("exec_true_cpu", who, cpu.as_secs_f64() * 1000.0);
                    }
                }
            }
        }
        // The clock of a family has ticks of 10 ms: one mean for all rounds.
        let ours = family_cpu(shim_pid).saturating_sub(ours.unwrap_or_default());
        let mean = ours.as_secs_f64() * 1000.0 / rounds as f64;
        (0..rounds).for_each(|_| self.note("exec_true_cpu", "quelea", mean));
        let file = format!("/proc/{shim_pid}/smaps_rollup");
        let smaps = std::fs::read_to_string(file).unwrap_or_default();
        let kb =
            smaps.lines().find_map(|l| l.strip_prefix("Anonymous:")?.trim().strip_suffix(" kB"));
        self.note("shim_private", "quelea", kb.and_then(|n| n.parse().ok()).expect("smaps"));
        let _ = shim.stop(Some(0));
        shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("stop");
        end(shim);
        for who in self.peers.clone() {
            let mut c = self.peer(who, "delete", "stays");
            let words: Vec<_> = c.get_args().map(ToOwned::to_owned).collect();
            let (name, rest) = words.split_last().expect("a name");
            c = Command::new(who);
            ok(c.args(rest).arg("--force").arg(name));
        }
    }

    /// Many at once, until the last has ended.
    fn bursts(&mut self, rounds: usize) {
        std::fs::write(self.dir.join("config.json"), bundle(&["/bin/true", "true"]))
            .expect("config");
        for round in 0..rounds {
            let specs: Vec<_> =
                (0..PODS).map(|i| self.pod(&format!("b{i}"), &["/bin/true", "true"])).collect();
            let (cpu, t) = (self.cpu(), Instant::now());
            let mut shims: Vec<Shim> = specs.iter().map(|s| self.spawn(s)).collect();
            for shim in &mut shims {
                shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("stopped");
            }
            self.note("hundred_pods", "quelea", ms(t));
            shims.into_iter().for_each(end);
            let cpu = self.cpu().saturating_sub(cpu);
            self.note("hundred_pods_cpu", "quelea", cpu.as_secs_f64() * 1000.0);
            for who in self.peers.clone() {
                // runc needs seconds for this; once says enough.
                if who == "runc" && round > 0 {
                    continue;
                }
                let (cpu, t) = (self.cpu(), Instant::now());
                let started: Vec<_> = (0..PODS)
                    .map(|i| self.peer(who, "run", &format!("b{round}-{i}")).spawn().expect("peer"))
                    .collect();
                for mut c in started {
                    assert!(c.wait().is_ok_and(|s| s.success()), "{who}");
                }
                self.note("hundred_pods", who, ms(t));
                let cpu = self.cpu().saturating_sub(cpu);
                self.note("hundred_pods_cpu", who, cpu.as_secs_f64() * 1000.0);
            }
        }
    }

    fn finish(mut self) {
        let say = |metric: &str, who: &str, value: f64, unit: &str, samples: usize| {
            println!(
                "{{\"metric\":\"{metric}\",\"who\":\"{who}\",\"value\":{value:.3},\"unit\":\"{unit}\",\"samples\":{samples}}}"
            );
        };
        for (metric, ours, theirs) in RATIOS {
            let of = |who: &str| self.samples.get(&(metric, who.to_owned()));
            let (Some(ours_ms), Some(theirs_ms)) = (of(ours), of(theirs)) else { continue };
            let ratios: Vec<f64> = ours_ms.iter().zip(theirs_ms).map(|(a, b)| a / b).collect();
            say(metric, &format!("{ours}/{theirs}"), median(&ratios), "ratio", ratios.len());
        }
        for ((metric, who), values) in &self.samples {
            let unit = if *metric == "shim_private" { "kB" } else { "ms" };
            say(metric, who, median(values), unit, values.len());
        }
        if let Some(node) = self.node.take() {
            let _ = node.remove();
        }
        let _ = std::process::Command::new("umount")
            .arg(self.dir.join("cgroup"))
            .stderr(Stdio::null())
            .status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn exec(shim: &mut Shim, spec: &ExecSpec, null: BorrowedFd<'_>) {
    shim.exec(spec, [null; 3]).expect("exec");
    let end = |e: &Event| matches!(e, Event::ExecExited { .. } | Event::ExecFailed { .. });
    let events = shim.wait(LONG, end).expect("events");
    let good = |e: &Event| matches!(e, Event::ExecExited { exit, .. } if exit.success());
    assert!(events.iter().any(good), "{events:?}");
}

fn shim_pid(shim: &mut Shim) -> u32 {
    shim.request_status().expect("status");
    let events = shim.wait(LONG, |e| matches!(e, Event::Status(_))).expect("status");
    match events.last() {
        Some(Event::Status(s)) => s.shim_pid,
        other => panic!("no status: {other:?}"),
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

fn ok(command: &mut Command) {
    let status = command.status();
    assert!(status.as_ref().is_ok_and(|s| s.success()), "{command:?}: {status:?}");
}

fn end(mut shim: Shim) {
    let _ = shim.quit();
    shim.wait(LONG, |e| matches!(e, Event::Gone)).expect("gone");
    while !shim.reap() {
        std::thread::yield_now();
    }
}

/// crun refuses a machine whose version 2 tree has controllers beside one of version 1. There this process (and its
/// children) see the second only at a place of our own.
fn one_cgroup_tree(dir: &Path) {
    if !Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
        return;
    }
    // SAFETY: nothing here runs on other threads yet.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .expect("unshare");
    let own = dir.join("cgroup");
    std::fs::create_dir_all(&own).expect("directory");
    ok(Command::new("mount").args(["--make-rprivate", "/"]));
    ok(Command::new("umount").arg("/sys/fs/cgroup/unified"));
    ok(Command::new("mount").args(["-t", "cgroup2", "none"]).arg(&own));
}

/// User and system time of all children that have been reaped, and of theirs.
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

/// How long a process that lives has run on a CPU.
fn running_for(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let ns = text.split_ascii_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

/// The same for a process and the children that it has reaped.
fn family_cpu(pid: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // utime, stime, cutime, cstime: fields 14 to 17, in ticks of 10 ms.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let ticks: u64 = fields.skip(11).take(4).filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// The same isolation for the peers, but without the user namespace, which costs them nothing.
fn bundle(argv: &[&str]) -> String {
    let allowed: Vec<String> = initd::seccomp::names::all()
        .filter(|(_, nr)| {
            let verdict = initd::seccomp::table::profile(false).get(*nr).copied();
            verdict == Some(initd::seccomp::table::Verdict::Allow)
        })
        .map(|(name, _)| format!("\"{name}\""))
        .chain(["\"clone\"", "\"socket\"", "\"ioctl\""].map(str::to_owned))
        .collect();
    let caps = initd::pod::Caps::STRICT.names().map(|n| format!("\"CAP_{n}\"")).collect::<Vec<_>>();
    let (caps, allowed) = (caps.join(","), allowed.join(","));
    let argv: Vec<String> = argv.iter().map(|a| format!("\"{a}\"")).collect();
    format!(
        r#"{{"ociVersion":"1.0.2","process":{{"terminal":false,"user":{{"uid":0,"gid":0}},"args":[{}],
"env":["PATH=/bin"],"cwd":"/","noNewPrivileges":true,"capabilities":{{"bounding":[{caps}],"effective":[{caps}],"permitted":[{caps}]}}}},
"root":{{"path":"rootfs","readonly":false}},"hostname":"x",
"mounts":[{{"destination":"/proc","type":"proc","source":"proc"}},{{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","mode=755","size=65536k"]}},
{{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"]}},
{{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["nosuid","noexec","nodev","mode=1777"]}},
{{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"}},{{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}}],
"linux":{{"namespaces":[{{"type":"pid"}},{{"type":"ipc"}},{{"type":"uts"}},{{"type":"mount"}}],
"seccomp":{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],"syscalls":[{{"names":[{allowed}],"action":"SCMP_ACT_ALLOW"}}]}},
"maskedPaths":["/proc/acpi","/proc/asound","/proc/interrupts","/proc/kcore","/proc/keys","/proc/latency_stats","/proc/sched_debug","/proc/scsi","/proc/timer_list","/proc/timer_stats","/sys/firmware","/sys/devices/virtual/powercap"],
"readonlyPaths":["/proc/bus","/proc/fs","/proc/irq","/proc/sys","/proc/sysrq-trigger"]}}}}"#,
        argv.join(",")
    )
}
