//! The reconciler step by step, and under any script.

use super::*;
use proptest::prelude::*;

const CLAIM: &str = "c1";

fn start(images: &[&str]) -> Input {
    let images = images.iter().map(|i| (*i).to_owned()).collect();
    Input::Start { claim: CLAIM.into(), ip: "100.64.0.2".into(), images }
}

fn step(pods: &mut Pods, input: Input) -> Vec<Action> {
    let mut out = Vec::new();
    pods.step(1, input, &mut out);
    out
}

fn stop() -> Input {
    Input::Stop { claim: CLAIM.into(), grace_ms: 100 }
}

fn prepared() -> Input {
    Input::Prepared { claim: CLAIM.into(), result: Ok(()) }
}

fn observed(actions: &[Action]) -> Vec<&Observed> {
    let observed = actions.iter().filter_map(|action| match action {
        Action::Observe { observed, .. } => Some(observed),
        _ => None,
    });
    observed.collect()
}

#[test]
fn an_image_that_is_missing_is_fetched_once_for_two_pods() {
    let mut pods = Pods::new();
    let first = step(&mut pods, start(&["a"]));
    assert!(first.contains(&Action::Fetch { digest: "a".into() }));
    let mut second = Vec::new();
    let input = Input::Start { claim: "c2".into(), ip: "x".into(), images: vec!["a".into()] };
    pods.step(1, input, &mut second);
    assert!(!second.iter().any(|a| matches!(a, Action::Fetch { .. })));
    let here = step(&mut pods, Input::Fetched { digest: "a".into(), result: Ok(()) });
    assert_eq!(here.iter().filter(|a| matches!(a, Action::Prepare { .. })).count(), 2);
}

#[test]
fn a_stop_while_preparing_is_kept_until_the_shim_can_hear_it() {
    let mut pods = Pods::new();
    step(&mut pods, start(&[]));
    assert_eq!(step(&mut pods, stop()), []);
    let actions = step(&mut pods, prepared());
    assert_eq!(actions, [Action::StopShim { claim: CLAIM.into(), grace_ms: 100 }]);
    let actions = step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
    assert_eq!(actions, [Action::Teardown { claim: CLAIM.into() }]);
    let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
    assert_eq!(observed(&actions), [&Observed::Gone]);
    assert_eq!(pods.claims().count(), 0);
}

#[test]
fn a_container_that_cannot_run_is_torn_down_and_reported() {
    let mut pods = Pods::new();
    step(&mut pods, start(&[]));
    step(&mut pods, prepared());
    let failure = Failure { reason: "no such program".into(), retryable: false };
    let actions = step(&mut pods, Input::Broken { claim: CLAIM.into(), failure });
    assert!(matches!(actions.as_slice(), [Action::StopShim { .. }]));
    step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
    let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
    let reason = "no such program".to_owned();
    assert_eq!(observed(&actions), [&Observed::Failed { reason, retryable: false }]);
}

#[test]
fn a_shim_that_does_not_stop_is_torn_down_late() {
    let mut pods = Pods::new();
    step(&mut pods, start(&[]));
    step(&mut pods, prepared());
    step(&mut pods, stop());
    let late = pods.next_deadline().unwrap();
    assert_eq!(late, 1 + 100_000 + STOP_LATE_US);
    let mut out = Vec::new();
    pods.step(late - 1, Input::Timer, &mut out);
    assert_eq!(out, []);
    pods.step(late, Input::Timer, &mut out);
    assert_eq!(out, [Action::Teardown { claim: CLAIM.into() }]);
}

#[test]
fn a_pod_that_ran_and_ended_is_not_born_again() {
    let ended = |ran: bool| {
        let mut pods = Pods::new();
        step(&mut pods, start(&[]));
        step(&mut pods, prepared());
        if ran {
            step(&mut pods, Input::Running { claim: CLAIM.into(), ready: true });
        }
        let reason = "container c exited with code 0".to_owned();
        let (claim, code, signal, oom) = (CLAIM.into(), Some(0), None, false);
        step(&mut pods, Input::Exited { claim, code, signal, oom, reason });
        step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
        let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
        observed(&actions)[0].clone()
    };
    let reason = "the pod ended: container c exited with code 0".to_owned();
    assert_eq!(ended(true), Observed::Failed { reason: reason.clone(), retryable: false });
    assert_eq!(ended(false), Observed::Failed { reason, retryable: true });
}

