//! What goes wrong in a flock, on virtual time: nobody living is buried, nothing acknowledged is lost.

mod world;

use gossip::{Event, Expect, Input, Limits, MemberInfo, Record, Restored, State};
use world::{MS, S, World, addr, name};

fn joined(seed: u64, count: usize) -> World {
    let mut world = World::new(seed);
    world.spawn(count);
    assert!(world.until(20 * S, World::agreed).is_some(), "{count} nodes never agreed");
    world.run(3 * S);
    world.clear_events();
    world
}

#[test]
fn loss_kills_nobody() {
    for (seed, loss) in [(1, 50), (2, 100), (3, 200)] {
        let mut world = joined(seed, 30);
        world.loss = loss;
        world.run(60 * S);
        assert_eq!(world.deaths(), [], "at {} %", loss / 10);
        world.kill(7);
        let dead = |w: &World| w.up().all(|n| w.state(n, 7) == Some(State::Dead));
        assert!(world.until(6 * S, dead).is_some(), "at {} % a real death is noticed", loss / 10);
    }
}

#[test]
fn who_finds_somebody_dead_does_not_doubt_itself() {
    // From eight on there are helpers for the second stage of a probe, too.
    for (seed, count) in [(21, 4), (22, 8), (23, 9), (24, 50)] {
        let mut world = joined(seed, count);
        world.kill(1);
        let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
        for _ in 0..300 {
            world.run(10 * MS);
            let doubting = world.up().filter(|n| world.nodes[*n].gossip.stats().health > 0).count();
            assert_eq!(doubting, 0, "of {count}");
        }
        assert!(dead(&world), "of {count}: nobody missed it");
    }
}

#[test]
fn a_one_way_cut_kills_nobody() {
    let mut world = joined(4, 20);
    world.cut = Box::new(|from, to| from == 3 && to == 4);
    world.run(120 * S);
    assert_eq!(world.deaths(), []);
}

#[test]
fn halves_that_meet_again_agree_at_once_and_bury_nobody() {
    let mut world = joined(5, 40);
    world.cut = Box::new(|from, to| (from < 20) != (to < 20));
    world.run(30 * S);
    for node in 0..40 {
        assert_eq!(world.live(node), 20, "node {node}");
    }
    for i in 0..20 {
        world.put(i, &format!("s/left/{i}"), b"x");
        world.put(20 + i, &format!("s/right/{i}"), b"y");
    }
    // Both sides write one key; the side with more writes wins.
    world.put(0, "s/both", b"left");
    world.put(30, "s/both", b"right");
    world.run(5 * S);
    world.put(31, "s/both", b"right again");
    world.run(30 * S);
    world.clear_events();
    world.cut = Box::new(|_, _| false);
    let view = world.until(10 * S, World::agreed).expect("one view");
    let equal = world.until(10 * S, World::roots_equal).expect("equal maps");
    assert!(view + equal <= 5 * S, "{} + {} ms", view / MS, equal / MS);
    assert_eq!(world.deaths(), [], "the living of one's own side stay alive");
    let gossip = &world.nodes[11].gossip;
    assert_eq!(gossip.range("s/left/").count() + gossip.range("s/right/").count(), 40);
    assert_eq!(gossip.get("s/both").and_then(|r| r.body.as_deref()), Some(&b"right again"[..]));
    let lost = |e: &(u64, Event)| matches!(&e.1, Event::Superseded { sure: true, .. });
    assert!(world.nodes[0].events.iter().any(lost), "the losing writer is told");
    assert!(!world.nodes[30].events.iter().any(lost), "whose write was seen is not");
}

#[test]
fn a_stalled_node_blames_nobody_and_is_back_at_once() {
    let mut world = joined(6, 30);
    for node in [3, 4, 5] {
        world.pause(node);
    }
    world.run(16 * S);
    let noticed = world.state(0, 3);
    // What has waited is read before the timer's turn.
    for n in 0..5u8 {
        world.put(3, "s/waited", &[n]);
    }
    for node in [3, 4, 5] {
        world.resume(node);
    }
    assert_eq!(noticed, Some(State::Dead));
    let took = world.until(10 * S, World::agreed).expect("they are back");
    assert!(took <= 2 * S, "took {} ms", took / MS);
    world.run(30 * S);
    let stalled = [name(3), name(4), name(5)];
    assert!(world.deaths().iter().all(|(_, _, whom)| stalled.contains(whom)));
    let stall = |e: &(u64, Event)| matches!(e.1, Event::Stalled { .. });
    let stalls = world.nodes[3].events.iter().filter(|e| stall(e)).count();
    assert_eq!(stalls, 1, "forgiven once: a suspicion must not be put off again and again");
}

