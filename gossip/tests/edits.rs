//! Two writers of one key: who had not seen the other's write is told that it lost, and nobody else is.

mod world;

use gossip::{Event, Record};
use world::{S, World};

fn flock(seed: u64) -> World {
    let mut world = World::new(seed);
    world.spawn(4);
    assert!(world.until(20 * S, World::agreed).is_some());
    world.put(2, "s/a", b"first");
    world.run(2 * S);
    world.clear_events();
    world
}

/// What a node was told of its lost writes: what it wrote, what came instead, and whether that is certain.
fn lost(world: &World, node: usize) -> Vec<(&[u8], &[u8], bool)> {
    fn body(record: &Record) -> &[u8] {
        record.body.as_deref().unwrap_or(b"-")
    }
    let events = world.nodes[node].events.iter();
    let lost = events.filter_map(|(_, event)| match event {
        Event::Superseded { mine, by, sure } => Some((body(mine), body(by), *sure)),
        _ => None,
    });
    lost.collect()
}

fn nobody_lost(world: &World) {
    for node in 0..world.nodes.len() {
        assert_eq!(lost(world, node), [], "node {node}");
    }
}

#[test]
fn who_is_overwritten_by_somebody_who_has_seen_it_has_lost_nothing() {
    let mut world = flock(1);
    for (node, body) in [(0, b"0"), (1, b"1"), (0, b"2"), (2, b"3")] {
        let before = world.nodes[node].gossip.version("s/a").map_or(0, |v| v.hash);
        world.put(node, "s/a", body);
        world.run(2 * S);
        for other in &world.nodes {
            let record = other.gossip.get("s/a").expect("it is everywhere");
            assert_eq!((record.body.as_deref(), record.prev), (Some(&body[..]), before));
        }
    }
    nobody_lost(&world);
}

#[test]
fn of_two_writers_at_once_one_is_told_that_it_lost() {
    for seed in 0..8 {
        let mut world = flock(seed);
        world.put(0, "s/a", b"left");
        world.put(1, "s/a", b"right");
        world.run(3 * S);
        assert!(world.roots_equal(), "seed {seed}");
        let kept = world.nodes[2].gossip.get("s/a").and_then(|r| r.body.clone()).expect("kept");
        let (winner, loser, gone) = match &*kept {
            b"left" => (0, 1, &b"right"[..]),
            _ => (1, 0, &b"left"[..]),
        };
        assert_eq!(lost(&world, loser), [(gone, &*kept, true)], "seed {seed}");
        for node in [winner, 2, 3] {
            assert_eq!(lost(&world, node), [], "seed {seed}: node {node}");
        }
    }
}

#[test]
fn of_two_sides_the_one_with_fewer_writes_is_told_and_a_deletion_counts_as_one() {
    let mut world = flock(9);
    world.cut = Box::new(|from, to| (from < 2) != (to < 2));
    world.run(5 * S);
    world.put(0, "s/a", b"left");
    world.run(S);
    world.put(3, "s/a", b"right");
    world.run(S);
    world.input(2, gossip::Input::Delete { key: "s/a" });
    world.run(S);
    nobody_lost(&world);
    world.cut = Box::new(|_, _| false);
    world.run(10 * S);
    assert!(world.roots_equal());
    // One version ahead, it cannot descend from what it does not name.
    assert_eq!(lost(&world, 0), [(&b"left"[..], &b"-"[..], true)]);
    for node in 1..4 {
        assert_eq!(lost(&world, node), [], "node {node}");
    }
}

#[test]
fn who_is_overtaken_by_several_versions_is_told_that_it_may_have_been_seen() {
    let mut world = flock(10);
    world.cut = Box::new(|from, to| (from < 2) != (to < 2));
    world.put(0, "s/a", b"left");
    for body in [b"1", b"2", b"3"] {
        world.put(3, "s/a", body);
        world.run(S);
    }
    world.cut = Box::new(|_, _| false);
    world.run(10 * S);
    assert!(world.roots_equal());
    assert_eq!(lost(&world, 0), [(&b"left"[..], &b"3"[..], false)]);
    assert_eq!(lost(&world, 3), [], "its own writes replaced its own");
}
