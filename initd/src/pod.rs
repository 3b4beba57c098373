//! What a pod is, as the shim is told it: complete, with every name already decided by the caller.
//!
//! Encoded as one version byte followed by postcard. The spec travels only from a spawner to the shim it
//! spawns, which are the same binary, so an unknown version is refused instead of being guessed at.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Version byte of an encoded [`PodSpec`].
pub const SPEC_VERSION: u8 = 1;
/// Largest encoded spec. Larger ones are refused by the encoder and by the decoder.
pub const SPEC_BYTES_MAX: usize = 1 << 20;
/// Most containers in a pod.
pub const CONTAINERS_MAX: usize = 16;
/// Most bind and tmpfs mounts in a container, each.
pub const MOUNTS_MAX: usize = 64;
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
    /// Absolute path of the mounted root file system (or a plain directory).
    pub rootfs: PathBuf,
    /// Whether the files under `rootfs` already carry the user namespace's ids.
    pub idmap: RootIdmap,
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
    /// How to stop it.
    pub stop: Stop,
    /// Where its output goes.
    pub log: LogPolicy,
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

/// A set of capabilities, one bit for each number of `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps(pub u64);

const CAP_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Caps {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// The eight that each container gets: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID
    /// NET_BIND_SERVICE.
    pub const STRICT: Self =
        Self(1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10);
    /// The strict ones and SETPCAP, SETFCAP, SYS_CHROOT, for images that expect what Docker gives.
    pub const COMPAT: Self = Self(Self::STRICT.0 | 1 << 8 | 1 << 18 | 1 << 31);

    /// The capability of this name, without `CAP_`, in capitals.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        CAP_NAMES.iter().position(|n| *n == name).map(|bit| Self(1 << bit))
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Names of those in the set, in the order of their numbers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        CAP_NAMES.iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, n)| *n)
    }
}

/// Which system call filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// The built-in allow list.
    Default,
    /// The built-in allow list and `chroot`.
    Compat,
    /// None. For trusted workloads only; the container says so in its conditions.
    Unconfined,
}

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host; a directory or a file.
    pub source: PathBuf,
    /// Absolute path inside; resolved in the root file system, created when missing.
    pub target: String,
    /// Read-only, with everything mounted below the source.
    pub read_only: bool,
    /// Map the owners into the pod's user namespace (host root appears as the pod's root). Where the file
    /// system cannot, the mount is made unmapped and owners appear as `nobody`.
    pub idmap: bool,
}

/// A tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path inside; created when missing.
    pub target: String,
    /// Most bytes it may hold.
    pub size_bytes: u64,
    /// Mode of its root.
    pub mode: u32,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path below `/dev`, inside.
    pub name: String,
    /// Path of the node on the host; bound, so its permissions are the host's.
    pub source: PathBuf,
}

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

/// Cgroup limits; `None` leaves the kernel's default. What the machine lacks is reported as a condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `cpu.weight`, 1..=10000.
    pub cpu_weight: Option<u32>,
    /// `cpu.max` in thousandths of a CPU.
    pub cpu_max_milli: Option<u32>,
    /// `memory.max`; sets `memory.oom.group` as well.
    pub memory_max_bytes: Option<u64>,
    /// `memory.high`.
    pub memory_high_bytes: Option<u64>,
    /// `pids.max`.
    pub pids_max: Option<u32>,
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

/// A health check, made from inside the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Time between the end of a check and the start of the next.
    pub every_ms: u32,
    /// A check that takes longer has failed.
    pub timeout_ms: u32,
    /// Time after the start in which failures do not count.
    pub start_grace_ms: u32,
    /// Failures in a row that turn it bad.
    pub failures: u32,
    /// Successes in a row that turn it good.
    pub successes: u32,
}

