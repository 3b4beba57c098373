//! Nodes as threads in network namespaces of their own, joined by a bridge in another one. All of it vanishes with the threads.

#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use netshim::addr::{Prefix4, Prefix6};
use netshim::ipam::{self, PodAddr, PodAddresses};
use netshim::keys::{Psk, SecretKey};
use netshim::overlay::{Config, Gso, Overlay, Peer};
use netshim::podnet::{self, HostConfig, PodConfig};
use nix::sched::{CloneFlags, setns, unshare};

pub const FLOCK: &[u8] = b"test flock";
pub const MTU: u16 = 1_400;

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Space {
    jobs: Option<mpsc::Sender<Job>>,
    pub tid: i32,
    thread: Option<thread::JoinHandle<()>>,
}

impl Space {
    pub fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (these tests need root)");
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs: Some(jobs), tid: told.recv().unwrap(), thread: Some(thread) }
    }

    /// Runs `job` in the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = tell.send(job());
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        told.recv().expect("the job panicked")
    }

    pub fn ip(&self, args: &str) {
        let args = args.to_owned();
        self.run(move || ip(&args));
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether this machine cannot run such tests; says why.
pub fn skip(test: &str) -> bool {
    let why = if !nix::unistd::geteuid().is_root() {
        "needs root"
    } else if !std::path::Path::new("/dev/net/tun").exists() {
        "needs /dev/net/tun"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "needs iproute2"
    } else {
        return false;
    };
    skip::because(test, why);
    true
}

/// Runs `ip ARGS` in the calling thread's namespace.
pub fn ip(args: &str) {
    ip_output(args);
}

/// As [`ip`], with what it printed.
pub fn ip_output(args: &str) -> String {
    let out = Command::new("ip").args(args.split_whitespace()).output().expect("iproute2");
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs `job` on a new thread inside of `netns` and waits for it.
pub fn inside<T: Send + 'static>(netns: &OwnedFd, job: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_inside(netns, job).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `job` on a new thread inside of `netns`.
pub fn spawn_inside<T: Send + 'static>(
    netns: &OwnedFd,
    job: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let netns = netns.try_clone().unwrap();
    thread::spawn(move || {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        job()
    })
}

pub struct Pod {
    pub addr: PodAddr,
    pub netns: OwnedFd,
    /// The duplicate that a shim would hold.
    pub tun: OwnedFd,
}

pub struct Node {
    pub space: Space,
    pub name: String,
    pub underlay: Ipv4Addr,
    pub key: SecretKey,
    pub overlay: Option<Overlay>,
    pub prefix4: Prefix4,
    pub prefix6: Prefix6,
    pub addresses: PodAddresses,
    pub options: Options,
    pub boot: u64,
    /// Another address to bind than the underlay's.
    pub bind: Option<SocketAddr>,
}

#[derive(Clone, Copy)]
pub struct Options {
    pub psk: u8,
    pub offload: bool,
    pub gso: Gso,
}

impl Default for Options {
    fn default() -> Self {
        Self { psk: 1, offload: true, gso: Gso::Auto }
    }
}

/// Nodes on one bridge.
pub struct Net {
    pub switch: Space,
    pub nodes: Vec<Node>,
}

impl Net {
    /// Nodes that know each other.
    pub fn new(options: &[Options]) -> Self {
        let switch = Space::new();
        switch.ip("link set lo up");
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let nodes =
            (0..).zip(options).map(|(n, options)| Node::new(&switch, n, *options)).collect();
        let net = Self { switch, nodes };
        net.introduce();
        net
    }

    pub fn introduce(&self) {
        let all: Vec<Peer> = self.nodes.iter().map(Node::as_peer).collect();
        for (at, node) in self.nodes.iter().enumerate() {
            let others = all.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, p)| p.clone());
            let refused = node.overlay().set_peers(others.collect()).unwrap();
            assert_eq!(refused, []);
        }
    }
}

