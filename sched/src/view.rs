//! What this node knows of the flock: members, their records, and every claim.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::api::MemberState;
use crate::record::{ClaimRecord, ClaimState, NodeRecord};

/// Nodes remembered. Beyond it new names are ignored: gossip has refused them before.
pub(crate) const NODES_MAX: usize = 20_000;
/// Claims remembered. Beyond it new ones are ignored.
pub(crate) const CLAIMS_MAX: usize = 500_000;
/// Claims known to be gone whose older record may still arrive; the oldest is dropped.
const GONE_MAX: usize = 4096;

/// An app's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AppKey {
    pub(crate) namespace: String,
    pub(crate) app: String,
}

impl AppKey {
    pub(crate) fn new(namespace: &str, app: &str) -> Self {
        Self { namespace: namespace.to_owned(), app: app.to_owned() }
    }

    pub(crate) fn of(record: &ClaimRecord) -> Self {
        Self::new(&record.namespace, &record.app)
    }

    /// Whether a claim is of this app.
    pub(crate) fn owns(&self, record: &ClaimRecord) -> bool {
        self.app == record.app && self.namespace == record.namespace
    }
}

impl fmt::Display for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.app)
    }
}

/// Resources held or asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) cpu_milli: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) pods: u32,
}

impl Amounts {
    pub(crate) fn of(record: &ClaimRecord) -> Self {
        Self { cpu_milli: record.cpu_milli, memory_bytes: record.memory_bytes, pods: 1 }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            pods: self.pods.saturating_sub(other.pods),
        }
    }
}

/// One node.
#[derive(Debug, Default)]
pub(crate) struct Node {
    /// `None`: only its records were seen.
    pub(crate) state: Option<MemberState>,
    /// When it died, as seen here.
    pub(crate) died_us: u64,
    /// Since when it is live, or (no member) since when there are records of it, as seen here.
    pub(crate) since_us: u64,
    pub(crate) record: Option<NodeRecord>,
    /// Held by its claims.
    pub(crate) used: Amounts,
    /// Asked for by offers of this node that are not answered yet.
    pub(crate) reserved: Amounts,
    claims: BTreeSet<String>,
}

impl Node {
    pub(crate) fn live(&self) -> bool {
        matches!(self.state, Some(MemberState::Alive | MemberState::Suspect))
    }

    /// Known to membership, dead ones too.
    pub(crate) fn is_member(&self) -> bool {
        self.on_roster() || self.state == Some(MemberState::Left)
    }

    /// There are records of it, but it is no member.
    pub(crate) fn is_stray(&self) -> bool {
        !self.is_member() && (self.record.is_some() || !self.claims.is_empty())
    }

    fn on_roster(&self) -> bool {
        matches!(self.state, Some(MemberState::Alive | MemberState::Suspect | MemberState::Dead))
    }

    /// What it would have left.
    pub(crate) fn free(&self) -> Amounts {
        let Some(r) = &self.record else { return Amounts::default() };
        let all = Amounts { cpu_milli: r.cpu_milli, memory_bytes: r.memory_bytes, pods: r.pods };
        all.minus(self.used).minus(self.reserved)
    }

    pub(crate) fn draining(&self) -> bool {
        self.record.as_ref().is_some_and(|r| r.drain)
    }

    /// Its agent said that it leaves and its pods stay.
    pub(crate) fn stays(&self) -> bool {
        self.state == Some(MemberState::Left) && self.record.as_ref().is_some_and(|r| r.stays)
    }

    pub(crate) fn label(&self, key: &str) -> &str {
        self.record.as_ref().and_then(|r| r.labels.get(key)).map_or("", String::as_str)
    }
}

/// One claim.
#[derive(Debug)]
pub(crate) struct ClaimView {
    pub(crate) record: ClaimRecord,
    /// When its node itself last said so.
    pub(crate) acked_us: Option<u64>,
}

/// Everything known.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) me: String,
    pub(crate) nodes: BTreeMap<String, Node>,
    claims: BTreeMap<String, ClaimView>,
    by_app: BTreeMap<AppKey, BTreeSet<String>>,
    gone: BTreeMap<String, u64>,
    live: usize,
    roster: usize,
}

