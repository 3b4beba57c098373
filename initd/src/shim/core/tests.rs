//! Pods on virtual time.

use super::*;
use crate::pod::{Backoff, Check, Stop};

const OK: Exit = Exit { code: Some(0), signal: None, oom: false };
const BAD: Exit = Exit { code: Some(1), signal: None, oom: false };
const MS: u64 = 1000;

fn pod(containers: Vec<ContainerSpec>) -> Supervisor {
    Supervisor::new(&PodSpec { containers, ..PodSpec::new("p", "/p") })
}

fn main_container(restart: Restart) -> ContainerSpec {
    ContainerSpec {
        restart,
        backoff: Backoff { first_ms: 100, max_ms: 1000, reset_ms: 10_000 },
        stop: Stop { signal: 15, grace_ms: 500 },
        ..ContainerSpec::new("c", "/r", ["x"])
    }
}

fn kind(kind: Kind, restart: Restart) -> ContainerSpec {
    ContainerSpec { kind, ..main_container(restart) }
}

fn step(s: &mut Supervisor, now_us: u64, input: Input) -> Vec<Output> {
    let mut out = Vec::new();
    s.step(now_us, input, &mut out);
    out
}

#[test]
fn a_container_without_probe_is_ready_when_it_runs() {
    let mut s = pod(vec![main_container(Restart::Always)]);
    assert_eq!(step(&mut s, 0, Input::Start), [Output::Launch(0)]);
    assert_eq!(s.phase(), PodPhase::Starting);
    let ready = Output::Ready { container: 0, ready: true, pod_ready: true };
    assert_eq!(step(&mut s, 5, Input::Started(0)), [Output::Started(0), ready]);
    assert_eq!(s.phase(), PodPhase::Running);
    assert!(s.pod_ready());
    assert_eq!(s.next_deadline(), None);
}

#[test]
fn backoff_doubles_is_capped_and_starts_over_after_a_long_run() {
    let mut s = pod(vec![main_container(Restart::Always)]);
    step(&mut s, 0, Input::Start);
    let mut now = 0;
    let mut waits = Vec::new();
    for _ in 0..6 {
        step(&mut s, now, Input::Started(0));
        let out = step(&mut s, now, Input::Exited(0, OK));
        let Some(Output::Exited { restart_in_ms: Some(ms), .. }) = out.last() else {
            panic!("{out:?}")
        };
        waits.push(*ms);
        assert_eq!(step(&mut s, now + u64::from(*ms) * MS - 1, Input::Timer), []);
        now += u64::from(*ms) * MS;
        assert_eq!(s.next_deadline(), Some(now));
        assert_eq!(step(&mut s, now, Input::Timer), [Output::Launch(0)]);
    }
    assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    step(&mut s, now, Input::Started(0));
    now += 10_000 * MS;
    let out = step(&mut s, now, Input::Exited(0, BAD));
    assert!(matches!(out.last(), Some(Output::Exited { restart_in_ms: Some(100), .. })), "{out:?}");
    assert_eq!(s.restarts(0), 6);
}

#[test]
fn policies() {
    for (restart, exit, again) in [
        (Restart::Always, OK, true),
        (Restart::Always, BAD, true),
        (Restart::OnFailure, OK, false),
        (Restart::OnFailure, BAD, true),
        (Restart::OnFailure, Exit { oom: true, ..OK }, true),
        (Restart::Never, BAD, false),
    ] {
        let mut s = pod(vec![main_container(restart)]);
        step(&mut s, 0, Input::Start);
        step(&mut s, 0, Input::Started(0));
        let out = step(&mut s, 0, Input::Exited(0, exit));
        assert_eq!(!out.contains(&Output::Stopped), again, "{restart:?} {exit:?} {out:?}");
    }
}

