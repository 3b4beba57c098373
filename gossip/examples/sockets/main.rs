//! The same story over real sockets and on virtual time, taking turns: do they agree?
//!
//! One process a node on 127.0.0.1; JSON lines. What is compared, by definition the same on both sides:
//! - `join`: from the first node's start to the moment at which the last node knows all. All sockets are open before; each
//!   node knows the first one's address and nothing else.
//! - `update`: from a node's writing of 700 bytes to the moment at which the last node has them.
//! - `idle`: bytes of UDP payload that a node sends a second.
//! - `crash`: from a kill to the moment at which the last of the others holds it dead.
//!
//! Moments are of the nodes' own clock (one for all processes of a machine), when they learnt it. The simulation is given
//! what it cannot know: when each node of the round started after the first, the latencies on the sockets (half of the
//! round trips that the nodes measure themselves), and a boot counter as long as that of a real node.
//!
//! A join takes 0.06 to 0.6 s by chance alone, on both sides: who is met in which rumour round. Two medians of five are
//! often more than 25 % apart, two of twenty-five hardly ever; so it is repeated that often.
//!
//! `cargo xtask bench gossip --only sockets` judges. By hand:
//! `cargo run --profile sim -p gossip --example sockets [-- NODES [JOINS [STORIES]]]`

mod flock;
mod node;
mod story;
mod twin;
#[path = "../../tests/world/mod.rs"]
mod world;

use flock::Flock;
use story::{CRASHES, Samples, quantile};
use twin::Twin;

/// Runs of the simulation for each on sockets.
const SEEDS: u64 = 5;
const NODES: usize = 50;
const JOINS: usize = 25;
const STORIES: usize = 3;
/// Rounds in which the processes are started cold, too.
const COLD: usize = 5;
/// What nodes need to measure some round trips.
const PROBES_S: u64 = 1;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [node, index, seed, how @ ..] = args.as_slice()
        && node == "node"
    {
        let (index, seed) = (index.parse().expect("a number"), seed.parse().expect("an address"));
        return node::run(index, seed, !how.is_empty());
    }
    let number = |at: usize, default| {
        let number = args.get(at).map_or(Some(default), |arg| arg.parse().ok());
        number.unwrap_or_else(|| panic!("{}: no number; NODES [JOINS [STORIES]]", args[at]))
    };
    let (nodes, joins, stories) = (number(0, NODES), number(1, JOINS), number(2, STORIES));
    assert!(nodes > CRASHES + 1, "{nodes} nodes: {CRASHES} of them die, and two have to see it");
    compare(nodes, joins.max(stories), stories);
}

fn compare(nodes: usize, joins: usize, stories: usize) {
    let [mut real, mut simulated] = [(); 2].map(|()| Samples::default());
    let [mut cold, mut starts, mut latency, mut ran, mut waited] = [const { Vec::new() }; 5];
    for round in 0..joins {
        if round < COLD {
            // As processes start: whoever is faster than the seed greets a port where nobody listens yet. The simulator
            // has no such time, so this is told and not compared.
            cold.push(Flock::open(nodes, true).join().took_s);
        }
        let mut flock = Flock::open(nodes, false);
        let joined = flock.join();
        real.join_s.push(joined.took_s);
        starts.extend(joined.starts_us.iter().max().map(|at_us| *at_us as f64 / 1e6));
        ran.push(joined.ran_s);
        waited.push(joined.waited_s);
        if round < stories {
            flock.live_on(&mut real);
        } else {
            flock.rest(PROBES_S);
        }
        let latencies_us = flock.latencies_us();
        drop(flock);
        latency.extend(latencies_us.iter().map(|us| *us as f64 / 1e6));
        for seed in 0..SEEDS {
            let mut twin = Twin::open(round as u64 * SEEDS + seed, nodes, &latencies_us);
            simulated.join_s.push(twin.join(&joined.starts_us));
            if round < stories {
                twin.live_on(&mut simulated);
            }
        }
    }
    for (side, samples) in [("real", &real), ("sim", &simulated)] {
        say(&format!("{side}_join"), nodes, &samples.join_s, "s");
        say(&format!("{side}_update"), nodes, &samples.update_s, "s");
        say(&format!("{side}_idle"), nodes, &samples.idle_rate, "B/s/node");
        say(&format!("{side}_crash"), nodes, &samples.crash_s, "s");
    }
    say("real_cold_join", nodes, &cold, "s");
    say("real_last_start", nodes, &starts, "s");
    say("real_latency", nodes, &latency, "s");
    say("real_join_ran", nodes, &ran, "s/node");
    say("real_join_waited", nodes, &waited, "s/node");
}

/// The median, the first and the last tenth, and of how many samples.
fn say(metric: &str, nodes: usize, samples: &[f64], unit: &str) {
    if samples.is_empty() {
        return;
    }
    let [low, value, high] = [0.1, 0.5, 0.9].map(|share| quantile(samples, share));
    println!(
        "{{\"metric\":\"sockets_{metric}_{nodes}\",\"who\":\"quelea\",\"value\":{value:.6},\"unit\":\"{unit}\",\
         \"low\":{low:.6},\"high\":{high:.6},\"samples\":{}}}",
        samples.len()
    );
}
