//! The supervisor of a dev flock: makes it, waits until it is up, serves its control socket, removes it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::api::client::Endpoint;
use agent::api::types::{Nodes, Status};
use agent::config::{Capacity, NodeFile};
use agent::flock::{Bundle, FlockInfo};
use agent::grants::GrantsFile;
use agent::host;
use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use super::control::{self, Answer, Request};
use super::node::{self, Running};
use super::registry::{self, DevFlock, DevNode, run_dir, state_dir};

/// The flock must be up by then.
const UP_TIMEOUT: Duration = Duration::from_secs(30);
/// The supervisor must have removed everything by then.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The bridge in the supervisor's network namespace.
const BRIDGE: &str = "flock0";

/// What flock to make.
pub(super) struct Plan {
    /// Nodes.
    pub(super) nodes: u8,
    /// Racks they stand in.
    pub(super) racks: u8,
    /// A file whose text is the `[grants]` of every node.
    pub(super) grants: Option<PathBuf>,
}

impl Plan {
    fn granted(&self) -> Result<GrantsFile> {
        let Some(path) = &self.grants else { return Ok(GrantsFile::default()) };
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the grants {}", path.display()))?;
        let granted: GrantsFile =
            toml::from_str(&text).with_context(|| format!("{} holds no grants", path.display()))?;
        granted.check().map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
        Ok(granted)
    }

    fn dev_nodes(&self, flock: &FlockInfo) -> Vec<DevNode> {
        (1..=self.nodes)
            .map(|n| DevNode {
                name: format!("n{n}"),
                address: format!("10.77.0.{n}"),
                rack: format!("r{}", (n - 1) % self.racks + 1),
                cgroup: agent::runtime::cgroup_name(flock, &format!("n{n}")),
            })
            .collect()
    }
}

