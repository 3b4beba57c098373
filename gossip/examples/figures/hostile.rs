//! Datagrams that nobody of the flock meant for this node: fuzzed by the million, recorded ones again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use gossip::{Gossip, Input, Output};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

use crate::world::{MS, S, World, addr};
use crate::{US, say};

const FUZZED: usize = 1_000_000;
const REPLAYED: usize = 10_000;
const VICTIM: usize = 1;

/// What hostile datagrams have brought about.
#[derive(Default)]
struct Effects {
    datagrams: usize,
    changes: usize,
    replies: usize,
    panics: usize,
}

impl Effects {
    /// Feeds one datagram and looks at what it did.
    fn feed(&mut self, gossip: &mut Gossip, now_us: u64, (from, bytes): (usize, &[u8])) {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
        let summary =
            |g: &Gossip| (g.view(), g.root(), g.cursor(), g.members().count(), g.next_deadline());
        let before = summary(gossip);
        let mut out = Vec::new();
        let input = Input::Datagram { from: addr(from), bytes };
        let step = || gossip.step(now_us, 0, input, &mut rng, &mut out);
        self.panics += usize::from(catch_unwind(AssertUnwindSafe(step)).is_err());
        self.datagrams += 1;
        self.changes += usize::from(summary(gossip) != before);
        self.replies += out.iter().filter(|o| matches!(o, Output::Send { .. })).count();
        self.changes += out.iter().filter(|o| !matches!(o, Output::Send { .. })).count();
    }
}

/// A node of five, of whose traffic an attacker has recorded all.
pub(crate) fn hostile(seed: u64) {
    let mut world = World::new(seed);
    world.spawn(5);
    assert!(world.until(5 * S, World::agreed).is_some());
    let mut recorded: Vec<(usize, Vec<u8>)> = Vec::new();
    while recorded.len() < REPLAYED {
        world.recording = Some(Vec::new());
        world.put(2, "s/default/web", &recorded.len().to_le_bytes());
        world.run(10 * S);
        let all = world.recording.take().expect("it was on").into_iter();
        let heard = all.filter(|(to, ..)| *to == VICTIM);
        recorded.extend(heard.map(|(_, from, bytes)| (usize::from(from.port()) % 5, bytes)));
    }
    let mut effects = Effects::default();
    let start = Instant::now();
    // At once, a minute later, and after a restart.
    for round in 0..3 {
        quiet(&mut world);
        let now = world.now;
        for (from, bytes) in recorded.iter().take(REPLAYED) {
            effects.feed(&mut world.nodes[VICTIM].gossip, now, (*from, bytes));
        }
        world.run(60 * S);
        if round == 1 {
            world.restart(VICTIM);
            assert!(world.until(5 * S, World::agreed).is_some());
        }
    }
    quiet(&mut world);
    let now = world.now;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    for round in 0..FUZZED {
        let bytes = fuzzed(round, &recorded, &mut rng);
        effects.feed(&mut world.nodes[VICTIM].gossip, now, (round % 7, &bytes));
    }
    let rate = effects.datagrams as f64 / start.elapsed().as_secs_f64();
    say(US, "hostile_state_changes", effects.changes as f64, "count");
    say(US, "hostile_panics", effects.panics as f64, "count");
    say(US, "hostile_replies", effects.replies as f64, "count");
    say(US, "hostile_datagrams", effects.datagrams as f64, "count");
    say(US, "hostile_datagrams_refused_per_second", rate, "1/s");
    costs(&mut world, &recorded);
}

/// What a flood costs: nanoseconds until a datagram is refused, the least of some rounds.
fn costs(world: &mut World, recorded: &[(usize, Vec<u8>)]) {
    const ROUNDS: usize = 20;
    const EACH: usize = 2_000;
    let kinds = [
        ("hostile_ns_unknown_key", 1_232, [1, 99]),
        ("hostile_ns_wrong_tag_60", 60, [1, 1]),
        ("hostile_ns_wrong_tag_1232", 1_232, [1, 1]),
        ("hostile_ns_wrong_tag_8952", 8_952, [1, 1]),
    ];
    let mut frames: Vec<(&str, Vec<u8>)> = Vec::new();
    for (metric, len, head) in kinds {
        let mut bytes = vec![0x5a; len];
        bytes.iter_mut().zip(head).for_each(|(to, byte)| *to = byte);
        frames.push((metric, bytes));
    }
    let replayed = recorded.iter().map(|(_, bytes)| bytes).max_by_key(|bytes| bytes.len());
    frames.extend(replayed.map(|bytes| ("hostile_ns_replayed", bytes.clone())));
    let (now, mut rng, mut out) = (world.now, Xoshiro256PlusPlus::seed_from_u64(9), Vec::new());
    for (metric, bytes) in &frames {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..EACH {
                let input = Input::Datagram { from: addr(6), bytes };
                world.nodes[VICTIM].gossip.step(now, 0, input, &mut rng, &mut out);
            }
            best = best.min(start.elapsed().as_nanos() as f64 / EACH as f64);
        }
        assert!(out.is_empty(), "{metric} is refused");
        say(US, metric, best, "ns");
    }
}

/// Nothing of the node's own is due while it listens.
fn quiet(world: &mut World) {
    world.run(MS);
    let now = world.now;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(8);
    world.nodes[VICTIM].gossip.step(now, 0, Input::Timer, &mut rng, &mut Vec::new());
}

/// Random bytes, random bytes with the right version and key id, or a recorded frame with some bits turned.
fn fuzzed(round: usize, recorded: &[(usize, Vec<u8>)], rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    if round % 3 == 2 {
        let mut bytes = recorded[round % recorded.len()].1.clone();
        for _ in 0..=rng.next_u64() % 4 {
            let at = rng.next_u64() as usize % bytes.len();
            bytes[at] ^= 1 << (rng.next_u64() % 8);
        }
        // Bits may have been turned back.
        if recorded[round % recorded.len()].1 == bytes {
            bytes.push(0);
        }
        return bytes;
    }
    let mut bytes = vec![0; (rng.next_u64() % 1400) as usize];
    rng.fill_bytes(&mut bytes);
    if round % 3 == 1 && bytes.len() > 2 {
        bytes[0] = 1 | ((round / 3 % 2) as u8) << 4;
        bytes[1] = 1;
    }
    bytes
}
