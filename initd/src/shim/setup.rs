//! From a fresh process to a shim in its pod's namespaces.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net;

use super::client::{SOCKET_NAME, socket_address};
use super::message::{recv_with_fds, send_with_fds};
use super::shell::{Held, Shell};
use super::wire::{self, Condition, Reply, Request};
use crate::cgroup::devices;
use crate::error::{Error, Result};
use crate::launch::{Empty, Step, Volumes};
use crate::pod::{ContainerSpec, PodSpec, SPEC_BYTES_MAX};
use crate::{cgroup, sys};

/// Connections that wait to be accepted; more are refused by the kernel.
const BACKLOG: i32 = 8;

/// What comes before all that is about a pod: of a process, for the shims that are copied from it too. Gives the connection
/// that came as standard input.
pub(super) fn process() -> Result<OwnedFd> {
    sys::set_undumpable().map_err(|e| Error::sys("prctl", "dumpable", e))?;
    // The agent's mask is none of ours.
    sys::block_signals(false);
    for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGUSR1] {
        sys::set_signal(signal, true);
    }
    // What containers expect, and what is made in their root file systems.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|e| Error::sys("chdir", "/", e))?;
    // The agent's end of a socket pair came as standard input.
    let spawner = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)
        .map_err(|e| Error::sys("dup", "standard input", e))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::sys("open", "/dev/null", e))?;
    sys::dup_to(null.as_raw_fd(), 0, false).map_err(|e| Error::sys("dup", "/dev/null", e))?;
    Ok(spawner)
}

/// Everything else that a shim does once.
pub(super) fn shim(spawner: OwnedFd, empty: Option<Empty>) -> Result<Shell> {
    match receive(&spawner, empty).and_then(|(spec, held)| enter(spec, held)) {
        Ok((spec, held, listener, conditions)) => {
            Shell::new(spec, held, listener, spawner, conditions)
        }
        Err(e) => {
            // The spawner learns why; an event of no container is about the pod.
            let reply = Reply::Failed {
                container: String::new(),
                step: Step::Spec,
                errno: e.errno().unwrap_or(0),
                text: e.to_string(),
                retry_in_ms: None,
            };
            let _ = wire::encode(&reply).map(|b| send_with_fds(spawner.as_fd(), &b, &[]));
            Err(e)
        }
    }
}

/// The spec and the descriptors of the pod.
fn receive(spawner: &OwnedFd, empty: Option<Empty>) -> Result<(PodSpec, Held)> {
    let mut buffer = [0u8; 256];
    let (n, fds) = recv_with_fds(spawner.as_fd(), &mut buffer)
        .map_err(|e| Error::sys("receive from", "spawner", e))?;
    let bytes = buffer.get(..n).unwrap_or_default();
    let Some(Request::Launch { netns, tun, userns }) = wire::decode::<Request>(bytes)? else {
        return Err(Error::Format { what: "first message", why: "not a launch of this version" });
    };
    let mut fds = fds.into_iter();
    let missing = || Error::Format { what: "first message", why: "a descriptor is missing" };
    let mut next = |there: bool| {
        if there { fds.next().map(Some).ok_or_else(missing) } else { Ok(None) }
    };
    let spec_fd = next(true)?.ok_or_else(missing)?;
    let lock = next(true)?.ok_or_else(missing)?;
    let (netns_fd, tun_fd, userns_fd) = (next(netns)?, next(tun)?, next(userns.is_some())?);
    let spec = PodSpec::decode(&read_spec(&spec_fd)?)?;
    let dir = open_dir(&spec.dir)?;
    let terminate = sys::terminate_fd().map_err(|e| Error::sys("signalfd", "SIGTERM", e))?;
    let empty = match empty {
        Some(empty) => empty,
        None => empty_namespace()?,
    };
    let held = Held {
        empty,
        terminate,
        dir,
        _lock: lock,
        netns: netns_fd,
        tun: tun_fd,
        userns: userns_fd.zip(userns),
        volumes: None,
        device_filter: false,
    };
    Ok((spec, held))
}

/// What mount namespaces of containers begin as.
pub(super) fn empty_namespace() -> Result<Empty> {
    Empty::make().map_err(|e| Error::sys("make", "an empty mount namespace", e))
}

fn read_spec(fd: &OwnedFd) -> Result<Vec<u8>> {
    let fail = |e| Error::sys("read", "pod spec", e);
    let size = rustix::fs::fstat(fd).map_err(fail)?.st_size;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if size > SPEC_BYTES_MAX {
        return Err(Error::Format { what: "pod spec", why: "larger than 1 MiB" });
    }
    let mut bytes = vec![0; size];
    let mut done = 0;
    while done < size {
        let rest = bytes.get_mut(done..).unwrap_or_default();
        match rustix::io::pread(fd, rest, done as u64) {
            Ok(0) => return Err(fail(Errno::IO)),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(fail(e)),
        }
    }
    Ok(bytes)
}

fn open_dir(dir: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| Error::sys("open", dir.display(), e))
}

type Entered = (PodSpec, Held, OwnedFd, Vec<Condition>);

