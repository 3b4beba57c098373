//! Containers next to Debian's crun and runc, and next to the least that the same isolation costs; all in turn.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{Better, Figure, Options, Report, idle, known};
use crate::run;

/// Ratios: of which metric, by whose, and what it has to stay below. CPU time says on a busy machine what the clock says
/// on a quiet one.
const RATIOS: &[(&str, &str, f64)] = &[
    ("run_true", "crun", 0.45),
    ("run_true_cpu", "crun", 0.45),
    ("run_true", "floor", 1.25),
    ("run_true_cpu", "floor", 1.25),
    ("exec_true", "crun", 0.4),
    ("exec_true_cpu", "crun", 0.4),
    ("hundred_pods", "crun", 0.5),
    ("hundred_pods_cpu", "crun", 0.5),
];
/// Private memory of a shim.
const SHIM_KB: f64 = 250.0;
/// How the names of all figures begin.
pub(crate) const NAMES: &[&str] =
    &["run_true", "exec_true", "hundred_pods", "shim_private", idle::PREFIX];
const ROUNDS: &str = "60";
const ROUNDS_QUICK: &str = "10";

/// A line of the example.
#[derive(Deserialize)]
struct Line {
    metric: String,
    who: String,
    value: Option<f64>,
    unit: String,
}

/// Builds, runs and compares; then what idles.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<()> {
    let only = options.only.as_deref().unwrap_or_default();
    known(only, NAMES)?;
    if !only.starts_with(idle::PREFIX) {
        compare(options, report)?;
    }
    if idle::PREFIX.starts_with(only) || only.starts_with(idle::PREFIX) {
        idle::run(options, report)?;
    }
    Ok(())
}

fn compare(options: &Options, report: &mut Report) -> Result<()> {
    run::install(&[("crun", "crun"), ("runc", "runc")])?;
    let args = ["--profile", "fast", "--quiet", "--locked", "-p", "initd"];
    run::check(run::cargo(&["build"]).args(args).args(["--bins", "--examples"]))?;
    let rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    let mut child = run::cargo(&["run"])
        .args(args)
        .args(["--example", "container", "--", rounds])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the example `container`")?;
    let stdout = child.stdout.take().context("the output is piped")?;
    let mut all: BTreeMap<String, (String, BTreeMap<String, f64>)> = BTreeMap::new();
    let mut ratios: BTreeMap<(String, String), f64> = BTreeMap::new();
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        let line: Line = serde_json::from_str(&line).with_context(|| line.clone())?;
        let value = line.value.unwrap_or(f64::NAN);
        if let Some((_, peer)) = line.who.split_once('/') {
            ratios.insert((line.metric, peer.to_owned()), value);
            continue;
        }
        let of = all.entry(line.metric).or_default();
        of.0 = line.unit;
        of.1.insert(line.who, value);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the example `container` failed: {status}");
    }
    for (metric, (unit, values)) in &all {
        let mut figure =
            Figure::new("container", metric, values.get("quelea").copied(), unit, Better::Lower);
        if metric == "shim_private" {
            figure = figure.goal(SHIM_KB);
        }
        for (who, value) in values.iter().filter(|(who, _)| *who != "quelea") {
            figure = figure.peer(who, Some(*value));
        }
        report.add(figure)?;
    }
    for (metric, peer, goal) in RATIOS {
        // A peer that is not there has no ratio.
        let Some(ratio) = ratios.get(&(metric.to_string(), peer.to_string())) else { continue };
        let name = format!("{metric}_vs_{peer}");
        let figure = Figure::new("container", name, Some(*ratio), "ratio", Better::Lower);
        report.add(figure.goal(*goal))?;
    }
    Ok(())
}
