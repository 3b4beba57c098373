//! Who was in the flock before a restart, on virtual time: known from disks, and from the disks of others.

mod world;

use gossip::{Event, MemberInfo, Restored, State};
use world::{MS, S, World, addr};

fn joined(seed: u64, count: usize) -> World {
    let mut world = World::new(seed);
    world.spawn_with(count, |cfg| cfg.seeds = (0..2).map(addr).collect());
    assert!(world.until(20 * S, World::agreed).is_some(), "{count} nodes never agreed");
    world.run(3 * S);
    world.clear_events();
    world
}

/// What the disk of a node holds.
fn disk(world: &World, node: usize) -> Restored {
    let roster: Vec<MemberInfo> =
        world.nodes[node].gossip.members().map(gossip::Member::info).collect();
    Restored { roster, ..Restored::default() }
}

/// All machines are off; the first comes back with its disk, the second with an empty one, the others later.
#[test]
fn an_empty_disk_learns_of_the_absent_from_who_remembers_them() {
    let mut world = joined(51, 8);
    let kept = disk(&world, 0);
    (0..8).for_each(|node| world.kill(node));
    world.run(5 * S);
    world.restart_with(0, kept);
    world.run(S);
    world.forget_generation(1);
    world.restart(1);
    let knows = |w: &World| w.nodes[1].gossip.members().count() == 7;
    let took = world.until(5 * S, knows).expect("it is told");
    assert!(took <= S, "took {} ms", took / MS);
    assert_eq!(world.live(1), 2, "nobody is taken for alive");
    let told = world.nodes[1].events.iter().filter(|(_, e)| matches!(e, Event::Member(_))).count();
    assert!(told >= 7, "the layers above are told too");
    // And so does who meets nobody but it.
    world.cut = Box::new(|from, to| (from == 0) != (to == 0));
    world.forget_generation(2);
    world.restart(2);
    let knows = |w: &World| w.nodes[2].gossip.members().count() == 7;
    assert!(world.until(5 * S, knows).is_some(), "a hint is passed on");
    world.cut = Box::new(|_, _| false);
    (3..8).for_each(|node| world.restart(node));
    let took = world.until(20 * S, World::agreed).expect("all are back");
    assert!(took <= 5 * S, "took {} ms", took / MS);
}

/// Whom nobody sees again is dead for everybody, once.
#[test]
fn who_stays_away_is_dead_a_minute_later() {
    let mut world = joined(52, 4);
    let kept = disk(&world, 0);
    (0..4).for_each(|node| world.kill(node));
    world.run(5 * S);
    world.restart_with(0, kept);
    world.restart(1);
    world.run(70 * S);
    let view = |w: &World, n: usize| w.nodes[n].gossip.view();
    assert_eq!(view(&world, 0), view(&world, 1));
    for node in [0, 1] {
        assert_eq!(world.state(node, 2), Some(State::Dead));
        assert_eq!(world.nodes[node].gossip.members().count(), 3);
    }
}

/// That our disk remembers a member's past is no reason to tell it that it is dead.
#[test]
fn a_restart_accuses_nobody() {
    // One in ten lost: now and then somebody is held dead for that.
    let mut accusations = 0;
    for seed in 60..90 {
        let mut world = joined(seed, 12);
        // So that some ping a node that has not been told of them yet.
        world.loss = 100;
        for round in 0..6 {
            for node in [3, 7, round] {
                let kept = disk(&world, node);
                world.restart_with(node, kept);
            }
            world.until(20 * S, World::agreed).expect("they are back");
            world.run(S);
        }
        let accused = |e: &(u64, Event)| matches!(e.1, Event::HeldDead);
        for node in 0..12 {
            accusations += usize::from(world.nodes[node].events.iter().any(accused));
        }
    }
    println!("{accusations} accused");
    assert!(accusations <= 3, "{accusations} accused");
}

/// A machine without its disk greets one that only remembers it, from a later boot: it is told, and steps above that.
#[test]
fn who_is_remembered_from_a_later_boot_is_told_at_once() {
    let mut world = joined(53, 3);
    (0..3).for_each(|node| world.kill(node));
    let (name, addr) = (world.nodes[0].name.clone(), addr(0));
    let past = MemberInfo { name, addr, generation: 9, incarnation: 2, state: State::Alive };
    let restored = Restored { roster: vec![past], ..Restored::default() };
    world.restart_with(1, restored);
    world.run(10 * S);
    world.clear_events();
    // Cut off from who remembers it while it finds another: then it has company, and looks no further.
    world.cut = Box::new(|from, to| (from == 1) != (to == 1));
    world.forget_generation(0);
    world.restart(0);
    world.restart(2);
    world.run(100 * MS);
    world.cut = Box::new(|_, _| false);
    let took = world.until(20 * S, World::agreed).expect("they meet");
    assert!(took <= 2 * S, "took {} ms", took / MS);
    assert!(world.nodes[0].gossip.me().generation > 9);
}
