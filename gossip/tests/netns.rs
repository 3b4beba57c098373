//! Real links: nodes in network namespaces of their own, as threads, on a bridge in another one. All of it vanishes with the
//! threads.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gossip::driver::{Driver, DriverConfig, DriverStats, group_for};
use gossip::{Config, Expect, Input, KeyRing, Profile, SecretKey};
use mio::{Events, Poll, Token};

const LIMIT: Duration = Duration::from_secs(60);

/// What a node says of itself, now and then.
#[derive(Debug, Clone, Default)]
struct View {
    live: usize,
    records: usize,
    stats: DriverStats,
}

/// A node in a namespace.
struct Node {
    /// The thread by which the namespace is named.
    tid: i32,
    go: mpsc::Sender<DriverConfig>,
    views: mpsc::Receiver<View>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn skip(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let why = match Command::new("ip").arg("-V").output() {
        _ if !root => "needs root",
        Err(_) => "needs iproute2",
        Ok(_) => return false,
    };
    skip::because(test, why);
    true
}

fn enter_new_namespace() -> i32 {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    nix::unistd::gettid().as_raw()
}

fn ip(tid: i32, args: &str) {
    let net = format!("--net=/proc/{}/task/{tid}/ns/net", std::process::id());
    let out = Command::new("nsenter").arg(net).arg("ip").args(args.split_whitespace()).output();
    let out = out.expect("nsenter of util-linux");
    assert!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Node {
    /// An empty namespace; the node starts when it is told how.
    fn new(puts: usize) -> Node {
        let (tell, told) = mpsc::channel();
        let (go, start) = mpsc::channel::<DriverConfig>();
        let (say, views) = mpsc::channel();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = thread::spawn(move || {
            tell.send(enter_new_namespace()).expect("the test listens");
            if let Ok(cfg) = start.recv() {
                run(cfg, puts, &say, &ended);
            }
        });
        let tid = told.recv().expect("a namespace");
        Node { tid, go, views, end, thread: Some(thread) }
    }

    /// Waits until it says what is wanted.
    fn until(&self, what: &str, done: impl Fn(&View) -> bool) -> View {
        let start = Instant::now();
        loop {
            let left = LIMIT.checked_sub(start.elapsed()).unwrap_or_default();
            let view = self.views.recv_timeout(left).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(start.elapsed() < LIMIT, "{what}: still {view:?}");
            if done(&view) {
                return view;
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let (closed, _) = mpsc::channel();
        self.go = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(cfg: DriverConfig, puts: usize, say: &mpsc::Sender<View>, end: &AtomicBool) {
    let start = Instant::now();
    let now = || start.elapsed().as_micros() as u64;
    let mut driver = Driver::open(cfg, now()).expect("opens");
    let mut poll = Poll::new().expect("epoll");
    driver.register(poll.registry(), Token(0)).expect("registers");
    let mut ready = Events::with_capacity(16);
    let mut events = Vec::new();
    for n in 0..puts {
        let (key, body) = (format!("s/default/app-{n}"), vec![n as u8; 16_000]);
        let put = Input::Put { key: &key, body, expect: Expect::Any };
        driver.input(now(), put, &mut events).expect("diskless");
    }
    while !end.load(Ordering::Relaxed) {
        let wait = driver.next_deadline().unwrap_or(0).saturating_sub(now()).min(20_000);
        poll.poll(&mut ready, Some(Duration::from_micros(wait))).expect("polls");
        if !ready.is_empty() {
            driver.readable(now(), &mut events).expect("diskless");
        }
        driver.timer(now(), &mut events).expect("diskless");
        events.clear();
        let gossip = driver.gossip();
        let live = 1 + gossip.members().filter(|m| m.state.is_live()).count();
        let records = gossip.range("").count();
        let _ = say.send(View { live, records, stats: driver.stats() });
    }
}

fn config(name: &str, local: IpAddr, key: u8) -> DriverConfig {
    let keys = KeyRing::new(&SecretKey::new(1, [key; 32]));
    let gossip = Config::new(keys, Profile::Lan);
    let bind = SocketAddr::new(local, 7400);
    DriverConfig { name: name.into(), bind, advertise: None, dir: None, gossip }
}

/// A bridge, and nodes on it: their namespaces hold `eth0` of these MTUs.
fn link(count: usize, puts: usize, mtus: &[u16]) -> (Node, Vec<Node>) {
    let bridge = Node::new(0);
    ip(bridge.tid, "link add br0 type bridge mcast_snooping 0");
    ip(bridge.tid, "link set br0 up");
    let nodes: Vec<Node> = (0..count).map(|n| Node::new(if n == 0 { puts } else { 0 })).collect();
    for (n, node) in nodes.iter().enumerate() {
        let mtu = mtus[n % mtus.len()];
        let peer = format!("/proc/{}/task/{}/ns/net", std::process::id(), node.tid);
        let peer = peer.as_str();
        ip(
            bridge.tid,
            &format!("link add p{n} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}"),
        );
        ip(bridge.tid, &format!("link set p{n} master br0 up"));
        ip(node.tid, "link set lo up");
        ip(node.tid, "link set eth0 up");
        ip(node.tid, &format!("addr add 10.9.0.{}/24 dev eth0", n + 1));
        if mtu >= 1280 {
            ip(node.tid, &format!("addr add fd00:9::{}/64 dev eth0 nodad", n + 1));
        }
    }
    (bridge, nodes)
}

#[test]
fn nodes_without_seeds_find_each_other_on_a_bridge_and_strangers_stay_out() {
    if skip("discovery") {
        return;
    }
    for six in [false, true] {
        let (_bridge, nodes) = link(4, 0, &[1500]);
        for (n, node) in nodes.iter().enumerate() {
            let local =
                if six { format!("fd00:9::{}", n + 1) } else { format!("10.9.0.{}", n + 1) };
            let local: IpAddr = local.parse().expect("an address");
            // The last one is of another flock.
            let mut cfg = config(&format!("n{n}"), local, if n == 3 { 2 } else { 1 });
            cfg.gossip.discover = group_for(local, 7400);
            assert!(cfg.gossip.discover.is_some());
            node.go.send(cfg).expect("it waits");
        }
        for node in &nodes[..3] {
            node.until("three on one link", |v| v.live == 3);
        }
        let alone = nodes[3].until("beacons of the others", |v| v.stats.received > 3);
        assert_eq!(alone.live, 1, "another flock's key");
    }
}

/// The bridge drops what the far port does not take, and tells nobody.
#[test]
fn long_datagrams_are_found_and_black_holes_left() {
    if skip("path MTU") {
        return;
    }
    // Jumbo on all; jumbo to Ethernet; the smallest link of all, which fragments what is safe elsewhere.
    for (mtus, refused) in [([9000, 9000], false), ([9000, 1500], true), ([1100, 1100], true)] {
        let (_bridge, nodes) = link(2, 40, &mtus);
        for (n, node) in nodes.iter().enumerate() {
            let local: IpAddr = format!("10.9.0.{}", n + 1).parse().expect("an address");
            let mut cfg = config(&format!("n{n}"), local, 1);
            cfg.gossip.seeds = vec!["10.9.0.1:7400".parse().expect("an address")];
            node.go.send(cfg).expect("it waits");
        }
        let view = nodes[1].until("forty records", |v| v.records == 40);
        let sent = nodes[0].until("its view", |v| v.stats.sent_bytes > 640_000).stats;
        println!("{mtus:?}: {sent:?} {:?}", view.stats);
        let long = sent.sent_bytes / sent.sent.max(1);
        if !refused {
            assert_eq!(sent.too_long, 0);
            assert!(long > 2_000, "{long} bytes a datagram on jumbo frames");
        }
        if mtus[0] < 1500 {
            // Each size above it, and nothing again for ten minutes.
            assert!((1..=8).contains(&sent.too_long), "{sent:?}");
        }
    }
}
