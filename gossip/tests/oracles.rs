//! The same story told to us and to the peers: membership as foca sees it in the end, the map as chitchat does.

mod peers;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gossip::Input;
use peers::chitchat::{self, ChitchatWorld};
use peers::foca::FocaWorld;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use world::{S, World};

/// What happens to the members of a flock.
#[derive(Debug, Clone, Copy)]
enum Act {
    Crash(usize),
    Restart(usize),
    Leave(usize),
    Join,
    /// Below and from this node on do not hear each other.
    Cut(usize),
    Heal,
    Loss(u64),
    /// Long enough for foca to have made up its mind.
    Rest,
}

/// Everybody's view in the end of what is up, by node that is up.
type Views = BTreeMap<usize, BTreeSet<usize>>;

fn ours(seed: u64, count: usize, story: &[Act]) -> Views {
    let mut world = World::new(seed);
    // foca's restarted node is given a living address; so are ours.
    world.spawn_with(count, |cfg| cfg.seeds = (0..count).map(world::addr).collect());
    world.run(30 * S);
    for act in story {
        match *act {
            Act::Crash(node) => world.kill(node),
            Act::Restart(node) => world.restart(node),
            Act::Leave(node) => {
                world.input(node, Input::Leave);
                world.run(S);
                world.kill(node);
            }
            Act::Join => {
                world.spawn_with(1, |cfg| cfg.seeds = (0..count).map(world::addr).collect())
            }
            Act::Cut(side) => world.cut = Box::new(move |a, b| (a < side) != (b < side)),
            Act::Heal => world.cut = Box::new(|_, _| false),
            Act::Loss(loss) => world.loss = loss,
            Act::Rest => world.run(180 * S),
        }
    }
    let names: BTreeMap<String, usize> =
        (0..world.nodes.len()).map(|n| (world::name(n), n)).collect();
    let live = |node: usize| {
        let members = world.nodes[node].gossip.members().filter(|m| m.state.is_live());
        members.map(|m| names[&*m.name]).chain([node]).collect()
    };
    world.up().map(|node| (node, live(node))).collect()
}

fn focas(seed: u64, count: usize, story: &[Act]) -> Views {
    let mut world = FocaWorld::new(seed, count);
    world.spawn(count);
    world.run(120 * S);
    for act in story {
        match *act {
            Act::Crash(node) => world.kill(node),
            Act::Restart(node) => world.restart(node),
            Act::Leave(node) => world.leave(node),
            Act::Join => world.spawn(1),
            Act::Cut(side) => world.cut = Box::new(move |a, b| (a < side) != (b < side)),
            Act::Heal => world.cut = Box::new(|_, _| false),
            Act::Loss(loss) => world.loss = loss,
            Act::Rest => world.run(180 * S),
        }
    }
    world.up().map(|node| (node, world.live(node))).collect()
}

/// Both end with one view, and with the same.
fn same(seed: u64, count: usize, story: &[Act]) {
    let (ours, theirs) = (ours(seed, count, story), focas(seed, count, story));
    assert_eq!(ours, theirs, "seed {seed}: ours left, foca's right, after {story:?}");
}

#[test]
fn crash_join_leave_and_return_end_as_with_foca() {
    use Act::{Crash, Join, Leave, Rest, Restart};
    let story = [Crash(3), Rest, Join, Leave(5), Rest, Restart(3), Crash(1), Rest];
    for seed in 1..=3 {
        same(seed, 12, &story);
    }
}

#[test]
fn a_partition_is_seen_and_healed_as_with_foca() {
    use Act::{Crash, Cut, Heal, Loss, Rest};
    same(4, 10, &[Cut(4), Rest]);
    // One dies on the other side; foca needs several of its 65 s rounds to find the far side again.
    same(5, 10, &[Cut(4), Rest, Crash(7), Rest, Heal, Rest, Rest, Rest, Rest]);
    same(6, 10, &[Loss(50), Crash(2), Rest]);
}

/// Stories drawn from a seed; at least the first three nodes stay up.
#[test]
fn drawn_stories_end_as_with_foca() {
    for seed in 10..16 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut story = Vec::new();
        let mut down = BTreeSet::new();
        let mut left = BTreeSet::new();
        let mut count = 10;
        for _ in 0..12 {
            let node = 3 + (rng.next_u64() % (count - 3)) as usize;
            match rng.next_u64() % 5 {
                0 | 1 if !down.contains(&node) && !left.contains(&node) => {
                    story.push(Act::Crash(node));
                    down.insert(node);
                }
                2 if down.remove(&node) => story.push(Act::Restart(node)),
                3 if !down.contains(&node) && left.insert(node) => story.push(Act::Leave(node)),
                4 => {
                    story.push(Act::Join);
                    count += 1;
                }
                _ => story.push(Act::Rest),
            }
        }
        story.push(Act::Rest);
        same(seed, 10, &story);
    }
}

