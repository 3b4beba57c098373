//! One object per node: the coordinator of the apps it leads, and admission for itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rand::Rng;

use crate::admit::Admit;
use crate::api::{Config, Event, Input, Output, SMALL_FLOCK};
use crate::app::{App, Lead};
use crate::contact::Contact;
use crate::guard::{Guard, Hold};
use crate::hash;
use crate::msg::Message;
use crate::record::RolloutRecord;
use crate::spec::Spec;
use crate::turn::Turn;
use crate::view::{AppKey, View};

/// Answers that arrive together are looked at together after this, microseconds.
const COALESCE_ANSWERS_US: u64 = 1_000;
/// Messages of a node to itself handled within one step; more mean a loop between the two halves.
const LOCAL_MAX: usize = 10_000;
/// Pause between two looks at whether a fence may end, microseconds.
const FENCE_LOOK_US: u64 = 100_000;

/// Both halves of scheduling on one node.
pub struct Sched {
    config: Config,
    pub(crate) view: View,
    guard: Guard,
    pub(crate) apps: BTreeMap<AppKey, App>,
    /// Those that this node leads.
    led: BTreeSet<AppKey>,
    admit: Admit,
    /// Apps to look at, and when.
    dirty: BTreeMap<AppKey, u64>,
    daemons_dirty: bool,
    /// When records of nodes that are no members are looked for.
    sweep_at: Option<u64>,
    in_flight: usize,
    contact: Contact,
    want_contact: bool,
    /// Nodes alive, this one included, as of the last step.
    live: usize,
    local: VecDeque<Message>,
    /// What holds starts, and in words.
    hold: Option<Hold>,
    held: Option<String>,
    held_until: Option<u64>,
    /// Another node was alive since this one started.
    met: bool,
    /// Since when this node has known the flock.
    joined_us: u64,
    due: Option<u64>,
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
    /// What its coordinator last said.
    pub rollout: Option<RolloutRecord>,
}

/// The parts of a [`Sched`] that a step works on, borrowed apart.
macro_rules! turn {
    ($self:ident, $now:expr, $wall:expr, $rng:expr, $out:expr) => {
        Turn {
            config: &$self.config,
            now_us: $now,
            wall_ms: $wall,
            rng: $rng,
            view: &mut $self.view,
            out: $out,
            in_flight: &mut $self.in_flight,
            in_contact: $self.contact.is_fresh($now, $self.live),
            want_contact: &mut $self.want_contact,
            local: &mut $self.local,
        }
    };
}

mod apps;
mod inbox;
mod members;
mod records;

impl Sched {
    /// A node's scheduler. Feed what was on disk, [`Input::SelfRecord`], [`Input::Adopt`]s and
    /// [`Input::Recovered`] first; until the last it refuses all offers.
    #[must_use]
    pub fn new(config: Config, now_us: u64) -> Self {
        let view = View::new(&config.node);
        Self {
            config,
            view,
            guard: Guard::default(),
            apps: BTreeMap::new(),
            led: BTreeSet::new(),
            admit: Admit::default(),
            dirty: BTreeMap::new(),
            daemons_dirty: false,
            sweep_at: None,
            in_flight: 0,
            contact: Contact::default(),
            want_contact: false,
            live: 1,
            local: VecDeque::new(),
            hold: None,
            held: None,
            held_until: None,
            met: false,
            joined_us: now_us,
            due: None,
        }
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
        if self.due.is_some_and(|due| now_us > due + self.config.stall_ms * 1000) {
            // This node stood still: others may have taken over meanwhile.
            self.settle_again(now_us);
        }
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        match input {
            Input::Member { name, state } => self.member(now_us, name, state),
            Input::Record { key, body, writer } => {
                self.record(now_us, wall_ms, key, body, writer, rng, out);
            }
            Input::Spec { namespace, app, generation, spec, stopped } => {
                let key = AppKey::new(namespace, app);
                self.spec(now_us, wall_ms, key, generation, spec, stopped, rng, out);
            }
            Input::Message { from, bytes } => match Message::decode(bytes) {
                Ok(message) => self.message(now_us, wall_ms, from, message, rng, out),
                Err(e) => {
                    let event = Event::Malformed { from: from.to_owned(), error: e.to_string() };
                    out.push(Output::Event(event));
                }
            },
            Input::Pod { claim, observed } => self.admit.observed(&mut turn, claim, observed),
            Input::Adopt { claim, record, observed } => {
                self.admit.adopt(&mut turn, claim, record, observed);
            }
            Input::Recovered => {
                self.admit.recover(&mut turn);
                self.settle_again(now_us);
                self.daemons_dirty = true;
            }
            Input::SelfRecord(record) => {
                self.admit.set_record(&mut turn, record);
                self.all_dirty(now_us);
            }
            Input::Drain(drain) => {
                self.admit.set_drain(&mut turn, drain);
                self.all_dirty(now_us);
            }
            Input::Away => {
                self.admit.away(&mut turn);
                self.settle_again(now_us);
            }
            Input::Timer => {}
        }
        self.work(now_us, wall_ms, rng, out);
    }

