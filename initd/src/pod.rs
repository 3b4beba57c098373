//! What a pod is, as the shim is told it: complete, with every name already decided by the caller.
//!
//! Encoded as one version byte followed by postcard. The spec travels only from a spawner to the shim it
//! spawns, which are the same binary, so an unknown version is refused instead of being guessed at.

mod caps;
mod check;
mod health;
mod mounts;
mod resources;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use caps::Caps;
pub use health::{Check, Probe};
pub use mounts::{Bind, Device, Tmpfs, Volume, VolumeMount};
pub use resources::{HugePages, IoLimit, Resources};

use crate::error::{Error, Result};
use crate::seccomp::Insn;

/// Version byte of an encoded [`PodSpec`].
pub const SPEC_VERSION: u8 = 2;
/// Largest encoded spec. Larger ones are refused by the encoder and by the decoder.
pub const SPEC_BYTES_MAX: usize = 1 << 20;
/// Most containers in a pod.
pub const CONTAINERS_MAX: usize = 16;
/// Most bind, tmpfs and volume mounts and devices in a container, each.
pub const MOUNTS_MAX: usize = 64;
/// Most volumes of a pod.
pub const VOLUMES_MAX: usize = 16;
/// Most arguments, and most environment variables.
pub const STRINGS_MAX: usize = 4096;
/// Longest container or pod name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;

/// A pod: containers that share network, IPC, host name and user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Unique on the node, `[A-Za-z0-9._-]{1,128}`: the claim's id. Names cgroups and log lines.
    pub id: String,
    /// The pod's directory on the host. It exists; the shim puts `shim.sock`, `status` and `logs/` there.
    pub dir: PathBuf,
    /// Host name inside the pod, at most 64 bytes.
    pub hostname: String,
    /// The pod's cgroup directory, absolute; the shim creates it and `<container>/{main,exec-N}` below it.
    /// `None` where the machine has no cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// The shim's own cgroup, outside the pod's; created when missing. The shim is cloned into it.
    pub shim_cgroup: Option<PathBuf>,
    /// Limits on the pod as a whole.
    pub resources: Resources,
    /// Run in the node's own network. Refused beside a network namespace, and so is a pod with neither.
    pub host_network: bool,
    /// All containers in one PID namespace, where they see and may signal each other. Its PID 1 is the shim's and reaps.
    pub share_pid: bool,
    /// File systems that containers share and that end with the pod.
    pub volumes: Vec<Volume>,
    /// In the order of their start. Init containers run one after the other before the rest.
    pub containers: Vec<ContainerSpec>,
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Runs to completion before the next container starts. A failure follows the restart policy.
    Init,
    /// Starts before the main containers, stops after them, does not keep the pod alive.
    Sidecar,
    /// What the pod is for. When all of them are done, the pod is done.
    Main,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Unique in the pod, `[A-Za-z0-9._-]{1,128}`.
    pub name: String,
    /// Its part in the pod.
    pub kind: Kind,
    /// Its root file system.
    pub root: Root,
    /// Mount the root read-only.
    pub read_only: bool,
    /// Program and arguments; a program without `/` is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// Complete environment. Only `HOME` is added, from the user's passwd entry, when it is missing.
    pub env: Vec<(String, String)>,
    /// Absolute path inside the container; created when missing. Empty means `/`.
    pub workdir: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; empty means `0:0`. Names come from the root file system.
    pub user: String,
    /// Run the built-in init as PID 1 and the program as its child.
    pub init: bool,
    /// Capabilities, by bit number: the whole bounding, permitted and effective set of a root program.
    pub caps: Caps,
    /// System call filter.
    pub seccomp: Seccomp,
    /// Bind mounts from the host.
    pub binds: Vec<Bind>,
    /// Fresh tmpfs mounts.
    pub tmpfs: Vec<Tmpfs>,
    /// Volumes of the pod.
    pub volumes: Vec<VolumeMount>,
    /// Device nodes beyond the six that each container has.
    pub devices: Vec<Device>,
    /// Resource limits of processes.
    pub rlimits: Vec<Rlimit>,
    /// Cgroup limits.
    pub resources: Resources,
    /// `oom_score_adj`; raising always works, lowering needs CAP_SYS_RESOURCE.
    pub oom_score_adj: i16,
    /// When to start it again.
    pub restart: Restart,
    /// How long to wait before that.
    pub backoff: Backoff,
    /// May traffic go there? Without a probe a running container is ready.
    pub ready: Option<Probe>,
    /// Is it alive? A container that is not is killed and treated like one that failed.
    pub live: Option<Probe>,
    /// Has it come up? Until it has, `ready` and `live` are not asked. It has `every_ms` times `failures` for it; then it is
    /// killed and treated like one that failed.
    pub start: Option<Probe>,
    /// How to stop it.
    pub stop: Stop,
    /// What its standard input is.
    pub stdin: Stdin,
    /// Where its output goes.
    pub log: LogPolicy,
}