/// The datagrams that waited for it do not each forgive the same time again: who died meanwhile is found dead.
#[test]
fn a_stall_is_forgiven_once() {
    let mut world = joined(23, 12);
    world.kill(1);
    let suspect = |w: &World| w.state(0, 1) == Some(State::Suspect);
    assert!(world.until(5 * S, suspect).is_some(), "node 0 suspects it");
    // Nobody else may tell it.
    world.cut = Box::new(|from, to| (from == 0) != (to == 0));
    world.pause(0);
    world.run(10 * S);
    for _ in 0..500 {
        world.input(0, Input::Datagram { from: addr(5), bytes: b"whatever" });
    }
    world.resume(0);
    let dead = |w: &World| w.state(0, 1) == Some(State::Dead);
    assert!(world.until(40 * S, dead).is_some(), "it is found dead");
}

/// Forgotten while it was only cut off: it steps above that when it hears of it, and nobody asks it for ever who it is.
#[test]
fn a_living_node_that_was_forgotten_returns_without_a_storm() {
    let mut world = joined(21, 4);
    world.cut = Box::new(|from, to| (from == 2) != (to == 2));
    world.run(10 * S);
    assert_eq!(world.state(0, 2), Some(State::Dead));
    world.input(0, Input::Forget { name: &name(2) });
    world.run(120 * S);
    assert!((0..4).filter(|n| *n != 2).all(|n| world.state(n, 2).is_none()), "forgotten by all");
    world.clear_events();
    world.cut = Box::new(|_, _| false);
    assert!(world.until(10 * S, World::agreed).is_some(), "it is back");
    world.run(5 * S);
    let sent: u64 = world.nodes.iter().map(|n| n.sent).sum();
    assert!(sent < 1000, "{sent} datagrams");
}

/// As above, but it is on its way out.
#[test]
fn a_farewell_of_somebody_forgotten_starts_no_storm() {
    let mut world = joined(22, 4);
    world.input(2, Input::Leave);
    world.run(5 * MS);
    world.clear_events();
    for node in [0, 1, 3] {
        world.input(node, Input::Forget { name: &name(2) });
    }
    world.run(2 * S);
    let sent: u64 = world.nodes.iter().map(|n| n.sent).sum();
    assert!(sent < 200, "{sent} datagrams");
}

#[test]
fn wild_clocks_harm_nobody() {
    let mut world = joined(7, 10);
    const TEN_YEARS_MS: i64 = 10 * 365 * 24 * 3600 * 1000;
    world.nodes[2].wall_skew_ms = TEN_YEARS_MS;
    world.nodes[3].wall_skew_ms = -TEN_YEARS_MS;
    world.put(2, "s/a", b"from the future");
    world.put(3, "s/b", b"from the past");
    world.run(2 * S);
    world.put(5, "s/a", b"now");
    world.put(6, "s/b", b"now");
    world.run(60 * S);
    assert_eq!(world.deaths(), []);
    assert!(world.roots_equal());
    for key in ["s/a", "s/b"] {
        let record = world.nodes[2].gossip.get(key).expect("it is there");
        assert_eq!(record.body.as_deref(), Some(&b"now"[..]), "the next write wins");
    }
}

/// Years ahead for two minutes, as before the first answer of a time server: what others delete is deleted there too.
#[test]
fn a_clock_that_was_ahead_and_is_set_right_misses_no_deletion() {
    let mut world = joined(24, 4);
    for key in ["s/a", "s/b", "s/c"] {
        world.put(0, key, b"x");
    }
    world.run(S);
    world.input(1, Input::Delete { key: "s/a" });
    world.run(5 * S);
    world.nodes[2].wall_skew_ms = 10 * 365 * 24 * 3600 * 1000;
    world.run(120 * S);
    world.input(1, Input::Delete { key: "s/b" });
    world.run(5 * S);
    world.nodes[2].wall_skew_ms = 0;
    world.run(120 * S);
    world.input(1, Input::Delete { key: "s/c" });
    assert!(world.until(30 * S, World::roots_equal).is_some(), "the maps stay different");
    let gossip = &world.nodes[2].gossip;
    assert_eq!((gossip.range("s/").count(), gossip.records().count()), (0, 3));
}

