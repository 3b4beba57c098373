use proptest::prelude::*;

use super::*;

fn steps(next: &Ring) -> [Step; 3] {
    next.steps().unwrap()
}

#[test]
fn three_steps_lead_from_one_key_to_the_next_and_bear_repetition() {
    let first = Ring::first([7; 32]);
    let next = first.next(["n3".to_owned()]).unwrap();
    let mut ring = first.clone();
    for (step, stand) in steps(&next).iter().zip([(2, 1, 0), (2, 2, 0), (1, 2, 1)]) {
        ring = ring.after(step).unwrap();
        ring = ring.after(step).unwrap();
        let seen = ring.stand("n1");
        assert_eq!((seen.accepts.len(), seen.uses, seen.epoch), stand);
        // A restart in between changes nothing.
        let dir = crate::testing::temp_dir("ring");
        ring.write(&dir.join(FILE)).unwrap();
        assert!(Ring::read(&dir.join(FILE)).unwrap() == Some(ring.clone()));
        std::fs::remove_dir_all(dir).unwrap();
        assert_eq!(ring.key_ring().unwrap().used(), seen.uses);
    }
    assert!(ring == next);
    assert!(ring.has_evicted("n3") && !ring.has_evicted("n1"));
    // Who stayed behind is refused the next rotation until it has done this one.
    let third = ring.next([]).unwrap();
    assert!(first.after(&steps(&third)[0]).err().unwrap().contains("does not follow 0"));
}

#[test]
fn steps_out_of_order_are_refused() {
    let first = Ring::first([7; 32]);
    let [accept, use_it, drop_old] = steps(&first.next([]).unwrap());
    assert!(first.after(&use_it).err().unwrap().contains("has not been accepted"));
    assert!(first.after(&drop_old).err().unwrap().contains("has not been accepted"));
    let accepted = first.after(&accept).unwrap();
    assert!(accepted.after(&drop_old).err().unwrap().contains("key 1 is in use here"));
    // Another operator's rotation at the same time.
    let [other, ..] = steps(&first.next([]).unwrap());
    assert!(accepted.after(&other).err().unwrap().contains("another key 2"));
    let bad = Step::Accept { epoch: 1, id: 2, key: "ab".into() };
    assert!(first.after(&bad).err().unwrap().contains("64 hex digits"));
    let odd = Step::Drop { epoch: 1, id: 2, evicted: ["../n3".to_owned()].into() };
    let used = accepted.after(&use_it).unwrap();
    assert!(used.after(&odd).err().unwrap().contains("names"));
}

#[test]
fn the_id_of_a_key_comes_round_and_differs_from_the_one_before() {
    let mut ring = Ring::first([0; 32]);
    for _ in 0..300 {
        let next = ring.next([]).unwrap();
        assert_ne!(next.used, ring.used);
        assert_ne!(next.used, 0);
        ring = next;
    }
    assert_eq!(ring.epoch, 300);
}

#[test]
fn a_damaged_file_is_refused_without_showing_its_keys() {
    let hex = "ab".repeat(32);
    for bad in [
        String::new(),
        "epoch x\n".into(),
        format!("key 1 {hex}\n"),
        format!("key 1 {hex} used\nkey 1 {hex}\n"),
        format!("key 1 {hex} used\nkey 2 {hex}\nkey 3 {hex}\n"),
        format!("key 1 {hex}0 used\n"),
        format!("key 1 {hex} used\nevicted ../x\n"),
        format!("{hex}\n"),
        format!("key 1 {hex} used often\n"),
    ] {
        let reason = Ring::parse(&bad).err().unwrap_or_else(|| panic!("{bad:?} was read"));
        assert!(!reason.contains(&hex), "{reason}");
    }
    assert!(Ring::parse(&format!("epoch 3\n\nkey 1 {hex} used\nevicted n3\n")).is_ok());
}

#[test]
fn the_latest_of_several_rings_counts() {
    let first = Ring::first([1; 32]);
    let second = first.next([]).unwrap();
    assert!(Ring::latest([Some(first.clone()), None, Some(second.clone())]) == Some(second));
    assert!(Ring::latest([None, None]).is_none());
}

/// Lines as they are written, and nearly so.
fn line() -> impl Strategy<Value = String> {
    let hex = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 32).prop_map(|bytes| hex::encode(&bytes)),
        1 => "[0-9a-fg]{0,70}",
    ];
    prop_oneof![
        any::<u64>().prop_map(|epoch| format!("epoch {epoch}")),
        (0..4u8, hex, prop_oneof![Just(""), Just(" used"), Just(" used used")])
            .prop_map(|(id, hex, used)| format!("key {id} {hex}{used}")),
        "evicted [a-z0-9-]{1,63}",
        "(epoch|key|evicted)?[ -~]{0,40}",
    ]
}

proptest! {
    /// Any file is a ring or is refused without its secrets; a ring that was read is written as it was read, and gossip
    /// takes it.
    #[test]
    fn any_file_is_a_ring_or_none(lines in proptest::collection::vec(line(), 0..6)) {
        match Ring::parse(&lines.join("\n")) {
            Ok(ring) => {
                let dir = crate::testing::temp_dir("any-ring");
                ring.write(&dir.join(FILE)).expect("written");
                // A ring is not for printing.
                prop_assert!(Ring::read(&dir.join(FILE)).expect("read") == Some(ring.clone()));
                std::fs::remove_dir_all(dir).expect("removed");
                let held = ring.key_ring().expect("gossip holds as many");
                prop_assert_eq!(held.used(), ring.used);
            }
            Err(reason) => {
                for word in lines.iter().flat_map(|line| line.split(' ')).filter(|w| w.len() > 40) {
                    prop_assert!(!reason.contains(word), "{}", reason);
                }
            }
        }
    }
}
