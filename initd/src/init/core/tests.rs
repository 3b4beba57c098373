//! PID 1's decisions, played through.

use proptest::prelude::*;

use super::*;

const SETTINGS: Settings = Settings {
    drain_ms: 30_000,
    grace_ms: 1_000,
    first_word_ms: None,
    kexec: true,
    trial_until_ms: None,
};

fn machine() -> Machine {
    let mut machine = Machine::new(1);
    for event in [Event::Configured(true)].into_iter().chain([Event::Done { ok: true }; 4]) {
        machine.step(0, event, &mut Vec::new());
    }
    machine
}

/// With the agent running as 7.
fn running(settings: Settings) -> Core {
    let mut c = Core::new(settings, machine(), Vec::new());
    assert_eq!(play(&mut c, 0, Input::Timer), [Output::Look]);
    assert_eq!(
        play(&mut c, 0, Input::Looked(Wanted::Full)),
        [Output::Spawn(Form::Full, String::new())]
    );
    let told = ToAgent::Phase { phase: Phase::Running, reason: String::new() };
    assert_eq!(play(&mut c, 0, Input::Spawned(7)), [Output::Tell(told)]);
    c
}

fn play(c: &mut Core, now: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    c.step(now, input, &mut out);
    out
}

fn report(phase: Phase, why: &str) -> Output {
    Output::Report(phase, why.into())
}

#[test]
fn an_orderly_end_drains_asks_kills_unmounts() {
    let mut c = running(SETTINGS);
    play(&mut c, 1, Input::Said(ToInit::Alive));
    let why = "a signal";
    let drain = ToAgent::Drain { within_ms: 30_000, power: Power::Reboot };
    assert_eq!(
        play(&mut c, 5, Input::Stop(Power::Reboot, why)),
        [report(Phase::Draining, why), Output::Tell(drain)]
    );
    assert_eq!(play(&mut c, 900, Input::Said(ToInit::Drained)), [Output::Signal(7, libc::SIGTERM)]);
    assert_eq!(play(&mut c, 901, Input::Said(ToInit::Drained)), [], "once");
    let ended = play(&mut c, 950, Input::AgentEnded("ended: code 0".into()));
    assert_eq!(ended[1..], [report(Phase::Killing, why), Output::EndAll { force: false }]);
    assert_eq!(
        play(&mut c, 960, Input::NobodyLeft),
        [report(Phase::Unmounting, why), Output::Unmount]
    );
    assert_eq!(
        play(&mut c, 970, Input::Unmounted),
        [report(Phase::Ended(Power::Reboot), why), Output::End(Power::Reboot)]
    );
    assert_eq!(c.next_deadline(), None);
}

#[test]
fn who_never_answers_is_asked_killed_and_left_behind() {
    let mut c = running(SETTINGS);
    play(&mut c, 1, Input::Said(ToInit::Alive));
    play(&mut c, 5, Input::Stop(Power::Off, "test"));
    let mut seen = Vec::new();
    for _ in 0..100 {
        let Some(at) = c.next_deadline() else { break };
        // It is alive, it just does not do what it is told.
        if c.phase() == Phase::Draining {
            play(&mut c, at, Input::Said(ToInit::Alive));
        }
        let out = play(&mut c, at, Input::Timer);
        seen.extend(out.into_iter().map(|o| (at, o)));
        let killed = seen.iter().any(|(_, o)| *o == Output::Signal(7, libc::SIGKILL));
        if killed && c.agent() == Some(7) && c.phase() == Phase::Draining {
            play(&mut c, at + 1, Input::AgentEnded("ended: signal 9".into()));
        }
    }
    let at = |wanted: &Output| seen.iter().find(|(_, o)| o == wanted).map(|(at, _)| *at);
    assert_eq!(at(&Output::Signal(7, libc::SIGTERM)), Some(30_005));
    assert_eq!(at(&Output::Signal(7, libc::SIGKILL)), Some(31_005));
    assert_eq!(at(&Output::EndAll { force: true }), Some(31_006 + TERM_MS));
    assert!(at(&Output::Unmount).is_some() && at(&Output::End(Power::Off)).is_some(), "{seen:?}");
}

