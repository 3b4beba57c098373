//! Packets that nobody of the flock meant for us: silence, and nothing changes.

mod world;

use std::collections::BTreeSet;

use gossip::fuzz::Target;
use gossip::{Config, Gossip, Identity, Input, KeyRing, Output, Profile, SecretKey};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};
use world::{MS, S, World, addr, keys, name};

/// Feeds recorded datagrams and counts what came out; the state must stay.
fn replay(world: &mut World, node: usize, datagrams: &[(usize, Vec<u8>)]) -> usize {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    let now = world.now;
    let gossip = &mut world.nodes[node].gossip;
    // Nothing of its own is due while we listen.
    let mut out = Vec::new();
    gossip.step(now, 0, Input::Timer, &mut rng, &mut out);
    out.clear();
    let members = |g: &Gossip| g.members().cloned().collect::<Vec<_>>();
    let before = (members(gossip), gossip.root(), gossip.view(), gossip.next_deadline());
    for (from, bytes) in datagrams {
        let input = Input::Datagram { from: addr(*from), bytes };
        gossip.step(now, 0, input, &mut rng, &mut out);
    }
    let after = (members(gossip), gossip.root(), gossip.view(), gossip.next_deadline());
    assert_eq!(before, after, "a replay changed something");
    out.len()
}

fn recorded(to: usize, world: &mut World, time: u64) -> Vec<(usize, Vec<u8>)> {
    world.recording = Some(Vec::new());
    world.put(2, "s/default/web", &[1; 500]);
    world.run(time);
    let all = world.recording.take().expect("it was on");
    let mut datagrams: Vec<(usize, Vec<u8>)> = all
        .into_iter()
        .filter(|(target, ..)| *target == to)
        .map(|(_, from, bytes)| ((from.port() - 7946) as usize, bytes))
        .collect();
    assert!(datagrams.len() > 20, "there is something to replay");
    datagrams.reverse();
    datagrams
}

#[test]
fn replays_are_dropped_at_once_later_elsewhere_and_after_a_restart() {
    let mut world = World::new(1);
    world.spawn(5);
    world.recording = Some(Vec::new());
    assert!(world.until(5 * S, World::agreed).is_some());
    let greetings = world.recording.take().expect("it was on");
    let datagrams = recorded(1, &mut world, 60 * S);
    assert_eq!(replay(&mut world, 1, &datagrams), 0, "at once");
    assert_eq!(replay(&mut world, 3, &datagrams), 0, "at another node");
    world.run(60 * S);
    assert_eq!(replay(&mut world, 1, &datagrams), 0, "a minute later");
    world.restart(1);
    assert_eq!(replay(&mut world, 1, &datagrams), 0, "after a restart, before anything is known");
    assert!(world.until(5 * S, World::agreed).is_some());
    assert_eq!(replay(&mut world, 1, &datagrams), 0, "after a restart, joined");

    // Greetings are open: the seed drops their repetition too, and restarted it answers each once.
    let to_seed = greetings.into_iter().filter(|(to, ..)| *to == 0);
    let greetings: Vec<(usize, Vec<u8>)> = to_seed.map(|(_, _, bytes)| (1, bytes)).collect();
    assert_eq!(replay(&mut world, 0, &greetings), 0);
    world.restart(0);
    assert!(world.until(5 * S, World::agreed).is_some());
    assert!(replay(&mut world, 0, &greetings) <= 4, "one for each greeting of four nodes");
    assert_eq!(replay(&mut world, 0, &greetings), 0);
}

