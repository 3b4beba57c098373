//! `sim --seeds N --start S --nodes 3..64 --seconds 90 [--json] [--twice] [--verbose]`

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use args::{Args, HELP};
use sim::{Options, Report, Summary};

mod args;

/// A sixth of a run is allocation; this one makes a run 3 to 4 % shorter.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn run(args: &Args) -> Vec<Report> {
    let seeds = args.seeds.unwrap_or(100);
    let next = AtomicU64::new(0);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= seeds {
                        break;
                    }
                    let options = match sim::REGRESSIONS.get(n as usize) {
                        Some(known) if args.regressions => {
                            Options { verbose: args.options.verbose, ..known.options() }
                        }
                        _ => Options { seed: args.start + n, ..args.options.clone() },
                    };
                    let mut report = sim::run(&options);
                    if args.twice && sim::run(&options).trace != report.trace {
                        report.violations.push("the same seed gave another trace".into());
                    }
                    if !report.violations.is_empty() {
                        eprintln!("{}", report.failure());
                    }
                    // A poisoned lock means that another run panicked: it ends this one as well.
                    reports.lock().expect("no run panics while it holds this").push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().expect("no run panics while it holds this");
    reports.sort_by_key(|r| r.options.seed);
    reports
}

/// One large flock a seed.
fn gossip_alone(args: &Args) -> ExitCode {
    let mut failed = false;
    let mut marks = sim::marks::Marks::default();
    let (mut few, mut wide) = (0, false);
    let minutes = (args.options.safety_s / 60).max(1);
    for seed in args.start..args.start.saturating_add(args.seeds.unwrap_or(1)) {
        let options = sim::flock::Options {
            seed,
            nodes: args.nodes.unwrap_or(1000),
            minutes,
            pace: args.options.pace,
            wide_s: args.wide_s.unwrap_or(sim::flock::WIDE_S),
            verbose: args.options.verbose,
        };
        let mut report = sim::flock::run(&options);
        if args.twice && sim::flock::run(&options).trace != report.trace {
            report.violations.push("the same seed gave another trace".into());
        }
        failed |= !report.violations.is_empty();
        few += report.faults - report.wide_faults;
        wide |= report.wide_faults >= sim::marks::REQUIRED_GOSSIP_WIDE.len() as u64;
        report.marks.iter().for_each(|(name, n)| *marks.0.entry(name).or_default() += n);
        if args.json {
            println!("{}", serde_json::to_string(&report).unwrap_or_default());
        } else {
            println!(
                "seed {seed}: {} nodes, {:.0} s, {:.1} node-hours, {} faults ({} of the whole flock), {} of {} writes acknowledged, {} events in \
                 {:.1} s ({:.1} CPU-s); agreed after {} ms; trace {}",
                report.nodes,
                report.virtual_s,
                report.node_hours,
                report.faults,
                report.wide_faults,
                report.acked,
                report.puts,
                report.events,
                report.wall_s,
                report.cpu_s,
                report.agreed_ms,
                report.trace
            );
        }
        if !report.violations.is_empty() {
            eprintln!("seed {seed} failed");
            report.violations.iter().for_each(|wrong| eprintln!("  {wrong}"));
            eprintln!("  replay: {}", args.replay_gossip(seed, options.nodes, minutes));
        }
    }
    let missing = marks.missing_gossip(few, wide);
    if !missing.is_empty() {
        eprintln!("never met: {}", missing.join(", "));
        failed = true;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn main() -> ExitCode {
    let args = match args::parse(lexopt::Parser::from_env()) {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("sim: {e}\nsim: --help shows what it takes");
            return ExitCode::from(2);
        }
    };
    if args.gossip {
        return gossip_alone(&args);
    }
    let started = Instant::now();
    let reports = run(&args);
    let summary = Summary::of(&reports, started.elapsed().as_secs_f64());
    if args.json {
        println!("{}", serde_json::to_string(&summary).unwrap_or_default());
    } else {
        println!(
            "{} seeds from {}: {} failed; {:.1} node-hours, {} faults, {} starts, {} events in {:.1} s ({:.1} CPU-s, {:.1} \
             node-hours each); whole {} ms (median), {} ms (longest) after the heal; trace {}",
            summary.seeds,
            summary.start,
            summary.failed.len(),
            summary.node_hours,
            summary.faults,
            summary.starts,
            summary.events,
            summary.wall_s,
            summary.cpu_s,
            summary.node_hours / summary.cpu_s.max(0.01),
            summary.healed_p50_ms,
            summary.healed_max_ms,
            summary.trace
        );
        if !summary.missing_marks.is_empty() {
            println!("never met: {}", summary.missing_marks.join(", "));
        }
    }
    if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
