//! The nodes: starting, stepping, carrying what they send, and what they must never report.

use gossip::{Event, Gossip, Identity, Input, KeyRing, Output, Profile, SecretKey, State};

use super::{Ev, Flock, INBOX_MAX, WALL_MS, addr, index, member};

impl Flock {
    pub(super) fn boot(&mut self, node: usize) {
        if self.slots[node].gossip.is_some() {
            return;
        }
        let key = SecretKey::new(1, [7; 32]);
        let mut config = gossip::Config::new(KeyRing::new(&key), Profile::Lan);
        config.seeds = (0..self.slots.len().min(3)).map(addr).collect();
        let slot = &mut self.slots[node];
        slot.generation += 1;
        slot.seen.fill((0, 0));
        let name = format!("n{node}");
        let identity = Identity { name, addr: addr(node), generation: slot.generation };
        slot.gossip = Gossip::new(config, identity).ok();
        self.step(node, Input::Timer);
    }

    pub(super) fn datagram(&mut self, to: usize, from: usize, bytes: Vec<u8>) {
        let Some(slot) = self.slots.get_mut(to).filter(|slot| slot.gossip.is_some()) else {
            return;
        };
        if slot.paused {
            if slot.inbox.len() < INBOX_MAX {
                slot.inbox.push((from, bytes));
            }
            return;
        }
        self.note(to as u64, &bytes);
        self.step(to, Input::Datagram { from: addr(from), bytes: &bytes });
    }

    pub(super) fn step(&mut self, node: usize, input: Input<'_>) {
        let mut out = std::mem::take(&mut self.out);
        let slot = &mut self.slots[node];
        let Some(gossip) = &mut slot.gossip else { return };
        let shown_us = slot.clock.at(self.now);
        let wall_ms = (WALL_MS + shown_us / 1000).saturating_add_signed(slot.wall_offset_ms);
        gossip.step(shown_us, wall_ms, input, &mut slot.rng, &mut out);
        self.plan(node);
        for output in out.drain(..) {
            match output {
                Output::Send { to, bytes } => self.send(node, index(to), bytes),
                Output::Event(Event::Member(m)) => self.met(node, &m),
                Output::Event(Event::Forgotten { name }) => {
                    self.violate(format!("n{node} forgot {name}, which nobody asked for"));
                }
                _ => {}
            }
        }
        self.out = out;
    }

    pub(super) fn plan(&mut self, node: usize) {
        let slot = &mut self.slots[node];
        let due = slot.gossip.as_ref().and_then(Gossip::next_deadline);
        let next = due.map(|at| slot.clock.when(at).max(self.now));
        if let Some(at) = next.filter(|at| slot.wake_at.is_none_or(|planned| *at < planned)) {
            slot.wake_at = Some(at);
            self.queue.push(at, Ev::Wake(node));
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if to >= self.slots.len() {
            return;
        }
        let (now, queue) = (self.now, &mut self.queue);
        self.net.carry(from, to, bytes, &mut self.rng, |delay, bytes| {
            queue.push(now + delay, Ev::Datagram { to, from, bytes });
        });
    }

    pub(super) fn met(&mut self, node: usize, m: &gossip::Member) {
        let place = (m.generation, m.incarnation);
        let Some(seen) = member(&m.name).and_then(|n| self.slots[node].seen.get_mut(n)) else {
            return self.violate(format!("n{node} knows {}, which is none of ours", m.name));
        };
        if place < *seen {
            let text = format!("n{node} saw {} go back from {seen:?} to {place:?}", m.name);
            return self.violate(text);
        }
        *seen = place;
        if m.state == State::Dead {
            self.marks.hit("member dead");
        }
    }

    pub(super) fn resume(&mut self, node: usize) {
        let slot = &mut self.slots[node];
        if !std::mem::take(&mut slot.paused) || slot.gossip.is_none() {
            return;
        }
        // Timers are late now; what arrived meanwhile comes after them, as a poll loop would see it.
        slot.wake_at = None;
        let inbox = std::mem::take(&mut slot.inbox);
        self.step(node, Input::Timer);
        for (from, bytes) in inbox {
            self.datagram(node, from, bytes);
        }
    }
}
