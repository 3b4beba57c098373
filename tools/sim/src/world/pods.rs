//! Pods: starts, stops, exits, and what the agent is told of them.

use rand::{Rng, RngExt};
use sched::Observed;

use super::machine::Waiting;
use super::{Ev, KNOWN_US, World};
use crate::check;
use crate::kernel::{ip, start_us, stop_us};

impl World {
    pub(super) fn start(&mut self, node: usize, claim: sched::Claim) {
        let id = claim.id.clone();
        let daemon = claim.record.daemon;
        if self.options.verbose {
            let (at, me, pod) = (self.now / 1000, &self.machines[node].name, claim.pod_name());
            println!("{at:>8} {me}: start {pod} ({id}) generation {}", claim.record.generation);
        }
        let Some(start) = self.machines[node].kernel.start(claim) else { return };
        self.starts += 1;
        self.note(&[b"start", &node.to_be_bytes(), id.as_bytes()]);
        let m = &self.machines[node];
        if let Err(wrong) = check::machine(&m.name, &m.record, &m.kernel) {
            self.violate(wrong);
        }
        if !daemon && self.in_minority(node) {
            self.violate(format!(
                "{} is in the minority and started {id}",
                self.machines[node].name
            ));
        }
        let fails = !self.calm && self.rng.next_u32() % 1000 < self.drawn.fail;
        let fail = fails.then(|| self.rng.random_bool(0.5));
        let boot = self.machines[node].boots;
        let at = self.now + start_us(&mut self.rng);
        self.queue.push(at, Ev::PodUp { node, boot, claim: id, start, fail });
    }

    /// The node is on a side that has been the smaller one for long enough to know.
    pub(super) fn in_minority(&self, node: usize) -> bool {
        let Some(since) = self.sides_since else { return false };
        let side = self.net.side[node];
        let on_side = |i: &usize| self.net.side[*i] == side;
        let ours: Vec<usize> = (0..self.machines.len()).filter(on_side).collect();
        let fresh = ours.iter().map(|i| self.machines[*i].fresh_us).max().unwrap_or(0);
        let roster = self.machines.iter().filter(|m| !m.gone).count();
        let ours = ours.iter().filter(|i| !self.machines[**i].gone).count();
        self.now >= since.max(fresh) + KNOWN_US && ours * 2 <= roster
    }

    pub(super) fn pod_is(&self, node: usize, boot: u64, claim: &str, start: u64) -> bool {
        let m = &self.machines[node];
        let here = m.kernel.pods.get(claim);
        m.boots == boot && here.map_or(start == 0, |p| p.start == start)
    }

    pub(super) fn pod_up(&mut self, node: usize, claim: &str, fail: Option<bool>) {
        let Some(pod) = self.machines[node].kernel.pods.get_mut(claim) else { return };
        if pod.stopping {
            return;
        }
        let ip = ip(&pod.claim.record);
        let observed = match fail {
            Some(retryable) => {
                self.machines[node].kernel.pods.remove(claim);
                Observed::Failed { reason: "it does not start".into(), retryable }
            }
            None => {
                pod.running = true;
                Observed::Running { ip, ready: true }
            }
        };
        self.tell(node, claim.to_owned(), observed);
    }

    pub(crate) fn tell(&mut self, node: usize, claim: String, observed: Observed) {
        let (now, wall) = (self.local_us(node), self.wall_ms(node));
        let m = &mut self.machines[node];
        let Some(n) = &mut m.node else { return };
        if m.paused {
            m.inbox.push(Waiting::Pod(claim, observed));
            return;
        }
        let mut effects = Vec::new();
        n.pod(now, wall, &claim, observed, &mut effects);
        self.note(&[b"pod", &node.to_be_bytes(), claim.as_bytes()]);
        self.apply(node, effects);
    }

    pub(super) fn tell_later(&mut self, node: usize, claim: String) {
        let boot = self.machines[node].boots;
        // No such pod: its start number is none that exists, so it is told through the same door.
        self.machines[node].inbox.retain(|w| !matches!(w, Waiting::Pod(c, _) if *c == claim));
        let at = self.now + stop_us(&mut self.rng);
        self.queue.push(at, Ev::PodDown { node, boot, claim, start: 0 });
    }
}
