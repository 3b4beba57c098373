//! The app spec: what an operator writes in TOML.
//!
//! [`Spec::parse`] reads it and reports every mistake at once. A key of the full design on which this
//! version does not act yet is refused by name: nothing an operator writes is ignored.
//!
//! ```toml
//! app = "shop/web"                # [namespace/]name; the namespace is `default` when left out
//! kind = "service"                # service (default) | daemon
//! replicas = 6                    # default 1; not for daemons
//! labels = { tier = "fe" }
//!
//! [[container]]                   # at least one; they share the pod's network, ipc and uts
//! name = "nginx"
//! image = "reg/shop/web:2"
//! command = ["/nginx"]            # default: the image's entrypoint
//! args = ["-g", "daemon off;"]    # default: the image's cmd
//! cpu = 0.5                       # CPUs; default 0.1
//! memory = "256Mi"                # default 128Mi
//! pids = 256                      # default 1024
//! env = { POD_IP = "{{ pod.ip }}" }
//! ports = { http = 80 }
//! ready = { http = ":80/healthz", every = "2s", timeout = "1s", fail = 3 }    # or tcp = ":80"
//! stop = { signal = "QUIT", grace = "20s" }                                   # default TERM, 10s
//! caps = ["NET_BIND_SERVICE"]     # default: the eight of `DEFAULT_CAPS`
//! user = "1000:1000"              # default: the image's
//! workdir = "/srv"                # default: the image's
//! read_only = false
//! restart = "always"              # always (default) | on-failure | never
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

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub mod diag;
pub mod expr;
mod fields;
mod parse;
pub mod template;
pub mod units;

pub use diag::Diagnostic;
pub use expr::Expr;

use crate::hash;

/// Bytes of TOML accepted: a spec and its signature must fit a map body.
pub const TEXT_MAX: usize = 12 * 1024;
/// Replicas of one app.
pub const REPLICAS_MAX: u32 = 10_000;
/// Containers of one pod.
pub const CONTAINERS_MAX: usize = 16;
/// Ports, environment variables, labels, arguments: entries of one table or list.
pub const ENTRIES_MAX: usize = 128;

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

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// `[a-z0-9-]{1,63}`, unique in the pod.
    pub name: String,
    /// Image reference as written.
    pub image: String,
    /// Instead of the image's entrypoint (and cmd).
    pub command: Option<Vec<String>>,
    /// Instead of the image's cmd.
    pub args: Option<Vec<String>>,
    /// Thousandths of a CPU, 1..
    pub cpu_milli: u64,
    /// Bytes, at least 1 MiB.
    pub memory_bytes: u64,
    /// Processes at most.
    pub pids: u32,
    /// Environment; values may hold [`template`]s.
    pub env: BTreeMap<String, String>,
    /// Name → port inside the pod.
    pub ports: BTreeMap<String, u16>,
    /// Readiness probe. Without one, running is ready.
    pub ready: Option<Probe>,
    /// How it is stopped.
    pub stop: Stop,
    /// Capabilities to keep, without `CAP_`; `None` is [`DEFAULT_CAPS`].
    pub caps: Option<Vec<String>>,
    /// `user[:group]`, names or numbers; `None` is the image's.
    pub user: Option<String>,
    /// Absolute; `None` is the image's.
    pub workdir: Option<String>,
    /// The root file system is mounted read-only.
    pub read_only: bool,
    /// What the shim does when it exits.
    pub restart: Restart,
}

/// The capabilities a container keeps when its spec says nothing.
pub const DEFAULT_CAPS: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE"];

/// How a container is asked whether it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Period, milliseconds.
    pub every_ms: u64,
    /// An answer later than this counts as none, milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row before a ready container is not ready any more.
    pub fail: u32,
}

/// What a probe does, inside the pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// GET; 200–399 is ready.
    Http {
        /// Port on the pod's address.
        port: u16,
        /// Path and query, starting with `/`.
        path: String,
    },
    /// A connection is enough.
    Tcp {
        /// Port on the pod's address.
        port: u16,
    },
}

/// How a container is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal name without `SIG`: `TERM`, `QUIT`, ...; `None` is the image's, else `TERM`.
    pub signal: Option<String>,
    /// Then `KILL` after this, milliseconds.
    pub grace_ms: u64,
}

/// What happens when a container exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Start it again.
    #[default]
    Always,
    /// Start it again unless its exit code is 0.
    OnFailure,
    /// Leave it.
    Never,
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
        parse::parse(text, file_name)
    }

    /// CPU of one pod, thousandths.
    #[must_use]
    pub fn cpu_milli(&self) -> u64 {
        self.containers.iter().fold(0, |sum, c| sum.saturating_add(c.cpu_milli))
    }

    /// Memory of one pod, bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.containers.iter().fold(0, |sum, c| sum.saturating_add(c.memory_bytes))
    }

    /// Longest grace of its containers, milliseconds.
    #[must_use]
    pub fn grace_ms(&self) -> u64 {
        self.containers.iter().map(|c| c.stop.grace_ms).max().unwrap_or(0)
    }

    /// Ports of all containers.
    #[must_use]
    pub fn ports(&self) -> BTreeMap<String, u16> {
        self.containers.iter().flat_map(|c| c.ports.clone()).collect()
    }

    /// Names what a pod is: two specs of one template need no restart between them. Scaling, placement,
    /// budgets and the app's labels are not part of it.
    #[must_use]
    pub fn template(&self) -> u64 {
        // Serialising plain owned data into a Vec has no failing case.
        let bytes =
            postcard::to_allocvec(&self.containers).expect("plain data into a Vec cannot fail");
        hash::stable(&[b"template", &bytes])
    }
}