/// What a container's root file system is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// A mount (or a plain directory) that is there.
    Mounted {
        /// Its absolute path.
        path: PathBuf,
        /// Whether the files there already carry the user namespace's ids.
        idmap: RootIdmap,
    },
    /// An empty tmpfs that belongs to the pod's root: for programs that come from the host by read-only binds, and for
    /// images without layers.
    Fresh {
        /// Most bytes it may hold.
        size_bytes: u64,
    },
}

/// What a container's standard input is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// A pipe that clients write to by [`Shim::attach_to`](crate::shim::Shim::attach_to). It ends by
    /// [`Shim::close_stdin`](crate::shim::Shim::close_stdin), not with a client.
    Pipe,
    /// A terminal, which is its output and error, too: logged as output.
    Terminal,
}

/// How the root file system's owners relate to the pod's user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootIdmap {
    /// The caller mapped them (or there is no user namespace).
    Done,
    /// Map the mount here. Where the kernel refuses, the container runs without a user namespace and says so
    /// by [`Condition::NoIdmap`](crate::shim::Condition).
    Here,
}

/// Which system call filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The built-in allow list.
    Default,
    /// The built-in allow list and `chroot`.
    Compat,
    /// None. For trusted workloads only; the container says so in its conditions.
    Unconfined,
    /// One of the node's owner, compiled by [`seccomp::own::compile`](crate::seccomp::own::compile).
    Own {
        /// Its name, for people.
        name: String,
        /// The program.
        program: Vec<Insn>,
    },
}

/// Names of `RLIMIT_*`, in the order of their numbers (asm-generic/resource.h).
const RLIMIT_NAMES: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// A process limit, in the units of `setrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

impl Rlimit {
    /// The limit of this name, `nofile` for example.
    #[must_use]
    pub fn named(name: &str, soft: u64, hard: u64) -> Option<Self> {
        let resource = RLIMIT_NAMES.iter().position(|n| *n == name)?;
        Some(Self { resource: u32::try_from(resource).ok()?, soft, hard })
    }
}

/// Restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// Whatever the exit code.
    Always,
    /// Only after a code other than zero, a signal, or a failed launch that may work next time.
    OnFailure,
    /// Not at all.
    Never,
}

/// Waiting time before a restart: doubles from `first_ms` to `max_ms`, back to `first_ms` after a run of
/// `reset_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// First wait.
    pub first_ms: u32,
    /// Longest wait.
    pub max_ms: u32,
    /// A container that ran this long starts over with `first_ms`.
    pub reset_ms: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first_ms: 200, max_ms: 30_000, reset_ms: 60_000 }
    }
}

/// How a container is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number sent to the container's program.
    pub signal: i32,
    /// Time until everything in the container is killed, when the caller of `stop` gives none.
    pub grace_ms: u32,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: libc::SIGTERM, grace_ms: 10_000 }
    }
}

/// What is done with output that cannot be written as fast as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overflow {
    /// The program waits.
    Wait,
    /// At most this many bytes a second are kept; the number of those dropped is logged.
    Drop {
        /// Bytes a second, over a burst of one second.
        bytes_per_s: u64,
    },
}