#[test]
fn a_machine_that_lost_its_disk_steps_above_its_past() {
    let mut world = joined(8, 4);
    for _ in 0..3 {
        world.restart(2);
        assert!(world.until(5 * S, World::agreed).is_some());
        world.run(S);
    }
    // Generation 4 is known of it; it starts from 1 again.
    world.kill(2);
    world.run(5 * S);
    world.forget_generation(2);
    world.restart(2);
    assert!(world.until(5 * S, World::agreed).is_some());
    let member = world.nodes[0].gossip.member(&name(2)).expect("listed");
    assert!(member.generation > 4);
}

#[test]
fn machines_that_lost_their_disks_together_are_no_island() {
    let mut world = World::new(16);
    world.spawn_with(5, |cfg| cfg.seeds = vec![addr(0), addr(1)]);
    assert!(world.until(20 * S, World::agreed).is_some());
    for _ in 0..3 {
        for node in [0, 1] {
            world.restart(node);
        }
        assert!(world.until(10 * S, World::agreed).is_some());
        world.run(S);
    }
    for node in [0, 1] {
        world.kill(node);
        world.forget_generation(node);
    }
    assert!(world.until(10 * S, World::agreed).is_some(), "both are known to be dead");
    // Both seeds are found alive by each other: they look no further, and the others have to fetch them.
    for node in [0, 1] {
        world.restart(node);
    }
    assert!(world.until(10 * S, World::agreed).is_some());
    for node in [0, 1] {
        let member = world.nodes[2].gossip.member(&name(node)).expect("listed");
        assert!(member.generation > 4);
    }
}

#[test]
fn nodes_that_remember_each_other_from_later_boots_meet() {
    let mut world = World::new(17);
    world.spawn_with(2, |cfg| cfg.seeds = vec![addr(0), addr(1)]);
    assert!(world.until(20 * S, World::agreed).is_some());
    for node in [0, 1] {
        world.kill(node);
    }
    // Boot counters that went back at both, as when images are written anew, but not what they know of others.
    for (node, other) in [(0, 1), (1, 0)] {
        let info = MemberInfo {
            name: name(other),
            addr: addr(other),
            generation: 9,
            incarnation: 3,
            state: State::Alive,
        };
        let saved_ms = world.wall_ms(node);
        let restored = Restored { records: Vec::new(), roster: vec![info], saved_ms };
        world.restart_with(node, restored);
    }
    assert!(world.until(10 * S, World::agreed).is_some());
    for (node, other) in [(0, 1), (1, 0)] {
        let member = world.nodes[node].gossip.member(&name(other)).expect("listed");
        assert!(member.generation > 9);
    }
}

#[test]
fn two_nodes_of_one_name_are_reported_at_both() {
    let mut world = joined(9, 4);
    world.spawn_as(name(1));
    world.run(20 * S);
    let conflict = |e: &(u64, Event)| matches!(e.1, Event::NameConflict { .. });
    for node in [1, 4] {
        assert!(world.nodes[node].events.iter().any(conflict), "node {node} knows");
    }
    assert!(world.nodes[0].gossip.members().count() == 3, "and the flock is not flooded");
}

