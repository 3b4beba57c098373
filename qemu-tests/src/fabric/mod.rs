//! The network between machines: a switch in this process, over Unix datagram sockets, without root.
//!
//! QEMU's side is `-netdev dgram` (7.2 or later). One thread owns the switch; tests change its rules through
//! [`Fabric`]. Everything carried is written to a pcap file.

mod dhcp;
mod frame;
mod pcap;
mod router;
mod switch;
mod time;

pub use dhcp::{Dhcp, Grant, Loader, Mood, SECOND};
pub use router::Router;
pub use switch::{Counters, Rule, Switch};
pub use time::{Telling, TimeServer};

use anyhow::{Context as _, Result};
use pcap::Pcap;
use rand::{SeedableRng as _, rngs::SmallRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Longest sleep of the switch's thread: how late it hears of a new rule or of its end.
const TICK: Duration = Duration::from_millis(20);

/// A running switch. Dropping it ends it.
#[derive(Debug)]
pub struct Fabric {
    shared: Arc<Shared>,
    ports: usize,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    end: AtomicBool,
}

#[derive(Debug)]
struct State {
    switch: Switch,
    dhcp: Option<Dhcp>,
    time: Option<TimeServer>,
    router: Option<Router>,
}

impl State {
    /// What the servers in the switch say to a frame.
    fn answers(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut answers = self.dhcp.as_mut().map(|dhcp| dhcp.answer(frame)).unwrap_or_default();
        answers.extend(self.time.as_mut().and_then(|time| time.answer(frame)));
        answers.extend(self.router.as_ref().and_then(|router| router.answer(frame)));
        answers
    }
}

impl Fabric {
    /// Starts a switch of `ports` machines in `dir` (sockets `swN.sock`, capture `fabric.pcap`). Losses come from `seed`.
    ///
    /// # Errors
    /// When sockets or the capture file cannot be made.
    pub fn start(dir: &Path, ports: usize, dhcp: Option<Dhcp>, seed: u64) -> Result<Self> {
        let sockets: Vec<UnixDatagram> = (0..ports)
            .map(|port| {
                let path = switch_path(dir, port);
                let socket = UnixDatagram::bind(&path)
                    .with_context(|| format!("bind {}", path.display()))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .collect::<Result<_>>()?;
        let pcap = Pcap::create(&dir.join("fabric.pcap"))?;
        // The server in the switch has the last port.
        let state = State { switch: Switch::new(ports + 1), dhcp, time: None, router: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), end: AtomicBool::new(false) });
        let carrier = Carrier {
            shared: Arc::clone(&shared),
            peers: (0..ports).map(|port| machine_path(dir, port)).collect(),
            sockets,
            pcap,
            rng: SmallRng::seed_from_u64(seed),
            start: Instant::now(),
        };
        let thread =
            std::thread::Builder::new().name("fabric".into()).spawn(move || carrier.run())?;
        Ok(Self { shared, ports, thread: Some(thread) })
    }

    /// Cuts every pair between the two groups, both ways.
    pub fn cut(&self, one: &[usize], other: &[usize]) {
        for (a, b) in pairs(one, other) {
            self.change(a, b, |rule| rule.cut = true);
            self.change(b, a, |rule| rule.cut = true);
        }
    }

    /// Cuts what `from` sends to `to`; the answers of `to` still arrive.
    pub fn one_way(&self, from: &[usize], to: &[usize]) {
        for (a, b) in pairs(from, to) {
            self.change(a, b, |rule| rule.cut = true);
        }
    }

    /// Loses that share (0 to 1) of everything between machines.
    pub fn loss(&self, share: f64) {
        let ppm = (share.clamp(0.0, 1.0) * 1e6) as u32;
        self.change_all(|rule| rule.loss_ppm = ppm);
    }

    /// Delays everything between machines.
    pub fn delay(&self, by: Duration) {
        let us = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.change_all(|rule| rule.delay_us = us);
    }

    /// Takes every fault back.
    pub fn heal(&self) {
        self.state().switch.heal();
    }

    /// How the DHCP server behaves from now on.
    pub fn dhcp(&self, mood: Mood) {
        if let Some(dhcp) = &mut self.state().dhcp {
            dhcp.mood = mood;
        }
    }

    /// Messages the DHCP server has understood, and requests it has refused.
    #[must_use]
    pub fn dhcp_counts(&self) -> (u64, u64) {
        self.state().dhcp.as_ref().map_or((0, 0), |dhcp| (dhcp.heard, dhcp.refused))
    }

    /// A time server at that address from now on, where somebody answers ARP for it (the DHCP server's own).
    pub fn time(&self, address: std::net::Ipv4Addr, telling: Telling) {
        self.state().time = Some(TimeServer { address, telling, heard: 0 });
    }

    /// Questions the time server has heard since it was set.
    #[must_use]
    pub fn time_heard(&self) -> u64 {
        self.state().time.as_ref().map_or(0, |time| time.heard)
    }

    /// An IPv6 router that advertises this /64 to whoever asks.
    pub fn router(&self, prefix: std::net::Ipv6Addr) {
        self.state().router = Some(Router { mac: [0x52, 0x54, 0, 0x71, 1, 6], prefix });
    }

    /// Changes what the DHCP server gives.
    pub fn change_dhcp(&self, change: impl FnOnce(&mut Dhcp)) {
        if let Some(dhcp) = &mut self.state().dhcp {
            change(dhcp);
        }
    }

    /// What was carried.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.state().switch.counters()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic in a test must not hide behind the poison of its switch.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, from: usize, to: usize, change: impl FnOnce(&mut Rule)) {
        let switch = &mut self.state().switch;
        let mut rule = switch.rule(from, to);
        change(&mut rule);
        switch.set(from, to, rule);
    }

    fn change_all(&self, change: impl Fn(&mut Rule)) {
        let all: Vec<usize> = (0..self.ports).collect();
        for (a, b) in pairs(&all, &all) {
            self.change(a, b, &change);
        }
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn pairs<'a>(one: &'a [usize], other: &'a [usize]) -> impl Iterator<Item = (usize, usize)> + 'a {
    one.iter().flat_map(move |a| other.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b)
}

/// The switch's end of a port.
#[must_use]
pub fn switch_path(dir: &Path, port: usize) -> PathBuf {
    dir.join(format!("sw{port}.sock"))
}

/// The machine's end of a port.
#[must_use]
pub fn machine_path(dir: &Path, port: usize) -> PathBuf {
    dir.join(format!("vm{port}.sock"))
}

struct Carrier {
    shared: Arc<Shared>,
    sockets: Vec<UnixDatagram>,
    peers: Vec<PathBuf>,
    pcap: Pcap,
    rng: SmallRng,
    start: Instant,
}

impl Carrier {
    fn run(mut self) {
        let mut buffer = vec![0; switch::FRAME_BYTES_MAX + 1];
        while !self.shared.end.load(Ordering::Relaxed) {
            let wait = self.wait();
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos()) };
            let mut fds: Vec<PollFd<'_>> =
                self.sockets.iter().map(|s| PollFd::new(s, PollFlags::IN)).collect();
            let _ = poll(&mut fds, Some(&timeout));
            for port in 0..self.sockets.len() {
                while let Ok(len) = self.sockets[port].recv(&mut buffer) {
                    self.take(port, &buffer[..len]);
                }
            }
            self.deliver();
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn wait(&self) -> Duration {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let due = state.switch.next_deadline().map(|at| at.saturating_sub(self.now_us()));
        due.map_or(TICK, |us| Duration::from_micros(us).min(TICK))
    }

    fn take(&mut self, port: usize, frame: &[u8]) {
        let now = self.now_us();
        self.pcap.write(now, frame);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.switch.input(now, port, frame, &mut self.rng);
    }

    fn deliver(&mut self) {
        let shared = Arc::clone(&self.shared);
        let now = self.now_us();
        loop {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((port, frame)) = state.switch.due(now) else { return };
            if let (Some(socket), Some(peer)) = (self.sockets.get(port), self.peers.get(port)) {
                drop(state);
                // A machine that is off or does not read loses frames, as one does.
                let _ = socket.send_to(&frame, peer);
            } else {
                for reply in state.answers(&frame) {
                    self.pcap.write(now, &reply);
                    state.switch.input(now, port, &reply, &mut self.rng);
                }
            }
        }
    }
}
