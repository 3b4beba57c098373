//! What foca and chitchat need for the same, on the same network and from the same seeds.

use std::time::Duration;

use crate::peers::chitchat::{self, ChitchatWorld};
use crate::peers::foca::FocaWorld;
use crate::world::{MS, S};
use crate::{say, seconds};

/// Everybody knows everybody: foca alone needs minutes for that.
fn foca(nodes: usize, seed: u64) -> FocaWorld {
    let mut world = FocaWorld::new(seed, nodes);
    world.spawn(nodes);
    world.run(S);
    world.introduce();
    world.run(30 * S);
    world.clear();
    world
}

pub(crate) fn join(nodes: usize, seed: u64) {
    let mut world = FocaWorld::new(seed, nodes);
    world.spawn(nodes);
    let took = world.until(300 * S, FocaWorld::agreed);
    say("foca", &format!("join_all_at_once_{nodes}"), seconds(took), "s");
}

pub(crate) fn idle(nodes: usize, seed: u64) {
    let mut world = foca(nodes, seed);
    world.run(60 * S);
    let rate = world.sent_bytes() as f64 / nodes as f64 / 60.0;
    say("foca", &format!("idle_{nodes}"), rate, "B/s/node");
}

pub(crate) fn crash(nodes: usize, seed: u64) {
    let mut world = foca(nodes, seed);
    world.run(seed * 37 * MS);
    world.kill(1);
    let start = world.now;
    let took = world.until(60 * S, |w| w.up().all(|n| w.knows_dead(n, 1)));
    say("foca", &format!("crash_known_by_all_{nodes}"), seconds(took), "s");
    let first = world.deaths().iter().map(|d| d.0 - start).min();
    say("foca", &format!("crash_first_seen_{nodes}"), seconds(first), "s");
}

pub(crate) fn loss(nodes: usize, seed: u64) {
    for loss in [50, 100, 200] {
        let mut world = foca(nodes, seed);
        world.loss = loss;
        world.run(60 * S);
        let deaths = world.deaths().len() as f64;
        say("foca", &format!("false_deaths_{}pct_{nodes}", loss / 10), deaths, "count");
    }
}

pub(crate) fn one_way(nodes: usize, seed: u64) {
    let mut world = foca(nodes, seed);
    world.cut = Box::new(|from, to| from == 2 && to == 3);
    world.run(120 * S);
    say("foca", &format!("one_way_deaths_{nodes}"), world.deaths().len() as f64, "count");
}

pub(crate) fn stall(seed: u64, lengths: &[u64]) {
    for stall_s in lengths {
        let mut world = foca(128, seed);
        let stalled: Vec<usize> = (0..8).map(|n| 10 + n * 10).collect();
        for node in &stalled {
            world.pause(*node);
        }
        world.run(stall_s * S);
        for node in &stalled {
            world.resume(*node);
        }
        world.run(104 * S);
        let deaths = world.deaths();
        let healthy = deaths.iter().filter(|d| !stalled.contains(&d.2)).count();
        say("foca", &format!("stall_{stall_s}s_healthy_deaths"), healthy as f64, "count");
        say("foca", &format!("stall_{stall_s}s_notices"), deaths.len() as f64, "count");
    }
}

pub(crate) fn partition(nodes: usize, seed: u64) {
    let mut world = foca(nodes, seed);
    world.cut = Box::new(|from, to| (from % 2) != (to % 2));
    world.run(60 * S);
    world.cut = Box::new(|_, _| false);
    let took = world.until(300 * S, FocaWorld::agreed);
    say("foca", &format!("heal_one_view_{nodes}"), seconds(took), "s");
}

/// Idle traffic and one update; chitchat draws its own random numbers, so that this alone differs from run to run.
pub(crate) fn map(nodes: usize, seed: u64) {
    chitchat::run(async {
        let world = ChitchatWorld::new(seed, nodes).await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        for node in 0..world.len() {
            assert_eq!(world.known(node).await, nodes, "everybody knows everybody");
        }
        world.take_sent();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (bytes, longest) = world.take_sent();
        let rate = bytes as f64 / nodes as f64 / 10.0;
        say("chitchat", &format!("idle_{nodes}"), rate, "B/s/node");
        say("chitchat", &format!("longest_datagram_{nodes}"), longest as f64, "B");
        let value = "x".repeat(700);
        let mut worst = Duration::ZERO;
        for round in 0..5 {
            let (writer, key) = (round * 13 % nodes, format!("app-{round}"));
            let start = tokio::time::Instant::now();
            world.set(writer, &key, &value).await;
            for node in 0..nodes {
                while !world.has(node, writer, &key, &value).await {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            worst = worst.max(start.elapsed());
        }
        say("chitchat", &format!("update_everywhere_{nodes}"), worst.as_secs_f64(), "s");
    });
}
