//! The clock of the machine under [`sntp`]: sockets in, adjtimex(2) out.

use super::super::{
    console::say,
    sntp::{Client, Deed, PACKET_BYTES, Refusal},
    sys,
};
use rustix::{
    fd::{AsFd as _, BorrowedFd},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// What the clock follows, for people: `key=value` lines.
pub const CLOCK_FILE: &str = "/run/quelea/clock";
/// Datagrams looked at in one go; the rest waits in the socket.
const BURST_MAX: usize = 16;

/// The clock. Peers' clocks are no source: a flock that follows itself drifts together.
#[derive(Debug)]
pub(super) struct Clock {
    servers: Vec<SocketAddr>,
    floor_s: i64,
    client: Client,
    /// To the server that was asked last.
    socket: Option<(SocketAddr, UdpSocket)>,
    told: Option<(SocketAddr, Refusal)>,
}

impl Clock {
    /// `floor_s`: no time before that is believed.
    pub(super) fn new(floor_s: i64) -> Self {
        let client = Client::new(&[], floor_s, 0);
        Self { servers: Vec::new(), floor_s, client, socket: None, told: None }
    }

    /// Whom to ask from now on.
    pub(super) fn follow(&mut self, now_us: u64, servers: Vec<SocketAddr>) {
        if servers != self.servers {
            self.client = Client::new(&servers, self.floor_s, now_us);
            self.servers = servers;
            self.socket = None;
        }
    }

    pub(super) fn has_servers(&self) -> bool {
        !self.servers.is_empty()
    }

    pub(super) fn is_synced(&self) -> bool {
        self.client.is_synced()
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.client.next_deadline()
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(|(_, socket)| socket.as_fd())
    }

    /// Reads answers and asks what is due. `before_running`: nothing depends on the clock yet.
    pub(super) fn poll(&mut self, now_us: u64, before_running: bool) {
        for _ in 0..BURST_MAX {
            let Some((server, socket)) = &self.socket else { break };
            let mut bytes = [0; 4 * PACKET_BYTES];
            let Ok(len) = socket.recv(&mut bytes) else { break };
            let server = *server;
            let bytes = bytes.get(..len).unwrap_or_default();
            match self.client.answer(super::now_us(), server, bytes, before_running) {
                Ok(deed) => self.apply(server, deed),
                Err(why) => self.tell(server, why),
            }
        }
        if let Some(ask) = self.client.timer(now_us, wall_us(), super::seed()) {
            // A new port for every question: one more thing a stranger has to guess.
            self.socket = connect(ask.server).ok().map(|socket| (ask.server, socket));
            if let Some((_, socket)) = &self.socket {
                let _ = socket.send(&ask.packet);
            }
        }
    }

    /// A server's refusal is said once, until another one follows.
    fn tell(&mut self, server: SocketAddr, why: Refusal) {
        if why != Refusal::Unasked && self.told != Some((server, why)) {
            self.told = Some((server, why));
            say!("clock: answer of {server} not believed: {}", why.reason());
        }
    }

    fn apply(&mut self, server: SocketAddr, deed: Deed) {
        let first = self.told.take().is_some() || !std::path::Path::new(CLOCK_FILE).exists();
        let (offset_us, done) = match deed {
            Deed::Slew { offset_us, poll_exp } => (offset_us, sys::slew(offset_us, poll_exp)),
            Deed::Step { offset_us } => {
                let done = step(offset_us).and_then(|()| sys::slew(0, 6));
                say!("clock: stepped by {} ms, told by {server}", offset_us / 1000);
                (offset_us, done)
            }
            Deed::Doubt { offset_us } => {
                let ms = offset_us / 1000;
                say!(
                    "clock: {server} says it is off by {ms} ms; asking once more before it is set"
                );
                return;
            }
        };
        match done {
            Ok(synchronised) => {
                if first && matches!(deed, Deed::Slew { .. }) {
                    say!("clock: follows {server}, off by {} ms", offset_us / 1000);
                }
                let text = format!(
                    "server={server}\noffset_us={offset_us}\nsynchronised={}\n",
                    if synchronised { "yes" } else { "no" }
                );
                let _ = super::replace(std::path::Path::new(CLOCK_FILE), &text);
            }
            Err(e) => say!("clock: set the clock: {e}"),
        }
    }
}

fn connect(server: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(server)?;
    Ok(socket)
}

fn step(offset_us: i64) -> Result<(), rustix::io::Errno> {
    let at = wall_us().saturating_add(offset_us);
    let time =
        Timespec { tv_sec: at.div_euclid(1_000_000), tv_nsec: at.rem_euclid(1_000_000) * 1000 };
    clock_settime(ClockId::Realtime, time)
}

fn wall_us() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000)
}
