//! Whole flocks on virtual time: placement, death, heal, scale, stop, update, drain, daemons, `why`.

#![allow(clippy::unwrap_used)] // All of it is tests, its harness too.

mod harness;

use harness::{Flock, MS, S, app, labels};
use sched::msg::Message;
use sched::{Input, MemberState, NodeRecord, Observed, SMALL_FLOCK};

#[test]
fn six_replicas_lie_two_on_each_of_three_racks_at_once() {
    let mut f = Flock::new(3, 3);
    let t = f.now;
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(300 * MS);
    f.whole("hello", 6);
    assert_eq!(f.shape("hello"), [2, 2, 2]);
    let last = f.starts.iter().map(|s| s.0).max().unwrap();
    assert!(last - t <= 20 * MS, "placed after {} ms", (last - t) / MS);
    assert_eq!(f.starts.len(), 6, "no start was needless");
}

#[test]
fn racks_share_evenly_even_when_rows_do_not() {
    // r0 and r1 in row a, r2 in row b: the rows get 4 and 2, the racks 2 each.
    let mut f = Flock::new(3, 3);
    let mut record = f.nodes["n2"].record.clone();
    record.labels.insert("row".into(), "b".into());
    f.step("n2", Input::SelfRecord(record));
    f.run(S);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(S);
    assert_eq!(f.shape("hello"), [2, 2, 2], "{:?}", f.on("hello"));
}

#[test]
fn a_dead_node_is_replaced_soon_and_its_return_moves_nothing() {
    for victim in ["n0", "n1", "n2"] {
        let mut f = Flock::new(3, 3);
        f.submit(&app("hello", "replicas = 6", ""), false);
        f.run(2 * S);
        let before = f.starts.len();
        let record = f.nodes[victim].record.clone();
        let died = f.now;
        f.kill(victim);
        f.run(8 * S);
        f.whole("hello", 6);
        assert_eq!(f.starts.len() - before, 2, "only its replicas move: {:?}", f.starts);
        let last = f.starts.last().unwrap().0;
        // Known after 2 s; offered 1.5 s later, or after a new coordinator settled.
        assert!(last - died <= 4 * S, "{victim}: replaced after {} ms", (last - died) / MS);
        f.boot(victim, record, &[]);
        f.run(10 * S);
        f.whole("hello", 6);
        assert_eq!(f.starts.len() - before, 2, "a return starts nothing");
    }
}

#[test]
fn one_of_three_starts_nothing() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    f.kill("n0");
    f.kill("n1");
    let before = f.starts.len();
    f.run(60 * S);
    assert_eq!(f.starts.len(), before);
    let why = f.why("hello");
    assert!(why.held.contains("only 1 of 3 known nodes"), "{why}");
    // Forgetting the dead makes it whole again.
    for dead in ["n0", "n1"] {
        f.step("n2", Input::Member { name: dead, state: MemberState::Forgotten });
    }
    f.run(5 * S);
    f.whole("hello", 6);
    assert!(
        !f.nodes["n2"].sched.claims().any(|(_, r)| r.node != "n2"),
        "their records are deleted"
    );
}

/// A node that was cut off comes back with its pods still running: exactly N remain, none starts.
#[test]
fn a_heal_ends_with_exactly_n_and_no_start() {
    let mut f = Flock::new(5, 5);
    f.submit(&app("hello", "replicas = 10", ""), false);
    f.run(2 * S);
    let kept = f.nodes["n1"].pods.clone();
    let adopted: Vec<_> = kept.values().map(|c| (c.id.clone(), c.record.clone())).collect();
    let record = f.nodes["n1"].record.clone();
    f.kill("n1");
    f.run(10 * S);
    f.whole("hello", 10);
    let before = f.starts.len();
    f.boot("n1", record, &adopted);
    f.nodes.get_mut("n1").unwrap().pods = kept;
    f.run(8 * S);
    f.whole("hello", 10);
    assert_eq!(f.starts.len(), before, "a heal starts nothing");
    assert_eq!(f.on("hello")["n1"].len(), 2, "the oldest stay");
}