/// A cloned disk: the later one stays out, nobody's view changes, and it comes in once the first is gone.
#[test]
fn a_second_node_of_one_name_stays_out() {
    for generation in [0, 6] {
        let mut world = joined(12, 4);
        let before = world.nodes[0].gossip.member(&name(1)).expect("listed").clone();
        world.clear_events();
        world.spawn_as(name(1));
        // As if the clone had started more often.
        for _ in 0..generation {
            world.restart(4);
        }
        world.run(20 * S);
        let conflict = |e: &(u64, Event)| matches!(e.1, Event::NameConflict { .. });
        for node in [1, 4] {
            assert!(world.nodes[node].events.iter().any(conflict), "node {node} knows");
        }
        for node in [0, 2, 3] {
            let seen = world.nodes[node].gossip.member(&name(1)).expect("listed");
            let place = |m: &gossip::Member| (m.addr, m.generation, m.state);
            assert_eq!(place(seen), place(&before), "no flapping at node {node}");
            let news = |e: &(u64, Event)| matches!(e.1, Event::Member(_));
            assert!(!world.nodes[node].events.iter().any(news), "node {node} heard of a change");
        }
        assert_eq!(world.nodes[4].gossip.members().count(), 0, "it has joined nobody");
        world.kill(1);
        let inside = |w: &World| {
            w.nodes[0]
                .gossip
                .member(&name(1))
                .is_some_and(|m| m.addr == addr(4) && m.state.is_live())
        };
        assert!(world.until(30 * S, inside).is_some(), "the name is free");
    }
}

/// The same node at another address, before anybody missed it, is no namesake.
#[test]
fn a_node_that_moved_comes_back_at_once() {
    let mut world = joined(13, 4);
    world.kill(1);
    world.spawn_as(name(1));
    world.restart(4);
    let inside = |w: &World| {
        w.nodes[0].gossip.member(&name(1)).is_some_and(|m| m.addr == addr(4) && m.state.is_live())
    };
    let took = world.until(5 * S, inside).expect("it is in");
    assert!(took < 3 * S, "{took}");
    let conflict = |e: &(u64, Event)| matches!(e.1, Event::NameConflict { .. });
    assert!(!world.nodes[4].events.iter().any(conflict));
}

#[test]
fn a_conditional_put_sees_what_it_replaces() {
    let mut world = joined(10, 2);
    let put = |w: &mut World, expect| {
        w.clear_events();
        w.input(0, Input::Put { key: "s/a", body: b"x".to_vec(), expect });
        let refused = |e: &(u64, Event)| matches!(e.1, Event::Refused(_));
        !w.nodes[0].events.iter().any(refused)
    };
    assert!(put(&mut world, Expect::Absent));
    assert!(!put(&mut world, Expect::Absent));
    let version = world.nodes[0].gossip.version("s/a").expect("written");
    assert!(put(&mut world, Expect::Version(version)));
    assert!(!put(&mut world, Expect::Version(version)), "it has moved on");
    world.input(0, Input::Delete { key: "s/a" });
    let cursor = world.nodes[0].gossip.cursor();
    assert!(put(&mut world, Expect::Absent), "a deleted record is absent");
    assert_eq!(world.nodes[0].gossip.version("s/a").map(|v| v.rev), Some(4));
    let gossip = &world.nodes[0].gossip;
    let later: Vec<&str> = gossip.changes("s/", cursor).map(|(_, r)| &*r.key).collect();
    assert_eq!((later, gossip.changes("t/", 0).count()), (vec!["s/a"], 0));
}

#[test]
fn one_writer_cannot_fill_everybody() {
    let limits = Limits { writer_records: 50, ..Limits::default() };
    let mut world = World::new(11);
    world.spawn_with(4, |cfg| cfg.limits = limits);
    world.spawn_with(1, |_| {});
    assert!(world.until(5 * S, World::agreed).is_some());
    for i in 0..60 {
        world.put(4, &format!("x/{i}"), b"junk");
        world.put(1, "s/mine", b"fine");
    }
    world.run(20 * S);
    for node in 0..4 {
        let gossip = &world.nodes[node].gossip;
        assert_eq!(gossip.range("x/").count(), 50);
        assert!(gossip.get("s/mine").is_some());
        let said = |e: &&(u64, Event)| matches!(e.1, Event::Quota { .. });
        assert_eq!(world.nodes[node].events.iter().filter(said).count(), 1);
    }
    world.clear_events();
    world.run(60 * S);
    let bytes = world.nodes.iter().map(|n| n.sent_bytes).max().unwrap_or(0);
    assert!(bytes < 60 * 1500, "maps that cannot become equal stay cheap: {} B/s", bytes / 60);
}

