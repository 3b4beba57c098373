//! Each thing the network does to datagrams, by itself: a fault that does nothing is no fault.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use sim::net::Net;

const COUNT: u32 = 4_000;

fn calm() -> Net {
    Net { side: vec![0; 3], clogged: vec![false; 3], latency_us: 1_000, ..Net::default() }
}

/// Sends so many numbered datagrams, one a microsecond: number, when, and the bytes that arrived, as they arrive.
fn carried(net: &mut Net, from: usize, to: usize) -> Vec<(u32, u64, Vec<u8>)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut arrived = Vec::new();
    for n in 0..COUNT {
        let bytes = [&n.to_le_bytes()[..], &[0xa5; 60]].concat();
        net.carry(from, to, bytes, &mut rng, |delay, bytes| {
            arrived.push((n, u64::from(n) + delay, bytes));
        });
    }
    arrived.sort_by_key(|(_, at, _)| *at);
    arrived
}

fn sent(n: u32) -> Vec<u8> {
    [&n.to_le_bytes()[..], &[0xa5; 60]].concat()
}

fn copies(arrived: &[(u32, u64, Vec<u8>)]) -> BTreeMap<u32, usize> {
    let mut copies = BTreeMap::new();
    arrived.iter().for_each(|(n, _, _)| *copies.entry(*n).or_default() += 1);
    copies
}

#[test]
fn a_calm_network_brings_each_once_whole_and_late() {
    let mut net = calm();
    let arrived = carried(&mut net, 0, 1);
    assert_eq!(copies(&arrived).values().filter(|n| **n == 1).count(), COUNT as usize);
    assert!(arrived.iter().all(|(n, at, bytes)| {
        let delay = at - u64::from(*n);
        *bytes == sent(*n) && (250..=500).contains(&delay)
    }));
    assert!(net.marks().0.is_empty());
}

#[test]
fn jitter_reorders() {
    let overtaken = |jitter_us| {
        let arrived = carried(&mut Net { latency_us: 0, jitter_us, ..calm() }, 0, 1);
        arrived.windows(2).filter(|pair| pair[1].0 < pair[0].0).count()
    };
    assert_eq!(overtaken(0), 0);
    assert!(overtaken(10_000) > COUNT as usize / 4);
}

#[test]
fn some_are_lost_some_doubled_some_damaged_by_a_bit() {
    let mut net = Net { loss: 200, ..calm() };
    let arrived = carried(&mut net, 0, 1).len();
    assert!((3_000..3_400).contains(&arrived), "{arrived}");
    assert_eq!((net.done[0] as usize, net.marks().0.len()), (COUNT as usize - arrived, 1));

    let mut net = Net { duplicate: 200, ..calm() };
    let arrived = carried(&mut net, 0, 1);
    let twice = copies(&arrived).values().filter(|n| **n == 2).count();
    assert!((600..1_000).contains(&twice), "{twice}");
    assert_eq!((net.done[1] as usize, arrived.len()), (twice, COUNT as usize + twice));

    let mut net = Net { corrupt: 200, ..calm() };
    let arrived = carried(&mut net, 0, 1);
    let flipped = |(n, bytes): (u32, &[u8])| -> u32 {
        bytes.iter().zip(sent(n)).map(|(a, b)| (a ^ b).count_ones()).sum()
    };
    let bits: Vec<u32> = arrived.iter().map(|(n, _, bytes)| flipped((*n, bytes))).collect();
    let damaged = bits.iter().filter(|n| **n == 1).count();
    assert!((600..1_000).contains(&damaged) && bits.iter().all(|n| *n <= 1), "{damaged}");
    assert_eq!(net.done[2] as usize, damaged);
}

#[test]
fn a_cut_of_one_direction_leaves_the_other() {
    let mut net = calm();
    net.cut.insert((0, 1));
    assert_eq!(carried(&mut net, 0, 1).len(), 0);
    assert_eq!(carried(&mut net, 1, 0).len(), COUNT as usize);
    assert_eq!(carried(&mut net, 0, 2).len(), COUNT as usize);
}

#[test]
fn sides_do_not_hear_each_other() {
    let mut net = Net { side: vec![0, 0, 1], ..calm() };
    assert_eq!(carried(&mut net, 0, 1).len(), COUNT as usize);
    for (from, to) in [(0, 2), (2, 0), (2, 1)] {
        assert_eq!(carried(&mut net, from, to).len(), 0, "{from} to {to}");
    }
}

#[test]
fn what_is_clogged_waits_until_both_ends_are_open() {
    let mut net = calm();
    (net.clogged[0], net.clogged[1]) = (true, true);
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        assert_eq!(carried(&mut net, from, to).len(), 0, "{from} to {to}");
    }
    let free = net.unclog(0);
    assert!(free.iter().all(|(from, to, _)| (*from, *to) == (2, 0)), "the rest waits for node 1");
    assert_eq!(free.len(), COUNT as usize);
    let free = net.unclog(1);
    assert_eq!((free.len(), net.held.len()), (2 * COUNT as usize, 0));
    let mut first =
        free.iter().filter(|(from, to, _)| (*from, *to) == (0, 1)).map(|(.., bytes)| bytes);
    assert!((0..COUNT).all(|n| first.next() == Some(&sent(n))), "nothing is lost or damaged");
    assert_eq!(carried(&mut net, 0, 1).len(), COUNT as usize);
}
