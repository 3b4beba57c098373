//! Asking members whether they are there, directly and through others.

use crate::member::{Nid, State};
use crate::message::tag;
use crate::outbox::Dest;
use crate::swim::{Ctx, Swim, Timer, table};

/// Members asked to probe for us.
const HELPERS: usize = 3;
/// Times we ask again, each time through other helpers: at 20 % loss one probe in 500 then fails by chance alone.
const STAGES: u8 = 2;
/// Probes of our own in flight; further verifications wait.
const PROBES_MAX: usize = 64;
/// Probes in flight for others; further requests get a nack at once.
const RELAYS_MAX: usize = 256;

/// A probe of ours.
#[derive(Debug)]
pub(super) struct Probe {
    pub(super) target: Nid,
    generation: u64,
    sent_us: u64,
    /// When the next stage is due.
    due_us: u64,
    end_us: u64,
    helpers: Vec<Nid>,
    /// The first so many of them had time to say no.
    owing: usize,
    nacks: u32,
    stage: u8,
}

/// A probe for somebody else.
#[derive(Debug)]
pub(super) struct Relay {
    origin: Dest,
    seq: u32,
    target: Nid,
    due_us: u64,
    nacked: bool,
}

impl Swim {
    /// Probe timer.
    pub(super) fn probe_tick(&mut self, ctx: &mut Ctx<'_>) {
        // Ill, we wait longer for answers but hardly ask less often: a lost rack would be noticed late.
        let longest_us = self.timing.probe_us * 2;
        let wait_us = self.health.stretch(self.timing.probe_us).min(longest_us);
        // A little jitter keeps nodes started together from ticking together.
        let spread = self.jitter(wait_us / 10, ctx);
        self.timers.set(ctx.now_us + wait_us - wait_us / 20 + spread, Timer::Probe);
        if self.leave_rounds.is_none()
            && let Some(target) = self.next_target(ctx)
        {
            self.probe(target, ctx);
        }
    }

    fn next_target(&mut self, ctx: &mut Ctx<'_>) -> Option<Nid> {
        self.ring_turn = !self.ring_turn;
        if self.ring_turn
            && let Some(nid) = self.table.successor()
        {
            return Some(nid);
        }
        loop {
            if self.round.is_empty() {
                self.round = self.table.live().to_vec();
                table::shuffle(&mut self.round, ctx.rng);
                if self.round.is_empty() {
                    return None;
                }
            }
            let nid = self.round.pop()?;
            if self.table.get(nid).is_some_and(|e| e.member.state.is_live()) {
                return Some(nid);
            }
        }
    }

    pub(super) fn is_probing(&self, nid: Nid) -> bool {
        self.probes.values().any(|p| p.target == nid)
    }

    /// Starts a probe; `false` when too many run.
    pub(super) fn probe(&mut self, target: Nid, ctx: &mut Ctx<'_>) -> bool {
        if self.probes.len() >= PROBES_MAX {
            return false;
        }
        let Some(entry) = self.table.get(target) else { return false };
        let generation = entry.member.generation;
        let rtt_us = u64::from(entry.member.rtt_us) * 2 + 4 * u64::from(entry.rttvar_us);
        let end_us = ctx.now_us + self.health.stretch(self.timing.probe_us);
        let wait_us = rtt_us.clamp(self.timing.ack_min_us, self.timing.probe_us * 2 / 3);
        let due_us = ctx.now_us + self.health.stretch(wait_us);
        self.seq = self.seq.wrapping_add(1);
        let seq = self.seq;
        let probe = Probe {
            target,
            generation,
            sent_us: ctx.now_us,
            due_us,
            end_us,
            helpers: Vec::new(),
            owing: 0,
            nacks: 0,
            stage: 0,
        };
        self.probes.insert(seq, probe);
        self.timers.set(due_us, Timer::ProbeStage(seq));
        self.ping(target, seq, ctx);
        true
    }

    fn ping(&mut self, target: Nid, seq: u32, ctx: &mut Ctx<'_>) {
        let Some(entry) = self.table.get(target) else { return };
        let dest = entry.dest(target);
        // That we remember its past (we may be asked to help by who knows it) is no reason to say that it is dead.
        let accused = entry.member.state != State::Alive && !entry.remembered;
        let (view, root) = (self.table.view(), self.root);
        ctx.net.push(dest, tag::PING, |out| {
            out.extend_from_slice(&seq.to_le_bytes());
            out.extend_from_slice(&view.to_le_bytes());
            out.extend_from_slice(&root.to_le_bytes());
        });
        if accused {
            // Lifeguard's buddy system: the accused hears of it first.
            self.push_update(dest, target, false, ctx);
        }
    }

