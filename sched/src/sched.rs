//! One object per node: the coordinator of the apps it leads, and admission for itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rand::Rng;

use crate::admit::Admit;
use crate::api::{Config, Event, Input, MemberState, Output, SMALL_FLOCK};
use crate::app::{App, Lead};
use crate::contact::Contact;
use crate::guard::{Guard, Hold};
use crate::hash;
use crate::msg::Message;
use crate::record::{ClaimRecord, NodeRecord, RolloutRecord, claim_key, node_key};
use crate::spec::Spec;
use crate::turn::Turn;
use crate::view::{AppKey, Node, View};

/// Apps remembered. Beyond it new ones are ignored.
const APPS_MAX: usize = 100_000;
/// Changes that arrive through the map are looked at together after this, microseconds.
const COALESCE_US: u64 = 20_000;
/// Answers that arrive together are looked at together after this, microseconds.
const COALESCE_ANSWERS_US: u64 = 1_000;
/// Messages of a node to itself handled within one step; more mean a loop between the two halves.
const LOCAL_MAX: usize = 10_000;
/// Records of forgotten nodes deleted in one step; the rest follow.
const SWEEP_MAX: usize = 256;
/// While any remain they are looked at this often: the node that should do it may have died, microseconds.
const SWEEP_US: u64 = 5_000_000;
/// Pause between two looks at whether a fence may end, microseconds.
const FENCE_LOOK_US: u64 = 100_000;
/// A node of which there are records but no membership for this long was forgotten, microseconds.
const STRAY_US: u64 = 30_000_000;