#[test]
fn a_tombstone_is_dropped_in_the_end_and_nothing_returns() {
    let mut world = World::new(12);
    let limits = Limits { tombstone_ms: 15 * 60 * 1000, ..Limits::default() };
    world.spawn_with(3, |cfg| cfg.limits = limits);
    assert!(world.until(5 * S, World::agreed).is_some());
    world.put(0, "s/a", b"x");
    world.run(S);
    world.input(1, Input::Delete { key: "s/a" });
    world.run(S);
    world.nodes[2].wall_skew_ms = 120_000;
    world.run(740 * S);
    assert!(world.nodes[0].gossip.version("s/a").is_some());
    world.run(400 * S);
    for node in 0..3 {
        assert_eq!(world.nodes[node].gossip.version("s/a"), None, "node {node}");
    }
    assert!(world.roots_equal());
}

#[test]
fn the_same_seed_is_the_same_flock() {
    let trace = |seed| {
        let mut world = World::new(seed);
        world.spawn(12);
        world.loss = 100;
        world.run(20 * S);
        world.put(3, "s/a", b"x");
        world.kill(5);
        world.run(20 * S);
        let sent: Vec<(u64, u64)> = world.nodes.iter().map(|n| (n.sent, n.sent_bytes)).collect();
        let events: Vec<_> = world.nodes.iter().map(|n| n.events.clone()).collect();
        (sent, events)
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1).0, trace(2).0);
}

#[test]
fn after_any_weather_the_flock_agrees() {
    for seed in 0..6 {
        let (members, maps) = world::weather(seed, 8, 30);
        let members = members.unwrap_or_else(|| panic!("seed {seed}: members never agreed"));
        let maps = maps.unwrap_or_else(|| panic!("seed {seed}: maps never agreed"));
        assert!(members <= 15 * S, "seed {seed}: members took {} ms", members / MS);
        assert!(maps <= 15 * S, "seed {seed}: maps took {} ms", maps / MS);
    }
}

#[test]
fn between_sites_the_wan_profile_is_calm() {
    let mut world = World::new(14);
    world.latency_us = (40_000, 120_000);
    world.loss = 20;
    world.spawn_with(20, |cfg| cfg.timing = gossip::Timing::of(gossip::Profile::Wan));
    assert!(world.until(30 * S, World::agreed).is_some());
    world.run(10 * S);
    world.clear_events();
    world.put(3, "s/a", &[1; 5000]);
    // 2.1 s in the middle and 7.2 s at most of 300 seeds.
    assert!(world.until(10 * S, World::roots_equal).is_some());
    world.run(120 * S);
    assert_eq!(world.deaths(), []);
    world.kill(6);
    let dead = |w: &World| w.up().all(|n| w.state(n, 6) == Some(State::Dead));
    assert!(world.until(20 * S, dead).is_some());
}

#[test]
fn who_was_away_longer_than_deletions_are_remembered_asks_for_everything() {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    // Away for so many days, the flock up for so many seconds before.
    for (days, up, kept) in [(29, 4000, 1), (31, 4000, 0), (31, 60, 1)] {
        let mut world = World::new(15);
        world.spawn(3);
        world.put(1, "s/a", b"x");
        world.run(10 * S);
        let records: Vec<Record> = world.nodes[2].gossip.records().cloned().collect();
        assert_eq!(records.len(), 1);
        world.kill(2);
        // Deleted and forgotten meanwhile: as if it had never been.
        for node in [0, 1] {
            world.kill(node);
            world.restart(node);
        }
        world.run(up * S);
        let wall_ms = world.wall_ms(2);
        let (roster, saved_ms) = (Vec::new(), wall_ms - days * DAY_MS);
        world.restart_with(2, Restored { records, roster, saved_ms });
        assert!(world.until(10 * S, World::agreed).is_some());
        world.run(3 * S);
        for node in 0..3 {
            assert_eq!(world.nodes[node].gossip.range("s/").count(), kept, "{days} d, {up} s");
        }
    }
}

#[test]
fn a_node_that_moves_is_followed() {
    let mut world = joined(13, 4);
    world.input(2, Input::Address(addr(77)));
    let moved = |w: &World| {
        [0, 1, 3]
            .iter()
            .all(|n| w.nodes[*n].gossip.member(&name(2)).is_some_and(|m| m.addr == addr(77)))
    };
    assert!(world.until(2 * S, moved).is_some());
}
