//! One object per node: the coordinator of the apps it leads, and admission for itself.

use std::sync::Arc;

use rand::Rng;

use crate::api::{Config, Input, Output};
use crate::record::ClaimRecord;
use crate::spec::Spec;
use crate::why::Why;

/// Both halves of scheduling on one node.
pub struct Sched {
    config: Config,
}

/// An app as this node sees it.
#[derive(Clone, Debug)]
pub struct AppStatus {
    /// Namespace.
    pub namespace: String,
    /// App.
    pub app: String,
    /// Newest generation.
    pub generation: u64,
    /// Its spec; `None` when deleted.
    pub spec: Option<Arc<Spec>>,
    /// Told to stop.
    pub stopped: bool,
    /// Slots (for a daemon: nodes) wanted.
    pub desired: u32,
    /// Slots ready on the newest template.
    pub ready: u32,
    /// Claims on live nodes that hold resources.
    pub running: u32,
    /// The node that coordinates it, as seen from here; empty when there is none.
    pub coordinator: String,
}

impl Sched {
    /// A node's scheduler. Feed what was on disk, [`Input::SelfRecord`], [`Input::Adopt`]s and
    /// [`Input::Recovered`] first.
    #[must_use]
    pub fn new(config: Config, now_us: u64) -> Self {
        let _ = now_us;
        Self { config }
    }

    /// Takes one input and appends what has to be done.
    ///
    /// `now_us` is monotonic; `wall_ms` is written into records and breaks ties, nothing else.
    pub fn step(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        input: Input<'_>,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let _ = (now_us, wall_ms, input, rng, out, &self.config);
    }

    /// When [`Input::Timer`] is due, microseconds on the clock of `now_us`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// Why an app is not as wanted, as seen from this node.
    #[must_use]
    pub fn why(&self, now_us: u64, namespace: &str, app: &str) -> Why {
        let _ = (now_us, namespace, app);
        Why::default()
    }

    /// All apps with a spec, in order of `(namespace, app)`.
    pub fn apps(&self) -> impl Iterator<Item = AppStatus> {
        std::iter::empty()
    }

    /// All claims known, `(claim id, record)`, in order of id.
    pub fn claims(&self) -> impl Iterator<Item = (&str, &ClaimRecord)> {
        std::iter::empty()
    }
}
