//! The figures of membership and map on virtual time, and those of peers, as JSON lines.
//!
//! `cargo xtask bench gossip` runs it and judges. By hand:
//! `cargo run --profile sim -p gossip --example figures -- [--quick] [--only PREFIX]`

#[path = "curve.rs"]
mod curve_figures;
#[path = "hostile.rs"]
mod hostile_figures;
#[path = "../../tests/peers/mod.rs"]
mod peers;
#[path = "peers.rs"]
mod peers_figures;
#[path = "../../tests/world/mod.rs"]
mod world;

use std::collections::BTreeSet;
use std::time::Instant;

use gossip::rig::MapFlock;
use gossip::{Event, State};
use world::{MS, S, World, name};

/// Sizes and seeds of a run.
struct Plan {
    /// (nodes, seeds of ours, seeds of the peers).
    sizes: &'static [(usize, u64, u64)],
    /// The size at which a scenario is run that needs no second one.
    middle: usize,
    seeds: u64,
    /// Where chitchat is measured: at 1,000 nodes it did not come to an end.
    chitchat: &'static [usize],
    maps: &'static [usize],
    stalls_s: &'static [u64],
    /// How many times longer suspicions are, for the curve of stalls against deaths.
    slower: &'static [u64],
    peers: bool,
}

const FULL: Plan = Plan {
    sizes: &[(200, 3, 2), (1000, 1, 1)],
    middle: 200,
    seeds: 2,
    chitchat: &[50, 200],
    maps: &[200, 1000, 10_000],
    stalls_s: &[1, 2, 3, 4, 8, 16],
    slower: &[1, 2, 4, 8, 12, 16],
    peers: true,
};

const QUICK: Plan = Plan {
    sizes: &[(50, 1, 1)],
    middle: 50,
    seeds: 1,
    chitchat: &[20],
    maps: &[200, 1000],
    stalls_s: &[8, 16],
    slower: &[1],
    peers: true,
};

const US: &str = "quelea";

/// A scenario: how its metrics begin, and what it runs.
type Bench = (&'static [&'static str], fn(&Plan));

const BENCHES: &[Bench] = &[
    (&["crash"], |plan| {
        sized(plan, crash);
        peers_sized(plan, peers_figures::crash);
    }),
    (&["false_deaths", "suspicions", "traffic", "crash_at"], |plan| {
        for seed in 0..plan.seeds {
            for loss in [50, 100, 200] {
                self::loss(plan.middle, seed, loss);
            }
        }
        if plan.peers {
            peers_figures::loss(plan.middle, 0);
        }
    }),
    (&["stall"], |plan| {
        for seed in 0..plan.seeds {
            stall(seed, plan.stalls_s);
        }
        curve_figures::stall_curve(0, plan.slower);
        if plan.peers {
            peers_figures::stall(0, &[8, 16]);
        }
    }),
    (&["join"], |plan| {
        sized(plan, join);
        peers_sized(plan, peers_figures::join);
    }),
    (&["idle", "sim_speed"], |plan| {
        sized(plan, idle);
        peers_sized(plan, peers_figures::idle);
    }),
    (&["update", "longest", "idle"], |plan| {
        sized(plan, update);
        for nodes in plan.maps {
            map_only(*nodes, 0);
        }
        for nodes in plan.chitchat {
            peers_figures::map(*nodes, 0);
        }
    }),
    (&["heal"], |plan| {
        for seed in 0..plan.seeds {
            partition(plan.middle.min(100), seed);
        }
        if plan.peers {
            peers_figures::partition(plan.middle.min(100), 0);
        }
    }),
    (&["one_way"], |plan| {
        one_way(plan.middle, 0);
        if plan.peers {
            peers_figures::one_way(plan.middle, 0);
        }
    }),
    (&["weather"], |plan| (0..plan.seeds).for_each(weather)),
    (&["rolling_restart"], |plan| restart(plan.middle, 0)),
    (&["mass_loss"], |_| mass_loss(0)),
    (&["burst", "blank"], |plan| burst(plan.middle, 0)),
    (&["hostile"], |_| hostile_figures::hostile(0)),
];

