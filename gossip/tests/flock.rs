//! Flocks on virtual time: joining, dying, leaving, spreading.

mod world;

use gossip::{Event, Input, State};
use world::{MS, S, World, name};

fn joined(seed: u64, count: usize) -> World {
    let mut world = World::new(seed);
    world.spawn(count);
    let took = world.until(20 * S, World::agreed);
    assert!(took.is_some(), "{count} nodes never agreed");
    world.run(2 * S);
    world.clear_events();
    world
}

#[test]
fn three_nodes_join_and_agree() {
    let mut world = World::new(1);
    world.spawn(3);
    let took = world.until(5 * S, World::agreed).expect("all three are known everywhere");
    assert!(took <= S, "took {} ms", took / MS);
    for node in 0..3 {
        let said = |e: &&(u64, Event)| matches!(e.1, Event::Joined { .. });
        assert_eq!(world.nodes[node].events.iter().filter(said).count(), 1, "node {node}");
    }
    world.run(2 * S);
    let views: Vec<u32> = world.nodes.iter().map(|n| n.gossip.view()).collect();
    assert!(views.iter().all(|v| *v == views[0]));
    assert!(world.nodes[0].gossip.member(&name(1)).is_some_and(|m| m.rtt_us > 0));
}

#[test]
fn each_says_once_that_it_joined_whoever_found_whom() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        world.loss = 200;
        world.spawn_with(4, |config| config.seeds = (0..4).map(world::addr).collect());
        assert!(world.until(20 * S, World::agreed).is_some(), "seed {seed}");
        world.run(5 * S);
        for node in 0..4 {
            let said = |e: &&(u64, Event)| matches!(e.1, Event::Joined { .. });
            let times = world.nodes[node].events.iter().filter(said).count();
            assert_eq!(times, 1, "seed {seed}, node {node}");
        }
    }
}

#[test]
fn a_killed_node_is_dead_for_all_within_three_seconds() {
    for count in [3, 10, 50] {
        let mut world = joined(2, count);
        world.kill(1);
        let dead = |w: &World| w.up().all(|n| w.state(n, 1) == Some(State::Dead));
        let took = world.until(10 * S, dead).expect("it is noticed");
        assert!(took <= 3 * S, "{count} nodes took {} ms", took / MS);
        assert!(world.deaths().iter().all(|(_, _, whom)| *whom == name(1)));
    }
}

#[test]
fn a_restarted_node_is_back_at_once_and_counted_once() {
    let mut world = joined(3, 5);
    for _ in 0..20 {
        world.kill(2);
        world.restart(2);
        let took = world.until(10 * S, World::agreed);
        assert!(took.is_some_and(|t| t <= 2 * S), "{took:?}");
        world.run(S);
    }
    for node in 0..5 {
        assert_eq!(world.nodes[node].gossip.members().count(), 4);
        let m = world.nodes[node].gossip.member(&name(2)).expect("it is a member");
        assert_eq!((m.state, m.generation), (State::Alive, 21));
    }
}

#[test]
fn farewell_is_no_death_and_a_departed_member_can_be_forgotten() {
    let mut world = joined(4, 6);
    world.input(3, Input::Leave);
    let gone = |w: &World| (0..6).filter(|n| *n != 3).all(|n| w.state(n, 3) == Some(State::Left));
    assert!(world.until(S, gone).is_some());
    world.run(S);
    assert!(world.nodes[3].events.iter().any(|(_, e)| *e == Event::Left));
    world.kill(3);
    world.run(10 * S);
    assert_eq!(world.deaths(), []);
    world.input(0, Input::Forget { name: &name(1) });
    let refused = |e: &(u64, Event)| matches!(e.1, Event::Refused(_));
    assert!(world.nodes[0].events.iter().any(refused), "a living member stays");
    world.input(0, Input::Forget { name: &name(3) });
    let forgotten = |w: &World| w.up().all(|n| w.state(n, 3).is_none());
    assert!(world.until(2 * S, forgotten).is_some());
    world.restart(3);
    assert!(world.until(3 * S, World::agreed).is_some(), "it may come back");
}

