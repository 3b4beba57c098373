//! Bodies of map records. Tagged fields: unknown ones are skipped, missing ones default, so that old and
//! new builds share one map.
//!
//! | key | body | writer |
//! |---|---|---|
//! | `n/<node>` | [`NodeRecord`] | the node |
//! | `a/<node>/<claim>` | [`ClaimRecord`] | the node |
//! | `r/<ns>/<app>` | [`RolloutRecord`] | the app's coordinator; the higher `(term, coordinator)` counts |

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{hash, tags::tagged};

/// The largest body the map carries.
pub const BODY_MAX: usize = 16 * 1024;
/// Images a node names in its record; the agent keeps the most recently used.
pub const IMAGES_MAX: usize = 512;

/// [`NodeRecord::wish`]: no new pods; those here stay.
pub const CORDON: &str = "cordon";
/// [`NodeRecord::wish`]: no new pods; those here are moved away, also after the agent started anew.
pub const DRAIN: &str = "drain";
/// How long pods of a node whose agent left without them are taken for running, milliseconds.
pub const STAYS_MS: u64 = 60_000;

tagged! {
    /// What a node is and has.
    pub struct NodeRecord("node record", max BODY_MAX) {
        /// Boot counter of the agent that wrote this.
        1 => boot: u64,
        /// Thousandths of a CPU that pods may use.
        2 => cpu_milli: u64,
        /// Bytes of memory that pods may use.
        3 => memory_bytes: u64,
        /// Pods at most.
        4 => pods: u32,
        /// `row`, `rack`, `power`, `arch`, and whatever the operator added.
        5 => labels: BTreeMap<String, String>,
        /// No new pods; those here are moved away.
        6 => drain: bool,
        /// [`image_prefix`] of every image held, sorted.
        7 => images: Vec<u64>,
        /// `host:port` of the HTTPS API.
        8 => api: String,
        /// `host:port` of the overlay's UDP socket.
        9 => overlay: String,
        /// The overlay's static public key, 32 bytes; empty until known.
        10 => noise_public: Vec<u8>,
        /// The pods' IPv4 prefix, `100.64.3.0/24`; empty until claimed.
        11 => v4_prefix: String,
        /// The pods' IPv6 prefix.
        12 => v6_prefix: String,
        /// What the node lacks or works around, for people: `no cgroup controllers`.
        13 => conditions: Vec<String>,
        /// The agent's version.
        14 => version: String,
        /// The machine's SMBIOS UUID, or what stands in for it; empty where unknown.
        15 => uuid: String,
        /// The kernel's release.
        16 => kernel: String,
        /// Where its state lies: `disk` or `memory`; empty where nobody said.
        17 => state: String,
        /// Wall clock when the kernel started, milliseconds since 1970.
        18 => booted_ms: u64,
        /// What an operator wants of it: empty, [`CORDON`] or [`DRAIN`].
        19 => wish: String,
        /// Its agent left, its pods run on: they are not replaced for [`STAYS_MS`].
        20 => stays: bool,
        /// Where PID 1 stands, and why: `running`, `degraded: ...`; empty where PID 1 is another's.
        21 => phase: String,
        /// Where each label came from.
        22 => label_from: BTreeMap<String, String>,
        /// What boot image it runs, as an upgrade named it; empty for another.
        23 => image: String,
        /// It has been healthy for long enough since its boot to stay with this kernel.
        24 => kept: bool,
        /// What it can do beyond running pods, and how much of it: see [`Demand`](crate::spec::Demand).
        40 => features: BTreeMap<String, u64>,
    }
}

tagged! {
    /// The truth about one pod, written by the node that runs it.
    pub struct ClaimRecord("claim record", max BODY_MAX) {
        /// Namespace of the app.
        1 => namespace: String,
        /// App.
        2 => app: String,
        /// Slot, from 0; for a daemon always 0.
        3 => slot: u32,
        /// Generation of the spec it was admitted for.
        4 => generation: u64,
        /// [`Spec::template`](crate::Spec::template) of that spec: same template, same pod.
        5 => template: u64,
        /// Where it is in its life.
        6 => state: ClaimState,
        /// All probes pass.
        7 => ready: bool,
        /// IPv4 (or IPv6) address as text; empty until known.
        8 => ip: String,
        /// Named ports inside the pod.
        9 => ports: BTreeMap<String, u16>,
        /// Container restarts so far.
        10 => restarts: u32,
        /// Last exit or failure, for people.
        11 => reason: String,
        /// Wall clock when it was admitted, milliseconds since 1970.
        12 => created_ms: u64,
        /// Wall clock when it last started, milliseconds since 1970; 0 until it did.
        13 => started_ms: u64,
        /// CPU it holds.
        14 => cpu_milli: u64,
        /// Memory it holds.
        15 => memory_bytes: u64,
        /// Counts the writer's changes of this claim: the higher is the newer, whichever way it came.
        16 => seq: u64,
        /// The offer it was admitted for; 0 for a daemon.
        17 => offer: u64,
        /// Term of the coordinator that offered it.
        18 => term: u64,
        /// Admitted under `unique = "host"`.
        19 => unique_host: bool,
        /// The node that runs it, as in the key.
        20 => node: String,
        /// A daemon's pod: named after its node.
        21 => daemon: bool,
        /// What its operator should know of it while it runs: that it is at a bound, for one. Empty when there is nothing.
        22 => note: String,
    }
}

