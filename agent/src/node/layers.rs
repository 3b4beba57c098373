//! Containers' own layers and cgroups: looked at every few seconds. A pod that holds more than it may is ended, one that is at a
//! bound is told of.

use super::Node;
use crate::disk::{Layer, Seen};
use crate::pods::{Failure, Input};

/// When the next look is.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// In the node's clock.
    due_us: u64,
    /// One is under way.
    busy: bool,
}

impl Node {
    /// A look is due, if one is.
    pub(super) fn layers_tick(&mut self, now_us: u64) {
        if self.looks.busy || now_us < self.looks.due_us {
            return;
        }
        let mut layers = Vec::new();
        for (claim, local) in self.local.iter().filter(|(_, local)| local.shim.is_some()) {
            let dir = self.store.upper_dir(claim);
            let (pod, cgroup) = (self.pod_dir(claim), self.cgroup.as_ref().map(|c| c.pod(claim)));
            layers.extend(local.kept.containers.iter().map(|container| Layer {
                claim: claim.clone(),
                container: container.clone(),
                dir: dir.join(container),
                root: pod.join("containers").join(container).join("rootfs"),
                cgroup: cgroup.as_ref().map(|pod| pod.join(container)),
                asked: local.kept.disk.get(container).copied(),
            }));
        }
        if layers.is_empty() {
            self.looks.due_us = now_us.saturating_add(Seen::default().rest_us());
            return;
        }
        self.looks.busy = true;
        // One at a time: there is always room for it.
        if self.channels.layers.try_send(layers).is_err() {
            self.condition("nobody measures what containers write: restart the agent".into());
        }
    }

    /// What a look found.
    pub(super) fn layers_seen(&mut self, seen: Seen) {
        self.looks.due_us = self.clock.now_us().saturating_add(seen.rest_us());
        self.looks.busy = false;
        for (claim, container, text) in seen.notes {
            self.note(&claim, format!("look {container}"), text);
        }
        for (claim, container, over) in seen.over {
            if self.local.get(&claim).is_none_or(|local| local.shim.is_none()) {
                continue;
            }
            let reason = format!("container {container} was ended: {over}");
            self.set_ready(&claim, false);
            // Its layer goes with its pod; whoever wants it again starts a new one, with the waits of a failed one.
            self.pods_step(Input::Broken { claim, failure: Failure { reason, retryable: false } });
        }
    }

    /// What an operator should know of a pod that runs, by what it is about; empty takes it back.
    pub(super) fn note(&mut self, claim: &str, about: String, text: String) {
        let Some(local) = self.local.get_mut(claim) else { return };
        let told = local.notes.get(&about).map_or("", String::as_str);
        if told == text {
            return;
        }
        let pod = format!("pod/{}", local.record().pod_name());
        if text.is_empty() {
            local.notes.remove(&about);
        } else {
            local.notes.insert(about, text.clone());
        }
        let all: Vec<&str> = local.notes.values().map(String::as_str).collect();
        let note = all.join("; ");
        if !text.is_empty() {
            self.event(pod, text);
        }
        self.sched_step(sched::Input::Pod { claim, observed: sched::Observed::Noted { note } });
    }
}
