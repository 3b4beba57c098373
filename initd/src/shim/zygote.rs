//! A process that has done what every shim does first, and of which each shim is a copy.
//!
//! Executing a static program costs a launch about a millisecond: a new address space, relocations, what the C library asks the
//! processor (each CPUID leaves a virtual machine), the runtime's start. A copy of a process that has this behind it, has one
//! thread and little memory costs a tenth. The zygote holds no secret and parses nothing but its agent's short messages; it
//! ends with its agent's end of the socket. Its copies are the agent's children (`CLONE_PARENT`), as executed shims are.

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::client::{PodFds, Shim};
use super::message::{recv_with_fds, send_with_fds};
use super::wire;
use crate::cgroup;
use crate::error::{Error, Result};
use crate::pod::PodSpec;
use crate::sys::{self, Strings};

/// How long an answer of a zygote may take; one that does not answer is replaced.
const ANSWER_WAIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// Longest message between the two.
const MESSAGE_BYTES_MAX: usize = 256;
/// First word of a zygote, and of a shim.
const ZYGOTE_NAME: &str = "quelea-zygote";
const SHIM_NAME: &str = "quelea-shim";
/// What a zygote has where a shim has its pod's id: room for one of the longest. No id begins so.
const ROOM: &str = concat!(
    "----------------------------------------------------------------",
    "----------------------------------------------------------------"
);

/// What an agent asks. Descriptors: the shim's end of its first connection, then its cgroup.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fork {
    /// Of the pod, for `ps`.
    id: String,
    cgroup: bool,
}

/// The answer. Descriptor, unless `errno` is one: the shim's pidfd.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Forked {
    errno: i32,
}

/// The agent's end: starts shims by copying a process that it keeps, or by executing one where that cannot be.
#[derive(Debug)]
pub struct Zygote {
    exe: PathBuf,
    process: Option<Process>,
}

impl Zygote {
    /// One that copies `exe shim`. Without the process (no memory, say) each shim is executed, and the next one tries again.
    #[must_use]
    pub fn new(exe: &Path) -> Self {
        Self { exe: exe.to_owned(), process: Process::start(exe).ok() }
    }

    /// As [`Shim::spawn`].
    ///
    /// # Errors
    /// As there.
    pub fn spawn(&mut self, spec: &PodSpec, fds: PodFds<'_>) -> Result<Shim> {
        Shim::spawn_with(spec, fds, |socket| self.fork(spec, socket))
    }

    /// The zygote's PID, while there is one: for those who count its time.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(|p| sys::pid_of(p.pidfd.as_fd()))
    }

    fn fork(&mut self, spec: &PodSpec, socket: OwnedFd) -> Result<OwnedFd> {
        if self.process.is_none() {
            self.process = Process::start(&self.exe).ok();
        }
        let cgroup = shim_cgroup(spec)?;
        if let Some(process) = &self.process {
            match process.ask(&spec.id, &socket, cgroup.as_ref()) {
                Ok(Ok(pidfd)) => return Ok(pidfd),
                Ok(Err(e)) => return Err(Error::sys("clone the shim of", &spec.id, e)),
                Err(_) => self.process = None,
            }
        }
        execute(&self.exe, [SHIM_NAME, "shim", &spec.id], &socket, cgroup.as_ref())
    }
}

#[derive(Debug)]
struct Process {
    socket: OwnedFd,
    pidfd: OwnedFd,
}

impl Process {
    fn start(exe: &Path) -> Result<Self> {
        let (socket, theirs) = super::client::pair()?;
        let pidfd = execute(exe, [ZYGOTE_NAME, "shim", ROOM], &theirs, None)?;
        Ok(Self { socket, pidfd })
    }

