//! One node: the cores side by side, and the order in which one's outputs become another's inputs.
//!
//! ```text
//!  datagrams ─▶ gossip ─▶ records, members, messages ─▶ sched ─▶ claims ─▶ pods ─▶ jobs ─▶ worker
//!                 ▲            │                          │                  ▲               │
//!                 └── puts ◀───┴──── ipam ◀───────────────┘                  └── observed ◀──┘
//! ```
//!
//! Everything here runs on the core thread and nothing here blocks; what may block is a [`Job`] for the worker or an
//! [`Order`] for the fetcher. Decisions are the cores'; this module carries.

mod carry;
mod images;
mod keys;
mod layers;
mod machine;
mod meet;
mod network;
mod peers;
mod pods;
mod records;
mod sessions;
mod shims;
mod submit;
mod views;
mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::Sender;
use gossip::driver::Driver;
use imagefs::{ImageRecord, Store};
use initd::cgroup::{Cgroups, NodeCgroup};
use netshim::Overlay;
use netshim::ipam::{Ipam, PodAddresses};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use sched::{NodeRecord, Sched};
use tokio::sync::oneshot;

use crate::config::NodeConfig;
use crate::disk::Layer;
use crate::events::Events;
use crate::fetch::{Fetched, Order};
use crate::flock::Credentials;
use crate::host::{self, Clock};
use crate::peers::PeerFiles;
use crate::plan::Kept;
use crate::pods::Pods;
use crate::trust::Submission;
use crate::worker::{Done, Job};

pub use images::Survey;
pub use sessions::{Attached, ExecNews, ExecRequest, Running};

/// Steps of the cores in one turn of the loop; what is left waits for the next turn, after the sockets were looked at.
const STEPS_MAX: usize = 10_000;
/// A stall of the core thread that is told of, in microseconds.
const STALL_TOLD_US: u64 = 2_000_000;

/// What a core said, waiting to be carried to the next.
pub(crate) enum Todo {
    Gossip(gossip::Event),
    Sched(sched::Output),
    Pods(crate::pods::Action),
    Ipam(netshim::ipam::Output),
}

/// A verified spec.
pub(crate) struct Stored {
    pub(crate) submission: Submission,
    pub(crate) operator: String,
}

/// Channels to the threads that may block.
pub struct Channels {
    /// To the worker.
    pub jobs: Sender<Job>,
    /// To the fetcher.
    pub orders: Sender<Order>,
    /// To who measures what containers write.
    pub layers: Sender<Vec<Layer>>,
}

/// One node.
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) credentials: Credentials,
    pub(crate) clock: Clock,
    rng: StdRng,
    pub(crate) driver: Driver,
    pub(crate) sched: Sched,
    pub(crate) pods: Pods,
    pub(crate) store: Arc<Store>,
    ipam: Ipam,
    addresses: Option<PodAddresses>,
    /// Whether the data thread has `mesh0`.
    host_attached: bool,
    overlay: Arc<Overlay>,
    overlay_key: netshim::keys::PublicKey,
    cgroup: Option<NodeCgroup>,
    grants: Arc<initd::grants::Grants>,
    /// How containers' layers are bounded, in words.
    layering: String,
    features: sched::spec::Features,
    channels: Channels,
    registry: mio::Registry,
    local: BTreeMap<String, pods::Local>,
    tokens: BTreeMap<usize, String>,
    /// Shims that have closed their socket and are not quite dead: a child is a zombie until it is collected.
    ending: Vec<initd::shim::Shim>,
    next_token: usize,
    pub(crate) nodes: BTreeMap<String, NodeRecord>,
    pub(crate) specs: BTreeMap<(String, String), Stored>,
    pub(crate) images: BTreeMap<String, ImageRecord>,
    pub(crate) tags: BTreeMap<String, String>,
    held: BTreeSet<String>,
    collector: images::Collector,
    looks: layers::Looks,
    pub(crate) events: Events,
    pub(crate) conditions: BTreeSet<String>,
    pub(crate) joined: bool,
    /// When a node whose seeds do not answer begins on its own.
    alone_us: Option<u64>,
    pub(crate) machine: machine::Machine,
    todo: VecDeque<Todo>,
    peers: PeerFiles,
    overlay_dirty: bool,
    published: Option<NodeRecord>,
    /// Who waits until a key's newest version is on disk.
    durable: BTreeMap<String, Vec<oneshot::Sender<()>>>,
    keys: crate::keys::Ring,
}

