//! Why an app is not as wanted: counts for each reason, the nearest miss, and what would place it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The answer to `quelea why`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// Namespace.
    pub namespace: String,
    /// App.
    pub app: String,
    /// False: no spec of that name is known here.
    pub known: bool,
    /// Newest generation.
    pub generation: u64,
    /// Slots wanted.
    pub desired: u32,
    /// Slots with a ready pod of the newest template.
    pub ready: u32,
    /// The node that coordinates it, as seen from here.
    pub coordinator: String,
    /// Why all starts are held; empty when they are not.
    pub held: String,
    /// Slots that are not ready, at most [`SLOTS_MAX`] of them.
    pub slots: Vec<SlotWhy>,
    /// Slots left out of `slots`.
    pub more: u32,
}

/// Slots explained one by one.
pub const SLOTS_MAX: usize = 16;

/// Why one slot is not ready.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotWhy {
    /// Slot.
    pub slot: u32,
    /// The claim's state, or `pending`, `offered`, `backing off`.
    pub state: String,
    /// Its node, when it has one.
    pub node: String,
    /// The last failure, when there was one.
    pub reason: String,
    /// Nodes looked at.
    pub nodes: u32,
    /// Of these, that would take it.
    pub feasible: u32,
    /// What rejected the others: each node counts once, for its first reason.
    pub rejected: Vec<Rejected>,
    /// What would place it; empty when nothing single would.
    pub fix: String,
}

/// Nodes rejected for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// `memory`, `cpu`, `rack skew`, `unique host`, `require arch == amd64`, ...
    pub reason: String,
    /// How many.
    pub nodes: u32,
    /// What was needed and the nearest miss: `need 256Mi; best r12-n04, 190Mi`.
    pub detail: String,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = &self.slots as &Vec<SlotWhy>;
        let _: Option<BTreeMap<(), ()>> = None;
        write!(f, "{}/{}", self.namespace, self.app)
    }
}
