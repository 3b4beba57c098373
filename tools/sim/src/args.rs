//! What the simulator is told: each number within what makes sense, each mistake named.

use std::ops::RangeInclusive;

use sim::Options;
use sim::options::KINDS;

pub(crate) const HELP: &str = "sim: whole flocks on virtual time

  --seeds N       seeds to run (default 100)
  --start S       the first (default 1)
  --nodes A..B    nodes of a flock (default 3..24)
  --seconds T     safety phase, virtual seconds (default 90)
  --minutes M     the same in minutes
  --pace P        faults and operators this many times rarer (default 1)
  --kinds K       kinds of faults to draw from, the first K (default all)
  --gossip        gossip alone, without scheduling: one flock of --nodes (default 1000) a seed, 1 seed by default; every 8 s a
                  fault of up to 4 nodes; takes --minutes (default 1); more than 2000 nodes: maps alone, over one member
                  table, without faults
  --wide T        with --gossip: seconds between faults of the whole flock or much of it (default 240); --pace is for these too
  --threads N     runs at once (default: all CPUs)
  --regressions   run the seeds that once found a bug instead
  --twice         run every seed twice and compare the traces
  --json          print one JSON line at the end
  --verbose       print what happens (use with --seeds 1)";

/// Nodes of a flock that schedules. One node alone has nobody to gossip with, and starts nothing that was not set up so.
const NODES: RangeInclusive<usize> = 2..=2_000;
/// Nodes of a flock that only gossips.
const NODES_GOSSIP: RangeInclusive<usize> = 2..=gossip::MEMBERS_MAX;
/// A virtual year of safety.
const SECONDS: RangeInclusive<u64> = 1..=365 * 24 * 3600;
const PACE: RangeInclusive<u64> = 1..=1_000_000;
/// A day between faults of the whole flock.
const WIDE: RangeInclusive<u64> = 1..=24 * 3600;
const THREADS: RangeInclusive<usize> = 1..=1_024;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) seeds: Option<u64>,
    pub(crate) nodes: Option<usize>,
    pub(crate) start: u64,
    pub(crate) threads: usize,
    pub(crate) twice: bool,
    pub(crate) regressions: bool,
    pub(crate) json: bool,
    pub(crate) gossip: bool,
    pub(crate) wide_s: Option<u64>,
    pub(crate) options: Options,
}

