//! What one container of a pod is: the types, and what each field is when the spec says nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One container of a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// `[a-z0-9-]{1,63}`, unique in the pod.
    pub name: String,
    /// Image reference as written; empty for one that runs a tool of the host, see [`exec`](Self::exec).
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
    /// Environment; values may hold [`template`](super::template)s.
    pub env: BTreeMap<String, String>,
    /// Name → port inside the pod.
    pub ports: BTreeMap<String, u16>,
    /// May traffic go there? Without one, running is ready.
    pub ready: Option<Probe>,
    /// How it is stopped.
    pub stop: Stop,
    /// Capabilities to keep, without `CAP_`; `None` is the profile's.
    pub caps: Option<Vec<String>>,
    /// `user[:group]`, names or numbers; `None` is the image's.
    pub user: Option<String>,
    /// Absolute; `None` is the image's.
    pub workdir: Option<String>,
    /// The root file system is mounted read-only.
    pub read_only: bool,
    /// What the shim does when it exits.
    pub restart: Restart,
    /// Its part in the pod.
    #[serde(default)]
    pub role: Role,
    /// How long to wait before it is started again.
    #[serde(default)]
    pub backoff: Backoff,
    /// Is it alive? One that is not is stopped and started again.
    #[serde(default)]
    pub live: Option<Probe>,
    /// Has it come up? Until it has, `ready` and `live` are not asked.
    #[serde(default)]
    pub start: Option<Probe>,
    /// Thousandths of a CPU that it may use at most, however idle the node is; `None` has no bound.
    #[serde(default)]
    pub cpu_max_milli: Option<u64>,
    /// Bytes from which on the kernel slows it down and takes memory back.
    #[serde(default)]
    pub memory_high_bytes: Option<u64>,
    /// Bytes that it may write beside its image; `None` is the node's default.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    /// Disk bandwidth.
    #[serde(default)]
    pub io: Io,
    /// CPUs it may run on, as the kernel lists them: `0-3,8`.
    #[serde(default)]
    pub cpuset: Option<String>,
    /// Page size (`2Mi`, `1Gi`) → bytes of such pages at most.
    #[serde(default)]
    pub hugepages: BTreeMap<String, u64>,
    /// Name of [`RLIMITS`] → limit.
    #[serde(default)]
    pub rlimits: BTreeMap<String, Rlimit>,
    /// Fresh memory file systems.
    #[serde(default)]
    pub tmpfs: Vec<Tmpfs>,
    /// Volumes of the pod and where they are.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Names by which nodes grant devices.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Capabilities and system calls, when nothing finer is said.
    #[serde(default)]
    pub profile: Profile,
    /// System call filter: `default`, `compat` or one that nodes have under this name; `None` is the profile's.
    #[serde(default)]
    pub seccomp: Option<String>,
    /// A small init is PID 1 and reaps; the program is its child.
    #[serde(default = "yes")]
    pub init: bool,
    /// Instead of an image: a program of the host and its arguments.
    #[serde(default)]
    pub exec: Option<Vec<String>>,
    /// What is kept of its output.
    #[serde(default)]
    pub log: Log,
    /// What its standard input is.
    #[serde(default)]
    pub stdin: Stdin,
}

fn yes() -> bool {
    true
}

/// The capabilities a container keeps when its spec says nothing.
pub const DEFAULT_CAPS: [&str; 8] =
    ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "NET_BIND_SERVICE"];

/// Resource limits by the names of `prlimit(1)`, with the numbers of `asm-generic/resource.h`.
pub const RLIMITS: [(&str, u32); 16] = [
    ("as", 9),
    ("core", 4),
    ("cpu", 0),
    ("data", 2),
    ("fsize", 1),
    ("locks", 10),
    ("memlock", 8),
    ("msgqueue", 12),
    ("nice", 13),
    ("nofile", 7),
    ("nproc", 6),
    ("rss", 5),
    ("rtprio", 14),
    ("rttime", 15),
    ("sigpending", 11),
    ("stack", 3),
];

