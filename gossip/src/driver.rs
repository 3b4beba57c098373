//! The only IO: a UDP socket and the log. It decides nothing.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use mio::net::UdpSocket;
use mio::{Interest, Registry, Token};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use ring::rand::{SecureRandom, SystemRandom};

use crate::api::{Event, Input, Output, Persist};
use crate::config::{Config, PACKET_MAX_BYTES, PACKET_SAFE_BYTES};
use crate::core::Gossip;
use crate::disk::{Disk, Worker};
use crate::error::Error;
use crate::map::Rev;
use crate::member::Identity;

/// Datagrams taken in one call; the rest waits for the next, which is due at once.
const READ_MAX: usize = 512;
/// Asked of the kernel: some two thousand small datagrams while this process does not run.
const RECEIVE_BUFFER_BYTES: i32 = 4 << 20;
/// News from others is durable at the latest so much later; they have it too.
const SYNC_US: u64 = 1_000_000;
/// How often the log says that this node lives, even if nothing happens: absence is measured from there.
const TOUCH_US: u64 = 3_600_000_000;
/// A call longer than this is counted: the loop that owns us must stay fast.
const SLOW_US: u64 = 100_000;
/// Refusals of one call that the core is told of; the rest is told when it happens again.
const TOO_LONG_MAX: usize = 16;
/// Local records that wait for the disk; of more the oldest are not told of.
const PROMISED_MAX: usize = 16_384;
/// Shortest time between two reports of slow calls.
const SLOW_QUIET_US: u64 = 60_000_000;

/// What a driver is told.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// The node's name.
    pub name: String,
    /// Local UDP address; port 0 picks one.
    pub bind: SocketAddr,
    /// Where peers reach this node; `None`: the bound address, which then must not be a wildcard. Port 0 stands for the
    /// bound port.
    pub advertise: Option<SocketAddr>,
    /// Directory of the log; `None`: diskless, the boot counter is the wall clock.
    pub dir: Option<PathBuf>,
    /// The core's configuration.
    pub gossip: Config,
}

/// The multicast group for [`Config::discover`] of a node with this address and gossip port: one for all flocks, which
/// their keys keep apart. `None`: a loopback address is on no link.
pub fn group_for(local: std::net::IpAddr, port: u16) -> Option<SocketAddr> {
    crate::sys::group_for(local, port)
}

/// Counters since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// Datagrams received, of whatever origin.
    pub received: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Bytes sent, without UDP and IP headers.
    pub sent_bytes: u64,
    /// Datagrams the kernel did not take.
    pub unsent: u64,
    /// Of these: longer than the link takes.
    pub too_long: u64,
    /// Calls that took more than 100 ms.
    pub slow_calls: u64,
    /// The longest call in microseconds.
    pub slowest_us: u64,
}

/// Gossip on a socket. The caller owns the [`mio::Poll`] and the clock: `now_us`, monotonic microseconds.
#[derive(Debug)]
pub struct Driver {
    gossip: Gossip,
    socket: UdpSocket,
    /// Bound to the group on which nodes without seeds look for the flock.
    group: Option<UdpSocket>,
    addr: SocketAddr,
    /// Whether what is sent now may not be fragmented.
    whole: bool,
    too_long: Vec<(SocketAddr, usize)>,
    disk: Option<Worker>,
    /// Local records on their way to the disk, by ticket.
    promised: VecDeque<(u64, String, Rev)>,
    rng: Xoshiro256PlusPlus,
    out: Vec<Output>,
    /// The socket may hold more: its edge will not come again.
    unread: bool,
    sync_at_us: Option<u64>,
    /// The log failed, and nothing is promised.
    ails: bool,
    touched_us: u64,
    slow_said_us: Option<u64>,
    stats: DriverStats,
}

