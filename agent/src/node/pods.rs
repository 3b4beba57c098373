//! Pods on this node: from the scheduler's claims to jobs and shims, and from what shims say back to the scheduler.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::TrySendError;
use initd::cgroup::NodeCgroup;
use initd::shim::{ConnectId, Event as ShimEvent, ExecId, PodPhase, PodStatus, Shim};
use initd::userns::IdMap;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use sched::{ClaimState, Observed};

use super::Node;
use super::sessions::{Attached, ExecNews, Waiting};
use super::shims::{Seen, status_seen};
use crate::fetch::{ORDERS_MAX, Order};
use crate::plan::{Kept, Place, Plan};
use crate::pods::{Action, Failure, Input};
use crate::worker::{JOBS_MAX, Job, KEPT_NAME};

/// Tokens from here on are shims'.
pub(super) const FIRST_SHIM_TOKEN: usize = 16;
/// How long a shim of an earlier agent may take to say how its pod is.
const ADOPT_TIMEOUT: Duration = Duration::from_secs(2);

/// A pod of this node, as far as the shell needs to know it.
pub(super) struct Local {
    pub(super) kept: Kept,
    /// Until its job is given out.
    pub(super) plan: Option<Box<Plan>>,
    pub(super) shim: Option<Connection>,
    pub(super) ready: bool,
    /// Its containers, by name, as the shim told them.
    pub(super) seen: BTreeMap<String, Seen>,
    /// What its operator should know, by what it is about.
    pub(super) notes: BTreeMap<String, String>,
}

impl Local {
    /// The claim's record when it was started.
    pub(super) fn record(&self) -> &sched::ClaimRecord {
        &self.kept.record
    }
}

pub(super) struct Connection {
    pub(super) shim: Shim,
    pub(super) token: usize,
    pub(super) execs: BTreeMap<ExecId, tokio::sync::mpsc::Sender<ExecNews>>,
    /// Who waits for a container's streams, by the container; answered in their order.
    pub(super) attaching: Vec<(String, Waiting<Attached>)>,
    /// Who waits for a connection.
    pub(super) connecting: BTreeMap<ConnectId, Waiting<OwnedFd>>,
    /// Who waits for a snapshot.
    pub(super) asking: Vec<Waiting<()>>,
}

/// A pod found at the agent's start whose shim lives.
pub struct Adopted {
    /// The claim.
    pub claim: String,
    /// What was kept with it.
    pub kept: Kept,
    /// Its state.
    pub status: PodStatus,
    /// The pod's TUN, given back by the shim.
    pub tun: Option<OwnedFd>,
    /// The connection.
    pub shim: Shim,
}

/// Looks through the pods' directories of an earlier agent: those whose shims answer, and the claims of those that are gone.
/// What has a cgroup and no directory is among the latter: nobody can speak with it any more.
pub fn find_pods(pods_dir: &Path, cgroup: Option<&NodeCgroup>) -> (Vec<Adopted>, Vec<String>) {
    let mut adopted = Vec::new();
    let mut remains = Vec::new();
    for entry in std::fs::read_dir(pods_dir).into_iter().flatten().flatten() {
        let Ok(claim) = entry.file_name().into_string() else { continue };
        match attach(&entry.path(), &claim) {
            Some(pod) => adopted.push(pod),
            None => remains.push(claim),
        }
    }
    let grouped = cgroup.map_or(Ok(Default::default()), NodeCgroup::pods);
    let grouped = grouped.inspect_err(|error| tracing::warn!(%error, "pods without a directory"));
    for claim in grouped.unwrap_or_default() {
        if !adopted.iter().any(|pod| pod.claim == claim) && !remains.contains(&claim) {
            remains.push(claim);
        }
    }
    (adopted, remains)
}

fn attach(dir: &Path, claim: &str) -> Option<Adopted> {
    let kept = serde_json::from_slice(&std::fs::read(dir.join(KEPT_NAME)).ok()?).ok()?;
    let mut shim = Shim::attach(dir).ok()?;
    shim.request_fds().ok()?;
    let mut status = None;
    let mut tun = None;
    let until = |event: &ShimEvent| matches!(event, ShimEvent::Fds { .. });
    for event in shim.wait(ADOPT_TIMEOUT, until).ok()? {
        match event {
            ShimEvent::Status(s) => status = Some(s),
            ShimEvent::Fds { tun: fd, .. } => tun = fd,
            _ => {}
        }
    }
    Some(Adopted { claim: claim.to_owned(), kept, status: status?, tun, shim })
}

