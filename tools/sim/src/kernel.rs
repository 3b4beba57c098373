//! What a machine is below its agent: the pods that run.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::Xoshiro256PlusPlus;
use sched::{ClaimRecord, Observed};

use crate::node::Survivor;

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
