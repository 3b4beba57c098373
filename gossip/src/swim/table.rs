//! The members we know, their summary hashes, and who of them may be picked.

mod entry;

pub(crate) use entry::{Entry, Suspicion};

use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::Range;

use rand::Rng;

use crate::member::{Member, Nid};
use crate::message::MEMBER_BUCKETS;
use entry::NOT_LIVE;

/// Steps from a guessed place; hashes need a few, more is a sign of chosen ids.
const STEPS_MAX: usize = 32;
/// Neighbouring places in the index of names that one may stand in.
const NAME_SLOTS: usize = 4;

/// All members, this node included.
///
/// Ids are hashes, so where one stands in the order is known nearly exactly from its value: a look-up reads one or two
/// cache lines of a compact list, and the member. A thousand tables of a thousand members do not fit any cache, and
/// a tree of whole members took a fifth of the time of such a simulation.
#[derive(Debug)]
pub(crate) struct Table {
    /// In the order of ids, with the place of the entry.
    order: Vec<(Nid, u32)>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Places of entries by a quick hash of the name, with another part of the hash; where there is no room a later one stands
    /// over an earlier one: a guess at whose name it is.
    names: Vec<(u32, u32)>,
    /// Place of the last entry that was found: who is looked up is looked up again in the same breath.
    last: Cell<u32>,
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
            order: Vec::new(),
            entries: Vec::new(),
            free: Vec::new(),
            names: Vec::new(),
            last: Cell::new(0),
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
        &self.get(self.me).expect("inserted by new, and remove refuses it").member
    }

    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }

    /// Live members but this node.
    pub(crate) fn live(&self) -> &[Nid] {
        &self.live
    }

    pub(crate) fn get(&self, nid: Nid) -> Option<&Entry> {
        self.entry(self.place(nid)?)
    }

    /// Where its entry is.
    fn place(&self, nid: Nid) -> Option<u32> {
        let last = self.last.get();
        if self.entry(last).is_some_and(|e| e.nid == nid) {
            return Some(last);
        }
        let place = self.order.get(self.find(nid).ok()?)?.1;
        self.last.set(place);
        Some(place)
    }

    /// Place of the entry that was found last.
    pub(crate) fn last(&self) -> u32 {
        self.last.get()
    }

    /// The same as [`Table::get`], for one whose entry was at that place some time ago.
    pub(crate) fn get_at(&self, place: u32, nid: Nid) -> Option<&Entry> {
        self.last.set(place);
        self.get(nid)
    }

    /// [`Nid::of`], which takes longer than all else about a piece of known news: from the table when the name is in it.
    pub(crate) fn nid_of(&self, name: &str) -> Nid {
        self.named(name).map_or_else(|| Nid::of(name), |entry| entry.nid)
    }

    /// By name, if the index has it.
    fn named(&self, name: &str) -> Option<&Entry> {
        let hash = quick_hash(name);
        let (place, entry) = self.name_slots(hash).find_map(|at| {
            let (tag, place) = *self.names.get(at)?;
            let entry = self.entry(place).filter(|_| tag == tag_of(hash))?;
            entry.is_named(name).then_some((place, entry))
        })?;
        self.last.set(place);
        Some(entry)
    }

    /// Where a name of this hash may stand.
    fn name_slots(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.names.len().wrapping_sub(1);
        (0..NAME_SLOTS).map(move |step| (hash as usize).wrapping_add(step) & mask)
    }

    fn note_name(&mut self, place: u32) {
        if self.entries.len() * 2 > self.names.len() {
            // Twice as many as names, at least, and a power of two.
            let len = (self.entries.len() * 2).next_power_of_two();
            self.names = vec![(0, u32::MAX); len];
            (0..self.entries.len() as u32).for_each(|place| self.set_name(place));
        }
        self.set_name(place);
    }

    fn set_name(&mut self, place: u32) {
        let Some(hash) = self.entry(place).map(|e| quick_hash(e.name())) else { return };
        let stale = |at: &usize| {
            let other = self.names.get(*at).map_or(u32::MAX, |(_, other)| *other);
            other == place || self.entry(other).is_none()
        };
        let free = self.name_slots(hash).find(stale).or(self.name_slots(hash).next());
        if let Some(slot) = free.and_then(|at| self.names.get_mut(at)) {
            *slot = (tag_of(hash), place);
        }
    }

    fn entry(&self, place: u32) -> Option<&Entry> {
        self.entries.get(place as usize)?.as_ref()
    }

    fn get_mut(&mut self, nid: Nid) -> Option<&mut Entry> {
        let place = self.place(nid)?;
        self.entries.get_mut(place as usize)?.as_mut()
    }

    /// Where an id stands in the order, or would stand: a guess from its value, then a step at a time.
    fn find(&self, nid: Nid) -> Result<usize, usize> {
        let count = self.order.len();
        let guess = (u128::from(nid.0) * count as u128) >> 64;
        let mut at = (guess as usize).min(count);
        for _ in 0..STEPS_MAX {
            let before = at.checked_sub(1).and_then(|before| self.order.get(before));
            if before.is_some_and(|(other, _)| *other >= nid) {
                at -= 1;
                continue;
            }
            match self.order.get(at) {
                Some((other, _)) if *other < nid => at += 1,
                Some((other, _)) if *other == nid => return Ok(at),
                _ => return Err(at),
            }
        }
        // Ids that somebody chose, not hashes of names.
        self.order.binary_search_by_key(&nid, |(nid, _)| *nid)
    }

    /// The entries from one place in the order to another.
    fn between(&self, places: Range<usize>) -> impl Iterator<Item = (Nid, &Entry)> {
        let order = self.order.get(places).unwrap_or_default();
        order.iter().filter_map(|(nid, place)| {
            self.last.set(*place);
            Some((*nid, self.entry(*place)?))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Nid, &Entry)> {
        self.between(0..self.order.len())
    }

    /// Everybody but this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = (Nid, &Entry)> {
        self.iter().filter(|(nid, _)| *nid != self.me)
    }

    pub(crate) fn insert(&mut self, nid: Nid, member: Member, remembered: bool, now_us: u64) {
        let entry = Entry::new(nid, member, remembered, now_us);
        match self.find(nid) {
            // The caller has looked; a second one takes the place of the first.
            Ok(_) => {
                self.toggle(nid);
                if let Some(known) = self.get_mut(nid) {
                    let (live_at, news) = (known.live_at, known.news);
                    *known = entry;
                    (known.live_at, known.news) = (live_at, news);
                }
            }
            Err(at) => {
                let place = self.free.pop().unwrap_or(self.entries.len() as u32);
                match self.entries.get_mut(place as usize) {
                    Some(slot) => *slot = Some(entry),
                    None => self.entries.push(Some(entry)),
                }
                self.order.insert(at, (nid, place));
                self.note_name(place);
            }
        }
        self.toggle(nid);
        self.relist(nid);
    }

    /// Changes a member and keeps the summaries true.
    pub(crate) fn update<R>(
        &mut self,
        nid: Nid,
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        let entry = self.get_mut(nid)?;
        let before = entry.contribution(nid);
        let result = change(entry);
        let (after, is_live) = (entry.contribution(nid), entry.member.state.is_live());
        let listed = entry.live_at != NOT_LIVE;
        if before != after {
            self.flip(nid, before ^ after);
        }
        if listed != (is_live && nid != self.me) {
            self.relist(nid);
        }
        Some(result)
    }

    /// Changes what no summary covers.
    pub(crate) fn touch(&mut self, nid: Nid) -> Option<&mut Entry> {
        self.get_mut(nid)
    }

    pub(crate) fn remove(&mut self, nid: Nid) -> Option<Entry> {
        assert!(nid != self.me, "this node is always a member");
        self.unlist(nid);
        self.toggle(nid);
        let at = self.find(nid).ok()?;
        let (_, place) = self.order.remove(at);
        self.free.push(place);
        self.entries.get_mut(place as usize)?.take()
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
        let from = self.find(Nid(first)).unwrap_or_else(|at| at);
        let to = self.find(Nid(last)).map_or_else(|at| at, |at| at + 1);
        self.between(from..to)
    }

    /// The live member that follows this node in the order of name hashes: it is ours to watch. Whom our own probe has
    /// missed already is passed over, so that a gap of several is found as fast as one.
    pub(crate) fn successor(&self) -> Option<Nid> {
        let live = |(nid, e): (Nid, &Entry)| {
            let missed = e.suspicion.as_ref().is_some_and(|s| s.verified);
            (e.live_at != NOT_LIVE && !missed).then_some(nid)
        };
        let me = self.find(self.me).unwrap_or_else(|at| at);
        self.between(me + 1..self.order.len()).chain(self.between(0..me)).find_map(live)
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
        if let Some(contribution) = self.get(nid).map(|entry| entry.contribution(nid)) {
            self.flip(nid, contribution);
        }
    }

    fn flip(&mut self, nid: Nid, bits: u64) {
        let bucket = (nid.0 >> (64 - MEMBER_BUCKETS.trailing_zeros())) as usize;
        if let Some(hash) = self.buckets.get_mut(bucket) {
            *hash ^= bits;
            self.all ^= bits;
        }
    }

    fn relist(&mut self, nid: Nid) {
        let (me, end) = (self.me, self.live.len() as u32);
        let Some(entry) = self.get_mut(nid) else { return };
        let live = entry.member.state.is_live() && nid != me;
        if live && entry.live_at == NOT_LIVE {
            entry.live_at = end;
            self.live.push(nid);
        } else if !live {
            self.unlist(nid);
        }
    }

    fn unlist(&mut self, nid: Nid) {
        let Some(entry) = self.get_mut(nid) else { return };
        let at = std::mem::replace(&mut entry.live_at, NOT_LIVE);
        if at == NOT_LIVE {
            return;
        }
        self.live.swap_remove(at as usize);
        if let Some(moved) = self.live.get(at as usize).copied()
            && let Some(entry) = self.get_mut(moved)
        {
            entry.live_at = at;
        }
    }
}

