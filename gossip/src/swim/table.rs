//! The members we know, their summary hashes, and who of them may be picked.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use rand::Rng;

use crate::frame::Window;
use crate::member::{Member, Nid, State};
use crate::message::{Accusers, MEMBER_BUCKETS};
use crate::outbox::Dest;
use crate::wire::mix;

const NOT_LIVE: u32 = u32::MAX;

/// A running suspicion.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suspicion {
    pub(crate) since_us: u64,
    pub(crate) deadline_us: u64,
    pub(crate) min_us: u64,
    pub(crate) max_us: u64,
    pub(crate) accusers: Accusers,
    /// Our own probe failed since it began.
    pub(crate) verified: bool,
    /// It began with a rumour of death: only a failed probe of our own ends it so.
    pub(crate) rumoured: bool,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) member: Member,
    pub(crate) rttvar_us: u32,
    /// From our disk, confirmed by nobody yet: not passed on.
    pub(crate) remembered: bool,
    /// Boot id and counters of its frames.
    pub(crate) boot: u64,
    pub(crate) window: Window,
    pub(crate) changed_us: u64,
    pub(crate) suspicion: Option<Box<Suspicion>>,
    live_at: u32,
}

impl Entry {
    /// Where and for whom to seal.
    pub(crate) fn dest(&self, nid: Nid) -> Dest {
        let to = crate::frame::Binding::To { nid, generation: self.member.generation };
        Dest { addr: self.member.addr, to }
    }

    fn contribution(&self, nid: Nid) -> u64 {
        if self.remembered {
            return 0;
        }
        let m = &self.member;
        // A suspicion is passing weather and not worth a table comparison.
        let class = match m.state {
            State::Alive | State::Suspect => 0,
            State::Dead => 1,
            State::Left => 2,
        };
        mix(nid.0, mix(m.generation, m.incarnation << 2 | class))
    }
}

/// All members, this node included.
#[derive(Debug)]
pub(crate) struct Table {
    entries: BTreeMap<Nid, Entry>,
    me: Nid,
    /// Live members but this node, for O(1) random picks.
    live: Vec<Nid>,
    buckets: [u64; MEMBER_BUCKETS],
    all: u64,
}

impl Table {
    pub(crate) fn new(me: Member) -> Table {
        let nid = Nid::of(&me.name);
        let mut table = Table {
            entries: BTreeMap::new(),
            me: nid,
            live: Vec::new(),
            buckets: [0; MEMBER_BUCKETS],
            all: 0,
        };
        table.insert(nid, me, false, 0);
        table
    }

    pub(crate) fn my_nid(&self) -> Nid {
        self.me
    }

    pub(crate) fn me(&self) -> &Member {
        let entry = self.entries.get(&self.me);
        &entry.expect("inserted by new, and remove refuses it").member
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Live members but this node.
    pub(crate) fn live(&self) -> &[Nid] {
        &self.live
    }

    pub(crate) fn get(&self, nid: Nid) -> Option<&Entry> {
        self.entries.get(&nid)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Nid, &Entry)> {
        self.entries.iter().map(|(nid, e)| (*nid, e))
    }

    /// Everybody but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = (Nid, &Entry)> {
        self.iter().filter(|(nid, _)| *nid != self.me)
    }

    pub(crate) fn insert(&mut self, nid: Nid, member: Member, remembered: bool, now_us: u64) {
        debug_assert!(!self.entries.contains_key(&nid));
        let entry = Entry {
            member,
            rttvar_us: 0,
            remembered,
            boot: 0,
            window: Window::default(),
            changed_us: now_us,
            suspicion: None,
            live_at: NOT_LIVE,
        };
        self.entries.insert(nid, entry);
        self.toggle(nid);
        self.relist(nid);
    }

    /// Changes a member and keeps the summaries true.
    pub(crate) fn update<R>(
        &mut self,
        nid: Nid,
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        self.toggle(nid);
        let result = self.entries.get_mut(&nid).map(change);
        self.toggle(nid);
        self.relist(nid);
        result
    }

    /// Changes what no summary covers.
    pub(crate) fn touch(&mut self, nid: Nid) -> Option<&mut Entry> {
        self.entries.get_mut(&nid)
    }

    pub(crate) fn remove(&mut self, nid: Nid) -> Option<Entry> {
        assert!(nid != self.me, "this node is always a member");
        self.unlist(nid);
        self.toggle(nid);
        self.entries.remove(&nid)
    }

