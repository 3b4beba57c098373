//! Injecting faults.

use rand::{Rng, RngExt};
use sched::Observed;

use crate::options::Fault;
use crate::world::{Ev, Heal, S, World};

impl World {
    /// Injects one fault that this seed knows.
    pub(crate) fn fault(&mut self) {
        let fault = self.drawn.faults[self.rng.random_range(0..self.drawn.faults.len())];
        let node = self.rng.random_range(0..self.machines.len());
        self.faults += 1;
        if self.options.verbose {
            println!("{:>8} fault {fault:?} n{node}", self.now / 1000);
        }
        match fault {
            Fault::Partition => self.partition(),
            Fault::Isolate => {
                self.marks.hit("fault isolate");
                let side = (0..self.machines.len()).map(|i| u8::from(i == node)).collect();
                self.sides(side, 3, 40);
            }
            Fault::OneWay => {
                let other = self.rng.random_range(0..self.machines.len());
                self.marks.hit("fault one way");
                self.cut(node, other, 60);
            }
            Fault::Bridge => {
                self.marks.hit("fault bridge");
                for other in 0..self.machines.len() {
                    if self.rng.random_bool(0.5) {
                        self.cut(other, node, 30);
                        self.cut(node, other, 30);
                    }
                }
            }
            Fault::Crash => self.crash(node, false),
            Fault::Amnesia => self.crash(node, true),
            Fault::MassCrash => self.mass_crash(),
            Fault::AgentRestart => {
                if self.machines[node].node.is_some() {
                    self.marks.hit("fault agent restart");
                    self.agent_dies(node);
                    let after = self.between(100, 5_000);
                    self.queue.push(self.now + after, Ev::Boot { node });
                }
            }
            Fault::Pause => {
                if self.machines[node].node.is_some() && !self.machines[node].paused {
                    self.marks.hit("fault pause");
                    self.machines[node].paused = true;
                    let after = self.between(200, 20_000);
                    self.queue.push(self.now + after, Ev::Resume { node });
                }
            }
            Fault::ClockJump => {
                self.marks.hit("fault clock jump");
                let jump = self.rng.random_range(-3_600_000..=3_600_000_i64);
                self.machines[node].wall_offset_ms = jump;
            }
            Fault::ClockDrift => {
                self.marks.hit("fault clock drift");
                let ppm = self.rng.random_range(5_000..=50_000_i64);
                let ppm = if self.rng.random_bool(0.5) { ppm } else { -ppm };
                self.machines[node].clock.drift(self.now, ppm);
                let after = self.between(5_000, 60_000);
                self.queue.push(self.now + after, Ev::ClockSteady { node });
                // What it waits for is nearer or farther now.
                self.plan_wake(node);
            }
            Fault::TornWrite => {
                if self.machines[node].node.is_some() {
                    self.machines[node].tears = Some(self.rng.next_u64());
                }
            }
            Fault::LossBurst => {
                self.marks.hit("fault loss burst");
                self.net.loss = self.rng.random_range(200..500);
                self.token += 1;
                let after = self.between(3_000, 15_000);
                self.queue.push(self.now + after, Ev::Heal(Heal::Loss(self.token)));
            }
            Fault::DelayBurst => {
                self.marks.hit("fault delay burst");
                self.net.jitter_us = self.rng.random_range(50_000..400_000);
                self.token += 1;
                let after = self.between(3_000, 15_000);
                self.queue.push(self.now + after, Ev::Heal(Heal::Delay(self.token)));
            }
            Fault::PodTrouble => self.pod_trouble(node),
            Fault::Forget => self.die_for_good(node),
            Fault::SwizzleClog => self.swizzle(),
            Fault::SlowDisk => {
                self.marks.hit("fault slow disk");
                self.machines[node].disk_slow = true;
                let after = self.between(5_000, 60_000);
                self.queue.push(self.now + after, Ev::DiskWell { node });
            }
        }
    }

    /// A time between so many milliseconds, in microseconds.
    fn between(&mut self, min_ms: u64, max_ms: u64) -> u64 {
        self.rng.random_range(min_ms..=max_ms) * 1000
    }

