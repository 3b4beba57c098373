//! What the API says: JSON shapes shared by server and clients. Unknown fields are ignored by both, so that versions can mix.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/nodes`: the flock as the answering node sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nodes {
    /// The node that answers.
    pub answered_by: String,
    /// Every node it knows, sorted by name.
    pub nodes: Vec<Node>,
}

/// One node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `alive`, `suspect`, `dead` or `left`, in the view of the node that answers.
    pub state: String,
    /// Gossip address.
    pub address: String,
    /// Failure domains and other labels.
    pub labels: BTreeMap<String, String>,
    /// Thousandths of a CPU that pods may use.
    pub cpu_milli: u64,
    /// Thousandths of a CPU not yet claimed.
    pub cpu_free_milli: u64,
    /// Bytes that pods may use.
    pub memory_bytes: u64,
    /// Bytes not yet claimed.
    pub memory_free_bytes: u64,
    /// Pods running or starting there.
    pub pods: u32,
    /// Round trip time in microseconds; 0 for the node itself or where not measured.
    pub rtt_us: u64,
    /// HTTPS endpoint.
    pub api: String,
    /// The pods' IPv4 prefix.
    pub prefix: String,
    /// The agent's version.
    pub version: String,
    /// Takes no new pods.
    pub draining: bool,
    /// What the machine lacks, in words.
    pub conditions: Vec<String>,
    /// What an operator wants of it: empty, `cordon` or `drain`.
    pub wish: String,
    /// Boot counter of the boot that tells all this: a machine that has just come back is known before its record is.
    pub boot: u64,
    /// Where each label came from.
    pub label_from: BTreeMap<String, String>,
    /// The machine's SMBIOS UUID, or what stands in for it; empty where unknown.
    pub uuid: String,
    /// The kernel's release.
    pub kernel: String,
    /// Where its state lies: `disk` or `memory`; empty where nobody said.
    pub boot_state: String,
    /// When the kernel started, in milliseconds since 1970 by its clock; 0 where unknown.
    pub booted_ms: u64,
    /// Where PID 1 stands, and why; empty where PID 1 is not Quelea's.
    pub phase: String,
    /// The boot image it runs, as an upgrade named it; empty for another.
    pub image: String,
    /// It has been healthy for long enough since its agent's start to stay with this kernel.
    pub kept: bool,
}

/// `PUT /v1/node/wish`: what an operator wants of the node asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wish {
    /// Empty, `cordon` or `drain`.
    pub wish: String,
}

/// `POST /v1/node/power`: how the machine of the node asked is to end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PowerOrder {
    /// `off`, `reboot` or `halt`.
    pub power: String,
}

/// `GET /v1/node/console`: the end of the kernel's log, to which PID 1 writes as well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Console {
    /// Lines `[SECONDS] TEXT`, the oldest first.
    pub text: String,
    /// Lines older than these were left out.
    pub cut: bool,
}

/// `POST /v1/node/adopt`: who the machine asked is from now on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Adopt {
    /// Its name.
    pub name: String,
    /// Labels, added to those of its `node.toml`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Gossip addresses of running nodes; those it has where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub join: Vec<std::net::SocketAddr>,
    /// Its credentials, by file name.
    pub files: BTreeMap<String, String>,
}

/// The answer to an adoption.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AdoptAnswer {
    /// Where it was written, and for how long that lasts, in words.
    pub kept: String,
}

/// The answer to `POST /v1/node/upgrade`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upgrading {
    /// By what the node says later that it runs this image.
    pub image: String,
    /// Its boot counter now.
    pub boot: u64,
}

/// `GET /v1/pods`: one replica.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Namespace of the app.
    pub namespace: String,
    /// App.
    pub app: String,
    /// `APP.SLOT`, or `APP.NODE` for a daemon.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Whether that node is alive in the view of the node that answers.
    pub node_alive: bool,
    /// `admitted`, `pulling`, `starting`, `running`, `exited`, `failed` or `stopping`.
    pub state: String,
    /// Whether its probes pass.
    pub ready: bool,
    /// Its address.
    pub ip: String,
    /// Restarts of its containers.
    pub restarts: u32,
    /// The last exit or failure, in words.
    pub reason: String,
    /// The spec's generation.
    pub generation: u64,
    /// When it last started, in milliseconds since 1970; 0 before.
    pub started_ms: u64,
    /// The id of its claim, unique in the flock.
    pub claim: String,
}

/// `GET /v1/apps`: one app.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub app: String,
    /// `service` or `daemon`.
    pub kind: String,
    /// Replicas wanted.
    pub desired: u32,
    /// Replicas ready.
    pub ready: u32,
    /// Generation of the spec.
    pub generation: u64,
    /// Whether it was told to stop.
    pub stopped: bool,
    /// `placing`, `rolling`, `steady`, `held`, `stopping`, `stopped`.
    pub phase: String,
    /// The node that coordinates it.
    pub coordinator: String,
    /// Who signed the spec.
    pub operator: String,
}

/// `GET /v1/apps/NAMESPACE/APP`: one app with its spec.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AppDetail {
    /// The summary.
    #[serde(flatten)]
    pub summary: App,
    /// The spec text as submitted.
    pub document: String,
    /// The images that it means.
    pub images: BTreeMap<String, String>,
}

/// `PUT /v1/apps/NAMESPACE/APP`: the answer. The request's body is a signed submission.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The generation that is now in the map.
    pub generation: u64,
    /// The node that took it.
    pub node: String,
}

/// `GET /v1/apps/NAMESPACE/APP/why`: why replicas are not running.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Why {
    /// The node that knows: the app's coordinator.
    pub coordinator: String,
    /// Words for people, one line or more.
    pub text: String,
}

