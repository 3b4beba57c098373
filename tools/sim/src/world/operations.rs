//! Operators: what they submit, drain and forget, and which of it must never be lost.

use rand::RngExt;
use sched::record::spec_key;

use super::machine::Machine;
use super::{Ev, S, World};

impl World {
    pub(super) fn operate(&mut self) {
        let up: Vec<usize> =
            (0..self.machines.len()).filter(|i| self.machines[*i].node.is_some()).collect();
        let awake: Vec<usize> = up.into_iter().filter(|i| !self.machines[*i].paused).collect();
        let Some(&node) = awake.get(self.rng.random_range(0..awake.len().max(1))) else { return };
        let (now, wall) = (self.local_us(node), self.wall_ms(node));
        let mut effects = Vec::new();
        if self.rng.random_bool(0.15) {
            // One drained node at a time, so that there is room.
            let on = !self.machines.iter().any(|m| m.drain);
            let draining = self.machines.iter().position(|m| m.drain).unwrap_or(node);
            if self.machines[draining].paused {
                return;
            }
            self.machines[draining].drain = on;
            self.marks.hit("operator drain");
            let (now, wall) = (self.local_us(draining), self.wall_ms(draining));
            if let Some(n) = &mut self.machines[draining].node {
                n.drain(now, wall, on, &mut effects);
                self.apply(draining, effects);
            }
            return;
        }
        let remain = self.machines.iter().filter(|m| !m.gone).count();
        let remain = remain.saturating_sub(self.machines.len() / 4);
        let submitted = self.operator.act(remain, &mut self.rng, &mut self.marks);
        let Some(n) = &mut self.machines[node].node else { return };
        let generation = n.submit(now, wall, &submitted, &mut effects);
        if self.options.verbose {
            let (at, text) = (self.now / 1000, submitted.text.replace('\n', " "));
            let name = &self.machines[node].name;
            let flags = (submitted.stopped, submitted.deleted);
            println!("{at:>8} {name}: submit generation {generation} {flags:?} {text}");
        }
        self.pending.push((spec_key(&submitted.namespace, &submitted.app), generation));
        self.apply(node, effects);
    }

    /// A spec counts as acknowledged once most disks hold it (or a newer one).
    pub(super) fn acknowledge(&mut self) {
        let all = self.machines.iter().filter(|m| !m.gone).count();
        let machines = &self.machines;
        let acked = &mut self.acked;
        self.pending.retain(|(key, generation)| {
            let holders = machines.iter().filter(|m| !m.gone && m.disk.spec(key) >= *generation);
            if holders.count() * 2 <= all {
                return true;
            }
            let newest = acked.entry(key.clone()).or_default();
            *newest = (*newest).max(*generation);
            false
        });
    }

    /// Whether what was acknowledged would survive the loss of these disks.
    pub(crate) fn can_lose(&self, lost: &[usize]) -> bool {
        self.acked.iter().all(|(key, generation)| {
            let mut others = self.machines.iter().enumerate().filter(|(i, _)| !lost.contains(i));
            others.any(|(_, m)| !m.gone && m.disk.spec(key) >= *generation)
        })
    }

    pub(super) fn forget(&mut self, dead: usize) {
        let name = self.machines[dead].name.clone();
        let knows = |m: &Machine| {
            let member = m.node.as_ref().and_then(|n| n.gossip.member(&name));
            !m.paused && member.is_some_and(|m| !m.state.is_live())
        };
        if let Some(node) = self.machines.iter().position(knows) {
            self.forgotten.insert(name.clone());
            let (now, wall) = (self.local_us(node), self.wall_ms(node));
            let mut effects = Vec::new();
            if let Some(n) = &mut self.machines[node].node {
                n.forget(now, wall, &name, &mut effects);
            }
            self.apply(node, effects);
        }
        // Asked again until nobody lists it: a node that was away may bring it back.
        let lists = |m: &Machine| m.node.as_ref().is_some_and(|n| n.gossip.member(&name).is_some());
        if !self.calm || self.machines.iter().any(lists) {
            self.queue.push(self.now + 3 * S, Ev::Forget { node: dead });
        }
    }
}