/// A container's part in its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the pod is for. When all of these are done, so is the pod.
    #[default]
    Main,
    /// Runs to its end before the next container starts.
    Init,
    /// Starts before the main ones and stops after them.
    Sidecar,
}

/// How a container is asked how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Period, milliseconds.
    pub every_ms: u64,
    /// An answer later than this counts as none, milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row before a good container is not good any more.
    pub fail: u32,
    /// Successes in a row before a bad one is good.
    #[serde(default = "one")]
    pub pass: u32,
    /// Failures this soon after the start do not count, milliseconds.
    #[serde(default)]
    pub start_grace_ms: u64,
}

fn one() -> u32 {
    1
}

/// What a probe does, inside the pod's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// GET; 200–399 is good.
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
    /// `grpc.health.v1.Health/Check`; SERVING is good.
    Grpc {
        /// Port on the pod's address.
        port: u16,
        /// The service asked for; empty: the server as a whole.
        service: String,
    },
    /// A program in the container ends with 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
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

/// The wait before a restart: doubles from `first_ms` to `max_ms`; a run of `reset_ms` starts over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// First wait, milliseconds.
    pub first_ms: u64,
    /// Longest wait, milliseconds.
    pub max_ms: u64,
    /// A container that ran this long starts over with the first, milliseconds.
    pub reset_ms: u64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first_ms: 200, max_ms: 30_000, reset_ms: 60_000 }
    }
}

/// Disk bandwidth on the disk that holds the node's containers; `None` has no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Io {
    /// Bytes read a second.
    pub read_bytes_per_s: Option<u64>,
    /// Bytes written a second.
    pub write_bytes_per_s: Option<u64>,
    /// Reads a second.
    pub read_ops_per_s: Option<u64>,
    /// Writes a second.
    pub write_ops_per_s: Option<u64>,
    /// Share among containers, 1..=10000; the kernel's default is 100.
    pub weight: Option<u32>,
}

/// A soft and a hard limit; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What the process starts with.
    pub soft: u64,
    /// As far as it may raise it.
    pub hard: u64,
}

/// A fresh memory file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Where, absolute.
    pub path: String,
    /// Bytes it may hold; they count as the container's memory.
    pub size_bytes: u64,
    /// Mode of its root.
    pub mode: u32,
}

/// A volume of the pod in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where, absolute.
    pub path: String,
    /// This container cannot write to it.
    pub read_only: bool,
}

/// What a container gets when nothing finer is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// [`DEFAULT_CAPS`] and the default filter.
    #[default]
    Strict,
    /// For images that expect what Docker gives: SETPCAP, SETFCAP, SYS_CHROOT and `chroot(2)` as well.
    Compat,
}

/// What a container's standard input is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stdin {
    /// Nothing.
    #[default]
    None,
    /// A pipe that `quelea attach` writes to.
    Pipe,
    /// A terminal that `quelea attach` sits at; its output goes there, too.
    Terminal,
}

/// What is kept of a container's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Bytes of one file before it is rotated.
    pub size_bytes: u64,
    /// Files kept, the one being written included.
    pub files: u32,
    /// Bytes a second that are kept, the rest is counted and dropped; `None`: the program waits.
    pub rate_bytes_per_s: Option<u64>,
}

impl Default for Log {
    fn default() -> Self {
        Self { size_bytes: 4 << 20, files: 3, rate_bytes_per_s: None }
    }
}

/// Files shared by containers of one pod; gone with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `[a-z0-9-]{1,63}`, unique in the pod.
    pub name: String,
    /// What is in it at first.
    pub kind: VolumeKind,
    /// Bytes it may hold.
    pub size_bytes: u64,
}

/// Where a volume's files come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeKind {
    /// Nothing is in it; it is held in memory and counts as memory of who writes.
    #[default]
    Empty,
}
