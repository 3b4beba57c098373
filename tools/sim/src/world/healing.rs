//! The end of faults.

use rand::Rng;

use super::{Ev, Heal, S, World};

impl World {
    pub(super) fn heal(&mut self, heal: Heal) {
        match heal {
            Heal::Sides(token) if token == self.token => self.join_sides(),
            Heal::Cut(from, to) => {
                self.net.cut.remove(&(from, to));
            }
            Heal::Loss(token) if token == self.token => self.net.loss = self.drawn.loss,
            Heal::Delay(token) if token == self.token => {
                self.net.jitter_us = self.drawn.latency_us / 4;
            }
            _ => {}
        }
    }

    pub(crate) fn join_sides(&mut self) {
        self.net.side.fill(0);
        self.sides_since = None;
    }

    /// What has waited behind a node's links arrives, in no order.
    pub(super) fn unclog(&mut self, node: usize) {
        for (from, to, bytes) in self.net.unclog(node) {
            let after = self.rng.next_u64() % (self.net.latency_us + 1);
            let from = self.machines[from].addr;
            self.queue.push(self.now + after, Ev::Datagram { to, from, bytes });
        }
    }

    /// A clock that drifted runs as it was made to; nobody sets it right.
    pub(super) fn steady(&mut self, node: usize) {
        let clock = &mut self.machines[node].clock;
        if !clock.steady(self.now) {
            return;
        }
        if clock.off_us(self.now) >= S {
            self.marks.hit("clock a second off");
        }
        self.plan_wake(node);
    }

    pub(super) fn heal_all(&mut self) {
        self.calm = true;
        self.join_sides();
        self.net.cut.clear();
        for node in 0..self.machines.len() {
            self.unclog(node);
            self.machines[node].disk_slow = false;
            self.machines[node].tears = None;
            self.steady(node);
        }
        self.net.loss = self.drawn.loss.min(10);
        self.net.jitter_us = self.drawn.latency_us / 4;
        if self.options.verbose {
            println!("{:>8} heal", self.now / 1000);
        }
        for node in 0..self.machines.len() {
            if self.machines[node].paused {
                self.resume(node);
            }
            if self.machines[node].drain {
                self.machines[node].drain = false;
                let (now, wall) = (self.local_us(node), self.wall_ms(node));
                let mut effects = Vec::new();
                if let Some(n) = &mut self.machines[node].node {
                    n.drain(now, wall, false, &mut effects);
                    self.apply(node, effects);
                }
            }
            if self.machines[node].node.is_none() && !self.machines[node].gone {
                self.queue.push(self.now, Ev::Boot { node });
            }
        }
    }
}
