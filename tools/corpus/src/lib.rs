//! What fuzzers found worth keeping, run again by plain tests: each file of a target's corpus, and mutants of it.

use std::path::{Path, PathBuf};

/// Files of all targets, and bytes: a corpus is for every clone.
const FILES_MAX: usize = 200;
const BYTES_MAX: usize = 300_000;

fn files(crate_dir: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(crate_dir).join("fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} has {} files", dir.display(), files.len());
    files.into_iter().map(|f| (f.clone(), std::fs::read(f).expect("a file"))).collect()
}

/// Runs each file of `CRATE_DIR/fuzz/corpus/TARGET`, and this many mutants of it; `FUZZ_MUTANTS` asks for another number.
///
/// # Panics
/// When the corpus cannot be read or has fewer than ten files, and when `run` does.
pub fn replay(crate_dir: &str, target: &str, mutants: u32, run: impl Fn(&[u8])) {
    let asked = std::env::var("FUZZ_MUTANTS").ok().and_then(|n| n.parse().ok());
    let mutants = asked.unwrap_or(mutants);
    for (path, bytes) in files(crate_dir, target) {
        println!("{}", path.display());
        run(&bytes);
        let mut seed = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        for mutant in 0..mutants {
            println!("mutant {mutant}");
            run(&mutated(&bytes, &mut seed));
        }
    }
}

/// Some bytes turned, removed, repeated or made up, as the seed has it (xorshift64).
fn mutated(bytes: &[u8], seed: &mut u64) -> Vec<u8> {
    let mut next = |bound: usize| {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed % bound.max(1) as u64) as usize
    };
    let mut out = bytes.to_vec();
    for _ in 0..=next(6) {
        let at = next(out.len());
        match next(5) {
            _ if out.is_empty() => out.push(next(256) as u8),
            0 => out[at] ^= 1 << next(8),
            1 => out[at] = [0, 1, 0x7f, 0x80, 0xff][next(5)],
            2 => out.truncate(at),
            3 => {
                let end = (at + next(40)).min(out.len());
                let piece = out[at..end].to_vec();
                let to = next(out.len());
                out.splice(to..to, piece);
            }
            _ => out[at] = next(256) as u8,
        }
    }
    out
}

/// Holds the corpora of a crate to what a clone should carry.
///
/// # Panics
/// When they are larger.
pub fn stay_small(crate_dir: &str, targets: &[&str]) {
    let all: Vec<_> = targets.iter().flat_map(|target| files(crate_dir, target)).collect();
    let bytes: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(all.len() <= FILES_MAX && bytes <= BYTES_MAX, "{} files, {bytes} bytes", all.len());
}
