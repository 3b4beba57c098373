//! More nodes than have room for a member table each: their maps over one table in which everybody lives.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::{LIVENESS_US, Options, Report, S};

/// Writes one record after another and waits for each to be everywhere.
pub(super) fn run(options: &Options) -> Report {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(options.seed);
    let mut flock = gossip::rig::MapFlock::new(options.seed, options.nodes);
    let mut report = Report::default();
    flock.run(5 * S);
    let mut spent_us = 5 * S;
    while spent_us < options.minutes * 60 * S && report.violations.is_empty() {
        let node = rng.random_range(0..options.nodes);
        report.puts += 1;
        flock.put(node, &format!("t/node-{node:05}"), format!("{}", report.puts).as_bytes());
        match flock.until_equal(LIVENESS_US) {
            Some(us) => {
                report.acked += 1;
                report.agreed_ms = report.agreed_ms.max(us / 1000);
                spent_us += us;
            }
            None => report.violations.push(format!("write {} is not everywhere", report.puts)),
        }
        flock.run(S);
        spent_us += S;
    }
    report.virtual_s = spent_us as f64 / 1e6;
    report.trace = format!("{:016x}", flock.sent_bytes);
    report
}