/// Reads them; `None`: help was asked for.
///
/// # Errors
/// The option, what was given, and what it takes.
pub(crate) fn parse(mut parser: lexopt::Parser) -> Result<Option<Args>, lexopt::Error> {
    use lexopt::prelude::*;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = Args {
        seeds: None,
        nodes: None,
        start: 1,
        threads,
        twice: false,
        regressions: false,
        json: false,
        gossip: false,
        wide_s: None,
        options: Options::new(0),
    };
    // Options that mean nothing without scheduling.
    let mut scheduling = Vec::new();
    while let Some(arg) = parser.next()? {
        let Long(name) = arg else {
            match arg {
                Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        };
        // It borrows from the parser.
        let name = format!("--{name}");
        let options = &mut args.options;
        match name.as_str() {
            "--seeds" => args.seeds = Some(number(&mut parser, &name, 1..=u64::MAX)?),
            "--start" => args.start = number(&mut parser, &name, 0..=u64::MAX)?,
            "--threads" => args.threads = number(&mut parser, &name, THREADS)?,
            "--seconds" => options.safety_s = number(&mut parser, &name, SECONDS)?,
            "--minutes" => {
                let minutes = number(&mut parser, &name, 1..=SECONDS.end() / 60)?;
                options.safety_s = minutes * 60;
            }
            "--nodes" => {
                let value = parser.value()?.string()?;
                let (min, max) = value.split_once("..").unwrap_or((&value, &value));
                options.nodes_min = within(min, &name, NODES_GOSSIP)?;
                options.nodes_max = within(max.trim_start_matches('='), &name, NODES_GOSSIP)?;
                args.nodes = Some(options.nodes_max);
            }
            "--kinds" => options.kinds = number(&mut parser, &name, 1..=KINDS)?,
            "--pace" => options.pace = number(&mut parser, &name, PACE)?,
            "--gossip" => args.gossip = true,
            "--wide" => args.wide_s = Some(number(&mut parser, &name, WIDE)?),
            "--regressions" => args.regressions = true,
            "--twice" => args.twice = true,
            "--json" => args.json = true,
            "--verbose" => options.verbose = true,
            "--help" => return Ok(None),
            _ => return Err(lexopt::Error::UnexpectedOption(name)),
        }
        if matches!(name.as_str(), "--kinds" | "--threads" | "--regressions" | "--seconds") {
            scheduling.push(name);
        }
    }
    args.check(&scheduling)?;
    if args.regressions {
        args.seeds = Some(sim::REGRESSIONS.len() as u64);
    }
    Ok(Some(args))
}

impl Args {
    /// What fits each option and not the others.
    fn check(&self, scheduling: &[String]) -> Result<(), String> {
        let (min, max) = (self.options.nodes_min, self.options.nodes_max);
        if min > max {
            return Err(format!("--nodes {min}..{max}: the least is more than the most"));
        }
        if let Some(name) = scheduling.first().filter(|_| self.gossip) {
            return Err(format!("{name} is of flocks that schedule, not of --gossip"));
        }
        if self.wide_s.is_some() && !self.gossip {
            return Err("--wide is of --gossip, not of flocks that schedule".into());
        }
        if !self.gossip && !NODES.contains(&max) {
            return Err(format!(
                "--nodes {max} takes --gossip: flocks that schedule have at most {}",
                NODES.end()
            ));
        }
        if self.start.checked_add(self.seeds.unwrap_or(100)).is_none() {
            return Err(format!("--start {}: there are not so many seeds behind it", self.start));
        }
        Ok(())
    }

    /// The command that replays a seed of gossip alone.
    pub(crate) fn replay_gossip(&self, seed: u64, nodes: usize, minutes: u64) -> String {
        let (pace, wide_s) = (self.options.pace, self.wide_s.unwrap_or(sim::flock::WIDE_S));
        format!(
            "cargo xtask sim --gossip --start {seed} --seeds 1 --nodes {nodes} --minutes {minutes} --pace {pace} --wide {wide_s} \
             --verbose"
        )
    }
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    parser: &mut lexopt::Parser,
    name: &str,
    range: RangeInclusive<T>,
) -> Result<T, lexopt::Error> {
    use lexopt::ValueExt as _;
    Ok(within(&parser.value()?.string()?, name, range)?)
}

fn within<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    text: &str,
    name: &str,
    range: RangeInclusive<T>,
) -> Result<T, String> {
    let number = text.parse().ok().filter(|n| range.contains(n));
    number.ok_or(format!("{name} {text}: takes a number from {} to {}", range.start(), range.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Args, String> {
        let parser = lexopt::Parser::from_args(line.split_whitespace());
        parse(parser).map_err(|e| e.to_string()).map(|args| args.expect("no help was asked for"))
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (line, says) in [
            ("--bogus", "invalid option '--bogus'"),
            ("extra", "unexpected argument \"extra\""),
            ("-x", "invalid option '-x'"),
            ("--seeds", "missing argument for option '--seeds'"),
            ("--seeds 0", "--seeds 0: takes a number from 1 to 18446744073709551615"),
            ("--seeds -1", "--seeds -1: takes a number from 1 to 18446744073709551615"),
            (
                "--start 18446744073709551615 --seeds 2",
                "--start 18446744073709551615: there are not so many seeds behind it",
            ),
            ("--nodes abc", "--nodes abc: takes a number from 2 to 16384"),
            ("--nodes 0", "--nodes 0: takes a number from 2 to 16384"),
            ("--nodes 1", "--nodes 1: takes a number from 2 to 16384"),
            ("--nodes 3..", "--nodes : takes a number from 2 to 16384"),
            ("--nodes 5..3", "--nodes 5..3: the least is more than the most"),
            ("--nodes 3000", "--nodes 3000 takes --gossip: flocks that schedule have at most 2000"),
            ("--gossip --nodes 20000", "--nodes 20000: takes a number from 2 to 16384"),
            ("--seconds 0", "--seconds 0: takes a number from 1 to 31536000"),
            ("--minutes 9999999", "--minutes 9999999: takes a number from 1 to 525600"),
            ("--pace 0", "--pace 0: takes a number from 1 to 1000000"),
            ("--kinds 99", &format!("--kinds 99: takes a number from 1 to {KINDS}")),
            ("--gossip --wide 0", "--wide 0: takes a number from 1 to 86400"),
            ("--wide 9", "--wide is of --gossip, not of flocks that schedule"),
            ("--threads 0", "--threads 0: takes a number from 1 to 1024"),
            ("--gossip --kinds 3", "--kinds is of flocks that schedule, not of --gossip"),
            ("--gossip --seconds 200", "--seconds is of flocks that schedule, not of --gossip"),
            ("--regressions --gossip", "--regressions is of flocks that schedule, not of --gossip"),
        ] {
            assert_eq!(parsed(line).map(|_| ()), Err(says.to_owned()), "{line}");
        }
    }

    #[test]
    fn the_replay_of_a_seed_is_the_same_run() {
        let args = parsed("--seeds 9 --nodes 3..=7 --minutes 2 --pace 5 --kinds 14").expect("fits");
        let run = Options { seed: 42, ..args.options };
        let line = run.replay();
        let again = parsed(line.trim_start_matches("cargo xtask sim ")).expect("fits");
        assert_eq!((again.start, again.seeds, again.options.verbose), (42, Some(1), true));
        let again = Options { seed: 42, verbose: false, ..again.options };
        let json = |options: &Options| serde_json::to_string(options).unwrap_or_default();
        assert_eq!(json(&again), json(&run));
        let alone = parsed("--gossip --nodes 50 --minutes 3 --pace 3 --wide 7").expect("fits");
        let line = alone.replay_gossip(7, 50, alone.options.safety_s / 60);
        let again = parsed(line.trim_start_matches("cargo xtask sim ")).expect("fits");
        assert!(again.gossip && again.options.verbose);
        assert_eq!((again.start, again.seeds, again.nodes), (7, Some(1), Some(50)));
        assert_eq!((again.options.safety_s, again.options.pace, again.wide_s), (180, 3, Some(7)));
    }
}
