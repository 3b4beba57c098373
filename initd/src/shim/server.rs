//! The shim's end of its clients.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with};

use super::core::Input;
use super::message::{recv_with_fds, send_with_fds};
use super::shell::{Owner, Shell};
use super::wire::{self, MESSAGE_BYTES_MAX, Reply, Request};
use crate::launch::{Failure, Step};

/// Most clients at a time; a further one is closed at once.
const CLIENTS_MAX: usize = 8;
/// Messages taken from one client before others get their turn.
const MESSAGES_MAX: usize = 16;

/// A connection.
///
/// Events that it does not take in time are dropped and replaced by a status when it reads again; only what answers
/// its own requests waits, and of that there is at most one message for each program that it may have running.
pub(super) struct Client {
    id: u64,
    pub(super) socket: OwnedFd,
    behind: bool,
    waiting: VecDeque<Reply>,
    pub(super) gone: bool,
}

impl Client {
    pub(super) fn new(id: u64, socket: OwnedFd) -> Self {
        // A socket pair's end comes blocking.
        let _ = rustix::io::ioctl_fionbio(&socket, true);
        Self { id, socket, behind: false, waiting: VecDeque::new(), gone: false }
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn events(&self) -> PollFlags {
        if self.behind || !self.waiting.is_empty() {
            PollFlags::IN | PollFlags::OUT
        } else {
            PollFlags::IN
        }
    }

    /// False: it did not fit.
    fn send(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) -> bool {
        let Ok(bytes) = wire::encode(reply) else { return true };
        match send_with_fds(self.socket.as_fd(), &bytes, fds) {
            Ok(()) => true,
            Err(Errno::AGAIN) => false,
            Err(_) => {
                self.gone = true;
                true
            }
        }
    }

    fn event(&mut self, reply: &Reply) {
        if !self.gone && !self.behind && !self.send(reply, &[]) {
            self.behind = true;
        }
    }
}

/// Takes a connection, if there is room.
pub(super) fn accept(listener: &OwnedFd, id: u64, clients: usize) -> Option<Client> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok()?;
    (clients < CLIENTS_MAX).then(|| Client::new(id, socket))
}

impl Shell {
    /// To all.
    pub(super) fn tell(&mut self, reply: &Reply) {
        for c in &mut self.clients {
            c.event(reply);
        }
    }

    /// To one, for sure, as long as it is there.
    pub(super) fn tell_one(&mut self, client: u64, reply: Reply) {
        if let Some(c) = self.clients.iter_mut().find(|c| c.id == client)
            && (!c.waiting.is_empty() || !c.send(&reply, &[]))
        {
            c.waiting.push_back(reply);
        }
    }

