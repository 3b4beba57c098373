//! What both sides do, and what is measured of it.

/// Nodes that start together, wait, write, wait and die one after the other; each pause and count in both worlds alike.
pub(crate) const REST_S: u64 = 5;
pub(crate) const UPDATES: usize = 5;
pub(crate) const BETWEEN_UPDATES_S: u64 = 1;
pub(crate) const SETTLE_S: u64 = 4;
pub(crate) const IDLE_S: u64 = 15;
pub(crate) const CRASHES: usize = 3;
pub(crate) const BETWEEN_CRASHES_S: u64 = 3;
/// What is written.
pub(crate) const BODY: [u8; 700] = [1; 700];
/// A node that did not learn in so long never will.
pub(crate) const PATIENCE_S: u64 = 30;

pub(crate) fn name(node: usize) -> String {
    format!("n{node}")
}

pub(crate) fn key(round: usize) -> String {
    format!("s/default/app-{round}")
}

/// Samples of one side.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    pub(crate) join_s: Vec<f64>,
    pub(crate) update_s: Vec<f64>,
    pub(crate) idle_rate: Vec<f64>,
    pub(crate) crash_s: Vec<f64>,
}

/// The value below which this share of all lies.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1)) as f64 * share;
    sorted.get(at.round() as usize).copied().unwrap_or(f64::NAN)
}
