//! The agent role: threads, channels and the loop of the core thread. Decides nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use crossbeam_channel::{Receiver, unbounded};
use imagefs::{Mounts, Store};
use initd::cgroup::{Cgroups, NodeCgroup};
use mio::{Events, Poll, Token};
use tokio::sync::{Semaphore, oneshot};

use crate::api::server::{self, Call, Core, Shared};
use crate::config::NodeConfig;
use crate::fetch::{Fetched, Fetcher};
use crate::flock::{Credentials, FlockInfo};
use crate::node::{Channels, Node, Parts, cgroup_conditions, find_pods};
use crate::tls;
use crate::worker::{Done, Worker};

const GOSSIP: Token = Token(0);
const WAKER: Token = Token(1);
/// Ready sockets looked at in one turn.
const READY_MAX: usize = 256;
/// The stack of a thread that calls nothing deep; the kernel gives memory only for what is touched.
const STACK_BYTES: usize = 1 << 20;

/// Runs the agent until it is killed: it keeps nothing in memory that it does not find again.
///
/// # Errors
/// What stopped it from starting: on what, why, and what to do.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    let config = NodeConfig::open(config_path)?;
    check_privileges()?;
    let credentials = Credentials::open(&config.credentials).with_context(|| {
        format!(
            "{} holds no credentials of a flock; make them with `quelea init node`",
            config.credentials.display()
        )
    })?;
    for dir in [&config.state, &config.run, &config.run.join("pods")] {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let store = Arc::new(Store::open(config.state.join("images"))?);
    let mounts = Mounts::new(config.run.join("layers"))?;
    let cgroups = Cgroups::probe();
    let conditions = cgroup_conditions(cgroups.as_ref());
    let cgroup = open_cgroup(cgroups.as_ref(), &cgroup_name(&credentials.info, &config.name))?;
    let (adopted, remains) = find_pods(&config.run.join("pods"));

    let mut poll = Poll::new().context("cannot make an epoll")?;
    let waker = Arc::new(mio::Waker::new(poll.registry(), WAKER).context("cannot make a waker")?);
    let (job_sender, jobs) = unbounded();
    let (done_sender, done) = unbounded();
    let (order_sender, orders) = unbounded();
    let (fetched_sender, fetched) = unbounded();
    let (call_sender, calls) = unbounded();

    let quelead = std::env::current_exe().context("cannot find the agent's own binary")?;
    let upper = config.state.join("upper");
    let mut worker = Worker::new(store.clone(), mounts, cgroup.clone(), upper, quelead);
    let fetcher = Fetcher::new(store.clone(), tls::client(&config.credentials, "node")?)?;
    spawn("worker", waker.clone(), jobs, done_sender, move |job| worker.run(job))?;
    spawn("fetch", waker.clone(), orders, fetched_sender, move |order| Some(fetcher.run(&order)))?;

    let parts = Parts {
        credentials,
        store: store.clone(),
        cgroup,
        channels: Channels { jobs: job_sender, orders: order_sender },
        registry: poll.registry().try_clone().context("cannot share the epoll")?,
        adopted,
        remains,
        conditions,
    };
    let mut node = Node::open(config.clone(), parts, GOSSIP)?;
    let shared = Shared {
        core: Core::new(call_sender, waker),
        store,
        uploads: config.state.join("uploads"),
        slots: Arc::new(Semaphore::new(server::UPLOADS_MAX)),
    };
    start_api(shared, &config)?;
    tracing::info!(
        node = %config.name,
        gossip = %config.gossip_addr(),
        overlay = %config.overlay_addr(),
        api = %config.api_addr(),
        "the agent runs"
    );
    turn(&mut poll, &mut node, &Inbox { done, fetched, calls })
}

/// What other threads send to the core thread.
struct Inbox {
    done: Receiver<Done>,
    fetched: Receiver<Fetched>,
    calls: Receiver<Call>,
}

fn turn(poll: &mut Poll, node: &mut Node, inbox: &Inbox) -> anyhow::Result<()> {
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

fn check_privileges() -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!(
            "the agent makes namespaces and mounts and needs root; start it as root or by `sudo`"
        );
    }
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
