//! The agent role: threads, channels and the loop of the core thread. Decides nothing.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use crossbeam_channel::{Receiver, bounded};
use imagefs::{Mounts, Store};
use initd::cgroup::{Cgroups, NodeCgroup};
use initd::init::link::{self, AgentEnd, ToAgent, ToInit};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use tokio::sync::{Semaphore, oneshot};

use crate::adopt;
use crate::api::core::{CALLS_MAX, Call, Core};
use crate::api::server::{self, Shared};
use crate::config::{NodeConfig, NodeFile};
use crate::disk;
use crate::fetch::{Fetched, Fetcher, ORDERS_MAX};
use crate::flock::{Credentials, FlockInfo};
use crate::found::{self, Boot, Net};
use crate::node::{Adopted, Channels, Exit, Machine, Node, Parts, cgroup_conditions, find_pods};
use crate::stranger;
use crate::tls;
use crate::worker::{Done, JOBS_MAX, Worker};

const GOSSIP: Token = Token(0);
const WAKER: Token = Token(1);
const INIT: Token = Token(2);
const SIGNALS: Token = Token(3);
/// Pause between two looks for what an agent has to wait for.
const WAIT_LOOK: Duration = Duration::from_millis(100);
/// How often it says what it waits for.
const WAIT_SAY: Duration = Duration::from_secs(5);
/// Ready sockets looked at in one turn.
const READY_MAX: usize = 256;
/// Answers of a thread that wait for the core thread, which never waits for it; then the thread waits.
const ANSWERS_MAX: usize = 64;
/// The stack of a thread that calls nothing deep; the kernel gives memory only for what is touched.
const STACK_BYTES: usize = 1 << 20;

/// Runs the agent until it is told to end: it keeps nothing in memory that it does not find again. `maintenance`: why
/// it is to serve no pods and to wait for an operator.
///
/// # Errors
/// What stopped it from starting: on what, why, and what to do.
pub fn run(config_path: &Path, maintenance: Option<&str>) -> anyhow::Result<Exit> {
    check_root()?;
    let file = match NodeFile::open(config_path) {
        // What an operator has to put right must not keep an operator out.
        Err(error) if maintenance.is_some() => {
            tracing::warn!(%error, "going on without a configuration");
            NodeFile::default()
        }
        file => file?,
    };
    if maintenance.is_some() && !file.credentials.join("node.pem").exists() {
        tracing::info!("{} holds no credentials of a flock", file.credentials.display());
        return stranger::run(config_path, &file).map(|()| Exit::Quit);
    }
    let signals = initd::init::end_signals()?;
    let link = AgentEnd::from_env().context("PID 1's link")?;
    if file.maintenance && adopt::install(&file, config_path)? {
        tracing::info!("an operator has adopted this machine: its configuration is on its disk");
        let Some(link) = link.filter(|_| maintenance.is_some()) else { return Ok(Exit::Serve) };
        link.send(&ToInit::Retry)?;
        return Ok(Exit::Quit);
    }
    let by_file =
        file.maintenance.then_some("node.toml says `maintenance = true`; `quelea adopt` ends it");
    let maintenance = maintenance.filter(|reason| !reason.is_empty()).or(by_file);
    let credentials = Credentials::open(&file.credentials).with_context(|| {
        format!(
            "{} holds no credentials of a flock; make them with `quelea init node`",
            file.credentials.display()
        )
    })?;
    let Some(config) = settle(&file, config_path, &credentials, (link.as_ref(), &signals))? else {
        return Ok(Exit::Quit);
    };
    if config.name != credentials.node {
        anyhow::bail!(
            "{} names this node {}, but its credentials in {} are those of {}",
            config_path.display(),
            config.name,
            config.credentials.display(),
            credentials.node
        );
    }
    let mut machine = Machine::new(file, config_path.into(), link);
    match maintenance {
        Some(reason) => {
            machine.maintain(reason);
            tracing::warn!(reason, "maintenance: no pods are served here");
        }
        None => check_tun()?,
    }
    for dir in [&config.state, &config.run, &config.run.join("pods")] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    crate::fall::watch(&config.run);
    start(&config, machine, credentials, &signals)
}

