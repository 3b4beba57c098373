//! The agent's end of a shim.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net;

use super::event::event_of;
pub use super::event::{ConnectId, Event, ExecId};
use super::message::{recv_with_fds, send_with_fds};
use super::wire::{self, Reply, Request};
pub use super::wire::{Condition, ContainerStatus, ExecSpec, Exit, PodPhase, PodStatus};
use super::zygote::execute_shim;
use crate::error::{Error, Result};
use crate::pod::PodSpec;
use crate::sys;
use crate::userns::IdMap;

/// Name of the socket in the pod's directory.
pub const SOCKET_NAME: &str = "shim.sock";
/// Name of the last status in the pod's directory.
pub const STATUS_NAME: &str = "status";

/// How long [`Shim::attach`] waits for a shim that lives but does not listen yet.
const STARTING_WAIT: Duration = Duration::from_secs(1);

/// How long [`Shim::spawn`] waits for the directory's last shim, whose connection ends shortly before it does.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// What the caller hands to a pod. The shim gets duplicates; the caller may close its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct PodFds<'a> {
    /// Network namespace; without one the pod's spec says that it runs in the caller's.
    pub netns: Option<BorrowedFd<'a>>,
    /// The pod's TUN. Only kept open.
    pub tun: Option<BorrowedFd<'a>>,
    /// User namespace and the map it was made with, see [`userns::create`](crate::userns::create). Without one root
    /// inside is root outside.
    pub userns: Option<(BorrowedFd<'a>, IdMap)>,
}

/// A connection to a pod's shim. Dropping it does nothing to the pod.
#[derive(Debug)]
pub struct Shim {
    socket: OwnedFd,
    dir: PathBuf,
    /// Of programs and of connections.
    next_id: u64,
    /// The shim's pidfd, when it is a child of ours that has not been reaped.
    child: Option<OwnedFd>,
    backlog: VecDeque<Event>,
    gone: bool,
}
impl Shim {
    /// Starts `exe shim <pod id>` and gives it the spec. Returns as soon as the shim has been executed; what becomes
    /// of the containers comes as events.
    ///
    /// The shim is a child of the caller until that ends; [`reap`](Self::reap) collects it.
    ///
    /// # Errors
    /// [`Error::Spec`] when the spec cannot run, [`Error::Sys`] when a shim cannot be started: `EAGAIN` when the pod's
    /// directory has one. No process is left.
    pub fn spawn(exe: &Path, spec: &PodSpec, fds: PodFds<'_>) -> Result<Self> {
        Self::spawn_with(spec, fds, |socket| execute_shim(exe, spec, &socket))
    }