#[test]
fn remains_are_torn_down_once_and_say_why() {
    let mut pods = Pods::new();
    let failure = Failure { reason: "cut off".into(), retryable: true };
    let input = Input::Remains { claim: CLAIM.into(), failure: Some(failure) };
    assert_eq!(step(&mut pods, input), [Action::Teardown { claim: CLAIM.into() }]);
    assert_eq!(step(&mut pods, Input::Remains { claim: CLAIM.into(), failure: None }), []);
    let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
    let reason = "cut off".to_owned();
    assert_eq!(observed(&actions), [&Observed::Failed { reason, retryable: true }]);
}

#[test]
fn a_teardown_that_finds_no_room_is_tried_until_it_does() {
    let mut pods = Pods::new();
    step(&mut pods, start(&[]));
    step(&mut pods, prepared());
    step(&mut pods, Input::ShimGone { claim: CLAIM.into() });
    for _ in 0..3 {
        assert_eq!(pods.next_deadline(), None, "one is under way");
        assert_eq!(step(&mut pods, Input::NoRoom { claim: CLAIM.into() }), []);
        let again = pods.next_deadline().unwrap();
        assert_eq!(again, 1 + TEAR_AGAIN_US);
        assert_eq!(step(&mut pods, Input::Timer), [], "not yet");
        let mut out = Vec::new();
        pods.step(again, Input::Timer, &mut out);
        assert_eq!(out, [Action::Teardown { claim: CLAIM.into() }]);
    }
    let actions = step(&mut pods, Input::Torn { claim: CLAIM.into() });
    assert!(matches!(observed(&actions)[..], [Observed::Failed { .. }]));
}

#[test]
fn a_stop_of_what_is_not_there_is_answered() {
    let actions = step(&mut Pods::new(), stop());
    assert_eq!(observed(&actions), [&Observed::Gone]);
}

fn inputs() -> impl Strategy<Value = Input> {
    let claim = || CLAIM.to_owned();
    let failure = Failure { reason: "f".into(), retryable: true };
    prop_oneof![
        Just(start(&["a"])),
        Just(stop()),
        Just(Input::Fetched { digest: "a".into(), result: Ok(()) }),
        Just(Input::Fetched { digest: "a".into(), result: Err("f".into()) }),
        Just(prepared()),
        Just(Input::Prepared { claim: claim(), result: Err(failure.clone()) }),
        Just(Input::Running { claim: claim(), ready: true }),
        Just(Input::Broken { claim: claim(), failure }),
        Just(Input::ShimGone { claim: claim() }),
        Just(Input::Torn { claim: claim() }),
        Just(Input::NoRoom { claim: claim() }),
        Just(Input::Timer),
    ]
}

proptest! {
    /// Whatever comes in whatever order: no second preparation and no second teardown without the end of the
    /// first, and after a stop the claim ends in one `Gone` once the shell has done what it was told.
    #[test]
    fn every_claim_ends_once(script in prop::collection::vec(inputs(), 0..40)) {
        let mut pods = Pods::new();
        let (mut preparing, mut tearing, mut now_us) = (false, false, 1);
        for input in script {
            // The shell answers only what it was asked.
            match &input {
                Input::Prepared { .. } if !preparing => continue,
                Input::Torn { .. } | Input::NoRoom { .. } if !tearing => continue,
                Input::Prepared { .. } => preparing = false,
                Input::Torn { .. } | Input::NoRoom { .. } => tearing = false,
                _ => {}
            }
            now_us += TEAR_AGAIN_US;
            let mut actions = Vec::new();
            pods.step(now_us, input, &mut actions);
            for action in actions {
                match action {
                    Action::Prepare { .. } => {
                        prop_assert!(!preparing && !tearing);
                        preparing = true;
                    }
                    Action::Teardown { .. } => {
                        prop_assert!(!preparing && !tearing);
                        tearing = true;
                    }
                    _ => {}
                }
            }
        }
        let mut ended = Vec::new();
        let mut todo = vec![stop()];
        // What the shell still owes from the script; answers that nobody waits for change nothing.
        let gone = Input::ShimGone { claim: CLAIM.into() };
        let mut owed = vec![gone, Input::Torn { claim: CLAIM.into() }];
        if preparing {
            owed.insert(0, prepared());
        }
        while let Some(input) = todo.pop().or_else(|| (!owed.is_empty()).then(|| owed.remove(0))) {
            let actions = step(&mut pods, input);
            ended.extend(observed(&actions).into_iter().cloned());
            for action in actions {
                todo.extend(match action {
                    Action::StopShim { .. } => Some(Input::ShimGone { claim: CLAIM.into() }),
                    Action::Teardown { .. } => Some(Input::Torn { claim: CLAIM.into() }),
                    _ => None,
                });
            }
        }
        prop_assert_eq!(pods.claims().count(), 0);
        prop_assert_eq!(ended.last(), Some(&Observed::Gone));
    }
}