/// Cgroups, namespaces, socket. The socket is last: who can connect finds a working shim.
fn enter(mut spec: PodSpec, mut held: Held) -> Result<Entered> {
    let mut conditions = Vec::new();
    cgroups(&mut spec, &mut conditions);
    held.device_filter = spec.cgroup.is_some() && device_filters(&spec, &mut conditions);
    // Lowering needs CAP_SYS_RESOURCE, which a developer's machine may not give.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    match &held.netns {
        Some(netns) => sys::setns(netns.as_fd(), libc::CLONE_NEWNET)
            .map_err(|e| Error::sys("setns", "network namespace", e))?,
        None if spec.host_network => {}
        None => {
            let why = "a pod without a network namespace that did not ask for the node's";
            return Err(Error::Spec { field: "host_network".into(), why });
        }
    }
    // The containers inherit these: nothing else has to hold them together.
    sys::unshare(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS)
        .map_err(|e| Error::sys("unshare", "IPC and UTS namespaces", e))?;
    rustix::system::sethostname(spec.hostname.as_bytes())
        .map_err(|e| Error::sys("sethostname", &spec.hostname, e))?;
    if held.userns.is_none() {
        conditions.push(Condition::NoUserns);
    }
    if !spec.volumes.is_empty() {
        let outside = held.userns.as_ref().map_or(0, |(_, map)| map.outside);
        let made = Volumes::make(&spec.volumes, outside, &spec.dir);
        held.volumes = Some(made.map_err(|e| Error::sys("make", "volumes of the pod", e))?);
    }
    match rustix::fs::mkdirat(&held.dir, "logs", Mode::from_raw_mode(0o750)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(Error::sys("mkdir", spec.dir.join("logs").display(), e)),
    }
    let listener = listen(&spec, &held)?;
    Ok((spec, held, listener, conditions))
}

/// Makes the pod's and its containers' cgroups; without them the pod goes on and says so.
fn cgroups(spec: &mut PodSpec, conditions: &mut Vec<Condition>) {
    let no_cgroup =
        |path: &Path, errno| Condition::NoCgroup { path: path.display().to_string(), errno };
    let Some(pod) = spec.cgroup.clone() else {
        conditions.push(no_cgroup(Path::new(""), 0));
        return;
    };
    let made = cgroup::create(&pod, true).and_then(|()| {
        spec.containers.iter().try_for_each(|c| cgroup::create(&pod.join(&c.name), false))
    });
    if let Err(e) = made {
        conditions.push(no_cgroup(&pod, e.errno().unwrap_or(0)));
        let _ = cgroup::remove_tree(&pod);
        spec.cgroup = None;
        return;
    }
    let mut limit = |name: &str, dir: &Path, resources| {
        for (file, errno) in cgroup::limit(dir, resources) {
            conditions.push(Condition::NoLimit { container: name.to_owned(), file, errno });
        }
    };
    limit("", &pod, &spec.resources);
    for c in &spec.containers {
        limit(&c.name, &pod.join(&c.name), &c.resources);
    }
}

/// Lets each container's cgroup use the devices of its spec and no others. False when one could not be told so.
fn device_filters(spec: &PodSpec, conditions: &mut Vec<Condition>) -> bool {
    let Some(pod) = &spec.cgroup else { return false };
    let mut all = true;
    for c in &spec.containers {
        if let Err(e) = device_filter(pod, c) {
            all = false;
            let errno = e.errno().unwrap_or(0);
            conditions.push(Condition::NoDeviceFilter { container: c.name.clone(), errno });
        }
    }
    all
}

fn device_filter(pod: &Path, c: &ContainerSpec) -> Result<()> {
    // What all may use is said of the directory of all pods, where the kernel took it.
    if c.devices.is_empty() && pod.parent().is_some_and(devices::is_restricted) {
        return Ok(());
    }
    let mut rules = devices::ALWAYS.to_vec();
    // One that is not there fails the launch, which says so.
    rules.extend(c.devices.iter().filter_map(|d| devices::rule_of(d).ok()));
    devices::restrict(&pod.join(&c.name), &rules)
}

/// Makes a container's cgroup anew. After `cgroup.kill` Linux 6.18 kills whatever is cloned into that one from outside (it compares
/// the count of kills with that of the parent's own cgroup); older kernels may, too.
pub(super) fn renew_cgroup(spec: &PodSpec, c: &ContainerSpec, filtered: bool) -> Result<()> {
    let Some(pod) = &spec.cgroup else { return Ok(()) };
    let dir = pod.join(&c.name);
    cgroup::clear(&dir)?;
    cgroup::create(&dir, false)?;
    // A limit that this machine lacks was told when the pod began.
    let _ = cgroup::limit(&dir, &c.resources);
    if filtered { device_filter(pod, c) } else { Ok(()) }
}

fn listen(spec: &PodSpec, held: &Held) -> Result<OwnedFd> {
    let fail = |op| move |e| Error::sys(op, spec.dir.join(SOCKET_NAME).display(), e);
    // What a shim before us left.
    match rustix::fs::unlinkat(&held.dir, SOCKET_NAME, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(fail("unlink")(e)),
    }
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    let kind = net::SocketType::SEQPACKET;
    let socket =
        net::socket_with(net::AddressFamily::UNIX, kind, flags, None).map_err(fail("socket"))?;
    let (_dir, address) = socket_address(&spec.dir)?;
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = net::bind(&socket, &address);
    rustix::process::umask(before);
    bound.map_err(fail("bind"))?;
    net::listen(&socket, BACKLOG).map_err(fail("listen"))?;
    Ok(socket)
}