/// Waits until the machine has what the file leaves to it. `None`: it is to end first.
fn settle(
    file: &NodeFile,
    path: &Path,
    credentials: &Credentials,
    (link, signals): (Option<&AgentEnd>, &OwnedFd),
) -> anyhow::Result<Option<NodeConfig>> {
    let image = path.with_file_name("labels");
    let started = Instant::now();
    let (mut said, mut alive) = (None, None);
    let due = |last: Option<Instant>, every| last.is_none_or(|at| at.elapsed() >= every);
    loop {
        let net = Net::read(&file.run);
        let labels = found::labels(&found::read(&image));
        let resolved = file.resolve(&credentials.node, &labels, &Boot::read(&file.run), &net);
        if resolved.is_some() {
            return Ok(resolved);
        }
        if due(said, WAIT_SAY) {
            said = Some(Instant::now());
            tracing::info!(
                waited_s = started.elapsed().as_secs(),
                "waiting for an address: {} has no `address`, and {} names none yet",
                path.display(),
                file.run.join("net").display()
            );
        }
        if let Some(link) = link {
            if due(alive, Duration::from_millis(link::ALIVE_EVERY_MS)) {
                alive = Some(Instant::now());
                link.send(&ToInit::Alive)?;
            }
            if let Ok(Some(ToAgent::Drain { .. })) = link.receive() {
                link.send(&ToInit::Drained)?;
                return Ok(None);
            }
        }
        if signalled(signals) {
            return Ok(None);
        }
        std::thread::sleep(WAIT_LOOK);
    }
}

fn start(
    config: &NodeConfig,
    machine: Machine,
    credentials: Credentials,
    signals: &OwnedFd,
) -> anyhow::Result<Exit> {
    let idle = machine.in_maintenance();
    // In maintenance the node's own store may be what is broken.
    let images = if idle { config.run.join("maintenance") } else { config.state.join("images") };
    let store = Arc::new(Store::open(images)?);
    let cgroups = Cgroups::probe();
    let mut conditions = cgroup_conditions(cgroups.as_ref());
    let name = cgroup_name(&credentials.info, &config.name);
    let cgroup = if idle { None } else { open_cgroup(cgroups.as_ref(), &name)? };
    let (adopted, remains) = if idle {
        Default::default()
    } else {
        find_pods(&config.run.join("pods"), cgroup.as_ref())
    };

    let mut poll = Poll::new().context("cannot make an epoll")?;
    let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER).context("cannot make a waker")?);
    let (job_sender, jobs) = bounded(JOBS_MAX);
    let (done_sender, done) = bounded(ANSWERS_MAX);
    let (order_sender, orders) = bounded(ORDERS_MAX);
    let (layer_sender, layers) = bounded::<Vec<disk::Layer>>(disk::LOOKS_MAX);
    let (fetched_sender, fetched) = bounded(ANSWERS_MAX);
    let (call_sender, calls) = bounded(CALLS_MAX);

    let mut layering = String::new();
    if !idle {
        let mut mounts = Mounts::new(config.run.join("layers"))?;
        sweep(config, &store, &mut mounts, (&adopted, &remains), &mut conditions);
        let quelead = std::env::current_exe().context("cannot find the agent's own binary")?;
        let upper = store.upper_dir("x").with_file_name("");
        let mut worker = Worker::new(store.clone(), mounts, cgroup.clone(), upper, &quelead);
        layering = worker.bounding().to_string();
        let fetcher = Fetcher::new(store.clone(), tls::client(&config.credentials, "node")?)?;
        // A big layer takes seconds to walk; pods do not wait for that.
        spawn("layers", waker.clone(), layers, done_sender.clone(), |layers| {
            Some(Done::Measured(disk::look(&layers)))
        })?;
        spawn("worker", waker.clone(), jobs, done_sender, move |job| worker.run(job))?;
        spawn("fetch", waker.clone(), orders, fetched_sender, move |order| {
            Some(fetcher.run(&order))
        })?;
    }
    for (fd, token) in [
        (Some(signals.as_raw_fd()), SIGNALS),
        (machine.link.as_ref().map(AsRawFd::as_raw_fd), INIT),
    ] {
        let Some(fd) = fd else { continue };
        poll.registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
            .context("cannot watch signals and PID 1's link")?;
    }
    let parts = Parts {
        credentials,
        store: store.clone(),
        cgroup,
        channels: Channels { jobs: job_sender, orders: order_sender, layers: layer_sender },
        registry: poll.registry().try_clone().context("cannot share the epoll")?,
        adopted,
        remains,
        conditions,
        machine,
        granted: config.grants.open(cgroups.as_ref()),
        layering,
    };
    let mut node = Node::open(config.clone(), parts, GOSSIP)?;
    let shared = Shared {
        core: Core::new(call_sender, waker),
        store,
        uploads: config.state.join("uploads"),
        slots: Arc::new(Semaphore::new(server::UPLOADS_MAX)),
        relays: crate::api::relay::slots(),
        netboot: Arc::default(),
        strangers: Arc::default(),
    };
    start_api(shared, config)?;
    tracing::info!(
        node = %config.name,
        gossip = %config.gossip_addr(),
        overlay = %config.overlay_addr(),
        api = %config.api_addr(),
        "the agent runs"
    );
    node.is_up();
    // What came before it was watched raises no further edge.
    node.link_readable();
    if signalled(signals) {
        node.quit();
    }
    turn(&mut poll, &mut node, &Inbox { done, fetched, calls, signals })
}

