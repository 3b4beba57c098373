//! The data thread: TUNs and the UDP socket, driven by mio. Decides nothing itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use mio::{Poll, Waker};

use crate::addr::{Prefix4, Prefix6};
use crate::counters::{Counters, Stats};
use crate::ipam::PodAddr;
use crate::keys::{Psk, PublicKey, SecretKey};
use crate::path::{self, OwnPrefixes, Path, Pods, Routes};
pub use crate::session::PEERS_MAX;
use crate::session::{Identity, Sessions};
use crate::{Error, podnet, sys};

mod engine;
mod thread;

use engine::Engine;
pub(crate) use engine::fuzz;
use thread::{DataThread, Parts, SystemRng};

/// What an overlay is made of.
#[derive(Clone)]
pub struct Config {
    /// The UDP address to bind; port 0 picks one, see [`Overlay::local_addr`].
    pub bind: SocketAddr,
    /// This node's key.
    pub static_key: SecretKey,
    /// The flock's key.
    pub psk: Psk,
    /// Grows with every start of the overlay (a generation kept on disk, or the wall clock in ms): a recorded handshake of an earlier one is refused by
    /// it. If it falls, peers refuse us until [`crate::session::REJECT_AFTER_US`] has passed.
    pub boot: u64,
    /// Largest packet of pods, in bytes; the same in [`crate::podnet::PodConfig`].
    pub mtu: u16,
    /// This node's IPv4 prefix, if it has one already; see [`Overlay::set_prefixes`].
    pub prefix4: Option<Prefix4>,
    /// This node's IPv6 prefix.
    pub prefix6: Prefix6,
    /// The flock's IPv6 prefix.
    pub overlay6: Prefix6,
    /// Whether pods may send to addresses outside of the overlay, through the host's interface (which must forward and masquerade).
    pub egress: bool,
    /// Whether to use UDP segmentation offload. `Auto` probes; `Off` is the kill switch.
    pub gso: Gso,
}

/// Use of UDP_SEGMENT and UDP_GRO on the underlay socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// Use what the kernel knows; given up at run time when a send with it fails.
    Auto,
    /// Never.
    Off,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name; unique.
    pub name: String,
    /// Its key from the node record; a session is bound to it.
    pub public_key: PublicKey,
    /// Where its overlay listens.
    pub endpoint: SocketAddr,
    /// Its IPv4 prefix: the only IPv4 sources accepted from it.
    pub prefix4: Option<Prefix4>,
    /// Its IPv6 prefix: the only IPv6 sources accepted from it.
    pub prefix6: Prefix6,
}

/// A peer that [`Overlay::set_peers`] left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The peer.
    pub name: String,
    /// Why.
    pub why: &'static str,
}

/// A running overlay: one data thread. Dropping it ends the thread and closes its fds; TUNs and pods stay.
pub struct Overlay {
    local_addr: SocketAddr,
    commands: Sender<Command>,
    waker: Arc<Waker>,
    closed: Receiver<OwnedFd>,
    counters: Arc<Counters>,
    shared: Arc<Shared>,
    list: Mutex<List>,
    thread: Option<JoinHandle<()>>,
}

/// What the data thread is told.
enum Command {
    Peers { peers: Vec<Peer>, own: OwnPrefixes },
    AddPod { addr: PodAddr, tun: OwnedFd, offload: bool },
    RemovePod(IpAddr),
    Host { tun: OwnedFd, offload: bool },
    Stop,
}

/// What the data thread tells besides counters.
struct Shared {
    gso: AtomicBool,
    sessions: AtomicU64,
}

/// The lists that routes are made of; kept here because each of the two may change alone.
struct List {
    own: OwnPrefixes,
    public_key: PublicKey,
    peers: Vec<Peer>,
}

impl Overlay {
    /// Binds the socket and starts the data thread.
    ///
    /// # Errors
    /// [`Error::Bind`], [`Error::Thread`] or [`Error::Config`].
    pub fn spawn(config: Config) -> Result<Self, Error> {
        let own = check(&config)?;
        let (udp, gso) = open_socket(&config)?;
        let bind_error = |errno| Error::Bind { addr: config.bind, errno };
        let local_addr = udp.local_addr().map_err(bind_error)?;
        let thread_error = |op| move |errno| Error::Thread { op, errno };
        let poll = Poll::new().map_err(thread_error("create an epoll instance"))?;
        let waker = Arc::new(thread::waker(&poll).map_err(thread_error("create a waker"))?);
        let (commands, inbox) = crossbeam_channel::bounded(COMMANDS_MAX);
        let (graveyard, closed) = crossbeam_channel::bounded(COMMANDS_MAX);
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared { gso: AtomicBool::new(gso), sessions: AtomicU64::new(0) });