/// A live boot that the others hold to be outlived is told so: once for each answer to a greeting, and shortly.
#[test]
fn an_outlived_boot_is_answered_once_and_shortly() {
    let mut world = World::new(8);
    world.spawn_with(3, |cfg| cfg.seeds = vec![addr(0), addr(1)]);
    assert!(world.until(20 * S, World::agreed).is_some());
    for _ in 0..3 {
        for node in [0, 1] {
            world.restart(node);
        }
        assert!(world.until(10 * S, World::agreed).is_some());
    }
    for node in [0, 1] {
        world.kill(node);
        world.forget_generation(node);
    }
    // Who is left has seen six restarts and doubts itself: its suspicions last up to 18 s.
    assert!(world.until(20 * S, World::agreed).is_some());
    world.cut = Box::new(|from, to| (from < 2) != (to < 2));
    for node in [0, 1] {
        world.restart(node);
    }
    world.run(S);
    // Node 2 has news to tell: nothing of it may ride on what an outlived boot is told.
    world.input(2, Input::Address(addr(2)));
    world.cut = Box::new(|_, _| false);
    world.recording = Some(Vec::new());
    assert!(world.until(10 * S, World::agreed).is_some());
    let all = world.recording.take().expect("it was on");
    // Up to the first answer: one greeting, what came back, and what was said to that.
    let back = all.iter().position(|(to, ..)| *to == 2).expect("a greeting was answered");
    let told = all.iter().skip(back).find(|(_, from, _)| *from == addr(2));
    let (heard, told) = (&all[back].2, &told.expect("it was told").2);
    // Sealing 30, name hash and generation 9, the message 10; the shortest news would add 23.
    assert_eq!(told.len(), 49, "nothing rides on it");
    assert!(told.len() <= heard.len(), "{} bytes for {}", told.len(), heard.len());

    let to_two = all.into_iter().filter(|(to, ..)| *to == 2);
    let datagrams: Vec<(usize, Vec<u8>)> = to_two.map(|(_, _, bytes)| (0, bytes)).collect();
    assert!(datagrams.len() > 5, "there is something to replay");
    assert_eq!(replay(&mut world, 2, &datagrams), 0, "at once");
    world.run(60 * S);
    assert_eq!(replay(&mut world, 2, &datagrams), 0, "a minute later");
}

#[test]
fn truncated_flipped_and_foreign_frames_are_dropped() {
    let mut world = World::new(2);
    world.spawn(3);
    assert!(world.until(5 * S, World::agreed).is_some());
    let good = recorded(1, &mut world, 20 * S);
    let mut bad = Vec::new();
    for (from, bytes) in good.iter().take(40) {
        for len in 0..bytes.len().min(60) {
            bad.push((*from, bytes[..len].to_vec()));
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            bad.push((*from, flipped));
        }
        let mut longer = bytes.clone();
        longer.push(0);
        bad.push((*from, longer));
    }
    assert!(bad.len() > 10_000);
    assert_eq!(replay(&mut world, 1, &bad), 0);

    // A node of another flock that knows all addresses.
    let strangers = KeyRing::new(&SecretKey::new(1, [8; 32]));
    let mut cfg = Config::new(strangers, Profile::Lan);
    cfg.seeds = vec![addr(1)];
    let me = Identity { name: name(9), generation: 1, addr: addr(9) };
    let mut stranger = Gossip::new(cfg, me).expect("the name is valid");
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    let mut out = Vec::new();
    for now in 1..100 {
        stranger.step(now * S, 0, Input::Timer, &mut rng, &mut out);
    }
    let greetings: Vec<(usize, Vec<u8>)> = out
        .into_iter()
        .filter_map(|o| match o {
            Output::Send { bytes, .. } => Some((9, bytes)),
            _ => None,
        })
        .collect();
    assert!(greetings.len() > 10);
    assert_eq!(replay(&mut world, 1, &greetings), 0);
}

#[test]
fn random_bytes_are_dropped() {
    let mut target = Target::default();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(4);
    let mut bytes = vec![0; 1300];
    for round in 0..100_000 {
        let len = (rng.next_u64() % 1300) as usize;
        rng.fill_bytes(&mut bytes[..len]);
        if round % 2 == 0 && len > 2 {
            // As far as a stranger can get: version and key id are right.
            bytes[0] = 1 | ((round % 4) as u8 / 2) << 4;
            bytes[1] = 1;
        }
        target.datagram(&bytes[..len]);
    }
}

/// What a broken or hostile node with the flock's key may say: anything, without a panic.
#[test]
fn authentic_nonsense_does_no_harm() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
    for _ in 0..20 {
        let mut target = Target::default();
        for _ in 0..300 {
            let mut content = Vec::new();
            while content.len() < 1000 && rng.next_u64() % 8 != 0 {
                let len = (rng.next_u64() % 300) as usize;
                content.push((rng.next_u64() % 23) as u8);
                content.push((len & 0x7f) as u8 | 0x80);
                content.push((len >> 7) as u8);
                let start = content.len();
                content.resize(start + len, 0);
                match rng.next_u64() % 3 {
                    0 => rng.fill_bytes(&mut content[start..]),
                    1 => content[start..].fill((rng.next_u64() % 4) as u8),
                    _ => {}
                }
            }
            target.content(&content);
        }
    }
}