    /// What is due after any input.
    fn work(&mut self, now_us: u64, wall_ms: u64, rng: &mut dyn Rng, out: &mut Vec<Output>) {
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        self.admit.timers(&mut turn);
        self.contact.timer(&mut turn);
        if self.sweep_at.is_some_and(|at| at <= now_us) {
            self.sweep(now_us, out);
        }
        self.hold(now_us, out);
        self.fence(now_us, wall_ms, rng, out);
        for _ in 0..LOCAL_MAX {
            self.tell(now_us, wall_ms, rng, out);
            if let Some(message) = self.local.pop_front() {
                let me = self.config.node.clone();
                self.message(now_us, wall_ms, &me, message, rng, out);
            } else if self.daemons_due(now_us) {
                self.run_daemons(now_us, wall_ms, rng, out);
            } else if let Some(key) = self.next_app(now_us) {
                self.coordinate(now_us, wall_ms, &key, rng, out);
            } else {
                break;
            }
        }
        if std::mem::take(&mut self.want_contact) {
            let mut turn = turn!(self, now_us, wall_ms, rng, out);
            self.contact.want(&mut turn);
        }
        self.due = self.deadline();
    }

    /// Ends the fence of a node that was away, once it has heard enough of the flock for long enough.
    fn fence(&mut self, now_us: u64, wall_ms: u64, rng: &mut dyn Rng, out: &mut Vec<Output>) {
        if !self.admit.fence_due(now_us) {
            return;
        }
        let heard = now_us >= self.joined_us + self.settle_us();
        if heard && self.contact.is_fresh(now_us, self.live) {
            let mut turn = turn!(self, now_us, wall_ms, rng, out);
            self.admit.back(&mut turn);
        } else {
            self.want_contact |= !self.contact.is_fresh(now_us, self.live);
            self.admit.look_again(now_us + FENCE_LOOK_US);
        }
    }

    /// When [`Input::Timer`] is due, microseconds on the clock of `now_us`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.due
    }

    fn deadline(&self) -> Option<u64> {
        let leads = self.leads_of().map(|(_, lead)| lead.wake);
        let dirty = self.dirty.values().copied();
        let others = self.admit.next_deadline().into_iter().chain(self.held_until);
        let others = others.chain(self.contact.next_deadline()).chain(self.sweep_at);
        leads.chain(dirty).chain(others).min()
    }

    /// The next app whose time has come.
    fn next_app(&mut self, now_us: u64) -> Option<AppKey> {
        if let Some(key) = self.dirty.iter().find(|(_, at)| **at <= now_us).map(|(k, _)| k.clone())
        {
            self.dirty.remove(&key);
            return Some(key);
        }
        self.leads_of().find(|(_, lead)| lead.wake <= now_us).map(|(key, _)| key.clone())
    }

    /// The apps that this node leads.
    fn leads_of(&self) -> impl Iterator<Item = (&AppKey, &Lead)> {
        self.led.iter().filter_map(|key| Some((key, self.apps.get(key)?.lead.as_ref()?)))
    }

    fn mark(&mut self, key: &AppKey, at: u64) {
        mark(&mut self.dirty, key, at);
    }

    fn all_dirty(&mut self, at: u64) {
        for key in &self.led {
            mark(&mut self.dirty, key, at);
        }
        self.daemons_dirty = true;
    }

    fn settle_us(&self) -> u64 {
        let small = self.view.roster() <= SMALL_FLOCK;
        1000 * if small { self.config.settle_small_ms } else { self.config.settle_ms }
    }

    /// This node does not know the flock (any more): all that it leads waits for news.
    fn settle_again(&mut self, now_us: u64) {
        self.joined_us = now_us;
        self.contact.forget();
        let until = now_us + self.settle_us();
        for app in self.apps.values_mut() {
            if let Some(lead) = &mut app.lead {
                lead.settle_until = lead.settle_until.max(until);
                lead.wake = until;
            }
        }
    }

    /// Why starts are held on this node.
    #[must_use]
    pub fn held(&self) -> Option<&str> {
        self.held.as_deref()
    }

    /// A coordinator's trouble to reach the others is in its rollout record, for all to see.
    pub(crate) fn trouble(app: &App) -> &str {
        app.rollout.as_ref().map_or("", |r| r.held.as_str())
    }

    /// This node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.config.node
    }

    pub(crate) fn roster(&self) -> usize {
        self.view.roster()
    }
}

fn mark(dirty: &mut BTreeMap<AppKey, u64>, key: &AppKey, at: u64) {
    match dirty.get_mut(key) {
        Some(due) => *due = (*due).min(at),
        None => {
            dirty.insert(key.clone(), at);
        }
    }
}

/// The live node that ranks highest for an app.
pub(crate) fn winner(view: &View, key: &AppKey) -> Option<(u64, String)> {
    let live = view.nodes.iter().filter(|(_, n)| n.live());
    live.map(|(name, _)| (hash::rank(&key.namespace, &key.app, name), name.clone())).max()
}
