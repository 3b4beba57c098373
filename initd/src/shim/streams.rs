//! What goes in and out of containers: output into logs and to who is attached, input, connections to ports.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::shell::{Shell, wall_ns};
use super::wire::{Remark, Reply};
use crate::log::Stream;
use crate::pod::Stdin;

/// Read from a log pipe at once.
const CHUNK_BYTES: usize = 8 << 10;
/// Reads from one pipe before others get their turn.
pub(super) const READS_MAX: usize = 8;
/// Most clients attached to containers of this pod; more are refused.
const ATTACHED_MAX: usize = 16;
/// Most connections that are being made; more are refused.
const DIALING_MAX: usize = 32;
/// A connection within the pod that takes longer is given up.
const DIAL_US: u64 = 5_000_000;

/// A client that sees what a container writes.
pub(super) struct Attached {
    client: u64,
    pub(super) container: usize,
    /// Write ends; they do not block.
    output: [Option<OwnedFd>; 2],
}

impl Attached {
    /// What does not fit is missed; who has closed its end is forgotten.
    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(slot) = self.output.get_mut(stream as usize) else { return };
        let written = slot.as_ref().map(|fd| rustix::io::write(fd, bytes));
        if let Some(Err(Errno::PIPE)) = written {
            *slot = None;
        }
    }
}

/// A connection on its way.
pub(super) struct Dialing {
    client: u64,
    connect: u64,
    port: u16,
    pub(super) socket: OwnedFd,
    /// 127.0.0.1 did not answer: this is ::1.
    last: bool,
    pub(super) until_us: u64,
}

impl Shell {
    /// Reads what a container has written; at its end everything that is left.
    pub(super) fn output(&mut self, i: usize, stream: Stream, reads: usize) {
        self.drain(i, stream, reads);
        let Some(c) = self.containers.get_mut(i) else { return };
        if c.log.as_ref().is_some_and(|log| log.dropped > 0)
            && !std::mem::replace(&mut c.told_of_drops, true)
        {
            self.remark(i, Remark::LogDropped);
        }
    }