/// Both halves of scheduling on one node.
pub struct Sched {
    config: Config,
    pub(crate) view: View,
    guard: Guard,
    pub(crate) apps: BTreeMap<AppKey, App>,
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

mod inbox;

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
            admit: Admit::default(),
            dirty: BTreeMap::new(),
            daemons_dirty: false,
            sweep_at: None,
            in_flight: 0,
            contact: Contact::default(),
            want_contact: false,
            live: 1,
            local: VecDeque::new(),
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
        let leads = self.apps.values().filter_map(|a| a.lead.as_ref()).map(|l| l.wake);
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
        let due = |a: &App| a.lead.as_ref().is_some_and(|l| l.wake <= now_us);
        self.apps.iter().find(|(_, a)| due(a)).map(|(k, _)| k.clone())
    }

    fn mark(&mut self, key: &AppKey, at: u64) {
        let due = self.dirty.entry(key.clone()).or_insert(at);
        *due = (*due).min(at);
    }

    fn all_dirty(&mut self, at: u64) {
        let led: Vec<AppKey> =
            self.apps.iter().filter(|(_, a)| a.lead.is_some()).map(|(k, _)| k.clone()).collect();
        for key in led {
            self.mark(&key, at);
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

    // ── members ──────────────────────────────────────────────────────────────────────────────────

    fn member(&mut self, now_us: u64, name: &str, state: MemberState) {
        let was_alone = self.view.live() == 1;
        let was_live = self.view.nodes.get(name).is_some_and(|n| n.live());
        let Ok(old) = self.view.member(now_us, name, state) else { return };
        self.live = self.view.live();
        self.met |= state == MemberState::Alive;
        self.guard.member(&self.config, now_us, name, (old, state), self.view.roster());
        let live = self.view.nodes.get(name).is_some_and(|n| n.live());
        if live && was_alone {
            self.settle_again(now_us);
        }
        if live != was_live {
            self.rerank(now_us, name, live);
        }
        if state == MemberState::Forgotten {
            self.sweep_at = Some(now_us);
        }
        self.all_dirty(now_us);
    }

    /// A node came or went: who coordinates what?
    fn rerank(&mut self, now_us: u64, name: &str, live: bool) {
        let keys: Vec<AppKey> = self.apps.keys().cloned().collect();
        for key in keys {
            let Some(app) = self.apps.get_mut(&key) else { continue };
            if live {
                let rank = (hash::rank(&key.namespace, &key.app, name), name.to_owned());
                if app.winner.as_ref().is_none_or(|w| rank > *w) {
                    app.winner = Some(rank);
                }
            } else if app.winner.as_ref().is_some_and(|(_, w)| w == name) {
                app.winner = winner(&self.view, &key);
            }
            self.lead(now_us, &key, false);
        }
    }

    /// Takes or gives up the lead of an app as its winner says. `fresh`: nobody has led it before.
    fn lead(&mut self, now_us: u64, key: &AppKey, fresh: bool) {
        let settle_us = self.settle_us();
        let joined = self.joined_us + settle_us;
        let Some(app) = self.apps.get_mut(key) else { return };
        let mine = app.winner.as_ref().is_some_and(|(_, w)| *w == self.config.node);
        if mine && app.lead.is_none() && app.generation > 0 {
            let settle_until = if fresh { joined } else { joined.max(now_us + settle_us) };
            let lead = Lead { settle_until, wake: now_us.max(settle_until), ..Lead::default() };
            app.lead = Some(lead);
            self.mark(key, now_us);
        } else if !mine && let Some(lead) = app.lead.take() {
            for p in lead.offers.into_values() {
                self.view.release(&p.node, p.ask);
                self.in_flight -= 1;
            }
        }
    }

    /// A record of a node that is no member arrived.
    fn sweep_later(&mut self, now_us: u64, node: &str) {
        let stray = |n: &Node| !n.is_member();
        if self.sweep_at.is_none() && self.view.nodes.get(node).is_some_and(stray) {
            self.sweep_at = Some(now_us + STRAY_US);
        }
    }

    /// Deletes records of nodes that were forgotten, or that nobody has heard of for a while (this node
    /// was not there when they were forgotten), if it is for this node to do.
    fn sweep(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let mut left = SWEEP_MAX;
        let mut again = false;
        let names: Vec<String> = self
            .view
            .nodes
            .iter()
            .filter(|(_, n)| n.is_stray())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            let Some(node) = self.view.nodes.get(&name) else { continue };
            let since =
                if node.state.is_some() { 0 } else { node.since_us.max(self.joined_us) + STRAY_US };
            let sweeper = winner(&self.view, &AppKey::new("sweep", &name));
            let mine = sweeper.is_some_and(|(_, w)| w == self.config.node);
            if !mine || now_us < since || self.held.is_some() {
                again = true;
                continue;
            }
            if node.record.is_some() {
                self.view.node_record(now_us, &name, None);
                out.push(Output::Delete { key: node_key(&name) });
            }
            let ids: Vec<String> =
                self.view.claims_on(&name).take(left).map(str::to_owned).collect();
            left -= ids.len();
            for id in ids {
                self.view.drop_claim(&id, now_us, false);
                out.push(Output::Delete { key: claim_key(&name, &id) });
            }
            again |= left == 0;
        }
        self.sweep_at = again.then_some(now_us + SWEEP_US);
    }

    /// What holds starts now.
    fn hold(&mut self, now_us: u64, out: &mut Vec<Output>) {
        let alone = !self.met && !self.config.bootstrap;
        let hold = if alone {
            Some((Hold::Alone, None))
        } else {
            self.guard.hold(&self.config, now_us, self.view.live(), self.view.roster())
        };
        let (held, until) = match hold {
            None => (None, None),
            Some((hold, until)) => (Some(hold.to_string()), until),
        };
        self.held_until = until;
        if self.held != held {
            let reason = held.clone().unwrap_or_default();
            self.held = held;
            out.push(Output::Event(Event::Held { reason }));
            self.all_dirty(now_us);
        }
    }

    // ── records ──────────────────────────────────────────────────────────────────────────────────

    #[allow(clippy::too_many_arguments)]
    fn record(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: &str,
        body: Option<&[u8]>,
        writer: &str,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let mut parts = key.split('/');
        let kind = parts.next();
        let rest = (parts.next(), parts.next(), parts.next());
        let result = match (kind, rest) {
            (Some("n"), (Some(node), None, None)) => {
                if node == self.config.node {
                    let mut turn = turn!(self, now_us, wall_ms, rng, out);
                    self.admit.node_record_seen(&mut turn, body);
                    return;
                }
                self.node_record(now_us, node, body, writer)
            }
            (Some("a"), (Some(node), Some(claim), None)) => {
                if node == self.config.node && self.admit.recovered {
                    let mut turn = turn!(self, now_us, wall_ms, rng, out);
                    self.admit.claim_record_seen(&mut turn, claim, body.is_some());
                    return;
                }
                self.claim_record(now_us, wall_ms, (node, claim), body, writer, rng, out)
            }
            (Some("r"), (Some(namespace), Some(app), None)) => {
                self.rollout_record(now_us, &AppKey::new(namespace, app), body)
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            let from = writer.to_owned();
            out.push(Output::Event(Event::Malformed { from, error: format!("{key}: {error}") }));
        }
    }

    fn node_record(
        &mut self,
        now_us: u64,
        node: &str,
        body: Option<&[u8]>,
        writer: &str,
    ) -> Result<(), String> {
        let record = match body {
            Some(_) if writer != node => return Err(format!("written by {writer}")),
            Some(body) => Some(NodeRecord::decode(body).map_err(|e| e.to_string())?),
            None => None,
        };
        self.view.node_record(now_us, node, record);
        self.sweep_later(now_us, node);
        self.all_dirty(now_us + COALESCE_US);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn claim_record(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        (node, claim): (&str, &str),
        body: Option<&[u8]>,
        writer: &str,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let Some(body) = body else {
            let for_good = writer == node;
            self.claim_gone(now_us, wall_ms, claim, for_good, now_us + COALESCE_US, rng, out);
            return Ok(());
        };
        if writer != node {
            return Err(format!("written by {writer}"));
        }
        let record = ClaimRecord::decode(body).map_err(|e| e.to_string())?;
        if record.node != node {
            return Err(format!("speaks of node {}", record.node));
        }
        self.claim_news(now_us, claim, record, None, now_us + COALESCE_US);
        Ok(())
    }

    /// A claim's record, from the map or (`acked_us`) from its node itself.
    fn claim_news(
        &mut self,
        now_us: u64,
        id: &str,
        record: ClaimRecord,
        acked_us: Option<u64>,
        at: u64,
    ) {
        let key = AppKey::of(&record);
        let daemon = record.daemon;
        let node = record.node.clone();
        let news = self.view.put_claim(id, record, acked_us);
        self.sweep_later(now_us, &node);
        if news || acked_us.is_some() {
            self.daemons_dirty |= daemon;
            if self.leads(&key) {
                self.mark(&key, at.max(now_us));
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn claim_gone(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        id: &str,
        for_good: bool,
        at: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let Some(record) = self.view.drop_claim(id, now_us, for_good) else { return };
        self.claim_left(now_us, wall_ms, id, &record, at, rng, out);
    }

    #[allow(clippy::too_many_arguments)]
    fn claim_left(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        id: &str,
        record: &ClaimRecord,
        at: u64,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let key = AppKey::of(record);
        self.daemons_dirty |= record.daemon;
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(app) = self.apps.get_mut(&key) {
            turn.lost(app, id, record);
        }
        if self.leads(&key) {
            self.mark(&key, at);
        }
    }

    fn rollout_record(
        &mut self,
        now_us: u64,
        key: &AppKey,
        body: Option<&[u8]>,
    ) -> Result<(), String> {
        let record = body.map(RolloutRecord::decode).transpose().map_err(|e| e.to_string())?;
        let Some(app) = self.app(key) else { return Ok(()) };
        if let Some(r) = &record {
            let current = app.hear_term(r.term, &r.coordinator);
            if let Some(lead) = app.lead.as_mut().filter(|l| l.term != 0)
                && lead.written.as_ref() != Some(r)
            {
                // Someone wrote over ours: say it again, above it if its term is higher.
                lead.written = None;
                self.mark(key, now_us + COALESCE_US);
                return Ok(());
            }
            if !current {
                return Ok(());
            }
        }
        app.rollout = record;
        Ok(())
    }

    fn app(&mut self, key: &AppKey) -> Option<&mut App> {
        if !self.apps.contains_key(key) {
            if self.apps.len() >= APPS_MAX {
                return None;
            }
            let app = App { winner: winner(&self.view, key), ..App::default() };
            self.apps.insert(key.clone(), app);
        }
        self.apps.get_mut(key)
    }

    fn leads(&self, key: &AppKey) -> bool {
        self.apps.get(key).is_some_and(|a| a.lead.is_some())
    }

    // ── specs ────────────────────────────────────────────────────────────────────────────────────

    #[allow(clippy::too_many_arguments)]
    fn spec(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: AppKey,
        generation: u64,
        spec: Option<Arc<Spec>>,
        stopped: bool,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let claims = self.view.claims_of(&key).next().is_some();
        let Some(app) = self.app(&key) else { return };
        // Two operators may have written one generation at once: the map has decided between them.
        let known = generation == app.generation
            && app.spec == spec
            && app.stopped == (stopped || spec.is_none());
        if generation < app.generation || known {
            return;
        }
        let fresh = app.generation == 0 && app.rollout.is_none() && app.term.0 == 0 && !claims;
        app.generation = generation;
        app.template = spec.as_ref().map_or(0, |s| s.template());
        app.stopped = stopped || spec.is_none();
        app.spec = spec;
        self.lead(now_us, &key, fresh);
        let Some(app) = self.apps.get_mut(&key) else { return };
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(mut lead) = app.lead.take() {
            turn.cancel_offers(&mut lead);
            // A new generation starts without the failures of the old.
            lead.slots.clear();
            lead.flaps.clear();
            lead.last_failure.clear();
            lead.failures = 0;
            app.lead = Some(lead);
        }
        self.admit.obey(&mut turn, &key, app);
        self.admit.unpark(&mut turn, Some((&key, app)));
        self.daemons_dirty = true;
        self.mark(&key, now_us);
    }

    fn daemons_due(&self, now_us: u64) -> bool {
        let due = |(_, at): &(u32, u64)| *at != 0 && *at <= now_us;
        self.daemons_dirty || self.admit.daemons.values().any(due)
    }

    fn run_daemons(&mut self, now_us: u64, wall_ms: u64, rng: &mut dyn Rng, out: &mut Vec<Output>) {
        self.daemons_dirty = false;
        let daemons = |a: &App| a.is_daemon() && a.wanted().is_some();
        let keys: Vec<AppKey> =
            self.apps.iter().filter(|(_, a)| daemons(a)).map(|(k, _)| k.clone()).collect();
        self.admit.daemons.retain(|k, _| keys.contains(k));
        for key in keys {
            let reached = self.daemon_reached(&key);
            let Some(app) = self.apps.get(&key) else { continue };
            let mut turn = turn!(self, now_us, wall_ms, rng, out);
            self.admit.daemon(&mut turn, &key, app, reached);
        }
        for (_, at) in self.admit.daemons.values_mut() {
            if *at <= now_us {
                *at = 0;
            }
        }
    }

    /// Nodes update a daemon in the order of their rank: this one when fewer than `max_unavailable` of
    /// those before it are still without a ready pod of the new template.
    fn daemon_reached(&self, key: &AppKey) -> bool {
        let Some(app) = self.apps.get(key) else { return false };
        let Some(spec) = app.wanted() else { return false };
        let rank = |node: &str| (hash::rank(&key.namespace, &key.app, node), node.to_owned());
        let mine = rank(&self.config.node);
        let eligible = |n: &Node| {
            let fits = |r: &NodeRecord| spec.place.require.iter().all(|e| e.holds(&r.labels));
            n.live() && n.record.as_ref().is_some_and(fits)
        };
        let nodes: Vec<&String> =
            self.view.nodes.iter().filter(|(_, n)| eligible(n)).map(|(name, _)| name).collect();
        let done: Vec<&str> = self
            .view
            .claims_of(key)
            .filter(|(_, c)| c.record.template == app.template && c.record.ready)
            .map(|(_, c)| c.record.node.as_str())
            .collect();
        let budget = spec.update.max_unavailable.of(nodes.len() as u32).max(1) as usize;
        let before = nodes.iter().filter(|n| rank(n) > mine && !done.contains(&n.as_str())).count();
        before < budget
    }

    fn coordinate(
        &mut self,
        now_us: u64,
        wall_ms: u64,
        key: &AppKey,
        rng: &mut dyn Rng,
        out: &mut Vec<Output>,
    ) {
        let trouble = self.contact.trouble(now_us);
        let held = self.held.clone();
        let mut turn = turn!(self, now_us, wall_ms, rng, out);
        if let Some(app) = self.apps.get_mut(key) {
            turn.coordinate(key, app, held.as_deref(), trouble.as_deref());
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

/// The live node that ranks highest for an app.
pub(crate) fn winner(view: &View, key: &AppKey) -> Option<(u64, String)> {
    let live = view.nodes.iter().filter(|(_, n)| n.live());
    live.map(|(name, _)| (hash::rank(&key.namespace, &key.app, name), name.clone())).max()
}