#[test]
fn a_quick_reboot_gets_its_pods_again() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    let record = f.nodes["n1"].record.clone();
    // Down and up again before anyone noticed: no pod survives, its claims are still in the map.
    f.nodes.get_mut("n1").unwrap().pods.clear();
    f.boot("n1", record, &[]);
    f.run(4 * S);
    f.whole("hello", 6);
}

#[test]
fn scaling_starts_and_stops_only_the_difference() {
    let mut f = Flock::new(3, 3);
    for (n, total) in [(3, 3), (9, 9), (2, 9), (0, 9), (4, 13)] {
        f.submit(&app("hello", &format!("replicas = {n}"), ""), false);
        f.run(2 * S);
        f.whole("hello", n);
        assert_eq!(f.starts.len(), total);
    }
}

#[test]
fn stop_and_delete_leave_nothing() {
    let mut f = Flock::new(3, 3);
    let spec = app("hello", "replicas = 6", "");
    f.submit(&spec, false);
    f.run(S);
    f.submit(&spec, true);
    f.run(S);
    f.whole("hello", 0);
    f.submit(&spec, false);
    f.run(S);
    f.whole("hello", 6);
    f.delete("default", "hello");
    f.run(S);
    f.whole("hello", 0);
    for node in f.nodes.values() {
        assert_eq!((node.sched.claims().count(), node.sched.apps().count()), (0, 0));
    }
}

#[test]
fn an_update_keeps_its_budget() {
    for (update, lowest) in [
        ("max_unavailable = 1\nmax_surge = 0", 5),
        ("max_unavailable = 0\nmax_surge = 2", 6),
        ("max_unavailable = 2\nmax_surge = 1", 4),
        ("", 5),
    ] {
        let mut f = Flock::new(3, 3);
        let section = format!("[update]\n{update}");
        f.submit(&app("hello", "replicas = 6", &section), false);
        f.run(2 * S);
        f.watch_ready = Some(("hello".into(), 99));
        f.submit(&app("hello", "replicas = 6", &format!("cpu = 0.2\n{section}")), false);
        f.run(10 * S);
        f.whole("hello", 6);
        assert_eq!(f.starts.len(), 12, "{update}");
        assert!(f.on("hello").values().flatten().count() == 6);
        assert!(
            f.nodes.values().all(|n| n.pods.values().all(|c| c.spec.cpu_milli() == 200)),
            "{update}"
        );
        let (_, seen) = f.watch_ready.take().unwrap();
        assert!(seen >= lowest, "{update}: {seen} ready at the lowest");
        assert_eq!(f.shape("hello"), [2, 2, 2], "{update}");
    }
}

#[test]
fn a_broken_update_stops_within_its_budget() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    f.broken.push("bad:1".into());
    let bad = harness::spec(
        "app = \"hello\"\nreplicas = 6\n[[container]]\nname = \"c\"\nimage = \"bad:1\"\n",
    );
    f.watch_ready = Some(("hello".into(), 99));
    f.submit(&bad, false);
    f.run(120 * S);
    let (_, lowest) = f.watch_ready.take().unwrap();
    assert!(lowest >= 5, "{lowest}");
    assert!(f.starts.len() < 6 + 20, "backs off: {} starts", f.starts.len());
    let why = f.why("hello");
    assert!(why.to_string().contains("image bad:1: not found"), "{why}");
    // And the next, good generation goes through.
    f.submit(&app("hello", "replicas = 6", "cpu = 0.3"), false);
    f.run(10 * S);
    f.whole("hello", 6);
}

#[test]
fn unique_host_is_updated_in_place() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", "[place]\nunique = \"host\""), false);
    f.run(2 * S);
    f.submit(&app("hello", "replicas = 3", "cpu = 0.2\n[place]\nunique = \"host\""), false);
    f.run(5 * S);
    f.whole("hello", 3);
    assert_eq!(f.shape("hello"), [1, 1, 1]);
    f.submit(&app("hello", "replicas = 4", "cpu = 0.2\n[place]\nunique = \"host\""), false);
    f.run(5 * S);
    f.whole("hello", 3);
    let why = f.why("hello");
    assert_eq!(why.slots.len(), 1);
    assert_eq!((why.slots[0].nodes, why.slots[0].feasible), (3, 0));
    assert_eq!(why.slots[0].rejected[0].reason, "unique host");
    assert_eq!(why.slots[0].fix, "without `unique = \"host\"` → 3 nodes");
}

