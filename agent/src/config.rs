//! A node's configuration: `node.toml`.
//!
//! ```toml
//! name = "n1"                        # [a-z0-9-]{1,63}, unique in the flock
//! address = "10.0.0.11"              # where peers reach this machine
//! join = ["10.0.0.12:7400"]          # any running nodes; none for the first
//! credentials = "/etc/quelea"        # what `quelea init node` wrote for this node
//! state = "/var/lib/quelea"          # images, records, boot counter
//! run = "/run/quelea"                # sockets, pods, mounts
//! [labels]
//! row = "a"
//! rack = "a3"
//! power = "p1"
//! [capacity]                         # for pods; measured where absent
//! cpu = 7.5
//! memory_mib = 30000
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flock::name_is_valid;

/// UDP port of gossip and control.
pub const GOSSIP_PORT: u16 = 7400;
/// UDP port of the overlay.
pub const OVERLAY_PORT: u16 = 7401;
/// TCP port of the HTTPS API.
pub const API_PORT: u16 = 7402;
/// Labels that one node may have.
pub const LABELS_MAX: usize = 32;
/// The longest label key or value, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

/// `node.toml`, as written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's name, unique in the flock.
    pub name: String,
    /// The address at which peers reach this machine.
    pub address: IpAddr,
    /// Gossip addresses of any running nodes.
    #[serde(default)]
    pub join: Vec<SocketAddr>,
    /// The directory with this node's credentials.
    #[serde(default = "default_credentials")]
    pub credentials: PathBuf,
    /// What outlives a reboot: images, records, the boot counter.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// What does not: sockets, pods, mounts.
    #[serde(default = "default_run")]
    pub run: PathBuf,
    /// Failure domains and whatever else placement may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What pods may use.
    #[serde(default)]
    pub capacity: Capacity,
    /// Ports, where the defaults do not suit.
    #[serde(default)]
    pub ports: Ports,
}

/// What pods may use; measured where absent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// CPUs.
    pub cpu: Option<f64>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// Pods at most.
    pub pods: Option<u32>,
}

/// The three ports of a node; the same on every node unless the network demands otherwise.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// UDP: gossip and control.
    pub gossip: u16,
    /// UDP: the overlay.
    pub overlay: u16,
    /// TCP: the HTTPS API.
    pub api: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { gossip: GOSSIP_PORT, overlay: OVERLAY_PORT, api: API_PORT }
    }
}

fn default_credentials() -> PathBuf {
    "/etc/quelea".into()
}

fn default_state() -> PathBuf {
    "/var/lib/quelea".into()
}

fn default_run() -> PathBuf {
    "/run/quelea".into()
}

impl NodeConfig {
    /// Reads and checks `node.toml`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = crate::flock::read_text(path)?;
        Self::parse(&text).map_err(|reason| Error::Config { path: path.into(), reason })
    }

    /// Reads and checks a configuration text; the error names line and column where it can.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if !name_is_valid(&config.name) {
            return Err(Error::Name { name: config.name }.to_string());
        }
        if config.address.is_unspecified() {
            return Err("`address` must be one that peers can reach, not 0.0.0.0 or ::".into());
        }
        if config.labels.len() > LABELS_MAX {
            return Err(format!("{} labels, {LABELS_MAX} are allowed", config.labels.len()));
        }
        for text in config.labels.iter().flat_map(|(key, value)| [key, value]) {
            if text.is_empty() || text.len() > LABEL_BYTES_MAX {
                return Err(format!("label {text:?} must have 1 to {LABEL_BYTES_MAX} bytes"));
            }
        }
        if let Some(cpu) = config.capacity.cpu
            && !(cpu > 0.0 && cpu <= 4096.0)
        {
            return Err(format!("capacity.cpu = {cpu}: a number of CPUs above 0 is needed"));
        }
        Ok(config)
    }

    /// Where gossip listens and is reached.
    pub fn gossip_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.gossip)
    }

    /// Where the overlay listens and is reached.
    pub fn overlay_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.overlay)
    }

    /// Where the API listens and is reached.
    pub fn api_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.api)
    }

    /// The unix socket of the API, for root on this machine.
    pub fn socket_path(&self) -> PathBuf {
        self.run.join("api.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_a_round_trip() {
        let config = NodeConfig::parse("name = \"n1\"\naddress = \"10.0.0.1\"").unwrap();
        assert_eq!(config.api_addr(), "10.0.0.1:7402".parse().unwrap());
        let text = toml::to_string(&config).unwrap();
        assert_eq!(NodeConfig::parse(&text).unwrap().gossip_addr(), config.gossip_addr());
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("name = \"n1\"\naddress = \"10.0.0.1\"\njoined = []", "line 3"),
            ("name = \"N 1\"\naddress = \"10.0.0.1\"", "cannot be a name"),
            ("name = \"n1\"\naddress = \"0.0.0.0\"", "peers can reach"),
            ("name = \"n1\"\naddress = \"10.0.0.1\"\n[capacity]\ncpu = -1.0", "capacity.cpu"),
        ];
        for (text, expected) in cases {
            let error = NodeConfig::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
