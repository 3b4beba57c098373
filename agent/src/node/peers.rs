//! Who the replicas of an app are, as its pods here read it.

use std::collections::{BTreeMap, BTreeSet};

use super::Node;
use crate::api::types::Peer;
use crate::peers::{App, Text};
use crate::worker::{Job, PEERS_NAME};

impl Node {
    /// Writes to each pod here who its peers are, where that has changed.
    pub(super) fn write_peers(&mut self) {
        // One whose directory is not made yet gets its text with it.
        let made = self.local.iter().filter(|(_, local)| local.plan.is_none());
        let pods: Vec<(String, App)> =
            made.map(|(claim, local)| (claim.clone(), app_of(local.record()))).collect();
        let apps: BTreeSet<&App> = pods.iter().map(|(_, app)| app).collect();
        let texts = self.peer_texts(&apps);
        let now_us = self.clock.now_us();
        let pods = pods.iter().map(|(claim, app)| (claim.as_str(), app));
        let files: Vec<_> = self
            .peers
            .batch(now_us, texts, pods)
            .into_iter()
            .map(|(claim, text)| (self.peers_path(&claim), claim, text))
            .map(|(path, claim, text)| (claim, path, text))
            .collect();
        if files.is_empty() {
            return;
        }
        let claims: Vec<String> = files.iter().map(|(claim, ..)| claim.clone()).collect();
        if self.give(Job::Tell { files }).is_err() {
            self.peers.refused(&claims);
        }
    }

    /// Who a pod's peers are as it is made.
    pub(super) fn first_peers(&mut self, claim: &sched::Claim) -> Text {
        let app = (claim.spec.namespace.clone(), claim.spec.app.clone());
        let text = self.peer_texts(&BTreeSet::from([&app])).remove(&app).unwrap_or_default();
        self.peers.first(&claim.id, &app, text)
    }

    fn peers_path(&self, claim: &str) -> std::path::PathBuf {
        self.pod_dir(claim).join("info").join(PEERS_NAME)
    }

    /// The text of each of these apps.
    fn peer_texts(&self, apps: &BTreeSet<&App>) -> BTreeMap<App, Vec<u8>> {
        // The flock may have thousands of claims, of which few are asked for: nothing is copied to look.
        let mut by_app: BTreeMap<(&str, &str), Vec<Peer>> =
            apps.iter().map(|app| ((app.0.as_str(), app.1.as_str()), Vec::new())).collect();
        for (_, record) in self.sched.claims().filter(|(_, record)| !record.ip.is_empty()) {
            if let Some(peers) = by_app.get_mut(&(record.namespace.as_str(), record.app.as_str()))
                && self.is_live(&record.node)
            {
                peers.push(Peer {
                    pod: record.pod_name(),
                    node: record.node.clone(),
                    ip: record.ip.clone(),
                    ready: record.ready,
                });
            }
        }
        // Strings and booleans only: serialising them cannot fail.
        let text = |peers: &[Peer]| serde_json::to_vec(peers).unwrap_or_default();
        let own = |(namespace, app): (&str, &str)| (namespace.to_owned(), app.to_owned());
        by_app.into_iter().map(|(app, peers)| (own(app), text(&peers))).collect()
    }
}

fn app_of(record: &sched::ClaimRecord) -> App {
    (record.namespace.clone(), record.app.clone())
}
