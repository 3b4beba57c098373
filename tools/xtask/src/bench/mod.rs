//! `cargo xtask bench NAME`: figures against their goals, and against peers measured in the same run.
//!
//! Each figure is one JSON line: `bench`, `metric`, `value` (null: it never came to an end), `unit`, `goal` (null: none),
//! `better` (`lower` or `higher`), `peer` (name to value) and `pass` (null without a goal). A figure that is the median of
//! samples has `spread`, too: who to `low` and `high` (between them lie eight of ten) and how many `samples`. On a terminal,
//! a table.

mod container;
mod gossip;
mod idle;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// How a bench is to be run.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Small sizes, as in CI
    #[arg(long)]
    quick: bool,
    /// JSON lines on a terminal, too
    #[arg(long)]
    json: bool,
    /// Only figures whose name begins so
    #[arg(long, value_name = "NAME", long_help = only_help())]
    only: Option<String>,
}

fn only_help() -> String {
    format!(
        "Only figures whose name begins so. Names of gossip's begin with: {}. Of container's: {}",
        gossip::NAMES.join(", "),
        container::NAMES.join(", ")
    )
}

/// Runs one bench; fails when a goal is missed.
pub(crate) fn bench(name: &str, options: &Options) -> Result<()> {
    let mut report = Report::new(options);
    match name {
        "gossip" => gossip::run(options, &mut report)?,
        "container" => container::run(options, &mut report)?,
        _ => bail!("no bench {name:?}; there are: gossip, container"),
    }
    report.finish()
}

/// Whether some of a bench's figures can be meant by `only`: one begins with the other.
fn known(only: &str, names: &[&str]) -> Result<()> {
    if names.iter().any(|name| meant(only, name)) {
        return Ok(());
    }
    bail!("no figure's name begins with {only:?}; they begin with: {}", names.join(", "))
}

fn meant(only: &str, name: &str) -> bool {
    only.starts_with(name) || name.starts_with(only)
}

/// Which way a figure improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
}

/// How far samples lie apart: the first and the last tenth of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) samples: usize,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) bench: &'static str,
    pub(crate) metric: String,
    /// `None`: what was waited for never came.
    pub(crate) value: Option<f64>,
    pub(crate) unit: String,
    pub(crate) goal: Option<f64>,
    pub(crate) better: Better,
    pub(crate) peer: BTreeMap<String, Option<f64>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) spread: BTreeMap<String, Spread>,
    pub(crate) pass: Option<bool>,
}

impl Figure {
    /// A figure with nothing to compare it with.
    pub(crate) fn new(
        bench: &'static str,
        metric: impl Into<String>,
        value: Option<f64>,
        unit: impl Into<String>,
        better: Better,
    ) -> Figure {
        let (metric, unit) = (metric.into(), unit.into());
        let value = value.filter(|v| v.is_finite());
        let (goal, peer, pass) = (None, BTreeMap::new(), None);
        Figure { bench, metric, value, unit, goal, better, peer, spread: BTreeMap::new(), pass }
    }

    /// Judged by a goal: a value that never came misses it.
    pub(crate) fn goal(mut self, goal: f64) -> Figure {
        let met = |value: f64| match self.better {
            Better::Lower => value <= goal,
            Better::Higher => value >= goal,
        };
        self.pass = Some(self.value.is_some_and(met));
        self.goal = Some(goal);
        self
    }

    /// What a peer needed for the same.
    pub(crate) fn peer(mut self, name: &str, value: Option<f64>) -> Figure {
        self.peer.insert(name.to_owned(), value.filter(|v| v.is_finite()));
        self
    }
}

impl Figure {
    /// How the samples of somebody lie.
    pub(crate) fn spread(mut self, who: &str, spread: Option<Spread>) -> Figure {
        self.spread.extend(spread.map(|spread| (who.to_owned(), spread)));
        self
    }
}

/// Figures as they come.
pub(crate) struct Report {
    figures: Vec<Figure>,
    json: bool,
    only: Option<String>,
    /// What was measured and not asked for.
    others: Vec<String>,
}

impl Report {
    fn new(options: &Options) -> Report {
        let json = options.json || !std::io::stdout().is_terminal();
        Report { figures: Vec::new(), json, only: options.only.clone(), others: Vec::new() }
    }

