//! The simulator's part of CI: which seeds, and how much they have to come to.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::bench::{Better, Figure};
use crate::run;

/// Faults close upon each other, for a minute and a half: where most bugs were found.
const DENSE: &[&str] = &["--start", "5000", "--seeds", "200"];
/// An hour of flocks that have time to come to rest between faults.
const LONG: &[&str] = &["--start", "5000", "--seeds", "200", "--seconds", "3600", "--pace", "5"];
/// Equal seeds, equal traces.
const TWICE: &[&str] = &["--start", "700", "--seeds", "10", "--twice"];

/// Gossip without what it carries, in larger flocks and under more faults: enough of them that each kind is required.
const ALONE: &[&str] = &[
    "--gossip",
    "--nodes",
    "50",
    "--minutes",
    "8",
    "--wide",
    "12",
    "--seeds",
    "3",
    "--twice",
    "--json",
];

/// What the long set has to be.
const SEEDS_MIN: f64 = 200.0;
const NODE_HOURS_MIN: f64 = 2_000.0;
const FAULTS_MIN: f64 = 20_000.0;
/// What it may take of one processor. Another machine is another figure: told, and no failure.
const CPU_MAX_S: f64 = 300.0;

/// What the simulator prints of a set.
#[derive(Deserialize)]
struct Summary {
    seeds: f64,
    node_hours: f64,
    faults: f64,
    cpu_s: f64,
}

/// Runs all of it. A violation, a mark that was never met and a set that is too small fail.
pub(crate) fn stage() -> Result<()> {
    run::sim(&["--regressions", "--json"])?;
    run::sim(&[DENSE, &["--json"]].concat())?;
    let small = figures(&summary(LONG)?)?;
    run::sim(&[TWICE, &["--json"]].concat())?;
    run::sim(ALONE)?;
    if !small.is_empty() {
        bail!("the set of seeds is too small: {}", small.join(", "));
    }
    Ok(())
}

/// Runs a set; what it printed is printed again.
fn summary(set: &[&str]) -> Result<Summary> {
    let mut command = run::simulator();
    let output = command.args(set).arg("--json").stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    if !output.status.success() {
        bail!("sim {} failed: {}", set.join(" "), output.status);
    }
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("sim printed no summary: {line:?}"))
}

/// Prints the figures; those that make the set too small.
fn figures(set: &Summary) -> Result<Vec<String>> {
    let rate = set.node_hours / set.cpu_s.max(0.01);
    let (more, less) = (Better::Higher, Better::Lower);
    let rows = [
        ("set_seeds", set.seeds, "", more, SEEDS_MIN, true),
        ("set_node_hours", set.node_hours, "h", more, NODE_HOURS_MIN, true),
        ("set_faults", set.faults, "", more, FAULTS_MIN, true),
        ("set_cpu", set.cpu_s, "s", less, CPU_MAX_S, false),
        ("set_node_hours_per_cpu_second", rate, "h/s", more, NODE_HOURS_MIN / CPU_MAX_S, false),
    ];
    let mut small = Vec::new();
    for (metric, value, unit, better, goal, must) in rows {
        let figure = Figure::new("sim", metric, Some(value), unit, better).goal(goal);
        println!("{}", serde_json::to_string(&figure)?);
        if must && figure.pass == Some(false) {
            small.push(format!("{metric} {value:.0} of {goal:.0}"));
        }
    }
    Ok(small)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_set_fails_and_a_slow_machine_does_not() {
        let set = |faults| Summary { seeds: 200.0, node_hours: 2_000.0, faults, cpu_s: 900.0 };
        assert!(figures(&set(20_000.0)).expect("it prints").is_empty());
        assert_eq!(figures(&set(19_999.0)).expect("it prints"), ["set_faults 19999 of 20000"]);
    }
}
