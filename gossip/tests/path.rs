//! Longer datagrams where the path takes them, and never for long where it does not.

mod world;

use gossip::{PACKET_MAX_BYTES, PACKET_SAFE_BYTES};
use world::{S, World};

const RECORDS: usize = 60;

/// A node with a megabyte of records and a newcomer who pulls them; how long that takes, and how many datagrams.
fn bulk(tune: impl Fn(&mut World)) -> (World, u64, u64) {
    let mut world = World::new(1);
    tune(&mut world);
    world.spawn(1);
    for n in 0..RECORDS {
        world.put(0, &format!("s/default/app-{n}"), &vec![n as u8; 16_000]);
    }
    world.run(S);
    world.spawn(1);
    let took = world.until(60 * S, |w| World::agreed(w) && World::roots_equal(w));
    let took = took.expect("all records arrive");
    let sent = world.nodes.iter().map(|n| n.sent).sum();
    (world, took, sent)
}

#[test]
fn the_size_is_found_and_saves_datagrams() {
    let (plain, plain_us, plain_sent) = bulk(|w| w.link_bytes = PACKET_SAFE_BYTES);
    assert_eq!(plain.longest.max(1_100), plain.longest.min(PACKET_SAFE_BYTES));
    let (jumbo, jumbo_us, jumbo_sent) = bulk(|_| {});
    assert_eq!(jumbo.longest, PACKET_MAX_BYTES);
    println!("safe: {plain_sent} datagrams, {plain_us} us; jumbo: {jumbo_sent}, {jumbo_us} us");
    assert!(jumbo_sent * 2 < plain_sent, "{jumbo_sent} datagrams instead of {plain_sent}");
    // Ethernet: the kernel refuses the longest at once.
    let (ethernet, ..) = bulk(|w| w.link_bytes = 1_472);
    assert_eq!((ethernet.longest, ethernet.vanished), (1_452, 0));
}

#[test]
fn a_black_hole_costs_a_few_probes_and_no_record() {
    let (_, plain_us, _) = bulk(|w| w.link_bytes = PACKET_SAFE_BYTES);
    for carries in [PACKET_SAFE_BYTES, 1_300, 1_400] {
        let (world, took, _) = bulk(|w| w.carries = Box::new(move |_, _| carries));
        assert!(world.longest <= carries, "{} over {carries}", world.longest);
        // Two tries for each size, in each direction.
        assert!(world.vanished <= 16, "{} lost over {carries}", world.vanished);
        assert!(took <= plain_us + S, "{took} us over {carries}, {plain_us} without");
    }
}

#[test]
fn a_path_that_narrows_under_load_is_noticed() {
    let (mut world, ..) = bulk(|_| {});
    world.carries = Box::new(|_, _| 1_280);
    for n in 0..RECORDS {
        world.put(0, &format!("s/default/app-{n}"), &vec![100 + n as u8; 16_000]);
    }
    let took = world.until(30 * S, World::roots_equal).expect("all records arrive");
    assert!(took < 15 * S, "{took} us");
    world.run(5 * S);
    let vanished = world.vanished;
    for n in 0..RECORDS {
        world.put(1, &format!("s/default/app-{n}"), &vec![n as u8; 15_000]);
    }
    world.until(30 * S, World::roots_equal).expect("all records arrive");
    assert!(world.vanished - vanished <= 16, "no more than the probes of the way back");
}

#[test]
fn what_fits_stays_as_it_was() {
    let mut world = World::new(2);
    world.spawn(50);
    assert!(world.until(5 * S, World::agreed).is_some());
    world.run(30 * S);
    assert!(world.longest <= PACKET_SAFE_BYTES, "{} bytes at rest", world.longest);
}