    /// Takes a figure and, as JSON, prints it at once.
    pub(crate) fn add(&mut self, figure: Figure) -> Result<()> {
        if self.only.as_ref().is_some_and(|only| !figure.metric.starts_with(only.as_str())) {
            self.others.push(figure.metric);
            return Ok(());
        }
        if self.json {
            println!("{}", serde_json::to_string(&figure)?);
        }
        self.figures.push(figure);
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if !self.json {
            print!("{}", table(&self.figures));
        }
        if let Some(only) = self.only.as_ref().filter(|_| self.figures.is_empty()) {
            bail!(
                "no figure's name begins with {only:?}; measured were: {}",
                self.others.join(", ")
            );
        }
        let missed = self.figures.iter().filter(|f| f.pass == Some(false));
        let missed: Vec<&str> = missed.map(|f| f.metric.as_str()).collect();
        if !missed.is_empty() {
            bail!("{} of {} goals missed: {}", missed.len(), self.judged(), missed.join(", "));
        }
        Ok(())
    }

    fn judged(&self) -> usize {
        self.figures.iter().filter(|f| f.pass.is_some()).count()
    }
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "never".to_owned(),
        Some(v) if v.fract() == 0.0 => format!("{v:.0}"),
        Some(v) if v.abs() >= 100.0 => format!("{v:.0}"),
        Some(v) => format!("{v:.2}"),
    }
}

fn table(figures: &[Figure]) -> String {
    let mut rows = vec![["figure", "value", "goal", "peers", ""].map(String::from)];
    for f in figures {
        let sign = if f.better == Better::Lower { "≤" } else { "≥" };
        let goal = f.goal.map_or_else(|| "–".to_owned(), |g| format!("{sign} {}", number(Some(g))));
        let peers: Vec<String> =
            f.peer.iter().map(|(name, value)| format!("{name} {}", number(*value))).collect();
        let value = format!("{} {}", number(f.value), f.unit);
        let verdict = f.pass.map_or("", |pass| if pass { "met" } else { "MISSED" });
        let peers = peers.join(", ");
        rows.push([f.metric.clone(), value.trim().to_owned(), goal, peers, verdict.to_owned()]);
    }
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(only: Option<&str>) -> Report {
        let only = only.map(str::to_owned);
        Report::new(&Options { quick: false, json: true, only })
    }

    #[test]
    fn a_name_that_no_figure_has_is_an_error_that_names_those_there_are() {
        let mut wrong = report(Some("crash_unknown"));
        wrong.add(figure(Some(1.0), Better::Lower)).unwrap();
        let error = wrong.finish().unwrap_err().to_string();
        assert!(error.contains("\"crash_unknown\"") && error.ends_with(": x"), "{error}");
        let mut right = report(Some("x"));
        right.add(figure(Some(1.0), Better::Lower)).unwrap();
        right.finish().unwrap();
        report(None).finish().unwrap();
    }

    #[test]
    fn only_is_known_by_its_beginning_or_its_end() {
        let names = ["crash", "idle_"];
        for only in ["crash", "cr", "crash_known_by_all_50", "", "idle_rss"] {
            assert!(known(only, &names).is_ok(), "{only}");
        }
        for only in ["crush", "idle", "Crash", " crash"] {
            let result = known(only, &names);
            // A beginning of a name is enough.
            assert_eq!(result.is_ok(), only == "idle", "{only}");
            if let Err(error) = result {
                assert!(error.to_string().ends_with("crash, idle_"), "{error}");
            }
        }
    }

    fn figure(value: Option<f64>, better: Better) -> Figure {
        Figure::new("gossip", "x", value, "s", better)
    }

    #[test]
    fn a_goal_is_met_at_its_value_and_missed_by_what_never_came() {
        assert_eq!(figure(Some(3.0), Better::Lower).goal(3.0).pass, Some(true));
        assert_eq!(figure(Some(3.1), Better::Lower).goal(3.0).pass, Some(false));
        assert_eq!(figure(Some(3.1), Better::Higher).goal(3.0).pass, Some(true));
        assert_eq!(figure(None, Better::Lower).goal(3.0).pass, Some(false));
        assert_eq!(figure(Some(f64::NAN), Better::Higher).goal(3.0).pass, Some(false));
        assert_eq!(figure(Some(1.0), Better::Lower).pass, None);
    }

    #[test]
    fn a_line_has_all_fields() {
        let line = figure(Some(1.5), Better::Lower).goal(2.0).peer("foca", None);
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(
            json,
            r#"{"bench":"gossip","metric":"x","value":1.5,"unit":"s","goal":2.0,"better":"lower","peer":{"foca":null},"pass":true}"#
        );
        let table = table(&[line]);
        assert!(table.contains("x       1.50 s  ≤ 2   foca never  met"), "{table}");
    }
}