#[test]
fn a_drain_moves_everything_and_back_nothing() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    f.watch_ready = Some(("hello".into(), 99));
    f.drain("n1", true);
    f.run(5 * S);
    f.whole("hello", 6);
    assert!(!f.on("hello").contains_key("n1"));
    assert!(f.watch_ready.take().unwrap().1 >= 5, "within the budget");
    let before = f.starts.len();
    f.drain("n1", false);
    f.run(5 * S);
    assert_eq!(f.starts.len(), before);
}

#[test]
fn a_daemon_runs_once_on_every_matching_node() {
    let mut f = Flock::new(4, 2);
    let daemon = |extra: &str| {
        app("logs", "kind = \"daemon\"", &format!("{extra}[place]\nrequire = [\"rack == r0\"]"))
    };
    f.submit(&daemon(""), false);
    f.run(S);
    assert_eq!(f.on("logs").keys().collect::<Vec<_>>(), ["n0", "n2"]);
    assert_eq!(f.on("logs")["n0"], ["logs.n0"]);
    let record = f.nodes["n0"].record.clone();
    f.boot("n8", record, &[]);
    f.run(2 * S);
    assert_eq!(f.shape("logs"), [1, 1, 1]);
    f.watch_ready = Some(("logs".into(), 99));
    f.submit(&daemon("cpu = 0.2\n"), false);
    f.run(5 * S);
    assert_eq!(f.shape("logs"), [1, 1, 1]);
    assert_eq!(f.ready("logs"), 3);
    assert!(f.nodes.values().all(|n| n.pods.values().all(|c| c.spec.cpu_milli() == 200)));
    assert!(f.watch_ready.take().unwrap().1 >= 2, "one at a time");
    f.delete("default", "logs");
    f.run(S);
    assert!(f.on("logs").is_empty());
}

#[test]
fn a_hard_spread_stays_pending_and_says_why() {
    let mut f = Flock::new(3, 3);
    // r2 is full.
    let mut record = f.nodes["n2"].record.clone();
    record.memory_bytes = 100 << 20;
    f.nodes.get_mut("n2").unwrap().record = record.clone();
    f.step("n2", Input::SelfRecord(record));
    f.run(S);
    let place = "[place]\nspread = [{ by = \"rack\", max_skew = 1, mode = \"hard\" }]";
    f.submit(&app("hello", "replicas = 4", place), false);
    f.run(5 * S);
    f.whole("hello", 2);
    let why = f.why("hello");
    let text = why.to_string();
    assert_eq!((why.ready, why.desired, why.slots.len()), (2, 4, 2));
    assert!(text.contains("slot 2 pending: 0 of 3 nodes"), "{text}");
    assert!(
        text.contains("2 rejected rack skew (max_skew 1; emptiest of them r0 has 1)"),
        "{text}"
    );
    assert!(text.contains("1 rejected memory (need 128Mi; best n2, 100Mi)"), "{text}");
    assert!(text.contains("fix: `max_skew = 2` for rack → 2 nodes"), "{text}");
    // Room appears: both are placed, the skew holds.
    let mut record = f.nodes["n2"].record.clone();
    record.memory_bytes = 4 << 30;
    f.nodes.get_mut("n2").unwrap().record = record.clone();
    f.step("n2", Input::SelfRecord(record));
    f.run(3 * S);
    f.whole("hello", 4);
}

#[test]
fn a_hard_spread_does_not_wait_for_a_dead_rack() {
    let mut f = Flock::new(6, 3);
    let place = "[place]\nspread = [{ by = \"rack\", max_skew = 1, mode = \"hard\" }]";
    f.submit(&app("hello", "replicas = 6", place), false);
    f.run(2 * S);
    assert_eq!(f.on("hello").len(), 6);
    f.kill("n0");
    f.kill("n3");
    f.run(10 * S);
    f.whole("hello", 6);
}

