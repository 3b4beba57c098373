use std::net::SocketAddr;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;
use crate::config::Profile;
use crate::message::Accusers;

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

pub(super) fn swim() -> Swim {
    let me = Member {
        name: "me".into(),
        addr: addr(1),
        generation: 1,
        incarnation: 0,
        state: State::Alive,
        rtt_us: 0,
    };
    Swim::new(me, Timing::of(Profile::Lan), Contact::new(&[], None))
}

pub(super) fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

pub(super) type News = (usize, u64, u64, Standing, bool);

prop_compose! {
    pub(super) fn news(worst: usize)(
        who in 0..NAMES.len(),
        generation in 1..3u64,
        incarnation in 0..3u64,
        standing in 0..worst,
        accused in any::<bool>(),
    ) -> News {
        let standings = [Standing::Alive, Standing::Left, Standing::Suspect, Standing::Dead];
        (who, generation, incarnation, standings[standing], accused)
    }
}

pub(super) fn tell(swim: &mut Swim, news: &[News]) -> Vec<Event> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut net = Outbox::default();
    let mut out = Vec::new();
    for (who, generation, incarnation, standing, accused) in news {
        let name = NAMES[*who];
        let accusers = if *accused { Accusers::one(Nid(7)) } else { Accusers::default() };
        let update = Update {
            nid: Nid::of(name),
            full: Some((name, addr(*generation as u16))),
            generation: *generation,
            incarnation: *incarnation,
            standing: *standing,
            accusers,
        };
        let mut ctx = Ctx { now_us: 5, rng: &mut rng, net: &mut net, out: &mut out };
        swim.apply(&update, &mut ctx);
    }
    let event = |o| match o {
        Output::Event(event) => Some(event),
        _ => None,
    };
    out.into_iter().filter_map(event).collect()
}

fn places(swim: &Swim) -> Vec<(String, u64, u64, SocketAddr)> {
    let place = |m: &Member| (m.name.to_string(), m.generation, m.incarnation, m.addr);
    swim.table.others().map(|(_, e)| place(&e.member)).collect()
}

proptest! {
    /// Without accusations the view is a join semilattice: order and repetition do not matter at all.
    #[test]
    fn views_merge(news in proptest::collection::vec(news(2), 0..30), seed in any::<u64>()) {
        let mut shuffled = news.clone();
        shuffled.extend_from_slice(&news);
        shuffled.sort_by_key(|n| crate::wire::mix(n.1 << 20 | n.2 << 10 | n.0 as u64, seed));
        let (mut a, mut b) = (swim(), swim());
        tell(&mut a, &news);
        tell(&mut b, &shuffled);
        prop_assert_eq!(a.table.view(), b.table.view());
        prop_assert_eq!(places(&a), places(&b));
    }

    /// With accusations who is dead depends on what one's own probes say; which incarnation it is about does not.
    #[test]
    fn incarnations_merge(news in proptest::collection::vec(news(4), 0..30), seed in any::<u64>()) {
        let mut shuffled = news.clone();
        shuffled.sort_by_key(|n| crate::wire::mix(n.1 << 20 | n.2 << 10 | n.0 as u64, seed));
        let (mut a, mut b) = (swim(), swim());
        tell(&mut a, &news);
        tell(&mut b, &shuffled);
        prop_assert_eq!(places(&a), places(&b));
        let view = a.table.view();
        let again: Vec<News> = news.iter().filter(|n| n.3 != Standing::Dead).copied().collect();
        tell(&mut a, &again);
        prop_assert_eq!(a.table.view(), view, "said again it changes nothing");
    }

    /// Summaries and the list of the living are what the table says, whatever happened to it.
    #[test]
    fn summaries_are_true(news in proptest::collection::vec(news(4), 0..40)) {
        let mut swim = swim();
        tell(&mut swim, &news);
        let mut fresh = Table::new(swim.table.me().clone());
        for (nid, entry) in swim.table.others() {
            fresh.insert(nid, entry.member.clone(), false, 0);
        }
        prop_assert_eq!(fresh.view(), swim.table.view());
        prop_assert_eq!(fresh.digest(), swim.table.digest());
        let mut live = swim.table.live().to_vec();
        live.sort();
        let expected: Vec<Nid> = swim
            .table
            .others()
            .filter(|(_, e)| e.member.state.is_live())
            .map(|(nid, _)| nid)
            .collect();
        prop_assert_eq!(live, expected);
        for (_, entry) in swim.table.others() {
            prop_assert_eq!(entry.suspicion.is_some(), entry.member.state == State::Suspect);
        }
    }
}