#[test]
fn records_reach_everybody_and_deletions_too() {
    let mut world = joined(5, 20);
    world.put(4, "s/default/web", b"one");
    let has = |body: &'static [u8]| {
        move |w: &World| {
            w.up().all(|n| {
                let record = w.nodes[n].gossip.get("s/default/web");
                record.is_some_and(|r| r.body.as_deref() == Some(body))
            })
        }
    };
    assert!(world.until(S, has(b"one")).is_some());
    world.put(9, "s/default/web", b"two");
    assert!(world.until(S, has(b"two")).is_some());
    world.input(3, Input::Delete { key: "s/default/web" });
    let gone = |w: &World| w.up().all(|n| w.nodes[n].gossip.get("s/default/web").is_none());
    assert!(world.until(S, gone).is_some());
    assert!(world.roots_equal());
    let body = vec![7u8; gossip::BODY_MAX_BYTES];
    world.put(0, "i/big", &body);
    assert!(world.until(3 * S, World::roots_equal).is_some(), "in pieces");
    assert_eq!(world.nodes[7].gossip.get("i/big").and_then(|r| r.body.as_deref()), Some(&body[..]));
}

#[test]
fn a_blank_node_gets_everything() {
    let mut world = joined(6, 3);
    for i in 0..2000 {
        world.put(i % 3, &format!("s/default/app-{i}"), &vec![i as u8; 200 + i % 700]);
    }
    assert!(world.until(20 * S, World::roots_equal).is_some());
    world.spawn(1);
    let took = world.until(20 * S, World::roots_equal).expect("it catches up");
    assert!(took < 5 * S, "took {} ms", took / MS);
    assert_eq!(world.nodes[3].gossip.range("s/").count(), 2000);
}

#[test]
fn unicast_arrives_with_its_senders_name() {
    let mut world = joined(7, 3);
    let to = name(2);
    world.input(0, Input::Unicast { to: &to, payload: b"offer".to_vec() });
    world.input(2, Input::Unicast { to: &to, payload: b"self".to_vec() });
    world.input(0, Input::Unicast { to: "nobody", payload: Vec::new() });
    world.input(0, Input::Unicast { to: &to, payload: vec![0; 1101] });
    world.run(10 * MS);
    let refused = |e: &&(u64, Event)| matches!(e.1, Event::Refused(_));
    assert_eq!(world.nodes[0].events.iter().filter(refused).count(), 2);
    let got: Vec<_> = world.nodes[2]
        .events
        .iter()
        .filter_map(|(_, e)| match e {
            Event::Unicast { from, payload } => Some((from.clone(), payload.clone())),
            _ => None,
        })
        .collect();
    let expected = [(name(2), b"self".to_vec()), (name(0), b"offer".to_vec())];
    assert_eq!(got, expected);
}

#[test]
fn a_member_that_one_node_forgets_is_forgotten_by_all_at_once() {
    let mut world = World::new(31);
    world.spawn(40);
    assert!(world.until(20 * S, World::agreed).is_some());
    world.kill(7);
    assert!(world.until(20 * S, World::agreed).is_some());
    world.run(5 * S);
    world.input(3, Input::Forget { name: &name(7) });
    let forgotten = |w: &World| w.up().all(|n| w.state(n, 7).is_none());
    let took = world.until(20 * S, forgotten).expect("all forget it");
    assert!(took <= S, "rumours take no comparison of views: {} ms", took / 1000);
}

#[test]
fn an_update_is_everywhere_in_half_a_second() {
    let mut world = joined(32, 100);
    let mut longest = 0;
    for n in 0..5u8 {
        world.put(usize::from(n) * 17, &format!("s/{n}"), &[n; 700]);
        let took = world.until(5 * S, World::roots_equal).expect("it is everywhere");
        longest = longest.max(took);
        world.run(3 * S);
    }
    assert!(longest <= 500 * MS, "{} ms", longest / MS);
}