/// Removes what an earlier agent or an earlier boot left and no pod here uses any more.
fn sweep(
    config: &NodeConfig,
    store: &Store,
    mounts: &mut Mounts,
    (adopted, remains): (&[Adopted], &[String]),
    conditions: &mut Vec<String>,
) {
    // What remains of a pod is torn down in order, a little later.
    let claims: Vec<&String> = adopted.iter().map(|pod| &pod.claim).chain(remains).collect();
    let uppers: Vec<PathBuf> = claims.iter().map(|claim| store.upper_dir(claim)).collect();
    let pods = config.run.join("pods");
    let containers: Vec<PathBuf> = claims
        .iter()
        .flat_map(|claim| std::fs::read_dir(pods.join(claim).join("containers")))
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .collect();
    match mounts.sweep(&containers) {
        Ok(swept) if swept.released.is_empty() && swept.layers == 0 => {}
        Ok(swept) => tracing::info!(
            containers = swept.released.len(),
            layers = swept.layers,
            "let go of mounts that no pod uses"
        ),
        Err(error) => conditions.push(format!("mounts of earlier pods remain: {error}")),
    }
    match store.sweep_uppers(&uppers) {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "removed what pods of before had written"),
        Err(error) => conditions.push(format!("files of earlier pods remain: {error}")),
    }
}

/// What other threads send to the core thread.
struct Inbox<'a> {
    signals: &'a OwnedFd,
    done: Receiver<Done>,
    fetched: Receiver<Fetched>,
    calls: Receiver<Call>,
}

fn turn(poll: &mut Poll, node: &mut Node, inbox: &Inbox<'_>) -> anyhow::Result<Exit> {
    let mut ready = Events::with_capacity(READY_MAX);
    loop {
        let now_us = node.now_us();
        let timeout =
            node.next_deadline().map(|at| Duration::from_micros(at.saturating_sub(now_us)));
        match poll.poll(&mut ready, timeout) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            result => result.context("epoll_wait failed")?,
        }
        for event in &ready {
            match event.token() {
                GOSSIP => node.gossip_readable(),
                WAKER => {}
                INIT => node.link_readable(),
                SIGNALS => {
                    if signalled(inbox.signals) {
                        node.quit();
                    }
                }
                Token(token) => node.shim_readable(token),
            }
            node.pump();
        }
        while let Ok(done) = inbox.done.try_recv() {
            node.job_done(done);
            node.pump();
        }
        while let Ok(fetched) = inbox.fetched.try_recv() {
            node.order_done(fetched);
            node.pump();
        }
        while let Ok(call) = inbox.calls.try_recv() {
            call(node);
            node.pump();
        }
        node.tick();
        node.pump();
        if let Some(exit) = node.exit() {
            node.flush();
            return Ok(exit);
        }
    }
}