    fn drain(&mut self, i: usize, stream: Stream, reads: usize) {
        let Some(c) = self.containers.get_mut(i) else { return };
        let (Some(slot), Some(log)) = (c.output.get_mut(stream as usize), &mut c.log) else {
            return;
        };
        let mut chunk = [0u8; CHUNK_BYTES];
        for _ in 0..reads {
            let Some(fd) = slot.as_ref() else { return };
            match rustix::io::read(fd, &mut chunk) {
                Ok(0) => *slot = None,
                Ok(n) => {
                    let bytes = chunk.get(..n).unwrap_or_default();
                    log.feed(stream, bytes, wall_ns());
                    for a in self.attached.iter_mut().filter(|a| a.container == i) {
                        a.take(stream, bytes);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // EIO is the end of a terminal.
                Err(_) => *slot = None,
            }
        }
    }

    /// Gives a client the streams of a container.
    pub(super) fn attach_to(&mut self, client: u64, container: String) {
        if let Err((errno, text)) = self.try_attach(client, &container) {
            let (errno, text) = (errno.raw_os_error(), text.to_owned());
            self.tell_one(client, Reply::AttachFailed { container, errno, text });
        }
    }

    fn try_attach(&mut self, client: u64, container: &str) -> Result<(), (Errno, &'static str)> {
        if self.attached.len() >= ATTACHED_MAX {
            return Err((Errno::AGAIN, "16 clients are attached to this pod's containers already"));
        }
        let found = self.spec.containers.iter().position(|c| c.name == container);
        let i = found.ok_or((Errno::NOENT, "no such container in the pod"))?;
        let stdin = self.spec.containers.get(i).map_or(Stdin::Null, |c| c.stdin);
        let gone = (Errno::SRCH, "the container is not running");
        let c = self.containers.get(i).filter(|c| c.process.is_some()).ok_or(gone)?;
        let full = |_| (Errno::MFILE, "no descriptors left");
        let terminal = stdin == Stdin::Terminal;
        let input = if terminal { &c.output[0] } else { &c.input };
        let input = input.as_ref().map(OwnedFd::try_clone).transpose();
        let input = input.map_err(|_| full(Errno::MFILE))?;
        let (out_read, out_write) = watch_pipe().map_err(full)?;
        let errors = if terminal { None } else { Some(watch_pipe().map_err(full)?) };
        let (err_read, err_write) = errors.unzip();
        let reply =
            Reply::Attached { container: container.to_owned(), input: input.is_some(), terminal };
        let fds: Vec<BorrowedFd<'_>> =
            input.iter().chain([&out_read]).chain(&err_read).map(|fd| fd.as_fd()).collect();
        // One that does not take it now is not there to be told anything.
        if self.hand_over(client, &reply, &fds) {
            let output = [Some(out_write), err_write];
            self.attached.push(Attached { client, container: i, output });
        }
        Ok(())
    }

    /// Whoever is attached may still have it open.
    pub(super) fn close_stdin(&mut self, container: &str) {
        let found = self.spec.containers.iter().position(|c| c.name == container);
        if let Some(c) = found.and_then(|i| self.containers.get_mut(i)) {
            c.input = None;
        }
    }

    /// Connects to a port of the pod for a client.
    pub(super) fn dial(&mut self, client: u64, connect: u64, port: u16) {
        let until_us = self.now_us().saturating_add(DIAL_US);
        let begun = if self.dialing.len() >= DIALING_MAX {
            Err(Errno::AGAIN)
        } else {
            let first = begin(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            first.map(|s| (s, false)).or_else(|e| second(port, e).map(|s| (s, true)))
        };
        match begun {
            Ok((socket, last)) => {
                self.dialing.push(Dialing { client, connect, port, socket, last, until_us });
            }
            Err(e) => self.dial_failed(client, connect, port, e),
        }
    }

    fn dial_failed(&mut self, client: u64, connect: u64, port: u16, e: Errno) {
        let text = format!("connect to port {port} of the pod: {}", std::io::Error::from(e));
        self.tell_one(client, Reply::ConnectFailed { connect, errno: e.raw_os_error(), text });
    }

    /// A connection has been made, or refused. Indices are valid within one round, so it is forgotten later.
    pub(super) fn dialed(&mut self, k: usize) {
        let Some(d) = self.dialing.get_mut(k).filter(|d| d.until_us > 0) else { return };
        let mut answer = match rustix::net::sockopt::socket_error(&d.socket) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) | Err(e) => Err(e),
        };
        if let Err(e) = answer
            && !d.last
        {
            match second(d.port, e) {
                Ok(socket) => {
                    d.socket = socket;
                    d.last = true;
                    return;
                }
                Err(e) => answer = Err(e),
            }
        }
        d.until_us = 0;
        let (client, connect, port) = (d.client, d.connect, d.port);
        let again = d.socket.try_clone();
        let handed = answer.and_then(|()| {
            let socket = again.map_err(|_| Errno::MFILE)?;
            rustix::io::ioctl_fionbio(&socket, false)?;
            let done = self.hand_over(client, &Reply::Connected { connect }, &[socket.as_fd()]);
            if done { Ok(()) } else { Err(Errno::AGAIN) }
        });
        if let Err(e) = handed {
            self.dial_failed(client, connect, port, e);
        }
    }

    /// Forgets connections that are done, and gives up those that take too long.
    pub(super) fn dialing_due(&mut self) {
        if self.dialing.is_empty() {
            return;
        }
        let now = self.now_us();
        let late: Vec<_> = self
            .dialing
            .iter()
            .filter(|d| d.until_us > 0 && d.until_us <= now)
            .map(|d| (d.client, d.connect, d.port))
            .collect();
        self.dialing.retain(|d| d.until_us > now);
        for (client, connect, port) in late {
            self.dial_failed(client, connect, port, Errno::TIMEDOUT);
        }
    }

    /// A client is gone.
    pub(super) fn forget_streams(&mut self, client: u64) {
        self.attached.retain(|a| a.client != client);
        self.dialing.retain(|d| d.client != client);
    }
}

/// Begins to connect.
fn begin(to: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e),
    }
}

/// Begins to connect to ::1 where 127.0.0.1 gave `first`, which stands in a pod without IPv6.
fn second(port: u16, first: Errno) -> rustix::io::Result<OwnedFd> {
    begin(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|e| match e {
        Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT | Errno::NETUNREACH => first,
        e => e,
    })
}

/// A pipe whose write end does not block.
fn watch_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read, write))
}
