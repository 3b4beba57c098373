//! Messages between members, and the comparison of views that repairs what rumours missed.

use crate::member::{Nid, State};
use crate::message::{MEMBER_BUCKETS, Message, Update, tag};
use crate::outbox::{Dest, ROOM_BYTES};
use crate::swim::{Ctx, Swim};

/// Comparisons that change nothing are repeated ever more slowly, up to so many times the shortest interval.
const SYNC_STRETCH_MAX: u64 = 32;

impl Swim {
    /// A message of a bound frame. `dest` answers exactly the boot that sent it.
    pub(crate) fn on_message(
        &mut self,
        nid: Nid,
        dest: Dest,
        message: &Message<'_>,
        ctx: &mut Ctx<'_>,
    ) {
        match *message {
            Message::Ping { seq, view, .. } => {
                ctx.net.push(dest, tag::ACK, |out| out.extend_from_slice(&seq.to_le_bytes()));
                self.look_at(nid, dest, view, ctx);
            }
            Message::Ack { seq } => self.on_ack(nid, seq, ctx),
            Message::Nack { seq } => self.on_nack(nid, seq),
            Message::PingReq { seq, target } => self.on_ping_req(dest, seq, target, ctx),
            Message::Updates(mut reader) => {
                self.speaker = Some(nid);
                while let Some(update) =
                    Update::read_with(&mut reader, |name| self.table.nid_of(name))
                {
                    self.apply(&update, ctx);
                }
                self.speaker = None;
            }
            Message::HelloAck(update, _) if update.nid == nid => {
                self.on_hello_ack(dest, &update, ctx)
            }
            Message::Outdated { generation, addr } => {
                self.on_outdated(dest, generation, addr, ctx);
            }
            Message::WhoAreYou if self.stays_out() => {}
            Message::WhoAreYou => self.push_update(dest, self.table.my_nid(), true, ctx),
            Message::MemberDigest(theirs) => {
                let buckets = self.table.differing(&theirs);
                self.push_entries(dest, buckets, ctx);
                ctx.net.push(dest, tag::MEMBER_WANT, |out| {
                    out.extend_from_slice(&buckets.to_le_bytes());
                });
            }
            Message::MemberWant { buckets } => {
                self.push_entries(dest, buckets, ctx);
                self.joined(ctx);
            }
            _ => {}
        }
    }

    /// A ping shows who pings and what it knows.
    fn look_at(&mut self, nid: Nid, dest: Dest, view: u32, ctx: &mut Ctx<'_>) {
        match self.table.get(nid).map(|e| e.member.state) {
            // It cannot know: it would have refuted.
            Some(State::Dead | State::Left) => self.push_update(dest, nid, false, ctx),
            Some(_) => {}
            None => return,
        }
        if view == self.table.view() {
            // Who was found before it found anybody may have nothing to exchange.
            self.joined(ctx);
            return;
        }
        if ctx.now_us < self.sync_after_us {
            return;
        }
        let stretched = self.sync_wait_us * 2;
        let max_us = self.timing.sync_us * SYNC_STRETCH_MAX;
        let still = self.table.view() == self.synced_view;
        self.sync_wait_us = if still { stretched.min(max_us) } else { self.timing.sync_us };
        self.synced_view = self.table.view();
        self.sync_after_us = ctx.now_us + self.sync_wait_us;
        self.push_digest(dest, ctx);
    }

    pub(super) fn push_digest(&self, dest: Dest, ctx: &mut Ctx<'_>) {
        let digest = self.table.digest();
        ctx.net.push(dest, tag::MEMBER_DIGEST, |out| {
            for hash in digest {
                out.extend_from_slice(&hash.to_le_bytes());
            }
        });
    }

    /// All entries of some buckets, in full.
    fn push_entries(&self, dest: Dest, buckets: u64, ctx: &mut Ctx<'_>) {
        let mut packed: Vec<u8> = Vec::with_capacity(ROOM_BYTES);
        let mut one = Vec::with_capacity(128);
        for bucket in (0..MEMBER_BUCKETS).filter(|b| buckets & (1 << b) != 0) {
            for (nid, _) in self.table.in_bucket(bucket) {
                one.clear();
                self.write_update(nid, true, &mut one);
                if packed.len() + one.len() + 3 > ROOM_BYTES {
                    ctx.net.push(dest, tag::UPDATES, |out| out.append(&mut packed));
                }
                packed.extend_from_slice(&one);
            }
        }
        // What one side has dropped the other still lists: say so.
        for nid in self.forgotten.keys() {
            let bucket = nid.0 >> (64 - MEMBER_BUCKETS.trailing_zeros());
            if buckets & (1 << bucket) == 0 {
                continue;
            }
            one.clear();
            self.write_update(*nid, true, &mut one);
            if packed.len() + one.len() + 3 > ROOM_BYTES {
                ctx.net.push(dest, tag::UPDATES, |out| out.append(&mut packed));
            }
            packed.extend_from_slice(&one);
        }
        if !packed.is_empty() {
            ctx.net.push(dest, tag::UPDATES, |out| out.append(&mut packed));
        }
    }
}