/// Logging of one container, into `<pod dir>/logs/<container>.log` and `.log.1`, `.log.2`, ...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPolicy {
    /// A file is rotated before it grows past this.
    pub file_bytes: u64,
    /// Files kept, the current one included; at least 1.
    pub files: u32,
    /// Too much, too fast.
    pub overflow: Overflow,
}

impl Default for LogPolicy {
    fn default() -> Self {
        Self { file_bytes: 4 << 20, files: 3, overflow: Overflow::Wait }
    }
}

impl ContainerSpec {
    /// A main container with the strict defaults: eight capabilities, the default filter, restarted always.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        rootfs: impl Into<PathBuf>,
        argv: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            name: name.into(),
            kind: Kind::Main,
            root: Root::Mounted { path: rootfs.into(), idmap: RootIdmap::Done },
            read_only: false,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            workdir: String::new(),
            user: String::new(),
            init: false,
            caps: Caps::STRICT,
            seccomp: Seccomp::Default,
            binds: Vec::new(),
            tmpfs: Vec::new(),
            volumes: Vec::new(),
            devices: Vec::new(),
            rlimits: Vec::new(),
            resources: Resources::default(),
            oom_score_adj: 0,
            restart: Restart::Always,
            backoff: Backoff::default(),
            ready: None,
            live: None,
            start: None,
            stop: Stop::default(),
            stdin: Stdin::Null,
            log: LogPolicy::default(),
        }
    }
}

/// Root of a host workload: room for mount points and for what little it writes.
const HOST_ROOT_BYTES: u64 = 16 << 20;

impl ContainerSpec {
    /// A program of the host itself, in a root that holds nothing but these paths, read-only and where they are on the
    /// host. Limits, namespaces, capabilities and filter are those of every container.
    #[must_use]
    pub fn host(
        name: impl Into<String>,
        paths: impl IntoIterator<Item = PathBuf>,
        argv: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let bind = |source: PathBuf| Bind {
            target: source.to_string_lossy().into_owned(),
            source,
            read_only: true,
            idmap: true,
        };
        Self {
            root: Root::Fresh { size_bytes: HOST_ROOT_BYTES },
            binds: paths.into_iter().map(bind).collect(),
            ..Self::new(name, PathBuf::new(), argv)
        }
    }
}

impl PodSpec {
    /// A pod without cgroups and containers.
    #[must_use]
    pub fn new(id: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        let id = id.into();
        let mut hostname = id.clone();
        hostname.truncate(64);
        Self {
            id,
            dir: dir.into(),
            hostname,
            cgroup: None,
            shim_cgroup: None,
            resources: Resources::default(),
            host_network: false,
            share_pid: false,
            volumes: Vec::new(),
            containers: Vec::new(),
        }
    }

    /// Version byte and postcard.
    ///
    /// # Errors
    /// [`Error::Spec`] when it is larger than [`SPEC_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let too_big = Error::Spec { field: "pod".into(), why: "larger than 1 MiB" };
        let bytes = postcard::to_extend(self, vec![SPEC_VERSION]).map_err(|_| too_big.clone())?;
        if bytes.len() > SPEC_BYTES_MAX { Err(too_big) } else { Ok(bytes) }
    }

    /// The reverse of [`encode`](Self::encode), followed by [`check`](Self::check).
    ///
    /// # Errors
    /// [`Error::Format`] for bytes that are no spec of this version, [`Error::Spec`] for one that cannot run.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bad = |why| Error::Format { what: "pod spec", why };
        if bytes.len() > SPEC_BYTES_MAX {
            return Err(bad("larger than 1 MiB"));
        }
        let (version, body) = bytes.split_first().ok_or(bad("empty"))?;
        if *version != SPEC_VERSION {
            return Err(bad("of another version"));
        }
        let spec: Self = postcard::from_bytes(body).map_err(|_| bad("malformed"))?;
        spec.check()?;
        Ok(spec)
    }
}

/// `[A-Za-z0-9._-]{1,128}`, not starting with a dot: safe as a file name and as a cgroup name.
pub(crate) fn is_name(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= NAME_BYTES_MAX
        && !s.starts_with('.')
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests;