impl View {
    pub(crate) fn new(me: &str) -> Self {
        let mut view = Self {
            me: me.to_owned(),
            nodes: BTreeMap::new(),
            claims: BTreeMap::new(),
            by_app: BTreeMap::new(),
            gone: BTreeMap::new(),
            live: 1,
            roster: 1,
        };
        let node = Node { state: Some(MemberState::Alive), ..Node::default() };
        view.nodes.insert(me.to_owned(), node);
        view
    }

    /// Nodes that are alive or suspect, this one included.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Nodes that neither left nor were forgotten, this one included.
    pub(crate) fn roster(&self) -> usize {
        self.roster
    }

    /// Sets a member's state; the old one, or `Err` when nothing changed.
    pub(crate) fn member(
        &mut self,
        now_us: u64,
        name: &str,
        state: MemberState,
    ) -> Result<Option<MemberState>, ()> {
        if name == self.me || (!self.nodes.contains_key(name) && self.nodes.len() >= NODES_MAX) {
            return Err(());
        }
        let node = self.nodes.entry(name.to_owned()).or_default();
        let (old, was_live, was_known) = (node.state, node.live(), node.on_roster());
        if old == Some(state) {
            return Err(());
        }
        node.state = Some(state);
        if was_live && !node.live() {
            node.died_us = now_us;
        }
        if node.live() && !was_live {
            node.since_us = now_us;
        }
        let (live, known) = (node.live(), node.on_roster());
        self.live = self.live + usize::from(live) - usize::from(was_live);
        self.roster = self.roster + usize::from(known) - usize::from(was_known);
        Ok(old)
    }

    pub(crate) fn node_record(&mut self, now_us: u64, name: &str, record: Option<NodeRecord>) {
        if record.is_none() && !self.nodes.contains_key(name) {
            return;
        }
        if self.nodes.contains_key(name) || self.nodes.len() < NODES_MAX {
            let new = || Node { since_us: now_us, ..Node::default() };
            self.nodes.entry(name.to_owned()).or_insert_with(new).record = record;
        }
    }

    pub(crate) fn claim(&self, id: &str) -> Option<&ClaimView> {
        self.claims.get(id)
    }

    pub(crate) fn all_claims(&self) -> impl Iterator<Item = (&str, &ClaimRecord)> {
        self.claims.iter().map(|(id, c)| (id.as_str(), &c.record))
    }

