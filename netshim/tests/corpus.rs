//! What the fuzzer has found worth keeping, run again: each file of `fuzz/corpus/TARGET` through the target's function.

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// Of each file.
const MUTANTS: u32 = 8;

#[test]
fn datagrams_of_strangers() {
    corpus::replay(HERE, "datagram", MUTANTS, netshim::fuzz::datagram);
}

#[test]
fn packets_of_pods_and_peers() {
    corpus::replay(HERE, "packet", MUTANTS, netshim::fuzz::packet);
}

#[test]
fn claims_to_prefixes() {
    corpus::replay(HERE, "ipam", MUTANTS, netshim::fuzz::ipam);
}

#[test]
fn the_corpora_stay_small() {
    corpus::stay_small(HERE, &["datagram", "packet", "ipam"]);
}
