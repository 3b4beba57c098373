//! Agents: boots, datagrams, timers, and what their outputs do to the world.

use std::net::SocketAddr;

use gossip::{Identity, KeyRing, Persist, Profile, SecretKey};
use rand::Rng;
use sched::NodeRecord;

use super::machine::{Waiting, index};
use super::{Ev, INBOX_MAX, S, WALL_MS, World};
use crate::check;
use crate::kernel::stop_us;
use crate::node::{Boot, Effect, Node};

/// A slow disk makes its writes durable so late.
const SLOW_US: u64 = 8 * S;

impl World {
    pub(crate) fn wall_ms(&self, node: usize) -> u64 {
        let m = &self.machines[node];
        (WALL_MS + m.clock.at(self.now) / 1000).saturating_add_signed(m.wall_offset_ms)
    }

    /// The time as this machine has it.
    pub(crate) fn local_us(&self, node: usize) -> u64 {
        self.machines[node].clock.at(self.now)
    }

    pub(super) fn boot(&mut self, node: usize) {
        let (now, wall) = (self.local_us(node), self.wall_ms(node));
        let seeds: Vec<SocketAddr> = self.machines.iter().take(3).map(|m| m.addr).collect();
        let m = &mut self.machines[node];
        if m.node.is_some() || m.gone {
            return;
        }
        m.disk.generation += 1;
        m.fresh_us = self.now;
        m.seen.clear();
        let key = SecretKey::new(1, [7; 32]);
        let mut gossip = gossip::Config::new(KeyRing::new(&key), Profile::Lan);
        gossip.seeds = seeds;
        let survivors = m.kernel.survivors();
        if !survivors.is_empty() {
            self.marks.hit("sched adopted");
        }
        let boot = Boot {
            identity: Identity {
                name: m.name.clone(),
                generation: m.disk.generation,
                addr: m.addr,
            },
            gossip,
            restored: Some(m.disk.restored()),
            survivors,
            record: NodeRecord { boot: m.disk.generation, ..m.record.clone() },
            drain: m.drain,
            seed: self.rng.next_u64(),
        };
        let mut effects = Vec::new();
        m.node = Some(Node::boot(boot, now, wall, &mut effects));
        self.note(&[b"boot", &node.to_be_bytes()]);
        self.apply(node, effects);
    }

    pub(super) fn datagram(&mut self, to: usize, from: SocketAddr, bytes: Vec<u8>) {
        let (now, wall) = (self.local_us(to), self.wall_ms(to));
        let m = &mut self.machines[to];
        let Some(node) = &mut m.node else { return };
        if m.paused {
            if m.inbox.len() < INBOX_MAX {
                m.inbox.push(Waiting::Datagram(from, bytes));
            }
            return;
        }
        let mut effects = std::mem::take(&mut self.spare);
        node.datagram(now, wall, from, &bytes, &mut effects);
        self.note_datagram(to, &bytes);
        self.apply(to, effects);
    }

    pub(super) fn wake(&mut self, node: usize) {
        let (now, wall) = (self.local_us(node), self.wall_ms(node));
        let m = &mut self.machines[node];
        if m.wake_at.is_none_or(|at| at > self.now) || m.paused {
            return;
        }
        m.wake_at = None;
        let Some(n) = &mut m.node else { return };
        if n.next_deadline().is_none_or(|at| at > now) {
            // What it was planned for has been cancelled, or the clock has become slower.
            return self.plan_wake(node);
        }
        let mut effects = std::mem::take(&mut self.spare);
        n.timer(now, wall, &mut effects);
        self.apply(node, effects);
    }

    pub(super) fn resume(&mut self, node: usize) {
        let m = &mut self.machines[node];
        if !m.paused {
            return;
        }
        m.paused = false;
        m.fresh_us = self.now;
        m.wake_at = Some(self.now);
        // Timers are late now; what arrived meanwhile comes after them, as a poll loop would see it.
        let inbox = std::mem::take(&mut m.inbox);
        self.wake(node);
        for waiting in inbox {
            match waiting {
                Waiting::Datagram(from, bytes) => self.datagram(node, from, bytes),
                Waiting::Pod(claim, observed) => self.tell(node, claim, observed),
            }
        }
        self.plan_wake(node);
    }

    pub(crate) fn plan_wake(&mut self, node: usize) {
        let m = &mut self.machines[node];
        let Some(at) = m.node.as_ref().and_then(Node::next_deadline) else { return };
        let at = m.clock.when(at).max(self.now);
        if m.wake_at.is_none_or(|planned| at < planned || planned < self.now) {
            m.wake_at = Some(at);
            self.queue.push(at, Ev::Wake { node });
        }
    }

