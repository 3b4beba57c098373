//! Opening gossip: where this node listens, whom it was told of, and whether it looks for others on its link.

use anyhow::Context as _;
use gossip::driver::{Driver, DriverConfig};

use super::Machine;
use crate::config::NodeConfig;

/// Opens the log and binds the sockets. What a node can do without is alerted and left out: the link's multicast, and, in
/// maintenance, the log.
pub(super) fn open(
    config: &NodeConfig,
    keys: &crate::keys::Ring,
    machine: &mut Machine,
    now_us: u64,
) -> anyhow::Result<Driver> {
    let key_ring = keys.key_ring().context("the gossip keys")?;
    let mut gossip = gossip::Config::new(key_ring, gossip::Profile::Lan);
    gossip.seeds.clone_from(&config.join);
    gossip.discover = config.discover_group();
    let mut wanted = DriverConfig {
        name: config.name.clone(),
        bind: config.gossip_addr(),
        advertise: None,
        dir: Some(config.state.join("gossip")),
        gossip,
    };
    let mut opened = Driver::open(wanted.clone(), now_us);
    if let Err(error @ gossip::Error::Socket { addr, .. }) = &opened
        && addr.ip().is_multicast()
    {
        machine.alert("discovery", format!("no looking for nodes on the link: {error}"));
        wanted.gossip.discover = None;
        opened = Driver::open(wanted.clone(), now_us);
    }
    if let Err(error) = &opened
        && machine.in_maintenance()
    {
        // A disk that fails must not keep an operator out.
        machine.alert("gossip log", format!("gossip log: {error}; going on without"));
        opened = Driver::open(DriverConfig { dir: None, ..wanted }, now_us);
    }
    let about_socket = matches!(opened, Err(gossip::Error::Socket { .. }));
    opened.with_context(|| match about_socket {
        true => format!(
            "gossip cannot use UDP {}: is another agent running on this machine, or is the address not its own?",
            config.gossip_addr()
        ),
        false => "gossip cannot start".to_owned(),
    })
}
