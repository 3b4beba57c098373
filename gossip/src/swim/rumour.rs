//! News about members on its way out: in rounds of its own, and on packets that leave anyway.

use std::collections::BTreeMap;

use crate::member::{Nid, State};
use crate::message::{Standing, Update, tag};
use crate::outbox::Dest;
use crate::swim::queue::Turn;
use crate::swim::table::{Entry, Table};
use crate::swim::{Ctx, Swim, Timer};

/// Peers of one rumour round.
const FANOUT: usize = 3;
/// Packets to one peer in one rumour round.
const ROUND_PACKETS_MAX: usize = 4;

impl Swim {
    /// Puts a member first in line of the rumours and sees to it that they leave soon.
    pub(crate) fn news(&mut self, nid: Nid, ctx: &mut Ctx<'_>) {
        const BREATH_US: u64 = 50_000;
        self.queue.push(nid, &mut self.table);
        let spread = self.timing.eager_us / 2 + self.jitter(self.timing.eager_us, ctx);
        let soon = (ctx.now_us + spread).max(self.flushed_us + BREATH_US);
        if self.flush_at.is_none_or(|at| at > soon) {
            self.flush_at = Some(soon);
            self.timers.set(soon, Timer::Flush);
        }
    }

    /// One rumour round.
    pub(super) fn flush(&mut self, ctx: &mut Ctx<'_>) {
        self.flush_at = None;
        self.flushed_us = ctx.now_us;
        for nid in self.table.pick(FANOUT, &[], ctx.rng) {
            let Some(dest) = self.table.get(nid).map(|e| e.dest(nid)) else { continue };
            for _ in 0..ROUND_PACKETS_MAX {
                let room = crate::outbox::ROOM_BYTES - 3;
                let Some(bytes) =
                    ctx.net.push_some(dest, tag::UPDATES, |out| self.pack(out, room, nid))
                else {
                    break;
                };
                if bytes + 64 < room {
                    break;
                }
            }
        }
        if !self.queue.is_empty() {
            let at_us = ctx.now_us + self.timing.gossip_us;
            self.flush_at = Some(at_us);
            self.timers.set(at_us, Timer::Flush);
        }
    }

    /// Writes queued news behind what is in `out`, at most `room` bytes; returns how many.
    fn pack(&mut self, out: &mut Vec<u8>, room: usize, to: Nid) -> usize {
        // Lambda 4 of memberlist, per decade of members.
        let decades = (self.table.live().len() + 1).ilog10() + 1;
        let limit = 4 * decades as usize;
        let start = out.len();
        let forgotten = &self.forgotten;
        self.queue.send(&mut self.table, limit, |nid, table| {
            if nid == to && table.get(nid).is_some_and(|e| e.suspicion.is_none()) {
                return Turn::Passed;
            }
            let before = out.len();
            write_update(forgotten, table, nid, (false, nid == to), out);
            if out.len() - start > room {
                out.truncate(before);
                return Turn::Full;
            }
            Turn::Sent
        })
    }

    /// Riders for a packet that leaves anyway. `packet` already has its head.
    pub(crate) fn ride(&mut self, dest: Dest, packet: &mut Vec<u8>, room: usize) {
        const MIN_BYTES: usize = 40;
        let crate::frame::Binding::To { nid, generation } = dest.to else { return };
        if self.queue.is_empty() || self.stays_out() || room < MIN_BYTES {
            return;
        }
        // News rides to whom we know, where we know it to be. Who greets from elsewhere, or is outlived, may be a recording of
        // anybody: the answer stays short.
        let known = |e: &Entry| e.member.generation <= generation && e.member.addr == dest.addr;
        if !self.table.get(nid).is_some_and(known) {
            return;
        }
        crate::outbox::message(packet, tag::UPDATES, |out| self.pack(out, room - 3, nid));
    }

    /// In full, for others than itself.
    pub(super) fn write_entry(&self, nid: Nid, out: &mut Vec<u8>) {
        write_update(&self.forgotten, &self.table, nid, (true, false), out);
    }

    /// About the addressee, or about nobody who is suspect.
    pub(super) fn push_update(&self, dest: Dest, nid: Nid, full: bool, ctx: &mut Ctx<'_>) {
        ctx.net.push(dest, tag::UPDATES, |out| {
            write_update(&self.forgotten, &self.table, nid, (full, true), out);
        });
    }
}

/// What we hold to be true of a member, for the wire: in full or short, for itself or for others.
fn write_update(
    forgotten: &BTreeMap<Nid, (u64, u64)>,
    table: &Table,
    nid: Nid,
    (full, itself): (bool, bool),
    out: &mut Vec<u8>,
) {
    if let Some((generation, incarnation)) = forgotten.get(&nid) {
        let (generation, incarnation) = (*generation, *incarnation);
        let (full, accusers) = (None, Default::default());
        let standing = Standing::Forgotten;
        return Update { nid, full, generation, incarnation, standing, accusers }.write(out);
    }
    let Some(entry) = table.get(nid) else { return };
    let m = &entry.member;
    let accusers = entry.suspicion.as_ref().map(|s| s.accusers).unwrap_or_default();
    // What is only rumoured to be dead is asked, and nobody is told but itself: else a thousand would ask.
    let rumour = m.state == State::Suspect && accusers.len() == 0 && !itself;
    let state = if rumour { State::Alive } else { m.state };
    let full = (full || state == State::Alive).then_some((entry.name(), m.addr));
    Update {
        nid,
        full,
        generation: m.generation,
        incarnation: m.incarnation,
        standing: state.into(),
        accusers,
    }
    .write(out);
}