impl Driver {
    /// Reads the log, persists this boot's generation, binds the socket. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::File`], [`Error::Corrupt`], [`Error::InUse`], [`Error::Socket`], [`Error::Random`].
    pub fn open(cfg: DriverConfig, now_us: u64) -> Result<Driver, Error> {
        crate::member::check_name(&cfg.name)?;
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| Error::Random)?;
        let failed = |operation, e: &io::Error| {
            let errno = e.raw_os_error().unwrap_or(0);
            Error::Socket { operation, addr: cfg.bind, errno }
        };
        let socket = UdpSocket::bind(cfg.bind).map_err(|e| failed("bind", &e))?;
        let addr = socket.local_addr().map_err(|e| failed("getsockname", &e))?;
        crate::sys::set_receive_buffer(&socket, RECEIVE_BUFFER_BYTES);
        let mut public = cfg.advertise.unwrap_or(addr);
        if public.port() == 0 {
            public.set_port(addr.port());
        }
        if public.ip().is_unspecified() {
            let errno = libc::EADDRNOTAVAIL;
            return Err(Error::Socket { operation: "advertise a wildcard", addr, errno });
        }
        let mut cfg = cfg;
        let group = match cfg.gossip.discover {
            None => None,
            Some(group) => {
                let group = crate::sys::on_link(group, addr.ip());
                cfg.gossip.discover = Some(group);
                let joined = crate::sys::join_group(group, addr.ip());
                Some(joined.map_err(|(operation, e)| Error::Socket {
                    operation,
                    addr: group,
                    errno: e.raw_os_error().unwrap_or(0),
                })?)
            }
        };
        crate::sys::set_whole(&socket, addr, false);
        let wall_ms = wall_ms();
        let (disk, restored, generation) = match &cfg.dir {
            None => (None, None, wall_ms.max(1)),
            Some(dir) => {
                let (disk, restored, generation) = Disk::open(dir, &cfg.name, wall_ms)?;
                (Some(Worker::spawn(disk)?), Some(restored), generation)
            }
        };
        let me = Identity { name: cfg.name, generation, addr: public };
        let mut gossip = Gossip::new(cfg.gossip, me)?;
        if let Some(restored) = restored {
            gossip.restore(now_us, wall_ms, restored);
        }
        Ok(Driver {
            gossip,
            socket,
            group,
            addr,
            whole: false,
            too_long: Vec::new(),
            disk,
            promised: VecDeque::new(),
            rng: Xoshiro256PlusPlus::from_seed(seed),
            out: Vec::new(),
            unread: true,
            sync_at_us: None,
            ails: false,
            touched_us: now_us,
            slow_said_us: None,
            stats: DriverStats::default(),
        })
    }

    /// Registers the socket, and the pipe by which the disk's thread reports, for reading under one token.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn register(&mut self, registry: &Registry, token: Token) -> Result<(), Error> {
        let mut result = registry.register(&mut self.socket, token, Interest::READABLE);
        if let Some(group) = &mut self.group {
            result = result.and(registry.register(group, token, Interest::READABLE));
        }
        if let Some(disk) = &mut self.disk {
            let pipe = registry.register(&mut disk.done, token, Interest::READABLE);
            result = result.and(pipe);
        }
        result.map_err(|e| self.socket_error("register", &e))
    }

    /// Removes both from the poll.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn deregister(&mut self, registry: &Registry) -> Result<(), Error> {
        let mut result = registry.deregister(&mut self.socket);
        if let Some(group) = &mut self.group {
            result = result.and(registry.deregister(group));
        }
        if let Some(disk) = &mut self.disk {
            result = result.and(registry.deregister(&mut disk.done));
        }
        result.map_err(|e| self.socket_error("deregister", &e))
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The sockets are readable: takes in up to 512 datagrams of each; if there are more, [`Driver::next_deadline`] is at once. News
    /// are appended to `events`.
    ///
    /// # Errors
    /// [`Error::File`]: the log broke. It is said once for each failure (a new log is tried every minute, and
    /// [`Event::LogRestored`] tells when that has worked); gossip itself goes on. Socket errors of single datagrams are counted.
    pub fn readable(&mut self, now_us: u64, events: &mut Vec<Event>) -> Result<(), Error> {
        let start = Instant::now();
        let wall_ms = wall_ms();
        let mut bytes = [0; PACKET_MAX_BYTES + 1];
        self.unread = false;
        for socket in [Some(&self.socket), self.group.as_ref()].into_iter().flatten() {
            let mut more = true;
            for _ in 0..READ_MAX {
                match socket.recv_from(&mut bytes) {
                    Ok((len, from)) => {
                        self.stats.received += 1;
                        let bytes = bytes.get(..len).unwrap_or(&[]);
                        let input = Input::Datagram { from, bytes };
                        self.gossip.step(now_us, wall_ms, input, &mut self.rng, &mut self.out);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        more = false;
                        break;
                    }
                    // An ICMP error of something sent earlier; the core finds out by silence.
                    Err(_) => {}
                }
            }
            self.unread |= more;
        }
        self.finish(now_us, wall_ms, start, events)
    }

    /// Does what is due at `now_us`; harmless when nothing is. The first call starts the core.
    ///
    /// # Errors
    /// As [`Driver::readable`].
    pub fn timer(&mut self, now_us: u64, events: &mut Vec<Event>) -> Result<(), Error> {
        if self.unread {
            self.readable(now_us, events)?;
        }
        self.input(now_us, Input::Timer, events)
    }

    /// Passes an input (put, unicast, leave..) to the core.
    ///
    /// # Errors
    /// As [`Driver::readable`]; refusals of the core are [`Event::Refused`].
    pub fn input(
        &mut self,
        now_us: u64,
        input: Input<'_>,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let start = Instant::now();
        let wall_ms = wall_ms();
        self.gossip.step(now_us, wall_ms, input, &mut self.rng, &mut self.out);
        self.finish(now_us, wall_ms, start, events)
    }

    /// When [`Driver::timer`] is due next, in the caller's clock; in the past: now.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.unread {
            return Some(0);
        }
        [self.gossip.next_deadline(), self.sync_at_us].into_iter().flatten().min()
    }

    /// Members and map.
    pub fn gossip(&self) -> &Gossip {
        &self.gossip
    }

    /// The core's key ring, for rotation.
    pub fn keys_mut(&mut self) -> &mut crate::frame::KeyRing {
        self.gossip.keys_mut()
    }

    /// Counters.
    pub fn stats(&self) -> DriverStats {
        self.stats
    }

    /// Waits until everything is durable; for an orderly end. Nothing is remembered after it.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn flush(&mut self) -> Result<(), Error> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if disk.ails() {
            snapshot(disk, &self.gossip, wall_ms());
        }
        disk.finish()
    }

    /// Carries out what the core wants, in its order.
    fn finish(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        start: Instant,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let mut local = Vec::new();
        for output in std::mem::take(&mut self.out) {
            match output {
                Output::Send { to, bytes } => self.send(to, &bytes),
                Output::Event(event) => events.push(event),
                Output::Persist(what) => {
                    if let Persist::Record { record, local: true } = &what {
                        local.push((record.key.to_string(), record.version()));
                    }
                    if let Some(disk) = &mut self.disk {
                        disk.remember(what);
                        self.sync_at_us.get_or_insert(now_us + SYNC_US);
                    }
                }
            }
        }
        for (to, len_bytes) in std::mem::take(&mut self.too_long) {
            // It notes that and sends nothing: the next long frame is shorter.
            let input = Input::TooLong { to, len_bytes };
            self.gossip.step(now_us, wall_ms, input, &mut self.rng, &mut self.out);
        }
        let result = self.store(local, now_us, wall_ms, events);
        self.turn_took(start.elapsed().as_micros() as u64, now_us, events);
        result
    }

    /// The watchdog of the loop that owns us: slow turns are counted, and told of now and then.
    fn turn_took(&mut self, took_us: u64, now_us: u64, events: &mut Vec<Event>) {
        self.stats.slowest_us = self.stats.slowest_us.max(took_us);
        if took_us < SLOW_US {
            return;
        }
        self.stats.slow_calls += 1;
        if self.slow_said_us.is_none_or(|at| now_us >= at + SLOW_QUIET_US) {
            self.slow_said_us = Some(now_us);
            events.push(Event::Slow { took_us, calls: self.stats.slow_calls });
        }
    }

    fn store(
        &mut self,
        local: Vec<(String, Rev)>,
        now_us: u64,
        wall_ms: u64,
        events: &mut Vec<Event>,
    ) -> Result<(), Error> {
        let Some(disk) = &mut self.disk else {
            let durable = |(key, version)| Event::Durable { key, version };
            events.extend(local.into_iter().map(durable));
            return Ok(());
        };
        if now_us.saturating_sub(self.touched_us) >= TOUCH_US {
            self.touched_us = now_us;
            disk.touch();
        }
        if !local.is_empty() || self.sync_at_us.is_some_and(|at| at <= now_us) {
            self.sync_at_us = None;
            let ticket = disk.sync();
            self.promised.extend(local.into_iter().map(|(key, rev)| (ticket, key, rev)));
        }
        let durable = disk.durable();
        while let Some((_, key, version)) = self.promised.pop_front_if(|p| p.0 <= durable) {
            events.push(Event::Durable { key, version });
        }
        while self.promised.len() > PROMISED_MAX {
            // A disk that takes nothing: who waits for the oldest has given up.
            self.promised.pop_front();
        }
        if std::mem::replace(&mut self.ails, disk.ails()) && !self.ails {
            events.push(Event::LogRestored);
        }
        if disk.wants_snapshot(now_us) {
            snapshot(disk, &self.gossip, wall_ms);
        }
        disk.check()
    }

    fn send(&mut self, to: SocketAddr, bytes: &[u8]) {
        let whole = bytes.len() > PACKET_SAFE_BYTES;
        if whole != self.whole {
            self.whole = whole;
            crate::sys::set_whole(&self.socket, self.addr, whole);
        }
        match self.socket.send_to(bytes, to) {
            Ok(_) => {
                self.stats.sent += 1;
                self.stats.sent_bytes += bytes.len() as u64;
            }
            // Full buffer, no route, nobody there: a lost datagram like any other.
            Err(e) => {
                self.stats.unsent += 1;
                if e.raw_os_error() == Some(libc::EMSGSIZE) {
                    self.stats.too_long += 1;
                    if self.too_long.len() < TOO_LONG_MAX {
                        self.too_long.push((to, bytes.len()));
                    }
                }
            }
        }
    }

    fn socket_error(&self, operation: &'static str, error: &io::Error) -> Error {
        let errno = error.raw_os_error().unwrap_or(0);
        Error::Socket { operation, addr: self.addr, errno }
    }
}