    fn partition(&mut self) {
        self.marks.hit("fault partition");
        let mut side: Vec<u8> = Vec::new();
        for _ in 0..self.machines.len() {
            side.push(u8::from(self.rng.random_bool(0.4)));
        }
        self.sides(side, 5, 40);
    }

    fn sides(&mut self, side: Vec<u8>, min_s: u64, max_s: u64) {
        self.net.side = side;
        self.sides_since = Some(self.now);
        self.token += 1;
        let after = self.between(min_s * 1000, max_s * 1000);
        self.queue.push(self.now + after, Ev::Heal(Heal::Sides(self.token)));
    }

    fn cut(&mut self, from: usize, to: usize, max_s: u64) {
        if from == to {
            return;
        }
        self.net.cut.insert((from, to));
        let after = self.between(3_000, max_s * 1000);
        self.queue.push(self.now + after, Ev::Heal(Heal::Cut(from, to)));
    }

    /// FoundationDB's: each node's links close at a time of its own and open at another.
    fn swizzle(&mut self) {
        self.marks.hit("fault swizzle clog");
        for node in 0..self.machines.len() {
            if self.rng.random_bool(0.3) {
                let closes = self.between(0, 5_000);
                let opens = closes + self.between(500, 15_000);
                self.queue.push(self.now + closes, Ev::Clog { node });
                self.queue.push(self.now + opens, Ev::Unclog { node });
            }
        }
    }

    fn crash(&mut self, node: usize, wipe: bool) {
        if self.machines[node].node.is_none() || (wipe && !self.can_lose(&[node])) {
            return;
        }
        self.marks.hit(if wipe { "fault amnesia" } else { "fault crash" });
        self.power_cut(node, wipe);
        let after = self.between(300, 25_000);
        self.queue.push(self.now + after, Ev::Boot { node });
    }

    fn mass_crash(&mut self) {
        self.marks.hit("fault mass crash");
        let most = self.machines.len() / 2 + 1;
        let count = self.rng.random_range(2..=most.max(2));
        for _ in 0..count {
            let node = self.rng.random_range(0..self.machines.len());
            if self.machines[node].node.is_some() {
                self.power_cut(node, false);
                let after = self.between(1_000, 30_000);
                self.queue.push(self.now + after, Ev::Boot { node });
            }
        }
    }

    fn pod_trouble(&mut self, node: usize) {
        let pods = &self.machines[node].kernel.pods;
        let running: Vec<(String, u64)> = pods
            .iter()
            .filter(|(_, p)| p.running && !p.stopping)
            .map(|(id, p)| (id.clone(), p.start))
            .collect();
        if running.is_empty() {
            return;
        }
        self.marks.hit("fault pod trouble");
        let (claim, start) = running[self.rng.random_range(0..running.len())].clone();
        if self.rng.random_bool(0.3) {
            self.machines[node].kernel.pods.remove(&claim);
            return self.tell(node, claim, Observed::Gone);
        }
        let (signal, oom) = (self.rng.random_bool(0.5).then_some(9), self.rng.random_bool(0.5));
        let restarts = self.rng.next_u32() % 10;
        let reason = String::new();
        if let Some(pod) = self.machines[node].kernel.pods.get_mut(&claim) {
            pod.running = false;
        }
        let observed = Observed::Exited { code: Some(1), signal, oom, restarts, reason };
        self.tell(node, claim.clone(), observed);
        let boot = self.machines[node].boots;
        let after = self.between(100, 3_000);
        self.queue.push(self.now + after, Ev::PodExit { node, boot, claim, start });
    }

    /// A node dies, and an operator forgets it. Few do: the flock keeps more than half of its first size.
    fn die_for_good(&mut self, node: usize) {
        let gone = self.machines.iter().filter(|m| m.gone).count();
        let few = (gone + 1) * 4 <= self.machines.len();
        if !few || self.machines[node].gone || !self.can_lose(&[node]) {
            return;
        }
        self.marks.hit("fault forget");
        self.power_cut(node, true);
        self.machines[node].gone = true;
        self.queue.push(self.now + 8 * S, Ev::Forget { node });
    }
}
