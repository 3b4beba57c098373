//! The data thread: reads and writes fds. Decides nothing but whose turn it is.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use rand::TryRng;

use super::engine::{Engine, Ports, Sent};
use super::{Command, Peer, Shared};
use crate::counters::{Counters, DropReason};
use crate::gso::JOINED_MAX;
use crate::path::{End, OwnPrefixes, PeerPrefixes, PodId, Pods, Routes};
use crate::sys::{self, RawAddr};
use crate::wire::VnetHdr;

pub(super) const WAKE: Token = Token(0);
const UDP: Token = Token(1);
const HOST: Token = Token(2);
/// Pod tokens are this plus the pod's number.
const PODS: usize = 256;
const EVENTS_MAX: usize = 256;
/// Packets read from one TUN in its turn.
const TUN_BUDGET: usize = 64;
/// Receive calls on the socket in its turn.
const UDP_BUDGET: usize = 16;
/// A header and the largest IP packet.
const TUN_BUFFER_BYTES: usize = 66_000;
/// The largest UDP payload, joined or not.
const UDP_BUFFER_BYTES: usize = 65_536;
/// How long to wait for a full socket that never reports to be writable.
const BLOCKED_RETRY: Duration = Duration::from_millis(5);

/// A TUN of this node.
struct Tun {
    file: File,
    offload: bool,
}

/// All fds that packets are written to.
struct Fds {
    udp: UdpSocket,
    host: Option<Tun>,
    pods: Vec<Option<Tun>>,
    shared: Arc<Shared>,
    registry: Registry,
    watches_writable: bool,
    /// Whether the socket is an IPv6 one: IPv4 peers then have mapped addresses.
    ipv6: bool,
}

pub(super) struct DataThread {
    poll: Poll,
    fds: Fds,
    engine: Engine<SystemRng>,
    commands: Receiver<Command>,
    /// fds to be closed by whoever uses the overlay: a close may take milliseconds.
    closed: Sender<OwnedFd>,
    counters: Arc<Counters>,
    ready: VecDeque<Token>,
    start: Instant,
    tun_buffer: Vec<u8>,
    udp_buffer: Vec<u8>,
}

pub(super) struct Parts {
    pub(super) poll: Poll,
    pub(super) udp: UdpSocket,
    pub(super) engine: Engine<SystemRng>,
    pub(super) commands: Receiver<Command>,
    pub(super) closed: Sender<OwnedFd>,
    pub(super) counters: Arc<Counters>,
    pub(super) shared: Arc<Shared>,
    pub(super) start: Instant,
}

impl DataThread {
    pub(super) fn new(parts: Parts) -> std::io::Result<Self> {
        let registry = parts.poll.registry().try_clone()?;
        registry.register(&mut SourceFd(&parts.udp.as_raw_fd()), UDP, Interest::READABLE)?;
        let ipv6 = parts.udp.local_addr()?.is_ipv6();
        let fds = Fds {
            udp: parts.udp,
            host: None,
            pods: std::iter::repeat_with(|| None).take(256).collect(),
            shared: parts.shared,
            registry,
            watches_writable: false,
            ipv6,
        };
        Ok(Self {
            poll: parts.poll,
            fds,
            engine: parts.engine,
            commands: parts.commands,
            closed: parts.closed,
            counters: parts.counters,
            ready: VecDeque::new(),
            start: parts.start,
            tun_buffer: vec![0; TUN_BUFFER_BYTES],
            udp_buffer: vec![0; UDP_BUFFER_BYTES],
        })
    }