/// A write of one node to its own keys.
#[derive(Debug, Clone)]
enum Write {
    Set(usize, String, String),
    Delete(usize, String),
    Cut(usize),
    Heal,
    Loss(u64),
    Wait,
}

fn script(seed: u64, nodes: usize, writes: usize) -> Vec<Write> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut script = Vec::new();
    for n in 0..writes {
        let node = (rng.next_u64() % nodes as u64) as usize;
        let key = format!("k{}", rng.next_u64() % 6);
        script.push(match rng.next_u64() % 12 {
            0 | 1 => Write::Delete(node, key),
            2 => Write::Wait,
            3 => Write::Cut(1 + node % (nodes - 1)),
            4 => Write::Heal,
            5 => Write::Loss([0, 100, 300][node % 3]),
            _ => {
                let len = (rng.next_u64() % 900) as usize;
                Write::Set(node, key, format!("{n}-{}", "x".repeat(len)))
            }
        });
    }
    script
}

fn our_map(seed: u64, nodes: usize, script: &[Write]) -> BTreeMap<String, String> {
    let mut world = World::new(seed);
    world.spawn(nodes);
    world.run(5 * S);
    let path = |node: usize, key: &str| format!("{}/{key}", world::name(node));
    for write in script {
        match write {
            Write::Set(node, key, value) => world.put(*node, &path(*node, key), value.as_bytes()),
            Write::Delete(node, key) => {
                world.input(*node, Input::Delete { key: &path(*node, key) });
            }
            Write::Cut(side) => {
                let side = *side;
                world.cut = Box::new(move |a, b| (a < side) != (b < side));
            }
            Write::Heal => world.cut = Box::new(|_, _| false),
            Write::Loss(loss) => world.loss = *loss,
            Write::Wait => world.run(2 * S),
        }
        world.run(50_000);
    }
    world.cut = Box::new(|_, _| false);
    world.loss = 0;
    assert!(world.until(60 * S, World::roots_equal).is_some(), "seed {seed}: our maps differ");
    let view = |node: usize| -> BTreeMap<String, String> {
        let text = |r: &gossip::Record| String::from_utf8(r.body.as_deref()?.to_vec()).ok();
        let all = world.nodes[node].gossip.range("");
        all.filter_map(|r| Some((r.key.to_string(), text(r)?))).collect()
    };
    for node in 1..nodes {
        assert_eq!(view(node), view(0), "seed {seed}: equal roots, equal maps");
    }
    view(0)
}

fn chitchats_map(seed: u64, nodes: usize, script: &[Write]) -> BTreeMap<String, String> {
    chitchat::run(async {
        let world = ChitchatWorld::new(seed, nodes).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        for write in script {
            match write {
                Write::Set(node, key, value) => world.set(*node, key, value).await,
                Write::Delete(node, key) => world.delete(*node, key).await,
                Write::Cut(side) => world.partition(Some(*side)),
                Write::Heal => world.partition(None),
                Write::Loss(loss) => world.set_loss(*loss),
                Write::Wait => tokio::time::sleep(Duration::from_secs(2)).await,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.partition(None);
        world.set_loss(0);
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let first = world.view(0).await;
            let mut equal = true;
            for node in 1..nodes {
                equal &= world.view(node).await == first;
            }
            if equal {
                return first;
            }
        }
        panic!("seed {seed}: chitchat's views differ after 300 s");
    })
}

/// Each node writes under its own name only: chitchat has no other writes. What both keep is the last write of each key.
#[test]
fn single_writer_keys_end_as_with_chitchat() {
    for seed in 1..=6 {
        let script = script(seed, 6, 120);
        let (ours, theirs) = (our_map(seed, 6, &script), chitchats_map(seed, 6, &script));
        let mut naive = BTreeMap::new();
        for write in &script {
            match write {
                Write::Set(node, key, value) => {
                    naive.insert(format!("{}/{key}", world::name(*node)), value.clone());
                }
                Write::Delete(node, key) => {
                    naive.remove(&format!("{}/{key}", world::name(*node)));
                }
                _ => {}
            }
        }
        assert!(!ours.is_empty());
        assert_eq!(ours, naive, "seed {seed}: ours against what was written");
        assert_eq!(ours, theirs, "seed {seed}: ours left, chitchat's right");
    }
}
