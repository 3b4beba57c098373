//! News still to be passed on, least passed on first.

use std::collections::BTreeMap;

use crate::member::Nid;
use crate::swim::table::{Entry, Table};

/// Places that mean nothing any more are swept out when they outnumber the others by so many.
const STALE_MAX: usize = 64;

/// Places for which a level keeps its room once all is told.
const ROOM_MAX: usize = 64;

/// Only names are queued; what is said about them is taken from the table when a packet leaves, so that it is never
/// older than what we know. Bounded by the table.
///
/// A member's entry holds the stamp of its place in line. A place with another stamp is stale: news that is overtaken
/// by newer news costs nothing to take out. At a thousand members in turmoil most of what a node does is this.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// By times sent; in each the newest last, which goes first.
    levels: Vec<Vec<Place>>,
    /// Stamps of names that are queued but not listed: forgotten ones.
    unlisted: BTreeMap<Nid, u64>,
    stamp: u64,
    /// Names in line.
    len: usize,
    /// Places, stale ones too.
    places: usize,
    taken: Vec<(usize, Place)>,
    /// Empty between sendings, kept for its room, as the one above.
    known: Vec<Place>,
}

/// A place in line.
#[derive(Debug, Clone, Copy)]
struct Place {
    stamp: u64,
    nid: Nid,
    /// Where its entry was when it was put in line.
    entry: u32,
}

/// What becomes of a name when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It was sent.
    Sent,
    /// Not this time.
    Passed,
    /// There is no room for it, nor for those behind it.
    Full,
}

impl Queue {
    /// Puts news about a member first in line.
    pub(crate) fn push(&mut self, nid: Nid, table: &mut Table) {
        self.stamp += 1;
        let listed = table.touch(nid);
        let known =
            self.unlisted.remove(&nid).is_some() || listed.as_ref().is_some_and(|e| e.news != 0);
        match listed {
            Some(entry) => (entry.news, entry.heard) = (self.stamp, 0),
            None => {
                self.unlisted.insert(nid, self.stamp);
            }
        }
        self.len += usize::from(!known);
        if self.levels.is_empty() {
            self.levels.push(Vec::new());
        }
        if let Some(first) = self.levels.first_mut() {
            first.push(Place { stamp: self.stamp, nid, entry: table.last() });
            self.places += 1;
        }
        if self.places > 2 * self.len + STALE_MAX {
            self.sweep(table);
        }
    }