impl Probe {
    /// Every second, one second long, three failures, one success.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            check,
            every_ms: 1000,
            timeout_ms: 1000,
            start_grace_ms: 0,
            failures: 3,
            successes: 1,
        }
    }
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Check {
    /// `GET path` on a port; a status of 200..=399 is good.
    Http {
        /// TCP port on 127.0.0.1 of the pod.
        port: u16,
        /// Absolute path.
        path: String,
    },
    /// A connection is accepted.
    Tcp {
        /// TCP port on 127.0.0.1 of the pod.
        port: u16,
    },
    /// A command inside the container ends with 0.
    Exec {
        /// Program and arguments.
        argv: Vec<String>,
    },
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
            rootfs: rootfs.into(),
            idmap: RootIdmap::Done,
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
            devices: Vec::new(),
            rlimits: Vec::new(),
            resources: Resources::default(),
            oom_score_adj: 0,
            restart: Restart::Always,
            backoff: Backoff::default(),
            ready: None,
            live: None,
            stop: Stop::default(),
            log: LogPolicy::default(),
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
            containers: Vec::new(),
        }
    }

    /// Everything that can be known to be wrong without starting anything.
    ///
    /// # Errors
    /// [`Error::Spec`] with the first field that cannot be run.
    pub fn check(&self) -> Result<()> {
        let bad = |field: String, why| Err(Error::Spec { field, why });
        if !is_name(&self.id) {
            return bad("id".into(), "must be [A-Za-z0-9._-]{1,128} and not start with a dot");
        }
        if !self.dir.is_absolute() {
            return bad("dir".into(), "must be an absolute path");
        }
        if self.hostname.is_empty() || self.hostname.len() > 64 || self.hostname.contains('\0') {
            return bad("hostname".into(), "must have 1 to 64 bytes");
        }
        if self.containers.is_empty() || self.containers.len() > CONTAINERS_MAX {
            return bad("containers".into(), "a pod has 1 to 16 containers");
        }
        if !self.containers.iter().any(|c| c.kind == Kind::Main) {
            return bad("containers".into(), "none of them is a main container");
        }
        for (i, c) in self.containers.iter().enumerate() {
            if self.containers.iter().take(i).any(|o| o.name == c.name) {
                return bad(format!("containers[{}]", c.name), "the name is taken");
            }
            if let Err((field, why)) = c.check() {
                return bad(format!("containers[{}].{field}", c.name), why);
            }
        }
        Ok(())
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

impl ContainerSpec {
    fn check(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        let nul = |s: &str| s.contains('\0');
        if !is_name(&self.name) {
            return Err(("name", "must be [A-Za-z0-9._-]{1,128} and not start with a dot"));
        }
        if !self.rootfs.is_absolute() {
            return Err(("rootfs", "must be an absolute path"));
        }
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(("argv", "no program"));
        }
        if self.argv.len() > STRINGS_MAX || self.env.len() > STRINGS_MAX {
            return Err(("argv/env", "more than 4096 strings"));
        }
        if self.argv.iter().any(|a| nul(a)) {
            return Err(("argv", "a NUL byte"));
        }
        if self.env.iter().any(|(k, v)| k.is_empty() || k.contains('=') || nul(k) || nul(v)) {
            return Err(("env", "an empty name, a name with '=', or a NUL byte"));
        }
        if !(self.workdir.is_empty() || self.workdir.starts_with('/')) || nul(&self.workdir) {
            return Err(("workdir", "must be an absolute path"));
        }
        if self.binds.len() > MOUNTS_MAX || self.tmpfs.len() > MOUNTS_MAX {
            return Err(("binds/tmpfs", "more than 64"));
        }
        let targets =
            self.binds.iter().map(|b| &b.target).chain(self.tmpfs.iter().map(|t| &t.target));
        for t in targets {
            let dots = t.split('/').any(|c| c == ".." || c == ".");
            if !t.starts_with('/') || t.trim_matches('/').is_empty() || nul(t) || dots {
                return Err((
                    "binds/tmpfs.target",
                    "must be an absolute path below /, without dots",
                ));
            }
        }
        if self.binds.iter().any(|b| !b.source.is_absolute()) {
            return Err(("binds.source", "must be an absolute path"));
        }
        if self.devices.len() > MOUNTS_MAX
            || self
                .devices
                .iter()
                .any(|d| d.name.split('/').any(|c| matches!(c, "" | "." | "..")) || nul(&d.name))
        {
            return Err(("devices", "a path below /dev without dots; at most 64"));
        }
        if !(1..=64).contains(&self.stop.signal) {
            return Err(("stop.signal", "must be 1 to 64"));
        }
        if self.log.files == 0 || self.log.file_bytes < 4096 {
            return Err(("log", "at least one file of at least 4096 bytes"));
        }
        if let Some(w) = self.resources.cpu_weight
            && !(1..=10_000).contains(&w)
        {
            return Err(("resources.cpu_weight", "must be 1 to 10000"));
        }
        self.ready.iter().chain(&self.live).try_for_each(Probe::check)
    }
}

