use proptest::prelude::*;

use crate::config::Limits;
use crate::map::record::Record;
use crate::map::store::{Merged, Store, key_hash};
use crate::message::MAP_BUCKETS;

prop_compose! {
    /// Few keys, revisions, clocks, writers and bodies, so that ties of every depth happen.
    fn record()(
        key in 0..4u8,
        rev in 1..4u64,
        at_ms in 0..3u64,
        writer in 0..3u8,
        prev in 0..2u64,
        body in proptest::option::of(0..3u8),
    ) -> Record {
        let body = body.map(|b| [b].as_slice().into());
        Record::new(&format!("s/{key}"), rev, at_ms, format!("w{writer}").into(), prev, body)
    }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    proptest::collection::vec(record(), 0..40)
}

fn merged<'a>(records: impl IntoIterator<Item = &'a Record>) -> Store {
    let mut store = Store::new(Limits::default());
    for record in records {
        store.merge(record.clone());
    }
    store
}

fn dump(store: &Store) -> Vec<Record> {
    store.range("").cloned().collect()
}

fn digest(store: &Store) -> [u8; 4 * MAP_BUCKETS] {
    let mut bytes = [0; 4 * MAP_BUCKETS];
    for (to, hash) in bytes.chunks_exact_mut(4).zip(store.digest()) {
        to.copy_from_slice(&hash.to_le_bytes());
    }
    bytes
}

proptest! {
    #[test]
    fn merging_is_commutative(records in records(), seed in any::<u64>()) {
        let mut shuffled = records.clone();
        shuffled.sort_by_key(|r| crate::wire::mix(r.hash, seed));
        let (a, b) = (merged(&records), merged(&shuffled));
        prop_assert_eq!(dump(&a), dump(&b));
        prop_assert_eq!(a.root(), b.root());
        prop_assert_eq!(a.digest(), b.digest());
    }

    #[test]
    fn merging_is_idempotent(records in records()) {
        let mut store = merged(&records);
        let (before, root) = (dump(&store), store.root());
        for record in &records {
            prop_assert_eq!(store.merge(record.clone()), Merged::Known);
        }
        prop_assert_eq!((dump(&store), store.root()), (before, root));
    }

    #[test]
    fn merging_is_associative(a in records(), b in records(), c in records()) {
        let left = merged(dump(&merged(a.iter().chain(&b))).iter().chain(&c));
        let right = merged(a.iter().chain(&dump(&merged(b.iter().chain(&c)))));
        prop_assert_eq!(dump(&left), dump(&right));
    }

    /// Against the naive model: per key the greatest by the order.
    #[test]
    fn the_greatest_version_stays(records in records()) {
        let store = merged(&records);
        for record in &records {
            let kept = store.get(&record.key).expect("some version is kept");
            prop_assert!(kept.order(record).is_ge());
        }
        prop_assert!(dump(&store).iter().all(|kept| records.contains(kept)));
    }

    /// Whatever two nodes hold: after both pulled what the listings of differing buckets show, they hold the same.
    #[test]
    fn comparison_finds_every_difference(a in records(), b in records()) {
        let (mut a, mut b) = (merged(&a), merged(&b));
        for _ in 0..2 {
            for (first, last) in b.differing(&digest(&a)) {
                let theirs: Vec<_> = b.list(first, last).collect();
                let lacking: Vec<_> = theirs.into_iter().filter(|item| a.lacks(item)).collect();
                for item in lacking {
                    a.merge(b.by_hash(item.key).expect("listed").clone());
                }
            }
            std::mem::swap(&mut a, &mut b);
        }
        prop_assert_eq!(dump(&a), dump(&b));
        prop_assert_eq!(a.root(), b.root());
    }

    #[test]
    fn accounts_balance(records in records(), gone in proptest::collection::vec(0..4u8, 0..8)) {
        let mut store = merged(&records);
        for key in gone {
            store.remove(key_hash(&format!("s/{key}")));
        }
        let left = dump(&store);
        prop_assert_eq!(merged(&left).root(), store.root());
        prop_assert_eq!(store.changes("", 0).count(), left.len());
        for record in left {
            store.remove(key_hash(&record.key));
        }
        prop_assert_eq!((store.root(), store.len()), (0, 0));
        prop_assert_eq!(store.usage(), (0, 0));
    }
}

#[test]
fn quotas_hold_and_deletions_pass() {
    let limits = Limits { writer_records: 2, records: 3, ..Limits::default() };
    let mut store = Store::new(limits);
    let put = |key: &str, rev, writer: &str, body: Option<&[u8]>| {
        Record::new(key, rev, 0, writer.into(), 0, body.map(Into::into))
    };
    assert_eq!(store.merge(put("a", 1, "w", Some(b"1"))), Merged::New(None));
    assert_eq!(store.merge(put("b", 1, "w", Some(b"1"))), Merged::New(None));
    assert_eq!(store.merge(put("c", 1, "w", Some(b"1"))), Merged::Refused);
    assert!(matches!(store.merge(put("a", 2, "w", Some(b"2"))), Merged::New(Some(_))));
    assert_eq!(store.merge(put("c", 1, "v", Some(b"1"))), Merged::New(None));
    assert_eq!(store.merge(put("d", 1, "v", Some(b"1"))), Merged::Refused, "the map is full");
    assert!(matches!(store.merge(put("c", 2, "w", None)), Merged::New(Some(_))));
    assert_eq!(store.usage().0, 3);
}

