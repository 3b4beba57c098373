//! The client against honest and hostile servers, on virtual time.

use super::*;
use proptest::prelude::*;

/// The day the image was made: 2025-11-13.
const FLOOR_S: i64 = 1_763_000_000;
const NOW: i64 = (FLOOR_S + 1_000_000) * 1_000_000;

fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 123))
}

fn ntp(unix_us: i64) -> u64 {
    let seconds = unix_us.div_euclid(1_000_000) + NTP_EPOCH_S;
    let fraction = (unix_us.rem_euclid(1_000_000) as u64) << 32;
    (seconds as u64) << 32 | fraction.div_ceil(1_000_000)
}

/// An honest answer at `time_us`.
fn honest(ask: &Ask, time_us: i64) -> [u8; PACKET_BYTES] {
    let mut packet = [0; PACKET_BYTES];
    packet[0] = 4 << 3 | 4;
    packet[1] = 2;
    packet[24..32].copy_from_slice(&ask.packet[40..]);
    packet[32..40].copy_from_slice(&ntp(time_us).to_be_bytes());
    packet[40..48].copy_from_slice(&ntp(time_us).to_be_bytes());
    packet
}

fn kiss(packet: &mut [u8; PACKET_BYTES], code: &[u8; 4]) {
    packet[1] = 0;
    packet[12..16].copy_from_slice(code);
}

fn ask(client: &mut Client, now_us: &mut u64, wall_us: i64) -> Ask {
    for nonce in 77.. {
        *now_us = (*now_us).max(client.next_deadline().unwrap());
        if let Some(ask) = client.timer(*now_us, wall_us, nonce) {
            return ask;
        }
    }
    unreachable!()
}

#[test]
fn a_wrong_clock_is_stepped_before_running_and_doubted_later() {
    let (mut client, mut now) = (Client::new(&[server(1)], FLOOR_S, 0), 0);
    let first = ask(&mut client, &mut now, 0);
    assert_eq!(first.server, server(1));
    // 20 ms there and 20 ms back.
    let got = client.answer(now + 40_000, server(1), &honest(&first, NOW + 20_000), true);
    assert_eq!(got, Ok(Deed::Step { offset_us: NOW }));
    assert!(client.is_synced());

    let second = ask(&mut client, &mut now, NOW);
    assert!(now >= 64_000_000);
    let hour = 3_600_000_000;
    let got = client.answer(now, server(1), &honest(&second, NOW + hour), true);
    assert_eq!(got, Ok(Deed::Doubt { offset_us: hour }));
    let third = ask(&mut client, &mut now, NOW);
    let got = client.answer(now, server(1), &honest(&third, NOW - hour), false);
    assert_eq!(got, Ok(Deed::Doubt { offset_us: -hour }), "two that disagree");
    let fourth = ask(&mut client, &mut now, NOW);
    let got = client.answer(now, server(1), &honest(&fourth, NOW - hour + 5), false);
    let Ok(Deed::Step { offset_us }) = got else { panic!("{got:?}") };
    assert!((offset_us + hour - 5).abs() <= 1, "{offset_us}");
}

#[test]
fn a_good_clock_is_slewed_and_asked_about_less_and_less() {
    let (mut client, mut now) = (Client::new(&[server(1)], FLOOR_S, 0), 0);
    let mut pauses = Vec::new();
    for _ in 0..7 {
        let before = now;
        let question = ask(&mut client, &mut now, NOW);
        pauses.push((now - before) / 1_000_000);
        let deed = client.answer(now, server(1), &honest(&question, NOW + 3000), false).unwrap();
        assert!(matches!(deed, Deed::Slew { offset_us: 3000, .. }), "{deed:?}");
    }
    assert_eq!(pauses, [0, 128, 256, 512, 1024, 1024, 1024]);
    let question = ask(&mut client, &mut now, NOW);
    let deed = client.answer(now, server(1), &honest(&question, NOW + 400_000), false);
    assert_eq!(deed, Ok(Deed::Slew { offset_us: 400_000, poll_exp: POLL_EXP_MIN }));
}

