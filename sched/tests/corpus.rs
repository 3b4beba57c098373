//! What the fuzzer has found worth keeping, run again: each file of `fuzz/corpus/TARGET` through the target's function.

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// Of each file.
const MUTANTS: u32 = 2;

#[test]
fn specs() {
    corpus::replay(HERE, "spec", MUTANTS, sched::fuzz::spec);
}

#[test]
fn records_and_messages() {
    corpus::replay(HERE, "record", MUTANTS, sched::fuzz::record);
}

#[test]
fn sequences_of_events() {
    corpus::replay(HERE, "events", MUTANTS, sched::fuzz::events);
}

#[test]
fn the_corpora_stay_small() {
    corpus::stay_small(HERE, &["spec", "record", "events"]);
}
