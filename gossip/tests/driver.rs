//! Real sockets on 127.0.0.1 and real logs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use gossip::driver::{Driver, DriverConfig};
use gossip::{Config, Event, Expect, Input, KeyRing, Profile, SecretKey, State};
use mio::{Events, Poll, Token};

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
