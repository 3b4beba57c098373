//! Membership and map on virtual time, next to foca 2.0.0 and chitchat 0.11.2 on the same network.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::{Better, Figure, Options, Report, Spread, known, meant};
use crate::run;

/// What each figure has to be: by the beginning of its name, up to a whole word.
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
    ("mass_loss_false_deaths", 0.0),
    ("burst_deaths", 0.0),
    ("hostile_state_changes", 0.0),
    ("hostile_panics", 0.0),
    ("hostile_replies", 0.0),
];

/// How the names of all figures begin. Those of the example `figures` are the names of its benches.
pub(crate) const NAMES: &[&str] = &[
    "crash",
    "false_deaths",
    "suspicions",
    "traffic",
    "stall",
    "join",
    "idle",
    "sim_speed",
    "update",
    "longest",
    "heal",
    "one_way",
    "weather",
    "rolling_restart",
    "mass_loss",
    "burst",
    "blank",
    "hostile",
    MEMORY,
    SOCKETS,
];
/// Figures of examples of their own.
const MEMORY: &str = "memory";
const SOCKETS: &str = "sockets";

/// By how many percent processes on real sockets may differ from the simulator.
const SOCKETS_GOAL: f64 = 25.0;
const REAL: &str = "sockets_real_";
const SIMULATED: &str = "sockets_sim_";

/// A line of `figures`.
#[derive(Deserialize)]
struct Line {
    metric: String,
    who: String,
    value: Option<f64>,
    unit: String,
    /// Of a median alone.
    #[serde(flatten)]
    spread: Option<Spread>,
}

/// All values of one metric.
#[derive(Default)]
struct Values {
    ours: Vec<Option<f64>>,
    peers: BTreeMap<String, Vec<Option<f64>>>,
    unit: String,
    spread: Option<Spread>,
}

/// Runs the figures and the memory example. Of several seeds the worst counts, ours and the peers'.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    known(only, NAMES)?;
    let mut args = vec![];
    if options.quick {
        args.push("--quick");
    }
    if options.only.is_some() {
        args.extend(["--only", only]);
    }
    let mut order = Vec::new();
    let mut all: BTreeMap<String, Values> = BTreeMap::new();
    for example in ["figures", MEMORY, SOCKETS] {
        let wanted = match example {
            MEMORY => meant(only, MEMORY),
            // Real seconds on every CPU there is: not in CI.
            SOCKETS => meant(only, SOCKETS) && !options.quick,
            _ => NAMES.iter().any(|name| ![MEMORY, SOCKETS].contains(name) && meant(only, name)),
        };
        if !wanted {
            continue;
        }
        let args = if example == "figures" { args.as_slice() } else { &[] };
        for line in lines(example, args)? {
            if !all.contains_key(&line.metric) {
                order.push(line.metric.clone());
            }
            let values = all.entry(line.metric).or_default();
            (values.unit, values.spread) = (line.unit, line.spread);
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
        if let Some(what) = metric.strip_prefix(REAL)
            && let Some(simulated) = all.get(&format!("{SIMULATED}{what}"))
        {
            report.add(agreement(what, values, simulated))?;
            continue;
        }
        let rate = metric.contains("per_second") || metric.starts_with("sim_speed");
        let better = if rate { Better::Higher } else { Better::Lower };
        let ours = worst(&values.ours, better);
        let mut figure = Figure::new("gossip", &metric, ours, &values.unit, better);
        // A size at which only a peer was run has no goal for us to miss.
        if let Some(goal) = goal_of(&metric).filter(|_| !values.ours.is_empty()) {
            figure = figure.goal(goal);
        }
        for (name, values) in &values.peers {
            figure = figure.peer(name, worst(values, better));
        }
        figure = figure.spread("quelea", values.spread);
        report.add(figure)?;
    }
    Ok(())
}

/// `idle_50` is meant by `idle_50` and `idle_50_quiet`, and `idle_500` is another size.
fn goal_of(metric: &str) -> Option<f64> {
    let meant = |name: &str| {
        metric.strip_prefix(name).is_some_and(|rest| !rest.starts_with(|c: char| c != '_'))
    };
    GOALS.iter().find(|(name, _)| meant(name)).map(|(_, goal)| *goal)
}

