//! The simulator itself: equal seeds are equal, checks can fail, a few seeds hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use sched::{Claim, ClaimRecord, NodeRecord, Spec};
use sim::check;
use sim::disk::Disk;
use sim::kernel::Kernel;
use sim::marks::{Marks, REQUIRED};
use sim::options::{Drawn, Fault, KINDS};
use sim::{Options, Summary};

use gossip::rig::LogImage;
use gossip::{Persist, Record};
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

fn short(seed: u64) -> Options {
    Options { nodes_max: 6, safety_s: 25, ..Options::new(seed) }
}

#[test]
fn equal_seeds_give_equal_traces() {
    let (a, b) = (sim::run(&short(5)), sim::run(&short(5)));
    assert_eq!((a.trace, a.events, a.starts), (b.trace, b.events, b.starts));
    assert_ne!(a.trace, sim::run(&short(6)).trace);
}

#[test]
fn some_seeds_hold() {
    let reports: Vec<_> = (100..106).map(|seed| sim::run(&short(seed))).collect();
    for r in &reports {
        assert!(r.violations.is_empty(), "{}", r.failure());
    }
    let summary = Summary::of(&reports, 1.0);
    assert!(summary.passed() && summary.starts > 0 && summary.faults > 0, "{summary:?}");
}

#[test]
fn a_failure_names_its_seed_and_how_to_replay_it() {
    let mut report = sim::run(&Options { safety_s: 1, ..short(7) });
    report.violations.push("at 5 ms: wrong".into());
    let text = report.failure();
    assert!(text.contains("--start 7 --seeds 1 "), "{text}");
    assert!(text.contains("seed 7 failed") && text.contains("at 5 ms: wrong"), "{text}");
    assert!(text.contains(&format!("--nodes 3..6 --seconds 1 --kinds {KINDS} --pace 1")), "{text}");
    assert!(!Summary::of(&[report], 1.0).passed());
}

#[test]
fn a_missing_mark_fails_a_large_set() {
    let mut marks = Marks::default();
    REQUIRED.into_iter().skip(1).for_each(|name| marks.hit(name));
    assert_eq!(marks.missing(), [REQUIRED[0]]);
}

#[test]
fn a_draw_of_fewer_kinds_is_the_draw_of_then() {
    let draw = |seed, kinds| Drawn::draw(&Options { kinds, ..Options::new(seed) });
    let later = [Fault::SwizzleClog, Fault::SlowDisk, Fault::ClockDrift, Fault::TornWrite];
    for (seed, kinds) in (0..200).flat_map(|seed| [(seed, 14), (seed, 16)]) {
        let (then, now) = (draw(seed, kinds), draw(seed, KINDS));
        let later = &later[kinds - 14..];
        assert_eq!(then.nodes, now.nodes);
        // The first of what is known today are what was known then.
        assert!(!then.faults.iter().any(|fault| later.contains(fault)));
        let first: Vec<Fault> = now.faults.into_iter().filter(|f| !later.contains(f)).collect();
        assert!(then.faults == first || (first.is_empty() && then.faults == [Fault::Crash]));
    }
}

fn pod(id: &str, unique_host: bool) -> Claim {
    let text = "app = \"a\"\n[[container]]\nname = \"c\"\nimage = \"i\"\ncpu = 1\n";
    let spec = Arc::new(Spec::parse(text, "f").expect("it is valid"));
    let record = ClaimRecord { unique_host, ..ClaimRecord::default() };
    Claim { id: id.into(), spec, record }
}

#[test]
fn overcommit_and_twins_are_seen() {
    let record =
        NodeRecord { cpu_milli: 2000, memory_bytes: 1 << 30, pods: 9, ..NodeRecord::default() };
    let mut kernel = Kernel::default();
    kernel.start(pod("a", false));
    kernel.start(pod("b", false));
    assert_eq!(check::machine("n", &record, &kernel), Ok(()));
    kernel.start(pod("c", false));
    assert!(check::machine("n", &record, &kernel).is_err(), "3 of 2 CPUs");
    let mut kernel = Kernel::default();
    kernel.start(pod("a", true));
    kernel.start(pod("b", true));
    assert!(check::machine("n", &record, &kernel).is_err(), "two of a unique app");
}

#[test]
fn a_foreign_write_is_seen() {
    let none = BTreeSet::new();
    let gone = BTreeSet::from(["b".to_owned()]);
    assert!(check::writer("a", "a/a/x", false, &none).is_ok());
    assert!(check::writer("a", "a/b/x", false, &gone).is_err());
    assert!(check::writer("a", "a/b/x", true, &none).is_err());
    assert!(check::writer("a", "a/b/x", true, &gone).is_ok());
    assert!(check::writer("a", "s/x/y", false, &none).is_err());
}

fn put(rev: u64) -> Persist {
    let body = vec![rev as u8; 300 * rev as usize % 700];
    let key = format!("s/ns/{}", rev % 4);
    let record = Record::new(&key, rev, rev, "n1".into(), 0, Some(body.into()));
    Persist::Record { record, local: false }
}

/// Revisions so far that are durable, and so far that are on their way.
fn disk(durable: u64, written: u64) -> Disk {
    let mut disk = Disk::default();
    (1..=durable).for_each(|rev| disk.begin(put(rev)));
    disk.sync(5);
    (durable + 1..=written).for_each(|rev| disk.begin(put(rev)));
    disk
}

#[test]
fn a_torn_write_takes_only_the_end() {
    let (mut partial, mut kept) = (0, 0);
    for seed in 0..500 {
        let mut disk = disk(6, 12);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let torn = disk.tear("n1", &mut rng).expect("the reader keeps what is durable");
        partial += usize::from(torn.partial);
        kept += usize::from(torn.lost < 6);
        let found = disk.restored().records.iter().map(|r| r.rev).max();
        assert_eq!(found, Some(12 - torn.lost as u64), "{torn:?}");
    }
    assert!(partial > 100 && kept > 100, "{partial} in the middle of a record, {kept} behind one");
}

#[test]
fn a_durable_record_that_a_torn_write_takes_is_seen() {
    let durable = disk(6, 6).restored();
    let tail = || vec![put(7)];
    let image = LogImage::new("n1", &durable, &tail());
    let recover = |left: &[u8]| disk(6, 6).recover("n1", tail(), &image, left);
    let lost = recover(&image.bytes[..image.ends[0] - 1]).expect_err("a durable byte is missing");
    assert!(lost.contains("lost s/ns/"), "{lost}");
    let mut damaged = image.bytes.clone();
    damaged[image.ends[0] - 1] ^= 1;
    let refused = recover(&damaged).expect_err("a mark behind it says that it was durable");
    assert!(refused.contains("checksum"), "{refused}");
    // A record that was never whole on the disk.
    let other = LogImage::new("n1", &durable, &[put(8)]);
    assert!(recover(&other.bytes).is_err());
}
