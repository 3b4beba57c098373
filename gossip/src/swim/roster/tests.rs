use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;
use crate::message::Accusers;
use crate::outbox::Outbox;
use crate::swim::tests::{NAMES, News, addr, news, swim, tell};

const S: u64 = 1_000_000;

fn act<R>(
    swim: &mut Swim,
    now_us: u64,
    act: impl FnOnce(&mut Swim, &mut Ctx<'_>) -> R,
) -> (R, Vec<Event>) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let (mut net, mut out) = (Outbox::default(), Vec::new());
    let mut ctx = Ctx { now_us, rng: &mut rng, net: &mut net, out: &mut out };
    let result = act(swim, &mut ctx);
    let event = |o| match o {
        Output::Event(event) => Some(event),
        _ => None,
    };
    (result, out.into_iter().filter_map(event).collect())
}

/// As they come: written by a peer and read back.
fn hint(swim: &mut Swim, now_us: u64, hints: &[(&str, u64, u64, Standing)]) -> Vec<Event> {
    let mut bytes = Vec::new();
    for (name, generation, incarnation, standing) in hints {
        Update {
            nid: Nid::of(name),
            full: Some((name, addr(*generation as u16))),
            generation: *generation,
            incarnation: *incarnation,
            standing: *standing,
            accusers: Accusers::default(),
        }
        .write(&mut bytes);
    }
    act(swim, now_us, |swim, ctx| swim.on_hints(Reader::new(&bytes), ctx)).1
}

fn hints_of(news: &[News]) -> Vec<(&'static str, u64, u64, Standing)> {
    let names = |who: usize| NAMES.get(who).copied().unwrap_or("me");
    news.iter().map(|n| (names(n.0), n.1, n.2, n.3)).collect()
}

/// All that is known of those whom somebody has confirmed.
fn confirmed(swim: &Swim) -> BTreeMap<Nid, (Member, bool)> {
    let known = swim.table.iter().filter(|(_, e)| !e.remembered);
    known.map(|(nid, e)| (nid, (e.member.clone(), e.suspicion.is_some()))).collect()
}

proptest! {
    /// Whatever is hinted, of whatever standing: nobody who is known changes, nobody is accused, nothing is passed on as news.
    #[test]
    fn a_hint_changes_nobody_who_is_known(
        known in proptest::collection::vec(news(4), 0..20),
        hints in proptest::collection::vec((0..4usize, 1..5u64, 0..5u64, news(4)), 0..20),
    ) {
        let mut swim = swim();
        tell(&mut swim, &known);
        let (before, live) = (confirmed(&swim), swim.table.live().to_vec());
        let queued = swim.queue.is_empty();
        let hints: Vec<News> = hints.into_iter().map(|(who, g, i, n)| (who, g, i, n.3, false)).collect();
        let events = hint(&mut swim, 6, &hints_of(&hints));
        prop_assert_eq!(confirmed(&swim), before.clone());
        prop_assert_eq!(swim.table.live(), &live[..]);
        prop_assert_eq!(swim.queue.is_empty(), queued);
        for event in events {
            let Event::Member(m) = event else { return Err(TestCaseError::fail("only introductions")) };
            prop_assert!(!m.state.is_live());
            prop_assert!(!before.contains_key(&Nid::of(&m.name)));
        }
    }

    /// In any order, however often, two nodes that were given the same hints have the same view.
    #[test]
    fn hints_merge(hints in proptest::collection::vec(news(4), 0..20), seed in any::<u64>()) {
        let mut shuffled = hints.clone();
        shuffled.extend_from_slice(&hints);
        shuffled.sort_by_key(|n| crate::wire::mix(n.1 << 20 | n.2 << 10 | n.0 as u64, seed));
        let (mut a, mut b) = (swim(), swim());
        hint(&mut a, 5, &hints_of(&hints));
        hint(&mut b, 5, &hints_of(&shuffled));
        prop_assert_eq!(a.table.view(), b.table.view());
    }

    /// News says the same to who was given a hint before as to who was not.
    #[test]
    fn news_overrules_a_hint(hints in proptest::collection::vec(news(4), 1..8), said in news(4)) {
        let (mut a, mut b) = (swim(), swim());
        // Of the same incarnation or an earlier one: of a later one it says nothing.
        let hints: Vec<News> = hints.into_iter().map(|n| (n.0, n.1.min(said.1), 0, n.3, false)).collect();
        hint(&mut a, 5, &hints_of(&hints));
        tell(&mut a, &[said]);
        tell(&mut b, &[said]);
        let nid = Nid::of(NAMES[said.0]);
        let of = |swim: &Swim| swim.table.get(nid).map(|e| (e.member.clone(), e.remembered, e.suspicion.is_some()));
        prop_assert_eq!(of(&a), of(&b));
    }
}