impl Node {
    pub(super) fn pod_dir(&self, claim: &str) -> std::path::PathBuf {
        self.config.run.join("pods").join(claim)
    }

    /// The scheduler wants this claim to run.
    pub(super) fn start(&mut self, claim: sched::Claim) {
        let id = claim.id.clone();
        if self.local.contains_key(&id) || self.machine.life.is_closed() {
            return;
        }
        crate::fall::step("admitted");
        let now_us = self.clock.now_us();
        let addr = match &mut self.addresses {
            Some(addresses) => addresses.allocate(now_us).map_err(|e| e.to_string()),
            None => Err("this node has no pod addresses yet".into()),
        };
        let addr = match addr {
            Ok(addr) => addr,
            Err(reason) => {
                let observed = Observed::Failed { reason, retryable: true };
                self.sched_step(sched::Input::Pod { claim: &id, observed });
                return;
            }
        };
        let plan = Plan {
            dir: self.pod_dir(&id),
            addr,
            slot: self.free_slot(&id),
            place: Place { node: self.config.name.clone(), labels: self.config.labels.clone() },
            cgroups: self.cgroup.as_ref().map(|c| (c.pod(&id), c.shim(&id))),
            grants: self.grants.clone(),
            disk: self.config.state.clone(),
            claim,
        };
        let images = plan.images();
        let ip = addr.ip4.to_string();
        let local = Local {
            kept: plan.kept(),
            plan: Some(Box::new(plan)),
            shim: None,
            ready: false,
            seen: BTreeMap::new(),
            notes: BTreeMap::new(),
        };
        self.local.insert(id.clone(), local);
        self.pods_step(Input::Start { claim: id, ip, images });
    }

    /// A user namespace slot that no other pod here has. Other agents on the same machine (`quelea dev`) start elsewhere, by the
    /// claim's hash.
    fn free_slot(&self, claim: &str) -> u32 {
        let hash = ring::digest::digest(&ring::digest::SHA256, claim.as_bytes());
        let word =
            hash.as_ref().iter().take(4).fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let taken = |slot: u32| self.local.values().any(|local| local.kept.slot == slot);
        (0..IdMap::SLOTS_MAX)
            .map(|step| (word % IdMap::SLOTS_MAX + step) % IdMap::SLOTS_MAX + 1)
            .find(|slot| !taken(*slot))
            .unwrap_or(1)
    }

    pub(super) fn adopt(&mut self, pod: Adopted) {
        let Adopted { claim, kept, status, tun, shim } = pod;
        let restarts = status.containers.iter().map(|c| c.restarts).sum();
        let added = tun.map(|tun| self.overlay.add_pod(kept.addr.ip4, kept.addr.ip6, tun));
        match added {
            Some(Ok(())) => {}
            Some(Err(error)) => self.event(format!("pod/{claim}"), format!("overlay: {error}")),
            None => self.event(format!("pod/{claim}"), "its shim has no TUN: no network"),
        }
        let ip = kept.addr.ip4.to_string();
        let observed = Observed::Running { ip: ip.clone(), ready: status.ready };
        let record = kept.record.clone();
        // One that has stopped says nothing more, and nobody was there to hear how it ended.
        let stopped = status.phase == PodPhase::Stopped;
        let seen = if stopped { BTreeMap::new() } else { status_seen(&status) };
        let notes = BTreeMap::new();
        let local = Local { kept, plan: None, shim: None, ready: status.ready, seen, notes };
        self.local.insert(claim.clone(), local);
        self.sched_step(sched::Input::Adopt { claim: &claim, record, observed });
        self.pods_step(Input::Adopted { claim: claim.clone(), ip, ready: status.ready, restarts });
        for container in status.containers.iter().filter(|c| c.log_dropped_bytes > 0) {
            self.log_dropped(&claim, &container.name);
        }
        self.connect(&claim, shim);
        if stopped {
            self.status(claim, &status);
        }
    }

    /// Claims of this node whose pods an earlier agent did not bring up, or whose shims ended while there was no agent: what
    /// is left of them is torn down, and their claims say why before they go.
    pub(super) fn explain_lost(&mut self, remains: &[String]) {
        let me = &self.config.name;
        let lost: Vec<(String, sched::ClaimRecord, String)> = self
            .sched
            .claims()
            .filter(|(id, record)| record.node == *me && !self.local.contains_key(*id))
            .filter_map(|(id, record)| {
                let reason = lost_words(me, record.state, remains.iter().any(|r| r == id))?;
                Some((id.to_owned(), record.clone(), reason))
            })
            .collect();
        let unwritten = remains.iter().filter_map(|id| {
            let record = self.unwritten_claim(id)?;
            Some((id.clone(), record, lost_words(me, ClaimState::Starting, true)?))
        });
        let lost: Vec<_> = lost.into_iter().chain(unwritten).collect();
        for (claim, record, reason) in lost {
            let about = format!("pod/{}", record.pod_name());
            self.event(about, reason.clone());
            let observed = Observed::Starting { ip: record.ip.clone() };
            self.sched_step(sched::Input::Adopt { claim: &claim, record, observed });
            let failure = Some(Failure { reason, retryable: true });
            self.pods_step(Input::Remains { claim, failure });
        }
    }