    /// Runs until told to stop or until the commands' sender is gone.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // epoll itself failed: nothing can be served any more.
                Err(_) => return,
            }
            for event in &events {
                match event.token() {
                    WAKE => {
                        if !self.obey() {
                            return;
                        }
                    }
                    UDP => {
                        if event.is_writable() {
                            self.engine.blocked = false;
                        }
                        self.mark(UDP);
                    }
                    token => self.mark(token),
                }
            }
            for _ in 0..self.ready.len() {
                let Some(token) = self.ready.pop_front() else { break };
                if !self.serve(token) {
                    self.ready.push_back(token);
                }
            }
            self.finish_round();
        }
    }

    fn finish_round(&mut self) {
        self.engine.flush(&mut self.fds);
        let now_us = self.now_us();
        if self.engine.sessions.next_deadline().is_some_and(|at| at <= now_us) {
            self.engine.timer(now_us, &mut self.fds);
            // What was held for a session may have been sent on its own; nothing is left in the batch.
        }
        self.fds.watch_writable(self.engine.blocked);
        if std::mem::take(&mut self.engine.sessions_changed) {
            self.fds.shared.sessions.store(self.engine.sessions.up() as u64, Relaxed);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.engine.blocked {
            return Some(BLOCKED_RETRY);
        }
        if !self.ready.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadline = self.engine.sessions.next_deadline()?;
        Some(Duration::from_micros(deadline.saturating_sub(self.now_us())))
    }

    fn now_us(&self) -> u64 {
        // Half a million years.
        self.start.elapsed().as_micros() as u64
    }

    fn mark(&mut self, token: Token) {
        if !self.ready.contains(&token) {
            self.ready.push_back(token);
        }
    }

    /// One turn of an fd. `true` if it has nothing more (so that epoll will tell), or is gone.
    fn serve(&mut self, token: Token) -> bool {
        match token {
            UDP => self.serve_udp(),
            HOST => self.serve_tun(End::Host),
            Token(number) => match number.checked_sub(PODS).map(u8::try_from) {
                Some(Ok(pod)) => self.serve_tun(End::Pod(PodId(pod))),
                _ => true,
            },
        }
    }

    fn serve_udp(&mut self) -> bool {
        for _ in 0..UDP_BUDGET {
            match sys::receive(&self.fds.udp, &mut self.udp_buffer) {
                Ok(received) if received.truncated => {
                    self.counters.dropped(DropReason::OuterMalformed)
                }
                Ok(received) => {
                    let now_us = self.now_us();
                    let Some(bytes) = self.udp_buffer.get_mut(..received.len) else { continue };
                    let from = received.from;
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    self.engine.udp_datagrams(now_us, from, bytes, received.segment, &mut self.fds);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                // An ICMP error of an earlier send, or an odd address family: the next call brings the next datagram.
                Err(_) => {}
            }
        }
        false
    }

    fn serve_tun(&mut self, from: End) -> bool {
        for _ in 0..TUN_BUDGET {
            if self.engine.blocked {
                return false;
            }
            let Some(tun) = self.fds.tun(from) else { return true };
            match (&tun.file).read(&mut self.tun_buffer) {
                // A TUN has no end of file; treated as gone.
                Ok(0) => return true,
                Ok(len) => {
                    let has_header = tun.offload;
                    let now_us = self.now_us();
                    let Some(bytes) = self.tun_buffer.get_mut(..len) else { continue };
                    self.engine.tun_packet(now_us, from, has_header, bytes, &mut self.fds);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // WouldBlock, or the interface is gone (EBADFD) or down (EIO): epoll tells when that changes.
                Err(_) => return true,
            }
        }
        false
    }

    /// Carries out commands. `false` to stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Peers { peers, own }) => self.set_peers(&peers, own),
                Ok(Command::AddPod { addr, tun, offload }) => match Pods::id(addr) {
                    Some(id) => {
                        self.detach(End::Pod(id));
                        self.attach(End::Pod(id), tun, offload);
                        self.engine.path.pods.insert(addr);
                    }
                    None => self.dispose(tun),
                },
                Ok(Command::RemovePod(addr)) => {
                    if let Some(id) = self.engine.path.pods.remove(addr) {
                        self.detach(End::Pod(id));
                    }
                }
                Ok(Command::Host { tun, offload }) => {
                    self.detach(End::Host);
                    self.attach(End::Host, tun, offload);
                    self.engine.path.host = true;
                }
                Ok(Command::Stop) | Err(crossbeam_channel::TryRecvError::Disconnected) => {
                    return false;
                }
                Err(crossbeam_channel::TryRecvError::Empty) => return true,
            }
        }
    }

    fn set_peers(&mut self, peers: &[Peer], own: OwnPrefixes) {
        let keys: Vec<_> = peers.iter().map(|p| (p.public_key, p.endpoint)).collect();
        let ids = self.engine.sessions.set_peers(&keys);
        let prefixes: Vec<_> = peers
            .iter()
            .zip(ids)
            .filter_map(|(peer, id)| {
                Some(PeerPrefixes { id: id?, prefix4: peer.prefix4, prefix6: peer.prefix6 })
            })
            .collect();
        self.engine.path.routes = Routes::new(own, &prefixes);
        self.engine.sessions_changed = true;
    }

    fn attach(&mut self, end: End, tun: OwnedFd, offload: bool) {
        let token = token_of(end);
        let fd = tun.as_raw_fd();
        if self.fds.registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_err() {
            // Out of epoll watches or memory: the pod stays cut off, and its packets are counted at its TUN.
            return self.dispose(tun);
        }
        if let Some(slot) = self.fds.slot(end) {
            *slot = Some(Tun { file: File::from(tun), offload });
        }
        // It may hold packets already; epoll reports that on registration as well.
        self.mark(token);
    }

    fn detach(&mut self, end: End) {
        let Some(tun) = self.fds.slot(end).and_then(Option::take) else { return };
        // The shim holds a duplicate, so that closing would not end the watch.
        let _ = self.fds.registry.deregister(&mut SourceFd(&tun.file.as_raw_fd()));
        self.dispose(OwnedFd::from(tun.file));
    }

    fn dispose(&self, fd: OwnedFd) {
        // If nobody collects any more it is closed here.
        let _ = self.closed.try_send(fd);
    }
}

