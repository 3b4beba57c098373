//! Tests of Lifeguard (Dadgar, Phillips, Currey 2017), each part by its name there: local health, nack, suspicion that shrinks, buddy.

use std::net::SocketAddr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::tests::addr;
use super::*;
use crate::config::Profile;
use crate::frame::{KeyRing, SecretKey};
use crate::message::{Accusers, Message};
use crate::outbox::{Dest, Sender};
use crate::wire::Reader;

const PROBE_US: u64 = Timing::of(Profile::Lan).probe_us;
const ACK_US: u64 = Timing::of(Profile::Lan).ack_min_us;
const NACK_US: u64 = Timing::of(Profile::Lan).nack_us();
/// Enough for two stages of three helpers each.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// What a datagram says, as far as these tests ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Ping(u32),
    Ack(u32),
    Nack(u32),
    PingReq(u32, Nid),
    News(Nid, u64, Standing),
}

/// One membership core that knows all of [`NAMES`], and its time.
struct Peer {
    nid: Nid,
    swim: Swim,
    now_us: u64,
    rng: Xoshiro256PlusPlus,
    net: Outbox,
}

fn place(name: &str) -> SocketAddr {
    addr(NAMES.iter().position(|n| *n == name).unwrap() as u16 + 1)
}

fn dest(name: &str) -> Dest {
    let to = crate::frame::Binding::To { nid: Nid::of(name), generation: 1 };
    Dest { addr: place(name), to }
}

fn update(name: &str, standing: Standing, accusers: Accusers) -> Update<'_> {
    let (nid, full) = (Nid::of(name), Some((name, place(name))));
    Update { nid, full, generation: 1, incarnation: 0, standing, accusers }
}

impl Peer {
    fn new(name: &str) -> Peer {
        let me = Member {
            name: name.into(),
            addr: place(name),
            generation: 1,
            incarnation: 0,
            state: State::Alive,
            rtt_us: 0,
        };
        let swim = Swim::new(me, Timing::of(Profile::Lan), Contact::new(&[], None));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut net = Outbox::default();
        net.start(&mut rng);
        let mut peer = Peer { nid: Nid::of(name), swim, now_us: 5, rng, net };
        for other in NAMES.iter().filter(|n| **n != name) {
            let alive = update(other, Standing::Alive, Accusers::default());
            peer.act(|swim, ctx| swim.apply(&alive, ctx));
        }
        peer.quiet();
        peer
    }