/// Under one key no boot of any node seals two frames with one nonce: not after restarts, a lost boot counter, a clock that
/// went back, or while keys change.
#[test]
fn no_nonce_is_used_twice() {
    let mut world = World::new(11);
    world.recording = Some(Vec::new());
    world.spawn(4);
    assert!(world.until(5 * S, World::agreed).is_some());
    let next = SecretKey::new(2, [42; 32]);
    for node in 0..4 {
        world.nodes[node].gossip.keys_mut().accept(&next).expect("there is room");
    }
    world.run(5 * S);
    world.nodes[1].gossip.keys_mut().select(2).expect("it is held");
    world.nodes[1].wall_skew_ms = -1_000_000_000_000;
    world.put(1, "s/a", &[1; 5000]);
    world.restart(2);
    world.run(5 * S);
    world.nodes[1].gossip.keys_mut().select(1).expect("it is held");
    world.forget_generation(3);
    world.restart(3);
    world.put(3, "s/b", &[1; 5000]);
    world.run(10 * S);
    let frames = world.recording.take().expect("it was on");
    // Key id and nonce.
    let nonces: BTreeSet<&[u8]> = frames.iter().map(|(_, _, bytes)| &bytes[1..14]).collect();
    assert_eq!(nonces.len(), frames.len());
    let boots: BTreeSet<&[u8]> = frames.iter().map(|(_, _, bytes)| &bytes[2..9]).collect();
    assert_eq!((boots.len(), frames.len() > 400), (6, true));
}

/// A frame opens for its addressee only, so what a node has sent is nothing to it; a greeting, which is open, it knows by
/// its boot id. After a restart it answers each once, as anybody's.
#[test]
fn what_is_thrown_back_at_its_sender_is_dropped() {
    let mut world = World::new(12);
    world.recording = Some(Vec::new());
    world.spawn_with(3, |cfg| cfg.seeds = vec![addr(0), addr(1), addr(7)]);
    assert!(world.until(5 * S, World::agreed).is_some());
    world.put(1, "s/a", &[1; 500]);
    world.run(20 * S);
    let sent = world.recording.take().expect("it was on").into_iter();
    let sent: Vec<(usize, Vec<u8>)> =
        sent.filter(|(_, from, _)| *from == addr(1)).map(|(to, _, bytes)| (to, bytes)).collect();
    let greetings = sent.iter().filter(|(_, bytes)| bytes[0] >> 4 == 1).count();
    assert!(sent.len() > 50 && greetings > 0);
    assert_eq!(replay(&mut world, 1, &sent), 0);
    world.restart(1);
    assert!(world.until(5 * S, World::agreed).is_some());
    assert!(replay(&mut world, 1, &sent) <= greetings);
    assert_eq!(replay(&mut world, 1, &sent), 0);
}

#[test]
fn no_step_of_a_rotation_lets_a_replay_through() {
    let mut world = World::new(13);
    world.spawn(3);
    assert!(world.until(5 * S, World::agreed).is_some());
    let (old, next) = (SecretKey::new(1, [7; 32]), SecretKey::new(2, [42; 32]));
    let frames = recorded(1, &mut world, 30 * S);
    let steps: [fn(&mut KeyRing, &SecretKey, &SecretKey); 5] = [
        |ring, _, next| ring.accept(next).expect("there is room"),
        |ring, _, _| ring.select(2).expect("it is held"),
        |ring, _, _| ring.remove(1).expect("it is not in use"),
        // And back, as who had to undo it.
        |ring, old, _| ring.accept(old).expect("there is room"),
        |ring, _, _| ring.select(1).expect("it is held"),
    ];
    let counted = |world: &World| world.nodes[1].gossip.key_frames().collect::<Vec<_>>();
    for step in steps {
        for node in 0..3 {
            step(world.nodes[node].gossip.keys_mut(), &old, &next);
        }
        assert_eq!(replay(&mut world, 1, &frames), 0);
        world.run(S);
        let before = counted(&world);
        assert_eq!(replay(&mut world, 1, &frames), 0);
        assert_eq!(counted(&world), before, "a recording does not keep a key in use");
    }
    assert_eq!(world.deaths(), []);
}

/// Who is dropped from the list is not dropped from the memory of what it has said.
#[test]
fn what_a_forgotten_member_said_stays_said() {
    let mut world = World::new(15);
    world.spawn(4);
    assert!(world.until(5 * S, World::agreed).is_some());
    world.recording = Some(Vec::new());
    world.put(3, "s/a", b"x");
    world.run(20 * S);
    let all = world.recording.take().expect("it was on").into_iter();
    let its = all.filter(|(to, from, _)| (*to, *from) == (1, addr(3)));
    let its: Vec<(usize, Vec<u8>)> = its.map(|(_, _, bytes)| (3, bytes)).collect();
    assert!(its.len() > 20, "there is something to replay");
    world.kill(3);
    assert!(world.until(20 * S, World::agreed).is_some());
    world.input(1, Input::Forget { name: &name(3) });
    world.run(10 * S);
    assert!(world.state(1, 3).is_none(), "it is forgotten");
    assert_eq!(replay(&mut world, 1, &its), 0);
}

