//! Record bodies between builds: unknown fields are skipped, missing ones default.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sched::record::BODY_MAX;
use sched::{ClaimRecord, ClaimState, Error, NodeRecord, RolloutRecord};

/// A field of a build to come: tag 60, four bytes.
const FUTURE: [u8; 6] = [60, 4, 1, 2, 3, 4];

#[test]
fn a_newer_builds_record_is_read() {
    let record = NodeRecord { boot: 7, cpu_milli: 4000, drain: true, ..NodeRecord::default() };
    let mut body = FUTURE.to_vec();
    body.extend(record.encode());
    body.extend(FUTURE);
    assert_eq!(NodeRecord::decode(&body), Ok(record));
}

#[test]
fn an_older_builds_record_is_read() {
    // Only tags 1 (boot = 7) and 6 (drain = true), as a first version might have written.
    let record = NodeRecord { boot: 7, drain: true, ..NodeRecord::default() };
    assert_eq!(NodeRecord::decode(&[1, 1, 7, 6, 1, 1]), Ok(record.clone()));
    assert_eq!(record.encode(), [1, 1, 7, 6, 1, 1], "defaults are not written");
    assert_eq!(NodeRecord::decode(&[]), Ok(NodeRecord::default()));
}

#[test]
fn an_unknown_state_holds_resources_and_is_not_lost() {
    let record = ClaimRecord { state: ClaimState::Running, ..ClaimRecord::default() };
    let mut body = record.encode();
    let last = body.len() - 1;
    body[last] = 77;
    let read = ClaimRecord::decode(&body).unwrap();
    assert_eq!(read.state, ClaimState::Unknown);
    assert!(read.holds());
}

#[test]
fn damage_is_named() {
    assert!(matches!(
        ClaimRecord::decode(&[1, 9, 1]),
        Err(Error::Truncated { what: "claim record" })
    ));
    assert!(matches!(ClaimRecord::decode(&[1, 2, 9, 9]), Err(Error::Field { tag: 1, .. })));
    assert!(matches!(NodeRecord::decode(&vec![0; BODY_MAX + 1]), Err(Error::TooLarge { .. })));
    assert!(matches!(
        NodeRecord::decode(&[50, 0].repeat(65)),
        Err(Error::TooLarge { max: 64, .. })
    ));
    assert!(NodeRecord::decode(&[0xff; 30]).is_err());
}

fn text() -> impl Strategy<Value = String> {
    "[a-z0-9.-]{0,20}"
}

#[test]
fn a_claim_says_in_one_line_what_is_to_be_known() {
    let said = |state, ready, reason: &str, note: &str| {
        let (reason, note) = (reason.into(), note.into());
        ClaimRecord { state, ready, reason, note, ..ClaimRecord::default() }.said()
    };
    let (running, stopping) = (ClaimState::Running, ClaimState::Stopping);
    assert_eq!(said(running, true, "", ""), "");
    assert_eq!(said(running, true, "", "full"), "full");
    assert_eq!(said(running, true, "exited", "full"), "exited; full");
    assert_eq!(said(running, false, "", "full"), "its probes have not passed; full");
    let before = "its probes have not passed; before that: exited";
    assert_eq!(said(running, false, "exited", ""), before);
    assert!(said(stopping, false, "", "").starts_with("it was told to end"));
    assert!(said(stopping, false, "exited", "").ends_with("; before that: exited"));
    assert_eq!(said(ClaimState::Failed, false, "no room", ""), "no room");
}

proptest! {
    #[test]
    fn claims_round_trip(
        (namespace, app, ip, reason) in (text(), text(), text(), text()),
        numbers in any::<[u32; 3]>(),
        longs in any::<[u64; 9]>(),
        (ready, unique_host, daemon) in any::<(bool, bool, bool)>(),
        ports in proptest::collection::btree_map(text(), any::<u16>(), 0..5),
        state in 0..8_usize,
    ) {
        use ClaimState::*;
        let state = [Unknown, Admitted, Pulling, Starting, Running, Exited, Failed, Stopping][state];
        let record = ClaimRecord {
            namespace, app, ip, reason, ports, state, ready, unique_host, daemon,
            slot: numbers[0], restarts: numbers[1], generation: longs[0], template: longs[1],
            created_ms: longs[2], started_ms: longs[3], cpu_milli: longs[4], memory_bytes: longs[5],
            seq: longs[6], offer: longs[7], term: longs[8], node: "n".into(), note: "full".into(),
        };
        prop_assert_eq!(ClaimRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn rollouts_round_trip(term in any::<u64>(), phase in text(), n in any::<[u32; 3]>(), why in text()) {
        let rejected = BTreeMap::from([(why.clone(), n[0])]);
        let record = RolloutRecord { term, phase, rejected, ready: n[1], desired: n[2], held: why, ..RolloutRecord::default() };
        prop_assert_eq!(RolloutRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn a_cut_body_never_panics(at in 0..80_usize) {
        let record = ClaimRecord { app: "a".repeat(40), reason: "b".repeat(40), ..ClaimRecord::default() };
        let body = record.encode();
        let _ = ClaimRecord::decode(&body[..at.min(body.len())]);
    }
}
