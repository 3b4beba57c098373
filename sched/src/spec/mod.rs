//! The app spec: what an operator writes in TOML.
//!
//! [`Spec::parse`] reads it and reports every mistake at once, each with its line, its column and the nearest known key. A key
//! of the full design on which this version does not act yet is refused by name: nothing an operator writes is ignored.
//!
//! ```toml
//! app = "shop/web"                # [namespace/]name; the namespace is `default` when left out
//! kind = "service"                # service (default) | daemon
//! replicas = 6                    # 0..10000, default 1; not for daemons
//! labels = { tier = "fe" }
//! share_pid = false               # its containers are in one PID namespace
//! limits = "preferred"            # preferred (default) | required: only nodes that enforce cpu, memory and pids
//!
//! [[volume]]                      # at most 16; gone with the pod
//! name = "data"                   # a-z, 0-9, -
//! kind = "empty"                  # empty (default): held in memory, counted to the container that writes
//! size = "64Mi"                   # 4Ki..64Ti; what is over it gets ENOSPC
//!
//! [[container]]                   # 1 to 16; they share the pod's network, ipc and host name
//! name = "nginx"                  # a-z, 0-9, -
//! image = "reg/shop/web:2"
//! role = "main"                   # main (default) | init: runs to its end before the next starts |
//!                                 # sidecar: starts before the main ones and stops after them
//! command = ["/nginx"]            # default: the image's entrypoint
//! args = ["-g", "daemon off;"]    # default: the image's cmd
//! env = { POD_IP = "{{ pod.ip }}" }
//! user = "1000:1000"              # name or number, group too; default: the image's
//! workdir = "/srv"                # default: the image's
//! stdin = "none"                  # none (default) | pipe | terminal: what `quelea attach` writes to
//! init = true                     # a small init reaps and passes signals on; false: the program is PID 1 itself
//! restart = "always"              # always (default) | on-failure | never; an init container that ended well is done
//! backoff = { first = "200ms", max = "30s", reset = "60s" }       # these are the defaults; 10ms..1h, ..24h, 0..24h
//! stop = { signal = "QUIT", grace = "20s" }                       # default TERM (or the image's), 10s; grace 0..24h
//! ports = { http = 80 }           # 1..65535
//!
//! # Probes: one of http, tcp, grpc, exec. every 100ms..24h, timeout 10ms..10m (1s), fail and pass 1..1000.
//! ready = { http = ":80/healthz", every = "2s", timeout = "1s", fail = 3, pass = 1 }   # no traffic until it passes
//! live = { grpc = ":9000/my.Service", start_grace = "10s" }       # stopped and started again when it fails
//! start = { exec = ["/check"], every = "1s", fail = 60 }          # the others wait until it passed once; it has every × fail
//!
//! cpu = 0.5                       # CPUs held and the share under load; 0.001..1024, default 0.1
//! cpu_max = 2                     # CPUs at most, however idle the node; default none
//! memory = "256Mi"                # 1Mi..64Ti, default 128Mi; beyond it the whole container is killed
//! memory_high = "200Mi"           # from here on it is slowed down; at most `memory`; default none
//! pids = 256                      # 1..4194304, default 1024
//! disk = "1Gi"                    # 1Mi..64Ti: what it may write beside its image, not in volumes; beyond it the pod is ended and
//!                                 # replaced, its layer gone; without a state disk it gets ENOSPC. Default 10Gi, or a
//!                                 # quarter of the node's state disk where that is less
//! io = { read = "50Mi", write = "20Mi", read_ops = 1000, write_ops = 500, weight = 100 }   # a second; weight 1..10000
//! cpuset = "0-3,8"                # CPUs it may run on
//! hugepages = { "2Mi" = "64Mi" }  # pages of 2Mi or 1Gi: bytes of them at most
//! rlimits = { nofile = "1024:65536", core = 0, memlock = "unlimited" }    # soft and hard, as prlimit(1) names them
//!
//! read_only = false               # the root file system
//! tmpfs = [{ path = "/tmp", size = "64Mi", mode = "1777" }]       # these are the defaults; counts as memory
//! mounts = [{ volume = "data", path = "/data", read_only = false }]
//! devices = ["kvm"]               # by the names that nodes grant in node.toml
//! profile = "strict"              # strict (default): the eight of `DEFAULT_CAPS` | compat: what Docker's images expect
//! caps = ["NET_BIND_SERVICE"]     # instead of the profile's; from a closed list
//! seccomp = "default"             # default | compat | a filter that nodes have under this name; default: the profile's
//! log = { size = "4Mi", files = 3, rate = "1Mi" }     # 64Ki..1Gi, 1..100; what exceeds rate (a second) is counted and
//!                                                     # dropped; without it the program waits
//!
//! [[container]]                   # a program of the host itself, with the same limits
//! name = "smart"
//! exec = ["/usr/sbin/smartd", "-n"]       # instead of `image`; only on nodes whose node.toml grants it in `host_tools`
//!
//! [place]
//! require = ["arch == amd64", "disk in [ssd, nvme]", "gen >= 3", "gpu"]
//! spread = [{ by = "row" }, { by = "rack", max_skew = 1, mode = "hard" }]     # default: row, rack; soft
//! unique = "host"                 # default: none
//!
//! [update]
//! max_unavailable = "10%"         # or a number; default 10 %, rounded up
//! max_surge = 2                   # default 10 %, rounded up
//!
//! [partition]
//! replace_after = "3s"            # after a node's death is known; default and floor 1500ms
//! ```
//!
//! `io`, `cpuset`, `hugepages`, `devices`, `exec` and own `seccomp` filters are insisted on: a node that lacks them refuses the pod
//! and `quelea why` says what is lacking. Limits on CPU, memory and processes are insisted on with `limits = "required"`; else a
//! node that cannot enforce them says so in its conditions and runs the pod.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod container;
pub mod demand;
pub mod diag;
pub mod expr;
mod fields;
mod identity;
mod parse;
pub mod template;
pub mod units;