/// What a node is made from, besides its configuration.
pub struct Parts {
    /// Its credentials.
    pub credentials: Credentials,
    /// Its images.
    pub store: Arc<Store>,
    /// Where its cgroups are; none where the machine has none.
    pub cgroup: Option<NodeCgroup>,
    /// Channels to the other threads.
    pub channels: Channels,
    /// The loop's registry.
    pub registry: mio::Registry,
    /// Pods of an earlier agent whose shims live.
    pub adopted: Vec<pods::Adopted>,
    /// Directories of pods whose shims are gone: claim ids.
    pub remains: Vec<String>,
    /// What the machine lacks.
    pub conditions: Vec<String>,
    /// What the machine is, and what PID 1 says.
    pub machine: Machine,
    /// What the node's owner lets pods have.
    pub granted: crate::grants::Opened,
    /// How containers' layers are bounded, in words.
    pub layering: String,
}

pub use machine::{Exit, IMAGE_WORD, Machine};
pub use pods::{Adopted, find_pods};

/// Begins a condition that ends with [`gossip::Event::LogRestored`].
const LOG_FAILED: &str = "gossip log:";

/// What the machine's cgroups lack, for the node's conditions.
pub fn cgroup_conditions(cgroups: Option<&Cgroups>) -> Vec<String> {
    match cgroups {
        None => vec!["no cgroup v2: pods run without limits, and are stopped by signals".into()],
        Some(cgroups) => {
            let missing = cgroups.missing();
            if missing.is_empty() {
                return Vec::new();
            }
            vec![format!(
                "cgroup v2 at {} lacks {}: these limits are not enforced",
                cgroups.root.display(),
                missing.join(", ")
            )]
        }
    }
}

