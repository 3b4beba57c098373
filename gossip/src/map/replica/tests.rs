//! What comes in and what goes out is bounded, however much is wanted.

use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;
use crate::config::Profile;
use crate::frame::Binding;
use crate::member::{Member, Nid, State};
use crate::message::Item;

/// One replica that knows one peer, and its time.
struct One {
    map: Replica,
    now_us: u64,
    rng: Xoshiro256PlusPlus,
    net: Outbox,
    out: Vec<Output>,
    table: Table,
}

fn peer() -> Dest {
    let to = Binding::To { nid: Nid::of("peer"), generation: 1 };
    Dest { addr: SocketAddr::from(([10, 0, 0, 2], 1)), to }
}

fn member(name: &str) -> Member {
    let (addr, state) = (peer().addr, State::Alive);
    Member { name: name.into(), addr, generation: 1, incarnation: 0, state, rtt_us: 0 }
}

impl One {
    fn new() -> One {
        let mut table = Table::new(member("me"));
        table.insert(Nid::of("peer"), member("peer"), false, 0);
        let limits = Limits { writer_records: 60_000, ..Limits::default() };
        let mut one = One {
            map: Replica::new("me", Timing::of(Profile::Lan), limits),
            now_us: 1_000_000,
            rng: Xoshiro256PlusPlus::seed_from_u64(1),
            net: Outbox::default(),
            out: Vec::new(),
            table,
        };
        one.map.start(one.now_us);
        one
    }