/// Has the log replaced by what is true now.
fn snapshot(disk: &mut Worker, gossip: &Gossip, wall_ms: u64) {
    let records = gossip.records().cloned().collect();
    let roster = gossip.members().map(|m| m.info()).collect();
    disk.snapshot(wall_ms, records, roster);
}

fn wall_ms() -> u64 {
    // Before 1970 counts as 1970: a machine without a clock.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Profile;
    use crate::frame::{KeyRing, SecretKey};

    #[test]
    fn slow_turns_are_all_counted_and_told_once_a_minute() {
        let keys = KeyRing::new(&SecretKey::new(1, [3; 32]));
        let gossip = Config::new(keys, Profile::Lan);
        let bind = SocketAddr::from(([127, 0, 0, 1], 0));
        let cfg = DriverConfig { name: "n1".into(), bind, advertise: None, dir: None, gossip };
        let mut driver = Driver::open(cfg, 0).expect("opens");
        let mut events = Vec::new();
        for (took_us, now_us) in
            [(99_999, 0), (150_000, 1), (300_000, 59_999_999), (200_000, 60_000_001)]
        {
            driver.turn_took(took_us, now_us, &mut events);
        }
        let slow = |took_us, calls| Event::Slow { took_us, calls };
        assert_eq!(events, [slow(150_000, 1), slow(200_000, 3)]);
        assert_eq!((driver.stats().slow_calls, driver.stats().slowest_us), (3, 300_000));
    }
}
