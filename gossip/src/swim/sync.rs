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
            Message::Hints(reader) => self.on_hints(reader, ctx),
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
        let Some(entry) = self.table.get(nid) else { return };
        match entry.member.state {
            // It lives; that we remember its past is no reason to say that it is dead.
            _ if entry.remembered => ctx.net.push(dest, tag::WHO_ARE_YOU, |_| {}),
            // It cannot know: it would have refuted.
            State::Dead | State::Left => self.push_update(dest, nid, false, ctx),
            State::Alive | State::Suspect => {}
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

    /// All entries of some buckets, in full; as hints, who is only remembered.
    fn push_entries(&self, dest: Dest, buckets: u64, ctx: &mut Ctx<'_>) {
        let mut known = Pages::new(tag::UPDATES, dest);
        let mut hints = Pages::new(tag::HINTS, dest);
        for bucket in (0..MEMBER_BUCKETS).filter(|b| buckets & (1 << b) != 0) {
            for (nid, entry) in self.table.in_bucket(bucket) {
                let pages = if entry.remembered { &mut hints } else { &mut known };
                pages.add(ctx, |out| self.write_entry(nid, out));
            }
        }
        // What one side has dropped the other still lists: say so.
        for nid in self.forgotten.keys() {
            let bucket = nid.0 >> (64 - MEMBER_BUCKETS.trailing_zeros());
            if buckets & (1 << bucket) != 0 {
                known.add(ctx, |out| self.write_entry(*nid, out));
            }
        }
        known.send(ctx);
        hints.send(ctx);
    }
}

/// Updates for one peer, in messages that each fit a packet.
struct Pages {
    tag: u8,
    dest: Dest,
    packed: Vec<u8>,
}

impl Pages {
    fn new(tag: u8, dest: Dest) -> Pages {
        Pages { tag, dest, packed: Vec::new() }
    }

    fn add(&mut self, ctx: &mut Ctx<'_>, write: impl FnOnce(&mut Vec<u8>)) {
        if self.packed.capacity() == 0 {
            self.packed.reserve(ROOM_BYTES);
        }
        let full = self.packed.len();
        write(&mut self.packed);
        if self.packed.len() + 3 > ROOM_BYTES {
            let one = self.packed.split_off(full);
            self.send(ctx);
            self.packed.extend_from_slice(&one);
        }
    }

    fn send(&mut self, ctx: &mut Ctx<'_>) {
        if !self.packed.is_empty() {
            ctx.net.push(self.dest, self.tag, |out| out.append(&mut self.packed));
        }
    }
}