fn sized(plan: &Plan, bench: fn(usize, u64)) {
    for (nodes, seeds, _) in plan.sizes {
        (0..*seeds).for_each(|seed| bench(*nodes, seed));
    }
}

fn peers_sized(plan: &Plan, bench: fn(usize, u64)) {
    for (nodes, _, seeds) in plan.sizes.iter().filter(|_| plan.peers) {
        (0..*seeds).for_each(|seed| bench(*nodes, seed));
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut plan, mut only) = (FULL, String::new());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => plan = QUICK,
            "--ours" => plan.peers = false,
            "--only" => only = args.next().expect("--only PREFIX"),
            other => panic!("no option {other}: --quick, --ours, --only PREFIX"),
        }
    }
    for (metrics, run) in BENCHES {
        if metrics.iter().any(|m| m.starts_with(&only) || only.starts_with(m)) {
            let start = Instant::now();
            run(&plan);
            eprintln!("{}: {:.1} s wall", metrics[0], start.elapsed().as_secs_f64());
        }
    }
}

/// One figure. What never came is null.
fn say(who: &str, metric: &str, value: f64, unit: &str) {
    let value = if value.is_finite() { format!("{value:.3}") } else { "null".to_owned() };
    println!("{{\"metric\":\"{metric}\",\"who\":\"{who}\",\"value\":{value},\"unit\":\"{unit}\"}}");
}

fn seconds(took: Option<u64>) -> f64 {
    took.map_or(f64::NAN, |t| t as f64 / S as f64)
}

fn joined(nodes: usize, seed: u64) -> World {
    let mut world = World::new(seed);
    world.spawn(nodes);
    assert!(world.until(60 * S, World::agreed).is_some(), "no agreement");
    world.run(15 * S);
    world.clear_events();
    world
}

fn join(nodes: usize, seed: u64) {
    let mut world = World::new(seed);
    world.spawn(nodes);
    say(US, &format!("join_all_at_once_{nodes}"), seconds(world.until(60 * S, World::agreed)), "s");
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(US, &format!("join_bytes_{nodes}"), bytes as f64 / nodes as f64, "B/node");
    world.run(5 * S);
    world.spawn(1);
    say(US, &format!("join_one_more_{nodes}"), seconds(world.until(60 * S, World::agreed)), "s");
}

fn idle(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    let start = Instant::now();
    world.run(60 * S);
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    let sent: u64 = world.nodes.iter().map(|n| n.sent).sum();
    say(US, &format!("idle_{nodes}"), bytes as f64 / nodes as f64 / 60.0, "B/s/node");
    say(US, &format!("idle_packets_{nodes}"), sent as f64 / nodes as f64 / 60.0, "1/s/node");
    let wall = start.elapsed().as_secs_f64();
    say(US, &format!("sim_speed_{nodes}"), nodes as f64 * 60.0 / wall, "node-s/s");
}

fn crash(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    world.run(seed * 37 * MS);
    world.kill(1);
    let start = world.now;
    let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
    let took = world.until(60 * S, dead);
    say(US, &format!("crash_known_by_all_{nodes}"), seconds(took), "s");
    let first = world.deaths().iter().map(|d| d.0 - start).min();
    say(US, &format!("crash_first_seen_{nodes}"), seconds(first), "s");
    world.run(10 * S);
    let wrong = world.deaths().iter().filter(|d| d.2 != name(1)).count();
    say(US, &format!("crash_false_deaths_{nodes}"), wrong as f64, "count");
}

