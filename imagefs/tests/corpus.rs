//! What the fuzzer has found worth keeping, run again: each file of `fuzz/corpus/TARGET` through the target's function.

const HERE: &str = env!("CARGO_MANIFEST_DIR");
/// Of each file.
const MUTANTS: u32 = 8;

#[test]
fn layers() {
    corpus::replay(HERE, "layer", MUTANTS, imagefs::fuzz::layer);
}

#[test]
fn compressed_layers() {
    corpus::replay(HERE, "compressed", MUTANTS, imagefs::fuzz::compressed);
}

#[test]
fn manifests_and_records() {
    corpus::replay(HERE, "document", MUTANTS, imagefs::fuzz::document);
}

#[test]
fn the_corpora_stay_small() {
    corpus::stay_small(HERE, &["layer", "compressed", "document"]);
}