/// A recorded greeting that is sent to another node from another address: one answer, there, and nothing rides on it.
#[test]
fn a_greeting_sent_from_elsewhere_is_no_amplifier() {
    let mut world = World::new(14);
    world.recording = Some(Vec::new());
    world.spawn(20);
    assert!(world.until(5 * S, World::agreed).is_some());
    let all = world.recording.take().expect("it was on").into_iter();
    let greetings: Vec<Vec<u8>> =
        all.map(|(_, _, bytes)| bytes).filter(|bytes| bytes[0] >> 4 == 1).collect();
    assert!(greetings.len() >= 19);
    world.run(60 * S);
    // Much to tell.
    for node in 0..20 {
        world.input(node, Input::Address(addr(node)));
    }
    world.run(30 * MS);
    let now = world.now;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(9);
    let (mut told, mut asked) = (0, 0);
    for bytes in &greetings {
        let mut out = Vec::new();
        let input = Input::Datagram { from: addr(77), bytes };
        world.nodes[5].gossip.step(now, 0, input, &mut rng, &mut out);
        let sent: Vec<usize> = out.iter().filter_map(sent_to_77).collect();
        assert!(sent.len() <= 1);
        asked += bytes.len();
        told += sent.iter().sum::<usize>();
    }
    println!("{told} bytes for {asked}");
    assert!(told > 0 && told * 4 <= asked * 5, "{told} bytes for {asked}");
}

fn sent_to_77(output: &Output) -> Option<usize> {
    match output {
        Output::Send { to, bytes } if *to == addr(77) => Some(bytes.len()),
        _ => None,
    }
}

#[test]
fn no_length_is_too_short_or_too_long() {
    let mut target = Target::default();
    for len in (0..64).chain([1232, 8952, 8953, 65_507]) {
        for first in [0x01, 0x11, 0x21, 0xff] {
            let mut bytes = vec![0; len];
            bytes.iter_mut().zip([first, 1]).for_each(|(to, byte)| *to = byte);
            target.datagram(&bytes);
        }
    }
}

/// A generation that no step up from is possible, told as a member tells: it once wrapped around to zero.
#[test]
fn no_generation_is_too_high_to_be_ignored() {
    let outdated = |generation: &[u8]| {
        let addr = [4, 127, 0, 0, 1, 9, 0];
        let content = [generation, &addr].concat();
        [&[12, content.len() as u8], &content[..]].concat()
    };
    let (highest, last) = ([0xff; 9], [0xff; 8]);
    for generation in [[&highest[..], &[1]].concat(), [&last[..], &[0x3f]].concat()] {
        let mut target = Target::default();
        target.content(&outdated(&generation));
        assert_eq!(target.generation(), 3, "{generation:x?}");
    }
    let mut target = Target::default();
    target.content(&outdated(&[9]));
    assert_eq!(target.generation(), 10, "what can be stepped above is");
}

#[test]
fn any_log_is_loaded_or_refused() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(6);
    for _ in 0..2000 {
        let mut bytes = vec![0; (rng.next_u64() % 300) as usize];
        rng.fill_bytes(&mut bytes);
        gossip::fuzz::log(&bytes);
    }
}

#[test]
fn a_ring_with_two_keys_carries_a_flock_through_a_rotation() {
    let mut world = World::new(7);
    world.spawn(4);
    assert!(world.until(5 * S, World::agreed).is_some());
    world.clear_events();
    let next = SecretKey::new(2, [42; 32]);
    for node in 0..4 {
        world.nodes[node].gossip.keys_mut().accept(&next).expect("there is room");
        world.run(S);
    }
    for node in 0..4 {
        world.nodes[node].gossip.keys_mut().select(2).expect("it is held");
        world.run(2 * S);
    }
    for node in 0..4 {
        world.nodes[node].gossip.keys_mut().remove(1).expect("it is not in use");
        world.run(2 * S);
    }
    assert_eq!(world.deaths(), []);
    world.put(0, "s/a", b"x");
    assert!(world.until(2 * S, World::roots_equal).is_some());
    // Who holds the old key only is a stranger now.
    world.spawn_with(1, |cfg| cfg.keys = keys());
    world.run(5 * S);
    assert_eq!((world.live(4), world.live(0)), (1, 4));
}