#[test]
fn we_refute_what_is_said_about_us_and_nothing_older() {
    let mut swim = swim();
    let mut say = |generation, incarnation, standing| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let (mut net, mut out) = (Outbox::default(), Vec::new());
        let mut ctx = Ctx { now_us: 5, rng: &mut rng, net: &mut net, out: &mut out };
        let (nid, full, accusers) = (Nid::of("me"), None, Accusers::default());
        let update = Update { nid, full, generation, incarnation, standing, accusers };
        swim.apply(&update, &mut ctx);
        (swim.table.me().generation, swim.table.me().incarnation)
    };
    assert_eq!(say(1, 0, Standing::Suspect), (1, 1));
    assert_eq!(say(1, 0, Standing::Dead), (1, 1), "already refuted");
    assert_eq!(say(1, 1, Standing::Alive), (1, 1));
    assert_eq!(say(1, 1, Standing::Forgotten), (1, 2));
    assert_eq!(say(1, 9, Standing::Left), (1, 10));
    assert_eq!(say(0, 99, Standing::Dead), (1, 10), "an outlived boot");
    assert_eq!(say(4, 0, Standing::Alive), (5, 0), "our counter was lost");
}

#[test]
fn a_death_of_ours_is_noticed_once_also_after_the_suspicion_was_refuted() {
    let mut swim = swim();
    tell(&mut swim, &[(0, 1, 0, Standing::Alive, false)]);
    let mut held_dead = |who: &str, generation, incarnation, standing| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let (mut net, mut out) = (Outbox::default(), Vec::new());
        let mut ctx = Ctx { now_us: 5, rng: &mut rng, net: &mut net, out: &mut out };
        let (nid, full, accusers) = (Nid::of("me"), None, Accusers::default());
        let update = Update { nid, full, generation, incarnation, standing, accusers };
        swim.speaker = Some(Nid::of(who));
        swim.apply(&update, &mut ctx);
        out.iter().filter(|o| matches!(o, Output::Event(Event::HeldDead))).count()
    };
    assert_eq!(held_dead("a", 1, 0, Standing::Suspect), 0);
    assert_eq!(held_dead("a", 1, 0, Standing::Dead), 1, "refuted from the same backlog");
    assert_eq!(held_dead("a", 1, 0, Standing::Dead), 0, "the same death");
    assert_eq!(held_dead("a", 1, 1, Standing::Dead), 1, "another");
    assert_eq!(held_dead("a", 0, 9, Standing::Dead), 0, "of an outlived boot");
    assert_eq!(held_dead("stranger", 1, 7, Standing::Dead), 0, "from beyond a cut");
    assert_eq!(held_dead("a", 1, 7, Standing::Dead), 0, "which is not news any more");
}

#[test]
fn a_rumour_of_death_about_the_living_is_verified_first() {
    let mut swim = swim();
    tell(&mut swim, &[(0, 1, 0, Standing::Alive, false), (1, 1, 0, Standing::Alive, false)]);
    let dead = (0, 1, 0, Standing::Dead, false);
    tell(&mut swim, &[dead, dead]);
    let state = |swim: &Swim, who: &str| swim.table.get(Nid::of(who)).map(|e| e.member.state);
    assert_eq!(state(&swim, "a"), Some(State::Suspect));
    // A suspicion with an accuser ends by word of mouth.
    tell(&mut swim, &[(1, 1, 0, Standing::Suspect, true), (1, 1, 0, Standing::Dead, false)]);
    assert_eq!(state(&swim, "b"), Some(State::Dead));
}
