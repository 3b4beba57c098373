//! What a run, and a set of runs, came to.

use serde::Serialize;

use crate::marks::{Marks, SEEDS_MIN};
use crate::options::{Drawn, Options};

/// One run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked for.
    pub options: Options,
    /// What the seed drew.
    pub drawn: Drawn,
    /// Invariants that did not hold; empty is good. At most [`VIOLATIONS_MAX`].
    pub violations: Vec<String>,
    /// Equal for equal seeds.
    pub trace: u64,
    /// What was met.
    pub marks: Marks,
    /// Events handled.
    pub events: u64,
    /// Faults injected.
    pub faults: u64,
    /// Virtual time, milliseconds.
    pub virtual_ms: u64,
    /// From the heal until the flock was whole, milliseconds.
    pub healed_ms: u64,
    /// Pod starts.
    pub starts: u64,
}

/// A flock should be whole so soon after the heal, milliseconds.
pub const WHOLE_MS: u64 = 10_000;

/// User and system time of this process, seconds; 0 where it cannot be read. proc_pid_stat(5), fields 14 and 15, in ticks of
/// 10 ms on every Linux that this runs on.
pub(crate) fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, which may hold anything, ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() as f64
        / 100.0
}

/// Violations kept of one run.
pub const VIOLATIONS_MAX: usize = 20;

impl Report {
    /// What to print of a failed run.
    #[must_use]
    pub fn failure(&self) -> String {
        let drawn = serde_json::to_string(&self.drawn).unwrap_or_default();
        let mut text = format!("seed {} failed\n  drew {drawn}\n", self.options.seed);
        for v in &self.violations {
            text.push_str(&format!("  {v}\n"));
        }
        text.push_str(&format!("  replay: {}", self.options.replay()));
        text
    }
}

/// A set of runs, as `--json` prints it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Always `sim`.
    pub bench: &'static str,
    /// Seeds run.
    pub seeds: u64,
    /// First seed.
    pub start: u64,
    /// Seeds that failed.
    pub failed: Vec<u64>,
    /// Required marks never met, when the set is large enough to require them.
    pub missing_marks: Vec<&'static str>,
    /// Nodes times virtual hours.
    pub node_hours: f64,
    /// Faults injected.
    pub faults: u64,
    /// Events handled.
    pub events: u64,
    /// Pod starts.
    pub starts: u64,
    /// From the heal until whole: median and longest, milliseconds.
    pub healed_p50_ms: u64,
    /// See `healed_p50_ms`.
    pub healed_max_ms: u64,
    /// The seed that took longest.
    pub healed_max_seed: u64,
    /// Seeds that took longer than [`WHOLE_MS`], with the time.
    pub healed_slow: Vec<(u64, u64)>,
    /// Seconds on the wall.
    pub wall_s: f64,
    /// Seconds of the processors, of the whole process so far.
    pub cpu_s: f64,
    /// All of the traces in one number.
    pub trace: String,
    /// How often each mark was met.
    pub marks: std::collections::BTreeMap<&'static str, u64>,
}

impl Summary {
    /// Sums up runs, in the order of their seeds.
    #[must_use]
    pub fn of(reports: &[Report], wall_s: f64) -> Self {
        let mut marks = Marks::default();
        let mut summary = Summary { bench: "sim", wall_s, ..Summary::default() };
        summary.seeds = reports.len() as u64;
        summary.start = reports.first().map_or(0, |r| r.options.seed);
        let mut healed: Vec<u64> = Vec::new();
        let mut trace = 0_u64;
        for r in reports {
            marks.merge(&r.marks);
            if !r.violations.is_empty() {
                summary.failed.push(r.options.seed);
            }
            summary.node_hours += r.drawn.nodes as f64 * r.virtual_ms as f64 / 3_600_000.0;
            summary.faults += r.faults;
            summary.events += r.events;
            summary.starts += r.starts;
            healed.push(r.healed_ms);
            trace = trace.rotate_left(5) ^ r.trace;
        }
        let slow = reports.iter().filter(|r| r.healed_ms > WHOLE_MS);
        summary.healed_slow = slow.map(|r| (r.options.seed, r.healed_ms)).collect();
        summary.cpu_s = cpu_s();
        let slowest = reports.iter().max_by_key(|r| r.healed_ms);
        summary.healed_max_seed = slowest.map_or(0, |r| r.options.seed);
        healed.sort_unstable();
        summary.healed_p50_ms = healed.get(healed.len() / 2).copied().unwrap_or(0);
        summary.healed_max_ms = healed.last().copied().unwrap_or(0);
        if summary.seeds >= SEEDS_MIN {
            summary.missing_marks = marks.missing();
        }
        summary.marks = marks.0;
        summary.trace = format!("{trace:016x}");
        summary
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failed.is_empty() && self.missing_marks.is_empty()
    }
}