fn update(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    let mut worst = 0;
    for round in 0..10 {
        world.run(3 * S + round * 77 * MS);
        world.clear_events();
        world.put((round as usize * 13) % nodes, &format!("s/default/app-{round}"), &[1; 700]);
        let took = world.until(20 * S, World::roots_equal).expect("it spreads");
        worst = worst.max(took);
    }
    say(US, &format!("update_everywhere_{nodes}"), worst as f64 / S as f64, "s");
    world.run(3 * S);
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(US, &format!("update_bytes_{nodes}"), bytes as f64 / nodes as f64, "B/node");
}

fn loss(nodes: usize, seed: u64, loss: u64) {
    let mut world = joined(nodes, seed);
    world.loss = loss;
    world.run(60 * S);
    say(
        US,
        &format!("false_deaths_{}pct_{nodes}", loss / 10),
        world.deaths().len() as f64,
        "count",
    );
    let suspect = |e: &&(u64, Event)| matches!(&e.1, Event::Member(m) if m.state == State::Suspect);
    let suspicions: usize =
        world.nodes.iter().map(|n| n.events.iter().filter(suspect).count()).sum();
    say(US, &format!("suspicions_{}pct_{nodes}", loss / 10), suspicions as f64, "count");
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    let rate = bytes as f64 / nodes as f64 / 60.0;
    say(US, &format!("traffic_{}pct_{nodes}", loss / 10), rate, "B/s/node");
    if loss == 200 {
        world.clear_events();
        world.kill(1);
        let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
        let took = world.until(60 * S, dead);
        say(US, &format!("crash_at_20pct_{nodes}"), seconds(took), "s");
    }
}

fn one_way(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    world.cut = Box::new(|from, to| from == 2 && to == 3);
    world.run(120 * S);
    say(US, &format!("one_way_deaths_{nodes}"), world.deaths().len() as f64, "count");
}

fn stall(seed: u64, lengths: &[u64]) {
    for stall_s in lengths {
        let mut world = joined(128, seed);
        world.run(60 * S);
        let idle: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        world.clear_events();
        let stalled: Vec<usize> = (0..8).map(|n| 10 + n * 10).collect();
        for node in &stalled {
            world.pause(*node);
        }
        world.run(stall_s * S);
        for node in &stalled {
            world.resume(*node);
        }
        let traffic: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        let idle = idle * stall_s / 60;
        world.run(104 * S);
        let names: Vec<String> = stalled.iter().map(|n| name(*n)).collect();
        let deaths = world.deaths();
        let healthy = deaths.iter().filter(|d| !names.contains(&d.2)).count();
        let event = |metric: &str, value: f64, unit| {
            say(US, &format!("stall_{stall_s}s_{metric}"), value, unit);
        };
        event("healthy_deaths", healthy as f64, "count");
        event("notices", deaths.len() as f64, "count");
        event("declared", declared(&world) as f64, "count");
        event("extra_traffic", (traffic as f64 / idle as f64 - 1.0) * 100.0, "%");
        event("disagreed_after", if world.agreed() { 0.0 } else { 1.0 }, "count");
    }
}

/// Deaths of the flock: members and incarnations declared dead, however many hear of it.
fn declared(world: &World) -> usize {
    let mut deaths = BTreeSet::new();
    for (_, event) in world.nodes.iter().flat_map(|n| &n.events) {
        if let Event::Member(m) = event
            && m.state == State::Dead
        {
            deaths.insert((m.name.to_string(), m.generation, m.incarnation));
        }
    }
    deaths.len()
}

/// One update with as many nodes as no machine could hold member tables for.
fn map_only(nodes: usize, seed: u64) {
    let mut flock = MapFlock::new(seed, nodes);
    flock.run(S);
    let mut worst = 0;
    for round in 0..5 {
        flock.run(2 * S + round * 77 * MS);
        flock.sent_bytes = 0;
        flock.put((round as usize * 13) % nodes, &format!("s/default/app-{round}"), &[1; 700]);
        worst = worst.max(flock.until_equal(20 * S).unwrap_or(u64::MAX));
    }
    let worst = (worst < u64::MAX).then_some(worst);
    say(US, &format!("update_map_only_{nodes}"), seconds(worst), "s");
    flock.run(3 * S);
    let bytes = flock.sent_bytes as f64 / nodes as f64;
    say(US, &format!("update_map_only_bytes_{nodes}"), bytes, "B/node");
}