    /// Summary of the whole view.
    pub(crate) fn view(&self) -> u32 {
        (self.all ^ self.all >> 32) as u32
    }

    pub(crate) fn digest(&self) -> [u32; MEMBER_BUCKETS] {
        self.buckets.map(|b| (b ^ b >> 32) as u32)
    }

    /// Bits of the buckets in which a peer's digest differs.
    pub(crate) fn differing(&self, theirs: &[u32; MEMBER_BUCKETS]) -> u64 {
        let pairs = self.digest().into_iter().zip(theirs).enumerate();
        pairs.fold(0, |bits, (i, (a, b))| if a == *b { bits } else { bits | 1 << i })
    }

    pub(crate) fn in_bucket(&self, bucket: usize) -> impl Iterator<Item = (Nid, &Entry)> {
        const SHIFT: u32 = 64 - MEMBER_BUCKETS.trailing_zeros();
        let first = (bucket as u64) << SHIFT;
        let last = first | ((1 << SHIFT) - 1);
        self.entries
            .range(Nid(first)..=Nid(last))
            .filter(|(_, e)| !e.remembered)
            .map(|(nid, e)| (*nid, e))
    }

    /// The live member that follows this node in the order of name hashes: it is ours to watch. Whom our own probe has
    /// missed already is passed over, so that a gap of several is found as fast as one.
    pub(crate) fn successor(&self) -> Option<Nid> {
        let live = |(nid, e): (&Nid, &Entry)| {
            let missed = e.suspicion.as_ref().is_some_and(|s| s.verified);
            (e.live_at != NOT_LIVE && !missed).then_some(*nid)
        };
        let after =
            self.entries.range((std::ops::Bound::Excluded(self.me), std::ops::Bound::Unbounded));
        after.chain(self.entries.range(..self.me)).find_map(live)
    }

    /// Up to `want` different live members, none of them in `not`.
    pub(crate) fn pick(&self, want: usize, not: &[Nid], rng: &mut dyn Rng) -> Vec<Nid> {
        let mut picked = Vec::with_capacity(want);
        let count = self.live.len();
        if count <= want + not.len() + 2 {
            picked.extend(self.live.iter().filter(|n| !not.contains(n)));
            shuffle(&mut picked, rng);
            picked.truncate(want);
            return picked;
        }
        // Few collisions: there are more live members than picks and exclusions together.
        for _ in 0..want * 8 {
            if picked.len() == want {
                break;
            }
            if let Some(nid) = self.live.get(below(rng, count))
                && !not.contains(nid)
                && !picked.contains(nid)
            {
                picked.push(*nid);
            }
        }
        picked
    }

    pub(crate) fn has_live_addr(&self, addr: SocketAddr) -> bool {
        self.iter().any(|(_, e)| e.member.state.is_live() && e.member.addr == addr)
    }

    fn toggle(&mut self, nid: Nid) {
        let Some(entry) = self.entries.get(&nid) else { return };
        let bucket = (nid.0 >> (64 - MEMBER_BUCKETS.trailing_zeros())) as usize;
        if let Some(hash) = self.buckets.get_mut(bucket) {
            *hash ^= entry.contribution(nid);
            self.all ^= entry.contribution(nid);
        }
    }

    fn relist(&mut self, nid: Nid) {
        let Some(entry) = self.entries.get_mut(&nid) else { return };
        let live = entry.member.state.is_live() && nid != self.me;
        if live && entry.live_at == NOT_LIVE {
            entry.live_at = self.live.len() as u32;
            self.live.push(nid);
        } else if !live {
            self.unlist(nid);
        }
    }

    fn unlist(&mut self, nid: Nid) {
        let Some(entry) = self.entries.get_mut(&nid) else { return };
        let at = std::mem::replace(&mut entry.live_at, NOT_LIVE);
        if at == NOT_LIVE {
            return;
        }
        self.live.swap_remove(at as usize);
        if let Some(moved) = self.live.get(at as usize)
            && let Some(entry) = self.entries.get_mut(moved)
        {
            entry.live_at = at;
        }
    }
}

/// Uniform below `bound` (which is at least 1), by multiply and shift.
pub(crate) fn below(rng: &mut dyn Rng, bound: usize) -> usize {
    ((u128::from(rng.next_u64()) * bound as u128) >> 64) as usize
}

pub(crate) fn shuffle<T>(items: &mut [T], rng: &mut dyn Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}
