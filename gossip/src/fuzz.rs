//! What a fuzzer calls: plain functions over bytes, one per boundary. They panic if an invariant breaks.

use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use crate::api::{Input, Output};
use crate::config::{Config, Profile};
use crate::core::Gossip;
use crate::frame::{Binding, KeyRing, SecretKey};
use crate::member::{Identity, Nid};

/// A node with a peer, a record and a clock.
#[derive(Debug)]
pub struct Target {
    gossip: Gossip,
    rng: Xoshiro256PlusPlus,
    keys: KeyRing,
    now_us: u64,
    counter: u64,
}

const ME: &str = "me";
const PEER: &str = "peer";

impl Default for Target {
    fn default() -> Target {
        let keys = KeyRing::new(&SecretKey::new(1, [5; 32]));
        let me = Identity { name: ME.into(), generation: 3, addr: addr(1) };
        let cfg = Config::new(keys.clone(), Profile::Lan);
        let gossip = Gossip::new(cfg, me).expect("the name is valid");
        let rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut target = Target { gossip, rng, keys, now_us: 1, counter: 0 };
        target.step(Input::Timer);
        let body = vec![1; 3000];
        target.step(Input::Put { key: "s/a", body, expect: Default::default() });
        target
    }
}

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Target {
    fn step(&mut self, input: Input<'_>) -> Vec<Output> {
        let mut out = Vec::new();
        self.gossip.step(self.now_us, 1_000_000, input, &mut self.rng, &mut out);
        out
    }

    /// Anything at all from a stranger: silence, and nothing changes.
    pub fn datagram(&mut self, bytes: &[u8]) {
        let before = self.summary();
        let out = self.step(Input::Datagram { from: addr(2), bytes });
        assert!(out.is_empty(), "a stranger was answered");
        assert_eq!(self.summary(), before, "a stranger changed something");
    }

    /// Anything at all from a peer that holds the key, and half a second to digest it.
    pub fn content(&mut self, bytes: &[u8]) {
        let mut plain = Nid::of(PEER).0.to_le_bytes().to_vec();
        plain.push(9);
        plain.extend_from_slice(bytes);
        self.counter += 1;
        let generation = self.gossip.me().generation;
        let bound = Binding::To { nid: Nid::of(ME), generation };
        let to = if self.counter.is_multiple_of(16) { Binding::Open } else { bound };
        let frame = self.keys.seal(to, 77, self.counter, &plain);
        self.step(Input::Datagram { from: addr(2), bytes: &frame });
        let end_us = self.now_us + 500_000;
        while let Some(at_us) = self.gossip.next_deadline().filter(|at| *at <= end_us) {
            self.now_us = self.now_us.max(at_us);
            self.step(Input::Timer);
        }
        self.now_us = end_us;
        assert!(self.gossip.get("s/a").is_some() || self.gossip.version("s/a").is_some());
    }

    fn summary(&self) -> (u32, u64, usize) {
        (self.gossip.view(), self.gossip.root(), self.gossip.members().count())
    }
}

/// A log with anything in it: loaded or refused, never a panic, and what is loaded has been checked.
pub fn log(bytes: &[u8]) {
    if let Ok(restored) = crate::disk::load_bytes(bytes, ME) {
        for record in restored.records {
            crate::map::check_key(&record.key).expect("checked while loading");
        }
    }
}
