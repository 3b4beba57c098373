//! What the fuzzer has found worth keeping, run again: each file of `fuzz/corpus/TARGET` through the target's function.

use std::path::{Path, PathBuf};

/// Files of all targets, and bytes: a corpus is for every clone.
const FILES_MAX: usize = 200;
const BYTES_MAX: usize = 300_000;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} has {} files", dir.display(), files.len());
    files.into_iter().map(|f| (f.clone(), std::fs::read(f).expect("a file"))).collect()
}

fn replay(target: &str, run: impl Fn(&[u8])) {
    for (path, bytes) in corpus(target) {
        println!("{}", path.display());
        run(&bytes);
    }
}

#[test]
fn frames_of_strangers() {
    replay("datagram", |bytes| gossip::fuzz::Target::default().datagram(bytes));
}

#[test]
fn frames_of_peers() {
    replay("content", |bytes| gossip::fuzz::Target::default().content(bytes));
}

#[test]
fn messages() {
    replay("message", gossip::fuzz::message);
}

#[test]
fn logs() {
    replay("log", gossip::fuzz::log);
}

#[test]
fn sequences_of_events() {
    replay("events", gossip::fuzz::events);
}

#[test]
fn the_corpora_stay_small() {
    let targets = ["datagram", "content", "message", "log", "events"];
    let all: Vec<_> = targets.into_iter().flat_map(corpus).collect();
    let bytes: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(all.len() <= FILES_MAX && bytes <= BYTES_MAX, "{} files, {bytes} bytes", all.len());
}