impl NodeRecord {
    /// It takes no new pods but daemons.
    #[must_use]
    pub fn cordoned(&self) -> bool {
        self.drain || !self.wish.is_empty()
    }
}

/// Of a pod that is being stopped.
const STOPPING_WORDS: &str =
    "it was told to end; what does not is killed when its grace is over (`stop`)";

impl ClaimRecord {
    /// `<app>.<slot>`, for a daemon `<app>.<node>`.
    #[must_use]
    pub fn pod_name(&self) -> String {
        if self.daemon {
            format!("{}.{}", self.app, self.node)
        } else {
            format!("{}.{}", self.app, self.slot)
        }
    }

    /// What there is to say of it in one line: why it is not ready, if it runs and is not, else what its node says.
    #[must_use]
    pub fn said(&self) -> String {
        let now = match self.state {
            ClaimState::Running if !self.ready => "its probes have not passed",
            ClaimState::Stopping => STOPPING_WORDS,
            _ => "",
        };
        let mut said = match (now, self.reason.as_str()) {
            ("", reason) => reason.to_owned(),
            (now, "") => now.to_owned(),
            (now, before) => format!("{now}; before that: {before}"),
        };
        if !self.note.is_empty() {
            said.push_str(if said.is_empty() { "" } else { "; " });
            said.push_str(&self.note);
        }
        said
    }

    /// True while it holds resources on its node.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.state != ClaimState::Failed
    }
}

tagged! {
    /// What the coordinator of an app says about it.
    pub struct RolloutRecord("rollout record", max BODY_MAX) {
        /// Generation being rolled out or at rest.
        1 => generation: u64,
        /// Raised by every coordinator that takes over.
        2 => term: u64,
        /// Its name.
        3 => coordinator: String,
        /// `placing`, `rolling`, `steady`, `held`, `stopping`.
        4 => phase: String,
        /// Why starts are held; empty when they are not.
        5 => held: String,
        /// Why slots are pending: reason → nodes rejected for it.
        6 => rejected: BTreeMap<String, u32>,
        /// Slots wanted.
        7 => desired: u32,
        /// Slots ready on the generation's template.
        8 => ready: u32,
        /// Slots without a running pod.
        9 => pending: u32,
        /// The last failure a node reported for this generation.
        10 => last_failure: String,
    }
}

/// Where a claim is in its life. Kept as one byte: an unknown one, from a newer build, reads as
/// [`ClaimState::Unknown`], which holds resources and is not ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ClaimState {
    /// A state of a newer build.
    Unknown,
    /// The node took it on and has not begun.
    #[default]
    Admitted,
    /// Its image is on its way.
    Pulling,
    /// Being set up.
    Starting,
    /// Its containers run.
    Running,
    /// A container exited; its shim restarts it after a backoff.
    Exited,
    /// The node cannot run it. Holds nothing; the coordinator moves the slot.
    Failed,
    /// Told to stop; holds what it had until it is gone.
    Stopping,
}

impl ClaimState {
    /// Lower-case word for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ClaimState::Unknown => "unknown",
            ClaimState::Admitted => "admitted",
            ClaimState::Pulling => "pulling",
            ClaimState::Starting => "starting",
            ClaimState::Running => "running",
            ClaimState::Exited => "exited",
            ClaimState::Failed => "failed",
            ClaimState::Stopping => "stopping",
        }
    }

    fn code(self) -> u8 {
        match self {
            ClaimState::Unknown => 255,
            ClaimState::Admitted => 1,
            ClaimState::Pulling => 2,
            ClaimState::Starting => 3,
            ClaimState::Running => 4,
            ClaimState::Exited => 5,
            ClaimState::Failed => 6,
            ClaimState::Stopping => 7,
        }
    }

    fn from_code(code: u8) -> Self {
        match code {
            1 => ClaimState::Admitted,
            2 => ClaimState::Pulling,
            3 => ClaimState::Starting,
            4 => ClaimState::Running,
            5 => ClaimState::Exited,
            6 => ClaimState::Failed,
            7 => ClaimState::Stopping,
            _ => ClaimState::Unknown,
        }
    }
}

impl Serialize for ClaimState {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() {
            s.serialize_str(self.as_str())
        } else {
            s.serialize_u8(self.code())
        }
    }
}

impl<'de> Deserialize<'de> for ClaimState {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let word = String::deserialize(d)?;
            let all = (1..=7).map(ClaimState::from_code);
            Ok(all.into_iter().find(|s| s.as_str() == word).unwrap_or(ClaimState::Unknown))
        } else {
            Ok(ClaimState::from_code(u8::deserialize(d)?))
        }
    }
}

/// The 8 bytes by which [`NodeRecord::images`] names an image: a hash of its reference as the spec
/// writes it.
#[must_use]
pub fn image_prefix(reference: &str) -> u64 {
    hash::stable(&[b"image", reference.as_bytes()])
}

/// `n/<node>`.
#[must_use]
pub fn node_key(node: &str) -> String {
    format!("n/{node}")
}

/// `a/<node>/<claim>`.
#[must_use]
pub fn claim_key(node: &str, claim: &str) -> String {
    format!("a/{node}/{claim}")
}

/// `r/<ns>/<app>`.
#[must_use]
pub fn rollout_key(namespace: &str, app: &str) -> String {
    format!("r/{namespace}/{app}")
}

/// `s/<ns>/<app>`.
#[must_use]
pub fn spec_key(namespace: &str, app: &str) -> String {
    format!("s/{namespace}/{app}")
}
