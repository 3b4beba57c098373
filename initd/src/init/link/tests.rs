//! The link's words, and that neither side ever waits.

use proptest::prelude::*;

use super::*;

fn power() -> impl Strategy<Value = Power> {
    prop::sample::select(vec![Power::Off, Power::Reboot, Power::Halt, Power::Kexec])
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::*;
    let still = [
        Early,
        Coldplug,
        NetUp,
        State,
        Running,
        Degraded,
        Maintenance,
        Draining,
        Killing,
        Unmounting,
    ];
    prop_oneof![prop::sample::select(still.to_vec()), power().prop_map(Ended)]
}

fn to_init() -> impl Strategy<Value = ToInit> {
    prop_oneof![
        Just(ToInit::Alive),
        Just(ToInit::Ready),
        Just(ToInit::Drained),
        Just(ToInit::Kept),
        Just(ToInit::Retry),
        power().prop_filter("needs a directory", |p| *p != Power::Kexec).prop_map(ToInit::Power),
        "/[^\\p{Cc}]{0,100}".prop_map(|dir| ToInit::Kexec(dir.into())),
    ]
}

fn to_agent() -> impl Strategy<Value = ToAgent> {
    prop_oneof![
        (phase(), any::<String>()).prop_map(|(phase, reason)| ToAgent::Phase { phase, reason }),
        (any::<u32>(), power()).prop_map(|(within_ms, power)| ToAgent::Drain { within_ms, power }),
        ".*".prop_map(|reason| ToAgent::Refused { reason }),
    ]
}

/// A reason may lose what does not fit on a line, nothing else.
fn as_said(message: ToAgent) -> ToAgent {
    match message {
        ToAgent::Phase { phase, reason } => ToAgent::Phase { phase, reason: reason_line(&reason) },
        ToAgent::Refused { reason } => ToAgent::Refused { reason: reason_line(&reason) },
        drain @ ToAgent::Drain { .. } => drain,
    }
}

proptest! {
    #[test]
    fn the_agents_words_come_back(message in to_init()) {
        prop_assert_eq!(ToInit::parse(message.to_string().as_bytes()), Ok(message));
    }

    #[test]
    fn pid_1s_words_come_back(message in to_agent()) {
        let text = message.to_string();
        prop_assert!(text.len() <= PACKET_BYTES_MAX);
        prop_assert_eq!(ToAgent::parse(text.as_bytes()), Ok(as_said(message)));
    }

    #[test]
    fn any_bytes_are_a_message_that_says_the_same_again_or_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..1200)
    ) {
        if let Ok(message) = ToInit::parse(&bytes) {
            prop_assert_eq!(message.to_string().into_bytes(), bytes.clone());
        }
        if let Ok(message) = ToAgent::parse(&bytes) {
            prop_assert_eq!(ToAgent::parse(message.to_string().as_bytes()), Ok(message));
        }
    }
}

#[test]
fn the_words_are_these() {
    let drain = ToAgent::Drain { within_ms: 30_000, power: Power::Off };
    assert_eq!(drain.to_string(), "drain 30000 off");
    let phase = ToAgent::Phase { phase: Phase::NetUp, reason: " no\naddress ".into() };
    assert_eq!(phase.to_string(), "phase net-up no address");
    let phase = ToAgent::Phase { phase: Phase::Ended(Power::Kexec), reason: String::new() };
    assert_eq!(phase.to_string(), "phase kexec");
    assert_eq!(ToInit::Power(Power::Off).to_string(), "power off");
    assert_eq!(ToInit::Kexec("/run/k".into()).to_string(), "kexec /run/k");
}

#[test]
fn what_is_wrong_is_refused() {
    for packet in [
        &b""[..],
        b"alive now",
        b"Alive",
        b"alive\n",
        b"power",
        b"power kexec",
        b"power on",
        b"kexec",
        b"kexec boot/new",
        b"kexec /a\0b",
        b"\xff",
        &[b'a'; PACKET_BYTES_MAX + 1],
    ] {
        assert!(ToInit::parse(packet).is_err(), "{packet:?}");
    }
    for packet in [
        "drain",
        "drain 5",
        "drain -1 off",
        "drain 5000000000 off",
        "drain 5 on",
        "phase",
        "phase up",
    ] {
        assert!(ToAgent::parse(packet.as_bytes()).is_err(), "{packet}");
    }
}

#[test]
fn both_ends_speak_and_see_the_end() {
    let (mut init, agent) = InitEnd::pair().expect("pair");
    assert_eq!(agent.receive(), Ok(None));
    assert_eq!(init.receive(), Ok(None));
    assert_eq!(agent.send(&ToInit::Ready), Ok(true));
    assert_eq!(init.receive(), Ok(Some(ToInit::Ready)));
    let message = ToAgent::Drain { within_ms: 1, power: Power::Reboot };
    init.send(&message);
    drop(init);
    assert_eq!(agent.receive(), Ok(Some(message)));
    let end = agent.receive().expect_err("the end");
    assert_eq!(end.errno(), Some(libc::EPIPE));
    assert_eq!(agent.send(&ToInit::Alive).expect_err("the end").errno(), Some(libc::EPIPE));
}

#[test]
fn a_full_queue_drops_and_counts_and_a_long_packet_is_refused() {
    let (mut init, agent) = InitEnd::pair().expect("pair");
    let message = ToAgent::Phase { phase: Phase::Degraded, reason: "x".repeat(2000) };
    let mut sent = 0;
    while init.dropped == 0 && sent < 1_000_000 {
        init.send(&message);
        sent += 1;
    }
    assert_eq!(init.dropped, 1, "after {sent}");
    init.send(&message);
    assert_eq!(init.dropped, 2);
    assert!(matches!(agent.receive(), Ok(Some(ToAgent::Phase { .. }))));

    let long = [b'a'; PACKET_BYTES_MAX + 1];
    send(&agent.0, &long, SendFlags::empty()).expect("send");
    agent.send(&ToInit::Alive).expect("send");
    assert!(init.receive().is_err(), "cut packets are no messages");
    assert_eq!(init.receive(), Ok(Some(ToInit::Alive)));
    let dir = PathBuf::from(format!("/{}", "d".repeat(PACKET_BYTES_MAX)));
    assert!(agent.send(&ToInit::Kexec(dir)).is_err());
}