/// How far processes on real sockets and the simulator are apart, in percent of the latter, with both medians as peers.
fn agreement(what: &str, real: &Values, simulated: &Values) -> Figure {
    let median = |side: &Values| worst(&side.ours, Better::Lower);
    let (sockets, sim) = (median(real), median(simulated));
    let apart = sockets.zip(sim).map(|(sockets, sim)| (sockets / sim - 1.0).abs() * 100.0);
    Figure::new("gossip", format!("sockets_apart_{what}"), apart, "%", Better::Lower)
        .goal(SOCKETS_GOAL)
        .peer("sockets", sockets)
        .peer("sim", sim)
        .spread("sockets", real.spread)
        .spread("sim", simulated.spread)
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
        let text = line?;
        let line: Line =
            serde_json::from_str(&text).with_context(|| format!("{example}: {text}"))?;
        ensure!(!line.unit.is_empty(), "{example}: a figure without a unit: {text}");
        lines.push(line);
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
        let side = |median: Option<f64>| {
            let spread = Spread { low: 0.1, high: 2.0, samples: 25 };
            Values { ours: vec![median], spread: Some(spread), ..Values::default() }
        };
        let apart = |real, sim| agreement("join_50", &side(real), &side(sim));
        assert_eq!(apart(Some(0.75), Some(1.0)).pass, Some(true));
        assert_eq!(apart(Some(1.5), Some(1.0)).value, Some(50.0));
        assert_eq!(apart(Some(0.5), Some(1.0)).pass, Some(false));
        assert_eq!(apart(None, Some(1.0)).pass, Some(false));
        assert_eq!(apart(Some(1.0), None).pass, Some(false));
        let json = serde_json::to_string(&apart(Some(0.75), Some(1.0))).unwrap();
        assert!(json.contains(r#""spread":{"sim":{"low":0.1,"high":2.0,"samples":25},"#), "{json}");
    }

    #[test]
    fn a_goal_is_of_whole_words() {
        assert_eq!(goal_of("idle_50"), Some(500.0));
        assert_eq!(goal_of("idle_500"), None);
        assert_eq!(goal_of("crash_known_by_all_200"), Some(3.0));
        assert_eq!(goal_of("crash_known_by_all_2000"), None);
        assert_eq!(goal_of("memory_1000_10000_700"), Some(24.0));
        assert_eq!(goal_of("false_deaths_5pct_200"), Some(0.0));
        assert_eq!(goal_of("crash_first_seen_200"), None);
        for (name, goal) in GOALS {
            assert_eq!(goal_of(name), Some(*goal), "{name} is hidden by one before it");
        }
    }

    #[test]
    fn a_line_has_a_spread_or_none() {
        let read = |line: &str| serde_json::from_str::<Line>(line).unwrap().spread;
        let plain = r#"{"metric":"x","who":"quelea","value":1.0,"unit":"s"}"#;
        assert_eq!(read(plain), None);
        let spread =
            r#"{"metric":"x","who":"quelea","value":1,"unit":"s","low":0.5,"high":2,"samples":9}"#;
        assert_eq!(read(spread), Some(Spread { low: 0.5, high: 2.0, samples: 9 }));
    }

    #[test]
    fn the_names_are_those_of_the_benches() {
        let source = include_str!("../../../../gossip/examples/figures/main.rs");
        let benches = source.split("const BENCHES").nth(1).and_then(|s| s.split("\n];").next());
        let heads = benches.unwrap().split("(&[").skip(1).map(|s| s.split(']').next().unwrap());
        let mut named: Vec<&str> =
            heads.flat_map(|head| head.split(", ")).map(|name| name.trim_matches('"')).collect();
        named.extend([MEMORY, SOCKETS]);
        named.dedup();
        for name in &named {
            assert!(NAMES.iter().any(|n| name.starts_with(n)), "{name} of {NAMES:?}");
        }
        for name in NAMES {
            assert!(named.contains(name), "{name} of {named:?}");
        }
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