#[test]
fn bytes_are_quotas_too() {
    let limits = Limits { writer_bytes: 10, bytes: 15, ..Limits::default() };
    let mut store = Store::new(limits);
    let put = |key: &str, rev, writer: &str, len: usize| {
        Record::new(key, rev, 0, writer.into(), 0, Some(vec![0; len].into()))
    };
    assert_eq!(store.merge(put("a", 1, "w", 9)), Merged::New(None));
    assert_eq!(store.merge(put("b", 1, "w", 0)), Merged::Refused, "the key counts");
    assert_eq!(store.merge(put("a", 2, "w", 10)), Merged::Refused);
    assert!(matches!(store.merge(put("a", 2, "w", 8)), Merged::New(Some(_))));
    assert_eq!(store.merge(put("b", 1, "w", 0)), Merged::New(None));
    assert_eq!(store.merge(put("c", 1, "v", 5)), Merged::Refused, "all together");
    assert_eq!(store.merge(put("c", 1, "v", 4)), Merged::New(None));
    // What is taken over from another writer counts against the new one.
    assert_eq!(store.merge(put("c", 2, "w", 4)), Merged::Refused);
    assert!(matches!(store.merge(put("a", 3, "v", 0)), Merged::New(Some(_))));
    assert!(matches!(store.merge(put("c", 2, "w", 4)), Merged::New(Some(_))));
    assert_eq!(store.usage(), (3, 7));
}

const TOMBSTONE_MS: u64 = 8_000;

/// A record that was deleted at one second.
fn deleted() -> (Store, Record) {
    let mut store = Store::new(Limits { tombstone_ms: TOMBSTONE_MS, ..Limits::default() });
    store.merge(Record::new("s/a", 1, 500, "w".into(), 0, Some([1].as_slice().into())));
    let tombstone = Record::new("s/a", 2, 1_000, "w".into(), 0, None);
    assert!(matches!(store.merge(tombstone.clone()), Merged::New(Some(_))));
    (store, tombstone)
}

#[test]
fn a_tombstone_behind_the_floor_takes_no_part_and_goes_a_little_later() {
    let (mut store, tombstone) = deleted();
    let listed = |store: &Store| store.list(0, u64::MAX).count();
    assert_eq!(store.expire(1_000 + TOMBSTONE_MS), []);
    assert_eq!((listed(&store), store.root() == 0), (1, false), "it is told for its whole time");
    assert_eq!(store.expire(1_001 + TOMBSTONE_MS), []);
    assert_eq!((listed(&store), store.root()), (0, 0), "it takes no part");
    assert_eq!(store.merge(tombstone.clone()), Merged::Known, "and is held");
    assert_eq!(store.expire(1_000 + TOMBSTONE_MS + TOMBSTONE_MS / 8), []);
    assert_eq!(store.expire(1_001 + TOMBSTONE_MS + TOMBSTONE_MS / 8), ["s/a".into()]);
    assert_eq!((store.len(), store.usage()), (0, (0, 0)));
    assert_eq!(store.merge(tombstone), Merged::Known, "nobody brings it back");
    assert_eq!(store.len(), 0);
}

/// Clocks differ: who still tells of a deletion is not asked for it by who has retired it, nor by who has dropped it again
/// and again.
#[test]
fn nodes_whose_clocks_differ_do_not_hand_tombstones_to_and_fro() {
    let (slow, _) = deleted();
    let (mut fast, _) = deleted();
    for wall_ms in 1_001 + TOMBSTONE_MS..=1_000 + TOMBSTONE_MS + TOMBSTONE_MS / 8 {
        fast.expire(wall_ms);
        let wanted = slow.list(0, u64::MAX).filter(|item| fast.lacks(item)).count();
        assert_eq!(wanted, 0, "at {wall_ms}");
    }
    // Nor does the old record come back through it.
    let old = Record::new("s/a", 1, 500, "w".into(), 0, Some([1].as_slice().into()));
    assert_eq!(fast.merge(old), Merged::Known);
}

/// Each key once, at its last change, behind the cursor and under the prefix alone.
#[test]
fn a_cursor_shows_what_came_after_it() {
    let mut store = Store::new(Limits::default());
    let mut put = |key: &str, rev| {
        store.merge(Record::new(key, rev, 0, "w".into(), 0, Some([1].as_slice().into())));
        store.cursor()
    };
    let (first, second) = (put("s/a", 1), put("s/b", 1));
    let (third, fourth) = (put("t/a", 1), put("s/a", 2));
    assert_eq!(put("s/a", 1), fourth, "no news");
    let changes = |prefix: &str, after| -> Vec<(u64, String, u64)> {
        let changes = store.changes(prefix, after);
        changes.map(|(at, r)| (at, r.key.to_string(), r.rev)).collect()
    };
    let (b, a) = ((second, "s/b".to_owned(), 1), (fourth, "s/a".to_owned(), 2));
    assert_eq!(changes("s/", 0), [b.clone(), a.clone()]);
    assert_eq!(changes("s/", first), [b, a.clone()]);
    assert_eq!(changes("s/", second), std::slice::from_ref(&a));
    assert_eq!(changes("", second), [(third, "t/a".to_owned(), 1), a]);
    assert_eq!(changes("", fourth), []);
}

#[test]
fn a_clock_that_was_ahead_for_a_while_leaves_no_trace() {
    let (mut store, tombstone) = deleted();
    let kept = Record::new("s/b", 1, 900, "w".into(), 0, Some([1].as_slice().into()));
    store.merge(kept);
    let (root, digest) = (store.root(), store.digest());
    for ahead_ms in [TOMBSTONE_MS + 1, 1 << 40] {
        store.expire(1_000 + ahead_ms);
        assert_ne!(store.root(), root, "it takes no part, or is gone");
        store.expire(2_000);
        store.merge(tombstone.clone());
        assert_eq!((store.root(), store.digest()), (root, digest), "{ahead_ms} ms ahead");
        assert_eq!((store.list(0, u64::MAX).count(), store.usage()), (2, (2, 7)));
    }
}
