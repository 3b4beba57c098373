//! What goes into and comes out of [`Sched`](crate::Sched).

use std::sync::Arc;

use crate::record::{ClaimRecord, NodeRecord};
use crate::spec::Spec;

/// Timing and bounds. The defaults are for one LAN.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// This node may act before it has met another: it is the first of its flock, or all of it. Others hold
    /// all starts until then.
    pub bootstrap: bool,
    /// A new coordinator waits this long for claims to arrive, milliseconds.
    pub settle_ms: u64,
    /// The same where the roster has at most [`SMALL_FLOCK`] nodes.
    pub settle_small_ms: u64,
    /// No start earlier than this after a loss, milliseconds.
    pub loss_hold_ms: u64,
    /// Losses are counted over this window for the mass-loss guard, milliseconds.
    pub mass_window_ms: u64,
    /// How long a mass loss holds starts, milliseconds.
    pub mass_hold_ms: u64,
    /// How long rejoining nodes hold starts, milliseconds of quiet.
    pub rejoin_quiet_ms: u64,
    /// An unanswered offer is sent again after this, milliseconds, with up to half of it as jitter.
    pub offer_retry_ms: u64,
    /// First backoff of a slot that failed, milliseconds; doubles up to `backoff_max_ms`.
    pub backoff_ms: u64,
    /// Longest backoff of a slot, milliseconds.
    pub backoff_max_ms: u64,
    /// A node on which an app failed is avoided by it for this long, milliseconds.
    pub flap_ms: u64,
    /// A step later than its deadline by more than this means that this node was stopped: it settles
    /// again, milliseconds.
    pub stall_ms: u64,
}

/// Roster size up to which [`Config::settle_small_ms`] is used: rumours reach everyone in one round.
pub const SMALL_FLOCK: usize = 16;

impl Config {
    /// The defaults for a node of this name.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            bootstrap: true,
            settle_ms: 2_000,
            settle_small_ms: 1_000,
            loss_hold_ms: 1_500,
            mass_window_ms: 15_000,
            mass_hold_ms: 20_000,
            rejoin_quiet_ms: 3_000,
            offer_retry_ms: 300,
            backoff_ms: 1_000,
            backoff_max_ms: 60_000,
            flap_ms: 60_000,
            stall_ms: 1_500,
        }
    }
}

/// A member as SWIM sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// Answers.
    Alive,
    /// Has not answered for a moment; treated as alive but offered nothing new.
    Suspect,
    /// Declared dead; still on the roster.
    Dead,
    /// Left in order; not on the roster.
    Left,
    /// Removed from the roster by an operator; its records may be deleted by others.
    Forgotten,
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A member changed. This node itself is always alive and need not be fed.
    Member {
        /// Its name.
        name: &'a str,
        /// Its new state.
        state: MemberState,
    },
    /// A record under `n/`, `a/` or `r/` changed or was read back from disk. Other keys are ignored.
    /// The node's own writes may be fed back; they change nothing.
    Record {
        /// Map key.
        key: &'a str,
        /// `None`: deleted.
        body: Option<&'a [u8]>,
        /// Who wrote it.
        writer: &'a str,
    },
    /// A spec whose signature was checked by the caller. An older generation than the newest seen is
    /// ignored; of one generation the last fed counts.
    Spec {
        /// Namespace.
        namespace: &'a str,
        /// App.
        app: &'a str,
        /// Generation, rising with every change.
        generation: u64,
        /// `None`: deleted, which also stops it.
        spec: Option<Arc<Spec>>,
        /// Kept but stopped.
        stopped: bool,
    },
    /// Bytes that another node's [`Output::Send`] carried.
    Message {
        /// The authenticated sender.
        from: &'a str,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// What the agent sees of a claim that was started here.
    Pod {
        /// Claim id.
        claim: &'a str,
        /// Its state.
        observed: Observed,
    },
    /// At the agent's start, once for each pod whose shim still lives: this claim is still here.
    Adopt {
        /// Claim id.
        claim: &'a str,
        /// As [`Claim::record`] was given with its start, or newer.
        record: ClaimRecord,
        /// Its state.
        observed: Observed,
    },
    /// At the agent's start, after all records read from disk and all [`Input::Adopt`]: claims of this
    /// node that were not adopted are gone. Offers are refused until then.
    Recovered,
    /// What this node is and has. Its `drain` is ignored: see [`Input::Drain`].
    SelfRecord(NodeRecord),
    /// This node was away without ending (a paused machine, a long stall), and others may have taken it for dead: its pods
    /// are not shown as ready until it has heard the flock, and those that were replaced are stopped.
    Away,
    /// Take no new pods and have those here moved away, or stop doing so.
    Drain(bool),
    /// [`Sched::next_deadline`](crate::Sched::next_deadline) came.
    Timer,
}

