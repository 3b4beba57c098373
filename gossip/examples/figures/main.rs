//! The figures of membership and map on virtual time, as JSON lines.
//!
//! `cargo run --release -p gossip --example figures [-- NODES [SEEDS]]`

#[path = "../tests/world/mod.rs"]
mod world;

use std::time::Instant;

use gossip::{Event, State};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use world::{MS, S, World, name};

type Bench = fn(usize, u64);

fn main() {
    let mut args = std::env::args().skip(1);
    let nodes = args.next().and_then(|a| a.parse().ok()).unwrap_or(200);
    let seeds = args.next().and_then(|a| a.parse().ok()).unwrap_or(5);
    let only = args.next();
    let wants = |bench: &str| only.as_deref().is_none_or(|o| o == bench);
    let all: [(&str, Bench); 15] = [
        ("join", join),
        ("idle", idle),
        ("crash", crash),
        ("update", update),
        ("loss5", |n, s| loss(n, s, 50)),
        ("loss10", |n, s| loss(n, s, 100)),
        ("loss20", |n, s| loss(n, s, 200)),
        ("oneway", one_way),
        ("stall", stall),
        ("partition", partition),
        ("weather", weather),
        ("restart", restart),
        ("massloss", mass_loss),
        ("burst", burst),
        ("hostile", hostile),
    ];
    for (bench, run) in all {
        if wants(bench) {
            let start = Instant::now();
            for seed in 0..seeds {
                run(nodes, seed);
            }
            eprintln!("{bench}: {:.1} s wall", start.elapsed().as_secs_f64());
        }
    }
}

fn say(metric: &str, seed: u64, value: f64, unit: &str) {
    println!(
        "{{\"bench\":\"gossip\",\"metric\":\"{metric}\",\"seed\":{seed},\"value\":{value:.3},\"unit\":\"{unit}\"}}"
    );
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
    say(
        &format!("join_all_at_once_{nodes}"),
        seed,
        seconds(world.until(60 * S, World::agreed)),
        "s",
    );
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(&format!("join_bytes_{nodes}"), seed, bytes as f64 / nodes as f64, "B/node");
    world.run(5 * S);
    world.spawn(1);
    say(&format!("join_one_more_{nodes}"), seed, seconds(world.until(60 * S, World::agreed)), "s");
}

fn idle(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    let start = Instant::now();
    world.run(60 * S);
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    let sent: u64 = world.nodes.iter().map(|n| n.sent).sum();
    say(&format!("idle_{nodes}"), seed, bytes as f64 / nodes as f64 / 60.0, "B/s/node");
    say(&format!("idle_packets_{nodes}"), seed, sent as f64 / nodes as f64 / 60.0, "1/s/node");
    let wall = start.elapsed().as_secs_f64();
    say(&format!("sim_speed_{nodes}"), seed, nodes as f64 * 60.0 / wall, "node-s/s");
}

fn crash(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    world.run(seed * 37 * MS);
    world.kill(1);
    let start = world.now;
    let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
    let took = world.until(60 * S, dead);
    say(&format!("crash_known_by_all_{nodes}"), seed, seconds(took), "s");
    let first = world.deaths().iter().map(|d| d.0 - start).min();
    say(&format!("crash_first_seen_{nodes}"), seed, seconds(first), "s");
    world.run(10 * S);
    let wrong = world.deaths().iter().filter(|d| d.2 != name(1)).count();
    say(&format!("crash_false_deaths_{nodes}"), seed, wrong as f64, "");
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
    say(&format!("update_everywhere_{nodes}"), seed, worst as f64 / S as f64, "s");
    world.run(3 * S);
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(&format!("update_bytes_{nodes}"), seed, bytes as f64 / nodes as f64, "B/node");
}

fn loss(nodes: usize, seed: u64, loss: u64) {
    let mut world = joined(nodes, seed);
    world.loss = loss;
    world.run(60 * S);
    say(&format!("false_deaths_{}pct_{nodes}", loss / 10), seed, world.deaths().len() as f64, "");
    let suspect = |e: &&(u64, Event)| matches!(&e.1, Event::Member(m) if m.state == State::Suspect);
    let suspicions: usize =
        world.nodes.iter().map(|n| n.events.iter().filter(suspect).count()).sum();
    say(&format!("suspicions_{}pct_{nodes}", loss / 10), seed, suspicions as f64, "");
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    let rate = bytes as f64 / nodes as f64 / 60.0;
    say(&format!("traffic_{}pct_{nodes}", loss / 10), seed, rate, "B/s/node");
    if loss == 200 {
        world.clear_events();
        world.kill(1);
        let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
        let took = world.until(60 * S, dead);
        say(&format!("crash_at_20pct_{nodes}"), seed, seconds(took), "s");
    }
}