    /// The claims of an app, in order of id.
    pub(crate) fn claims_of<'a>(
        &'a self,
        key: &AppKey,
    ) -> impl Iterator<Item = (&'a str, &'a ClaimView)> + 'a {
        let ids = self.by_app.get(key).into_iter().flatten();
        ids.filter_map(|id| self.claims.get(id).map(|c| (id.as_str(), c)))
    }

    pub(crate) fn claims_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a str> + 'a {
        self.nodes.get(node).into_iter().flat_map(|n| n.claims.iter().map(String::as_str))
    }

    /// Whether the claim's node is alive or suspect.
    pub(crate) fn is_live(&self, record: &ClaimRecord) -> bool {
        self.nodes.get(&record.node).is_some_and(Node::live)
    }

    /// Takes a claim's record, from the map or (with `acked_us`) from its node itself. Older ones are
    /// ignored. True when anything that decisions look at changed.
    pub(crate) fn put_claim(
        &mut self,
        id: &str,
        record: ClaimRecord,
        acked_us: Option<u64>,
    ) -> bool {
        if self.gone.contains_key(id) {
            return false;
        }
        if let Some(have) = self.claims.get_mut(id) {
            if have.record.node != record.node {
                return false;
            }
            have.acked_us = have.acked_us.max(acked_us);
            if have.record.seq > record.seq {
                return false;
            }
            let mut record = record;
            if record.seq == have.record.seq && record.ports.is_empty() {
                // A message carries no ports: keep those of the map.
                record.ports = std::mem::take(&mut have.record.ports);
            }
            let (old, new) = (held(&have.record), held(&record));
            let changed = have.record.state != record.state || have.record.ready != record.ready;
            have.record = record;
            if old != new
                && let Some(node) = self.nodes.get_mut(&have.record.node)
            {
                node.used = node.used.minus(old).plus(new);
            }
            return changed;
        }
        if self.claims.len() >= CLAIMS_MAX
            || (!self.nodes.contains_key(&record.node) && self.nodes.len() >= NODES_MAX)
        {
            return false;
        }
        let node = self.nodes.entry(record.node.clone()).or_default();
        node.used = node.used.plus(held(&record));
        node.claims.insert(id.to_owned());
        self.by_app.entry(AppKey::of(&record)).or_default().insert(id.to_owned());
        self.claims.insert(id.to_owned(), ClaimView { record, acked_us });
        true
    }

    /// Drops a claim. One that its node itself says is gone does not come back by an older record.
    pub(crate) fn drop_claim(
        &mut self,
        id: &str,
        now_us: u64,
        for_good: bool,
    ) -> Option<ClaimRecord> {
        if for_good {
            if self.gone.len() >= GONE_MAX
                && let Some(oldest) =
                    self.gone.iter().min_by_key(|(_, at)| **at).map(|(k, _)| k.clone())
            {
                self.gone.remove(&oldest);
            }
            self.gone.insert(id.to_owned(), now_us);
        }
        let claim = self.claims.remove(id)?;
        let key = AppKey::of(&claim.record);
        if let Some(ids) = self.by_app.get_mut(&key) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_app.remove(&key);
            }
        }
        if let Some(node) = self.nodes.get_mut(&claim.record.node) {
            node.claims.remove(id);
            node.used = node.used.minus(held(&claim.record));
        }
        Some(claim.record)
    }

    pub(crate) fn reserve(&mut self, node: &str, ask: Amounts) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.reserved = node.reserved.plus(ask);
        }
    }

    pub(crate) fn release(&mut self, node: &str, ask: Amounts) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.reserved = node.reserved.minus(ask);
        }
    }
}

fn held(record: &ClaimRecord) -> Amounts {
    if record.state == ClaimState::Failed { Amounts::default() } else { Amounts::of(record) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: &str, seq: u64, state: ClaimState) -> ClaimRecord {
        let (namespace, app) = ("d".to_owned(), "a".to_owned());
        let node = node.to_owned();
        ClaimRecord { namespace, app, node, seq, state, cpu_milli: 10, ..ClaimRecord::default() }
    }

    #[test]
    fn usage_follows_claims_in_any_order() {
        let mut v = View::new("me");
        assert!(v.put_claim("c", claim("n", 2, ClaimState::Running), None));
        assert!(!v.put_claim("c", claim("n", 1, ClaimState::Admitted), None), "older");
        assert_eq!(v.nodes["n"].used.cpu_milli, 10);
        assert!(v.put_claim("c", claim("n", 3, ClaimState::Failed), None));
        assert_eq!(v.nodes["n"].used, Amounts::default(), "failed holds nothing");
        v.put_claim("c", claim("n", 4, ClaimState::Running), None);
        v.drop_claim("c", 0, true);
        assert_eq!(v.nodes["n"].used, Amounts::default());
        assert!(!v.put_claim("c", claim("n", 9, ClaimState::Running), None), "gone for good");
        assert_eq!(v.claims_of(&AppKey::new("d", "a")).count(), 0);
    }

    #[test]
    fn roster_shrinks_only_by_leave_and_forget() {
        let mut v = View::new("me");
        for name in ["a", "b"] {
            v.member(0, name, MemberState::Alive).unwrap();
        }
        v.member(0, "a", MemberState::Dead).unwrap();
        assert_eq!((v.live(), v.roster()), (2, 3));
        v.member(0, "a", MemberState::Forgotten).unwrap();
        assert_eq!((v.live(), v.roster()), (2, 2));
        v.member(0, "b", MemberState::Left).unwrap();
        assert_eq!((v.live(), v.roster()), (1, 1));
        assert!(v.member(0, "b", MemberState::Left).is_err(), "unchanged");
    }
}