pub use container::{
    Backoff, Check, Container, DEFAULT_CAPS, Io, Log, Mount, Probe, Profile, RLIMITS, Restart,
    Rlimit, Role, Stdin, Stop, Tmpfs, Volume, VolumeKind,
};
pub use demand::{Demand, Features};
pub use diag::Diagnostic;
pub use expr::Expr;

/// Bytes of TOML accepted: a spec and its signature must fit a map body.
pub const TEXT_MAX: usize = 12 * 1024;
/// Replicas of one app.
pub const REPLICAS_MAX: u32 = 10_000;
/// Containers of one pod.
pub const CONTAINERS_MAX: usize = 16;
/// Ports, environment variables, labels, arguments: entries of one table or list.
pub const ENTRIES_MAX: usize = 128;
/// Volumes of one pod.
pub const VOLUMES_MAX: usize = 16;
/// Volumes, tmpfs and devices of one container, each.
pub const MOUNTS_MAX: usize = 32;
/// System call filters that every node has.
pub const SECCOMP_BUILT_IN: [&str; 2] = ["default", "compat"];

/// A valid app spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Namespace, `[a-z0-9-]{1,63}`.
    pub namespace: String,
    /// App name, `[a-z0-9-]{1,63}`.
    pub app: String,
    /// What the slots mean.
    pub kind: Kind,
    /// Slots wanted, 0..=[`REPLICAS_MAX`]. 1 for a daemon: one on each node.
    pub replicas: u32,
    /// The app's own labels.
    pub labels: BTreeMap<String, String>,
    /// At least one.
    pub containers: Vec<Container>,
    /// Where.
    pub place: Place,
    /// How a new generation replaces an old one.
    pub update: Update,
    /// What happens when nodes cannot be reached.
    pub partition: Partition,
    /// Shared by its containers, gone with the pod.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// A node that cannot enforce the limits on CPU, memory and processes may not run it.
    #[serde(default)]
    pub limits_required: bool,
    /// Its containers see and may signal each other's processes.
    #[serde(default)]
    pub share_pid: bool,
}

