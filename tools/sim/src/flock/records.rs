//! Records: writing them, and that what most nodes held is never lost.

use gossip::{Expect, Gossip, Input};
use rand::RngExt;

use super::{ACK_US, Ev, Flock};

impl Flock {
    pub(super) fn put(&mut self) {
        let node = self.rng.random_range(0..self.slots.len());
        if self.slots[node].gossip.is_none() || self.slots[node].paused {
            return;
        }
        self.written += 1;
        self.report.puts += 1;
        let (key, body) = (format!("t/n{node}"), self.written.to_be_bytes().to_vec());
        self.step(node, Input::Put { key: &key, body, expect: Expect::Any });
        self.queue.push(self.now + ACK_US, Ev::Ack { key: node, value: self.written });
    }

    pub(super) fn value(gossip: &Gossip, key: usize) -> u64 {
        let body = gossip.get(&format!("t/n{key}")).and_then(|r| r.body.as_deref());
        body.and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
    }

    pub(super) fn acknowledge(&mut self, key: usize, value: u64) {
        let up = self.slots.iter().filter_map(|slot| slot.gossip.as_ref());
        let holders = up.filter(|gossip| Self::value(gossip, key) >= value).count();
        if holders * 2 > self.slots.len() {
            self.report.acked += 1;
            let newest = self.acked.entry(key).or_default();
            *newest = (*newest).max(value);
        }
    }

    pub(super) fn check_acked(&mut self) {
        let Some(first) = self.slots.iter().find_map(|slot| slot.gossip.as_ref()) else { return };
        let lost = self.acked.iter().filter(|(key, value)| Self::value(first, **key) < **value);
        let lost: Vec<String> = lost
            .map(|(key, value)| format!("t/n{key} = {value} was on most nodes and is lost"))
            .collect();
        lost.into_iter().for_each(|text| self.violate(text));
    }
}