/// FNV-1a, for a guess that is checked. Chosen names cost what all names cost without it.
fn quick_hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash ^ hash >> 32
}

fn tag_of(hash: u64) -> u32 {
    (hash >> 32) as u32
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::member::State;

    fn member(name: &str) -> Member {
        let addr = SocketAddr::from(([10, 0, 0, 1], 7400));
        let state = State::Alive;
        Member { name: name.into(), addr, generation: 1, incarnation: 0, state, rtt_us: 0 }
    }

    proptest! {
        #[test]
        fn a_name_has_one_id(names in proptest::collection::vec("[a-d]{1,3}", 1..80), gone in proptest::collection::vec(0usize..80, 0..40)) {
            let mut table = Table::new(member("me"));
            for name in &names {
                let nid = Nid::of(name);
                if table.get(nid).is_none() {
                    table.insert(nid, member(name), false, 0);
                }
                prop_assert_eq!(table.nid_of(name), nid);
            }
            for at in gone {
                table.remove(Nid::of(&names[at % names.len()]));
            }
            for name in names.iter().map(String::as_str).chain(["me", "nobody", ""]) {
                prop_assert_eq!(table.nid_of(name), Nid::of(name));
            }
        }

        /// Chosen ids as well as hashes: found, in order, and gone when removed.
        #[test]
        fn a_table_is_an_ordered_set(ids in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..40, u64::MAX - 40..u64::MAX], 1..200), gone in proptest::collection::vec(0usize..200, 0..50)) {
            let mut table = Table::new(member("me"));
            let mut model = BTreeSet::from([table.my_nid()]);
            for id in &ids {
                if model.insert(Nid(*id)) {
                    table.insert(Nid(*id), member("other"), false, 0);
                }
            }
            for at in gone {
                let nid = Nid(ids[at % ids.len()]);
                prop_assert_eq!(table.remove(nid).is_some(), model.remove(&nid));
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.iter().map(|(nid, _)| nid).collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            for id in &ids {
                prop_assert_eq!(table.get(Nid(*id)).is_some(), model.contains(&Nid(*id)));
            }
            prop_assert_eq!(table.live().len(), model.len() - 1);
            let in_buckets: usize = (0..MEMBER_BUCKETS).map(|bucket| table.in_bucket(bucket).count()).sum();
            prop_assert_eq!(in_buckets, model.len());
            let me = table.my_nid();
            let next = model.range(Nid(me.0.saturating_add(1))..).chain(&model).find(|nid| **nid != me).copied();
            prop_assert_eq!(table.successor(), next);
        }
    }
}