/// Starts a supervisor in the background and returns when the flock is up.
pub(super) fn detach(plan: &Plan) -> Result<()> {
    let start = Instant::now();
    let lock = lock()?;
    make_dir(&run_dir())?;
    // A supervisor that was killed leaves its socket, which would look like a flock that is up.
    let _ = fs::remove_file(control::path());
    drop(lock);
    let log_path = run_dir().join("supervisor.log");
    let log =
        File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["dev", "--supervise", "--nodes", &plan.nodes.to_string()])
        .args(["--racks", &plan.racks.to_string()])
        .args(plan.grants.iter().flat_map(|path| [OsStr::new("--grants"), path.as_os_str()]))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .current_dir("/");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = command.spawn().context("cannot start the supervisor")?;
    let socket = control::path();
    loop {
        // The control socket is made last, once the flock is up.
        if socket.exists() {
            break;
        }
        if let Some(status) = child.try_wait()? {
            // The file itself may be gone: the supervisor removes what it made.
            let mut text = String::new();
            let mut log = &log;
            log.rewind()?;
            log.read_to_string(&mut text)?;
            bail!("the supervisor ended ({status}):\n{}", text.trim_end());
        }
        if start.elapsed() > UP_TIMEOUT + Duration::from_secs(5) {
            bail!("the flock is not up after {:?}; see {}", start.elapsed(), log_path.display());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    say_up(plan, start);
    eprintln!("stop it with: quelea dev stop");
    Ok(())
}

/// Makes a flock and keeps it until a signal; removes everything then.
pub(super) fn supervise(plan: &Plan, background: bool) -> Result<()> {
    let start = Instant::now();
    // Before any thread, so that all inherit it: the signals are read from a descriptor.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot make a signalfd")?;
    if background {
        // Its own session: a closed terminal is no reason to stop.
        let _ = nix::unistd::setsid();
    }
    let _lock = lock()?;
    // What a supervisor left that was killed.
    clear(&registry::read().map(|flock| flock.nodes).unwrap_or_default())?;
    let mut flock = Supervised::new(plan)?;
    let result = flock.run(plan, start, &signals, background);
    let cleared = flock.remove();
    result.and(cleared)
}

/// Stops the supervisor that runs, or clears what a killed one left.
pub(super) fn stop() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("removing namespaces and mounts needs root; run\n  sudo quelea dev stop");
    }
    if let Ok(lock) = lock() {
        let flock = registry::read();
        let nodes = flock.map(|flock| flock.nodes).unwrap_or_default();
        let there = run_dir().join("nodes").exists();
        clear(&nodes)?;
        drop(lock);
        remove_dir(&run_dir())?;
        eprintln!(
            "{}",
            if there { "removed what a former dev flock left" } else { "no dev flock runs here" }
        );
        return Ok(());
    }
    let pid_path = run_dir().join("supervisor.pid");
    let pid: i32 = fs::read_to_string(&pid_path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .with_context(|| format!("{} does not name the supervisor", pid_path.display()))?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop the supervisor")?;
    let start = Instant::now();
    while lock().is_err() {
        if start.elapsed() > STOP_TIMEOUT {
            bail!("the supervisor (PID {pid}) is still busy after {STOP_TIMEOUT:?}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
    remove_dir(&run_dir())?;
    eprintln!("stopped");
    Ok(())
}

/// Held as long as a supervisor lives, however it ends.
fn lock() -> Result<Flock<File>> {
    let path = registry::lock_path();
    make_dir(path.parent().unwrap_or(Path::new("/")))?;
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!("a dev flock runs on this machine already; stop it with `quelea dev stop`")
    })
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create {}", dir.display()))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Removes everything of a flock that does not run: directories and cgroups.
fn clear(nodes: &[DevNode]) -> Result<()> {
    for dir in ["nodes", "flock"] {
        remove_dir(&run_dir().join(dir))?;
    }
    for file in ["flock.json", "control.sock"] {
        let _ = fs::remove_file(run_dir().join(file));
    }
    remove_dir(&state_dir())?;
    let Some(cgroups) = initd::cgroup::Cgroups::probe() else { return Ok(()) };
    for name in cgroup_names(&cgroups.root, nodes) {
        let removed = cgroups.node(&name).and_then(initd::cgroup::NodeCgroup::remove);
        if let Err(error) = removed {
            eprintln!("note: the cgroup {name}: {error}");
        }
    }
    Ok(())
}

/// The cgroups of a flock's nodes, also of those that were adopted under other names.
fn cgroup_names(root: &Path, nodes: &[DevNode]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = nodes.iter().map(|node| node.cgroup.clone()).collect();
    // All of a flock begin alike, with its identity.
    if let Some(flock) = nodes.first().and_then(|node| node.cgroup.strip_suffix(&node.name)) {
        let there = fs::read_dir(root).into_iter().flatten().flatten();
        let there = there.filter_map(|entry| entry.file_name().into_string().ok());
        names.extend(there.filter(|name| name.starts_with(flock)));
    }
    names
}

struct Supervised {
    nodes: Vec<DevNode>,
    running: BTreeMap<String, Running>,
    quelead: PathBuf,
}

impl Supervised {
    /// The bridge, the keys and the configurations; no node runs yet.
    fn new(plan: &Plan) -> Result<Self> {
        let quelead = std::env::current_exe()?.with_file_name("quelead");
        if !quelead.exists() {
            bail!("{} is missing: it belongs beside `quelea`", quelead.display());
        }
        make_dir(&run_dir())?;
        fs::write(run_dir().join("supervisor.pid"), std::process::id().to_string())?;
        // From here on the machine's own network is out of reach, and nothing of ours is in it.
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        node::ip(&format!(
            "link set lo up\nlink add {BRIDGE} type bridge\nlink set {BRIDGE} up\n"
        ))?;
        let bundle_dir = run_dir().join("flock");
        let bundle = Bundle::create(&bundle_dir, &registry::name(), "dev")?;
        let nodes = plan.dev_nodes(&bundle.info);
        let granted = plan.granted()?;
        for dev in &nodes {
            bundle.issue_node(&dev.name, &dev.dir().join("credentials"))?;
            let config = toml::to_string(&config(dev, &nodes, &granted)?)?;
            fs::write(dev.dir().join("node.toml"), config)?;
        }
        let supervisor = i32::try_from(std::process::id()).unwrap_or(0);
        DevFlock { supervisor, bundle: bundle_dir, nodes: nodes.clone() }.write()?;
        Ok(Self { nodes, running: BTreeMap::new(), quelead })
    }

    fn run(
        &mut self,
        plan: &Plan,
        start: Instant,
        signals: &SignalFd,
        background: bool,
    ) -> Result<()> {
        for name in self.nodes.iter().map(|node| node.name.clone()).collect::<Vec<_>>() {
            self.start(&name)?;
        }
        if !self.wait_up(signals)? {
            return Ok(());
        }
        let listener =
            UnixListener::bind(control::path()).context("cannot make the control socket")?;
        listener.set_nonblocking(true)?;
        if !background {
            say_up(plan, start);
            eprintln!("stop it with Ctrl-C");
        }
        loop {
            let mut fds = [
                PollFd::new(listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::from(1000u16)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("poll failed"),
            }
            if signals.read_signal()?.is_some() {
                return Ok(());
            }
            self.note_ended();
            if let Ok((stream, _)) = listener.accept() {
                let served = control::serve(stream, |request| self.decide(&request));
                if let Err(error) = served {
                    eprintln!("control: {error:#}");
                }
            }
        }
    }

    fn note_ended(&mut self) {
        let ended: Vec<String> = self
            .running
            .iter()
            .filter(|(_, running)| running.has_ended())
            .map(|(name, _)| name.clone())
            .collect();
        for name in ended {
            self.running.remove(&name);
            eprintln!(
                "{name} has ended; its log is {}/nodes/{name}/agent.log",
                run_dir().display()
            );
        }
    }

    fn decide(&mut self, request: &Request) -> Answer {
        match request {
            Request::Kill(name) => match self.running.remove(name) {
                Some(running) => {
                    running.kill();
                    Ok(format!("{name} has no power"))
                }
                None => Err(self.unknown(name, "has no power already")),
            },
            Request::Start(name) if self.running.contains_key(name) => {
                Err(format!("{name} runs already"))
            }
            Request::Start(name) => {
                if !self.nodes.iter().any(|node| node.name == *name) {
                    return Err(self.unknown(name, ""));
                }
                self.start(name).map_err(|error| format!("{error:#}"))?;
                Ok(format!("{name} has power again"))
            }
        }
    }

    fn unknown(&self, name: &str, otherwise: &str) -> String {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        if names.contains(&name) {
            return format!("{name} {otherwise}");
        }
        format!("no node {name}; there are {}", names.join(", "))
    }

    fn start(&mut self, name: &str) -> Result<()> {
        let dev = self.nodes.iter().find(|node| node.name == name).context("no such node")?;
        let running = node::start(dev, &self.quelead, &dev.dir().join("node.toml"))?;
        self.running.insert(name.to_owned(), running);
        node::ip(&format!("link set {name} master {BRIDGE}\nlink set {name} up\n"))
    }

    /// Whether every node knows every other and has addresses for pods; false if a signal came first.
    fn wait_up(&mut self, signals: &SignalFd) -> Result<bool> {
        let start = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut waiting: Vec<DevNode> = self.nodes.clone();
        loop {
            let mut reasons = Vec::new();
            waiting.retain(|node| match runtime.block_on(is_up(node, self.nodes.len())) {
                Ok(()) => false,
                Err(reason) => {
                    reasons.push(format!("{}: {reason}", node.name));
                    true
                }
            });
            if waiting.is_empty() {
                return Ok(true);
            }
            if signals.read_signal()?.is_some() {
                return Ok(false);
            }
            if let Some((name, _)) = self.running.iter().find(|(_, r)| r.has_ended()) {
                bail!("{name} ended at once:\n{}", log_tail(name));
            }
            if start.elapsed() > UP_TIMEOUT {
                let name = waiting.first().map(|node| node.name.clone()).unwrap_or_default();
                bail!("not up after {UP_TIMEOUT:?}: {}\n{}", reasons.join("; "), log_tail(&name));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Cuts every node's power and removes everything.
    fn remove(self) -> Result<()> {
        for running in self.running.into_values() {
            running.kill();
        }
        clear(&self.nodes)?;
        remove_dir(&run_dir())
    }
}

fn log_tail(name: &str) -> String {
    let path = run_dir().join("nodes").join(name).join("agent.log");
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}

async fn is_up(node: &DevNode, expected: usize) -> Result<(), String> {
    let endpoint = Endpoint::Unix(node.socket());
    let status: Status =
        endpoint.get("/v1/status").await.map_err(|_| "its API is not there yet".to_owned())?;
    if usize::try_from(status.alive).unwrap_or(0) < expected {
        return Err(format!("sees {} of {expected} nodes", status.alive));
    }
    if !status.network_ready {
        return Err("has no pod addresses yet".into());
    }
    let nodes: Nodes = endpoint.get("/v1/nodes").await.map_err(|error| error.to_string())?;
    match nodes.nodes.iter().find(|node| node.prefix.is_empty()) {
        Some(node) => Err(format!("does not know the addresses of {} yet", node.name)),
        None => Ok(()),
    }
}

fn config(dev: &DevNode, all: &[DevNode], granted: &GrantsFile) -> Result<NodeFile> {
    let count = u64::try_from(all.len()).unwrap_or(1).max(1);
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Ok(NodeFile {
        name: Some(dev.name.clone()),
        address: Some(dev.address.parse()?),
        join: all
            .iter()
            .filter(|other| other.name != dev.name)
            .map(|other| Ok(format!("{}:{}", other.address, agent::config::GOSSIP_PORT).parse()?))
            .collect::<Result<_>>()?,
        credentials: dev.dir().join("credentials"),
        state: dev.state(),
        run: dev.dir().join("run"),
        labels: [
            label("row", "a"),
            label("rack", &dev.rack),
            label("power", &dev.rack.replace('r', "p")),
        ]
        .into(),
        capacity: Capacity {
            // The nodes share the machine: memory is divided, CPU is what the scheduler makes of it.
            cpu: None,
            memory_mib: Some((host::memory_bytes() >> 20) / count),
            pods: None,
        },
        grants: granted.clone(),
        ..NodeFile::default()
    })
}

fn say_up(plan: &Plan, start: Instant) {
    eprintln!(
        "{} nodes in {} racks are up after {:.2} s",
        plan.nodes,
        plan.racks,
        start.elapsed().as_secs_f64()
    );
    eprintln!(
        "look around: quelea nodes; bring an image in: quelea image import LAYOUT; run an app: quelea run FILE"
    );
}