    /// The claim of a directory of which the map knows nothing: its record was still to be written when the agent ended.
    fn unwritten_claim(&self, id: &str) -> Option<sched::ClaimRecord> {
        let key = sched::record::claim_key(&self.config.name, id);
        // A deleted one was torn down for good.
        if self.driver.gossip().version(&key).is_some() {
            return None;
        }
        let kept = std::fs::read(self.pod_dir(id).join(KEPT_NAME)).ok()?;
        serde_json::from_slice::<Kept>(&kept).ok().map(|kept| kept.record)
    }

    /// Watches a shim's socket.
    fn connect(&mut self, claim: &str, shim: Shim) {
        let token = self.next_token;
        self.next_token += 1;
        let fd = shim.as_raw_fd();
        let watched = self.registry.register(&mut SourceFd(&fd), Token(token), Interest::READABLE);
        if let Err(error) = watched {
            self.event(format!("pod/{claim}"), format!("cannot watch its shim: {error}"));
        }
        if let Some(local) = self.local.get_mut(claim) {
            local.shim = Some(Connection {
                shim,
                token,
                execs: BTreeMap::new(),
                attaching: Vec::new(),
                connecting: BTreeMap::new(),
                asking: Vec::new(),
            });
            self.tokens.insert(token, claim.to_owned());
        }
        // What it said before it was watched raises no further edge.
        self.shim_said(claim);
    }

    pub(super) fn pod_action(&mut self, action: Action) {
        match action {
            Action::Fetch { digest } => self.fetch(digest),
            Action::Prepare { claim } => {
                let plan = self.local.get_mut(&claim).and_then(|local| local.plan.take());
                if let Some(plan) = plan {
                    let peers = self.first_peers(&plan.claim);
                    let overlay = self.overlay.clone();
                    if let Err(reason) = self.give(Job::Prepare { plan, overlay, peers }) {
                        let result = Err(Failure { reason, retryable: true });
                        self.pods_step(Input::Prepared { claim, result });
                    }
                }
            }
            Action::StopShim { claim, grace_ms } => {
                let local = self.local.get_mut(&claim);
                // Each container has its own grace, unless less is left.
                let own_ms = local.as_ref().map_or(0, |local| local.kept.grace_ms);
                let grace = u32::try_from(grace_ms).unwrap_or(u32::MAX);
                let grace = Some(grace).filter(|_| own_ms == 0 || grace_ms < own_ms);
                let connection = local.and_then(|local| local.shim.as_mut());
                let told = connection.map(|c| c.shim.stop(grace));
                if !matches!(told, Some(Ok(()))) {
                    self.pods_step(Input::ShimGone { claim });
                }
            }
            Action::Teardown { claim } => {
                if let Some(local) = self.local.get_mut(&claim)
                    && let Some(connection) = &mut local.shim
                {
                    // Harmless if it has gone already.
                    let _ = connection.shim.quit();
                }
                let network =
                    self.local.get(&claim).map(|l| (self.overlay.clone(), l.kept.addr.ip4));
                let dir = self.pod_dir(&claim);
                if self.give(Job::Teardown { claim: claim.clone(), dir, network }).is_err() {
                    self.pods_step(Input::NoRoom { claim });
                }
            }
            Action::Observe { claim, observed } => {
                self.sched_step(sched::Input::Pod { claim: &claim, observed });
            }
        }
    }