#[test]
fn nothing_is_placed_beyond_capacity() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("big", "replicas = 20", "memory = \"1Gi\""), false);
    f.run(5 * S);
    f.whole("big", 12);
    let text = f.why("big").to_string();
    assert!(text.contains("3 rejected memory (need 1Gi; best"), "{text}");
}

#[test]
fn a_pod_that_a_node_cannot_run_moves_with_backoff() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(2 * S);
    let id = f.nodes["n1"].pods.keys().next().unwrap().clone();
    f.nodes.get_mut("n1").unwrap().pods.remove(&id);
    f.observe("n1", &id, Observed::Failed { reason: "no loop device".into(), retryable: false });
    f.run(5 * S);
    f.whole("hello", 3);
    assert!(!f.on("hello").contains_key("n1"), "n1 is avoided for a while: {:?}", f.on("hello"));
}

#[test]
fn a_retryable_failure_is_tried_again_here_first() {
    let mut f = Flock::new(1, 1);
    f.submit(&app("hello", "replicas = 1", ""), false);
    f.run(S);
    let id = f.nodes["n0"].pods.keys().next().unwrap().clone();
    f.observe("n0", &id, Observed::Failed { reason: "busy".into(), retryable: true });
    f.run(2 * S);
    assert_eq!(f.starts.len(), 2);
    assert!(f.nodes["n0"].pods.contains_key(&id), "the same claim");
    f.whole("hello", 1);
}

#[test]
fn an_exit_is_the_shims_business() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(S);
    let id = f.nodes["n1"].pods.keys().next().unwrap().clone();
    let reason = String::new();
    let exit = Observed::Exited { code: Some(1), signal: None, oom: false, restarts: 1, reason };
    f.observe("n1", &id, exit);
    f.run(20 * S);
    assert_eq!(f.starts.len(), 3, "nothing moves");
    let r = f.nodes["n0"].sched.claims().find(|(i, _)| *i == id).unwrap().1;
    assert_eq!((r.reason.as_str(), r.restarts, r.ready), ("exited with code 1", 1, false));
    let text = f.why("hello").to_string();
    assert!(text.contains("exited on n1"), "{text}");
}

#[test]
fn a_vanished_pod_is_replaced() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(S);
    let id = f.nodes["n1"].pods.keys().next().unwrap().clone();
    f.nodes.get_mut("n1").unwrap().pods.remove(&id);
    f.observe("n1", &id, Observed::Gone);
    f.run(S);
    f.whole("hello", 3);
}

#[test]
fn the_coordinators_death_loses_nothing() {
    let mut f = Flock::new(5, 5);
    for i in 0..8 {
        f.submit(&app(&format!("a{i}"), "replicas = 5", ""), false);
    }
    f.run(2 * S);
    let coordinator = f.nodes["n0"].sched.apps().next().unwrap().coordinator;
    f.kill(&coordinator);
    f.run(10 * S);
    for i in 0..8 {
        f.whole(&format!("a{i}"), 5);
    }
}

#[test]
fn a_message_of_an_old_term_changes_nothing() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(S);
    let victim = f.nodes["n1"].pods.keys().next().unwrap().clone();
    let stop = sched::msg::Message::Stop {
        namespace: "default".into(),
        app: "hello".into(),
        claim: victim,
        term: 0,
    };
    let bytes = stop.encode().unwrap();
    f.step("n1", Input::Message { from: "n2", bytes: &bytes });
    f.run(S);
    f.whole("hello", 3);
    assert_eq!(f.starts.len(), 3);
}

#[test]
fn damaged_bytes_change_nothing() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(S);
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..f.random() % 80).map(|_| f.random() as u8).collect();
        f.step("n1", Input::Message { from: "n2", bytes: &bytes });
        let id = f.nodes["n1"].pods.keys().next().unwrap().clone();
        for key in ["n/n2", "r/default/hello", "a/n2/xyz", "x", "a/n2", "n/", &format!("a/n1/{id}")]
        {
            f.step("n1", Input::Record { key, body: Some(&bytes), writer: "n0" });
        }
    }
    f.run(2 * S);
    f.whole("hello", 3);
    assert_eq!(f.starts.len(), 3);
}

