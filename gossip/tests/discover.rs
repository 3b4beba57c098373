//! Nodes without seeds find each other on their link, and nobody else is answered.

mod world;

use std::net::SocketAddr;

use gossip::{Config, Event, Gossip, Identity, Input, KeyRing, Output, Profile, SecretKey};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use world::{S, World, addr, name};

fn group() -> SocketAddr {
    SocketAddr::from(([239, 255, 74, 0], 7400))
}

fn searching(cfg: &mut Config) {
    cfg.seeds.clear();
    cfg.discover = Some(group());
}

/// Datagrams from now on for so long, and those of them that were copies of a beacon.
fn traffic(world: &mut World, time: u64) -> usize {
    world.recording = Some(Vec::new());
    world.run(time);
    world.recording.take().expect("it was on").len()
}

#[test]
fn nodes_without_seeds_become_one_flock() {
    for count in [2, 40, 200] {
        let mut world = World::new(count as u64);
        world.spawn_with(count, searching);
        let took = world.until(15 * S, World::agreed);
        assert!(took.is_some(), "{count} nodes");
        // A newcomer comes into the flock that is there.
        world.spawn_with(1, searching);
        let took = world.until(5 * S, World::agreed).expect("the newcomer is found");
        println!("{count} nodes; a newcomer after {} ms", took / 1000);
    }
}

#[test]
fn a_node_with_nobody_on_its_link_is_the_flock_after_two_beacons() {
    let mut world = World::new(1);
    world.spawn_with(1, searching);
    let joined = |w: &World| {
        w.nodes[0].events.iter().any(|(_, e)| matches!(e, Event::Joined { members: 1 }))
    };
    let took = world.until(10 * S, joined).expect("it begins");
    assert!((S..3 * S).contains(&took), "after {took} us");
}

/// Two halves of a link that was broken while they formed: neither knows of the other.
#[test]
fn flocks_that_formed_apart_meet() {
    let mut world = World::new(2);
    world.cut = Box::new(|from, to| (from < 5) != (to < 5));
    world.spawn_with(10, searching);
    world.run(10 * S);
    assert_eq!((world.live(0), world.live(9)), (5, 5));
    world.cut = Box::new(|_, _| false);
    assert!(world.until(30 * S, World::agreed).is_some());
}

#[test]
fn who_is_known_is_not_answered_and_beacons_stay_few() {
    let mut quiet = World::new(3);
    quiet.spawn(30);
    quiet.run(20 * S);
    let without = traffic(&mut quiet, 60 * S);
    let mut world = World::new(3);
    world.spawn_with(30, searching);
    world.run(20 * S);
    assert!(world.agreed());
    let with = traffic(&mut world, 60 * S);
    // Twelve beacons a minute, each heard by thirty: 360 datagrams of some ten thousand, and no answers.
    assert!(with < without + 30 * 24, "{with} datagrams, {without} without discovery");
}

#[test]
fn beacons_of_other_flocks_and_repeated_ones_are_ignored() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let beacon = |keys: KeyRing, rng: &mut Xoshiro256PlusPlus| {
        let mut cfg = Config::new(keys, Profile::Lan);
        cfg.discover = Some(group());
        let me = Identity { name: name(9), generation: 1, addr: addr(9) };
        let mut node = Gossip::new(cfg, me).expect("the name is valid");
        let mut out = Vec::new();
        node.step(1, 0, Input::Timer, rng, &mut out);
        let sent = out.into_iter().find_map(|o| match o {
            Output::Send { to, bytes } if to == group() => Some(bytes),
            _ => None,
        });
        sent.expect("it looks for others at once")
    };
    let ours = beacon(world::keys(), &mut rng);
    let foreign = beacon(KeyRing::new(&SecretKey::new(1, [8; 32])), &mut rng);
    let mut world = World::new(4);
    world.spawn_with(2, searching);
    assert!(world.until(10 * S, World::agreed).is_some());
    let now = world.now;
    let gossip = &mut world.nodes[0].gossip;
    let mut hear = |now, bytes: &[u8]| {
        let mut out = Vec::new();
        let before = (gossip.view(), gossip.root(), gossip.members().count());
        gossip.step(now, 0, Input::Datagram { from: addr(9), bytes }, &mut rng, &mut out);
        assert_eq!((gossip.view(), gossip.root(), gossip.members().count()), before);
        out.into_iter().filter(|o| matches!(o, Output::Send { .. })).count()
    };
    assert_eq!(hear(now, &foreign), 0, "another flock");
    assert_eq!(hear(now, &ours), 1, "a newcomer is answered, and not believed");
    for later in [0, 1, S, 3_600 * S] {
        assert_eq!(hear(now + later, &ours), 0, "its recording is not");
    }
    let mut cut = ours.clone();
    cut.truncate(40);
    assert_eq!(hear(now, &cut), 0);
}

#[test]
fn a_node_that_does_not_take_part_is_silent() {
    let mut world = World::new(5);
    world.spawn_with(1, searching);
    // It has seeds and no group: beacons that reach it all the same are not answered.
    world.spawn_with(1, |cfg| cfg.seeds = vec![addr(7)]);
    world.run(S);
    world.recording = Some(Vec::new());
    world.run(3 * S);
    let beacons = world.recording.take().expect("it was on");
    assert!(beacons.iter().all(|(to, ..)| *to == 0), "only the group hears them");
    assert_eq!((world.live(0), world.live(1)), (1, 1));
}