fn mass_loss(seed: u64) {
    for (nodes, killed) in [(3, 2), (5, 3), (40, 10), (200, 50)] {
        let mut world = joined(nodes, seed);
        for node in 0..killed {
            world.kill(1 + node);
        }
        let took = world.until(60 * S, World::agreed);
        say(US, &format!("mass_loss_{killed}_of_{nodes}"), seconds(took), "s");
        let real: Vec<String> = (1..=killed).map(name).collect();
        let wrong = world.deaths().iter().filter(|d| !real.contains(&d.2)).count();
        say(US, &format!("mass_loss_false_deaths_{nodes}"), wrong as f64, "count");
    }
}

/// A thousand records at once at one node.
fn burst(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    for i in 0..1000 {
        world.put(0, &format!("s/default/app-{i}"), &[i as u8; 700]);
    }
    let took = world.until(60 * S, World::roots_equal);
    say(US, &format!("burst_1000_records_{nodes}"), seconds(took), "s");
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(US, &format!("burst_bytes_{nodes}"), bytes as f64 / nodes as f64, "B/node");
    say(US, &format!("burst_bytes_of_writer_{nodes}"), world.nodes[0].sent_bytes as f64, "B");
    say(US, &format!("burst_deaths_{nodes}"), world.deaths().len() as f64, "count");
    let start = world.now;
    world.spawn(1);
    world.until(60 * S, World::roots_equal);
    say(US, &format!("blank_node_catches_up_{nodes}"), seconds(Some(world.now - start)), "s");
}

fn weather(seed: u64) {
    let nodes = 12;
    for seed in seed * 20..seed * 20 + 20 {
        let (members, maps) = world::weather(seed, nodes, 60);
        say(US, &format!("weather_view_{nodes}"), seconds(members), "s");
        say(US, &format!("weather_roots_{nodes}"), seconds(maps), "s");
    }
}

/// All nodes restart within 60 s, none remembers anything but its boot counter, the first is the only seed.
fn restart(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    for node in 0..nodes {
        world.kill(node);
        world.run(60 * S / nodes as u64 / 2);
        world.restart(node);
        world.run(60 * S / nodes as u64 / 2);
    }
    say(
        US,
        &format!("rolling_restart_view_{nodes}"),
        seconds(world.until(60 * S, World::agreed)),
        "s",
    );
}

fn partition(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    world.cut = Box::new(|from, to| (from % 2) != (to % 2));
    for i in 0..50 {
        world.put(i % nodes, &format!("s/default/app-{i}"), &[i as u8; 700]);
        world.run(S);
    }
    world.run(10 * S);
    world.clear_events();
    let sides: Vec<usize> = (0..2).map(|n| world.live(n)).collect();
    assert_eq!(sides, [nodes.div_ceil(2), nodes / 2]);
    world.cut = Box::new(|_, _| false);
    let healed = world.now;
    let view = world.until(60 * S, World::agreed);
    say(US, &format!("heal_one_view_{nodes}"), seconds(view), "s");
    let left = world.until(60 * S, World::roots_equal);
    let took = left.map(|_| world.now - healed);
    say(US, &format!("heal_equal_roots_{nodes}"), seconds(took), "s");
    world.run(5 * S);
    say(US, &format!("heal_deaths_{nodes}"), world.deaths().len() as f64, "count");
    let kept = world.nodes[0].gossip.range("s/").count();
    say(US, &format!("heal_records_lost_{nodes}"), 50.0 - kept as f64, "count");
}