        let public_key = config.static_key.public_key();
        let identity =
            Identity { key: config.static_key, psk: config.psk, boot: config.boot, aes: has_aes() };
        let mut rng = SystemRng::new();
        let sessions = Sessions::new(identity, 0, &mut rng);
        let path = Path {
            routes: Routes::new(own, &[]),
            pods: Pods::default(),
            host: false,
            mtu: config.mtu,
        };
        let engine = Engine::new(path, sessions, counters.clone(), rng, 0);
        let data = DataThread::new(Parts {
            poll,
            udp,
            engine,
            commands: inbox,
            closed: graveyard,
            counters: counters.clone(),
            shared: shared.clone(),
            start: Instant::now(),
        })
        .map_err(thread_error("watch the socket"))?;
        let thread = std::thread::Builder::new()
            .name("overlay".into())
            .spawn(move || data.run())
            .map_err(thread_error("start"))?;
        let list = Mutex::new(List { own, public_key, peers: Vec::new() });
        let thread = Some(thread);
        Ok(Self { local_addr, commands, waker, closed, counters, shared, list, thread })
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Replaces the whole list of peers. Sessions of peers whose key and endpoint did not change go on. Returns those left out: the prefix of
    /// another peer or ours, no node prefix, our own key, or over [`PEERS_MAX`]; of two with the same prefix or key the lower name stays.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Full`].
    pub fn set_peers(&self, peers: Vec<Peer>) -> Result<Vec<Refused>, Error> {
        let mut list = self.list();
        let (peers, refused) = admit(peers, &list);
        list.peers = peers;
        self.send_list(&list)?;
        Ok(refused)
    }