#[test]
fn large_flocks_place_quickly_and_evenly() {
    let mut f = Flock::new(40, 8);
    const { assert!(40 > SMALL_FLOCK) };
    f.submit(&app("web", "replicas = 200", ""), false);
    f.run(3 * S);
    f.whole("web", 200);
    assert_eq!(f.starts.len(), 200);
    let shape = f.shape("web");
    assert!(shape.iter().all(|n| *n == 5), "{shape:?}");
}

#[test]
fn a_flock_of_one_works() {
    let mut f = Flock::new(1, 1);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(S);
    f.whole("hello", 3);
}

#[test]
fn a_node_without_labels_takes_part() {
    let mut f = Flock::new(2, 2);
    let record = NodeRecord { labels: labels(&[]), ..f.nodes["n0"].record.clone() };
    f.boot("n9", record, &[]);
    f.run(3 * S);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(S);
    f.whole("hello", 6);
}

/// Cut off but not yet aware of it: the coordinator asks before it starts, and nobody answers.
#[test]
fn a_coordinator_that_nobody_answers_starts_nothing() {
    let mut f = Flock::new(5, 5);
    f.submit(&app("hello", "replicas = 5", ""), false);
    f.run(4 * S);
    let lone = f.nodes["n0"].sched.apps().next().unwrap().coordinator;
    for other in f.up() {
        f.cut.insert((lone.clone(), other.clone()));
        f.cut.insert((other, lone.clone()));
    }
    let before = f.starts.len();
    f.submit(&app("hello", "replicas = 10", ""), false);
    f.run(10 * S);
    assert_eq!(f.starts.len(), before);
    let why = f.nodes[&lone].sched.why("default", "hello").to_string();
    assert!(why.contains("only 1 of 5 nodes that should be alive answer"), "{why}");
    f.cut.clear();
    f.run(3 * S);
    f.whole("hello", 10);
}

#[test]
fn a_cut_in_one_direction_is_bypassed() {
    let mut f = Flock::new(4, 4);
    f.submit(&app("hello", "replicas = 4", ""), false);
    f.run(2 * S);
    let leader = f.nodes["n0"].sched.apps().next().unwrap().coordinator;
    let victim = f.up().into_iter().find(|n| *n != leader).unwrap();
    f.cut.insert((leader, victim.clone()));
    f.drain(&victim, true);
    f.run(10 * S);
    f.whole("hello", 4);
    assert!(!f.on("hello").contains_key(&victim), "its pod was told to stop through a third node");
}

/// The Stop of a drain is lost; before it is due again the drain ends. Its pod stays.
#[test]
fn a_lost_stop_ends_with_the_drain_it_was_sent_for() {
    let update = "[update]\nmax_surge = 0\nmax_unavailable = 1";
    let mut f = Flock::new(6, 3);
    f.submit(&app("web", "replicas = 6", update), false);
    f.run(5 * S);
    let leader = f.why("web").coordinator;
    let victim = f.up().into_iter().find(|n| *n != leader && f.on("web").contains_key(n)).unwrap();
    let before = (f.on("web"), f.starts.len());
    f.cut.insert((leader, victim.clone()));
    f.drain(&victim, true);
    f.run(500 * MS);
    let stop = |bytes: &Vec<u8>| matches!(Message::decode(bytes), Ok(Message::Stop { .. }));
    assert_eq!(f.lost.iter().filter(|bytes| stop(bytes)).count(), 1);
    f.drain(&victim, false);
    f.run(20 * S);
    f.whole("web", 6);
    assert_eq!((f.on("web"), f.starts.len()), before);
    assert_eq!(f.lost.iter().filter(|bytes| stop(bytes)).count(), 1, "it was repeated");
}

