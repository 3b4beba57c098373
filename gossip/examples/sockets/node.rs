//! One process of the flock: says when it learnt what, does what it is told.
//!
//! Lines out are `WORD MICROSECONDS REST` on the clock that all processes of a machine share.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use gossip::driver::{Driver, DriverConfig};
use gossip::{Config, Event, Expect, Input, KeyRing, Profile, SecretKey, State};
use mio::{Events, Interest, Poll, Token};
use nix::time::{ClockId, clock_gettime};

use crate::story::{self, BODY};

/// Microseconds of `CLOCK_MONOTONIC`.
pub(crate) fn clock_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has it");
    now.tv_sec() as u64 * 1_000_000 + now.tv_nsec() as u64 / 1000
}

struct Node {
    driver: Driver,
    live: usize,
}

/// Opens its socket and says so, and starts when the first line comes. `cold`: it opens its socket only then.
pub(crate) fn run(index: usize, seed: SocketAddr, cold: bool) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().expect("a pipe");
    let mut told = BufReader::new(File::from(stdin));
    let mut wait = || {
        say("open", clock_us(), "");
        told.read_line(&mut String::new()).expect("a pipe");
    };
    if cold {
        wait();
    }
    let bind = if index == 0 { seed } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
    let mut gossip = Config::new(KeyRing::new(&SecretKey::new(1, [1; 32])), Profile::Lan);
    gossip.seeds = vec![seed];
    let cfg = DriverConfig { name: story::name(index), bind, advertise: None, dir: None, gossip };
    let driver = Driver::open(cfg, clock_us()).expect("opens");
    if !cold {
        wait();
    }
    say("start", clock_us(), "");
    Node { driver, live: 0 }.serve(&mut told);
}

impl Node {
    fn serve(&mut self, told: &mut BufReader<File>) {
        let mut poll = Poll::new().expect("epoll");
        self.driver.register(poll.registry(), Token(0)).expect("registers");
        let mut stdin = mio::unix::SourceFd(&0);
        poll.registry().register(&mut stdin, Token(1), Interest::READABLE).expect("a pipe");
        let mut ready = Events::with_capacity(16);
        loop {
            let due_us = self.driver.next_deadline().unwrap_or(u64::MAX);
            let wait_us = due_us.saturating_sub(clock_us()).min(1_000_000);
            poll.poll(&mut ready, Some(Duration::from_micros(wait_us))).expect("polls");
            let (now_us, mut events) = (clock_us(), Vec::new());
            if ready.iter().any(|event| event.token() == Token(0)) {
                self.driver.readable(now_us, &mut events).expect("diskless");
            }
            if ready.iter().any(|event| event.token() == Token(1)) {
                if !self.obey(told, &mut events) {
                    return;
                }
                while !told.buffer().is_empty() && self.obey(told, &mut events) {}
            }
            if self.driver.next_deadline().is_some_and(|at| at <= now_us) {
                self.driver.timer(now_us, &mut events).expect("diskless");
            }
            self.tell(&events);
        }
    }

    /// One line of the parent; `false` at the end.
    fn obey(&mut self, told: &mut BufReader<File>, events: &mut Vec<Event>) -> bool {
        let mut line = String::new();
        told.read_line(&mut line).expect("a pipe");
        let now_us = clock_us();
        match line.trim().split_once(' ') {
            Some(("put", key)) => {
                say("put", now_us, key);
                let input = Input::Put { key, body: BODY.to_vec(), expect: Expect::Any };
                self.driver.input(now_us, input, events).expect("diskless");
            }
            _ if line.trim() == "stat" => {
                // A round trip is two ways through the kernel, and the peer's waking up and answering.
                let members = self.driver.gossip().members();
                let rtts = members.filter(|m| m.rtt_us > 0).map(|m| m.rtt_us.to_string());
                say("rtt", now_us, &rtts.collect::<Vec<_>>().join(" "));
                say("sent", now_us, &self.driver.stats().sent_bytes.to_string());
            }
            _ => return false,
        }
        true
    }

    fn tell(&mut self, events: &[Event]) {
        let now_us = clock_us();
        for event in events {
            match event {
                Event::Member(m) if m.state == State::Dead => say("dead", now_us, &m.name),
                Event::Changed(r) => say("has", now_us, &r.key),
                _ => {}
            }
        }
        let live = 1 + self.driver.gossip().members().filter(|m| m.state.is_live()).count();
        if std::mem::replace(&mut self.live, live) != live {
            say("live", now_us, &live.to_string());
        }
    }
}

fn say(word: &str, at_us: u64, rest: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{word} {at_us} {rest}").and_then(|()| out.flush()).expect("the parent listens");
}
