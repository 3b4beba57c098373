//! Addresses and the overlay: from a claimed prefix to packets that flow.

use std::fs;
use std::net::SocketAddr;

use anyhow::Context as _;
use netshim::Overlay;
use netshim::ipam::{Ipam, PodAddresses, Prefix4};
use netshim::keys::{Psk, PublicKey, SecretKey};
use netshim::overlay::{Config, Gso, Peer};
use netshim::podnet::{self, HostConfig};
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use super::Node;
use crate::config::NodeConfig;
use crate::flock::{Credentials, write_secret};
use crate::worker::POD_MTU;

/// A node whose seeds have not answered by then claims its prefix on its own, in microseconds.
pub(super) const ALONE_AFTER_US: u64 = 5_000_000;

/// A peer that joined this node has told what it knows by then, in microseconds; what comes later is settled by the claims' own
/// rules.
pub(super) const EXCHANGE_US: u64 = 300_000;

/// The prefix that this node had before a restart: `network.json` in the state directory.
#[derive(Serialize, Deserialize)]
struct Remembered {
    prefix4: String,
    epoch: u32,
}

/// Starts the data thread with the node's key, which is made at the first start and never leaves the node.
pub(super) fn open(
    config: &NodeConfig,
    credentials: &Credentials,
    ipam: &Ipam,
    rng: &mut StdRng,
) -> anyhow::Result<(Overlay, PublicKey)> {
    let key = secret_key(config, rng)?;
    let public = key.public_key();
    let bind = config.overlay_addr();
    let overlay =
        Overlay::spawn(self::config(bind, key, credentials, ipam)).with_context(|| {
            format!("the overlay cannot use UDP {bind}: is another agent running on this machine?")
        })?;
    Ok((overlay, public))
}

/// A data thread without packets, for a node in maintenance: no disk, no port that another may hold.
pub(super) fn open_idle(
    credentials: &Credentials,
    ipam: &Ipam,
    rng: &mut StdRng,
) -> anyhow::Result<(Overlay, PublicKey)> {
    let key = SecretKey::generate(rng);
    let public = key.public_key();
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    let overlay = Overlay::spawn(Config { gso: Gso::Off, ..config(bind, key, credentials, ipam) })
        .context("cannot start the data thread")?;
    Ok((overlay, public))
}

fn config(bind: SocketAddr, key: SecretKey, credentials: &Credentials, ipam: &Ipam) -> Config {
    Config {
        bind,
        static_key: key,
        psk: Psk::from_bytes(credentials.derive("overlay")),
        boot: boot_ms(),
        mtu: POD_MTU,
        prefix4: None,
        prefix6: ipam.prefix6(),
        overlay6: ipam.overlay6(),
        egress: false,
        gso: Gso::Auto,
    }
}

/// A number that grows with every start; the wall clock does, and where it does not a handshake is refused until it has
/// passed the old one.
fn boot_ms() -> u64 {
    crate::host::Clock::start().wall_ms()
}

