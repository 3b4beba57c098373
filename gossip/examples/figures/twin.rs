//! The story of `examples/sockets.rs` on virtual time: what processes on real sockets are to agree with.

use gossip::State;

use crate::world::{S, World};
use crate::{US, say};

const SEEDS: u64 = 5;
const UPDATES: usize = 9;
const CRASHES: usize = 5;

/// So many nodes join at once, rest, write, idle, and lose some of theirs; medians over all seeds.
pub(crate) fn twin(nodes: usize) {
    let [mut join, mut update, mut idle, mut crash] = [const { Vec::new() }; 4];
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.spawn(nodes);
        join.extend(world.until(60 * S, World::agreed));
        world.run(5 * S);
        for round in 0..UPDATES {
            world.put(round % nodes, &format!("s/default/app-{round}"), &[1; 700]);
            update.extend(world.until(60 * S, World::roots_equal));
            world.run(S);
        }
        world.run(4 * S);
        world.clear_events();
        world.run(20 * S);
        let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        idle.push(bytes * S / 20 / nodes as u64);
        for victim in 1..=CRASHES {
            world.kill(victim);
            let dead = |w: &World| w.up().all(|n| w.state(n, victim) == Some(State::Dead));
            crash.extend(world.until(60 * S, dead));
            world.run(3 * S);
        }
    }
    for (metric, values, unit) in [
        ("join", join, "s"),
        ("update", update, "s"),
        ("idle", idle, "B/s/node"),
        ("crash", crash, "s"),
    ] {
        let value = median(values).map_or(f64::NAN, |v| v as f64 / S as f64);
        say(US, &format!("sockets_sim_{metric}_{nodes}"), value, unit);
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}
