//! The story of `figures/twin.rs` over real sockets: one process per node on 127.0.0.1, medians as JSON lines.
//!
//! `cargo xtask bench gossip --only sockets` compares the two. By hand:
//! `cargo run --profile sim -p gossip --example sockets [-- NODES]`

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use gossip::driver::{Driver, DriverConfig};
use gossip::{Config, Event, Expect, Input, KeyRing, Profile, SecretKey, State};
use mio::{Events, Interest, Poll, Token};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("node") => node(&args[2], &args[3], args[4] == "cold"),
        count => parent(count.and_then(|c| c.parse().ok()).unwrap_or(50)),
    }
}

const UPDATES: usize = 9;
const CRASHES: usize = 5;
const JOINS: usize = 5;

/// A node: opens its socket and says so, starts when the first line comes, prints what it learns, puts what it is told
/// on stdin. `cold`: it opens its socket only then.
fn node(index: &str, seed: &str, cold: bool) {
    let wait = || {
        println!("open");
        std::io::stdin().read_line(&mut String::new()).expect("a pipe");
    };
    if cold {
        wait();
    }
    let seed: SocketAddr = seed.parse().expect("an address");
    let bind = if index == "0" { seed } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
    let mut gossip = Config::new(KeyRing::new(&SecretKey::new(1, [1; 32])), Profile::Lan);
    gossip.seeds = vec![seed];
    let name = format!("n{index}");
    let cfg = DriverConfig { name, bind, advertise: None, dir: None, gossip };
    let mut driver = Driver::open(cfg, 0).expect("opens");
    if !cold {
        wait();
    }
    let start = Instant::now();
    let mut poll = Poll::new().expect("epoll");
    driver.register(poll.registry(), Token(0)).expect("registers");
    let mut stdin = mio::unix::SourceFd(&0);
    poll.registry().register(&mut stdin, Token(1), Interest::READABLE).expect("a pipe");
    let mut ready = Events::with_capacity(16);
    let mut live = 0;
    let mut last = Instant::now();
    loop {
        let mut events = Vec::new();
        let now = start.elapsed().as_micros() as u64;
        let wait = driver.next_deadline().unwrap_or(u64::MAX).saturating_sub(now).min(1_000_000);
        poll.poll(&mut ready, Some(Duration::from_micros(wait))).expect("polls");
        let now = start.elapsed().as_micros() as u64;
        for event in &ready {
            if event.token() == Token(0) {
                driver.readable(now, &mut events).expect("diskless");
            } else {
                let mut line = String::new();
                std::io::stdin().read_line(&mut line).expect("a pipe");
                match line.trim() {
                    "" => return,
                    key => {
                        let input = Input::Put { key, body: vec![1; 700], expect: Expect::Any };
                        driver.input(now, input, &mut events).expect("diskless");
                    }
                }
            }
        }
        if driver.next_deadline().is_some_and(|at| at <= now) {
            driver.timer(now, &mut events).expect("diskless");
        }
        let mut out = std::io::stdout().lock();
        for event in events {
            let said = match event {
                Event::Member(m) if m.state == State::Dead => writeln!(out, "dead {}", m.name),
                Event::Changed(r) => writeln!(out, "has {}", r.key),
                _ => Ok(()),
            };
            said.expect("the parent listens");
        }
        let now_live = 1 + driver.gossip().members().filter(|m| m.state.is_live()).count();
        if now_live != live {
            live = now_live;
            writeln!(out, "live {live}").expect("the parent listens");
        }
        if last.elapsed() > Duration::from_secs(1) {
            last = Instant::now();
            writeln!(out, "sent {}", driver.stats().sent_bytes).expect("the parent listens");
        }
        out.flush().expect("the parent listens");
    }
}

struct Parent {
    children: Vec<Child>,
    said: Receiver<(usize, String)>,
    latest: BTreeMap<(usize, String), String>,
}