#[test]
fn hostile_and_useless_answers_are_refused_by_reason() {
    type Damage = fn(&mut [u8; PACKET_BYTES]);
    let cases: [(&str, Refusal, Damage); 17] = [
        ("wrong echo", Refusal::Unasked, |p| p[31] ^= 1),
        ("client mode", Refusal::Form, |p| p[0] = 4 << 3 | 3),
        ("broadcast mode", Refusal::Form, |p| p[0] = 4 << 3 | 5),
        ("version 1", Refusal::Form, |p| p[0] = 1 << 3 | 4),
        ("alarm", Refusal::Unsynchronised, |p| p[0] |= 3 << 6),
        ("stratum 16", Refusal::Unsynchronised, |p| p[1] = 16),
        ("kiss INIT", Refusal::Unsynchronised, |p| p[1] = 0),
        ("kiss DENY", Refusal::Denied, |p| kiss(p, b"DENY")),
        ("kiss RSTR", Refusal::Denied, |p| kiss(p, b"RSTR")),
        ("kiss RATE", Refusal::Rate, |p| kiss(p, b"RATE")),
        ("no transmit time", Refusal::Unsynchronised, |p| p[40..48].fill(0)),
        ("root delay", Refusal::Distance, |p| p[5] = 4),
        ("root dispersion", Refusal::Distance, |p| p[8] = 255),
        ("before it received", Refusal::Delay, |p| p[32] ^= 1),
        ("held for a minute", Refusal::Delay, |p| {
            let at = ntp(NOW - 60_000_000).to_be_bytes();
            p[32..40].copy_from_slice(&at);
        }),
        ("1999", Refusal::Implausible, |p| {
            for at in [32, 40] {
                p[at..at + 8].copy_from_slice(&ntp(946_684_799_000_000).to_be_bytes());
            }
        }),
        ("in 40 years", Refusal::Implausible, |p| {
            let later = ntp(NOW + 2 * HORIZON_US).to_be_bytes();
            p[32..40].copy_from_slice(&later);
            p[40..48].copy_from_slice(&later);
        }),
    ];
    for (what, why, damage) in cases {
        let (mut client, mut now) = (Client::new(&[server(1), server(2)], FLOOR_S, 0), 0);
        let question = ask(&mut client, &mut now, NOW);
        let mut packet = honest(&question, NOW);
        damage(&mut packet);
        assert_eq!(client.answer(now, server(1), &packet, true), Err(why), "{what}");
        if why == Refusal::Unasked {
            let good = honest(&question, NOW);
            assert!(client.answer(now, server(1), &good, true).is_ok(), "the question stands");
        } else {
            assert!(!client.is_synced(), "{what}");
            assert_eq!(ask(&mut client, &mut now, NOW).server, server(2), "{what}");
        }
    }
}

#[test]
fn strangers_short_packets_and_late_ones_are_nothing() {
    let (mut client, mut now) = (Client::new(&[server(1)], FLOOR_S, 0), 0);
    assert_eq!(client.answer(0, server(1), &[0; 48], true), Err(Refusal::Unasked));
    let question = ask(&mut client, &mut now, NOW);
    let packet = honest(&question, NOW);
    assert_eq!(client.answer(now, server(9), &packet, true), Err(Refusal::Unasked));
    for len in 0..PACKET_BYTES {
        assert_eq!(client.answer(now, server(1), &packet[..len], true), Err(Refusal::Unasked));
    }
    let late = now + ANSWER_US + 1;
    assert_eq!(client.answer(late, server(1), &packet, true), Err(Refusal::Delay));
    assert_eq!(client.answer(late, server(1), &packet, true), Err(Refusal::Unasked), "a replay");
}

#[test]
fn silent_servers_take_turns_and_one_that_denies_is_left_alone() {
    let (mut client, mut now) = (Client::new(&[server(1), server(2)], FLOOR_S, 0), 0);
    let mut asked = Vec::new();
    while now < 60_000_000 {
        asked.push(ask(&mut client, &mut now, NOW).server);
    }
    assert!(asked.windows(2).all(|two| two[0] != two[1]), "{asked:?}");
    assert!((6..=14).contains(&asked.len()), "{} questions in a minute", asked.len());
    for _ in 0..2 {
        let question = ask(&mut client, &mut now, NOW);
        let mut packet = honest(&question, NOW);
        kiss(&mut packet, b"DENY");
        assert_eq!(client.answer(now, question.server, &packet, true), Err(Refusal::Denied));
    }
    assert_eq!(client.next_deadline(), None);
    assert_eq!(client.timer(u64::MAX, NOW, 1), None);
}

#[test]
fn the_seconds_wrap_in_2036() {
    let wrap = (1i64 << 32) - NTP_EPOCH_S;
    let after = (wrap + 100) * 1_000_000;
    assert_eq!(unix_us(100 << 32, FLOOR_S * 1_000_000), after);
    assert_eq!(unix_us(ntp(NOW), FLOOR_S * 1_000_000), NOW);
}

#[test]
fn nobody_to_ask() {
    let mut client = Client::new(&[], FLOOR_S, 0);
    assert_eq!(client.next_deadline(), None);
    assert_eq!(client.timer(5, NOW, 1), None);
}

proptest! {
    #[test]
    fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..100), wall: i64, took in 0u64..3_000_000) {
        let (mut client, mut now) = (Client::new(&[server(1)], FLOOR_S, 0), 0);
        let question = ask(&mut client, &mut now, wall);
        let mut packet = bytes;
        if packet.len() >= 32 {
            packet[24..32].copy_from_slice(&question.packet[40..]);
        }
        let _ = client.answer(now + took, server(1), &packet, true);
    }

    #[test]
    fn an_honest_answer_over_an_even_path_is_exact(off in -400_000i64..400_000, way in 0u64..400_000) {
        let (mut client, mut now) = (Client::new(&[server(1)], FLOOR_S, 0), 0);
        let question = ask(&mut client, &mut now, NOW);
        let there = NOW + off + i64::try_from(way).unwrap();
        let deed = client.answer(now + 2 * way, server(1), &honest(&question, there), false);
        let Ok(Deed::Slew { offset_us, .. }) = deed else { panic!("{deed:?}") };
        prop_assert!((offset_us - off).abs() <= 2, "{offset_us} for {off}");
    }
}