impl Node {
    /// Opens the log, binds the sockets, takes over what an earlier agent left. Nothing is sent yet.
    pub fn open(config: NodeConfig, parts: Parts, gossip: mio::Token) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let clock = Clock::start();
        let now_us = clock.now_us();
        let mut rng = StdRng::try_from_rng(&mut rand::rngs::SysRng)
            .context("the kernel gave no random bytes")?;
        let keys = keys::open(&config, &parts.credentials)?;
        let mut machine = parts.machine;
        let mut driver = meet::open(&config, &keys, &mut machine, now_us)?;
        driver.register(&parts.registry, gossip)?;
        let ipam = Ipam::new(&config.name, &parts.credentials.info.id_bytes()?);
        let (overlay, overlay_key) = if machine.in_maintenance() {
            network::open_idle(&parts.credentials, &ipam, &mut rng)?
        } else {
            network::open(&config, &parts.credentials, &ipam, &mut rng)?
        };
        let sched = Sched::new(
            // A node that was told of others starts nothing until it has met one.
            sched::Config { bootstrap: config.join.is_empty(), ..sched::Config::new(&config.name) },
            now_us,
        );
        let mut node = Self {
            alone_us: None,
            sched,
            ipam,
            overlay: Arc::new(overlay),
            overlay_key,
            driver,
            clock,
            rng,
            store: parts.store,
            cgroup: parts.cgroup,
            channels: parts.channels,
            registry: parts.registry,
            credentials: parts.credentials,
            conditions: parts.conditions.into_iter().chain(parts.granted.conditions).collect(),
            layering: parts.layering,
            grants: Arc::new(parts.granted.grants),
            features: parts.granted.features,
            pods: Pods::new(),
            addresses: None,
            host_attached: false,
            local: BTreeMap::new(),
            tokens: BTreeMap::new(),
            ending: Vec::new(),
            next_token: pods::FIRST_SHIM_TOKEN,
            nodes: BTreeMap::new(),
            specs: BTreeMap::new(),
            images: BTreeMap::new(),
            tags: BTreeMap::new(),
            held: BTreeSet::new(),
            collector: images::Collector::default(),
            looks: layers::Looks::default(),
            events: Events::default(),
            joined: false,
            machine,
            todo: VecDeque::new(),
            peers: PeerFiles::default(),
            overlay_dirty: false,
            published: None,
            durable: BTreeMap::new(),
            keys,
            config,
        };
        node.recover(parts.adopted, parts.remains)?;
        Ok(node)
    }

    /// Feeds the cores what is known from before, in the order they ask for.
    fn recover(&mut self, adopted: Vec<Adopted>, remains: Vec<String>) -> anyhow::Result<()> {
        if !self.machine.in_maintenance() {
            for record in self.store.list()? {
                self.image_is_here(&record.manifest_digest.to_string());
            }
            self.restore_network();
        }
        let records: Vec<gossip::Record> = self.driver.gossip().range("").cloned().collect();
        for record in records {
            self.record_changed(&record);
        }
        // The roster counts for what is a majority, also before its members answer.
        let me = self.driver.gossip().me().name.clone();
        let roster: Vec<gossip::Member> =
            self.driver.gossip().members().filter(|member| member.name != me).cloned().collect();
        for member in &roster {
            let state = carry::member_state(member.state);
            self.sched_step(sched::Input::Member { name: &member.name, state });
        }
        self.publish();
        let kept: Vec<(String, Kept)> =
            adopted.iter().map(|a| (a.claim.clone(), a.kept.clone())).collect();
        for pod in adopted {
            self.adopt(pod);
        }
        for (claim, kept) in &kept {
            if let Some(addresses) = &mut self.addresses
                && !addresses.restore(kept.addr)
            {
                self.events.add(
                    self.clock.wall_ms(),
                    format!("pod/{claim}"),
                    format!("its address {} is outside of this node's prefix", kept.addr.ip4),
                );
            }
        }
        if !self.machine.in_maintenance() {
            self.explain_lost(&remains);
        }
        for claim in remains {
            self.pods_step(crate::pods::Input::Remains { claim, failure: None });
        }
        if self.machine.in_maintenance() {
            // Not recovered: offers are refused, and no claim is said to be gone. What runs from before is to move.
            self.sched_step(sched::Input::Drain(true));
        } else {
            self.sched_step(sched::Input::Recovered);
        }
        // The first node of a flock has nobody to ask; others give their seeds a while.
        let now_us = self.clock.now_us();
        self.joined = self.config.is_first();
        self.alone_us = Some(if self.joined { now_us } else { now_us + network::ALONE_AFTER_US });
        self.pump();
        Ok(())
    }

    /// The gossip socket is readable.
    pub fn gossip_readable(&mut self) {
        let mut events = Vec::new();
        let result = self.driver.readable(self.clock.now_us(), &mut events);
        self.gossip_said(result, events);
    }

    /// A shim's socket is readable.
    pub fn shim_readable(&mut self, token: usize) {
        if let Some(claim) = self.tokens.get(&token).cloned() {
            self.shim_said(&claim);
        }
    }

    /// A job is done.
    pub fn job_done(&mut self, done: Done) {
        match done {
            Done::Prepared { claim, result, conditions } => {
                self.prepared(claim, result, conditions);
            }
            Done::Torn { claim, left } => self.torn(&claim, &left),
            Done::Surveyed(survey) => self.surveyed(survey),
            Done::Collected(result) => self.collected(result),
            Done::Measured(seen) => self.layers_seen(seen),
            Done::Told { failed } => self.peers.written(&failed),
        }
    }

    /// An order is done.
    pub fn order_done(&mut self, fetched: Fetched) {
        let at_ms = self.clock.wall_ms();
        let about = format!("image/{}", fetched.digest);
        let result = match fetched.result {
            Ok(source) => {
                let bytes = fetched.received_bytes;
                self.events.add(at_ms, about, format!("{bytes} bytes fetched from {source}"));
                self.image_is_here(&fetched.digest);
                self.fetch_again(&fetched.digest, 0);
                self.publish();
                crate::fall::step("fetched");
                Ok(())
            }
            Err(_) if self.fetch_again(&fetched.digest, fetched.lacks_bytes) => return,
            Err(reason) => {
                self.events.add(at_ms, about, reason.clone());
                Err(reason)
            }
        };
        self.pods_step(crate::pods::Input::Fetched { digest: fetched.digest, result });
    }

    /// Does what is due.
    pub fn tick(&mut self) {
        self.ending.retain_mut(|shim| !shim.reap());
        let now_us = self.clock.now_us();
        let mut events = Vec::new();
        let result = self.driver.timer(now_us, &mut events);
        self.gossip_said(result, events);
        if self.sched.next_deadline().is_some_and(|at| at <= now_us) {
            self.sched_step(sched::Input::Timer);
        }
        if self.pods.next_deadline().is_some_and(|at| at <= now_us) {
            self.pods_step(crate::pods::Input::Timer);
        }
        if self.ipam.next_deadline().is_some_and(|at| at <= now_us) {
            self.ipam_step(netshim::ipam::Input::Timer);
        }
        if self.alone_us.is_some_and(|at| at <= now_us) {
            self.begin_addresses();
        }
        self.machine_tick(now_us);
    }

    /// Now, in the node's clock.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// When [`Node::tick`] is due, in the node's clock.
    pub fn next_deadline(&self) -> Option<u64> {
        [
            self.driver.next_deadline(),
            self.sched.next_deadline(),
            self.pods.next_deadline(),
            self.ipam.next_deadline(),
            self.alone_us,
            self.peers.next_deadline(),
            Some(self.machine.next_deadline()),
            (!self.todo.is_empty()).then_some(0),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Carries outputs to where they are inputs until nothing is left, or the turn is long enough.
    pub fn pump(&mut self) {
        for _ in 0..STEPS_MAX {
            let Some(todo) = self.todo.pop_front() else { break };
            match todo {
                Todo::Gossip(event) => self.gossip_event(event),
                Todo::Sched(output) => self.sched_output(output),
                Todo::Pods(action) => self.pod_action(action),
                Todo::Ipam(output) => self.ipam_output(output),
            }
        }
        if std::mem::take(&mut self.overlay_dirty) {
            self.update_overlay_peers();
        }
        if self.peers.next_deadline().is_some_and(|at| at <= self.clock.now_us()) {
            self.write_peers();
        }
    }

    fn gossip_said(&mut self, result: Result<(), gossip::Error>, events: Vec<gossip::Event>) {
        if let Err(error) = result {
            self.condition(format!("{LOG_FAILED} {error}"));
        }
        self.todo.extend(events.into_iter().map(Todo::Gossip));
    }

    pub(crate) fn gossip_step(&mut self, input: gossip::Input<'_>) {
        let mut events = Vec::new();
        let result = self.driver.input(self.clock.now_us(), input, &mut events);
        self.gossip_said(result, events);
    }

    pub(crate) fn sched_step(&mut self, input: sched::Input<'_>) {
        let mut out = Vec::new();
        let (now_us, wall_ms) = (self.clock.now_us(), self.clock.wall_ms());
        self.sched.step(now_us, wall_ms, input, &mut self.rng, &mut out);
        self.todo.extend(out.into_iter().map(Todo::Sched));
    }

    pub(crate) fn pods_step(&mut self, input: crate::pods::Input) {
        let mut out = Vec::new();
        self.pods.step(self.clock.now_us(), input, &mut out);
        self.todo.extend(out.into_iter().map(Todo::Pods));
    }

    fn ipam_step(&mut self, input: netshim::ipam::Input<'_>) {
        let mut out = Vec::new();
        self.ipam.step(self.clock.now_us(), input, &mut out);
        self.todo.extend(out.into_iter().map(Todo::Ipam));
    }

    pub(crate) fn event(&mut self, about: impl Into<String>, message: impl Into<String>) {
        self.events.add(self.clock.wall_ms(), about, message);
    }

    /// Adds to what the machine lacks; said once.
    pub(crate) fn condition(&mut self, text: String) {
        if self.conditions.insert(text.clone()) {
            self.event(format!("node/{}", self.config.name), text);
            self.publish();
        }
    }

    /// A new gossip log holds what the failed one lacks.
    pub(crate) fn log_restored(&mut self) {
        self.conditions.retain(|text| !text.starts_with(LOG_FAILED));
        self.event(format!("node/{}", self.config.name), "the gossip log is whole again");
        self.publish();
    }

    /// Tells the scheduler, and through it the flock, what this node is and has.
    pub(crate) fn publish(&mut self) {
        let mut labels = self.config.labels.clone();
        let mut label_from = self.config.label_from.clone();
        labels.entry("arch".into()).or_insert_with(|| {
            label_from.insert("arch".into(), "measured".into());
            host::arch().into()
        });
        let capacity = &self.config.capacity;
        let serves = !self.machine.in_maintenance();
        let cpu_milli = capacity.cpu.map_or_else(host::cpu_milli, |cpu| (cpu * 1000.0) as u64);
        let memory = capacity.memory_mib.map_or_else(host::memory_bytes, |mib| mib << 20);
        let prefix = self.ipam.prefix4();
        let record = NodeRecord {
            boot: self.driver.gossip().me().generation,
            cpu_milli: if serves { cpu_milli } else { 0 },
            memory_bytes: if serves { memory } else { 0 },
            // Without addresses no pod can run here.
            pods: match &self.addresses {
                Some(_) => capacity.pods.unwrap_or(host::PODS_MAX).min(host::PODS_MAX),
                None => 0,
            },
            labels,
            label_from,
            // The scheduler's own to say.
            drain: false,
            images: self.image_prefixes(),
            api: self.config.api_addr().to_string(),
            overlay: if serves { self.config.overlay_addr().to_string() } else { String::new() },
            noise_public: if serves { self.overlay_key.0.to_vec() } else { Vec::new() },
            v4_prefix: prefix.map(|p| p.to_string()).unwrap_or_default(),
            v6_prefix: self.ipam.prefix6().to_string(),
            conditions: self.machine.alerts().chain(self.conditions.iter().cloned()).collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            uuid: self.machine.boot.uuid.clone(),
            kernel: self.machine.kernel.clone(),
            state: self.machine.boot.state.clone(),
            booted_ms: self.machine.booted_ms,
            wish: self.machine.wish.clone(),
            stays: self.machine.life.stays(),
            phase: self.machine.phase.clone(),
            image: self.machine.image.clone(),
            kept: self.machine.kept,
            features: self.features.clone(),
        };
        if self.published.as_ref() != Some(&record) {
            self.published = Some(record.clone());
            self.sched_step(sched::Input::SelfRecord(record));
        }
    }
}