    /// A member that was in line perhaps is listed no more.
    pub(crate) fn unlist(&mut self, entry: &Entry) {
        self.len -= usize::from(entry.news != 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Others said what we hold: one sending is saved.
    pub(crate) fn heard(nid: Nid, table: &mut Table) {
        if let Some(entry) = table.touch(nid).filter(|e| e.news != 0) {
            entry.heard = entry.heard.saturating_add(1);
        }
    }

    /// Gives the names in the order of sending to `write` until there is no room, counts one sending of each that was
    /// sent, and drops what was sent `limit` times, or half as often and heard for the rest. Returns how many were sent.
    pub(crate) fn send(
        &mut self,
        table: &mut Table,
        limit: usize,
        mut write: impl FnMut(Nid, &Table) -> Turn,
    ) -> usize {
        let mut taken = std::mem::take(&mut self.taken);
        let mut known = std::mem::take(&mut self.known);
        let mut full = false;
        for (sends, level) in self.levels.iter_mut().enumerate() {
            // A packet has one addressee, so at most one name is passed over.
            let mut passed = None;
            while let Some(place) = level.last().copied().filter(|_| !full) {
                if stamp_of(&self.unlisted, table, place) != place.stamp {
                    self.places -= 1;
                    level.pop();
                    continue;
                }
                // It was just looked at. Names that are not listed are heard of by nobody.
                let heard = table.get(place.nid).map_or(0, |e| usize::from(e.heard));
                if sends * 2 >= limit && sends + heard >= limit {
                    level.pop();
                    known.push(place);
                    continue;
                }
                let turn = write(place.nid, table);
                match turn {
                    Turn::Full => full = true,
                    Turn::Sent => {
                        level.pop();
                        taken.push((sends, place));
                    }
                    Turn::Passed => {
                        level.pop();
                        assert!(passed.replace(place).is_none(), "one name at most is passed over");
                    }
                }
            }
            level.extend(passed);
            if full {
                break;
            }
        }
        let sent = taken.len();
        self.demote(&taken, limit, table);
        taken.clear();
        self.taken = taken;
        known.drain(..).for_each(|place| self.drop_news(place, table));
        self.known = known;
        if self.places > 2 * self.len + STALE_MAX {
            self.sweep(table);
        }
        if self.len == 0 {
            // A turmoil of a thousand members needs 24 kB a level, once.
            self.levels.iter_mut().for_each(|level| level.shrink_to(ROOM_MAX));
            self.taken.shrink_to(ROOM_MAX);
            self.known.shrink_to(ROOM_MAX);
        }
        sent
    }

    /// Moves what was sent one level down. `taken` is in the order of sending.
    fn demote(&mut self, taken: &[(usize, Place)], limit: usize, table: &mut Table) {
        for group in taken.chunk_by(|a, b| a.0 == b.0) {
            let Some(sends) = group.first().map(|(sends, _)| sends + 1) else { continue };
            if sends >= limit {
                for (_, place) in group {
                    self.drop_news(*place, table);
                }
                continue;
            }
            if self.levels.len() <= sends {
                self.levels.resize_with(sends + 1, Vec::new);
            }
            let Some(level) = self.levels.get_mut(sends) else { continue };
            let last = level.last().map_or(0, |place| place.stamp);
            let oldest = group.last().map_or(0, |(_, place)| place.stamp);
            level.extend(group.iter().rev().map(|(_, place)| *place));
            if oldest < last {
                // Two runs in order: one merge.
                level.sort_by_key(|place| place.stamp);
            }
        }
    }

    fn drop_news(&mut self, place: Place, table: &mut Table) {
        // Its entry was just looked at.
        table.get_at(place.entry, place.nid);
        match table.touch(place.nid).filter(|e| e.news != 0) {
            Some(entry) => entry.news = 0,
            None => {
                self.unlisted.remove(&place.nid);
            }
        }
        self.places -= 1;
        self.len -= 1;
    }

    fn sweep(&mut self, table: &Table) {
        for level in &mut self.levels {
            level.retain(|p| stamp_of(&self.unlisted, table, *p) == p.stamp);
        }
        self.places = self.levels.iter().map(Vec::len).sum();
    }
}

/// The stamp of a name's place in line; 0 when it is not in line.
fn stamp_of(unlisted: &BTreeMap<Nid, u64>, table: &Table, place: Place) -> u64 {
    let listed = table.get_at(place.entry, place.nid).map_or(0, |e| e.news);
    if listed == 0 { unlisted.get(&place.nid).copied().unwrap_or(0) } else { listed }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::member::{Member, State};

    fn member(name: &str) -> Member {
        let addr = SocketAddr::from(([10, 0, 0, 1], 7400));
        let state = State::Alive;
        Member { name: name.into(), addr, generation: 1, incarnation: 0, state, rtt_us: 0 }
    }

    /// What it should do, in the plainest way: (sends, newest first) decides.
    #[derive(Default)]
    struct Model {
        places: BTreeMap<Nid, (usize, u64)>,
        heard: BTreeMap<Nid, usize>,
        stamp: u64,
    }

    impl Model {
        fn push(&mut self, nid: Nid) {
            self.stamp += 1;
            self.places.insert(nid, (0, u64::MAX - self.stamp));
            self.heard.remove(&nid);
        }

        fn send(&mut self, room: usize, limit: usize, not: Nid) -> Vec<Nid> {
            let mut line: Vec<((usize, u64), Nid)> =
                self.places.iter().map(|(nid, place)| (*place, *nid)).collect();
            line.sort();
            let mut sent = Vec::new();
            for ((sends, _), nid) in line {
                let heard = self.heard.get(&nid).copied().unwrap_or(0);
                if sends * 2 >= limit && sends + heard >= limit {
                    self.places.remove(&nid);
                } else if nid != not {
                    if sent.len() == room {
                        break;
                    }
                    sent.push(nid);
                }
            }
            for nid in &sent {
                let Some(place) = self.places.get_mut(nid) else { continue };
                place.0 += 1;
                if place.0 >= limit {
                    self.places.remove(nid);
                }
            }
            sent
        }
    }

    #[test]
    fn room_for_a_turmoil_is_given_back() {
        let mut table = Table::new(member("me"));
        let mut queue = Queue::default();
        (1..2000).for_each(|n| queue.push(Nid(n), &mut table));
        while !queue.is_empty() {
            queue.send(&mut table, 3, |_, _| Turn::Sent);
        }
        let room = queue.levels.iter().map(Vec::capacity).max();
        assert!(room.is_some_and(|room| room <= 2 * ROOM_MAX), "{room:?}");
        assert!(queue.taken.capacity() <= 2 * ROOM_MAX && queue.known.capacity() <= 2 * ROOM_MAX);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push(u64),
        Hear(u64),
        Send(usize, usize, u64),
        Remove(u64),
        Insert(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (1..12u64).prop_map(Op::Push),
            (1..12u64).prop_map(Op::Hear),
            (0..6usize, 1..6usize, 0..12u64)
                .prop_map(|(room, limit, not)| Op::Send(room, limit, not)),
            (1..12u64).prop_map(Op::Remove),
            (1..12u64).prop_map(Op::Insert),
        ]
    }

    proptest! {
        #[test]
        fn a_queue_is_as_its_model(ops in proptest::collection::vec(op(), 0..400)) {
            let mut table = Table::new(member("me"));
            let (mut queue, mut model) = (Queue::default(), Model::default());
            for op in ops {
                match op {
                    Op::Push(n) => {
                        queue.push(Nid(n), &mut table);
                        model.push(Nid(n));
                    }
                    Op::Hear(n) => {
                        Queue::heard(Nid(n), &mut table);
                        if table.get(Nid(n)).is_some() && model.places.contains_key(&Nid(n)) {
                            *model.heard.entry(Nid(n)).or_default() += 1;
                        }
                    }
                    Op::Insert(n) => {
                        if table.get(Nid(n)).is_none() {
                            table.insert(Nid(n), member("other"), false, 0);
                        }
                        // As the core does whenever somebody is met.
                        queue.push(Nid(n), &mut table);
                        model.push(Nid(n));
                    }
                    Op::Remove(n) => {
                        if let Some(entry) = table.remove(Nid(n)) {
                            queue.unlist(&entry);
                            queue.push(Nid(n), &mut table);
                            model.push(Nid(n));
                        }
                    }
                    Op::Send(room, limit, not) => {
                        let mut sent = Vec::new();
                        let count = queue.send(&mut table, limit, |nid, _| {
                            if nid == Nid(not) {
                                return Turn::Passed;
                            }
                            if sent.len() == room {
                                return Turn::Full;
                            }
                            sent.push(nid);
                            Turn::Sent
                        });
                        prop_assert_eq!(count, sent.len());
                        prop_assert_eq!(sent, model.send(room, limit, Nid(not)));
                    }
                }
                prop_assert_eq!(queue.is_empty(), model.places.is_empty());
                prop_assert_eq!(queue.len, model.places.len());
                prop_assert!(queue.places <= 2 * queue.len + STALE_MAX + 1);
            }
        }
    }
}
