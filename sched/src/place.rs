//! Where a slot goes: filter, counting rejections; then spread; then the best of a sample.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::MemberState;
use crate::hash;
use crate::record::{ClaimState, image_prefix};
use crate::spec::Spec;
use crate::view::{Amounts, AppKey, Node, View};

/// Nodes compared within the chosen domain; more would make simultaneous coordinators herd.
const SAMPLE: usize = 8;
/// Score of a node that holds all images of the pod, in thousandths of a dominant share.
const LOCALITY: i64 = 200;

/// Why a node cannot take a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reject {
    /// Not alive.
    Dead,
    /// Did not answer a probe just now.
    Suspect,
    /// Its record has not arrived.
    NoRecord,
    Draining,
    Cordoned,
    /// Index into `place.require`.
    Require(usize),
    /// Index into the spec's demands.
    Lacks(usize),
    Unique,
    Cpu,
    Memory,
    Pods,
    /// Index into `place.spread`.
    Skew(usize),
    /// It refused or failed this app a moment ago.
    Avoided,
}

/// The nodes rejected, by reason.
pub(crate) type Rejections<'a> = BTreeMap<Reject, Vec<&'a str>>;

/// How an app's pods lie now, kept up to date while offers are made.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Pods that count for spreading, by node.
    counted: BTreeMap<String, u32>,
    /// Nodes on which any pod of the app holds resources.
    occupied: BTreeSet<String>,
    /// By spread level, by domain.
    domains: Vec<BTreeMap<String, u32>>,
}

impl Tally {
    /// Counts the live claims of an app, except those `left_out` says are leaving.
    pub(crate) fn new(
        view: &View,
        key: &AppKey,
        spec: &Spec,
        left_out: &dyn Fn(&str) -> bool,
    ) -> Self {
        let levels = spec.place.spread.len();
        let mut tally = Self {
            counted: BTreeMap::new(),
            occupied: BTreeSet::new(),
            domains: vec![BTreeMap::new(); levels],
        };
        for (id, claim) in view.claims_of(key) {
            let r = &claim.record;
            if !r.holds() || !view.is_live(r) {
                continue;
            }
            tally.occupied.insert(r.node.clone());
            if r.state != ClaimState::Stopping && !left_out(id) {
                tally.add(view, spec, &r.node);
            }
        }
        tally
    }

    /// Counts one more pod on a node.
    pub(crate) fn add(&mut self, view: &View, spec: &Spec, node: &str) {
        self.occupied.insert(node.to_owned());
        *self.counted.entry(node.to_owned()).or_default() += 1;
        for (level, spread) in spec.place.spread.iter().enumerate() {
            let domain = view.nodes.get(node).map_or("", |n| n.label(&spread.by)).to_owned();
            *self.domains[level].entry(domain).or_default() += 1;
        }
    }

    /// Counts one pod less on a node; it still occupies it.
    pub(crate) fn remove(&mut self, view: &View, spec: &Spec, node: &str) {
        if let Some(n) = self.counted.get_mut(node) {
            *n = n.saturating_sub(1);
        }
        for (level, spread) in spec.place.spread.iter().enumerate() {
            let domain = view.nodes.get(node).map_or("", |n| n.label(&spread.by));
            if let Some(n) = self.domains[level].get_mut(domain) {
                *n = n.saturating_sub(1);
            }
        }
    }

    /// Counts one pod less on a node and takes it for gone.
    pub(crate) fn vacate(&mut self, view: &View, spec: &Spec, node: &str) {
        self.remove(view, spec, node);
        if self.on(node) == 0 {
            self.occupied.remove(node);
        }
    }

    fn on(&self, node: &str) -> u32 {
        self.counted.get(node).copied().unwrap_or(0)
    }

    pub(crate) fn domain(&self, level: usize, domain: &str) -> u32 {
        self.domains[level].get(domain).copied().unwrap_or(0)
    }
}

/// What is being placed, and against what.
pub(crate) struct Question<'a> {
    pub(crate) view: &'a View,
    pub(crate) key: &'a AppKey,
    pub(crate) spec: &'a Spec,
    pub(crate) slot: u32,
    pub(crate) tally: &'a Tally,
    /// Nodes not to ask now.
    pub(crate) avoid: &'a dyn Fn(&str) -> bool,
}

