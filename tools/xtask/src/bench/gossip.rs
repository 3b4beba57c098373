//! Membership and map on virtual time, next to foca 2.0.0 and chitchat 0.11.2 on the same network.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Better, Figure, Options, Report};
use crate::run;

/// What each figure has to be: by the beginning of its name, the first that fits.
const GOALS: &[(&str, f64)] = &[
    ("crash_known_by_all_200", 3.0),
    ("crash_known_by_all_1000", 4.0),
    ("crash_known_by_all_50", 3.0),
    ("crash_false_deaths", 0.0),
    ("false_deaths_5pct", 0.0),
    ("false_deaths_10pct", 0.0),
    ("false_deaths_20pct", 5.0),
    ("stall_8s_healthy_deaths", 0.0),
    ("stall_16s_healthy_deaths", 0.0),
    ("stall_16s_declared", 8.0),
    // Missed: each of 8 stalled nodes is declared dead once and everybody else hears of it, 8 x 127. See ADR 001.
    ("stall_16s_notices", 200.0),
    ("join_all_at_once_50", 2.0),
    ("join_all_at_once_200", 2.0),
    ("join_all_at_once_1000", 5.0),
    ("idle_50", 500.0),
    ("idle_200", 500.0),
    ("idle_1000", 600.0),
    ("update_everywhere_50", 0.8),
    ("update_everywhere_200", 0.8),
    ("update_everywhere_1000", 1.2),
    ("update_map_only_10000", 2.0),
    ("heal_one_view", 5.0),
    ("heal_equal_roots", 5.0),
    ("heal_records_lost", 0.0),
    ("one_way_deaths", 0.0),
    ("memory_1000_10000", 24.0),
    ("hostile_state_changes", 0.0),
    ("hostile_panics", 0.0),
    ("hostile_replies", 0.0),
];

/// By how many percent processes on real sockets may differ from the simulator.
const SOCKETS_GOAL: f64 = 25.0;
const SOCKETS: &str = "sockets_real_";
const SIMULATED: &str = "sockets_sim_";

/// A line of `figures`.
#[derive(Deserialize)]
struct Line {
    metric: String,
    who: String,
    value: Option<f64>,
    unit: String,
}

/// All values of one metric.
#[derive(Default)]
struct Values {
    ours: Vec<Option<f64>>,
    peers: BTreeMap<String, Vec<Option<f64>>>,
    unit: String,
}

/// Runs the figures and the memory example. Of several seeds the worst counts, ours and the peers'.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<()> {
    let mut args = vec![];
    if options.quick {
        args.push("--quick");
    }
    if let Some(only) = &options.only {
        args.extend(["--only", only.as_str()]);
    }
    let mut order = Vec::new();
    let mut all: BTreeMap<String, Values> = BTreeMap::new();
    // Real seconds on every CPU there is: not in CI.
    let real =
        !options.quick && options.only.as_ref().is_none_or(|o| SOCKETS.starts_with(o.as_str()));
    for example in ["figures", "memory", "sockets"] {
        let wanted =
            |metrics: &str| options.only.as_ref().is_none_or(|o| metrics.starts_with(o.as_str()));
        if (example == "sockets" && !real) || (example == "memory" && !wanted("memory")) {
            continue;
        }
        let args = if example == "figures" { args.as_slice() } else { &[] };
        for line in lines(example, args)? {
            if !all.contains_key(&line.metric) {
                order.push(line.metric.clone());
            }
            let values = all.entry(line.metric).or_default();
            values.unit = line.unit;
            match line.who.as_str() {
                "quelea" => values.ours.push(line.value),
                _ => values.peers.entry(line.who).or_default().push(line.value),
            }
        }
    }
    for metric in order {
        let Some(values) = all.get(&metric) else { continue };
        if metric.starts_with(SIMULATED) {
            continue;
        }
        if let Some(what) = metric.strip_prefix(SOCKETS)
            && let Some(simulated) = all.get(&format!("{SIMULATED}{what}"))
        {
            let (real, simulated) =
                (worst(&values.ours, Better::Lower), worst(&simulated.ours, Better::Lower));
            report.add(agreement(what, real, simulated))?;
            continue;
        }
        let rate = metric.contains("per_second") || metric.starts_with("sim_speed");
        let better = if rate { Better::Higher } else { Better::Lower };
        let ours = worst(&values.ours, better);
        let mut figure = Figure::new("gossip", &metric, ours, &values.unit, better);
        // A size at which only a peer was run has no goal for us to miss.
        let goal = GOALS.iter().find(|(name, _)| metric.starts_with(name));
        if let Some((_, goal)) = goal.filter(|_| !values.ours.is_empty()) {
            figure = figure.goal(*goal);
        }
        for (name, values) in &values.peers {
            figure = figure.peer(name, worst(values, better));
        }
        report.add(figure)?;
    }
    Ok(())
}

/// How far processes on real sockets and the simulator are apart, in percent of the latter, with both figures as peers.
fn agreement(what: &str, real: Option<f64>, simulated: Option<f64>) -> Figure {
    let apart = real.zip(simulated).map(|(real, sim)| (real / sim - 1.0).abs() * 100.0);
    Figure::new("gossip", format!("sockets_apart_{what}"), apart, "%", Better::Lower)
        .goal(SOCKETS_GOAL)
        .peer("sockets", real)
        .peer("sim", simulated)
}

/// The worst; what never came is worse than all.
fn worst(values: &[Option<f64>], better: Better) -> Option<f64> {
    let all: Option<Vec<f64>> = values.iter().copied().collect();
    all?.into_iter().reduce(if better == Better::Lower { f64::max } else { f64::min })
}

fn lines(example: &str, args: &[&str]) -> Result<Vec<Line>> {
    let mut command =
        run::cargo(&["run", "--profile", "sim", "--quiet", "--locked", "-p", "gossip"]);
    command.args(["--example", example, "--"]).args(args);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let stdout = child.stdout.take().context("the output is piped")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        lines.push(serde_json::from_str(&line).with_context(|| format!("{example}: {line}"))?);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_and_simulator_are_compared_both_ways() {
        let apart = |real, sim| agreement("join_50", Some(real), Some(sim));
        assert_eq!(apart(0.75, 1.0).pass, Some(true));
        assert_eq!(apart(1.5, 1.0).value, Some(50.0));
        assert_eq!(apart(0.5, 1.0).pass, Some(false));
        assert_eq!(agreement("join_50", None, Some(1.0)).pass, Some(false));
    }

    #[test]
    fn the_worst_seed_counts_and_never_is_worse_than_all() {
        let values = [Some(1.0), Some(3.0), Some(2.0)];
        assert_eq!(worst(&values, Better::Lower), Some(3.0));
        assert_eq!(worst(&values, Better::Higher), Some(1.0));
        assert_eq!(worst(&[Some(1.0), None], Better::Lower), None);
        assert_eq!(worst(&[], Better::Higher), None);
    }
}
