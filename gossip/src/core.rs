//! The composed core.

use std::net::SocketAddr;

use rand::Rng;

use crate::api::{Input, Output};
use crate::config::Config;
use crate::error::Error;
use crate::map::{Record, Rev};
use crate::member::{Identity, Member, MemberInfo};

/// Knowledge of one node: members, map and frames, without IO.
#[derive(Debug)]
pub struct Gossip {
    _me: Identity,
}

/// What a node remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// Records, tombstones too.
    pub records: Vec<Record>,
    /// Members at the time.
    pub roster: Vec<MemberInfo>,
}

impl Gossip {
    /// A node that knows nobody. Nothing is sent before the first [`Gossip::step`].
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn new(cfg: Config, me: Identity, now_us: u64) -> Result<Gossip, Error> {
        let _ = (cfg, now_us);
        Ok(Gossip { _me: me })
    }

    /// Takes back what was on disk; before the first step.
    pub fn restore(&mut self, now_us: u64, wall_ms: u64, restored: Restored) {
        let _ = (now_us, wall_ms, restored);
    }

    /// One event in, any number of outputs out (appended).
    pub fn step(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        input: Input<'_>,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let _ = (now_us, wall_ms, input, rng, out);
    }

    /// When [`Input::Timer`] is due next, if ever.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// All members but this node, forgotten ones excluded, in an order that is stable.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        [].iter()
    }

    /// One member by name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        let _ = name;
        None
    }

    /// This node as a member.
    pub fn me(&self) -> &Member {
        unreachable!()
    }

    /// A record, unless absent or deleted.
    pub fn get(&self, key: &str) -> Option<&Record> {
        let _ = key;
        None
    }

    /// The version of a key, of a tombstone too.
    pub fn version(&self, key: &str) -> Option<Rev> {
        let _ = key;
        None
    }

    /// Records whose keys start with a prefix, in key order, without tombstones.
    pub fn range(&self, prefix: &str) -> impl Iterator<Item = &Record> {
        let _ = prefix;
        [].iter()
    }

    /// Summary of the whole map: equal roots, equal maps.
    pub fn root(&self) -> u64 {
        0
    }

    /// Where this node is reached.
    pub fn addr(&self) -> SocketAddr {
        self._me.addr
    }
}
