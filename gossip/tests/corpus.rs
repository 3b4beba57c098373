//! What the fuzzer has found worth keeping, run again: each file of `fuzz/corpus/TARGET` through the target's function.

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn frames_of_strangers() {
    corpus::replay(HERE, "datagram", 0, |bytes| gossip::fuzz::Target::default().datagram(bytes));
}

#[test]
fn frames_of_peers() {
    corpus::replay(HERE, "content", 0, |bytes| gossip::fuzz::Target::default().content(bytes));
}

#[test]
fn conversations() {
    corpus::replay(HERE, "dialogue", 0, gossip::fuzz::dialogue);
}

#[test]
fn messages() {
    corpus::replay(HERE, "message", 0, gossip::fuzz::message);
}

#[test]
fn logs() {
    corpus::replay(HERE, "log", 0, gossip::fuzz::log);
}

#[test]
fn sequences_of_events() {
    corpus::replay(HERE, "events", 0, gossip::fuzz::events);
}

#[test]
fn the_corpora_stay_small() {
    corpus::stay_small(HERE, &["datagram", "content", "dialogue", "message", "log", "events"]);
}
