//! Figures as JSON lines, for the specification's table.

use serde::Serialize;

/// One measured figure.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Figure {
    /// What measured it.
    pub bench: String,
    /// What was measured.
    pub metric: String,
    /// The value.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be, if promised.
    pub goal: Option<f64>,
    /// `lower` or `higher`.
    pub better: &'static str,
    /// The same of another product, where measured.
    pub peer: Option<f64>,
    /// Whether the goal is met; true without one.
    pub pass: bool,
}

impl Figure {
    /// A figure of which less is better. It passes as it was measured, however busy the machine was.
    #[must_use]
    pub fn lower(
        bench: &str,
        metric: &str,
        value: f64,
        unit: &'static str,
        goal: Option<f64>,
    ) -> Self {
        let value = (value * 1000.0).round() / 1000.0;
        let pass = goal.is_none_or(|goal| value <= goal);
        Self {
            bench: bench.into(),
            metric: metric.into(),
            value,
            unit,
            goal,
            better: "lower",
            peer: None,
            pass,
        }
    }

    /// The line.
    #[must_use]
    pub fn line(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}