/// `GET /v1/images` and the answer to `POST /v1/images`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// The name by which specs ask for it.
    pub reference: String,
    /// The manifest's digest, `sha256:…`.
    pub digest: String,
    /// Bytes of all layers, uncompressed.
    pub size_bytes: u64,
    /// Number of layers.
    pub layers: u32,
    /// Nodes that hold all of it.
    pub nodes: Vec<String>,
    /// Apps that are wanted and whose spec names it: `NAMESPACE/APP`.
    pub used_by: Vec<String>,
}

/// `GET /v1/status`: the answering node itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// The agent's version.
    pub version: String,
    /// The flock's name.
    pub flock: String,
    /// Boot counter.
    pub boot: u64,
    /// Whether it has joined: it knows at least one peer, or is the first.
    pub joined: bool,
    /// Whether its pods have addresses: the IPv4 prefix is claimed.
    pub network_ready: bool,
    /// Members alive, itself included.
    pub alive: u32,
    /// Records in the map, tombstones included.
    pub records: u64,
    /// Hash of the map: equal on nodes that know the same.
    pub map_root: String,
    /// Resident memory of the agent, in bytes.
    pub rss_bytes: u64,
    /// Milliseconds since the agent started.
    pub uptime_ms: u64,
    /// Where containers' layers are and how they are bounded; empty in maintenance.
    pub layers: String,
    /// What the machine lacks, in words.
    pub conditions: Vec<String>,
    /// Packet counters of the overlay.
    pub overlay: BTreeMap<String, u64>,
}

/// `GET /v1/events`: one thing that happened on the answering node, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Counts up by one on each node.
    pub cursor: u64,
    /// The node's clock, milliseconds since 1970.
    pub at_ms: u64,
    /// What it is about: `node/n2`, `app/default/hello`, `pod/hello.3`.
    pub about: String,
    /// What happened, in words.
    pub message: String,
}

/// `GET /v1/usage`: what the answering node and its pods have used. Times and bytes that count up are since each began: two
/// answers make a rate.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// The node that answers.
    pub node: String,
    /// When it was read, in microseconds of a clock of the node's own.
    pub at_us: u64,
    /// The machine.
    pub machine: NodeUsage,
    /// The pods that the node has.
    pub pods: Vec<PodUsage>,
}

/// What a machine has used, pods and all else.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeUsage {
    /// Thousandths of CPUs that there are.
    pub cpus_milli: u64,
    /// CPU time used, of all CPUs; counts up.
    pub cpu_us: u64,
    /// Memory that is not available to others.
    pub memory_bytes: u64,
    /// Memory that there is.
    pub memory_total_bytes: u64,
    /// How much was waited.
    pub pressure: Stall,
    /// Bytes over its interfaces; counts up.
    pub net: Option<Traffic>,
    /// CPU time that the agent used; counts up.
    pub agent_cpu_us: u64,
    /// The agent's resident memory.
    pub agent_rss_bytes: u64,
}

/// What one pod has used. A field is absent where the machine does not tell.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodUsage {
    /// Namespace of the app.
    pub namespace: String,
    /// App.
    pub app: String,
    /// `APP.SLOT`, or `APP.NODE` for a daemon.
    pub name: String,
    /// The id of its claim.
    pub claim: String,
    /// Thousandths of a CPU that it has claimed.
    pub cpu_milli: u64,
    /// Bytes that it has claimed; its containers get no more.
    pub memory_limit_bytes: u64,
    /// CPU time; counts up.
    pub cpu_us: Option<u64>,
    /// Memory, page cache included.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// How much was waited.
    pub pressure: Stall,
    /// Bytes read from disks; counts up.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks; counts up.
    pub written_bytes: Option<u64>,
    /// Bytes over its interface; counts up.
    pub net: Option<Traffic>,
}

/// Share of the last 10 s in which something waited, in hundredths of a percent (pressure stall information, `some`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stall {
    /// For a CPU.
    pub cpu_permyriad: Option<u32>,
    /// For memory.
    pub memory_permyriad: Option<u32>,
    /// For disks.
    pub io_permyriad: Option<u32>,
}

/// Bytes over interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Traffic {
    /// Received.
    pub received_bytes: u64,
    /// Sent.
    pub sent_bytes: u64,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// What was attempted, on what, why it failed, and what to do.
    pub error: String,
}

/// One line of a pod's `/run/quelea/peers.json`: a replica of the same app, itself included.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// `APP.SLOT`.
    pub pod: String,
    /// The node it runs on.
    pub node: String,
    /// Its address.
    pub ip: String,
    /// Whether its probes pass.
    pub ready: bool,
}

/// `POST /v1/pods/NAMESPACE/POD/exec`: what to run. The answer is an upgrade to frames, see [`crate::api::exec`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    /// Which container; the first where none is given.
    #[serde(default)]
    pub container: Option<String>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Replaces and adds to the container's environment.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// On a terminal of its own instead of three pipes.
    #[serde(default)]
    pub terminal: bool,
}

/// `GET /v1/pods/NAMESPACE/POD`, of the node that has it: a replica and its containers.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PodDetail {
    /// `APP.SLOT`.
    pub name: String,
    /// The id of its claim.
    pub claim: String,
    /// In the order of the spec.
    pub containers: Vec<Container>,
}

/// One container of a replica.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// `waiting`, `running`, `backing off`, `failed` or `done`.
    pub state: String,
    /// Starts after the first.
    pub restarts: u32,
    /// How it ended or what failed last, in words.
    pub reason: String,
    /// Bytes of its output that are not in its log, since the pod started: it wrote faster than `log.rate`, or the disk was full.
    pub log_dropped_bytes: u64,
}