/// What the agent sees of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Its image is on its way.
    Pulling,
    /// Its network and containers are being made.
    Starting {
        /// Its address.
        ip: String,
    },
    /// Its containers run.
    Running {
        /// Its address.
        ip: String,
        /// All probes pass (or there are none).
        ready: bool,
    },
    /// A container exited; its shim restarts it.
    Exited {
        /// Exit code.
        code: Option<i32>,
        /// Or the signal that ended it.
        signal: Option<i32>,
        /// The kernel killed it for memory.
        oom: bool,
        /// Restarts so far.
        restarts: u32,
        /// For people.
        reason: String,
    },
    /// It cannot run here. The agent has cleaned it up.
    Failed {
        /// For people: what was tried, why it failed.
        reason: String,
        /// Trying again here may help: admission does so, up to [`LOCAL_TRIES_MAX`] times.
        retryable: bool,
    },
    /// What its operator should know of it while it runs; empty takes it back.
    Noted {
        /// For people.
        note: String,
    },
    /// Nothing of it is left: the answer to [`Output::Stop`], or its shim is gone.
    Gone,
}

/// Starts of one claim on one node before it is reported failed.
pub const LOCAL_TRIES_MAX: u32 = 3;

/// A pod to start.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Unique in the flock: 12 hex digits; fit for paths.
    pub id: String,
    /// What it runs.
    pub spec: Arc<Spec>,
    /// Its record as just written. The agent keeps it with the pod for [`Input::Adopt`].
    pub record: ClaimRecord,
}

impl Claim {
    /// `<app>.<slot>`, for a daemon `<app>.<node>`.
    #[must_use]
    pub fn pod_name(&self) -> String {
        self.record.pod_name()
    }
}

/// What the caller has to do.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a few at a time, taken apart at once")]
pub enum Output {
    /// Write a record of this node, or a rollout record.
    Put {
        /// Map key.
        key: String,
        /// At most [`BODY_MAX`](crate::record::BODY_MAX) bytes.
        body: Vec<u8>,
    },
    /// Delete a record.
    Delete {
        /// Map key.
        key: String,
    },
    /// Carry a message to a node, at most [`MESSAGE_MAX`](crate::msg::MESSAGE_MAX) bytes; it may be lost.
    /// Never to this node itself.
    Send {
        /// Node.
        to: String,
        /// Message.
        bytes: Vec<u8>,
    },
    /// Start a pod; report by [`Input::Pod`]. May come again for the same claim after
    /// [`Observed::Failed`].
    Start(Claim),
    /// Stop a pod; report [`Observed::Gone`]. Comes again until then.
    Stop {
        /// Claim id.
        claim: String,
        /// Until `KILL`, milliseconds.
        grace_ms: u64,
    },
    /// For logs and watchers. Nothing has to be done.
    Event(Event),
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This node coordinates the app from now on.
    TookOver {
        /// `ns/app`
        app: String,
        /// Its term.
        term: u64,
    },
    /// Another node does.
    SteppedDown {
        /// `ns/app`
        app: String,
    },
    /// A slot's pod was accepted.
    Placed {
        /// `ns/app`
        app: String,
        /// Slot.
        slot: u32,
        /// Where.
        node: String,
    },
    /// A node refused an offer.
    Refused {
        /// `ns/app`
        app: String,
        /// Slot.
        slot: u32,
        /// Who.
        node: String,
        /// Why.
        reason: String,
    },
    /// A slot is moved: its pod failed, its node died or drains.
    Moving {
        /// `ns/app`
        app: String,
        /// Slot.
        slot: u32,
        /// From where.
        node: String,
        /// Why.
        reason: String,
    },
    /// A surplus pod of a slot is stopped.
    Duplicate {
        /// `ns/app`
        app: String,
        /// Slot.
        slot: u32,
        /// Where the loser runs.
        node: String,
    },
    /// Starts are held.
    Held {
        /// Why; empty when they are free again.
        reason: String,
    },
    /// An app's phase changed.
    Phase {
        /// `ns/app`
        app: String,
        /// As in [`RolloutRecord::phase`](crate::RolloutRecord::phase).
        phase: String,
    },
    /// A pod of this node cannot run here.
    Failed {
        /// Claim id.
        claim: String,
        /// `<app>.<slot>`
        pod: String,
        /// Why.
        reason: String,
    },
    /// Bytes from outside were not understood and dropped.
    Malformed {
        /// The record's writer or the message's sender.
        from: String,
        /// What and why.
        error: String,
    },
}
