//! The same story on virtual time, with the starts and the latencies that were measured on the sockets.

use std::collections::BTreeSet;

use gossip::{Event, State};

use crate::story::{self, BODY, PATIENCE_S, Samples};
use crate::world::{MS, S, World};

/// A diskless node's boot counter is the wall clock in milliseconds; its length is in every frame.
const GENERATION: u64 = 1_700_000_000_000;

pub(crate) struct Twin {
    world: World,
    nodes: usize,
}

impl Twin {
    /// All sockets are open; nobody has started.
    pub(crate) fn open(seed: u64, nodes: usize, latencies_us: &[u64]) -> Twin {
        let mut world = World::new(seed);
        world.generation = GENERATION;
        world.latencies_us = latencies_us.to_vec();
        (0..nodes).for_each(|node| world.spawn_waiting(story::name(node)));
        Twin { world, nodes }
    }

    /// Each node starts so long after the first. Seconds until the last node knew all.
    pub(crate) fn join(&mut self, starts_us: &[u64]) -> f64 {
        let from_us = self.world.now;
        let mut order: Vec<usize> = (0..self.nodes).collect();
        order.sort_by_key(|node| starts_us[*node]);
        for node in order {
            self.world.run(starts_us[node].saturating_sub(self.world.now - from_us));
            self.world.resume(node);
        }
        let agreed = self.world.until(PATIENCE_S * S, World::agreed);
        assert!(agreed.is_some(), "not everybody knew all in {PATIENCE_S} s");
        let knew_us = |node: usize| {
            let mut live = BTreeSet::new();
            let events = self.world.nodes[node].events.iter();
            let all = |(at_us, event): &(u64, Event)| {
                if let Event::Member(m) = event
                    && m.state.is_live()
                {
                    live.insert(m.name.to_string());
                }
                (live.len() + 1 == self.nodes).then_some(*at_us)
            };
            events.map(all).find_map(|at_us| at_us)
        };
        let last_us = (0..self.nodes).filter_map(knew_us).max().unwrap_or(from_us);
        seconds(last_us - from_us)
    }

    /// What comes after the join.
    pub(crate) fn live_on(&mut self, samples: &mut Samples) {
        let world = &mut self.world;
        world.run(story::REST_S * S);
        for round in 0..story::UPDATES {
            world.clear_events();
            let (key, put_us) = (story::key(round), world.now);
            world.put(round % self.nodes, &key, &BODY);
            let has = |event: &Event| matches!(event, Event::Changed(r) if *r.key == *key);
            samples.update_s.push(seconds(learnt(world, has) - put_us));
            world.run(story::BETWEEN_UPDATES_S * S);
        }
        world.run(story::SETTLE_S * S);
        world.clear_events();
        world.run(story::IDLE_S * S);
        let bytes: u64 = world.nodes.iter().map(|n| n.sent_bytes).sum();
        samples.idle_rate.push(bytes as f64 / story::IDLE_S as f64 / self.nodes as f64);
        for victim in 1..=story::CRASHES {
            world.clear_events();
            let (name, killed_us) = (story::name(victim), world.now);
            world.kill(victim);
            let dead = |event: &Event| matches!(event, Event::Member(m) if m.state == State::Dead && *m.name == *name);
            samples.crash_s.push(seconds(learnt(world, dead) - killed_us));
            world.run(story::BETWEEN_CRASHES_S * S);
        }
    }
}

/// Runs until all that are up have learnt it; when the last of them did.
fn learnt(world: &mut World, what: impl Fn(&Event) -> bool) -> u64 {
    let end_us = world.now + PATIENCE_S * S;
    loop {
        if let Some(at_us) = last(world, &what) {
            return at_us;
        }
        assert!(world.now < end_us, "not learnt by all in {PATIENCE_S} s");
        world.run(10 * MS);
    }
}

/// When the last of all that are up learnt it; `None` when somebody did not.
fn last(world: &World, what: impl Fn(&Event) -> bool) -> Option<u64> {
    let when = |node: usize| {
        let mut events = world.nodes[node].events.iter();
        events.find(|(_, event)| what(event)).map(|(at_us, _)| *at_us)
    };
    world.up().map(when).collect::<Option<Vec<u64>>>()?.into_iter().max()
}

fn seconds(time_us: u64) -> f64 {
    time_us as f64 / S as f64
}
