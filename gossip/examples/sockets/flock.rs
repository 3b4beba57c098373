//! The parent of the processes: starts them, tells them what to do, and reads on their own clocks when they learnt what.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::node::clock_us;
use crate::story::{self, PATIENCE_S, Samples};

pub(crate) struct Flock {
    children: Vec<Child>,
    said: Receiver<(usize, String)>,
    /// When a node said something first; by node, word and the rest of the line.
    first_us: BTreeMap<(usize, String, String), u64>,
    /// What it said last under a word.
    last: BTreeMap<(usize, String), (u64, String)>,
}

/// How a flock came together.
pub(crate) struct Joined {
    /// From the first node's start to the moment at which the last node knew all.
    pub(crate) took_s: f64,
    /// When each started after the first, microseconds.
    pub(crate) starts_us: Vec<u64>,
    /// Processor time a node took, and waited for, from its program's start.
    pub(crate) ran_s: f64,
    pub(crate) waited_s: f64,
}

impl Flock {
    /// So many processes that are ready to start.
    pub(crate) fn open(count: usize, cold: bool) -> Flock {
        // A free port for the seed: bound, named, and let go.
        let seed = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.local_addr()).expect("loopback");
        let (tell, said) = channel();
        let (first_us, last) = (BTreeMap::new(), BTreeMap::new());
        let mut flock = Flock { children: Vec::new(), said, first_us, last };
        let exe = std::env::current_exe().expect("our path");
        for index in 0..count {
            let mut child = Command::new(&exe)
                .args(["node", &index.to_string(), &seed.to_string()])
                .args(cold.then_some("cold"))
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
            flock.children.push(child);
        }
        let all: Vec<usize> = (0..count).collect();
        flock.until("open", "", &all);
        flock
    }

    pub(crate) fn join(&mut self) -> Joined {
        let all: Vec<usize> = (0..self.children.len()).collect();
        all.iter().for_each(|n| self.tell(*n, "go"));
        let known_us = self.until("live", &all.len().to_string(), &all);
        let at = |n: &usize| self.first_us[&(*n, "start".to_owned(), String::new())];
        let starts: Vec<u64> = all.iter().map(at).collect();
        let first_us = starts.iter().copied().min().unwrap_or(0);
        Joined {
            took_s: seconds(known_us - first_us),
            starts_us: starts.into_iter().map(|at| at - first_us).collect(),
            ran_s: self.schedstat_s(0),
            waited_s: self.schedstat_s(1),
        }
    }

    /// What comes after the join.
    pub(crate) fn live_on(&mut self, samples: &mut Samples) {
        let all: Vec<usize> = (0..self.children.len()).collect();
        self.rest(story::REST_S);
        for round in 0..story::UPDATES {
            let (writer, key) = (round % all.len(), story::key(round));
            self.tell(writer, &format!("put {key}"));
            let known_us = self.until("has", &key, &all);
            let put_us = self.first_us[&(writer, "put".to_owned(), key)];
            samples.update_s.push(seconds(known_us - put_us));
            self.rest(story::BETWEEN_UPDATES_S);
        }
        self.rest(story::SETTLE_S);
        let before = self.sent();
        self.rest(story::IDLE_S);
        let rates = self.sent().into_iter().zip(before).map(|((at_us, bytes), (from_us, had))| {
            (bytes - had) as f64 / seconds(at_us - from_us)
        });
        samples.idle_rate.push(rates.sum::<f64>() / all.len() as f64);
        for victim in 1..=story::CRASHES {
            let killed_us = clock_us();
            self.children[victim].kill().expect("it lives");
            let left: Vec<usize> = all.iter().copied().filter(|n| *n == 0 || *n > victim).collect();
            let known_us = self.until("dead", &story::name(victim), &left);
            samples.crash_s.push(seconds(known_us - killed_us));
            self.rest(story::BETWEEN_CRASHES_S);
        }
    }

    /// Half of each round trip that the nodes' probes took, microseconds.
    pub(crate) fn latencies_us(&mut self) -> Vec<u64> {
        self.sent();
        let rtts = self.last.iter().filter(|((_, word), _)| word == "rtt");
        let rtts = rtts.flat_map(|(_, (_, list))| list.split(' '));
        rtts.filter_map(|rtt| rtt.parse::<u64>().ok()).map(|rtt| (rtt / 2).max(1)).collect()
    }

    /// When, and how many bytes each node had sent.
    fn sent(&mut self) -> Vec<(u64, u64)> {
        let all: Vec<usize> = (0..self.children.len()).collect();
        let running: Vec<usize> =
            all.into_iter().filter(|n| matches!(self.children[*n].try_wait(), Ok(None))).collect();
        let word = |n: usize| (n, "sent".to_owned());
        for node in &running {
            self.last.remove(&word(*node));
            self.tell(*node, "stat");
        }
        while running.iter().any(|n| !self.last.contains_key(&word(*n))) {
            self.hear(Duration::from_secs(PATIENCE_S));
        }
        let sent = running.iter().map(|n| &self.last[&word(*n)]);
        sent.map(|(at_us, bytes)| (*at_us, bytes.parse().expect("a number"))).collect()
    }

    /// Waits until all have said so; when the last of them did.
    fn until(&mut self, word: &str, rest: &str, who: &[usize]) -> u64 {
        loop {
            let said = who.iter().map(|n| (*n, word.to_owned(), rest.to_owned()));
            let when: Option<Vec<u64>> = said.map(|key| self.first_us.get(&key).copied()).collect();
            if let Some(last_us) = when.and_then(|when| when.into_iter().max()) {
                return last_us;
            }
            assert!(self.hear(Duration::from_secs(PATIENCE_S)), "{word} {rest}: never by all");
        }
    }

    pub(crate) fn rest(&mut self, time_s: u64) {
        let end = Instant::now() + Duration::from_secs(time_s);
        while self.hear(end.saturating_duration_since(Instant::now())) {}
    }

    /// One line of a child; `false`: none came in time.
    fn hear(&mut self, patience: Duration) -> bool {
        let Ok((node, line)) = self.said.recv_timeout(patience) else { return false };
        let mut words = line.splitn(3, ' ');
        let word = words.next().unwrap_or("").to_owned();
        let at_us = words.next().and_then(|at| at.parse().ok()).expect("a time");
        let rest = words.next().unwrap_or("").to_owned();
        self.last.insert((node, word.clone()), (at_us, rest.clone()));
        self.first_us.entry((node, word, rest)).or_insert(at_us);
        true
    }

    fn tell(&mut self, node: usize, line: &str) {
        let stdin = self.children[node].stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").expect("it listens");
    }

    /// A number of proc_pid_schedstat(5), nanoseconds, as seconds a child: 0 that it ran, 1 that it could have and did not.
    fn schedstat_s(&self, column: usize) -> f64 {
        let number = |child: &Child| {
            let text = std::fs::read_to_string(format!("/proc/{}/schedstat", child.id())).ok()?;
            text.split_ascii_whitespace().nth(column)?.parse::<f64>().ok()
        };
        let all: Vec<f64> = self.children.iter().filter_map(number).collect();
        all.iter().sum::<f64>() / 1e9 / all.len().max(1) as f64
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn seconds(time_us: u64) -> f64 {
    time_us as f64 / 1e6
}
