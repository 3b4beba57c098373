//! Tests of what adapts and what is bounded: waits follow measured round trips, suspicions the size of the flock, tables their limits.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::tests::{addr, swim};
use super::*;
use crate::config::Profile;
use crate::message::Accusers;
use crate::outbox::Dest;

const MS: u64 = 1_000;
const LAN: Timing = Timing::of(Profile::Lan);

/// One core and its time.
struct One {
    swim: Swim,
    now_us: u64,
    rng: Xoshiro256PlusPlus,
    net: Outbox,
    out: Vec<Output>,
}

fn alive(name: &str) -> Update<'_> {
    let (nid, full) = (Nid::of(name), Some((name, addr(2))));
    let (standing, accusers) = (Standing::Alive, Accusers::default());
    Update { nid, full, generation: 1, incarnation: 0, standing, accusers }
}

impl One {
    /// That knows so many others (two at least: each is told of the other), and has told all of it.
    fn knowing(others: usize) -> One {
        let rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let (net, out) = (Outbox::default(), Vec::new());
        let mut one = One { swim: swim(), now_us: 5, rng, net, out };
        for n in 0..others {
            one.act(|swim, ctx| swim.apply(&alive(&format!("m{n}")), ctx));
        }
        while let Some(at_us) = one.swim.next_deadline() {
            one.now_us = one.now_us.max(at_us);
            one.act(|swim, ctx| swim.timer(ctx));
        }
        one
    }