    fn act<T>(&mut self, what: impl FnOnce(&mut Replica, &mut MapCtx<'_>) -> T) -> T {
        let (now_us, wall_ms) = (self.now_us, 1_700_000_000_000);
        let (rng, net, out, table) = (&mut self.rng, &mut self.net, &mut self.out, &self.table);
        what(&mut self.map, &mut MapCtx { now_us, wall_ms, rng, net, out, table })
    }

    /// Messages of this kind sent since the last look, by their bytes.
    fn sent(&mut self, kind: u8) -> Vec<usize> {
        self.net.drain().into_iter().filter(|m| m.first() == Some(&kind)).map(|m| m.len()).collect()
    }
}

fn items(count: u64) -> Vec<Item> {
    // Neighbours in value are neighbours in the order of pulls.
    (1..=count).map(|n| Item { key: n, number: 1, hash: n }).collect()
}

#[test]
fn pulls_in_flight_and_waiting_are_bounded() {
    let mut one = One::new();
    let lacking = items(10_000);
    one.act(|map, ctx| map.on_advert(peer(), &lacking, ctx));
    assert_eq!((one.map.pulls.len(), one.map.waiting.len()), (64, 8_192));
    assert_eq!(one.sent(crate::message::tag::MAP_PULL).len(), 64, "the rest is not asked for yet");
    one.act(|map, ctx| map.on_advert(peer(), &lacking, ctx));
    assert_eq!(one.sent(crate::message::tag::MAP_PULL).len(), 0, "nor anything twice");
    // What is never answered is asked for a few times and makes room.
    let mut asked = 64;
    for _ in 0..20 {
        one.now_us += 250_000;
        one.act(|map, ctx| map.timer(ctx));
        asked += one.sent(crate::message::tag::MAP_PULL).len();
        assert!(one.map.pulls.len() <= 64);
    }
    // 64 at a time, each four times within two and a half seconds.
    assert!((400..800).contains(&asked), "{asked}");
    assert!(one.map.waiting.len() < 8_192);
}

#[test]
fn what_is_given_out_in_a_slot_of_time_is_bounded() {
    let mut one = One::new();
    let mut wanted = Vec::new();
    for n in 0..4_000 {
        let (key, body) = (format!("s/{n}"), vec![7; 700]);
        let put = one.act(|map, ctx| map.put(&key, body, Expect::Any, ctx));
        assert_eq!(put, Ok(()));
        wanted.push(Item { key: key_hash(&key), number: 0, hash: 0 });
    }
    let given = |one: &mut One| {
        one.act(|map, ctx| map.on_pull(peer(), &wanted, ctx));
        one.sent(crate::message::tag::MAP_RECORD).into_iter().sum::<usize>()
    };
    let first = given(&mut one);
    assert!((1_000_000..1_100_000).contains(&first), "{first} bytes");
    assert_eq!(given(&mut one), 0, "the slot is used up");
    one.now_us += 100_000;
    assert!(given(&mut one) > 1_000_000, "the next one is not");
}

#[test]
fn rumours_and_what_a_round_says_of_them_are_bounded() {
    let mut one = One::new();
    for n in 0..10_000 {
        let key = format!("s/{n}");
        assert_eq!(one.act(|map, ctx| map.put(&key, vec![7; 300], Expect::Any, ctx)), Ok(()));
    }
    assert_eq!(one.map.rumours.len(), 8_192);
    assert!(one.map.fresh.len() <= 8_192);
    for _ in 0..50 {
        one.now_us += 20_000;
        one.act(|map, ctx| map.timer(ctx));
        let pushed: usize = one.sent(crate::message::tag::MAP_RECORD).into_iter().sum();
        assert!(pushed <= 8 * crate::outbox::ROOM_BYTES + 100, "{pushed} bytes to one peer");
    }
}

/// A node with its map full of one writer's records says so once, not at every record.
#[test]
fn a_writer_beyond_its_quota_is_reported_once() {
    let mut one = One::new();
    one.map = Replica::new(
        "me",
        Timing::of(Profile::Lan),
        Limits { writer_records: 2, ..Limits::default() },
    );
    for n in 0..50 {
        let record =
            Record::new(&format!("s/{n}"), 1, 1, "other".into(), 0, Some([1].as_slice().into()));
        one.act(|map, ctx| map.take(key_hash(&record.key), record.clone(), Source::Rumour, ctx));
    }
    let said = one.out.iter().filter(|o| matches!(o, Output::Event(Event::Quota { .. }))).count();
    assert_eq!((one.map.store().len(), said), (2, 1));
}

/// The pieces of one version only: what is put together has to be what was asked for.
#[test]
fn pieces_that_make_no_record_of_that_hash_are_dropped() {
    let mut one = One::new();
    let record = Record::new("s/a", 1, 1, "other".into(), 0, Some(vec![7; 3_000].into()));
    let mut bytes = Vec::new();
    crate::message::put_record(&mut bytes, &record);
    let key = key_hash("s/a");
    let total = bytes.len();
    let send = |one: &mut One, hash: u64, bytes: &[u8]| {
        let item = Item { key, number: 1, hash };
        one.act(|map, ctx| map.on_advert(peer(), &[item], ctx));
        for (at, piece) in bytes.chunks(1_024).enumerate() {
            one.act(|map, ctx| map.on_piece(key, hash, (total, at * 1_024), piece, ctx));
        }
        one.map.store().len()
    };
    assert_eq!(send(&mut one, record.hash ^ 1, &bytes), 0, "another hash");
    let mut damaged = bytes.clone();
    damaged[2_000] ^= 1;
    assert_eq!(send(&mut one, record.hash, &damaged), 0, "other bytes");
    assert!(one.map.pulls.is_empty());
    assert_eq!(send(&mut one, record.hash, &bytes), 1);
    assert_eq!(one.map.store().get("s/a"), Some(&record));
}

/// One broken writer must not use up a key: there is always a higher revision, or a clear refusal.
#[test]
fn a_revision_beyond_the_last_is_ignored() {
    let mut one = One::new();
    let written = |rev| Record::new("s/a", rev, 1, "other".into(), 0, None);
    let take = |one: &mut One, rev| {
        let record = written(rev);
        one.act(|map, ctx| map.take(key_hash("s/a"), record, Source::Rumour, ctx))
    };
    assert_eq!(take(&mut one, u64::MAX), Merged::Refused);
    assert_eq!(take(&mut one, REV_MAX + 1), Merged::Refused);
    assert_eq!(take(&mut one, REV_MAX - 1), Merged::New(None));
    assert_eq!(one.act(|map, ctx| map.put("s/a", vec![1], Expect::Any, ctx)), Ok(()));
    let full = one.act(|map, ctx| map.put("s/a", vec![2], Expect::Any, ctx));
    assert_eq!(full, Err(Error::Exhausted { key: "s/a".to_owned() }));
}
