//! The messages between shim and client: one `SOCK_SEQPACKET` message each, a version byte and postcard.
//!
//! An old shim must serve a new agent and the other way round, so variants are only ever appended and an
//! unknown one is answered by [`Reply::Unsupported`] or ignored. File descriptors travel beside a message
//! by `SCM_RIGHTS`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::launch::Step;
use crate::userns::IdMap;

/// Version byte of every message.
pub(crate) const WIRE_VERSION: u8 = 1;
/// Largest message. `SO_SNDBUF` starts at 208 KiB, so one always fits.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most descriptors beside a message.
pub(crate) const FDS_MAX: usize = 5;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// The first message to a fresh shim; descriptors: spec memfd, locked directory, then those named here.
    Launch { netns: bool, tun: bool, userns: Option<IdMap> },
    /// Answered by [`Reply::Status`].
    Status,
    /// Stop all containers in the reverse order of their start.
    Stop { grace_ms: Option<u32> },
    /// Run a program inside a container; descriptors: stdin, stdout, stderr.
    Exec(u64, ExecSpec),
    /// Answered by [`Reply::Fds`] and the descriptors.
    Fds,
    /// Forget the pod. Refused while a container runs.
    Quit,
    /// A signal to a container's program.
    Signal { container: String, signal: i32 },
    /// Kill a program started by `Exec` on this connection.
    ExecKill(u64),
    /// As `Exec`, on a new terminal of the container.
    ExecTerminal(u64, ExecSpec),
    /// The input and output of a container's program: answered by [`Reply::Attached`] and the descriptors.
    AttachTo { container: String },
    /// The end of a container's input, once nobody else has it open.
    CloseStdin { container: String },
    /// A TCP connection to a port of the pod: answered by [`Reply::Connected`] and its descriptor.
    Connect { connect: u64, port: u16 },
}

/// What a shim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Status(PodStatus),
    Started {
        container: String,
        pid: u32,
        restarts: u32,
    },
    Ready {
        container: String,
        ready: bool,
        pod_ready: bool,
    },
    Exited {
        container: String,
        exit: Exit,
        restart_in_ms: Option<u32>,
    },
    Failed {
        container: String,
        step: Step,
        errno: i32,
        text: String,
        retry_in_ms: Option<u32>,
    },
    Unhealthy {
        container: String,
        text: String,
    },
    Stopped,
    ExecStarted {
        exec: u64,
        pid: u32,
    },
    ExecExited {
        exec: u64,
        exit: Exit,
    },
    ExecFailed {
        exec: u64,
        step: Step,
        errno: i32,
        text: String,
    },
    Fds {
        netns: bool,
        tun: bool,
        userns: bool,
    },
    Condition(Condition),
    Unsupported,
    /// Answers `ExecTerminal`, with the terminal's descriptor.
    Terminal {
        exec: u64,
    },
    /// Descriptors: the input, if there is one, then the output and the errors.
    Attached {
        container: String,
        input: bool,
        terminal: bool,
    },
    AttachFailed {
        container: String,
        errno: i32,
        text: String,
    },
    Connected {
        connect: u64,
    },
    ConnectFailed {
        connect: u64,
        errno: i32,
        text: String,
    },
    /// Nobody waits for it. Of an end, or of a stop that is killed, it comes before [`Reply::Exited`].
    Remark {
        container: String,
        remark: Remark,
    },
}

/// Something about a container that its operator should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Remark {
    /// It did not end within its grace and is killed.
    Deaf {
        /// The signal that it was sent.
        signal: i32,
        /// How long it was waited for.
        grace_ms: u32,
    },
    /// Its program ended and left processes, which end with it.
    LeftOthers,
    /// Output was dropped: it writes faster than its log policy lets through, or the disk is full. Told once.
    LogDropped,
}

/// Something that the machine could not give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Condition {
    /// The root file system cannot be idmapped: the container runs without a user namespace.
    NoIdmap {
        /// Which.
        container: String,
        /// What the kernel said.
        errno: i32,
    },
    /// A bind mount shows its host owners (as `nobody`).
    BindNotMapped {
        /// Which.
        container: String,
        /// Where.
        target: String,
        /// What the kernel said.
        errno: i32,
    },
    /// No cgroup: the pod is stopped by its PID namespaces and has no limits.
    NoCgroup {
        /// Where it was to be.
        path: String,
        /// What the kernel said; 0 when the caller gave none.
        errno: i32,
    },
    /// A limit was asked for and its controller or file is not there.
    NoLimit {
        /// Which; empty for the pod's own.
        container: String,
        /// The file, `memory.max` for example.
        file: String,
        /// What the kernel said.
        errno: i32,
    },
    /// The node may not give what is asked: a lower `oom_score_adj`.
    NotPermitted {
        /// Which.
        container: String,
        /// What.
        what: String,
        /// What the kernel said.
        errno: i32,
    },
    /// The caller gave no user namespace: root inside is root outside, with the capabilities of the spec.
    NoUserns,
    /// The container runs without a system call filter, as its spec asks.
    Unconfined {
        /// Which.
        container: String,
    },
    /// No device filter on the container's cgroup: what keeps it from other devices is that it has no nodes of them.
    NoDeviceFilter {
        /// Which.
        container: String,
        /// What the kernel said; 0 without a cgroup.
        errno: i32,
    },
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal, when it was killed by one.
    pub signal: Option<i32>,
    /// The kernel killed something in the container for memory.
    pub oom: bool,
}