    fn act<T>(&mut self, what: impl FnOnce(&mut Swim, &mut Ctx<'_>) -> T) -> T {
        let (rng, net, out) = (&mut self.rng, &mut self.net, &mut self.out);
        what(&mut self.swim, &mut Ctx { now_us: self.now_us, rng, net, out })
    }

    /// How long a probe of it waits before it asks for help. It is answered then, or after so long.
    fn probe(&mut self, nid: Nid, answer_us: Option<u64>) -> u64 {
        assert!(self.act(|swim, ctx| swim.probe(nid, ctx)));
        let (seq, start_us) = (self.swim.seq, self.now_us);
        let stage_us = self.swim.next_deadline().expect("a probe waits for its answer");
        self.now_us = answer_us.map_or(stage_us, |us| start_us + us);
        self.act(|swim, ctx| swim.timer(ctx));
        self.act(|swim, ctx| swim.on_ack(nid, seq, ctx));
        assert_eq!(self.swim.next_deadline(), None, "it is over");
        stage_us - start_us
    }

    fn rtt_us(&self, nid: Nid) -> u32 {
        self.swim.table.get(nid).map_or(0, |e| e.member.rtt_us)
    }
}

#[test]
fn round_trips_are_measured_and_a_probe_waits_by_them() {
    let (mut one, nid) = (One::knowing(2), Nid::of("m0"));
    assert_eq!(one.probe(nid, Some(800)), LAN.ack_min_us, "nothing is known");
    assert_eq!(one.rtt_us(nid), 800);
    one.probe(nid, Some(1_600));
    assert_eq!(one.rtt_us(nid), 900, "an eighth of the difference (RFC 6298)");
    assert_eq!(one.probe(nid, None), LAN.ack_min_us, "short ones shorten nothing");
    assert_eq!(one.rtt_us(nid), 900, "an answer after a second ping could belong to either");
    let (mut one, nid) = (One::knowing(2), Nid::of("m0"));
    for _ in 0..16 {
        one.probe(nid, Some(60 * MS));
    }
    let wait_us = one.probe(nid, Some(60 * MS));
    assert!((120 * MS..122 * MS).contains(&wait_us), "{wait_us}");
    for _ in 0..8 {
        one.probe(nid, Some(99 * MS));
    }
    assert!(one.probe(nid, Some(99 * MS)) <= LAN.probe_us * 2 / 3, "a probe has its time");
}

#[test]
fn suspicions_last_longer_in_larger_flocks() {
    let lasts = |others: usize| {
        let mut one = One::knowing(others);
        let accused = Update {
            standing: Standing::Suspect,
            accusers: Accusers::one(Nid::of("m1")),
            ..alive("m0")
        };
        one.act(|swim, ctx| swim.apply(&accused, ctx));
        let entry = one.swim.table.get(Nid::of("m0")).expect("listed");
        let suspicion = entry.suspicion.as_ref().expect("suspected");
        // It has failed to reach nobody itself: it leaves some time to who has.
        let lasts_us = suspicion.deadline_us - suspicion.since_us - suspicion.grace_us;
        (suspicion.min_us, lasts_us)
    };
    assert_eq!(lasts(9), (LAN.suspicion_min_us, LAN.suspicion_max_us));
    assert_eq!(lasts(99), (1_090 * MS, 2_090 * MS));
    assert_eq!(lasts(999), (1_180 * MS, 2_180 * MS));
}

#[test]
fn senders_without_a_name_are_bounded() {
    let mut one = One::knowing(0);
    for n in 0..STRANGERS_MAX as u64 {
        assert_eq!(one.swim.admit(Nid(n), 1, (7, 1), 0), Some(false));
    }
    assert_eq!(one.swim.admit(Nid(1 << 40), 1, (7, 1), 0), None, "not listened to");
    assert_eq!(one.swim.admit(Nid(3), 1, (7, 2), 0), Some(false), "who is in goes on");
    assert_eq!(one.swim.strangers.len(), STRANGERS_MAX);
    // Introduced, it makes room.
    one.act(|swim, ctx| swim.apply(&Update { nid: Nid(3), ..alive("m3") }, ctx));
    assert_eq!(one.swim.admit(Nid(1 << 40), 1, (7, 1), 0), Some(false));
    // So do those that are silent, else a thousand names that were heard once would keep out all newcomers for good.
    let late = STRANGER_US - 1;
    assert_eq!(one.swim.admit(Nid(4), 1, (7, 2), late), Some(false), "not silent");
    assert_eq!(one.swim.admit(Nid(1 << 41), 1, (7, 1), late), None, "not yet");
    assert_eq!(one.swim.admit(Nid(1 << 41), 1, (7, 1), late + 1), Some(false));
    assert_eq!(one.swim.strangers.len(), 2);
    assert_eq!(one.swim.admit(Nid(4), 1, (7, 2), late + 1), None, "its counters stay seen");
}

#[test]
fn greetings_of_a_hundred_thousand_boots_are_bounded() {
    let mut one = One::knowing(0);
    let mut answered = 0;
    for boot in 1..=100_000 {
        // In five seconds.
        answered += u64::from(one.swim.contact.admit(boot, 1, boot * 50));
    }
    assert_eq!(answered, 5 * contact::ANSWERS_PER_S + 1, "the last is in the sixth");
    assert!(one.swim.contact.greeters() <= contact::GREETERS_MAX);
}

#[test]
fn members_and_forgotten_ones_are_bounded() {
    let mut one = One::knowing(0);
    for n in 0..MEMBERS_MAX as u64 {
        one.act(|swim, ctx| swim.apply(&Update { nid: Nid(n << 40), ..alive("m") }, ctx));
    }
    assert_eq!(one.swim.table.len(), MEMBERS_MAX, "all live: the last one is ignored");
    one.out.clear();
    let gone = MEMBERS_MAX as u64 - 1;
    for n in 0..gone {
        let left = Update { nid: Nid(n << 40), standing: Standing::Left, ..alive("m") };
        one.act(|swim, ctx| swim.apply(&left, ctx));
        assert!(one.act(|swim, ctx| swim.forget(left.nid, ctx)));
    }
    assert_eq!(one.swim.table.len(), 1);
    assert_eq!(one.swim.forgotten.len(), FORGOTTEN_MAX);
    assert!(one.swim.forgotten.contains_key(&Nid((gone - 1) << 40)), "the last is remembered");
}

#[test]
fn probes_for_oneself_and_for_others_are_bounded() {
    let mut one = One::knowing(400);
    let probed = (0..400)
        .filter(|n| one.act(|swim, ctx| swim.probe(Nid::of(&format!("m{n}")), ctx)))
        .count();
    assert_eq!((probed, one.swim.probes.len()), (64, 64));
    let origin = Dest { addr: addr(3), to: crate::frame::Binding::Open };
    for n in 0..400 {
        one.act(|swim, ctx| swim.on_ping_req(origin, n, Nid::of(&format!("m{n}")), ctx));
    }
    assert_eq!(one.swim.relays.len(), 256);
}

/// The greatest generation is what the next boot starts from: without it a boot counter that was lost once is lost again.
#[test]
fn who_steps_above_its_past_persists_that_before_it_says_so() {
    let mut one = One::knowing(2);
    one.out.clear();
    one.act(|swim, ctx| swim.apply(&Update { generation: 9, ..alive("me") }, ctx));
    assert_eq!(one.swim.table.me().generation, 10);
    let first = one.out.first();
    assert_eq!(first, Some(&Output::Persist(Persist::Generation(10))), "{:?}", one.out);
}

/// What peers say makes it suspect; only who failed to reach it calls it dead.
#[test]
fn whom_its_own_probes_reach_it_never_calls_dead() {
    let (mut one, nid) = (One::knowing(20), Nid::of("m0"));
    let mut accused = Update { standing: Standing::Suspect, ..alive("m0") };
    for n in 1..=3 {
        accused.accusers.add(Nid::of(&format!("m{n}")));
    }
    one.act(|swim, ctx| swim.apply(&accused, ctx));
    let state = |one: &One| one.swim.table.get(nid).map(|e| e.member.state);
    let pass = |one: &mut One, time_us: u64, answers: bool| {
        let end_us = one.now_us + time_us;
        while let Some(at_us) = one.swim.next_deadline().filter(|at| *at <= end_us) {
            one.now_us = at_us;
            one.act(|swim, ctx| swim.timer(ctx));
            let asked: Vec<u32> = one.swim.probes.keys().copied().filter(|_| answers).collect();
            for seq in asked {
                one.act(|swim, ctx| swim.on_ack(nid, seq, ctx));
            }
        }
        one.now_us = end_us;
    };
    pass(&mut one, 30_000 * MS, true);
    assert_eq!(state(&one), Some(State::Suspect), "three accusers and half a minute");
    pass(&mut one, 2_000 * MS, false);
    assert_eq!(state(&one), Some(State::Dead), "now it is silent to us as well");
}

#[test]
fn what_a_rejoin_needs_is_persisted_and_passing_weather_is_not() {
    let mut one = One::knowing(2);
    let mut persisted = |update: Update<'_>| {
        one.out.clear();
        one.act(|swim, ctx| swim.apply(&update, ctx));
        let members = one.out.iter().filter_map(|output| match output {
            Output::Persist(Persist::Member(info)) => {
                Some((info.generation, info.addr, info.state))
            }
            _ => None,
        });
        members.collect::<Vec<_>>()
    };
    let m0 = alive("m0");
    let moved = Update { full: Some(("m0", addr(9))), incarnation: 1, ..m0 };
    assert_eq!(persisted(m0), [], "known");
    assert_eq!(persisted(moved), [(1, addr(9), State::Alive)]);
    assert_eq!(persisted(Update { generation: 2, ..moved }), [(2, addr(9), State::Alive)]);
    let later = Update { generation: 2, incarnation: 2, ..moved };
    assert_eq!(
        persisted(Update { accusers: Accusers::one(Nid(7)), standing: Standing::Suspect, ..later }),
        []
    );
    assert_eq!(persisted(Update { standing: Standing::Dead, ..later }), []);
    assert_eq!(persisted(Update { incarnation: 3, ..later }), []);
    let left = Update { incarnation: 3, standing: Standing::Left, ..later };
    assert_eq!(persisted(left), [(2, addr(9), State::Left)]);
    assert_eq!(persisted(left), [], "once");
}
