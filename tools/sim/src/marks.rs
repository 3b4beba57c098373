//! Coverage marks: what a set of runs must have met at least once.

use std::collections::BTreeMap;

/// Marks by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub BTreeMap<&'static str, u64>);

impl Marks {
    /// It happened.
    pub fn hit(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Marks) {
        for (name, n) in &other.0 {
            *self.0.entry(name).or_default() += n;
        }
    }

    /// The required ones that never happened.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        REQUIRED.into_iter().filter(|name| !self.0.contains_key(name)).collect()
    }

    /// Those of gossip alone that never happened, after so many faults of a few nodes, and when the faults of the whole flock
    /// have all had their turn.
    #[must_use]
    pub fn missing_gossip(&self, few: u64, wide: bool) -> Vec<&'static str> {
        let few = REQUIRED_GOSSIP.into_iter().filter(|_| few >= GOSSIP_FAULTS_MIN);
        let wide = REQUIRED_GOSSIP_WIDE.into_iter().filter(|_| wide);
        few.chain(wide).filter(|name| !self.0.contains_key(name)).collect()
    }
}

/// Without any of these a set of at least [`SEEDS_MIN`] runs has failed.
pub const REQUIRED: [&str; 44] = [
    "fault agent restart",
    "fault amnesia",
    "fault bridge",
    "fault clock drift",
    "fault clock jump",
    "fault crash",
    "fault delay burst",
    "fault forget",
    "fault isolate",
    "fault loss burst",
    "fault mass crash",
    "fault one way",
    "fault partition",
    "fault pause",
    "fault pod trouble",
    "fault slow disk",
    "fault swizzle clog",
    "fault torn write",
    "net corrupt",
    "net duplicate",
    "net loss",
    "clock a second off",
    "disk lost an unsynced record",
    "disk tore a record",
    "operator new",
    "operator update",
    "operator scale",
    "operator stop",
    "operator delete",
    "operator drain",
    "operator daemon",
    "sched took over",
    "sched held minority",
    "sched held mass loss",
    "sched held recent loss",
    "sched held rejoin",
    "sched duplicate stopped",
    "sched refused",
    "sched refused stale term",
    "sched moved failed",
    "sched moved drain",
    "sched moved update",
    "sched adopted",
    "sched forgotten swept",
];

/// Runs from which the marks are required.
pub const SEEDS_MIN: u64 = 50;

/// Without any of these a set of runs of gossip alone with at least [`GOSSIP_FAULTS_MIN`] faults of a few nodes has failed.
pub const REQUIRED_GOSSIP: [&str; 9] = [
    "fault clock drift",
    "fault clock jump",
    "fault crash",
    "fault isolate",
    "fault one way",
    "fault pause",
    "fault swizzle clog",
    "member dead",
    "net loss",
];

/// The same for one in which each kind of fault of the whole flock has had its turn.
pub const REQUIRED_GOSSIP_WIDE: [&str; 6] = [
    "fault delay burst",
    "fault loss burst",
    "fault mass clog",
    "fault mass crash",
    "fault mass pause",
    "fault partition",
];

/// Faults of a few nodes from which gossip alone must have met its marks: one of seven kinds is then missed once in 10^9 sets.
pub const GOSSIP_FAULTS_MIN: u64 = 150;
