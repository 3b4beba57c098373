//! What a fuzzer calls: plain functions over bytes, one per boundary. They panic if an invariant breaks.
//!
//! `fuzz/` has a target for each; `tests/corpus.rs` replays what the fuzzer has found worth keeping.

use std::collections::BTreeSet;

use crate::addr::{Prefix4, Prefix6};
use crate::ipam::{Claim, Input, Ipam, Output, key};
pub use crate::overlay::fuzz::{datagram, packet};

/// Steps of one run, and deadlines served in one pause.
const OPS_MAX: usize = 400;
const TURNS_MAX: usize = 1_000;

/// Any records and any time: no panic, no timer that never rests; a prefix is used only after its claim was written, and not
/// after it was lost.
pub fn ipam(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(prefix) = text.parse::<Prefix4>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
    if let Ok(prefix) = text.parse::<Prefix6>() {
        assert_eq!(prefix.to_string().parse(), Ok(prefix));
    }
    if let Some(claim) = Claim::decode(bytes) {
        assert_eq!(Claim::decode(&claim.encode()), Some(claim));
    }
    let (mut ipam, mut now_us) = (Ipam::new("m", b"flock"), 1);
    let (mut written, mut usable) = (None, None);
    // Prefixes whose records name this node: written by it now, or in an earlier life.
    let mut claimed = BTreeSet::new();
    for op in bytes.chunks_exact(3).take(OPS_MAX) {
        let [what, a, b] = [op[0], op[1], op[2]];
        let mut out = Vec::new();
        // Mostly about the prefix that is ours.
        let ours = written.clone().filter(|_| a & 1 == 0);
        let key = ours.unwrap_or_else(|| key(u16::from(a) << 6 | u16::from(b)));
        let claim = Claim { epoch: u32::from(b), node: ["a", "m", "z"][usize::from(a % 3)].into() };
        match what % 6 {
            0 => ipam.step(now_us, Input::Synced, &mut out),
            1 => {
                let body = claim.encode();
                if claim.node == "m" {
                    claimed.insert(key.clone());
                }
                ipam.step(now_us, Input::Record { key: &key, body: Some(&body) }, &mut out);
            }
            2 => ipam.step(now_us, Input::Record { key: &key, body: None }, &mut out),
            3 => ipam.step(now_us, Input::Record { key: &key, body: Some(op) }, &mut out),
            4 => ipam.step(now_us, Input::Record { key: &text, body: Some(bytes) }, &mut out),
            _ => {
                let end_us = now_us + u64::from(b) * 20_000;
                for turn in 0.. {
                    let Some(at) = ipam.next_deadline().filter(|at| *at <= end_us) else { break };
                    assert!(turn < TURNS_MAX, "a timer that never rests");
                    now_us = now_us.max(at);
                    ipam.step(now_us, Input::Timer, &mut out);
                }
                now_us = end_us;
            }
        }
        for output in out {
            match output {
                Output::Put { key, body } => {
                    assert_eq!(Claim::decode(&body).expect("a claim").node, "m");
                    claimed.insert(key.clone());
                    written = Some(key);
                }
                Output::Usable(prefix) => {
                    let index = prefix.node_index().expect("a node's prefix");
                    assert!(claimed.contains(&crate::ipam::key(index)), "not claimed");
                    usable = Some(prefix);
                }
                Output::Lost { prefix, to } => {
                    assert!(usable.take() == Some(prefix) && to != "m");
                }
                Output::Exhausted => {}
            }
        }
        if let Some(prefix) = ipam.prefix4() {
            assert_eq!(Some(prefix), usable, "what it holds it has told");
        }
    }
}