fn secret_key(config: &NodeConfig, rng: &mut StdRng) -> anyhow::Result<SecretKey> {
    let path = config.state.join("overlay.key");
    match fs::read_to_string(&path) {
        Ok(text) => {
            let bytes = crate::hex::decode_array(text.trim())
                .with_context(|| format!("{} is not 64 hex digits", path.display()))?;
            Ok(SecretKey::from_bytes(bytes))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate(rng);
            write_secret(&path, crate::hex::encode(key.as_bytes()).as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Node {
    /// Claiming may begin: a peer has told what is claimed, or there is nobody to ask.
    pub(super) fn begin_addresses(&mut self) {
        self.alone_us = None;
        if self.machine.in_maintenance() {
            return;
        }
        self.ipam_step(netshim::ipam::Input::Synced);
    }

    /// Takes back the prefix of before a restart; pods may still use it.
    pub(super) fn restore_network(&mut self) {
        let path = self.config.state.join("network.json");
        let Ok(bytes) = fs::read(&path) else { return };
        let Ok(remembered) = serde_json::from_slice::<Remembered>(&bytes) else {
            self.event("network", format!("{} is not readable: ignored", path.display()));
            return;
        };
        if let Ok(prefix) = remembered.prefix4.parse::<Prefix4>() {
            let mut out = Vec::new();
            self.ipam.restore(prefix, remembered.epoch, &mut out);
            // At once: the addresses of adopted pods are checked against it.
            for output in out {
                self.ipam_output(output);
            }
        }
    }

    pub(super) fn ipam_output(&mut self, output: netshim::ipam::Output) {
        use netshim::ipam::Output;
        match output {
            Output::Put { key, body } => {
                self.gossip_step(gossip::Input::Put {
                    key: &key,
                    body,
                    expect: gossip::Expect::Any,
                });
            }
            Output::Usable(prefix) => self.prefix_usable(prefix),
            Output::Lost { prefix, to } => self.prefix_lost(prefix, &to),
            Output::Exhausted => {
                self.condition("all 16,384 IPv4 prefixes are claimed: forget dead nodes".into());
            }
        }
    }

    fn prefix_usable(&mut self, prefix: Prefix4) {
        let prefix6 = self.ipam.prefix6();
        let remembered = Remembered { prefix4: prefix.to_string(), epoch: self.ipam.epoch() };
        let path = self.config.state.join("network.json");
        // Two short fields: serialising them cannot fail.
        let json = serde_json::to_vec(&remembered).unwrap_or_default();
        if let Err(error) = fs::write(&path, json) {
            self.condition(format!("cannot write {}: {error}", path.display()));
        }
        let config = HostConfig {
            prefix4: Some(prefix),
            prefix6,
            overlay6: self.ipam.overlay6(),
            mtu: POD_MTU,
            offload: true,
        };
        // The data thread keeps `mesh0` for good; a later prefix only changes its addresses.
        let host = if self.host_attached {
            podnet::update_host(&config)
        } else {
            podnet::host(&config).and_then(|tun| self.overlay.set_host(tun))
        };
        let result = host.and_then(|()| self.overlay.set_prefixes(Some(prefix), prefix6));
        self.host_attached |= result.is_ok();
        if let Err(error) = result {
            self.condition(format!("pods have no network: {error}"));
            return;
        }
        self.addresses = Some(PodAddresses::new(prefix, prefix6));
        self.event("network", format!("pods have addresses from {prefix} and {prefix6}"));
        self.publish();
    }

    fn prefix_lost(&mut self, prefix: Prefix4, to: &str) {
        self.event("network", format!("{prefix} belongs to {to}: pods here get new addresses"));
        self.addresses = None;
        self.publish();
        let claims: Vec<String> = self.local.keys().cloned().collect();
        for claim in claims {
            let failure = crate::pods::Failure {
                reason: format!("its address was in {prefix}, which belongs to {to}"),
                retryable: true,
            };
            self.pods_step(crate::pods::Input::Broken { claim, failure });
        }
    }

    /// Tells the data thread which nodes there are.
    pub(super) fn update_overlay_peers(&mut self) {
        let me = &self.config.name;
        let peers =
            self.nodes.iter().filter(|(name, _)| *name != me).filter_map(|(name, record)| {
                let endpoint: SocketAddr = record.overlay.parse().ok()?;
                let public_key = PublicKey(record.noise_public.as_slice().try_into().ok()?);
                Some(Peer {
                    name: name.clone(),
                    public_key,
                    endpoint,
                    prefix4: record.v4_prefix.parse().ok(),
                    prefix6: record.v6_prefix.parse().ok()?,
                })
            });
        let result = self.overlay.set_peers(peers.collect());
        match result {
            Ok(refused) => {
                for peer in refused {
                    self.event(format!("node/{}", peer.name), format!("no overlay: {}", peer.why));
                }
            }
            Err(error) => self.condition(format!("overlay: {error}")),
        }
    }
}
