//! What others say about this node: it refutes, steps above its own past, and notices who else has its name.

use std::net::SocketAddr;

use crate::api::{Event, Output, Persist};
use crate::message::{GENERATION_MAX, Standing, Update};
use crate::swim::queue::Queue;
use crate::swim::{Ctx, Swim};

/// A claim to our own name is stepped over this often in one boot, then only reported.
const OUTBID_MAX: u32 = 3;

impl Swim {
    /// Somebody talks about us.
    pub(super) fn about_me(&mut self, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        if self.leave_rounds.is_some() {
            return;
        }
        self.notice_death(u, ctx);
        let me = self.table.me();
        let (mine, theirs) = ((me.generation, me.incarnation), (u.generation, u.incarnation));
        let claimed = u.full.map(|(_, addr)| addr).filter(|addr| *addr != me.addr);
        if theirs < mine
            && matches!(u.standing, Standing::Alive | Standing::Suspect)
            && let Some(addr) = claimed
        {
            return self.namesake_seen(addr, ctx);
        }
        if theirs < mine {
            return;
        }
        let outbid = u.generation > me.generation;
        if u.standing == Standing::Alive {
            // One claim from elsewhere may be our own past at another address. A second one is alive.
            if let Some(addr) = claimed
                && (!outbid || self.outbids > 0)
            {
                self.conflict(addr, ctx);
            }
            if theirs == mine {
                if claimed.is_none() {
                    Queue::heard(u.nid, &mut self.table);
                }
                return;
            }
        }
        if outbid || u.incarnation + 1 >= GENERATION_MAX {
            self.outbid(u.generation, ctx);
            return;
        }
        self.table.update(self.table.my_nid(), |entry| {
            entry.member.incarnation = u.incarnation + 1;
        });
        if u.standing == Standing::Suspect {
            self.health.worse(1);
        }
        self.news(self.table.my_nid(), ctx);
    }

    /// Somebody holds this boot of ours dead. The suspicion before it may have been refuted a moment ago, out of the same
    /// backlog: each death is news once, whatever our incarnation is by now.
    fn notice_death(&mut self, u: &Update<'_>, ctx: &mut Ctx<'_>) {
        let death = (u.generation, u.incarnation);
        let ours = u.generation == self.table.me().generation;
        if u.standing != Standing::Dead
            || !ours
            || self.last_death.is_some_and(|last| death <= last)
        {
            return;
        }
        self.last_death = Some(death);
        // One that we held dead ourselves was on the other side of a cut; one that we hold alive saw us stand still.
        let speaker = self.speaker.and_then(|nid| self.table.get(nid));
        if speaker.is_some_and(|e| e.member.state.is_live()) {
            ctx.event(Event::HeldDead);
        }
    }

    /// Steps above a generation that the flock remembers of our name: our boot counter was lost, or another node has our
    /// name. Once is normal, a duel is not. Whether it did.
    pub(super) fn outbid(&mut self, generation: u64, ctx: &mut Ctx<'_>) -> bool {
        if self.outbids >= OUTBID_MAX || generation >= GENERATION_MAX - 1 {
            return false;
        }
        self.outbids += 1;
        let generation = generation + 1;
        ctx.out.push(Output::Persist(Persist::Generation(generation)));
        self.table.update(self.table.my_nid(), |entry| {
            (entry.member.generation, entry.member.incarnation) = (generation, 0);
        });
        self.news(self.table.my_nid(), ctx);
        true
    }

    pub(super) fn conflict(&mut self, addr: SocketAddr, ctx: &mut Ctx<'_>) {
        const QUIET_US: u64 = 10_000_000;
        if self.conflict_us == 0 || ctx.now_us >= self.conflict_us + QUIET_US {
            self.conflict_us = ctx.now_us.max(1);
            ctx.event(Event::NameConflict { addr });
        }
    }

    /// This node is reached elsewhere from now on.
    pub(crate) fn readdress(&mut self, addr: SocketAddr, ctx: &mut Ctx<'_>) {
        self.table.update(self.table.my_nid(), |entry| {
            entry.member.addr = addr;
            entry.member.incarnation += 1;
        });
        self.news(self.table.my_nid(), ctx);
    }
}
