//! Finding the flock on one's own link, without an address: a beacon to a multicast group, answered by a few.
//!
//! A beacon is an open frame, as a greeting is: sealed with the flock's key, never believed, answered once. Whoever knows
//! the sender already is silent, so a flock at rest hears one beacon in five seconds and nobody answers it. A newcomer is
//! answered by about three, however many hear it. Two flocks that formed apart on one link meet by the same beacons.

use std::net::SocketAddr;

use crate::message::{Update, tag};
use crate::outbox::Dest;
use crate::swim::table::below;
use crate::swim::{Ctx, Swim};

/// Time between two beacons of a flock with company, whoever sends them.
const BEACON_US: u64 = 5_000_000;
/// Nodes that answer a newcomer, about.
const ANSWERERS: usize = 3;
/// Beacons one node answers a second; the rest is ignored: the sender will be heard again, or by others.
const ANSWERS_PER_S: u32 = 16;
/// Unanswered beacons after which a node without seeds takes itself for the flock.
const TRIES: u32 = 4;

/// State of the search on the link.
#[derive(Debug, Default)]
pub(crate) struct Discover {
    group: Option<SocketAddr>,
    beacon_us: u64,
    second: u64,
    answers: u32,
}

impl Discover {
    pub(super) fn new(group: Option<SocketAddr>) -> Discover {
        Discover { group, ..Discover::default() }
    }

    /// Whether an answer may still come, after so many rounds alone.
    pub(super) fn waits(&self, rounds: u32) -> bool {
        self.group.is_some() && rounds < TRIES
    }

    fn may_answer(&mut self, now_us: u64) -> bool {
        let second = now_us / 1_000_000;
        if second != self.second {
            (self.second, self.answers) = (second, 0);
        }
        self.answers += 1;
        self.answers <= ANSWERS_PER_S
    }
}

impl Swim {
    /// Sends a beacon if one is due: at every look while alone, seldom when not.
    pub(super) fn beacon(&mut self, ctx: &mut Ctx<'_>) {
        let Some(addr) = self.contact.discover.group else { return };
        let company = self.table.live().len() as u64;
        if company > 0 && ctx.now_us < self.contact.discover.beacon_us + BEACON_US * (company + 1) {
            return;
        }
        self.contact.discover.beacon_us = ctx.now_us;
        let dest = Dest { addr, to: crate::frame::Binding::Open };
        let me = self.table.me().info();
        ctx.net.push(dest, tag::BEACON, |out| Update::of(&me).write(out));
    }

    /// Somebody looks for the flock on this link. It is answered, not believed: it might be a recording. Whether it was.
    pub(crate) fn on_beacon(
        &mut self,
        from: SocketAddr,
        u: &Update<'_>,
        (boot, counter): (u64, u64),
        ctx: &mut Ctx<'_>,
    ) -> bool {
        if self.contact.discover.group.is_none() || self.leave_rounds.is_some() || self.stays_out()
        {
            return false;
        }
        let known = self.table.get(u.nid).is_some_and(|e| {
            let same = e.member.generation == u.generation && (e.boot == 0 || e.boot == boot);
            e.member.state.is_live() && same
        });
        let hearers = self.table.live().len() + 1;
        if known || below(ctx.rng, hearers) >= ANSWERERS {
            return false;
        }
        let fresh = self.contact.discover.may_answer(ctx.now_us)
            && self.contact.admit(boot, counter, ctx.now_us);
        if fresh {
            self.answer(from, u, boot, ctx);
        }
        fresh
    }
}