#[test]
fn a_failed_launch_is_tried_again_unless_never() {
    let mut s = pod(vec![main_container(Restart::OnFailure)]);
    step(&mut s, 0, Input::Start);
    let out = step(&mut s, 0, Input::LaunchFailed(0));
    assert_eq!(out, [Output::Failed { container: 0, retry_in_ms: Some(100) }]);
    let mut s = pod(vec![main_container(Restart::Never)]);
    step(&mut s, 0, Input::Start);
    let out = step(&mut s, 0, Input::LaunchFailed(0));
    assert_eq!(out, [Output::Failed { container: 0, retry_in_ms: None }, Output::Stopped]);
}

#[test]
fn stop_signals_then_kills_and_does_not_restart() {
    let mut s = pod(vec![main_container(Restart::Always)]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    let out = step(&mut s, 0, Input::Stop { grace_ms: None });
    let unready = Output::Ready { container: 0, ready: true, pod_ready: false };
    assert_eq!(out, [Output::Signal(0, 15), unready]);
    assert_eq!(s.next_deadline(), Some(500 * MS));
    let deaf = Output::Deaf { container: 0, grace_ms: 500 };
    assert_eq!(step(&mut s, 500 * MS, Input::Timer), [deaf, Output::Kill(0)]);
    assert_eq!(step(&mut s, 1500 * MS, Input::Timer), [Output::Kill(0)]);
    let out = step(&mut s, 1501 * MS, Input::Exited(0, BAD));
    assert_eq!(out.last(), Some(&Output::Stopped));
    assert_eq!(s.phase(), PodPhase::Stopped);
    assert_eq!(step(&mut s, 9999 * MS, Input::Stop { grace_ms: Some(0) }), []);
}

#[test]
fn a_second_stop_may_be_shorter_not_longer() {
    let mut s = pod(vec![main_container(Restart::Always)]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    step(&mut s, 0, Input::Stop { grace_ms: Some(5000) });
    step(&mut s, 10, Input::Stop { grace_ms: Some(9000) });
    assert_eq!(s.next_deadline(), Some(5000 * MS));
    step(&mut s, 20, Input::Stop { grace_ms: Some(1) });
    let deaf = Output::Deaf { container: 0, grace_ms: 1 };
    assert_eq!(step(&mut s, 20 + MS, Input::Timer), [deaf, Output::Kill(0)]);
}

#[test]
fn stop_while_starting_kills_and_while_waiting_is_done() {
    let mut s = pod(vec![main_container(Restart::Always)]);
    step(&mut s, 0, Input::Start);
    assert_eq!(step(&mut s, 0, Input::Stop { grace_ms: None }), [Output::Kill(0)]);
    // The program came up in the same moment: it still ends, and is not announced.
    assert_eq!(step(&mut s, 0, Input::Started(0)), []);
    assert!(step(&mut s, 1, Input::Exited(0, BAD)).contains(&Output::Stopped));

    let mut s = pod(vec![main_container(Restart::Always)]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::LaunchFailed(0));
    assert_eq!(step(&mut s, 1, Input::Stop { grace_ms: None }), [Output::Stopped]);
}

#[test]
fn init_then_sidecar_then_mains_and_back() {
    let mut s = pod(vec![
        kind(Kind::Init, Restart::OnFailure),
        kind(Kind::Sidecar, Restart::Always),
        kind(Kind::Main, Restart::Never),
        kind(Kind::Init, Restart::Always),
        kind(Kind::Sidecar, Restart::Always),
        kind(Kind::Main, Restart::Never),
    ]);
    assert_eq!(step(&mut s, 0, Input::Start), [Output::Launch(0)]);
    step(&mut s, 0, Input::Started(0));
    let out = step(&mut s, 0, Input::Exited(0, BAD));
    assert!(matches!(out.last(), Some(Output::Exited { restart_in_ms: Some(100), .. })));
    assert_eq!(step(&mut s, 100 * MS, Input::Timer), [Output::Launch(0)]);
    step(&mut s, 100 * MS, Input::Started(0));
    assert_eq!(step(&mut s, 101 * MS, Input::Exited(0, OK)).last(), Some(&Output::Launch(1)));
    assert_eq!(step(&mut s, 102 * MS, Input::Started(1)).last(), Some(&Output::Launch(3)));
    step(&mut s, 103 * MS, Input::Started(3));
    assert_eq!(step(&mut s, 104 * MS, Input::Exited(3, OK)).last(), Some(&Output::Launch(4)));
    let out = step(&mut s, 105 * MS, Input::Started(4));
    assert_eq!(out[out.len() - 2..], [Output::Launch(2), Output::Launch(5)]);
    step(&mut s, 106 * MS, Input::Started(2));
    assert!(!s.pod_ready());
    step(&mut s, 106 * MS, Input::Started(5));
    assert!(s.pod_ready());
    // One main ends: the pod goes on. The other: sidecars are stopped, last first, one after the other.
    step(&mut s, 200 * MS, Input::Exited(2, OK));
    assert_eq!(s.phase(), PodPhase::Running);
    let out = step(&mut s, 201 * MS, Input::Exited(5, OK));
    assert_eq!(out.last(), Some(&Output::Signal(4, 15)));
    let out = step(&mut s, 202 * MS, Input::Exited(4, OK));
    assert_eq!(out.last(), Some(&Output::Signal(1, 15)));
    assert_eq!(step(&mut s, 203 * MS, Input::Exited(1, OK)).last(), Some(&Output::Stopped));
}

#[test]
fn an_init_container_that_fails_for_good_ends_the_pod() {
    let mut s = pod(vec![
        kind(Kind::Sidecar, Restart::Always),
        kind(Kind::Init, Restart::Never),
        main_container(Restart::Always),
    ]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    step(&mut s, 0, Input::Started(1));
    let out = step(&mut s, 1, Input::Exited(1, BAD));
    assert_eq!(out.last(), Some(&Output::Signal(0, 15)));
    assert_eq!(step(&mut s, 2, Input::Exited(0, OK)).last(), Some(&Output::Stopped));
}

fn probed(ready: bool) -> ContainerSpec {
    let probe = Some(Probe {
        every_ms: 100,
        timeout_ms: 50,
        start_grace_ms: 0,
        failures: 2,
        successes: 1,
        check: Check::Tcp { port: 1 },
    });
    let mut c = main_container(Restart::OnFailure);
    if ready {
        c.ready = probe
    } else {
        c.live = probe
    }
    c
}

#[test]
fn readiness_is_asked_eagerly_and_turns_by_streaks() {
    let mut s = pod(vec![probed(true)]);
    step(&mut s, 0, Input::Start);
    let out = step(&mut s, 0, Input::Started(0));
    assert_eq!(out, [Output::Started(0), Output::Check(0, Which::Ready)]);
    let mut asked = Vec::new();
    for _ in 0..6 {
        let now = s.next_deadline().expect("a check").min(1_000_000);
        let t = now - 50 * MS; // answered at once
        step(&mut s, t, Input::Checked(0, Which::Ready, false));
        let next = s.next_deadline().expect("the next");
        asked.push((next - t) / MS);
        assert_eq!(step(&mut s, next, Input::Timer), [Output::Check(0, Which::Ready)]);
    }
    assert_eq!(asked, [10, 20, 40, 80, 100, 100]);
    let t = s.next_deadline().expect("timeout") - 50 * MS;
    let ready = |r| Output::Ready { container: 0, ready: r, pod_ready: r };
    assert_eq!(step(&mut s, t, Input::Checked(0, Which::Ready, true)), [ready(true)]);
    assert_eq!(s.next_deadline(), Some(t + 100 * MS));
    // Two timeouts in a row.
    assert_eq!(step(&mut s, t + 100 * MS, Input::Timer), [Output::Check(0, Which::Ready)]);
    assert_eq!(step(&mut s, t + 150 * MS, Input::Timer), [Output::CancelCheck(0, Which::Ready)]);
    assert_eq!(step(&mut s, t + 250 * MS, Input::Timer), [Output::Check(0, Which::Ready)]);
    let out = step(&mut s, t + 300 * MS, Input::Timer);
    assert_eq!(out, [Output::CancelCheck(0, Which::Ready), ready(false)]);
    // A late answer to a cancelled check says nothing.
    assert_eq!(step(&mut s, t + 301 * MS, Input::Checked(0, Which::Ready, true)), []);
}

#[test]
fn a_container_that_is_not_alive_is_stopped_and_started_again_as_a_failure() {
    let mut s = pod(vec![probed(false)]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    let mut now = 100 * MS;
    let mut out = Vec::new();
    for _ in 0..2 {
        assert_eq!(step(&mut s, now, Input::Timer), [Output::Check(0, Which::Live)]);
        out = step(&mut s, now, Input::Checked(0, Which::Live, false));
        now += 100 * MS;
    }
    assert_eq!(out[..2], [Output::Unhealthy(0), Output::Signal(0, 15)]);
    let out = step(&mut s, now, Input::Exited(0, OK));
    assert!(matches!(out.last(), Some(Output::Exited { restart_in_ms: Some(_), .. })), "{out:?}");
}

#[test]
fn failures_in_the_start_grace_do_not_count() {
    let mut c = probed(false);
    if let Some(p) = &mut c.live {
        p.start_grace_ms = 1000;
    }
    let mut s = pod(vec![c]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    let mut now = 100 * MS;
    let mut given_up_at = None;
    while given_up_at.is_none() && now < 5000 * MS {
        step(&mut s, now, Input::Timer);
        if step(&mut s, now, Input::Checked(0, Which::Live, false)).contains(&Output::Unhealthy(0))
        {
            given_up_at = Some(now);
        }
        now += 100 * MS;
    }
    assert_eq!(given_up_at, Some(1100 * MS));
}

#[test]
fn a_container_that_starts_slowly_is_asked_nothing_else_until_it_is_up() {
    let mut c = probed(true);
    c.live = c.ready.clone();
    c.start = c.ready.clone();
    let mut s = pod(vec![c]);
    step(&mut s, 0, Input::Start);
    let out = step(&mut s, 0, Input::Started(0));
    assert_eq!(out, [Output::Started(0), Output::Check(0, Which::Start)]);
    step(&mut s, 10 * MS, Input::Checked(0, Which::Start, false));
    assert_eq!(step(&mut s, 20 * MS, Input::Timer), [Output::Check(0, Which::Start)]);
    let out = step(&mut s, 21 * MS, Input::Checked(0, Which::Start, true));
    assert_eq!(out, [Output::Check(0, Which::Ready)], "now the others");
    let out = step(&mut s, 22 * MS, Input::Checked(0, Which::Ready, true));
    assert_eq!(out, [Output::Ready { container: 0, ready: true, pod_ready: true }]);
}

#[test]
fn a_container_that_does_not_come_up_in_its_time_is_started_again() {
    let mut c = main_container(Restart::Always);
    c.start = probed(true).ready;
    let mut s = pod(vec![c]);
    step(&mut s, 0, Input::Start);
    step(&mut s, 0, Input::Started(0));
    let mut given_up_ms = None;
    for ms in 0..500 {
        step(&mut s, ms * MS, Input::Timer);
        let out = step(&mut s, ms * MS, Input::Checked(0, Which::Start, false));
        if out.contains(&Output::Unhealthy(0)) {
            given_up_ms = Some(ms);
            break;
        }
    }
    // Twice 100 ms, whatever the eager first questions; asked each 100 ms by then.
    assert!(given_up_ms.is_some_and(|ms| (200..=300).contains(&ms)), "{given_up_ms:?}");
    let out = step(&mut s, 500 * MS, Input::Exited(0, OK));
    assert!(matches!(out.last(), Some(Output::Exited { restart_in_ms: Some(_), .. })), "{out:?}");
}
