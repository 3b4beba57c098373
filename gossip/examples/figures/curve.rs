//! What fewer notices of a stall would cost: slower suspicions against the time in which a real death is known.

use gossip::State;

use crate::world::{S, World, name};
use crate::{US, say, seconds};

const NODES: usize = 128;
const STALL_S: u64 = 16;

/// Suspicions so many times longer than they are: 8 of 128 stand still for 16 s, and one of 128 dies.
pub(crate) fn stall_curve(seed: u64, factors: &[u64]) {
    for factor in factors {
        let joined = || {
            let mut world = World::new(seed);
            world.spawn_with(NODES, |cfg| {
                cfg.timing.suspicion_min_us *= factor;
                cfg.timing.suspicion_max_us *= factor;
                cfg.timing.suspicion_decade_us *= factor;
            });
            assert!(world.until(60 * S, World::agreed).is_some(), "no agreement");
            world.run(15 * S);
            world.clear_events();
            world
        };
        let mut world = joined();
        world.kill(64);
        let dead = |w: &World| w.up().all(|n| w.state(n, 64) == Some(State::Dead));
        let known = seconds(world.until(120 * S, dead));
        let mut world = joined();
        let stalled: Vec<usize> = (0..8).map(|n| 10 + n * 10).collect();
        stalled.iter().for_each(|node| world.pause(*node));
        world.run(STALL_S * S);
        stalled.iter().for_each(|node| world.resume(*node));
        world.run(60 * S);
        let deaths = world.deaths();
        let healthy = deaths.iter().filter(|d| stalled.iter().all(|n| name(*n) != d.2)).count();
        say(US, &format!("stall_curve_x{factor}_death_known"), known, "s");
        say(US, &format!("stall_curve_x{factor}_notices"), deaths.len() as f64, "count");
        say(US, &format!("stall_curve_x{factor}_healthy"), healthy as f64, "count");
    }
}
