//! What a machine is below its agent: a disk that may lose what was not synced, and the pods that run.

use std::collections::BTreeMap;

use gossip::{MemberInfo, Persist, Record, Restored};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt};
use sched::{ClaimRecord, Observed};

use crate::node::{Submitted, Survivor};

/// The log of one node: what is durable, and what a power cut may still take.
#[derive(Debug, Default)]
pub struct Disk {
    /// Boot counter.
    pub generation: u64,
    records: BTreeMap<String, Record>,
    roster: BTreeMap<String, MemberInfo>,
    pending: Vec<Persist>,
    saved_ms: u64,
}

impl Disk {
    /// Appends; a record written at this node is durable at once, with all before it, unless the disk is slow. Whether
    /// this is the first that waits for a sync.
    pub fn append(&mut self, what: Persist, wall_ms: u64, slow: bool) -> bool {
        let own = matches!(what, Persist::Record { local: true, .. }) && !slow;
        // A node waits for its generation before it says a word.
        let local = own || matches!(what, Persist::Generation(_));
        self.pending.push(what);
        if local {
            self.sync(wall_ms);
        }
        self.pending.len() == 1
    }

    /// All that is pending becomes durable.
    pub fn sync(&mut self, wall_ms: u64) {
        for what in std::mem::take(&mut self.pending) {
            self.take(what);
        }
        self.saved_ms = wall_ms;
    }

    /// The power fails: some of the end is lost, with the record that was being written (the log's reader drops all from
    /// the first damaged one on). How many records.
    pub fn power_cut(&mut self, rng: &mut Xoshiro256PlusPlus) -> usize {
        let keep = rng.random_range(0..=self.pending.len());
        let lost = self.pending.len() - keep;
        self.pending.truncate(keep);
        for what in std::mem::take(&mut self.pending) {
            self.take(what);
        }
        lost
    }

    /// Nothing is left.
    pub fn wipe(&mut self) {
        *self = Disk::default();
    }

    /// The generation of a spec that is durable here; 0 for none.
    #[must_use]
    pub fn spec(&self, key: &str) -> u64 {
        let body = self.records.get(key).and_then(|r| r.body.as_deref());
        body.and_then(Submitted::decode).map_or(0, |s| s.generation)
    }

    /// What a boot finds.
    #[must_use]
    pub fn restored(&self) -> Restored {
        Restored {
            records: self.records.values().cloned().collect(),
            roster: self.roster.values().cloned().collect(),
            saved_ms: self.saved_ms,
        }
    }

    fn take(&mut self, what: Persist) {
        match what {
            Persist::Record { record, .. } => {
                self.records.insert(record.key.to_string(), record);
            }
            Persist::Dropped { key } => {
                self.records.remove(&key);
            }
            Persist::Member(info) => {
                self.roster.insert(info.name.clone(), info);
            }
            Persist::Forgotten { name } => {
                self.roster.remove(&name);
            }
            Persist::Generation(generation) => self.generation = self.generation.max(generation),
            _ => {}
        }
    }
}

/// A pod on a machine.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What it runs.
    pub claim: sched::Claim,
    /// Its containers run.
    pub running: bool,
    /// It has been told to stop.
    pub stopping: bool,
    /// This start of it, so that late events of an earlier one are known as such.
    pub start: u64,
}

/// The pods of a machine. They outlive its agent, not the machine.
#[derive(Debug, Default)]
pub struct Kernel {
    /// By claim.
    pub pods: BTreeMap<String, Pod>,
    starts: u64,
}

impl Kernel {
    /// Starts a pod; the number of this start, `None` when it is there already.
    pub fn start(&mut self, claim: sched::Claim) -> Option<u64> {
        if self.pods.contains_key(&claim.id) {
            return None;
        }
        self.starts += 1;
        let id = claim.id.clone();
        self.pods.insert(id, Pod { claim, running: false, stopping: false, start: self.starts });
        Some(self.starts)
    }

    /// CPU and memory of all that is here.
    #[must_use]
    pub fn used(&self) -> (u64, u64, usize) {
        let cpu = self.pods.values().map(|p| p.claim.spec.cpu_milli()).sum();
        let memory = self.pods.values().map(|p| p.claim.spec.memory_bytes()).sum();
        (cpu, memory, self.pods.len())
    }

    /// What a new agent finds: every pod with the record it was started with.
    #[must_use]
    pub fn survivors(&self) -> Vec<Survivor> {
        let observed = |p: &Pod| {
            if p.running {
                Observed::Running { ip: ip(&p.claim.record), ready: true }
            } else {
                Observed::Starting { ip: ip(&p.claim.record) }
            }
        };
        let survivor = |(id, p): (&String, &Pod)| Survivor {
            claim: id.clone(),
            record: p.claim.record.clone(),
            observed: observed(p),
        };
        self.pods.iter().map(survivor).collect()
    }
}

/// An address for a pod; the simulation has no packets between pods.
#[must_use]
pub fn ip(record: &ClaimRecord) -> String {
    format!("100.64.{}.{}", record.slot / 250, record.slot % 250 + 1)
}

/// 50 to 300 ms, in microseconds.
pub fn start_us(rng: &mut Xoshiro256PlusPlus) -> u64 {
    50_000 + rng.next_u64() % 250_000
}

/// 5 to 100 ms, in microseconds.
pub fn stop_us(rng: &mut Xoshiro256PlusPlus) -> u64 {
    5_000 + rng.next_u64() % 95_000
}