#[test]
fn a_newcomer_that_met_nobody_starts_nothing() {
    let config = sched::Config { bootstrap: false, ..sched::Config::new("lone") };
    let mut f = Flock::new(1, 1);
    let record = f.nodes["n0"].record.clone();
    f.nodes.get_mut("n0").unwrap().sched = sched::Sched::new(config, f.now);
    f.step("n0", Input::SelfRecord(record));
    f.step("n0", Input::Recovered);
    f.submit(&app("hello", "replicas = 1", ""), false);
    f.run(10 * S);
    f.whole("hello", 0);
    assert!(f.why("hello").held.contains("has not met its flock"), "{}", f.why("hello"));
}

/// A machine that was paused does not know it: its pods are not ready until it has heard what was replaced meanwhile.
#[test]
fn a_node_that_was_away_stops_what_was_replaced_before_it_serves_again() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    f.pause("n1");
    f.run(10 * S);
    f.whole("hello", 6);
    let before = f.starts.len();
    let resumed = f.now;
    f.resume("n1");
    f.step("n1", Input::Away);
    while f.nodes["n1"].pods.values().any(|c| c.spec.app == "hello") {
        assert_eq!(f.ready_on("n1", "hello"), 0, "none is shown as ready while it is one too many");
        assert!(f.now < resumed + 2 * S, "the duplicates still run");
        f.run(10 * MS);
    }
    f.run(8 * S);
    f.whole("hello", 6);
    assert_eq!(f.starts.len(), before, "nothing is started");
}

/// Nobody took over: what was ready is ready again, without a restart.
#[test]
fn a_node_that_was_away_for_a_moment_goes_on() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    let before = f.starts.len();
    f.step("n1", Input::Away);
    f.run(100 * MS);
    assert_eq!(f.ready_on("n1", "hello"), 0);
    f.run(4 * S);
    assert_eq!(f.ready_on("n1", "hello"), 2);
    f.whole("hello", 6);
    assert_eq!(f.starts.len(), before);
}

#[test]
fn a_cordoned_node_keeps_its_pods_and_gets_none() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 3", ""), false);
    f.run(2 * S);
    let mut record = f.nodes["n1"].record.clone();
    record.wish = sched::record::CORDON.into();
    f.step("n1", Input::SelfRecord(record.clone()));
    f.run(S);
    f.submit(&app("hello", "replicas = 9", ""), false);
    f.run(5 * S);
    f.whole("hello", 9);
    assert_eq!(f.on("hello")["n1"].len(), 1, "{:?}", f.on("hello"));
    record.wish.clear();
    f.step("n1", Input::SelfRecord(record));
    f.run(S);
    f.submit(&app("hello", "replicas = 12", ""), false);
    f.run(5 * S);
    assert_eq!(f.on("hello")["n1"].len(), 4, "{:?}", f.on("hello"));
}

/// An agent that is restarted in order says goodbye and leaves its pods: nobody takes them over meanwhile.
#[test]
fn pods_of_an_agent_that_left_without_them_are_not_replaced() {
    let mut f = Flock::new(3, 3);
    f.submit(&app("hello", "replicas = 6", ""), false);
    f.run(2 * S);
    let before = f.starts.len();
    let kept = f.nodes["n1"].pods.clone();
    let adopted: Vec<_> = kept.values().map(|c| (c.id.clone(), c.record.clone())).collect();
    let mut record = f.nodes["n1"].record.clone();
    record.stays = true;
    f.step("n1", Input::SelfRecord(record.clone()));
    f.run(S);
    f.leave("n1");
    f.run(20 * S);
    assert_eq!(f.starts.len(), before, "they still run");
    record.stays = false;
    f.boot("n1", record.clone(), &adopted);
    f.nodes.get_mut("n1").unwrap().pods = kept;
    f.run(5 * S);
    f.whole("hello", 6);
    assert_eq!(f.starts.len(), before);
    // One that never comes back is replaced after all.
    record.stays = true;
    f.step("n1", Input::SelfRecord(record));
    f.run(S);
    f.leave("n1");
    f.run(sched::record::STAYS_MS * MS + 5 * S);
    f.whole("hello", 6);
}