    /// The outer error: this process is of no use. The inner: it could not clone.
    fn ask(
        &self,
        id: &str,
        socket: &OwnedFd,
        cgroup: Option<&OwnedFd>,
    ) -> Result<std::result::Result<OwnedFd, Errno>> {
        let fail = |e| Error::sys("ask the zygote for the shim of", id, e);
        let ask = wire::encode(&Fork { id: id.to_owned(), cgroup: cgroup.is_some() })?;
        let mut pass = vec![socket.as_fd()];
        pass.extend(cgroup.map(|c| c.as_fd()));
        send_with_fds(self.socket.as_fd(), &ask, &pass).map_err(fail)?;
        let mut buffer = [0u8; MESSAGE_BYTES_MAX];
        let (n, fds) = loop {
            let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
            match rustix::event::poll(&mut poll, Some(&ANSWER_WAIT)) {
                Ok(0) => return Err(fail(Errno::TIMEDOUT)),
                Ok(_) => break recv_with_fds(self.socket.as_fd(), &mut buffer).map_err(fail)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(fail(e)),
            }
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        let answer = wire::decode::<Forked>(bytes)?.ok_or_else(|| fail(Errno::PROTO))?;
        match (answer.errno, fds.into_iter().next()) {
            (0, Some(pidfd)) => Ok(Ok(pidfd)),
            (0, None) => Err(fail(Errno::PROTO)),
            (errno, _) => Ok(Err(Errno::from_raw_os_error(errno))),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = sys::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while let Err(Errno::INTR) = sys::reap_pidfd(self.pidfd.as_fd(), true) {}
    }
}

/// Executes a shim or a zygote. The former is in its cgroup from its first instruction: moving it there later takes the
/// kernel milliseconds (a grace period of all CPUs).
fn execute(
    exe: &Path,
    words: [&str; 3],
    socket: &OwnedFd,
    cgroup: Option<&OwnedFd>,
) -> Result<OwnedFd> {
    let path = CString::new(exe.as_os_str().as_bytes())
        .map_err(|_| Error::Spec { field: "shim program".into(), why: "a NUL byte" })?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open", "/dev/null", e))?;
    let argv = Strings::new(words.map(str::to_owned));
    let envp = Strings::new([]);
    let cgroup = cgroup.map(|c| c.as_fd());
    sys::spawn(&path, &argv, &envp, socket.as_fd(), null.as_fd(), cgroup)
        .map_err(|e| Error::sys("spawn", exe.display(), e))
}

/// Executes the shim of a pod.
pub(super) fn execute_shim(exe: &Path, spec: &PodSpec, socket: &OwnedFd) -> Result<OwnedFd> {
    execute(exe, [SHIM_NAME, "shim", &spec.id], socket, shim_cgroup(spec)?.as_ref())
}

fn shim_cgroup(spec: &PodSpec) -> Result<Option<OwnedFd>> {
    let Some(dir) = &spec.shim_cgroup else { return Ok(None) };
    cgroup::create(dir, false)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty())
        .map_err(|e| Error::sys("open", dir.display(), e))?;
    Ok(Some(fd))
}

/// Whether this process was executed to be one.
pub(super) fn is_zygote() -> bool {
    std::env::args_os().nth(2).is_some_and(|word| word == ROOM)
}

/// Makes shims until the agent has gone. `shim` is what each of them does to its end, with its copy of `common`; its result
/// is its exit code.
pub(super) fn run<T>(
    agent: &OwnedFd,
    common: Option<T>,
    shim: impl Fn(OwnedFd, Option<T>) -> i32,
) -> Result<()> {
    // Taken by each child out of its own copy of this memory, never here.
    let mut common = common;
    let title = sys::Title::find();
    let fail = |e| Error::sys("serve", "agent", e);
    loop {
        let mut buffer = [0u8; MESSAGE_BYTES_MAX];
        let (n, fds) = match recv_with_fds(agent.as_fd(), &mut buffer) {
            Ok((0, _)) => return Ok(()),
            Ok(got) => got,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(fail(e)),
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        let made = fork(bytes, fds, |id, socket| {
            // An agent that waits for its zygote's end must not wait for this.
            sys::close_raw(agent.as_raw_fd());
            if let Some(title) = &title {
                title.set([SHIM_NAME, "shim", id]);
            }
            shim(socket, common.take())
        });
        let errno = made.as_ref().err().map_or(0, |e| e.raw_os_error());
        let pidfd = made.ok();
        let pass: Vec<_> = pidfd.iter().map(|fd| fd.as_fd()).collect();
        let answer = wire::encode(&Forked { errno })?;
        send_with_fds(agent.as_fd(), &answer, &pass).map_err(fail)?;
    }
}

/// Clones one.
fn fork(
    message: &[u8],
    fds: Vec<OwnedFd>,
    shim: impl FnOnce(&str, OwnedFd) -> i32,
) -> rustix::io::Result<OwnedFd> {
    let Ok(Some(Fork { id, cgroup })) = wire::decode::<Fork>(message) else {
        return Err(Errno::PROTO);
    };
    let mut fds = fds.into_iter();
    let socket = fds.next().ok_or(Errno::BADF)?;
    let cgroup = if cgroup { Some(fds.next().ok_or(Errno::BADF)?) } else { None };
    let dir = cgroup.as_ref().map(|c| c.as_fd());
    let mut socket = Some(socket);
    let raw = cgroup.as_ref().map(|c| c.as_raw_fd());
    let (_, pidfd) = sys::clone(libc::CLONE_PARENT as u64, dir, || {
        if let Some(raw) = raw {
            sys::close_raw(raw);
        }
        sys::exit(socket.take().map_or(1, |socket| shim(&id, socket)))
    })?;
    Ok(pidfd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_fit_and_come_back() {
        let ask = Fork { id: "x".repeat(128), cgroup: true };
        let bytes = wire::encode(&ask).expect("small");
        assert!(bytes.len() <= MESSAGE_BYTES_MAX && ROOM.len() >= 128);
        assert_eq!(wire::decode::<Fork>(&bytes).expect("version"), Some(ask));
    }

    #[test]
    fn what_is_no_message_is_refused_without_a_process() {
        for bytes in [&b""[..], b"\x01", b"\x07abc", b"\x01\x05ab"] {
            let made = fork(bytes, Vec::new(), |_, _| unreachable!("no process"));
            assert_eq!(made.map(drop), Err(Errno::PROTO), "{bytes:?}");
        }
        let ask = wire::encode(&Fork { id: "p".into(), cgroup: false }).expect("small");
        let made = fork(&ask, Vec::new(), |_, _| unreachable!("no process"));
        assert_eq!(made.map(drop), Err(Errno::BADF));
    }
}