impl Parent {
    /// So many processes that are ready to start.
    fn open(count: usize, how: &str) -> Parent {
        // A free port for the seed: bound, named, and let go.
        let seed = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("loopback");
        let (tell, said) = channel();
        let mut parent = Parent { children: Vec::new(), said, latest: BTreeMap::new() };
        let exe = std::env::current_exe().expect("our path");
        for index in 0..count {
            let mut child = Command::new(&exe)
                .args(["node", &index.to_string(), &seed.to_string(), how])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("starts");
            let stdout = child.stdout.take().expect("piped");
            let tell = tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if tell.send((index, line)).is_err() {
                        return;
                    }
                }
            });
            parent.children.push(child);
        }
        let all: Vec<usize> = (0..count).collect();
        parent.until("open", "", &all);
        parent
    }

    /// From the word to start until everybody knows everybody, seconds.
    fn join(&mut self, all: &[usize]) -> f64 {
        let start = Instant::now();
        all.iter().for_each(|n| self.tell(*n, "go"));
        self.until("live", &all.len().to_string(), all);
        start.elapsed().as_secs_f64()
    }

    fn until(&mut self, what: &str, value: &str, who: &[usize]) -> f64 {
        let start = Instant::now();
        let done = |p: &Parent| {
            who.iter().all(|n| p.latest.get(&(*n, what.to_owned())).is_some_and(|v| v == value))
        };
        while !done(self) {
            let (node, line) = self.said.recv_timeout(Duration::from_secs(30)).expect("in time");
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            self.latest.insert((node, word.to_owned()), rest.to_owned());
        }
        start.elapsed().as_secs_f64()
    }

    fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok((node, line)) =
            self.said.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            if word == "dead" {
                eprintln!("n{node} buries {rest}");
            }
            self.latest.insert((node, word.to_owned()), rest.to_owned());
        }
    }

    fn tell(&mut self, node: usize, line: &str) {
        let stdin = self.children[node].stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("it listens");
    }

    /// Seconds that all children were ready to run and did not (proc_pid_schedstat(5), the second number).
    fn waited_s(&self) -> f64 {
        let waited = |child: &Child| {
            let text = std::fs::read_to_string(format!("/proc/{}/schedstat", child.id())).ok()?;
            text.split_ascii_whitespace().nth(1)?.parse::<f64>().ok()
        };
        self.children.iter().filter_map(waited).sum::<f64>() / 1e9
    }

    fn sent(&self, who: &[usize]) -> f64 {
        let sent = |n: &usize| self.latest.get(&(*n, "sent".to_owned()))?.parse::<f64>().ok();
        who.iter().filter_map(sent).sum::<f64>() / who.len() as f64
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Datagrams of this machine that nobody took: no such port, or a full buffer (proc_net_snmp, Udp).
fn refused() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
    let pairs = names.split(' ').zip(values.split(' '));
    let lost = pairs.filter(|(name, _)| ["NoPorts", "RcvbufErrors"].contains(name));
    lost.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
}

fn parent(count: usize) {
    let all: Vec<usize> = (0..count).collect();
    // As processes start: whoever is faster than the seed greets a port where nobody listens yet. The simulator has no
    // such time, so this is told and not compared.
    let joins = (0..JOINS).map(|_| Parent::open(count, "cold").join(&all));
    say("cold_join", count, median(joins.collect()), "s");
    let before = refused();
    let joins = (0..JOINS).map(|_| Parent::open(count, "open").join(&all));
    say("join", count, median(joins.collect()), "s");
    say("join_refused", count, (refused() - before) as f64 / JOINS as f64, "datagrams");

    let mut parent = Parent::open(count, "open");
    let start = Instant::now();
    parent.join(&all);
    parent.rest(Duration::from_secs(5));

    let updates = (0..UPDATES).map(|round| {
        parent.tell(round % count, &format!("s/default/app-{round}"));
        let took = parent.until("has", &format!("s/default/app-{round}"), &all);
        parent.rest(Duration::from_secs(1));
        took
    });
    let updates = updates.collect();
    say("update", count, median(updates), "s");

    parent.rest(Duration::from_secs(4));
    let (from, before) = (Instant::now(), parent.sent(&all));
    parent.rest(Duration::from_secs(20));
    let rate = (parent.sent(&all) - before) / from.elapsed().as_secs_f64();
    say("idle", count, rate, "B/s/node");

    // While the machine lets them: what a node waited for a CPU that others had.
    let waited = parent.waited_s();
    let mut crashes = Vec::new();
    for victim in 1..=CRASHES {
        parent.children[victim].kill().expect("it lives");
        let left: Vec<usize> = all.iter().copied().filter(|n| *n == 0 || *n > victim).collect();
        crashes.push(parent.until("dead", &format!("n{victim}"), &left));
        parent.rest(Duration::from_secs(3));
    }
    say("crash", count, median(crashes), "s");
    let share = waited / start.elapsed().as_secs_f64() / count as f64;
    say("waited_for_cpu", count, share * 100.0, "%");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn say(metric: &str, nodes: usize, value: f64, unit: &str) {
    println!(
        "{{\"metric\":\"sockets_real_{metric}_{nodes}\",\"who\":\"quelea\",\"value\":{value:.3},\"unit\":\"{unit}\"}}"
    );
}