    /// `process` makes the shim's process, a child of ours, around its end of the socket.
    pub(super) fn spawn_with(
        spec: &PodSpec,
        fds: PodFds<'_>,
        process: impl FnOnce(OwnedFd) -> Result<OwnedFd>,
    ) -> Result<Self> {
        spec.check()?;
        if spec.host_network == fds.netns.is_some() {
            let why = "either a network namespace or the node's own network";
            return Err(Error::Spec { field: "host_network".into(), why });
        }
        let lock = lock(&spec.dir)?;
        let bytes = spec.encode()?;
        let memfd = rustix::fs::memfd_create("pod", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|e| Error::sys("memfd_create", &spec.id, e))?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let n = rustix::io::write(&memfd, rest)
                .map_err(|e| Error::sys("write spec of", &spec.id, e))?;
            rest = rest.get(n..).unwrap_or_default();
        }
        let (ours, theirs) = pair()?;
        let mut shim = Self {
            socket: ours,
            dir: spec.dir.clone(),
            next_id: 1,
            child: None,
            backlog: VecDeque::new(),
            gone: false,
        };
        let request = Request::Launch {
            netns: fds.netns.is_some(),
            tun: fds.tun.is_some(),
            userns: fds.userns.map(|(_, map)| map),
        };
        let mut pass = vec![memfd.as_fd(), lock.as_fd()];
        pass.extend([fds.netns, fds.tun, fds.userns.map(|(fd, _)| fd)].into_iter().flatten());
        // It is there before there is somebody to read it: nobody waits for us.
        shim.send(&request, &pass)?;
        rustix::io::ioctl_fionbio(&shim.socket, true)
            .map_err(|e| Error::sys("ioctl FIONBIO on socket of", &spec.id, e))?;
        shim.child = Some(process(theirs)?);
        Ok(shim)
    }

    /// Connects to the shim of a pod directory, after a restart of the agent for example. Waits up to a second for a
    /// shim that has only just been spawned. The first event is a [`Event::Status`].
    ///
    /// # Errors
    /// [`Error::Gone`] when no shim listens there: see [`last_status`], and
    /// [`NodeCgroup::remove_pod`](crate::cgroup::NodeCgroup::remove_pod) for what it left.
    pub fn attach(dir: &Path) -> Result<Self> {
        let deadline = Instant::now() + STARTING_WAIT;
        let socket = loop {
            match connect(dir) {
                // A shim that an agent spawned just before it fell may still be on its way to its socket.
                Err(Error::Gone { .. }) if has_shim(dir) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                r => break r?,
            }
        };
        rustix::io::ioctl_fionbio(&socket, true)
            .map_err(|e| Error::sys("ioctl FIONBIO on socket of", dir.display(), e))?;
        let mut shim = Self {
            socket,
            dir: dir.to_path_buf(),
            next_id: 1,
            child: None,
            backlog: VecDeque::new(),
            gone: false,
        };
        shim.request_status()?;
        Ok(shim)
    }

    /// The pod's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything that the shim has said since the last call; never blocks. Empty when there is nothing.
    ///
    /// # Errors
    /// [`Error::Sys`] when the socket fails.
    pub fn recv(&mut self) -> Result<Vec<Event>> {
        let mut events: Vec<Event> = self.backlog.drain(..).collect();
        while !self.gone {
            match self.recv_one()? {
                Some(event) => {
                    self.gone = matches!(event, Event::Gone);
                    events.push(event);
                }
                None => break,
            }
        }
        Ok(events)
    }

    /// Waits until `until` says yes to an event, at most `timeout`; returns all events seen. For tests and tools: an
    /// agent polls [`AsFd`] instead.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn wait(
        &mut self,
        timeout: Duration,
        mut until: impl FnMut(&Event) -> bool,
    ) -> Result<Vec<Event>> {
        let deadline = Instant::now() + timeout;
        let mut seen = Vec::new();
        loop {
            let mut batch = self.recv()?.into_iter();
            while let Some(event) = batch.next() {
                let hit = until(&event) || matches!(event, Event::Gone);
                seen.push(event);
                if hit {
                    // What came after it belongs to the next call.
                    self.backlog.extend(batch);
                    return Ok(seen);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(seen);
            }
            let ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
            let timeout =
                rustix::event::Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(Error::sys("poll socket of", self.dir.display(), e)),
            }
        }
    }

    /// Asks for a [`Event::Status`].
    ///
    /// # Errors
    /// [`Error::Gone`], or [`Error::Full`] when the shim does not read.
    pub fn request_status(&mut self) -> Result<()> {
        self.send(&Request::Status, &[])
    }

    /// Stops all containers, sidecars last. `grace_ms` replaces each container's own. Ends with [`Event::Stopped`].
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn stop(&mut self, grace_ms: Option<u32>) -> Result<()> {
        self.send(&Request::Stop { grace_ms }, &[])
    }

    /// Sends a signal to a container's program.
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn signal(&mut self, container: &str, signal: i32) -> Result<()> {
        self.send(&Request::Signal { container: container.to_owned(), signal }, &[])
    }

    /// Starts a program in a running container with these stdin, stdout and stderr. Ends with
    /// [`Event::ExecExited`] or [`Event::ExecFailed`]; it is killed when this connection ends.
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status); [`Error::Format`] when it is larger than 64 KiB.
    pub fn exec(&mut self, spec: &ExecSpec, stdio: [BorrowedFd<'_>; 3]) -> Result<ExecId> {
        let id = self.next_id;
        self.send(&Request::Exec(id, spec.clone()), &stdio)?;
        self.next_id += 1;
        Ok(ExecId(id))
    }

    /// Starts a program on a new terminal of the container: [`Event::Terminal`] brings its descriptor, to read, write and
    /// resize (`TIOCSWINSZ`); reading gives EIO when the program is gone. Ends as [`exec`](Self::exec) does.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn exec_terminal(&mut self, spec: &ExecSpec) -> Result<ExecId> {
        let id = self.next_id;
        self.send(&Request::ExecTerminal(id, spec.clone()), &[])?;
        self.next_id += 1;
        Ok(ExecId(id))
    }

    /// Asks for the input and output of a container's program: [`Event::Attached`] or [`Event::AttachFailed`].
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn attach_to(&mut self, container: &str) -> Result<()> {
        self.send(&Request::AttachTo { container: container.to_owned() }, &[])
    }

    /// Lets a container's input end once those who attached have closed it. A terminal's input does not end.
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn close_stdin(&mut self, container: &str) -> Result<()> {
        self.send(&Request::CloseStdin { container: container.to_owned() }, &[])
    }

    /// Asks for a TCP connection to a port of the pod, made inside it (127.0.0.1, then ::1): [`Event::Connected`] or
    /// [`Event::ConnectFailed`].
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn connect(&mut self, port: u16) -> Result<ConnectId> {
        let id = self.next_id;
        self.send(&Request::Connect { connect: id, port }, &[])?;
        self.next_id += 1;
        Ok(ConnectId(id))
    }

    /// Kills a program of [`exec`](Self::exec).
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn exec_kill(&mut self, exec: ExecId) -> Result<()> {
        self.send(&Request::ExecKill(exec.0), &[])
    }

    /// Asks for duplicates of the descriptors that the pod was given: [`Event::Fds`].
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn request_fds(&mut self) -> Result<()> {
        self.send(&Request::Fds, &[])
    }

    /// Tells a shim whose pod is stopped to end. Ends with [`Event::Gone`]; ignored while a container runs.
    ///
    /// # Errors
    /// As [`request_status`](Self::request_status).
    pub fn quit(&mut self) -> Result<()> {
        self.send(&Request::Quit, &[])
    }

    /// Collects the shim's process when it has ended and is a child of ours. Call it after [`Event::Gone`]; a caller
    /// that reaps all its children itself needs not.
    pub fn reap(&mut self) -> bool {
        let Some(pidfd) = &self.child else { return true };
        // ECHILD: somebody else has reaped it.
        if matches!(sys::reap_pidfd(pidfd.as_fd(), false), Ok(None)) {
            return false;
        }
        self.child = None;
        true
    }

    fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = wire::encode(request)?;
        match send_with_fds(self.socket.as_fd(), &bytes, fds) {
            Ok(()) => Ok(()),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => {
                Err(Error::Gone { dir: self.dir.clone() })
            }
            Err(Errno::AGAIN) => Err(Error::Full { what: "socket of a shim", max: 1 }),
            Err(e) => Err(Error::sys("send to shim of", self.dir.display(), e)),
        }
    }

    fn recv_one(&mut self) -> Result<Option<Event>> {
        let mut buffer = vec![0u8; wire::MESSAGE_BYTES_MAX];
        loop {
            let (n, fds) = match recv_with_fds(self.socket.as_fd(), &mut buffer) {
                Ok(got) => got,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Ok(Some(Event::Gone)),
                Err(e) => return Err(Error::sys("receive from shim of", self.dir.display(), e)),
            };
            let Some(bytes) = buffer.get(..n).filter(|b| !b.is_empty()) else {
                return Ok(Some(Event::Gone));
            };
            // A message of a later version is not for us.
            if let Some(event) = wire::decode::<Reply>(bytes)?.and_then(|r| event_of(r, fds)) {
                return Ok(Some(event));
            }
        }
    }
}