    /// No answer in time: ask for help, or give up.
    pub(super) fn probe_stage(&mut self, seq: u32, at_us: u64, ctx: &mut Ctx<'_>) {
        let Some(probe) = self.probes.get_mut(&seq).filter(|p| p.due_us == at_us) else { return };
        let target = probe.target;
        if probe.stage >= STAGES {
            let probe = self.probes.remove(&seq);
            if let Some(probe) = probe {
                self.probe_failed(&probe, ctx);
            }
            return;
        }
        probe.stage += 1;
        let rest_us = probe.end_us.saturating_sub(ctx.now_us);
        let share_us = if probe.stage == STAGES { rest_us } else { rest_us / 2 };
        probe.due_us = ctx.now_us + share_us.max(1);
        self.timers.set(probe.due_us, Timer::ProbeStage(seq));
        let mut not = vec![target];
        not.extend_from_slice(&probe.helpers);
        let helpers = self.table.pick(HELPERS, &not, ctx.rng);
        for helper in &helpers {
            let Some(dest) = self.table.get(*helper).map(|e| e.dest(*helper)) else { continue };
            ctx.net.push(dest, tag::PING_REQ, |out| {
                out.extend_from_slice(&seq.to_le_bytes());
                out.extend_from_slice(&target.0.to_le_bytes());
            });
        }
        let in_time = rest_us >= 2 * self.timing.nack_us();
        if let Some(probe) = self.probes.get_mut(&seq) {
            probe.helpers.extend(helpers);
            if in_time {
                probe.owing = probe.helpers.len();
            }
        }
        self.ping(target, seq, ctx);
    }

    fn probe_failed(&mut self, probe: &Probe, ctx: &mut Ctx<'_>) {
        // Who is suspect by now was no help; when a rack goes, that is not our illness.
        let alive = |n: &&Nid| self.table.get(**n).is_some_and(|e| e.member.state == State::Alive);
        let helpers = probe.helpers.iter().take(probe.owing).filter(alive).count() as u32;
        if probe.nacks * 2 <= helpers {
            // Helpers that do not even say no: perhaps it is us.
            self.health.worse(1);
            // Or we are taken for an outlived boot: then frames for us are sealed for another, but a greeting is answered.
            if let Some(addr) = self.table.get(probe.target).map(|e| e.member.addr) {
                self.greet(addr, ctx);
            }
        }
        let current = |e: &&table::Entry| e.member.generation == probe.generation;
        if self.table.get(probe.target).filter(current).is_some_and(|e| e.member.state.is_live()) {
            self.accuse_by_me(probe.target, ctx);
        }
    }

    /// An ack, from the target or through a helper.
    pub(super) fn on_ack(&mut self, from: Nid, seq: u32, ctx: &mut Ctx<'_>) {
        if let Some(probe) = self.probes.get(&seq) {
            if from != probe.target && !probe.helpers.contains(&from) {
                return;
            }
            // Karn: after a second ping an ack could belong to either.
            let rtt_us = (probe.stage == 0).then_some(ctx.now_us.saturating_sub(probe.sent_us));
            let target = probe.target;
            self.timers.cancel(probe.due_us, Timer::ProbeStage(seq));
            self.probes.remove(&seq);
            self.health.better();
            if let (Some(rtt_us), Some(entry)) = (rtt_us, self.table.touch(target)) {
                measure(entry, rtt_us);
            }
            return;
        }
        if self.relays.get(&seq).is_some_and(|r| r.target == from)
            && let Some(relay) = self.relays.remove(&seq)
        {
            self.timers.cancel(relay.due_us, Timer::Relay(seq));
            ctx.net.push(relay.origin, tag::ACK, |out| {
                out.extend_from_slice(&relay.seq.to_le_bytes());
            });
        }
    }

    pub(super) fn on_nack(&mut self, from: Nid, seq: u32) {
        if let Some(probe) = self.probes.get_mut(&seq)
            && probe.helpers.contains(&from)
        {
            probe.nacks += 1;
        }
    }

    /// Somebody wants us to probe.
    pub(super) fn on_ping_req(&mut self, origin: Dest, seq: u32, target: Nid, ctx: &mut Ctx<'_>) {
        let known = self.table.get(target).is_some() && target != self.table.my_nid();
        if !known || self.relays.len() >= RELAYS_MAX {
            return nack(origin, seq, ctx);
        }
        self.seq = self.seq.wrapping_add(1);
        let due_us = ctx.now_us + self.timing.nack_us();
        let relay = Relay { origin, seq, target, due_us, nacked: false };
        self.relays.insert(self.seq, relay);
        self.timers.set(due_us, Timer::Relay(self.seq));
        self.ping(target, self.seq, ctx);
    }

    /// No answer for the one who asked: say so, and wait a little longer.
    pub(super) fn relay_due(&mut self, seq: u32, at_us: u64, ctx: &mut Ctx<'_>) {
        let Some(relay) = self.relays.get_mut(&seq).filter(|r| r.due_us == at_us) else { return };
        if relay.nacked {
            self.relays.remove(&seq);
            return;
        }
        relay.nacked = true;
        relay.due_us = ctx.now_us + self.timing.probe_us;
        self.timers.set(relay.due_us, Timer::Relay(seq));
        let (origin, seq) = (relay.origin, relay.seq);
        nack(origin, seq, ctx);
    }
}

fn nack(origin: Dest, seq: u32, ctx: &mut Ctx<'_>) {
    ctx.net.push(origin, tag::NACK, |out| out.extend_from_slice(&seq.to_le_bytes()));
}

/// RFC 6298 section 2.
fn measure(entry: &mut table::Entry, rtt_us: u64) {
    let rtt = u32::try_from(rtt_us).unwrap_or(u32::MAX).max(1);
    if entry.member.rtt_us == 0 {
        (entry.member.rtt_us, entry.rttvar_us) = (rtt, rtt / 2);
        return;
    }
    let off = entry.member.rtt_us.abs_diff(rtt);
    entry.rttvar_us = entry.rttvar_us - entry.rttvar_us / 4 + off / 4;
    entry.member.rtt_us = (entry.member.rtt_us - entry.member.rtt_us / 8 + rtt / 8).max(1);
}