impl Question<'_> {
    /// What one pod needs.
    pub(crate) fn needs(&self) -> Amounts {
        Amounts {
            cpu_milli: self.spec.cpu_milli(),
            memory_bytes: self.spec.memory_bytes(),
            pods: 1,
        }
    }

    /// Whether a node could ever take pods of this app: alive, known, not draining, as required.
    fn eligible(&self, node: &Node) -> Result<(), Reject> {
        match node.state {
            Some(MemberState::Alive) => {}
            Some(MemberState::Suspect) => return Err(Reject::Suspect),
            _ => return Err(Reject::Dead),
        }
        let record = node.record.as_ref().ok_or(Reject::NoRecord)?;
        if record.drain {
            return Err(Reject::Draining);
        }
        if record.cordoned() {
            return Err(Reject::Cordoned);
        }
        if let Some(at) = self.spec.place.require.iter().position(|e| !e.holds(&record.labels)) {
            return Err(Reject::Require(at));
        }
        match self.spec.lacking(&record.features) {
            Some((at, _)) => Err(Reject::Lacks(at)),
            None => Ok(()),
        }
    }

    /// The emptiest domain of a level among eligible nodes: what skew is measured from.
    fn floor(&self, level: usize) -> u32 {
        let by = &self.spec.place.spread[level].by;
        let eligible = self.view.nodes.values().filter(|n| {
            // A suspect node's domain still counts: it is most likely alive.
            matches!(self.eligible(n), Ok(()) | Err(Reject::Suspect))
        });
        eligible.map(|n| self.tally.domain(level, n.label(by))).min().unwrap_or(0)
    }

    fn floors(&self) -> Vec<Option<u32>> {
        let levels = self.spec.place.spread.iter().enumerate();
        levels.map(|(i, s)| s.hard.then(|| self.floor(i))).collect()
    }

    fn check(&self, name: &str, node: &Node, floors: &[Option<u32>]) -> Result<(), Reject> {
        self.eligible(node)?;
        if self.spec.place.unique_host && self.tally.occupied.contains(name) {
            return Err(Reject::Unique);
        }
        let (free, needs) = (node.free(), self.needs());
        if free.cpu_milli < needs.cpu_milli {
            return Err(Reject::Cpu);
        }
        if free.memory_bytes < needs.memory_bytes {
            return Err(Reject::Memory);
        }
        if free.pods < needs.pods {
            return Err(Reject::Pods);
        }
        for (level, floor) in floors.iter().enumerate() {
            let Some(floor) = floor else { continue };
            let spread = &self.spec.place.spread[level];
            if self.tally.domain(level, node.label(&spread.by)) + 1 > floor + spread.max_skew {
                return Err(Reject::Skew(level));
            }
        }
        if (self.avoid)(name) { Err(Reject::Avoided) } else { Ok(()) }
    }

    /// Sorts all nodes on the roster into those that would take it and the rest by reason.
    pub(crate) fn filter(&self) -> (Vec<(&str, &Node)>, Rejections<'_>) {
        let floors = self.floors();
        let mut feasible = Vec::new();
        let mut rejected = Rejections::new();
        for (name, node) in &self.view.nodes {
            if !node.live() && node.state != Some(MemberState::Dead) {
                continue;
            }
            match self.check(name, node, &floors) {
                Ok(()) => feasible.push((name.as_str(), node)),
                Err(reason) => rejected.entry(reason).or_default().push(name),
            }
        }
        (feasible, rejected)
    }

    /// The node to offer it to.
    pub(crate) fn pick(&self) -> Option<String> {
        let (mut nodes, _) = self.filter();
        for level in 0..self.spec.place.spread.len() {
            self.narrow(level, &mut nodes);
        }
        let order = |name: &str| {
            let slot = self.slot.to_be_bytes();
            let (ns, app) = (self.key.namespace.as_bytes(), self.key.app.as_bytes());
            hash::stable(&[b"sample", ns, app, &slot, name.as_bytes()])
        };
        // Fewest of this app on the host comes before any score; then the sample by hash.
        let mut sample: Vec<_> = nodes
            .into_iter()
            .map(|(name, n)| (self.tally.on(name), order(name), name, n))
            .collect();
        sample.sort_by_key(|(on, order, ..)| (*on, *order));
        let fewest = sample.first()?.0;
        let same = sample.into_iter().take_while(|(on, ..)| *on == fewest).take(SAMPLE);
        let best = same.max_by_key(|(_, order, _, node)| (self.score(node), *order));
        best.map(|(_, _, name, _)| name.to_owned())
    }

    /// Keeps the nodes of the least-filled domain of a level. A domain counts in proportion to the
    /// domains of the next level inside it: a row of two racks takes twice what a row of one does.
    fn narrow(&self, level: usize, nodes: &mut Vec<(&str, &Node)>) {
        let by = &self.spec.place.spread[level].by;
        let next = self.spec.place.spread.get(level + 1).map(|s| &s.by);
        let mut inside: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for node in self.view.nodes.values().filter(|n| self.eligible(n).is_ok()) {
            inside.entry(node.label(by)).or_default().insert(next.map_or("", |n| node.label(n)));
        }
        let filled = |domain: &str| {
            let weight = inside.get(domain).map_or(1, BTreeSet::len).max(1) as u64;
            // Filled after one more, in millionths of a pod for each sub-domain.
            (u64::from(self.tally.domain(level, domain)) + 1) * 1_000_000 / weight
        };
        let order = |domain: &str| {
            let (ns, app) = (self.key.namespace.as_bytes(), self.key.app.as_bytes());
            hash::stable(&[b"domain", ns, app, by.as_bytes(), domain.as_bytes()])
        };
        let domains: BTreeSet<&str> = nodes.iter().map(|(_, n)| n.label(by)).collect();
        let best = domains.into_iter().min_by_key(|d| (filled(d), order(d)));
        if let Some(best) = best.map(str::to_owned) {
            nodes.retain(|(_, n)| n.label(by) == best);
        }
    }

    /// Best fit: the fuller by its dominant share the better, the more lopsided the worse.
    fn score(&self, node: &Node) -> i64 {
        let Some(record) = &node.record else { return i64::MIN };
        let after = node.used.plus(node.reserved).plus(self.needs());
        let share = |used: u64, all: u64| {
            // Thousandths; bounded by the filter to about 1000.
            i64::try_from(u128::from(used) * 1000 / u128::from(all.max(1))).unwrap_or(i64::MAX / 4)
        };
        let cpu = share(after.cpu_milli, record.cpu_milli);
        let memory = share(after.memory_bytes, record.memory_bytes);
        let local = |image: &str| record.images.contains(&image_prefix(image));
        let locality =
            if self.spec.containers.iter().all(|c| local(&c.image)) { LOCALITY } else { 0 };
        cpu.max(memory) - (cpu - memory).abs() / 2 + locality
    }
}