#[test]
fn an_agent_that_cannot_be_asked_is_told_to_end() {
    let mut c = running(SETTINGS);
    let out = play(&mut c, 5, Input::Stop(Power::Off, "test"));
    assert_eq!(out[1..], [Output::Signal(7, libc::SIGTERM)]);
    assert_eq!(c.next_deadline(), Some(1005));
    assert_eq!(play(&mut c, 1005, Input::Timer), [Output::Signal(7, libc::SIGKILL)]);
    // Down: nothing to ask at all.
    let mut c = running(SETTINGS);
    play(&mut c, 1, Input::AgentEnded("ended: code 1".into()));
    let out = play(&mut c, 5, Input::Stop(Power::Off, "test"));
    assert!(out.contains(&Output::EndAll { force: false }), "{out:?}");
    // On its way.
    let mut c = Core::new(SETTINGS, machine(), Vec::new());
    play(&mut c, 0, Input::Timer);
    play(&mut c, 0, Input::Looked(Wanted::Full));
    assert_eq!(play(&mut c, 1, Input::Stop(Power::Off, "test")).len(), 1);
    assert_eq!(play(&mut c, 2, Input::Spawned(9)), [Output::Signal(9, libc::SIGTERM)]);
}

#[test]
fn a_second_wish_does_not_wait() {
    let mut c = running(SETTINGS);
    play(&mut c, 1, Input::Said(ToInit::Alive));
    play(&mut c, 5, Input::Stop(Power::Reboot, "test"));
    let out = play(&mut c, 6, Input::Stop(Power::Off, "again"));
    assert_eq!(out, [report(Phase::Killing, "test"), Output::EndAll { force: false }]);
    play(&mut c, 7, Input::AgentEnded("ended".into()));
    play(&mut c, 8, Input::NobodyLeft);
    assert!(play(&mut c, 9, Input::Unmounted).contains(&Output::End(Power::Off)));
}

#[test]
fn falls_show_as_degraded_then_maintenance_and_ready_mends() {
    let mut c = running(SETTINGS);
    let out = play(&mut c, 10, Input::AgentEnded("ended: code 1".into()));
    assert_eq!(
        out,
        [
            Output::Say("the agent ended: code 1".into()),
            report(Phase::Degraded, "the agent ended: code 1")
        ]
    );
    let at = c.next_deadline().expect("again");
    play(&mut c, at, Input::Timer);
    play(&mut c, at, Input::Looked(Wanted::Full));
    play(&mut c, at, Input::Spawned(8));
    assert_eq!(play(&mut c, at + 1, Input::Said(ToInit::Ready)), [report(Phase::Running, "")]);
    let mut out = Vec::new();
    for pid in 9..13 {
        out = play(&mut c, at + 2, Input::AgentEnded("ended: code 1".into()));
        let again = c.next_deadline().expect("again");
        play(&mut c, again, Input::Timer);
        let spawn = play(&mut c, again, Input::Looked(Wanted::Full));
        let form = if pid == 12 { Form::Maintenance } else { Form::Full };
        assert!(matches!(spawn.first(), Some(Output::Spawn(f, _)) if *f == form), "{spawn:?}");
        play(&mut c, again, Input::Spawned(pid));
    }
    let why = "the agent fell 5 times in 60 s; last, it ended: code 1";
    assert!(out.contains(&report(Phase::Maintenance, why)), "{out:?}");
    let retry = play(&mut c, 9_000, Input::Said(ToInit::Retry));
    assert_eq!(retry, [Output::Signal(12, libc::SIGTERM)]);
}

#[test]
fn a_silent_agent_is_killed_with_a_line() {
    let mut c = running(SETTINGS);
    play(&mut c, 1, Input::Said(ToInit::Ready));
    play(&mut c, 8_001, Input::Timer);
    assert!(c.is_fresh(10_001));
    let out = play(&mut c, 10_005, Input::Timer);
    assert_eq!(
        out,
        [
            Output::Say("the agent is silent: killed".into()),
            report(Phase::Degraded, "the agent hung and was killed"),
            Output::Signal(7, libc::SIGKILL)
        ]
    );
    assert!(c.is_fresh(13_001) && !c.is_fresh(13_002));
}