    pub(super) fn apply(&mut self, node: usize, mut effects: Vec<Effect>) {
        for effect in effects.drain(..) {
            self.effect(node, effect);
            if self.machines[node].node.is_none() {
                // It lost power over that: the rest is never done.
                break;
            }
        }
        self.spare = effects;
        self.plan_wake(node);
    }

    pub(super) fn effect(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send { to, bytes } => {
                let to = index(to);
                if to >= self.machines.len() {
                    return;
                }
                let from = self.machines[node].addr;
                let (now, queue) = (self.now, &mut self.queue);
                self.net.carry(node, to, bytes, &mut self.rng, |delay, bytes| {
                    queue.push(now + delay, Ev::Datagram { to, from, bytes });
                });
            }
            Effect::Persist(what) => {
                let wall = self.wall_ms(node);
                let m = &mut self.machines[node];
                // The generation is a file of its own, replaced by rename.
                let torn = m.tears.filter(|_| !matches!(what, Persist::Generation(_)));
                if let Some(how) = torn {
                    return self.torn_write(node, what, how);
                }
                let first = m.disk.append(what, wall, m.disk_slow);
                if first {
                    let after = if m.disk_slow { SLOW_US } else { S };
                    self.queue.push(self.now + after, Ev::Sync { node });
                }
            }
            Effect::Start(claim) => self.start(node, *claim),
            Effect::Stop { claim } => {
                let boot = self.machines[node].boots;
                let Some(pod) = self.machines[node].kernel.pods.get_mut(&claim) else {
                    // The agent answers for a pod that it does not have.
                    return self.tell_later(node, claim);
                };
                let start = pod.start;
                pod.stopping = true;
                let at = self.now + stop_us(&mut self.rng);
                self.queue.push(at, Ev::PodDown { node, boot, claim, start });
            }
            Effect::Wrote { key, delete } => {
                let name = &self.machines[node].name;
                if let Err(wrong) = check::writer(name, &key, delete, &self.forgotten) {
                    self.violate(wrong);
                }
                let gone = key.split('/').nth(1).is_some_and(|n| self.forgotten.contains(n));
                if delete && gone {
                    self.marks.hit("sched forgotten swept");
                }
            }
            Effect::Sched(event) => self.sched_event(node, &event),
            Effect::Member(member) => {
                let place = (member.generation, member.incarnation);
                let seen = self.machines[node].seen.entry(member.name.to_string()).or_default();
                if place < *seen {
                    let text = format!("{} went back from {seen:?} to {place:?}", member.name);
                    self.violate(format!("{} saw: {text}", self.machines[node].name));
                    return;
                }
                *seen = place;
                if self.options.verbose {
                    let (at, me) = (self.now / 1000, &self.machines[node].name);
                    println!("{at:>8} {me}: {} is {}", member.name, member.state);
                }
            }
            Effect::Gossip(what) => {
                if self.options.verbose && what != "other" {
                    println!("{:>8} {}: gossip {what}", self.now / 1000, self.machines[node].name);
                }
            }
        }
    }

    pub(super) fn sched_event(&mut self, node: usize, event: &sched::Event) {
        use sched::Event;
        if self.options.verbose {
            println!("{:>8} {}: {event:?}", self.now / 1000, self.machines[node].name);
        }
        let mark = match event {
            Event::TookOver { .. } => "sched took over",
            Event::Duplicate { .. } => "sched duplicate stopped",
            Event::Refused { reason, .. } if reason.contains("newer coordinator") => {
                "sched refused stale term"
            }
            Event::Refused { .. } => "sched refused",
            Event::Moving { reason, .. } if reason.contains("drains") => "sched moved drain",
            Event::Moving { reason, .. } if reason.contains("generation") => "sched moved update",
            Event::Moving { .. } => "sched moved failed",
            Event::Held { reason } if reason.contains("smaller side") => "sched held minority",
            Event::Held { reason } if reason.contains("within seconds") => "sched held mass loss",
            Event::Held { reason } if reason.contains("was lost") => "sched held recent loss",
            Event::Held { reason } if reason.contains("came back") => "sched held rejoin",
            Event::Malformed { from, error } => {
                let text = format!("{} got from {from}: {error}", self.machines[node].name);
                return self.violate(text);
            }
            _ => return,
        };
        self.marks.hit(mark);
    }
}