    /// To one, with descriptors; false when it is not there or does not take them now.
    pub(super) fn hand_over(&mut self, client: u64, reply: &Reply, fds: &[BorrowedFd<'_>]) -> bool {
        let c = self.clients.iter_mut().find(|c| c.id == client);
        c.is_some_and(|c| c.waiting.is_empty() && c.send(reply, fds) && !c.gone)
    }

    pub(super) fn client_ready(&mut self, i: usize, events: PollFlags) {
        if events.contains(PollFlags::OUT) {
            self.catch_up(i);
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            for _ in 0..MESSAGES_MAX {
                if !self.take_message(i) {
                    break;
                }
            }
        }
    }

    fn catch_up(&mut self, i: usize) {
        let status = Reply::Status(self.status());
        let Some(c) = self.clients.get_mut(i) else { return };
        while let Some(reply) = c.waiting.pop_front() {
            if !c.send(&reply, &[]) {
                c.waiting.push_front(reply);
                return;
            }
        }
        if c.behind && c.send(&status, &[]) {
            c.behind = false;
        }
    }

    /// False: there is nothing more now.
    fn take_message(&mut self, i: usize) -> bool {
        let Some(c) = self.clients.get_mut(i).filter(|c| !c.gone) else { return false };
        // Most messages are tiny, and a buffer for the largest would stay in every shim's memory.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC;
        let size = match rustix::net::recv(&c.socket, &mut [0u8; 1], peek) {
            Ok((_, size)) => size.clamp(1, MESSAGE_BYTES_MAX),
            // A message that comes only now must not be read into a buffer that was made for none.
            Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => return true,
            Err(_) => 1, // said again by the next call
        };
        let mut buffer = vec![0u8; size];
        let (n, fds) = match recv_with_fds(c.socket.as_fd(), &mut buffer) {
            Ok((0, _)) => {
                c.gone = true;
                return false;
            }
            Ok(got) => got,
            Err(Errno::AGAIN) => return false,
            Err(Errno::INTR) => return true,
            Err(_) => {
                c.gone = true;
                return false;
            }
        };
        let id = c.id;
        let bytes = buffer.get(..n).unwrap_or_default();
        match wire::decode::<Request>(bytes) {
            Ok(Some(request)) => self.request(id, request, fds),
            Ok(None) | Err(_) => self.tell_one(id, Reply::Unsupported),
        }
        true
    }

    fn request(&mut self, client: u64, request: Request, fds: Vec<OwnedFd>) {
        match request {
            Request::Launch { .. } => self.tell_one(client, Reply::Unsupported),
            Request::Status => {
                let status = Reply::Status(self.status());
                self.tell_one(client, status);
            }
            // Who asks again is told again.
            Request::Stop { .. } if self.stopped() => self.tell_one(client, Reply::Stopped),
            Request::Stop { grace_ms } => self.feed(Input::Stop { grace_ms }),
            Request::Exec(exec, spec) => {
                let mut fds = fds.into_iter();
                let stdio = [fds.next(), fds.next(), fds.next()];
                if let Err(f) = self.join(Owner::Client { client, exec }, &spec, stdio, false) {
                    let Failure { step, errno, text } = f;
                    self.tell_one(client, Reply::ExecFailed { exec, step, errno, text });
                }
            }
            Request::ExecTerminal(exec, spec) => self.exec_terminal(client, exec, &spec),
            Request::ExecKill(exec) => {
                let owner = Owner::Client { client, exec };
                if let Some(k) = self.joined.iter().position(|j| j.owner == owner) {
                    self.kill_joined(k);
                }
            }
            Request::AttachTo { container } => self.attach_to(client, container),
            Request::CloseStdin { container } => self.close_stdin(&container),
            Request::Connect { connect, port } => self.dial(client, connect, port),
            Request::Fds => self.give_fds(client),
            Request::Quit => self.quit |= self.stopped(),
            Request::Signal { container, signal } => {
                if let Some(i) = self.spec.containers.iter().position(|c| c.name == container)
                    && (1..=64).contains(&signal)
                {
                    self.signal(i, signal);
                }
            }
        }
    }

    fn exec_terminal(&mut self, client: u64, exec: u64, spec: &super::ExecSpec) {
        let owner = Owner::Client { client, exec };
        let started = self.terminal(&spec.container).and_then(|(ours, theirs)| {
            let again = || {
                let fd = theirs.try_clone();
                fd.map_err(|_| Failure::new(Step::Stdio, Errno::MFILE, "dup of the terminal"))
            };
            let stdio = [Some(again()?), Some(again()?), Some(again()?)];
            self.join(owner, spec, stdio, true).map(|_| ours)
        });
        match started {
            Ok(ours) => {
                if self.hand_over(client, &Reply::Terminal { exec }, &[ours.as_fd()]) {
                    return;
                }
                // Nobody can use a terminal that could not be handed over.
                if let Some(k) = self.joined.iter().position(|j| j.owner == owner) {
                    self.kill_joined(k);
                }
            }
            Err(f) => {
                let Failure { step, errno, text } = f;
                self.tell_one(client, Reply::ExecFailed { exec, step, errno, text });
            }
        }
    }

    fn give_fds(&mut self, client: u64) {
        let held = &self.held;
        let fds: Vec<BorrowedFd<'_>> =
            [held.netns.as_ref(), held.tun.as_ref(), held.userns.as_ref().map(|(fd, _)| fd)]
                .into_iter()
                .flatten()
                .map(|fd| fd.as_fd())
                .collect();
        let reply = Reply::Fds {
            netns: held.netns.is_some(),
            tun: held.tun.is_some(),
            userns: held.userns.is_some(),
        };
        if let Some(c) = self.clients.iter_mut().find(|c| c.id == client)
            && !c.send(&reply, &fds)
        {
            // It asks again when it reads again.
            c.behind = true;
        }
    }

    /// What it started ends with it.
    pub(super) fn client_gone(&mut self, id: u64) {
        self.forget_streams(id);
        for k in 0..self.joined.len() {
            let owner = self.joined.get(k).map(|j| j.owner);
            if matches!(owner, Some(Owner::Client { client, .. }) if client == id) {
                self.kill_joined(k);
            }
        }
    }
}