#[test]
fn a_kernel_is_loaded_first_and_a_refusal_changes_nothing() {
    let mut c = running(SETTINGS);
    let kexec = || Input::Said(ToInit::Kexec("/k".into()));
    assert_eq!(play(&mut c, 1, kexec()), [Output::LoadKernel("/k".into())]);
    let refused = |why: &str| Output::Tell(ToAgent::Refused { reason: why.into() });
    assert_eq!(play(&mut c, 2, kexec()), [refused("a kernel is being loaded")]);
    let out = play(&mut c, 3, Input::Loaded(Err("no cmdline".into())));
    assert_eq!(out[1..], [refused("no cmdline")]);
    assert_eq!(c.phase(), Phase::Running);
    play(&mut c, 4, kexec());
    let out = play(&mut c, 5, Input::Loaded(Ok(())));
    assert_eq!(out[0], report(Phase::Draining, "a new kernel is loaded"));
    let Some(Output::Tell(ToAgent::Drain { power: Power::Kexec, .. })) = out.get(1) else {
        panic!("{out:?}")
    };
    assert_eq!(play(&mut c, 6, kexec()), [refused("the machine is going down")]);
    let mut c = running(Settings { kexec: false, ..SETTINGS });
    assert_eq!(play(&mut c, 1, kexec()), [refused("this is no machine of its own")]);
}

#[test]
fn a_kernel_on_trial_is_kept_or_left() {
    let on_trial = Settings { trial_until_ms: Some(60_000), ..SETTINGS };
    let mut c = running(on_trial);
    assert_eq!(c.next_deadline(), Some(60_000));
    let out = play(&mut c, 60_000, Input::Timer);
    assert!(out.contains(&report(Phase::Draining, "the kernel on trial was not kept")), "{out:?}");
    let mut c = running(on_trial);
    play(&mut c, 1_000, Input::Said(ToInit::Kept));
    // Later deadlines are the agent's.
    assert_eq!(c.next_deadline(), Some(9_000));
}

#[test]
fn a_node_without_configuration_waits_for_one() {
    let mut c = Core::new(SETTINGS, machine(), Vec::new());
    play(&mut c, 0, Input::Timer);
    let out = play(&mut c, 0, Input::Looked(Wanted::Nothing));
    assert_eq!(out, [report(Phase::Maintenance, "no configuration of a node")]);
    assert_eq!(c.next_deadline(), Some(300_000));
    play(&mut c, 300_000, Input::Timer);
    let out = play(&mut c, 300_000, Input::Looked(Wanted::Full));
    assert!(out.contains(&report(Phase::Running, "")), "{out:?}");
}

#[test]
fn an_address_that_comes_late_mends_what_it_can() {
    let mut machine = Machine::new(1);
    for ok in [true, true, false] {
        machine.step(0, Event::Done { ok }, &mut Vec::new());
    }
    machine.step(0, Event::Configured(true), &mut Vec::new());
    machine.step(0, Event::Done { ok: false }, &mut Vec::new());
    let faults = ["net-up: no address", "state: vda is full"].map(str::to_owned).to_vec();
    let mut c = Core::new(SETTINGS, machine, faults);
    assert_eq!(
        (c.phase(), c.reason()),
        (Phase::Degraded, "net-up: no address; state: vda is full".into())
    );
    assert_eq!(play(&mut c, 1, Input::Mended(Phase::NetUp)), []);
    assert_eq!(c.reason(), "state: vda is full");
    assert_eq!(play(&mut c, 2, Input::Mended(Phase::State)), [report(Phase::Running, "")]);
}

proptest! {
    /// Whatever comes in whatever order, a machine that is told to end ends, and by then.
    #[test]
    fn the_way_down_always_ends(inputs in prop::collection::vec((0u8..12, 0u64..20_000), 0..60)) {
        let mut c = running(SETTINGS);
        let mut now = 0;
        for (which, later) in inputs {
            now += later;
            let input = match which {
                0 => Input::Looked(Wanted::Full),
                1 => Input::Spawned(8),
                2 => Input::SpawnFailed("no memory".into()),
                3 => Input::AgentEnded("ended".into()),
                4 => Input::Said(ToInit::Alive),
                5 => Input::Said(ToInit::Ready),
                6 => Input::Said(ToInit::Drained),
                7 => Input::Said(ToInit::Retry),
                8 => Input::Loaded(Err("x".into())),
                9 => Input::Said(ToInit::Kexec("/k".into())),
                10 => Input::NobodyLeft,
                _ => Input::Timer,
            };
            play(&mut c, now, input);
        }
        let start = now;
        let mut ended = play(&mut c, now, Input::Stop(Power::Off, "test")).contains(&Output::End(Power::Off));
        for _ in 0..1000 {
            if ended {
                break;
            }
            let Some(at) = c.next_deadline() else { break };
            now = now.max(at);
            ended = play(&mut c, now, Input::Timer).contains(&Output::End(Power::Off));
        }
        prop_assert!(ended, "{c:?}");
        prop_assert!(now - start <= 30_000 + 1_000 + DRAIN_MARGIN_MS + 60_000, "{}", now - start);
    }
}