impl AsFd for Shim {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl std::os::fd::AsRawFd for Shim {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

/// The status that a shim left in its directory when the pod stopped.
///
/// # Errors
/// [`Error::Sys`] when it cannot be read (ENOENT: the pod has not stopped by itself), [`Error::Format`] when it is
/// not one of ours.
pub fn last_status(dir: &Path) -> Result<PodStatus> {
    let path = dir.join(STATUS_NAME);
    let bytes = std::fs::read(&path).map_err(|e| Error::io("read", path.display(), &e))?;
    wire::decode(&bytes)?.ok_or(Error::Format { what: "pod status", why: "of another version" })
}

fn connect(dir: &Path) -> Result<OwnedFd> {
    let kind = net::SocketType::SEQPACKET;
    let socket = net::socket_with(net::AddressFamily::UNIX, kind, net::SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::sys("socket for", dir.display(), e))?;
    let (_dir, address) = socket_address(dir)?;
    match net::connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Err(Error::Gone { dir: dir.to_path_buf() }),
        Err(e) => Err(Error::sys("connect to shim of", dir.display(), e)),
    }
}

/// One shim for a directory, whatever agents do: locked before there is a shim and until it ends, because the lock goes
/// with the descriptor that it is given.
fn lock(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fail = |op| move |e| Error::sys(op, dir.display(), e);
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(fail("open"))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(&fd, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(fd),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(e) => return Err(fail("lock (another shim has it)")(e)),
        }
    }
}

/// Whether a living shim holds the directory's lock.
fn has_shim(dir: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
    rustix::fs::open(dir, flags, Mode::empty())
        .is_ok_and(|fd| rustix::fs::flock(&fd, shared) == Err(Errno::WOULDBLOCK))
}

/// Two ends of a connection between an agent and a process that it starts.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (unix, kind) = (net::AddressFamily::UNIX, net::SocketType::SEQPACKET);
    net::socketpair(unix, kind, net::SocketFlags::CLOEXEC, None)
        .map_err(|e| Error::sys("socketpair", "shim", e))
}

/// The address of a directory's socket. A path in `sun_path` has at most 107 bytes, so it is named through a
/// descriptor of the directory, which must live as long as the address is used.
pub(crate) fn socket_address(dir: &Path) -> Result<(OwnedFd, net::SocketAddrUnix)> {
    use std::os::fd::AsRawFd as _;
    let fd = match rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Err(Error::Gone { dir: dir.to_path_buf() }),
        Err(e) => return Err(Error::sys("open", dir.display(), e)),
    };
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", fd.as_raw_fd());
    let addr =
        net::SocketAddrUnix::new(path).map_err(|e| Error::sys("address", dir.display(), e))?;
    Ok((fd, addr))
}