    fn act<T>(&mut self, what: impl FnOnce(&mut Swim, &mut Ctx<'_>) -> T) -> T {
        let mut out = Vec::new();
        let (rng, net) = (&mut self.rng, &mut self.net);
        what(&mut self.swim, &mut Ctx { now_us: self.now_us, rng, net, out: &mut out })
    }

    /// Datagrams for whom, with the news that ride along.
    fn frames(&mut self) -> Vec<(&'static str, Vec<u8>)> {
        let (mut out, swim) = (Vec::new(), &mut self.swim);
        let me = Sender { nid: self.nid, generation: 1 };
        let ride = |dest, packet: &mut Vec<u8>, room| swim.ride(dest, packet, room);
        self.net.flush(&keys(), me, self.now_us, &mut out, ride);
        let to = |addr| NAMES.into_iter().find(|n| place(n) == addr).unwrap();
        let frame = |output| match output {
            Output::Send { to: addr, bytes } => (to(addr), bytes),
            other => panic!("{other:?}"),
        };
        out.into_iter().map(frame).collect()
    }

    /// What was sent, by addressee.
    fn said(&mut self) -> Vec<(&'static str, Vec<Said>)> {
        let frames = self.frames();
        frames.into_iter().map(|(to, frame)| (to, opened(to, &frame, read))).collect()
    }

    fn said_to(&mut self, name: &str) -> Vec<Said> {
        self.said().into_iter().filter(|(to, _)| *to == name).flat_map(|(_, said)| said).collect()
    }

    /// Everybody has been told all that there is to tell.
    fn quiet(&mut self) {
        for _ in 0..100 {
            self.act(|swim, ctx| swim.flush(ctx));
            self.said();
        }
        assert!(self.swim.queue.is_empty());
    }

    fn hear(&mut self, from: &str, message: Message<'_>) {
        self.act(|swim, ctx| swim.on_message(Nid::of(from), dest(from), &message, ctx));
    }

    /// Lets a time pass; timers fire when they are due.
    fn pass(&mut self, time_us: u64) {
        let end_us = self.now_us + time_us;
        while let Some(at_us) = self.swim.next_deadline().filter(|at| *at <= end_us) {
            self.now_us = at_us;
            self.act(|swim, ctx| swim.timer(ctx));
        }
        self.now_us = end_us;
    }

    fn state(&self, name: &str) -> State {
        self.swim.table.get(Nid::of(name)).unwrap().member.state
    }

    /// Starts a probe; its number.
    fn probe(&mut self, name: &str) -> u32 {
        assert!(self.act(|swim, ctx| swim.probe(Nid::of(name), ctx)));
        match self.said_to(name).first() {
            Some(Said::Ping(seq)) => *seq,
            other => panic!("{other:?}"),
        }
    }

    /// How long it suspects, from the first accusation, without the time it leaves to those who failed to reach it.
    fn suspects_us(&self, name: &str) -> u64 {
        let suspicion = self.swim.table.get(Nid::of(name)).unwrap().suspicion.as_ref().unwrap();
        let grace_us = if suspicion.verified { 0 } else { suspicion.grace_us };
        suspicion.deadline_us - suspicion.since_us - grace_us
    }
}

fn keys() -> KeyRing {
    KeyRing::new(&SecretKey::new(1, [7; 32]))
}

/// What is behind the head of a frame.
fn opened<T>(to: &str, frame: &[u8], read: impl FnOnce(Reader<'_>) -> T) -> T {
    let mut scratch = Vec::new();
    let opened = keys().open(Nid::of(to), 1, frame, &mut scratch).unwrap();
    let mut reader = Reader::new(opened.plain);
    assert!(reader.u64().is_some() && reader.varint().is_some());
    read(reader)
}

fn read(mut reader: Reader<'_>) -> Vec<Said> {
    let mut said = Vec::new();
    while let Some(message) = Message::next(&mut reader) {
        match message {
            Message::Ping { seq, .. } => said.push(Said::Ping(seq)),
            Message::Ack { seq } => said.push(Said::Ack(seq)),
            Message::Nack { seq } => said.push(Said::Nack(seq)),
            Message::PingReq { seq, target } => said.push(Said::PingReq(seq, target)),
            Message::Updates(mut updates) => {
                while let Some(u) = Update::read(&mut updates) {
                    said.push(Said::News(u.nid, u.incarnation, u.standing));
                }
            }
            _ => {}
        }
    }
    said
}

/// Hands every datagram of one to another.
fn carry(from: (&str, &mut Peer), to: (&str, &mut Peer)) {
    for (_, frame) in from.1.frames().into_iter().filter(|(name, _)| *name == to.0) {
        opened(to.0, &frame, |mut reader| {
            while let Some(message) = Message::next(&mut reader) {
                to.1.hear(from.0, message);
            }
        });
    }
}

#[test]
fn nack_a_helper_that_reaches_nobody_says_so_once_and_goes_on_waiting() {
    let mut helper = Peer::new("b");
    helper.hear("a", Message::PingReq { seq: 9, target: Nid::of("c") });
    let Some(Said::Ping(seq)) = helper.said_to("c").first().copied() else { panic!("no ping") };
    helper.pass(NACK_US - 1);
    assert_eq!(helper.said_to("a"), [], "there is time left");
    helper.pass(1);
    assert_eq!(helper.said_to("a"), [Said::Nack(9)]);
    helper.pass(PROBE_US / 2);
    assert_eq!(helper.said_to("a"), [], "once");
    helper.hear("c", Message::Ack { seq });
    assert_eq!(helper.said_to("a"), [Said::Ack(9)], "late is better than never");
    helper.hear("a", Message::PingReq { seq: 10, target: Nid::of("c") });
    helper.pass(NACK_US);
    assert!(helper.said_to("a").contains(&Said::Nack(10)));
    helper.pass(PROBE_US * 10);
    assert_eq!(helper.said_to("a"), [], "once, also in the end");
    assert!(helper.swim.relays.is_empty());
}

#[test]
fn nack_is_not_said_of_who_answers_and_at_once_of_who_is_unknown() {
    let mut helper = Peer::new("b");
    helper.hear("a", Message::PingReq { seq: 9, target: Nid::of("c") });
    let Some(Said::Ping(seq)) = helper.said_to("c").first().copied() else { panic!("no ping") };
    helper.hear("d", Message::Ack { seq });
    assert_eq!(helper.said_to("a"), [], "another's answer is none");
    helper.hear("c", Message::Ack { seq });
    assert_eq!(helper.said_to("a"), [Said::Ack(9)]);
    helper.pass(PROBE_US * 2);
    assert_eq!(helper.said_to("a"), []);
    helper.hear("a", Message::PingReq { seq: 10, target: Nid::of("nobody") });
    assert_eq!(helper.said_to("a"), [Said::Nack(10)]);
}

/// Probes `b`, which says nothing and answered after `rtt_us` so far. Of the helpers of either stage so many hear of it after
/// `way_us`, and the prober as long after each helper's nack. The health of the prober.
fn health_after(nacks: [usize; 2], way_us: u64, rtt_us: u32) -> u32 {
    let mut prober = Peer::new("a");
    prober.swim.table.touch(Nid::of("b")).unwrap().member.rtt_us = rtt_us;
    let seq = prober.probe("b");
    let end_us = prober.now_us + PROBE_US;
    let ask = Said::PingReq(seq, Nid::of("b"));
    let mut coming: Vec<(u64, &str)> = Vec::new();
    let mut stages = nacks.into_iter();
    while prober.now_us < end_us {
        let asked = prober.said().into_iter().filter(|(_, said)| said.contains(&ask));
        let helpers: Vec<&str> = asked.map(|(to, _)| to).collect();
        if !helpers.is_empty() {
            assert_eq!(helpers.len(), 3, "{helpers:?}");
            let nacking = stages.next().unwrap();
            for name in helpers.into_iter().take(nacking) {
                let mut helper = Peer::new(name);
                let from_us = helper.now_us;
                helper.hear("a", Message::PingReq { seq, target: Nid::of("b") });
                while helper.said_to("a").is_empty() {
                    helper.pass(1_000);
                }
                coming.push((prober.now_us + 2 * way_us + helper.now_us - from_us, name));
            }
            // Whom nobody asked, nobody counts.
            (0..3).for_each(|_| prober.hear("b", Message::Nack { seq }));
        }
        assert_eq!(prober.state("b"), State::Alive);
        prober.pass(1_000);
        let now_us = prober.now_us;
        for (_, name) in coming.extract_if(.., |(at_us, _)| *at_us <= now_us) {
            prober.hear(name, Message::Nack { seq });
        }
    }
    assert_eq!(stages.next(), None, "both stages");
    assert_eq!(prober.state("b"), State::Suspect, "it is suspected all the same");
    prober.swim.health()
}

#[test]
fn nack_who_hears_none_doubts_itself_and_who_hears_most_does_not() {
    for (nacks, health) in
        [([0, 0], 1), ([3, 0], 1), ([0, 3], 1), ([3, 1], 0), ([1, 3], 0), ([3, 3], 0)]
    {
        assert_eq!(health_after(nacks, 500, 0), health, "{nacks:?}");
    }
}

#[test]
fn nack_of_the_last_who_are_asked_comes_in_time() {
    for way_us in [0, 1_000, 10_000, 20_000, 24_000] {
        assert_eq!(health_after([3, 3], way_us, 0), 0, "{way_us} us each way");
    }
    assert_eq!(health_after([3, 3], 60_000, 0), 1, "this far from all helpers it may be us");
}

#[test]
fn nack_is_not_owed_by_who_was_asked_too_late_for_it() {
    // A slow target is waited for so long that the second stage begins just before the end.
    let slow_us = PROBE_US as u32;
    assert_eq!(health_after([2, 0], 500, slow_us), 0);
    assert_eq!(health_after([1, 0], 500, slow_us), 1);
}

#[test]
fn local_health_stretches_how_long_a_probe_waits() {
    for score in [0, 1, 3, 8, 20] {
        let mut prober = Peer::new("a");
        prober.swim.health.worse(score);
        let times = u64::from(score.min(8)) + 1;
        let seq = prober.probe("b");
        prober.pass(ACK_US * times - 1);
        assert_eq!(prober.said(), [], "score {score}: nobody is asked for help yet");
        prober.pass(1);
        assert!(prober.said().iter().any(|(_, s)| s.contains(&Said::PingReq(seq, Nid::of("b")))));
        prober.pass((PROBE_US - ACK_US) * times - 1);
        assert_eq!(prober.state("b"), State::Alive, "score {score}: it has time to answer");
        prober.pass(1);
        assert_eq!(prober.state("b"), State::Suspect);
    }
}

#[test]
fn local_health_recovers_by_answers_and_suffers_by_refuting() {
    let mut prober = Peer::new("a");
    prober.swim.health.worse(2);
    for left in [1, 0, 0] {
        let seq = prober.probe("b");
        prober.hear("b", Message::Ack { seq });
        assert_eq!(prober.swim.health(), left);
    }
    let accused = update("a", Standing::Suspect, Accusers::one(Nid::of("b")));
    prober.act(|swim, ctx| swim.apply(&accused, ctx));
    assert_eq!(prober.swim.health(), 1, "who is suspected asks why");
}

#[test]
fn suspicion_shrinks_with_each_confirmation_and_only_with_new_ones() {
    let timing = Timing::of(Profile::Lan);
    let (min_us, max_us) = (timing.suspicion_min_us, timing.suspicion_max_us);
    let mut peer = Peer::new("a");
    let mut accuse = |by: &str| {
        let suspect = update("b", Standing::Suspect, Accusers::one(Nid::of(by)));
        peer.act(|swim, ctx| swim.apply(&suspect, ctx));
        peer.suspects_us("b")
    };
    assert_eq!(accuse("c"), max_us);
    assert_eq!(accuse("c"), max_us, "the same accuser");
    // Lifeguard: max - (max - min) * ln(c) / ln(K); ln 2 / ln 3 is 0.6309.
    assert_eq!(accuse("d"), max_us - (max_us - min_us) * 631 / 1000);
    assert_eq!(accuse("e"), min_us);
    assert_eq!(accuse("x"), min_us, "a fourth changes nothing");
}

#[test]
fn suspicion_that_is_confirmed_ends_earlier() {
    // How long after its own failed probe somebody is declared dead, with so many others who say the same.
    let dies_us = |confirmed: &[&str]| {
        let mut peer = Peer::new("a");
        peer.probe("b");
        peer.pass(PROBE_US);
        let since_us = peer.now_us;
        for by in confirmed {
            let suspect = update("b", Standing::Suspect, Accusers::one(Nid::of(by)));
            peer.act(|swim, ctx| swim.apply(&suspect, ctx));
        }
        while peer.state("b") != State::Dead {
            peer.pass(1_000);
        }
        peer.now_us - since_us
    };
    let (alone, two, three) = (dies_us(&[]), dies_us(&["c"]), dies_us(&["c", "d"]));
    assert!(alone > two && two > three, "{alone} {two} {three}");
}

#[test]
fn buddy_a_suspect_is_told_in_the_ping_to_it_and_refutes_in_the_answer() {
    let (mut prober, mut suspect) = (Peer::new("a"), Peer::new("b"));
    let seq = prober.probe("b");
    prober.hear("b", Message::Ack { seq });
    let seq = prober.probe("b");
    prober.hear("b", Message::Ack { seq });
    let accused = update("b", Standing::Suspect, Accusers::one(Nid::of("c")));
    prober.act(|swim, ctx| swim.apply(&accused, ctx));
    prober.swim.probes.clear();
    // Also when the rumour has been told as often as rumours are.
    prober.quiet();
    assert!(prober.act(|swim, ctx| swim.probe(Nid::of("b"), ctx)));
    let ping = prober.said_to("b");
    let news = Said::News(Nid::of("b"), 0, Standing::Suspect);
    assert!(matches!(ping[..], [Said::Ping(_), n] if n == news), "one datagram: {ping:?}");
    // Again, to the suspect itself.
    prober.swim.probes.clear();
    assert!(prober.act(|swim, ctx| swim.probe(Nid::of("b"), ctx)));
    carry(("a", &mut prober), ("b", &mut suspect));
    assert_eq!(suspect.swim.table.me().incarnation, 1, "it refutes");
    assert_eq!(prober.state("b"), State::Suspect);
    carry(("b", &mut suspect), ("a", &mut prober));
    assert_eq!(prober.state("b"), State::Alive, "in the datagram with the ack");
    assert!(prober.swim.probes.is_empty());
}

#[test]
fn buddy_who_is_not_suspected_hears_nothing_of_it() {
    let mut prober = Peer::new("a");
    assert!(prober.act(|swim, ctx| swim.probe(Nid::of("b"), ctx)));
    assert!(matches!(prober.said_to("b")[..], [Said::Ping(_)]));
}

/// Hears that `b` is suspected by `c`, and lets the time of the suspicion pass. Everything that was sent to `b`.
fn hears_of_a_suspicion(word: Option<Standing>) -> (Peer, Vec<Said>) {
    let mut peer = Peer::new("a");
    let suspect = update("b", Standing::Suspect, Accusers::one(Nid::of("c")));
    peer.act(|swim, ctx| swim.apply(&suspect, ctx));
    // It may have been drawn to ask at once; that is not what this is about.
    peer.swim.probes.clear();
    peer.quiet();
    peer.pass(peer.suspects_us("b") + PROBE_US - 1);
    let mut said = peer.said_to("b");
    if let Some(standing) = word {
        let word = update("b", standing, Accusers::default());
        peer.act(|swim, ctx| swim.apply(&word, ctx));
    }
    peer.pass(PROBE_US + ACK_US);
    said.extend(peer.said_to("b"));
    (peer, said)
}

fn asks(said: &[Said]) -> bool {
    said.iter().any(|said| matches!(said, Said::Ping(_)))
}

#[test]
fn who_only_heard_of_a_suspicion_leaves_the_end_to_the_accuser() {
    let (peer, said) = hears_of_a_suspicion(Some(Standing::Dead));
    assert_eq!(peer.state("b"), State::Dead);
    assert!(!asks(&said), "{said:?}");
    // Of an accuser that is silent nobody waits for ever.
    let (mut peer, said) = hears_of_a_suspicion(None);
    assert!(asks(&said), "{said:?}");
    peer.pass(2 * PROBE_US);
    assert_eq!(peer.state("b"), State::Dead);
}

#[test]
fn a_rumour_of_death_is_asked_after_and_not_passed_on() {
    let mut peer = Peer::new("a");
    let dead = update("b", Standing::Dead, Accusers::default());
    peer.act(|swim, ctx| swim.apply(&dead, ctx));
    assert_eq!(peer.state("b"), State::Suspect);
    let mut said = peer.said();
    for _ in 0..100 {
        peer.pass(1_000);
        said.extend(peer.said());
    }
    let others = said.iter().filter(|(to, _)| *to != "b").flat_map(|(_, said)| said);
    let told = others.filter(|said| matches!(said, Said::News(nid, ..) if *nid == Nid::of("b")));
    assert_eq!(told.count(), 0, "{said:?}");
    // Nor does a comparison of views say it, and the member itself hears of it at once.
    peer.act(|swim, ctx| {
        ctx.net.push(dest("c"), crate::message::tag::UPDATES, |out| {
            swim.write_entry(Nid::of("b"), out);
        });
    });
    assert_eq!(peer.said_to("c"), [Said::News(Nid::of("b"), 0, Standing::Alive)]);
    peer.swim.probes.clear();
    assert!(peer.act(|swim, ctx| swim.probe(Nid::of("b"), ctx)));
    assert!(peer.said_to("b").contains(&Said::News(Nid::of("b"), 0, Standing::Suspect)));
    // Who does not answer is dead, and that is passed on.
    peer.pass(4 * PROBE_US);
    assert_eq!(peer.state("b"), State::Dead);
    let news = Said::News(Nid::of("b"), 0, Standing::Dead);
    assert!(peer.said().iter().any(|(to, said)| *to != "b" && said.contains(&news)));
}

#[test]
fn who_helps_to_reach_a_member_that_it_only_remembers_does_not_call_it_dead() {
    let mut helper = Peer::new("b");
    let past = helper.swim.table.get(Nid::of("c")).unwrap().member.info();
    helper.swim.table.remove(Nid::of("c"));
    helper.swim.remember(&past, 5);
    helper.hear("a", Message::PingReq { seq: 9, target: Nid::of("c") });
    let said = helper.said_to("c");
    assert!(matches!(said[..], [Said::Ping(_)]), "{said:?}");
}