    /// Changes this node's prefixes (a claim became usable, or was lost).
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Full`].
    pub fn set_prefixes(&self, prefix4: Option<Prefix4>, prefix6: Prefix6) -> Result<(), Error> {
        let mut list = self.list();
        list.own = OwnPrefixes { prefix4, prefix6, ..list.own };
        self.send_list(&list)
    }

    /// Connects a pod. A pod with the same addresses is replaced. `tun` becomes non-blocking, also for those who hold a duplicate.
    ///
    /// # Errors
    /// [`Error::Config`] if the addresses do not belong together (see [`crate::ipam::PodAddresses`]), [`Error::Tun`] if `tun` is no TUN, [`Error::Full`],
    /// [`Error::Stopped`].
    pub fn add_pod(&self, ip4: Ipv4Addr, ip6: Ipv6Addr, tun: OwnedFd) -> Result<(), Error> {
        let addr = PodAddr { ip4, ip6 };
        if Pods::id(addr).is_none() {
            return Err(Error::Config {
                field: "pod address",
                why: "must end in the same byte, 2 to 254, in both families",
            });
        }
        let offload = podnet::adopt(&tun)?;
        self.send(Command::AddPod { addr, tun, offload })
    }

    /// Disconnects a pod, named by either address. Packets to it are answered with ICMP unreachable from then on.
    ///
    /// # Errors
    /// [`Error::Stopped`], [`Error::Full`].
    pub fn remove_pod(&self, ip: impl Into<IpAddr>) -> Result<(), Error> {
        self.send(Command::RemovePod(ip.into()))
    }

    /// Connects the host's interface made by [`crate::podnet::host`].
    ///
    /// # Errors
    /// As [`Overlay::add_pod`].
    pub fn set_host(&self, tun: OwnedFd) -> Result<(), Error> {
        let offload = podnet::adopt(&tun)?;
        self.send(Command::Host { tun, offload })
    }

    /// The counters so far. Cheap; from any thread.
    pub fn stats(&self) -> Stats {
        self.collect();
        let mut stats = self.counters.snapshot();
        stats.sessions = self.shared.sessions.load(Relaxed);
        stats.gso = self.shared.gso.load(Relaxed);
        stats
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // A panic of another caller left a whole list: it is replaced, never edited.
        self.list.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn send_list(&self, list: &List) -> Result<(), Error> {
        self.send(Command::Peers { peers: list.peers.clone(), own: list.own })
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        self.collect();
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => Error::Full { limit: "COMMANDS_MAX" },
            TrySendError::Disconnected(_) => Error::Stopped,
        })?;
        self.waker.wake().map_err(|errno| Error::Thread { op: "wake", errno })
    }

    /// Closes the fds that the data thread is done with: not on that thread, as a close may take milliseconds.
    fn collect(&self) {
        self.closed.try_iter().for_each(drop);
    }
}

impl std::ops::Drop for Overlay {
    fn drop(&mut self) {
        let _ = self.send(Command::Stop);
        // If the command did not fit, the channel's end does it.
        let (nowhere, _) = crossbeam_channel::bounded(1);
        self.commands = nowhere;
        let _ = self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.collect();
    }
}

/// Commands that wait for the data thread; more are refused with [`Error::Full`].
pub const COMMANDS_MAX: usize = 1_024;
/// The least MTU of IPv6.
const MTU_MIN: u16 = 1_280;
/// A datagram must fit a batch.
const MTU_MAX: u16 = 9_900;
/// Socket buffers: some tens of large packets.
const SOCKET_BUFFER_BYTES: libc::c_int = 4 << 20;

/// How many full segments one send call takes: TCP of pods is told not to make larger packets, so that each is one call.
pub(crate) fn batch_segments(mtu: u16) -> u32 {
    let datagram = usize::from(mtu) + crate::wire::DATA_OVERHEAD;
    let segments = (engine::BATCH_MAX_BYTES / datagram).clamp(1, engine::BATCH_MAX_SEGMENTS);
    // At most 64.
    segments as u32
}

fn check(config: &Config) -> Result<OwnPrefixes, Error> {
    let refuse = |field, why| Err(Error::Config { field, why });
    if !(MTU_MIN..=MTU_MAX).contains(&config.mtu) {
        return refuse("mtu", "must be from 1280 to 9900");
    }
    if config.prefix4.is_some_and(|p| p.node_index().is_none()) {
        return refuse("prefix4", "must be a /24 of 100.64.0.0/10");
    }
    if config.overlay6.len() != 48 {
        return refuse("overlay6", "must be a /48");
    }
    if !path::is_node_prefix6(config.prefix6, config.overlay6) {
        return refuse("prefix6", "must be a /96 of overlay6");
    }
    Ok(OwnPrefixes {
        prefix4: config.prefix4,
        prefix6: config.prefix6,
        overlay6: config.overlay6,
        egress: config.egress,
    })
}

/// Binds and tunes the socket; says whether segmentation offload may be tried.
fn open_socket(config: &Config) -> Result<(UdpSocket, bool), Error> {
    let bind_error = |errno| Error::Bind { addr: config.bind, errno };
    let udp = UdpSocket::bind(config.bind).map_err(bind_error)?;
    udp.set_nonblocking(true).map_err(bind_error)?;
    for (force, plain) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        // Without CAP_NET_ADMIN up to the system's limit; smaller buffers only drop sooner.
        if sys::set_option(&udp, libc::SOL_SOCKET, force, SOCKET_BUFFER_BYTES).is_err() {
            let _ = sys::set_option(&udp, libc::SOL_SOCKET, plain, SOCKET_BUFFER_BYTES);
        }
    }
    // Never fragment; and never believe an unauthenticated "packet too big".
    let (level, option) = if config.bind.is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    let _ = sys::set_option(&udp, level, option, libc::IP_PMTUDISC_PROBE);
    if config.gso == Gso::Off {
        return Ok((udp, false));
    }
    let _ = sys::set_option(&udp, libc::SOL_UDP, libc::UDP_GRO, 1);
    // A kernel that knows the option may be asked per call; 0 leaves the socket itself as it is.
    let gso = sys::set_option(&udp, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
    Ok((udp, gso))
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    let aes = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let aes = false;
    aes
}

/// Sorts out the peers that cannot be.
fn admit(mut peers: Vec<Peer>, list: &List) -> (Vec<Peer>, Vec<Refused>) {
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    let mut refused = Vec::new();
    let mut kept: Vec<Peer> = Vec::new();
    let (mut keys, mut fours, mut sixes) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for peer in peers {
        let own = &list.own;
        let why = if peer.public_key == list.public_key {
            Some("it has our own key")
        } else if keys.contains(&peer.public_key) {
            Some("another peer has its key")
        } else if peer.prefix4.is_some_and(|p| p.node_index().is_none()) {
            Some("its IPv4 prefix is no /24 of 100.64.0.0/10")
        } else if !path::is_node_prefix6(peer.prefix6, own.overlay6) {
            Some("its IPv6 prefix is no /96 of the flock's")
        } else if peer.prefix6 == own.prefix6 || sixes.contains(&peer.prefix6) {
            Some("its IPv6 prefix is another node's")
        } else if kept.len() >= PEERS_MAX {
            Some("too many peers")
        } else {
            None
        };
        if let Some(why) = why {
            refused.push(Refused { name: peer.name, why });
            continue;
        }
        keys.insert(peer.public_key);
        sixes.insert(peer.prefix6);
        let mut peer = peer;
        // A contested IPv4 prefix is settled by `ipam` soon; until then the peer keeps its IPv6 one.
        if let Some(prefix4) = peer.prefix4
            && (Some(prefix4) == own.prefix4 || !fours.insert(prefix4))
        {
            refused.push(Refused {
                name: peer.name.clone(),
                why: "its IPv4 prefix is another node's",
            });
            peer.prefix4 = None;
        }
        kept.push(peer);
    }
    (kept, refused)
}
