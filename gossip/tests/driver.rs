//! Real sockets on 127.0.0.1 and real logs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gossip::driver::{Driver, DriverConfig};
use gossip::{Config, Event, Expect, Input, KeyRing, Profile, SecretKey, State};
use mio::{Events, Poll, Token};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

struct Flock {
    poll: Poll,
    start: Instant,
    nodes: Vec<Option<Driver>>,
    events: Vec<Vec<Event>>,
    dir: PathBuf,
}

impl Flock {
    fn new(test: &str) -> Flock {
        let dir = std::env::temp_dir().join(format!("quelea-driver-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let poll = Poll::new().expect("epoll");
        Flock { poll, start: Instant::now(), nodes: Vec::new(), events: Vec::new(), dir }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn config(&self, node: usize, on_disk: bool) -> DriverConfig {
        let keys = KeyRing::new(&SecretKey::new(1, [3; 32]));
        let mut gossip = Config::new(keys, Profile::Lan);
        gossip.seeds = self.addr(0).into_iter().collect();
        DriverConfig {
            name: format!("n{node}"),
            bind: "127.0.0.1:0".parse().expect("an address"),
            advertise: None,
            dir: on_disk.then(|| self.dir.join(format!("n{node}"))),
            gossip,
        }
    }

    fn addr(&self, node: usize) -> Option<SocketAddr> {
        Some(self.nodes.get(node)?.as_ref()?.local_addr())
    }

    fn open(&mut self, node: usize, cfg: DriverConfig) {
        let now = self.now();
        let mut driver = Driver::open(cfg, now).expect("opens");
        driver.register(self.poll.registry(), Token(node)).expect("registers");
        self.nodes.resize_with(self.nodes.len().max(node + 1), || None);
        self.events.resize_with(self.nodes.len(), Vec::new);
        driver.timer(now, &mut self.events[node]).expect("starts");
        self.nodes[node] = Some(driver);
    }

    fn input(&mut self, node: usize, input: Input<'_>) {
        let now = self.now();
        let driver = self.nodes[node].as_mut().expect("up");
        driver.input(now, input, &mut self.events[node]).expect("no disk error");
    }

    fn until(&mut self, limit: Duration, done: impl Fn(&Flock) -> bool) -> Duration {
        let from = Instant::now();
        let mut events = Events::with_capacity(64);
        while !done(self) {
            assert!(from.elapsed() < limit, "not within {limit:?}");
            let deadline = self.nodes.iter().flatten().filter_map(Driver::next_deadline).min();
            let wait = deadline.unwrap_or(u64::MAX).saturating_sub(self.now()).min(50_000);
            self.poll.poll(&mut events, Some(Duration::from_micros(wait))).expect("polls");
            let ready: Vec<usize> = events.iter().map(|e| e.token().0).collect();
            let now = self.now();
            for (index, node) in self.nodes.iter_mut().enumerate() {
                let Some(driver) = node else { continue };
                if ready.contains(&index) {
                    driver.readable(now, &mut self.events[index]).expect("no disk error");
                }
                if driver.next_deadline().is_some_and(|at| at <= now) {
                    driver.timer(now, &mut self.events[index]).expect("no disk error");
                }
            }
        }
        from.elapsed()
    }

    fn live(&self, node: usize) -> usize {
        let driver = self.nodes[node].as_ref().expect("up");
        1 + driver.gossip().members().filter(|m| m.state.is_live()).count()
    }

    fn agreed(&self) -> bool {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_some()).collect();
        up.iter().all(|n| self.live(*n) == up.len())
    }

    fn body(&self, node: usize, key: &str) -> Option<Vec<u8>> {
        let record = self.nodes[node].as_ref()?.gossip().get(key)?;
        record.body.as_ref().map(|b| b.to_vec())
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn five_drivers_live_and_one_dies() {
    let mut flock = Flock::new("five");
    for node in 0..5 {
        let cfg = flock.config(node, node % 2 == 0);
        flock.open(node, cfg);
    }
    flock.until(LONG, Flock::agreed);

    let put = Input::Put { key: "s/default/web", body: b"one".to_vec(), expect: Expect::Any };
    flock.input(3, put);
    flock.until(LONG, |f| {
        (0..5).all(|n| f.body(n, "s/default/web").as_deref() == Some(&b"one"[..]))
    });
    let durable = |e: &Event| matches!(e, Event::Durable { key, .. } if key == "s/default/web");
    flock.until(LONG, |f| f.events[3].iter().any(durable));
    flock.input(1, Input::Delete { key: "s/default/web" });
    flock.until(LONG, |f| (0..5).all(|n| f.body(n, "s/default/web").is_none()));

    flock.input(0, Input::Unicast { to: "n4", payload: b"offer".to_vec() });
    let offer = Event::Unicast { from: "n0".to_owned(), payload: b"offer".to_vec() };
    flock.until(LONG, |f| f.events[4].contains(&offer));

    flock.nodes[2] = None;
    let dead = |f: &Flock| {
        [0, 1, 3, 4].iter().all(|n| {
            let driver = f.nodes[*n].as_ref().expect("up");
            driver.gossip().member("n2").is_some_and(|m| m.state == State::Dead)
        })
    };
    let took = flock.until(LONG, dead);
    println!("death known everywhere after {took:?}");

    // The same name again, from the same directory, at another port.
    let cfg = flock.config(2, true);
    flock.open(2, cfg);
    flock.until(LONG, Flock::agreed);
    let back = flock.nodes[0].as_ref().and_then(|d| d.gossip().member("n2")).expect("listed");
    assert_eq!(back.generation, 2);
}

#[test]
fn a_flock_that_went_dark_finds_itself_from_its_disks() {
    let mut flock = Flock::new("dark");
    for node in 0..3 {
        let cfg = flock.config(node, true);
        flock.open(node, cfg);
    }
    flock.until(LONG, Flock::agreed);
    let body = vec![9u8; 12_000];
    flock.input(1, Input::Put { key: "i/app", body: body.clone(), expect: Expect::Absent });
    flock.until(LONG, |f| (0..3).all(|n| f.body(n, "i/app").is_some()));
    let durable = |e: &Event| matches!(e, Event::Durable { key, .. } if key == "i/app");
    flock.until(LONG, |f| f.events[1].iter().any(durable));
    let ports: Vec<SocketAddr> = (0..3).filter_map(|n| flock.addr(n)).collect();
    for node in &mut flock.nodes {
        node.as_mut().expect("up").flush().expect("durable");
        *node = None;
    }
    for (node, addr) in ports.iter().enumerate() {
        // No seeds: the roster on disk has to do.
        let mut cfg = flock.config(node, true);
        cfg.gossip.seeds.clear();
        cfg.bind = *addr;
        flock.open(node, cfg);
        assert_eq!(flock.body(node, "i/app").as_ref(), Some(&body));
    }
    flock.until(LONG, Flock::agreed);
    let root = flock.nodes[0].as_ref().map(|d| d.gossip().root());
    assert!(flock.nodes.iter().all(|d| d.as_ref().map(|d| d.gossip().root()) == root));
}

#[test]
fn a_log_that_has_grown_is_rewritten_and_holds_the_last() {
    let mut flock = Flock::new("grown");
    let cfg = flock.config(0, true);
    flock.open(0, cfg);
    let body = |i: usize| vec![i as u8; 16_000];
    for i in 0..300 {
        let key = format!("s/default/app-{}", i % 10);
        flock.input(0, Input::Put { key: &key, body: body(i), expect: Expect::Any });
    }
    let last = |e: &Event| matches!(e, Event::Durable { version, .. } if version.rev == 30);
    flock.until(LONG, |f| f.events[0].iter().filter(|e| last(e)).count() == 10);
    flock.nodes[0] = None;
    let log = std::fs::metadata(flock.dir.join("n0/log")).expect("it is there").len();
    assert!(log < 3_000_000, "4.8 MB were written, {log} bytes are kept");
    let cfg = flock.config(0, true);
    flock.open(0, cfg);
    for i in 290..300 {
        assert_eq!(flock.body(0, &format!("s/default/app-{}", i % 10)), Some(body(i)));
    }
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    let flock = Flock::new("refused");
    let mut cfg = flock.config(0, true);
    cfg.name = "Node".to_owned();
    let error = Driver::open(cfg, 0).expect_err("a capital letter").to_string();
    assert!(error.contains("a-z"), "{error}");
    let mut cfg = flock.config(0, false);
    cfg.bind = "0.0.0.0:0".parse().expect("an address");
    assert!(Driver::open(cfg, 0).is_err(), "nobody can reach a wildcard");
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let mut cfg = flock.config(0, false);
    cfg.bind = taken.local_addr().expect("has one");
    let error = Driver::open(cfg, 0).expect_err("in use").to_string();
    assert!(error.starts_with("bind on UDP 127.0.0.1"), "{error}");
}

/// A file system of its own at a directory, for this thread's eyes only.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(dir: &Path, options: &str) -> Option<SmallDisk> {
        if !nix::unistd::geteuid().is_root() {
            skip::because("a disk of its own", "not root");
            return None;
        }
        std::fs::create_dir_all(dir).expect("makes it");
        let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        mount(none, "/", none, private, none).expect("private");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("mounts");
        Some(SmallDisk(dir.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The kernel's own ENOSPC: said, gossip goes on and promises nothing; a minute after there is room, all of it is on disk.
#[test]
fn a_disk_that_fills_up_is_told_of_and_caught_up_with() {
    let mut flock = Flock::new("full");
    let dir = flock.dir.clone();
    let Some(_disk) = SmallDisk::mount(&dir, "size=480k") else { return };
    let cfg = flock.config(0, true);
    flock.open(0, cfg);
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 352 << 10]).expect("there is room");
    let mut driver = flock.nodes[0].take().expect("up");
    let driver = &mut driver;
    let (poll, mut events) = (&mut flock.poll, Vec::new());
    let put = |driver: &mut Driver, events: &mut Vec<Event>, n: usize, now_us: u64| {
        let (key, body) = (format!("s/default/app-{n}"), vec![n as u8; 12_000]);
        driver.input(now_us, Input::Put { key: &key, body, expect: Expect::Any }, events)
    };
    // Until it is told, from whatever turn.
    let mut wait = |driver: &mut Driver, events: &mut Vec<Event>, now_us: u64| {
        let mut ready = Events::with_capacity(8);
        poll.poll(&mut ready, Some(LONG)).expect("polls");
        driver.readable(now_us, events)
    };
    let mut told = Ok(());
    for n in 0..12 {
        told = told.and(put(driver, &mut events, n, 1_000_000));
    }
    while told.is_ok() {
        told = wait(driver, &mut events, 2_000_000);
    }
    let error = told.expect_err("it is full").to_string();
    assert!(error.contains("write") && error.contains("No space left"), "{error}");
    let durable =
        |events: &[Event]| events.iter().filter(|e| matches!(e, Event::Durable { .. })).count();
    let before = durable(&events);
    assert!(before < 12, "what found no room is not promised");
    assert!(driver.gossip().get("s/default/app-11").is_some(), "it goes on without");
    put(driver, &mut events, 12, 3_000_000).expect("said once");

    // Still full a minute later: told again, and the half of a new log is gone.
    driver.timer(4_000_000, &mut events).expect("not yet due");
    let mut told = driver.timer(64_000_000, &mut events);
    while told.is_ok() {
        told = wait(driver, &mut events, 64_100_000);
    }
    assert!(!dir.join("n0/log.new").exists(), "it would take what room there is");
    assert_eq!(durable(&events), before);

    std::fs::remove_file(&ballast).expect("room again");
    driver.timer(130_000_000, &mut events).expect("no failure");
    while !events.contains(&Event::LogRestored) || durable(&events) < 13 {
        wait(driver, &mut events, 130_100_000).expect("no failure");
    }
    driver.flush().expect("nothing is left to do");
    let mut cfg = flock.config(0, true);
    cfg.dir = Some(dir.join("copy"));
    std::fs::create_dir(dir.join("copy")).expect("there is room");
    for file in ["log", "generation"] {
        let (from, to) = (dir.join("n0").join(file), dir.join("copy").join(file));
        std::fs::copy(from, to).expect("there is room");
    }
    flock.open(0, cfg);
    for n in 0..=12 {
        let key = format!("s/default/app-{n}");
        assert_eq!(flock.body(0, &key), Some(vec![n as u8; 12_000]), "{key}");
    }
}

#[test]
fn a_read_only_disk_and_one_in_use_are_refused_by_name() {
    let mut flock = Flock::new("refuses");
    let cfg = flock.config(0, true);
    flock.open(0, cfg.clone());
    let error = Driver::open(cfg, 0).expect_err("one at a time").to_string();
    assert!(error.contains("n0 is in use by another process"), "{error}");
    let Some(_disk) = SmallDisk::mount(&flock.dir.join("ro"), "ro,size=64k") else { return };
    let mut cfg = flock.config(0, true);
    cfg.dir = Some(flock.dir.join("ro/gossip"));
    let error = Driver::open(cfg, 0).expect_err("nothing can be remembered").to_string();
    assert!(error.starts_with("create directory ") && error.contains("Read-only"), "{error}");
}

/// Places that no datagram can be sent to are so many lost datagrams.
#[test]
fn what_the_kernel_does_not_send_is_counted() {
    let mut flock = Flock::new("unsent");
    for node in 0..2 {
        let mut cfg = flock.config(node, false);
        // Of another family; a broadcast (EACCES); no port.
        let nowhere = ["[2001:db8::1]:9", "255.255.255.255:9", "127.0.0.1:0"];
        cfg.gossip.seeds.extend(nowhere.map(|addr| addr.parse::<SocketAddr>().expect("one")));
        flock.open(node, cfg);
    }
    flock.until(LONG, |f| {
        let unsent = |n: usize| f.nodes[n].as_ref().map_or(0, |d| d.stats().unsent);
        f.agreed() && unsent(0) >= 3 && unsent(1) >= 3
    });
}

/// A flood: a bounded number of datagrams in one turn, the rest at once after what else is due.
#[test]
fn a_flood_is_taken_in_by_turns() {
    const TURN: u64 = 512;
    let mut flock = Flock::new("flood");
    let cfg = flock.config(0, false);
    flock.open(0, cfg);
    let addr = flock.addr(0).expect("bound");
    let sender = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    for _ in 0..520 {
        sender.send_to(&[1; 40], addr).expect("loopback takes it");
    }
    let now = flock.now();
    let driver = flock.nodes[0].as_mut().expect("up");
    let (before, mut events) = (driver.stats().received, Vec::new());
    driver.readable(now, &mut events).expect("no disk");
    assert_eq!(driver.stats().received - before, TURN);
    assert_eq!(driver.next_deadline(), Some(0), "there is more, and its edge will not come again");
    let mut turns = 1;
    while driver.next_deadline() == Some(0) {
        driver.timer(now, &mut events).expect("no disk");
        turns += 1;
        assert!(turns < 10, "the kernel holds no more than was sent");
    }
    assert_eq!((driver.stats().received - before, turns), (520, 2));
    assert_eq!(driver.gossip().stats().accepted, 0);
}

/// Two machines of one image, started in the same instant: their frames never share a nonce.
#[test]
fn clones_draw_their_own_boot_ids() {
    let mut flock = Flock::new("clones");
    let listener = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    listener.set_read_timeout(Some(LONG)).expect("sets");
    let seed = listener.local_addr().expect("bound");
    let mut nonces = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let mut cfg = flock.config(0, true);
        cfg.gossip.seeds = vec![seed];
        let _ = std::fs::remove_dir_all(&flock.dir);
        let mut driver = Driver::open(cfg, 1).expect("opens");
        driver.timer(1, &mut Vec::new()).expect("starts");
        let mut bytes = [0; 2000];
        let (len, from) = listener.recv_from(&mut bytes).expect("it greets");
        assert_eq!((from, len > 30), (driver.local_addr(), true));
        nonces.insert(bytes[2..9].to_vec());
    }
    assert_eq!(nonces.len(), 8);
    flock.nodes.clear();
}
