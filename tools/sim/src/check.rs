//! The invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sched::spec::Kind;
use sched::{ClaimRecord, ClaimState, NodeRecord, Spec};

use crate::kernel::Kernel;
use crate::node::{Node, Submitted};

/// What a machine runs is within what it has, and unique hosts are.
///
/// # Errors
/// What is wrong.
pub fn machine(name: &str, record: &NodeRecord, kernel: &Kernel) -> Result<(), String> {
    let (cpu, memory, pods) = kernel.used();
    if cpu > record.cpu_milli || memory > record.memory_bytes || pods > record.pods as usize {
        return Err(format!("{name} runs more than it has: {cpu}m, {memory} B, {pods} pods"));
    }
    let mut seen = BTreeSet::new();
    for pod in kernel.pods.values().filter(|p| p.claim.record.unique_host) {
        if !seen.insert((&pod.claim.spec.namespace, &pod.claim.spec.app)) {
            return Err(format!("{name} runs two of {}, which is unique", pod.claim.spec.app));
        }
    }
    Ok(())
}

/// A key that a node's scheduler wrote is its to write.
///
/// # Errors
/// What is wrong.
pub fn writer(
    name: &str,
    key: &str,
    delete: bool,
    forgotten: &BTreeSet<String>,
) -> Result<(), String> {
    let mut parts = key.split('/');
    match (parts.next(), parts.next()) {
        (Some("n" | "a"), Some(node)) if node == name => Ok(()),
        (Some("n" | "a"), Some(node)) if delete && forgotten.contains(node) => Ok(()),
        (Some("r"), Some(_)) => Ok(()),
        _ => Err(format!("{name} wrote {key} (delete: {delete})")),
    }
}

/// One machine as the final check sees it.
pub struct Seen<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its agent.
    pub node: &'a Node,
    /// Its pods.
    pub kernel: &'a Kernel,
}

/// The flock is whole: what remains to be done, if anything.
///
/// # Errors
/// The first thing that is not as it should be.
pub fn whole(flock: &[Seen<'_>], acked: &BTreeMap<String, u64>) -> Result<(), String> {
    let Some(first) = flock.first() else { return Ok(()) };
    let (view, root) = (first.node.gossip.view(), first.node.gossip.root());
    for seen in flock {
        for other in flock.iter().filter(|o| o.name != seen.name) {
            let live = seen.node.gossip.member(other.name).is_some_and(|m| m.state.is_live());
            if !live {
                return Err(format!("{} does not take {} for alive", seen.name, other.name));
            }
        }
        if seen.node.gossip.view() != view {
            return Err(format!("{} and {} see different members", first.name, seen.name));
        }
        if seen.node.gossip.root() != root {
            return Err(format!("{} and {} hold different maps", first.name, seen.name));
        }
    }
    let mut wanted: Vec<(Submitted, Option<Arc<Spec>>)> = Vec::new();
    for record in first.node.gossip.range("s/") {
        let Some(s) = record.body.as_deref().and_then(Submitted::decode) else { continue };
        let runs = !s.stopped && !s.deleted;
        let spec = Spec::parse(&s.text, "spec").ok().filter(|_| runs).map(Arc::new);
        wanted.push((s, spec));
    }
    for (key, generation) in acked {
        let found =
            wanted.iter().find(|(s, _)| sched::record::spec_key(&s.namespace, &s.app) == *key);
        if found.is_none_or(|(s, _)| s.generation < *generation) {
            return Err(format!("{key} generation {generation} was on most nodes and is lost"));
        }
    }
    for (s, spec) in &wanted {
        pods(flock, &s.app, spec.as_deref())?;
    }
    claims(flock)
}

/// Every slot of an app has exactly one ready pod of its template, and nothing else of it runs.
fn pods(flock: &[Seen<'_>], app: &str, spec: Option<&Spec>) -> Result<(), String> {
    let mut want: BTreeSet<String> = BTreeSet::new();
    let mut template = 0;
    if let Some(spec) = spec {
        template = spec.template();
        match spec.kind {
            Kind::Service => want.extend((0..spec.replicas).map(|n| format!("{app}.{n}"))),
            Kind::Daemon => want.extend(flock.iter().map(|s| format!("{app}.{}", s.name))),
        }
    }
    for seen in flock {
        for pod in seen.kernel.pods.values().filter(|p| p.claim.spec.app == app) {
            let name = pod.claim.pod_name();
            if !want.remove(&name) {
                return Err(format!("{name} on {} is one too many", seen.name));
            }
            if !pod.running || pod.stopping || pod.claim.spec.template() != template {
                return Err(format!("{name} on {} is not running the newest template", seen.name));
            }
        }
    }
    match want.first() {
        Some(missing) => {
            let why = flock.first().map(|s| s.node.sched.why("sim", app).to_string());
            Err(format!("{missing} runs nowhere: {}", why.unwrap_or_default().replace('\n', " | ")))
        }
        None => Ok(()),
    }
}

/// The map holds one claim for each pod and no other.
fn claims(flock: &[Seen<'_>]) -> Result<(), String> {
    let Some(first) = flock.first() else { return Ok(()) };
    let mut claims: BTreeMap<(String, String), ClaimRecord> = BTreeMap::new();
    for record in first.node.gossip.range("a/") {
        let mut parts = record.key.split('/').skip(1);
        let (Some(node), Some(claim)) = (parts.next(), parts.next()) else { continue };
        let body = record.body.as_deref().unwrap_or_default();
        let decoded = ClaimRecord::decode(body).map_err(|e| format!("{}: {e}", record.key))?;
        claims.insert((node.to_owned(), claim.to_owned()), decoded);
    }
    for seen in flock {
        for id in seen.kernel.pods.keys() {
            match claims.remove(&(seen.name.to_owned(), id.clone())) {
                Some(c) if c.ready && c.state == ClaimState::Running => {}
                Some(c) => {
                    return Err(format!("claim {id} of {} says {:?}", c.pod_name(), c.state));
                }
                None => return Err(format!("pod {id} on {} has no claim", seen.name)),
            }
        }
    }
    match claims.first_key_value() {
        Some(((node, id), c)) => {
            Err(format!("claim {id} of {} on {node} has no pod ({:?})", c.pod_name(), c.state))
        }
        None => Ok(()),
    }
}