impl Node {
    fn new(switch: &Space, n: u8, options: Options) -> Self {
        let space = Space::new();
        space.ip("link set lo up");
        switch.ip(&format!("link add v{n} type veth peer name u0 netns {}", space.tid));
        switch.ip(&format!("link set v{n} master br0 up"));
        let underlay = Ipv4Addr::new(10, 99, 0, n + 1);
        space.ip(&format!("addr add {underlay}/24 dev u0"));
        space.ip("link set u0 up");
        let name = format!("n{n}");
        let prefix4 = Prefix4::node(u16::from(n) + 1).unwrap();
        let prefix6 = ipam::prefix6(FLOCK, &name);
        let key = SecretKey::from_bytes([n + 1; 32]);
        let addresses = PodAddresses::new(prefix4, prefix6);
        let mut node = Self {
            space,
            name,
            underlay,
            key,
            overlay: None,
            prefix4,
            prefix6,
            addresses,
            options,
            boot: 0,
            bind: None,
        };
        node.start();
        node
    }

    /// Starts the overlay and connects `mesh0`.
    pub fn start(&mut self) {
        self.boot += 1;
        let overlay6 = Prefix6::new(self.prefix6.network(), 48).unwrap();
        let config = Config {
            bind: self.bind.unwrap_or(SocketAddr::new(self.underlay.into(), 7_700)),
            static_key: self.key.clone(),
            psk: Psk::from_bytes([self.options.psk; 32]),
            boot: self.boot,
            mtu: MTU,
            prefix4: Some(self.prefix4),
            prefix6: self.prefix6,
            overlay6,
            egress: false,
            gso: self.options.gso,
        };
        let host = HostConfig {
            prefix4: Some(self.prefix4),
            prefix6: self.prefix6,
            overlay6,
            mtu: MTU,
            offload: self.options.offload,
        };
        self.overlay = Some(self.space.run(move || {
            let overlay = Overlay::spawn(config).unwrap();
            overlay.set_host(podnet::host(&host).unwrap()).unwrap();
            overlay
        }));
    }

    pub fn overlay(&self) -> &Overlay {
        self.overlay.as_ref().unwrap()
    }

    pub fn as_peer(&self) -> Peer {
        Peer {
            name: self.name.clone(),
            public_key: self.key.public_key(),
            endpoint: SocketAddr::new(self.underlay.into(), 7_700),
            prefix4: Some(self.prefix4),
            prefix6: self.prefix6,
        }
    }

    pub fn pod(&mut self) -> Pod {
        let addr = self.addresses.allocate(0).unwrap();
        let config = PodConfig {
            ip4: addr.ip4,
            ip6: addr.ip6,
            mtu: MTU,
            offload: self.options.offload,
            low_ports: true,
        };
        let made = self.space.run(move || podnet::create(&config)).unwrap();
        assert_eq!(made.missing, Vec::<String>::new());
        let tun = made.tun.try_clone().unwrap();
        self.overlay().add_pod(addr.ip4, addr.ip6, made.tun).unwrap();
        Pod { addr, netns: made.netns, tun }
    }
}

/// Waits until `ready` holds.
pub fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A UDP socket that does not wait for ever.
pub fn udp(addr: impl Into<IpAddr>) -> UdpSocket {
    let socket = UdpSocket::bind((addr.into(), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// Answers datagrams until the returned address hears "end".
pub fn udp_echo(netns: &OwnedFd, addr: impl Into<IpAddr>) -> (SocketAddr, thread::JoinHandle<u32>) {
    let addr = addr.into();
    let (tell, told) = mpsc::channel();
    let thread = spawn_inside(netns, move || {
        let socket = udp(addr);
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        tell.send(socket.local_addr().unwrap()).unwrap();
        let mut buf = [0; 66_000];
        for count in 0.. {
            let Ok((len, from)) = socket.recv_from(&mut buf) else { return count };
            socket.send_to(&buf[..len], from).unwrap();
            if &buf[..len] == b"end" {
                return count;
            }
        }
        0
    });
    (told.recv().unwrap(), thread)
}

pub fn both(addr: PodAddr) -> [IpAddr; 2] {
    [addr.ip4.into(), addr.ip6.into()]
}

pub fn gateway(node: &Node) -> [IpAddr; 2] {
    [node.prefix4.gateway().into(), node.prefix6.gateway().into()]
}
