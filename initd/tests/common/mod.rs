//! A pod in a temporary directory, cleaned up whatever happens.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use initd::cgroup::{Cgroups, NodeCgroup};
use initd::pod::{ContainerSpec, PodSpec, Restart, Root, RootIdmap, Stop};
use initd::shim::{Event, Exit, PodFds, Shim, Zygote};
use initd::userns::{self, IdMap};

/// Longer than anything takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(20);
pub const PROBE: &str = env!("CARGO_BIN_EXE_initd-probe");

/// How many of so many repetitions are made: `QUELEA_TEST_PERCENT`, where a machine is emulated and slow.
pub fn part(of: usize) -> usize {
    let percent = std::env::var("QUELEA_TEST_PERCENT").ok().and_then(|p| p.parse().ok());
    (of * percent.unwrap_or(100usize)).div_ceil(100)
}

/// False (and says so): the test needs root.
pub fn root_or_skip(name: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip::because(name, "needs root");
    }
    root
}

/// A bed whose image also holds what tries to get out.
pub fn escape_bed(name: &str) -> Bed {
    let bed = Bed::new(name);
    std::fs::copy(env!("CARGO_BIN_EXE_initd-escape"), bed.root().join("bin/escape")).expect("copy");
    bed
}

pub struct Bed {
    pub dir: PathBuf,
    pub node: Option<NodeCgroup>,
    pub userns: Option<(OwnedFd, IdMap)>,
    pub netns: Option<OwnedFd>,
    zygote: Mutex<Zygote>,
}

impl Bed {
    pub fn new(name: &str) -> Self {
        let id = format!("quelea-initd-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(&id);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("pod")).expect("pod directory");
        let root = dir.join("root");
        std::fs::create_dir_all(root.join("bin")).expect("root");
        std::fs::create_dir_all(root.join("etc")).expect("root");
        std::fs::create_dir_all(root.join("tmp")).expect("root");
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:r:/root:/bin/sh\nweb:x:33:34::/www:\n")
            .expect("passwd");
        std::fs::write(root.join("etc/group"), "root:x:0:\naudio:x:29:web\n").expect("group");
        std::fs::copy(PROBE, root.join("bin/probe")).expect("probe binary");
        let node = Cgroups::probe().and_then(|c| c.node(&id).ok());
        let map = IdMap::slot(std::process::id() % IdMap::SLOTS_MAX + 1).expect("slot");
        let userns = userns::create(map).ok().map(|fd| (fd, map));
        let zygote = Mutex::new(Zygote::new(Path::new(PROBE)));
        Self { dir, node, userns, netns: None, zygote }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    pub fn pod_dir(&self) -> PathBuf {
        self.dir.join("pod")
    }

    /// A container that runs the probe with these words, once.
    pub fn container(&self, words: &[&str]) -> ContainerSpec {
        let argv = std::iter::once("/bin/probe").chain(words.iter().copied());
        ContainerSpec {
            root: Root::Mounted { path: self.root(), idmap: RootIdmap::Here },
            restart: Restart::Never,
            stop: Stop { signal: libc::SIGTERM, grace_ms: 2000 },
            ..ContainerSpec::new("main", self.root(), argv)
        }
    }

    pub fn pod(&self, containers: Vec<ContainerSpec>) -> PodSpec {
        let id = "pod-1".to_owned();
        PodSpec {
            hostname: "web-0".into(),
            host_network: self.netns.is_none(),
            cgroup: self.node.as_ref().map(|n| n.pod(&id)),
            shim_cgroup: self.node.as_ref().map(|n| n.shim(&id)),
            containers,
            ..PodSpec::new(id, self.pod_dir())
        }
    }

    pub fn spawn(&self, spec: &PodSpec) -> Shim {
        let fds = PodFds {
            netns: self.netns.as_ref().map(|fd| fd.as_fd()),
            tun: None,
            userns: self.userns.as_ref().map(|(fd, map)| (fd.as_fd(), *map)),
        };
        self.zygote.lock().expect("zygote").spawn(spec, fds).expect("spawn")
    }

    /// Runs one container to its end: how it ended, and its log without times.
    pub fn run(&self, container: ContainerSpec) -> (Exit, String) {
        let mut shim = self.spawn(&self.pod(vec![container]));
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        let exit = events
            .iter()
            .find_map(|e| if let Event::Exited { exit, .. } = e { Some(*exit) } else { None });
        let exit = exit.unwrap_or_else(|| panic!("no exit in {events:#?}"));
        let text = self.log("main");
        finish(shim);
        (exit, text)
    }

    /// What a container says that cannot start.
    pub fn failure(&self, container: ContainerSpec) -> String {
        let mut shim = self.spawn(&self.pod(vec![container]));
        let events = shim.wait(LONG, |e| matches!(e, Event::Stopped)).expect("events");
        finish(shim);
        let text = events.iter().find_map(|e| match e {
            Event::Failed { text, .. } => Some(text.clone()),
            _ => None,
        });
        text.unwrap_or_else(|| panic!("{events:#?}"))
    }

    /// The lines of a container's log, without time, stream and tag.
    pub fn log(&self, container: &str) -> String {
        let bytes =
            std::fs::read(self.pod_dir().join(format!("logs/{container}.log"))).unwrap_or_default();
        let lines = bytes.split(|b| *b == b'\n').filter_map(initd::log::parse);
        lines.map(|l| String::from_utf8_lossy(l.text).into_owned() + "\n").collect()
    }
}

/// Tells the shim to end and collects it.
pub fn finish(mut shim: Shim) {
    let _ = shim.stop(Some(0));
    shim.wait(LONG, |e| matches!(e, Event::Stopped | Event::Gone)).expect("stopped");
    let _ = shim.quit();
    shim.wait(LONG, |e| matches!(e, Event::Gone)).expect("gone");
    eventually("the shim's process", || shim.reap());
}

/// Processes with this word in their command line.
pub fn running(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|e| std::fs::read(e.path().join("cmdline")).ok())
        .filter(|c| c.split(|b| *b == 0).any(|w| w == word.as_bytes()))
        .count()
}

/// A network namespace with only a loopback that is up.
pub fn netns() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: a fresh thread that shares no file system state that matters, and ends here.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("unshare");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|s| s.success()), "ip link set lo up");
        std::fs::File::open("/proc/thread-self/ns/net").expect("netns").into()
    })
    .join()
    .expect("thread")
}

pub fn eventually(what: &str, mut ok: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !ok() {
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Ok(mut shim) = Shim::attach(&self.pod_dir()) {
            let _ = shim.stop(Some(0));
            let _ = shim.wait(LONG, |e| matches!(e, Event::Stopped | Event::Gone));
            let _ = shim.quit();
            let _ = shim.wait(LONG, |e| matches!(e, Event::Gone));
        }
        if let Some(node) = self.node.take() {
            let _ = node.remove();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