impl Exit {
    /// Ended with 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.code == Some(0) && !self.oom
    }

    /// As a shell says it: the code, or 128 + signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        self.code.or(self.signal.map(|s| 128 + s)).unwrap_or(255)
    }
}

/// Where the pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodPhase {
    /// Init containers run, or main ones have not all been started once.
    Starting,
    /// Main containers run or wait for a restart.
    Running,
    /// A stop was asked for.
    Stopping,
    /// All main containers ended and none will be started again, or everything has been stopped.
    Stopped,
}

/// Where a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not started yet.
    Waiting,
    /// Runs.
    Running {
        /// PID in the shim's PID namespace.
        pid: u32,
        /// Its readiness.
        ready: bool,
    },
    /// Ended, will be started again.
    Backoff {
        /// Time left at the moment of the status.
        restart_in_ms: u32,
    },
    /// Told to stop, not gone yet.
    Stopping,
    /// Ended for good (or never started).
    Done,
}

/// One container in a [`PodStatus`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Name in the spec.
    pub name: String,
    /// Where it is.
    pub state: ContainerState,
    /// Starts after the first.
    pub restarts: u32,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// Why it could not be started last: step, errno and text.
    pub last_failure: Option<(Step, i32, String)>,
    /// Log bytes dropped by policy or for want of space since the shim started.
    pub log_dropped_bytes: u64,
}

/// A snapshot, as `status` gives it and as `<pod dir>/status` keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// The pod's id.
    pub id: String,
    /// The shim's PID in its own PID namespace.
    pub shim_pid: u32,
    /// Where the pod is.
    pub phase: PodPhase,
    /// All main containers run and are ready.
    pub ready: bool,
    /// In the order of the spec.
    pub containers: Vec<ContainerStatus>,
    /// What the machine could not give.
    pub conditions: Vec<Condition>,
}

/// A program to run inside a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// In which container.
    pub container: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Replaces and adds to the container's environment.
    pub env: Vec<(String, String)>,
    /// Empty: the container's.
    pub workdir: String,
    /// Empty: the container's.
    pub user: String,
}

/// Version byte and postcard.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>> {
    let too_big = Error::Format { what: "shim message", why: "larger than 64 KiB" };
    let bytes = postcard::to_extend(message, vec![WIRE_VERSION]).map_err(|_| too_big.clone())?;
    if bytes.len() > MESSAGE_BYTES_MAX { Err(too_big) } else { Ok(bytes) }
}

/// `Ok(None)` for a message that this version does not know.
pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<Option<T>> {
    let (version, body) =
        bytes.split_first().ok_or(Error::Format { what: "shim message", why: "empty" })?;
    if *version != WIRE_VERSION {
        return Ok(None);
    }
    Ok(postcard::from_bytes(body).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a later version might ask: one more variant.
    #[derive(Serialize)]
    enum Later {
        _A,
        _B,
        _C,
        _D,
        _E,
        _F,
        _G,
        _H,
        _I,
        _J,
        _K,
        _L,
        _M,
        New { words: Vec<String> },
    }

    #[test]
    fn what_a_later_version_says_is_not_understood_and_does_no_harm() {
        let bytes = encode(&Later::New { words: vec!["x".into()] }).expect("small");
        assert_eq!(decode::<Request>(&bytes), Ok(None));
        let mut other = encode(&Request::Status).expect("small");
        other[0] = WIRE_VERSION + 1;
        assert_eq!(decode::<Request>(&other), Ok(None));
        assert!(decode::<Request>(&[]).is_err());
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_by_who_sends_it() {
        let text = "x".repeat(MESSAGE_BYTES_MAX);
        assert!(encode(&Reply::Unhealthy { container: String::new(), text }).is_err());
    }

    proptest::proptest! {
        #[test]
        fn rubbish_is_never_more_than_not_understood(bytes: Vec<u8>) {
            let _ = decode::<Request>(&bytes);
            let _ = decode::<Reply>(&bytes);
            let _ = decode::<PodStatus>(&bytes);
        }

        #[test]
        fn requests_come_back_as_they_were(id: u64, words: Vec<String>, grace: Option<u32>) {
            let exec = ExecSpec {
                container: "c".into(),
                argv: words,
                env: vec![("A".into(), "b".into())],
                workdir: String::new(),
                user: "web".into(),
            };
            for request in [Request::Exec(id, exec), Request::Stop { grace_ms: grace }] {
                if let Ok(bytes) = encode(&request) {
                    proptest::prop_assert_eq!(decode::<Request>(&bytes), Ok(Some(request)));
                }
            }
        }
    }
}