    /// Gives the worker something to do; never waits for it.
    ///
    /// # Errors
    /// Words for people: [`JOBS_MAX`] wait, or there is no worker any more, which is a condition of the node too.
    pub(super) fn give(&mut self, job: Job) -> Result<(), String> {
        match self.channels.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                Err(format!("{JOBS_MAX} jobs wait for the worker thread, no more"))
            }
            Err(TrySendError::Disconnected(_)) => {
                let reason = "the worker thread is gone: restart the agent";
                self.condition(reason.into());
                Err(reason.into())
            }
        }
    }

    pub(super) fn fetch(&mut self, digest: String) {
        if self.is_leaving(&digest) {
            return;
        }
        let Some(record) = self.images.get(&digest).cloned() else {
            let reason = format!(
                "image {digest}: no record of it in the flock; import it with `quelea image import`"
            );
            self.pods_step(Input::Fetched { digest, result: Err(reason) });
            return;
        };
        let holders = self.holders(&digest);
        let reason = match self.channels.orders.try_send(Order { record, holders }) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                format!("image {digest}: {ORDERS_MAX} others wait to be fetched, no more")
            }
            Err(TrySendError::Disconnected(_)) => {
                let reason = "the fetch thread is gone: restart the agent";
                self.condition(reason.into());
                reason.into()
            }
        };
        self.pods_step(Input::Fetched { digest, result: Err(reason) });
    }

    /// Live nodes that say they hold an image, the nearest first.
    fn holders(&self, digest: &str) -> Vec<(String, SocketAddr)> {
        let wanted = sched::record::image_prefix(digest);
        let mut holders: Vec<(u32, String, SocketAddr)> = self
            .driver
            .gossip()
            .members()
            .filter(|member| member.state.is_live() && *member.name != *self.config.name)
            .filter_map(|member| {
                let record = self.nodes.get(&*member.name)?;
                record.images.binary_search(&wanted).ok()?;
                Some((member.rtt_us, member.name.to_string(), record.api.parse().ok()?))
            })
            .collect();
        holders.sort();
        holders.into_iter().map(|(_, name, addr)| (name, addr)).collect()
    }

    pub(super) fn prepared(
        &mut self,
        claim: String,
        result: Result<Shim, Failure>,
        conditions: Vec<String>,
    ) {
        for condition in conditions {
            self.condition(condition);
        }
        match result {
            Ok(shim) => {
                crate::fall::step("prepared");
                self.pods_step(Input::Prepared { claim: claim.clone(), result: Ok(()) });
                self.connect(&claim, shim);
            }
            Err(failure) => {
                self.room_for_layers();
                self.pods_step(Input::Prepared { claim, result: Err(failure) });
            }
        }
    }

    pub(super) fn torn(&mut self, claim: &str, left: &[String]) {
        for what in left {
            self.event(format!("pod/{claim}"), format!("left behind: {what}"));
        }
        if let Some(local) = self.local.remove(claim) {
            if let Some(connection) = local.shim {
                self.tokens.remove(&connection.token);
                self.collect(connection.shim);
            }
            let now_us = self.clock.now_us();
            if let Some(addresses) = &mut self.addresses {
                addresses.release(now_us, local.kept.addr);
            }
            // Refused, they only seem to be unused for longer.
            let _ = self.give(Job::Used { digests: local.kept.images });
        }
        self.peers.forget(claim);
        self.pods_step(Input::Torn { claim: claim.to_owned() });
    }

    /// Whether a node takes part, in this node's view.
    pub(crate) fn is_live(&self, node: &str) -> bool {
        node == self.config.name
            || self.driver.gossip().member(node).is_some_and(|m| m.state.is_live())
    }
}

/// Why a claim has no pod behind it, where that is worth telling.
fn lost_words(node: &str, state: ClaimState, remains: bool) -> Option<String> {
    let doing = match state {
        // What was written last may not have come to the disk; a directory is made after all images are here.
        ClaimState::Admitted | ClaimState::Pulling | ClaimState::Starting if remains => {
            "started it"
        }
        ClaimState::Admitted => "had only just admitted it",
        ClaimState::Pulling => "fetched its image",
        ClaimState::Starting => "started it",
        // Without its directory it ended with the whole machine, as all the others did.
        ClaimState::Running | ClaimState::Exited if remains => {
            return Some(format!(
                "its shim ended while {node} had no agent; what was left of it is removed"
            ));
        }
        _ => return None,
    };
    Some(format!(
        "the agent of {node} ended while it {doing}; what it had made is removed, another is started"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_without_a_pod_says_how_far_it_came() {
        for (state, remains, words) in [
            (ClaimState::Admitted, false, "only just admitted"),
            (ClaimState::Pulling, false, "fetched its image"),
            (ClaimState::Starting, true, "started it"),
            (ClaimState::Admitted, true, "started it"),
            (ClaimState::Running, true, "its shim ended"),
        ] {
            let said = lost_words("n1", state, remains).unwrap();
            assert!(said.contains(words) && said.contains("n1"), "{said}");
        }
        for (state, remains) in [(ClaimState::Running, false), (ClaimState::Stopping, true)] {
            assert_eq!(lost_words("n1", state, remains), None, "a reboot, or a wish");
        }
    }
}