fn one_way(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    world.cut = Box::new(|from, to| from == 2 && to == 3);
    world.run(120 * S);
    say(&format!("one_way_deaths_{nodes}"), seed, world.deaths().len() as f64, "");
}

fn stall(_: usize, seed: u64) {
    for stall_s in [8, 16] {
        let mut world = joined(128, seed);
        for node in 0..8 {
            world.pause(10 + node * 10);
        }
        world.run(stall_s * S);
        for node in 0..8 {
            world.resume(10 + node * 10);
        }
        world.run(104 * S);
        let stalled: Vec<String> = (0..8).map(|n| name(10 + n * 10)).collect();
        let deaths = world.deaths();
        let healthy = deaths.iter().filter(|d| !stalled.contains(&d.2)).count();
        say(&format!("stall_{stall_s}s_healthy_deaths"), seed, healthy as f64, "");
        say(&format!("stall_{stall_s}s_events"), seed, deaths.len() as f64, "");
        let agreed = if world.agreed() { 1.0 } else { 0.0 };
        say(&format!("stall_{stall_s}s_agreed_after"), seed, agreed, "");
    }
}

fn mass_loss(_: usize, seed: u64) {
    for (nodes, killed) in [(3, 2), (5, 3), (40, 10), (200, 50)] {
        let mut world = joined(nodes, seed);
        for node in 0..killed {
            world.kill(1 + node);
        }
        let took = world.until(60 * S, World::agreed);
        say(&format!("mass_loss_{killed}_of_{nodes}"), seed, seconds(took), "s");
        let real: Vec<String> = (1..=killed).map(name).collect();
        let wrong = world.deaths().iter().filter(|d| !real.contains(&d.2)).count();
        say(&format!("mass_loss_false_deaths_{nodes}"), seed, wrong as f64, "");
    }
}

/// A thousand records at once at one node.
fn burst(nodes: usize, seed: u64) {
    let mut world = joined(nodes, seed);
    for i in 0..1000 {
        world.put(0, &format!("s/default/app-{i}"), &[i as u8; 700]);
    }
    let took = world.until(60 * S, World::roots_equal);
    say(&format!("burst_1000_records_{nodes}"), seed, seconds(took), "s");
    let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
    say(&format!("burst_bytes_{nodes}"), seed, bytes as f64 / nodes as f64, "B/node");
    say(&format!("burst_bytes_of_writer_{nodes}"), seed, world.nodes[0].sent_bytes as f64, "B");
    say(&format!("burst_deaths_{nodes}"), seed, world.deaths().len() as f64, "");
    let start = world.now;
    world.spawn(1);
    world.until(60 * S, World::roots_equal);
    say(&format!("blank_node_catches_up_{nodes}"), seed, seconds(Some(world.now - start)), "s");
}

/// A million datagrams of a stranger; panics at the first answer or change.
fn hostile(_: usize, seed: u64) {
    let mut target = gossip::fuzz::Target::default();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut bytes = vec![0; 1300];
    let start = Instant::now();
    for round in 0..1_000_000 {
        let len = (rng.next_u64() % 1300) as usize;
        rng.fill_bytes(&mut bytes[..len]);
        if round % 2 == 0 && len > 2 {
            bytes[0] = 1 | ((round / 2 % 2) as u8) << 4;
            bytes[1] = 1;
        }
        target.datagram(&bytes[..len]);
    }
    let took = start.elapsed().as_secs_f64();
    say("hostile_datagrams_without_effect", seed, 1_000_000.0, "");
    say("hostile_datagrams_refused_per_second", seed, 1_000_000.0 / took, "1/s");
}

fn weather(nodes: usize, seed: u64) {
    let nodes = nodes.min(12);
    for seed in seed * 20..seed * 20 + 20 {
        let (members, maps) = world::weather(seed, nodes, 60);
        say(&format!("weather_view_{nodes}"), seed, seconds(members), "s");
        say(&format!("weather_roots_{nodes}"), seed, seconds(maps), "s");
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
        &format!("rolling_restart_view_{nodes}"),
        seed,
        seconds(world.until(60 * S, World::agreed)),
        "s",
    );
}

fn partition(nodes: usize, seed: u64) {
    let nodes = nodes.min(100);
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
    say(&format!("heal_one_view_{nodes}"), seed, seconds(view), "s");
    let left = world.until(60 * S, World::roots_equal);
    let took = left.map(|_| world.now - healed);
    say(&format!("heal_equal_roots_{nodes}"), seed, seconds(took), "s");
    world.run(5 * S);
    say(&format!("heal_deaths_{nodes}"), seed, world.deaths().len() as f64, "");
    let kept = world.nodes[0].gossip.range("s/").count();
    say(&format!("heal_records_kept_{nodes}"), seed, kept as f64, "");
}
