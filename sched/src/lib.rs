//! Decisions: what should run where, and whether this node lets it.
//!
//! Nothing here does IO. [`Sched`] is one object per node; it takes the time, an [`Input`] and a random
//! source, and returns [`Output`]s. It holds both halves of scheduling:
//!
//! ```text
//!            signed specs  s/<ns>/<app>          members (SWIM)
//!                    │                              │
//!                    ▼                              ▼
//!   ┌──────────── coordinator ────────────┐   ┌── guard ──┐      the top rendezvous-ranked live node of
//!   │ per app: settle → place → watch     │◀──│ hold new  │      an app coordinates it; the others only
//!   │ rollout, drain, dedupe, scale       │   │ starts?   │      keep the same view
//!   └──────┬───────────────────▲──────────┘   └───────────┘
//!   Offer, │ Stop, Ask         │ Accept, Refuse, Status, Gone          unicast, unreliable, retried
//!          ▼                   │
//!   ┌──────────── admission (every node) ─┐
//!   │ what it really has; terms; unique   │ ──▶ Start / Stop to the agent ──▶ shim
//!   │ host; the only writer of a/<me>/*   │ ◀── Observed
//!   └─────────────────────────────────────┘
//! ```
//!
//! A claim's life on its node:
//!
//! ```text
//!  Offer ─▶ Admitted ─▶ Pulling ─▶ Starting ─▶ Running ─(ready)─▶ Running, ready
//!               │           │          │           │ ▲                 │
//!               │           └──────────┴─▶ Failed ◀┘ └── Exited ◀──────┤  (the shim restarts it in place)
//!               └───────────────── Stopping ◀──────────────────────────┘ ─▶ record deleted
//! ```
//!
//! Invariants, held by the simulator (`tools/sim`) at every step:
//! - the sum of what a node has admitted never exceeds its capacity, whatever it is told;
//! - `unique = "host"` is never violated, and a hard spread leaves a slot pending rather than break it;
//! - a record `a/<node>/…` or `n/<node>` is written by that node alone; others may only delete it after
//!   the node was forgotten;
//! - a side with at most half of the known roster starts nothing: known losses hold starts (guard), and
//!   what is not known yet shows when the flock is asked before a start and does not answer (contact);
//! - at rest every slot of an app has exactly one claim.
//!
//! Refused here: clocks, threads, sockets, files, the order of a hash map, and types of other crates.
//! Bytes from the map or from a peer are decoded with bounds ([`record`], [`msg`]); what does not decode
//! changes nothing.

mod admit;
mod api;
mod app;
mod contact;
mod coordinator;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
mod guard;
pub mod hash;
pub mod msg;
mod place;
pub mod record;
mod sched;
pub mod spec;
mod status;
mod tags;
mod turn;
mod view;
pub mod why;

pub use api::{
    Claim, Config, Event, Input, LOCAL_TRIES_MAX, MemberState, Observed, Output, SMALL_FLOCK,
};
pub use error::Error;
pub use record::{ClaimRecord, ClaimState, NodeRecord, RolloutRecord};
pub use sched::{AppStatus, Sched};
pub use spec::Spec;
pub use why::Why;