impl Probe {
    fn check(&self) -> std::result::Result<(), (&'static str, &'static str)> {
        if self.every_ms == 0 || self.timeout_ms == 0 || self.failures == 0 || self.successes == 0 {
            return Err(("ready/live", "every, timeout, failures and successes are at least 1"));
        }
        match &self.check {
            Check::Exec { argv }
                if argv.first().is_none_or(String::is_empty)
                    || argv.iter().any(|a| a.contains('\0')) =>
            {
                Err(("ready/live.exec", "no program, or a NUL byte"))
            }
            Check::Http { path, .. }
                if !path.starts_with('/') || path.bytes().any(|b| b <= b' ' || b == 0x7f) =>
            {
                Err(("ready/live.http.path", "must start with / and hold no blanks"))
            }
            _ => Ok(()),
        }
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
mod tests {
    use super::*;

    fn spec() -> PodSpec {
        PodSpec {
            containers: vec![ContainerSpec::new("c", "/r", ["/bin/x"])],
            ..PodSpec::new("p", "/p")
        }
    }

    /// The spec with its first container changed.
    fn with(change: impl FnOnce(&mut ContainerSpec)) -> PodSpec {
        let mut s = spec();
        change(&mut s.containers[0]);
        s
    }

    #[test]
    fn capabilities_by_name() {
        assert_eq!(Caps::named("CAP_CHOWN"), Some(Caps(1)));
        assert_eq!(Caps::named("CHECKPOINT_RESTORE"), Some(Caps(1 << 40)));
        assert_eq!(Caps::named("chown"), None);
        let strict: Vec<_> = Caps::STRICT.names().collect();
        let want = [
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "SETGID",
            "SETUID",
            "NET_BIND_SERVICE",
        ];
        assert_eq!(strict, want);
        let more: Vec<_> = Caps::COMPAT.without(Caps::STRICT).names().collect();
        assert_eq!(more, ["SETPCAP", "SYS_CHROOT", "SETFCAP"]);
    }

    #[test]
    fn specs_come_back_and_other_versions_are_refused() {
        let mut bytes = spec().encode().expect("small");
        assert_eq!(PodSpec::decode(&bytes), Ok(spec()));
        for cut in 0..bytes.len() {
            assert!(PodSpec::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        bytes[0] += 1;
        assert!(matches!(PodSpec::decode(&bytes), Err(Error::Format { .. })));
        let big = with(|c| c.env.push(("A".into(), "x".repeat(SPEC_BYTES_MAX))));
        assert!(big.encode().is_err());
    }

    #[test]
    fn each_mistake_is_named() {
        let cases: [(&str, PodSpec); 15] = [
            ("id", PodSpec { id: "../x".into(), ..spec() }),
            ("dir", PodSpec { dir: "p".into(), ..spec() }),
            ("hostname", PodSpec { hostname: String::new(), ..spec() }),
            ("containers", PodSpec { containers: vec![], ..spec() }),
            ("containers", with(|c| c.kind = Kind::Sidecar)),
            ("containers[a/b].name", with(|c| c.name = "a/b".into())),
            ("containers[c].rootfs", with(|c| c.rootfs = "r".into())),
            ("containers[c].argv", with(|c| c.argv.clear())),
            ("containers[c].env", with(|c| c.env.push(("A=B".into(), String::new())))),
            ("containers[c].workdir", with(|c| c.workdir = "x".into())),
            (
                "containers[c].binds/tmpfs.target",
                with(|c| c.tmpfs.push(Tmpfs { target: "/a/../..".into(), size_bytes: 1, mode: 0 })),
            ),
            (
                "containers[c].devices",
                with(|c| {
                    c.devices.push(Device { name: "../x".into(), source: "/dev/null".into() })
                }),
            ),
            ("containers[c].stop.signal", with(|c| c.stop.signal = 0)),
            ("containers[c].log", with(|c| c.log.files = 0)),
            (
                "containers[c].ready/live.http.path",
                with(|c| c.ready = Some(Probe::new(Check::Http { port: 1, path: "/ x".into() }))),
            ),
        ];
        for (want, spec) in cases {
            match spec.check() {
                Err(Error::Spec { field, .. }) => assert_eq!(field, want),
                other => panic!("{want}: {other:?}"),
            }
        }
        let mut twice = spec();
        twice.containers.push(ContainerSpec::new("c", "/r", ["x"]));
        assert!(twice.check().is_err());
    }

    proptest::proptest! {
        #[test]
        fn rubbish_is_refused_without_a_panic(bytes: Vec<u8>) {
            let _ = PodSpec::decode(&bytes);
            let mut versioned = vec![SPEC_VERSION];
            versioned.extend(bytes);
            let _ = PodSpec::decode(&versioned);
        }
    }
}
