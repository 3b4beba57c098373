//! The gossip keys that a node holds, and what it does when a rotation takes a step.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Node;
use super::submit::Refusal;
use crate::config::NodeConfig;
use crate::flock::Credentials;
use crate::keys::{FILE, Ring, Stand, Step};

/// The latest ring of: what rotations left in the node's state, what its credentials brought, the flock's first key.
pub(super) fn open(config: &NodeConfig, credentials: &Credentials) -> anyhow::Result<Ring> {
    let kept = Ring::read(&config.state.join(FILE)).context("the gossip keys of this node")?;
    let brought = Ring::read(&credentials.dir.join(FILE)).context("the gossip keys brought")?;
    let first = || Ring::first(credentials.derive("gossip"));
    Ok(Ring::latest([brought, kept]).unwrap_or_else(first))
}

impl Node {
    /// Which keys this node accepts and uses.
    pub(crate) fn keys_view(&self) -> Stand {
        let mut stand = self.keys.stand(&self.config.name);
        stand.frames = self.driver.gossip().key_frames().collect();
        stand
    }

    /// Whether a node's certificate is refused.
    pub(crate) fn has_evicted(&self, node: &str) -> bool {
        self.keys.has_evicted(node)
    }

    /// What this node's keys are after a step, and where they have to be written before [`Node::keys_apply`].
    pub(crate) fn keys_plan(&self, step: &Step) -> Result<(Ring, PathBuf), Refusal> {
        let refused = |reason| (409, format!("{}: {reason}", self.config.name));
        if let Step::Drop { evicted, .. } = step
            && evicted.contains(&self.config.name)
        {
            return Err(refused("this is the node that is evicted".into()));
        }
        let ring = self.keys.after(step).map_err(refused)?;
        Ok((ring, self.config.state.join(FILE)))
    }

    /// Takes over keys that are on disk.
    pub(crate) fn keys_apply(&mut self, ring: Ring) -> Result<Stand, Refusal> {
        let key_ring =
            ring.key_ring().map_err(|error| (500, format!("{}: {error}", self.config.name)))?;
        *self.driver.keys_mut() = key_ring;
        let changed = self.keys != ring;
        self.keys = ring;
        let stand = self.keys_view();
        if changed {
            let accepts: Vec<String> = stand.accepts.iter().map(u8::to_string).collect();
            let accepts = accepts.join(" and ");
            self.event("keys", format!("gossip key {} is used; accepted: {accepts}", stand.uses));
        }
        let dead: Vec<gossip::Member> = self.driver.gossip().members().cloned().collect();
        for member in &dead {
            self.drop_evicted(member);
        }
        Ok(stand)
    }

    /// Nobody waits for an evicted node.
    pub(super) fn drop_evicted(&mut self, member: &gossip::Member) {
        if !member.state.is_live() && self.keys.has_evicted(&member.name) {
            self.gossip_step(gossip::Input::Forget { name: &member.name });
        }
    }
}
