//! Two nodes of one name: whoever comes later stays out while the other one answers.
//!
//! ```text
//!  newcomer ──hello──▶ a member that holds the name alive elsewhere ──ack, and where──▶ newcomer
//!  newcomer ──hello──▶ there ──answered──▶ stays out, says so, asks again later
//!                            ──silence───▶ it was this node at an older address: goes in
//! ```
//!
//! Before its first introduction a node is known to nobody, so that nobody has to unlearn it: no duel, no flapping.

use std::net::SocketAddr;

use crate::swim::{Ctx, Swim, Timer};

/// Wait for an answer of the other one.
const ANSWER_US: u64 = 250_000;
/// Greetings unanswered until it counts as gone.
const TRIES: u32 = 3;
/// When the other one lives: pause until it is greeted again.
const AGAIN_US: u64 = 5_000_000;

/// The other one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Namesake {
    addr: SocketAddr,
    unanswered: u32,
    due_us: u64,
    /// It did not answer: the name is ours.
    gone: bool,
}

impl Swim {
    /// This node must not introduce itself now.
    pub(crate) fn stays_out(&self) -> bool {
        self.namesake.is_some_and(|n| !n.gone)
    }

    /// A member holds our name alive at another address.
    pub(super) fn namesake_seen(&mut self, addr: SocketAddr, ctx: &mut Ctx<'_>) {
        if self.contact.joined || self.namesake.is_some_and(|n| !n.gone || n.addr == addr) {
            return;
        }
        let due_us = ctx.now_us + ANSWER_US;
        self.namesake = Some(Namesake { addr, unanswered: 0, due_us, gone: false });
        self.greet(addr, ctx);
        self.timers.set(due_us, Timer::Namesake);
    }

    /// It answers: it was here first. `false`: that is not where we look for it.
    pub(super) fn namesake_answers(&mut self, addr: SocketAddr, ctx: &mut Ctx<'_>) -> bool {
        let Some(namesake) = self.namesake.as_mut().filter(|n| !n.gone && n.addr == addr) else {
            return false;
        };
        namesake.unanswered = 0;
        namesake.due_us = ctx.now_us + AGAIN_US;
        self.timers.set(namesake.due_us, Timer::Namesake);
        self.conflict(addr, ctx);
        true
    }

    pub(super) fn namesake_due(&mut self, ctx: &mut Ctx<'_>) {
        let due = |n: &&mut Namesake| !n.gone && n.due_us <= ctx.now_us;
        let Some(namesake) = self.namesake.as_mut().filter(due) else { return };
        if namesake.unanswered < TRIES {
            namesake.unanswered += 1;
            namesake.due_us = ctx.now_us + ANSWER_US;
            let (addr, due_us) = (namesake.addr, namesake.due_us);
            self.greet(addr, ctx);
            self.timers.set(due_us, Timer::Namesake);
        } else {
            namesake.gone = true;
            self.timers.set(ctx.now_us, Timer::Contact);
        }
    }
}