/// What an app's slots mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// N equal replicas that are kept running.
    #[default]
    Service,
    /// One pod on every node that `place.require` admits.
    Daemon,
}

/// Where pods may and should run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// All must hold on the node's labels.
    pub require: Vec<Expr>,
    /// In order; `[row, rack]`, soft, when the spec says nothing.
    pub spread: Vec<Spread>,
    /// At most one pod of the app on a node.
    pub unique_host: bool,
}

/// One level of spreading.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spread {
    /// Node label whose values are the domains.
    pub by: String,
    /// Difference allowed between the fullest and the emptiest domain, from 1.
    pub max_skew: u32,
    /// A hard one leaves a slot pending rather than exceed `max_skew`; a soft one only prefers.
    pub hard: bool,
}

/// A number of replicas, or a share of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    /// That many.
    Count(u32),
    /// Percent of `replicas`, rounded up.
    Percent(u32),
}

impl Amount {
    /// How many of `replicas`.
    #[must_use]
    pub fn of(self, replicas: u32) -> u32 {
        match self {
            Amount::Count(n) => n,
            // Fits: 10,000 replicas × 1,000 %.
            Amount::Percent(p) => (replicas.saturating_mul(p)).div_ceil(100),
        }
    }
}

/// Budget of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// Replicas that may be missing on purpose.
    pub max_unavailable: Amount,
    /// Replicas that may be there beyond `replicas`.
    pub max_surge: Amount,
}

/// What happens when nodes cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Milliseconds from a node's known death to the replacement of its pods.
    pub replace_after_ms: u64,
}

impl Spec {
    /// Reads a spec. `file_name` is only named in the diagnostics.
    ///
    /// # Errors
    /// Every mistake found, in the order of the text.
    pub fn parse(text: &str, file_name: &str) -> Result<Spec, Vec<Diagnostic>> {
        parse::parse(text, file_name, false)
    }

    /// Reads a spec that was accepted once, maybe by a newer version: keys that this one does not know are passed over.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn read_stored(text: &str) -> Result<Spec, Vec<Diagnostic>> {
        parse::parse(text, "spec", true)
    }

    /// CPU of one pod, thousandths: what it holds at once at most.
    #[must_use]
    pub fn cpu_milli(&self) -> u64 {
        self.at_once(|c| c.cpu_milli)
    }

    /// Memory of one pod, bytes: what it holds at once at most.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.at_once(|c| c.memory_bytes)
    }

    /// Init containers run one after the other and before the main ones; sidecars run beside them all.
    fn at_once(&self, of: impl Fn(&Container) -> u64) -> u64 {
        let sum = |role: Role| {
            let those = self.containers.iter().filter(|c| c.role == role);
            those.fold(0_u64, |sum, c| sum.saturating_add(of(c)))
        };
        let init = self.containers.iter().filter(|c| c.role == Role::Init).map(&of).max();
        sum(Role::Sidecar).saturating_add(sum(Role::Main).max(init.unwrap_or(0)))
    }

    /// How long a stop may take, milliseconds: the main containers at once, then each sidecar.
    #[must_use]
    pub fn grace_ms(&self) -> u64 {
        let graces = |sidecar: bool| {
            let those =
                self.containers.iter().filter(move |c| (c.role == Role::Sidecar) == sidecar);
            those.map(|c| c.stop.grace_ms)
        };
        graces(true).fold(graces(false).max().unwrap_or(0), u64::saturating_add)
    }

    /// Ports of all containers.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<String, u16> {
        self.containers.iter().flat_map(|c| c.ports.clone()).collect()
    }
}