#[test]
fn whom_an_operator_dropped_no_disk_brings_back() {
    let mut swim = swim();
    tell(&mut swim, &[(0, 1, 2, Standing::Left, false)]);
    assert!(act(&mut swim, 6, |swim, ctx| swim.forget(Nid::of("a"), ctx)).0);
    assert_eq!(hint(&mut swim, 7, &[("a", 1, 0, Standing::Dead), ("a", 1, 2, Standing::Dead)]), []);
    assert!(swim.table.get(Nid::of("a")).is_none());
    hint(&mut swim, 8, &[("a", 2, 0, Standing::Dead)]);
    assert!(swim.table.get(Nid::of("a")).is_some_and(|e| e.remembered), "a later boot was seen");
}

/// Those who forgot it may have known different incarnations of it; what is not in full introduces nobody.
#[test]
fn who_is_forgotten_stays_so_when_more_is_said_of_it() {
    let mut swim = swim();
    tell(&mut swim, &[(0, 1, 1, Standing::Left, false)]);
    assert!(act(&mut swim, 6, |swim, ctx| swim.forget(Nid::of("a"), ctx)).0);
    for standing in [Standing::Forgotten, Standing::Dead] {
        let (nid, full, accusers) = (Nid::of("a"), None, Accusers::default());
        let incarnation = if standing == Standing::Dead { 3 } else { 2 };
        let update = Update { nid, full, generation: 1, incarnation, standing, accusers };
        act(&mut swim, 7, |swim, ctx| swim.apply(&update, ctx));
    }
    assert_eq!(swim.forgotten.get(&Nid::of("a")), Some(&(1, 2)));
    assert_eq!(hint(&mut swim, 8, &[("a", 1, 2, Standing::Dead)]), []);
    assert!(swim.table.get(Nid::of("a")).is_none());
    tell(&mut swim, &[(0, 1, 3, Standing::Alive, false)]);
    assert!(swim.table.get(Nid::of("a")).is_some(), "it stepped above that itself");
    assert!(swim.forgotten.is_empty());
}

#[test]
fn a_flood_of_hints_fills_the_table_and_no_more_and_gives_way_in_silence() {
    let mut swim = swim();
    tell(&mut swim, &[(0, 1, 0, Standing::Dead, false)]);
    let names: Vec<String> = (0..MEMBERS_MAX + 100).map(|n| format!("forged-{n}")).collect();
    let hints: Vec<_> = names.iter().map(|n| (n.as_str(), 1, 0, Standing::Dead)).collect();
    let events = hint(&mut swim, 6, &hints);
    assert_eq!(swim.table.len(), MEMBERS_MAX);
    assert_eq!(events.len(), MEMBERS_MAX - 2);
    let events = tell(&mut swim, &[(1, 1, 0, Standing::Alive, false)]);
    assert!(matches!(&events[..], [Event::Member(m)] if *m.name == *"b"), "{events:?}");
    assert!(swim.table.get(Nid::of("a")).is_some(), "whose death is known is not the first to go");
    assert_eq!(swim.table.len(), MEMBERS_MAX);
    assert!(swim.forgotten.is_empty(), "nobody else is told to forget");
}

#[test]
fn who_is_remembered_a_minute_is_dead() {
    let mut swim = swim();
    hint(&mut swim, S, &[("a", 1, 0, Standing::Dead)]);
    hint(&mut swim, 40 * S, &[("b", 1, 0, Standing::Left)]);
    hint(&mut swim, 50 * S, &[("a", 1, 0, Standing::Dead)]);
    let mut remembered = |now_us| {
        let due: Vec<Timer> =
            std::iter::from_fn(|| swim.timers.pop(now_us)).map(|(_, timer)| timer).collect();
        let events = match due[..] {
            [] => vec![],
            [Timer::Remembered] => {
                act(&mut swim, now_us, |swim, ctx| swim.confirm_remembered(ctx)).1
            }
            _ => panic!("{due:?}"),
        };
        let kept: Vec<bool> = ["a", "b"]
            .iter()
            .map(|n| swim.table.get(Nid::of(n)).is_some_and(|e| e.remembered))
            .collect();
        (events.len(), kept)
    };
    assert_eq!(remembered(60 * S), (0, vec![true, true]));
    assert_eq!(remembered(61 * S), (1, vec![false, true]));
    assert_eq!(remembered(99 * S), (0, vec![false, true]));
    assert_eq!(remembered(100 * S), (1, vec![false, false]));
    assert_eq!(remembered(1000 * S), (0, vec![false, false]));
}