/// A thread that turns what comes through one channel into what goes through another.
fn spawn<I: Send + 'static, O: Send + 'static>(
    name: &str,
    waker: Arc<mio::Waker>,
    input: Receiver<I>,
    output: crossbeam_channel::Sender<O>,
    mut work: impl FnMut(I) -> Option<O> + Send + 'static,
) -> anyhow::Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            for item in input {
                if let Some(answer) = work(item)
                    && (output.send(answer).is_err() || waker.wake().is_err())
                {
                    return;
                }
            }
        })
        .with_context(|| format!("cannot start the {name} thread"))?;
    Ok(())
}

fn start_api(shared: Shared, config: &NodeConfig) -> anyhow::Result<()> {
    let tls = tls::server(&config.credentials)?;
    let (socket, addr) = (config.socket_path(), config.api_addr());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name("api".into())
        .stack_size(STACK_BYTES)
        .spawn(move || runtime.block_on(server::serve(shared, socket, addr, tls, sender)))
        .context("cannot start the api thread")?;
    receiver.blocking_recv().context("the api thread ended")?
}

/// Whether SIGTERM or SIGINT came since it was asked last.
fn signalled(signals: &OwnedFd) -> bool {
    let mut bytes = [0; 16];
    let mut any = false;
    while nix::unistd::read(signals, &mut bytes).is_ok_and(|n| n > 0) {
        any = true;
    }
    any
}

fn check_root() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "the agent makes namespaces and mounts and needs root; start it as root or by `sudo`"
        );
    }
    Ok(())
}

fn check_tun() -> anyhow::Result<()> {
    if !Path::new("/dev/net/tun").exists() {
        anyhow::bail!(
            "/dev/net/tun is missing: pods would have no network; load the module by `modprobe tun`"
        );
    }
    Ok(())
}

/// The name of a node's cgroup: nodes of several flocks may share a machine.
pub fn cgroup_name(flock: &FlockInfo, node: &str) -> String {
    let id = flock.id.get(..8).unwrap_or(&flock.id);
    format!("quelea-{id}-{node}")
}

fn open_cgroup(cgroups: Option<&Cgroups>, name: &str) -> anyhow::Result<Option<NodeCgroup>> {
    let Some(cgroups) = cgroups else { return Ok(None) };
    let cgroup = cgroups.node(name).with_context(|| {
        format!("cannot make this node's cgroup below {}", cgroups.root.display())
    })?;
    Ok(Some(cgroup))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A core thread that takes no answers: the thread waits, who orders is refused, and nothing that was taken is lost.
    #[test]
    fn answers_that_nobody_takes_hold_up_their_thread_alone() {
        const ORDERED: u32 = 8;
        let poll = Poll::new().unwrap();
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER).unwrap());
        let (orders, input) = bounded(ORDERED as usize);
        let (output, answers) = bounded(2);
        spawn("test", waker, input, output, Some).unwrap();
        let mut taken = 0;
        // Two answers wait, the thread has one in its hands, eight orders wait.
        while taken < 2 + 1 + ORDERED {
            taken += u32::from(orders.try_send(taken).is_ok());
            std::thread::yield_now();
        }
        assert!(orders.try_send(taken).is_err_and(|e| e.is_full()), "refused at once");
        drop(orders);
        assert_eq!(answers.iter().collect::<Vec<_>>(), (0..taken).collect::<Vec<_>>());
    }
}
