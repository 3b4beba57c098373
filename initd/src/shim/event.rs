//! What a shim tells its clients.

use std::os::fd::OwnedFd;

use super::wire::{Condition, Exit, PodStatus, Remark, Reply};
use crate::launch::Step;

/// Names a program started by [`Shim::exec`](super::Shim::exec) on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExecId(pub u64);

/// Names a connection asked for by [`Shim::connect`](super::Shim::connect) on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectId(pub u64);

/// What a shim tells.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A snapshot: the answer to [`Shim::request_status`](super::Shim::request_status), the first thing after an attach, and what a client gets
    /// that was too slow to take every event.
    Status(PodStatus),
    /// A container's program has been executed.
    Started {
        /// Which.
        container: String,
        /// PID in the shim's PID namespace.
        pid: u32,
        /// Starts before this one.
        restarts: u32,
    },
    /// Readiness changed.
    Ready {
        /// Which.
        container: String,
        /// This container.
        ready: bool,
        /// All main containers.
        pod_ready: bool,
    },
    /// A container ended.
    Exited {
        /// Which.
        container: String,
        /// How.
        exit: Exit,
        /// When it will be started again.
        restart_in_ms: Option<u32>,
    },
    /// A container could not be started.
    Failed {
        /// Which.
        container: String,
        /// At which step of the launch.
        step: Step,
        /// With which errno.
        errno: i32,
        /// On what, and what it means.
        text: String,
        /// When it will be tried again.
        retry_in_ms: Option<u32>,
    },
    /// The liveness probe gave a container up; it is being killed.
    Unhealthy {
        /// Which.
        container: String,
        /// What the probe saw last.
        text: String,
    },
    /// Something that the operator should know.
    Remark {
        /// About which container.
        container: String,
        /// What.
        remark: Remark,
    },
    /// The machine could not give something.
    Condition(Condition),
    /// Every container is gone and none will be started again. The shim waits for [`Shim::quit`](super::Shim::quit).
    Stopped,
    /// A program of [`Shim::exec`](super::Shim::exec) runs.
    ExecStarted {
        /// Which.
        exec: ExecId,
        /// PID in the shim's PID namespace.
        pid: u32,
    },
    /// It ended.
    ExecExited {
        /// Which.
        exec: ExecId,
        /// How.
        exit: Exit,
    },
    /// It could not be started.
    ExecFailed {
        /// Which.
        exec: ExecId,
        /// At which step of the launch.
        step: Step,
        /// With which errno.
        errno: i32,
        /// On what, and what it means.
        text: String,
    },
    /// The terminal of a program of [`Shim::exec_terminal`](super::Shim::exec_terminal).
    Terminal {
        /// Which.
        exec: ExecId,
        /// The end that is ours.
        fd: OwnedFd,
    },
    /// The answer to [`Shim::attach_to`](super::Shim::attach_to). The container goes on when these are closed.
    Attached {
        /// Which.
        container: String,
        /// Where its input is written to, if its spec gives it one. Of a terminal this is our end: it does not block, and
        /// `TIOCSWINSZ` on it resizes.
        input: Option<OwnedFd>,
        /// What it writes from now on; of a terminal all of it. End of file: the program ended. Who reads too slowly misses
        /// what does not fit into the pipe; the log does not.
        output: OwnedFd,
        /// Its standard error, when it is no terminal.
        errors: Option<OwnedFd>,
        /// Whether it runs on a terminal.
        terminal: bool,
    },
    /// It could not be attached to.
    AttachFailed {
        /// Which.
        container: String,
        /// With which errno.
        errno: i32,
        /// Why.
        text: String,
    },
    /// The answer to [`Shim::connect`](super::Shim::connect): a connected TCP socket of the pod's network.
    Connected {
        /// Which.
        connect: ConnectId,
        /// The socket.
        socket: OwnedFd,
    },
    /// There is no connection to that port.
    ConnectFailed {
        /// Which.
        connect: ConnectId,
        /// With which errno: `ECONNREFUSED` when nobody listens.
        errno: i32,
        /// Why.
        text: String,
    },
    /// The answer to [`Shim::request_fds`](super::Shim::request_fds).
    Fds {
        /// Network namespace.
        netns: Option<OwnedFd>,
        /// The pod's TUN.
        tun: Option<OwnedFd>,
        /// User namespace.
        userns: Option<OwnedFd>,
    },
    /// The shim closed the connection: it quit, or it died and its containers with it. Always the last event.
    Gone,
}

/// A reply as an event. `None`: it means nothing to a client, or its descriptors did not come.
pub(super) fn event_of(reply: Reply, fds: Vec<OwnedFd>) -> Option<Event> {
    Some(match reply {
        Reply::Status(s) => Event::Status(s),
        Reply::Started { container, pid, restarts } => Event::Started { container, pid, restarts },
        Reply::Ready { container, ready, pod_ready } => {
            Event::Ready { container, ready, pod_ready }
        }
        Reply::Exited { container, exit, restart_in_ms } => {
            Event::Exited { container, exit, restart_in_ms }
        }
        Reply::Failed { container, step, errno, text, retry_in_ms } => {
            Event::Failed { container, step, errno, text, retry_in_ms }
        }
        Reply::Unhealthy { container, text } => Event::Unhealthy { container, text },
        Reply::Stopped => Event::Stopped,
        Reply::ExecStarted { exec, pid } => Event::ExecStarted { exec: ExecId(exec), pid },
        Reply::ExecExited { exec, exit } => Event::ExecExited { exec: ExecId(exec), exit },
        Reply::ExecFailed { exec, step, errno, text } => {
            Event::ExecFailed { exec: ExecId(exec), step, errno, text }
        }
        Reply::Fds { netns, tun, userns } => {
            let mut fds = fds.into_iter();
            let mut next = |there: bool| if there { fds.next() } else { None };
            Event::Fds { netns: next(netns), tun: next(tun), userns: next(userns) }
        }
        Reply::Attached { container, input, terminal } => {
            let mut fds = fds.into_iter();
            let input = if input { Some(fds.next()?) } else { None };
            Event::Attached { container, input, output: fds.next()?, errors: fds.next(), terminal }
        }
        Reply::AttachFailed { container, errno, text } => {
            Event::AttachFailed { container, errno, text }
        }
        Reply::Connected { connect } => {
            Event::Connected { connect: ConnectId(connect), socket: fds.into_iter().next()? }
        }
        Reply::ConnectFailed { connect, errno, text } => {
            Event::ConnectFailed { connect: ConnectId(connect), errno, text }
        }
        Reply::Remark { container, remark } => Event::Remark { container, remark },
        Reply::Condition(c) => Event::Condition(c),
        Reply::Unsupported => return None,
        Reply::Terminal { exec } => {
            Event::Terminal { exec: ExecId(exec), fd: fds.into_iter().next()? }
        }
    })
}
