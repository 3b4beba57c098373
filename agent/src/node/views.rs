//! What the API tells of the flock, as this node sees it.

use std::collections::BTreeMap;

use sched::ClaimState;

use super::Node;
use crate::api::types::{
    App, AppDetail, Image, Node as NodeView, Nodes, Pod, PodUsage, Status, Why,
};
use crate::host;

impl Node {
    /// Every node of the roster.
    pub(crate) fn nodes_view(&self) -> Nodes {
        let gossip = self.driver.gossip();
        let mut used: BTreeMap<&str, (u64, u64, u32)> = BTreeMap::new();
        for (_, claim) in self.sched.claims().filter(|(_, c)| c.holds()) {
            let sum = used.entry(claim.node.as_str()).or_default();
            sum.0 += claim.cpu_milli;
            sum.1 += claim.memory_bytes;
            sum.2 += 1;
        }
        let me = gossip.me();
        let others = gossip.members().filter(|member| member.name != me.name);
        let mut nodes: Vec<NodeView> = std::iter::once(me)
            .chain(others)
            .map(|member| {
                let record = self.nodes.get(&*member.name).cloned().unwrap_or_default();
                let (cpu, memory, pods) = used.get(&*member.name).copied().unwrap_or_default();
                NodeView {
                    name: member.name.to_string(),
                    state: member.state.to_string(),
                    address: member.addr.to_string(),
                    labels: record.labels,
                    cpu_milli: record.cpu_milli,
                    cpu_free_milli: record.cpu_milli.saturating_sub(cpu),
                    memory_bytes: record.memory_bytes,
                    memory_free_bytes: record.memory_bytes.saturating_sub(memory),
                    pods,
                    rtt_us: u64::from(member.rtt_us),
                    api: record.api,
                    prefix: record.v4_prefix,
                    version: record.version,
                    draining: record.drain,
                    conditions: record.conditions,
                    wish: record.wish,
                    boot: record.boot,
                    label_from: record.label_from,
                    uuid: record.uuid,
                    kernel: record.kernel,
                    boot_state: record.state,
                    booted_ms: record.booted_ms,
                    phase: record.phase,
                    image: record.image,
                    kept: record.kept,
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Nodes { answered_by: self.config.name.clone(), nodes }
    }

    /// Every claim, also those on nodes that are gone until they are replaced.
    pub(crate) fn pods_view(&self) -> Vec<Pod> {
        let mut pods: Vec<Pod> = self
            .sched
            .claims()
            .map(|(claim, record)| Pod {
                namespace: record.namespace.clone(),
                app: record.app.clone(),
                name: record.pod_name(),
                node: record.node.clone(),
                node_alive: self.is_live(&record.node),
                state: record.state.as_str().to_owned(),
                ready: record.ready && record.state == ClaimState::Running,
                ip: record.ip.clone(),
                restarts: record.restarts,
                reason: record.said(),
                generation: record.generation,
                started_ms: record.started_ms,
                claim: claim.to_owned(),
            })
            .collect();
        pods.sort_by(|a, b| {
            let key = |pod: &Pod| {
                (pod.namespace.clone(), pod.app.clone(), slot(&pod.name), pod.name.clone())
            };
            key(a).cmp(&key(b))
        });
        pods
    }

    /// Every app with a spec.
    pub(crate) fn apps_view(&self) -> Vec<App> {
        self.sched
            .apps()
            .filter_map(|status| {
                let spec = status.spec.as_ref()?;
                let key = (status.namespace.clone(), status.app.clone());
                let phase = self.rollout_phase(&status);
                Some(App {
                    kind: match spec.kind {
                        sched::spec::Kind::Service => "service".into(),
                        sched::spec::Kind::Daemon => "daemon".into(),
                    },
                    desired: if status.stopped { 0 } else { status.desired },
                    ready: status.ready,
                    generation: status.generation,
                    stopped: status.stopped,
                    phase,
                    coordinator: status.coordinator,
                    operator: self.specs.get(&key).map(|s| s.operator.clone()).unwrap_or_default(),
                    namespace: status.namespace,
                    app: status.app,
                })
            })
            .collect()
    }

    fn rollout_phase(&self, status: &sched::AppStatus) -> String {
        if status.stopped && status.running == 0 {
            return "stopped".into();
        }
        let key = sched::record::rollout_key(&status.namespace, &status.app);
        let record = self.driver.gossip().get(&key).and_then(|record| record.body.clone());
        let phase = record.and_then(|body| sched::RolloutRecord::decode(&body).ok());
        phase.map(|record| record.phase).unwrap_or_default()
    }

    /// One app with its spec.
    pub(crate) fn app_view(&self, namespace: &str, app: &str) -> Option<AppDetail> {
        let summary = self
            .apps_view()
            .into_iter()
            .find(|view| view.namespace == namespace && view.app == app)?;
        let stored = self.specs.get(&(namespace.to_owned(), app.to_owned()))?;
        Some(AppDetail {
            summary,
            document: stored.submission.document.clone(),
            images: stored.submission.images.clone(),
        })
    }

    /// Why an app is not as wanted.
    pub(crate) fn why_view(&self, namespace: &str, app: &str) -> Option<Why> {
        let why = self.sched.why(namespace, app);
        why.known.then(|| Why { coordinator: why.coordinator.clone(), text: why.to_string() })
    }

    /// Every image: those that have a name, then those that have lost it to a newer one.
    pub(crate) fn images_view(&self) -> Vec<Image> {
        let nameless = self.images.keys().filter(|d| !self.tags.values().any(|t| t == *d));
        let named = self.tags.iter().map(|(name, digest)| self.image_view(name, digest));
        named.chain(nameless.map(|digest| self.image_view(digest, digest))).collect()
    }

    pub(super) fn image_view(&self, reference: &str, digest: &str) -> Image {
        let record = self.images.get(digest);
        let prefix = sched::record::image_prefix(digest);
        let holders =
            self.nodes.iter().filter(|(_, node)| node.images.binary_search(&prefix).is_ok());
        Image {
            reference: reference.to_owned(),
            digest: digest.to_owned(),
            size_bytes: record.map_or(0, |r| r.layers.iter().map(|l| l.size_bytes).sum()),
            layers: record.map_or(0, |r| u32::try_from(r.layers.len()).unwrap_or(u32::MAX)),
            nodes: holders.map(|(name, _)| name.clone()).collect(),
            used_by: self.users_of(digest),
        }
    }

    /// The pods here whose use can be read, and where.
    pub(crate) fn usage_asked(&self) -> Vec<crate::api::usage::Asked> {
        let asked = |(claim, local): (&String, &super::pods::Local)| {
            let record = local.record();
            let known = PodUsage {
                namespace: record.namespace.clone(),
                app: record.app.clone(),
                name: record.pod_name(),
                claim: claim.clone(),
                cpu_milli: record.cpu_milli,
                memory_limit_bytes: record.memory_bytes,
                ..PodUsage::default()
            };
            (known, self.cgroup.as_ref().map(|cgroup| cgroup.pod(claim)))
        };
        self.local.iter().map(asked).collect()
    }

    /// This node itself.
    pub(crate) fn status_view(&self) -> Status {
        let gossip = self.driver.gossip();
        let live = gossip.members().filter(|m| m.state.is_live() && m.name != gossip.me().name);
        let stats = self.overlay.stats();
        let drops = stats.drops.iter().map(|(why, n)| (format!("drop_{}", why.name()), *n));
        let counts = stats.counts.iter().map(|(what, n)| (what.name().to_owned(), *n));
        Status {
            name: self.config.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            flock: self.credentials.info.name.clone(),
            boot: gossip.me().generation,
            joined: self.joined,
            network_ready: self.addresses.is_some(),
            alive: u32::try_from(live.count()).unwrap_or(u32::MAX).saturating_add(1),
            records: u64::try_from(gossip.range("").count()).unwrap_or(u64::MAX),
            map_root: format!("{:016x}", gossip.root()),
            rss_bytes: host::rss_bytes(),
            uptime_ms: self.clock.now_us() / 1000,
            layers: self.layering.clone(),
            conditions: self.machine.alerts().chain(self.conditions.iter().cloned()).collect(),
            overlay: counts.chain(drops).filter(|(_, n)| *n > 0).collect(),
        }
    }
}

/// The slot in a pod's name, so that `web.10` sorts after `web.9`.
fn slot(pod: &str) -> u32 {
    pod.rsplit_once('.').and_then(|(_, slot)| slot.parse().ok()).unwrap_or(u32::MAX)
}