fn token_of(end: End) -> Token {
    match end {
        End::Pod(PodId(id)) => Token(PODS + usize::from(id)),
        End::Host | End::Peer(_) => HOST,
    }
}

impl Fds {
    fn tun(&self, end: End) -> Option<&Tun> {
        match end {
            End::Host => self.host.as_ref(),
            End::Pod(PodId(id)) => self.pods.get(usize::from(id))?.as_ref(),
            End::Peer(_) => None,
        }
    }

    fn slot(&mut self, end: End) -> Option<&mut Option<Tun>> {
        match end {
            End::Host => Some(&mut self.host),
            End::Pod(PodId(id)) => self.pods.get_mut(usize::from(id)),
            End::Peer(_) => None,
        }
    }

    /// Watches for room in the socket only while it is wanted: else every sent packet would be an event.
    fn watch_writable(&mut self, wanted: bool) {
        if wanted == self.watches_writable {
            return;
        }
        let interest =
            if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let fd = self.udp.as_raw_fd();
        if self.registry.reregister(&mut SourceFd(&fd), UDP, interest).is_ok() {
            self.watches_writable = wanted;
        }
    }

    fn send_once(
        &self,
        to: &RawAddr,
        bytes: &[u8],
        segment: Option<u16>,
    ) -> std::io::Result<usize> {
        loop {
            match sys::send_to(&self.udp, bytes, to, segment) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn send_each(&self, to: &RawAddr, bytes: &[u8], segment: usize) -> Sent {
        let mut result = Sent::Ok;
        for (n, datagram) in bytes.chunks(segment.max(1)).enumerate() {
            match self.send_once(to, datagram, None) {
                Ok(_) => {}
                // Those before it are on their way: they cannot be sent again, so the rest is lost.
                Err(error) if error.kind() == ErrorKind::WouldBlock && n == 0 => return Sent::Full,
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => result = Sent::TooBig,
                Err(_) => result = Sent::Failed,
            }
        }
        result
    }

    /// An address as the socket's family wants it.
    fn outer(&self, to: SocketAddr) -> RawAddr {
        match to {
            SocketAddr::V4(v4) if self.ipv6 => {
                RawAddr::new(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
            }
            to => RawAddr::new(to),
        }
    }
}

impl Ports for Fds {
    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        let to = self.outer(to);
        if bytes.len() <= segment || !self.shared.gso.load(Relaxed) {
            return self.send_each(&to, bytes, segment);
        }
        let Ok(size) = u16::try_from(segment) else { return Sent::Failed };
        match self.send_once(&to, bytes, Some(size)) {
            Ok(_) => Sent::Ok,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Sent::Full,
                // The device cannot checksum (EIO), or the kernel does not like the sizes (EINVAL; before 6.14 also for what is too large for
                // the route): if one by one they pass, do without from now on.
                Some(libc::EIO | libc::EINVAL) => {
                    let sent = self.send_each(&to, bytes, segment);
                    if sent == Sent::Ok {
                        self.shared.gso.store(false, Relaxed);
                    }
                    sent
                }
                Some(libc::EMSGSIZE) => Sent::TooBig,
                _ => Sent::Failed,
            },
        }
    }

    fn write(
        &mut self,
        to: End,
        header: &VnetHdr,
        head: &[u8],
        payloads: &[Range<usize>],
        buffer: &[u8],
    ) -> bool {
        let Some(tun) = self.tun(to) else { return false };
        let header = header.emit();
        let mut parts: heapless::Vec<IoSlice<'_>, { JOINED_MAX + 2 }> = heapless::Vec::new();
        if tun.offload {
            let _ = parts.push(IoSlice::new(&header));
        }
        let _ = parts.push(IoSlice::new(head));
        for range in payloads {
            let Some(payload) = buffer.get(range.clone()) else { return false };
            if parts.push(IoSlice::new(payload)).is_err() {
                return false;
            }
        }
        (&tun.file).write_vectored(&parts).is_ok()
    }

    fn offload(&self, to: End) -> bool {
        self.tun(to).is_some_and(|tun| tun.offload)
    }
}

/// The kernel's random numbers.
pub(super) struct SystemRng(ring::rand::SystemRandom);

impl SystemRng {
    pub(super) fn new() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl TryRng for SystemRng {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        // getrandom(2) cannot fail once the kernel's pool is seeded, which happens before user space runs; keys from anything else would be
        // worse than no overlay.
        assert!(ring::rand::SecureRandom::fill(&self.0, dst).is_ok(), "getrandom(2) failed");
        Ok(())
    }
}

/// Wakes the data thread.
pub(super) fn waker(poll: &Poll) -> std::io::Result<Waker> {
    Waker::new(poll.registry(), WAKE)
}
