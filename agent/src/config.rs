//! A node's configuration: `node.toml`, and what the machine found out where it is silent.
//!
//! ```toml
//! name = "n1"                        # [a-z0-9-]{1,63}, unique in the flock; default: whom the credentials name
//! address = "10.0.0.11"              # where peers reach this machine; default: what the network gave it
//! join = ["10.0.0.12:7400"]          # any running nodes; none for the first
//! discover = "auto"                  # look for nodes on the link: "on", "off", or where `join` and the network name none
//! credentials = "/etc/quelea"        # what `quelea init node` wrote for this node
//! state = "/var/lib/quelea"          # images, records, boot counter
//! run = "/run/quelea"                # sockets, pods, mounts; PID 1 leaves there what it found
//! maintenance = false                # start without pods and wait for an operator
//! [labels]                           # over those of `labels`, the kernel command line, the network, in this order
//! row = "a"
//! rack = "a3"
//! power = "p1"
//! [capacity]                         # for pods; measured where absent
//! cpu = 7.5
//! memory_mib = 30000
//! [images]                           # how long and how much is kept of images that nothing needs
//! unused_hours = 168
//! max_mib = 20000                    # all images together; default: half of the file system
//! [grants]                           # what pods may have besides what is theirs, see [`crate::grants`]
//! host_tools = ["/usr/sbin/smartd", "/usr/lib/"]
//! ```
//!
//! [`NodeFile`] is the file as written, [`NodeConfig`] what the node goes by.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flock::name_is_valid;
use crate::found::{Boot, Net};

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
pub struct NodeFile {
    /// The node's name, unique in the flock; whom the credentials name where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address at which peers reach this machine; what the network gave it where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Gossip addresses of any running nodes.
    #[serde(default)]
    pub join: Vec<SocketAddr>,
    /// Whether to look for nodes on the link; what the kernel command line says where absent, else "auto".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discover: Option<Discover>,
    /// The directory with this node's credentials.
    #[serde(default = "default_credentials")]
    pub credentials: PathBuf,
    /// What outlives a reboot: images, records, the boot counter.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// What does not: sockets, pods, mounts.
    #[serde(default = "default_run")]
    pub run: PathBuf,
    /// Start without pods and wait for an operator.
    #[serde(default)]
    pub maintenance: bool,
    /// Failure domains and whatever else placement may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What pods may use.
    #[serde(default)]
    pub capacity: Capacity,
    /// Ports, where the defaults do not suit.
    #[serde(default)]
    pub ports: Ports,
    /// How long images that nothing needs are kept.
    #[serde(default)]
    pub images: Images,
    /// Devices, host tools and filters that pods may have.
    #[serde(default)]
    pub grants: crate::grants::GrantsFile,
}

impl Default for NodeFile {
    /// An empty file.
    fn default() -> Self {
        Self {
            name: None,
            address: None,
            join: Vec::new(),
            discover: None,
            credentials: default_credentials(),
            state: default_state(),
            run: default_run(),
            maintenance: false,
            labels: BTreeMap::new(),
            capacity: Capacity::default(),
            ports: Ports::default(),
            images: Images::default(),
            grants: crate::grants::GrantsFile::default(),
        }
    }
}

/// What a node goes by: its file, and what the machine found out where that is silent.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name.
    pub name: String,
    /// The address at which peers reach this machine.
    pub address: IpAddr,
    /// Where the address came from, in words.
    pub address_from: String,
    /// Gossip addresses of any running nodes.
    pub join: Vec<SocketAddr>,
    /// Whether to look for nodes on the link.
    pub discover: Discover,
    /// The directory with this node's credentials.
    pub credentials: PathBuf,
    /// What outlives a reboot.
    pub state: PathBuf,
    /// What does not.
    pub run: PathBuf,
    /// Labels from everywhere.
    pub labels: BTreeMap<String, String>,
    /// Where each label came from, in words.
    pub label_from: BTreeMap<String, String>,
    /// What pods may use.
    pub capacity: Capacity,
    /// Ports.
    pub ports: Ports,
    /// How long images that nothing needs are kept.
    pub images: Images,
    /// What pods may have besides what is theirs.
    pub grants: crate::grants::GrantsFile,
}

/// Whether a node looks for others on its link, by beacons that only its flock can read, and answers theirs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Discover {
    /// Where nobody names it a node to join.
    #[default]
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

impl Discover {
    /// As the kernel command line has it.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "on" => Some(Self::On),
            "off" => Some(Self::Off),
            _ => None,
        }
    }
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

/// How long and how much is kept of images that no pod and no spec needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Images {
    /// Hours since the last use here.
    pub unused_hours: u64,
    /// All images together, in MiB; half of their file system where absent. What is needed may take more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mib: Option<u64>,
}

impl Default for Images {
    /// A week.
    fn default() -> Self {
        Self { unused_hours: 168, max_mib: None }
    }
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

impl NodeFile {
    /// Reads and checks `node.toml`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let text = crate::flock::read_text(path)?;
        Self::parse(&text).map_err(|reason| Error::Config { path: path.into(), reason })
    }

    /// Reads and checks a configuration text; the error names line and column where it can.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        if let Some(name) = config.name.as_ref().filter(|name| !name_is_valid(name)) {
            return Err(Error::Name { name: name.clone() }.to_string());
        }
        if config.address.is_some_and(|address| address.is_unspecified()) {
            return Err("`address` must be one that peers can reach, not 0.0.0.0 or ::".into());
        }
        check_labels(&config.labels)?;
        if let Some(cpu) = config.capacity.cpu
            && !(cpu > 0.0 && cpu <= 4096.0)
        {
            return Err(format!("capacity.cpu = {cpu}: a number of CPUs above 0 is needed"));
        }
        config.grants.check()?;
        Ok(config)
    }

    /// Fills in what the file leaves to the machine. `name` is whom the credentials name, `image` the labels that came
    /// with the boot image. `None` while there is no address.
    pub fn resolve(
        &self,
        name: &str,
        image: &[(String, String)],
        boot: &Boot,
        net: &Net,
    ) -> Option<NodeConfig> {
        let (address, address_from) = match (self.address, net.address) {
            (Some(address), _) => (address, "node.toml".to_owned()),
            (None, Some(address)) => (address, format!("the network, {}", net.device)),
            (None, None) => return None,
        };
        let own: Vec<(String, String)> = self.labels.clone().into_iter().collect();
        let mut labels = BTreeMap::new();
        let mut label_from = BTreeMap::new();
        // The first source that names a label decides; beyond the bound the last sources give way.
        for (from, source) in [
            ("node.toml", own.as_slice()),
            ("labels file", image),
            ("kernel command line", &boot.labels),
            ("network", &net.labels),
        ] {
            for (key, value) in source {
                if !labels.contains_key(key) && labels.len() < LABELS_MAX {
                    labels.insert(key.clone(), value.clone());
                    label_from.insert(key.clone(), from.to_owned());
                }
            }
        }
        let mut join = self.join.clone();
        join.extend(net.seeds.iter().filter(|seed| seed.ip() != address));
        join.sort_unstable();
        join.dedup();
        Some(NodeConfig {
            name: self.name.clone().unwrap_or_else(|| name.to_owned()),
            address,
            address_from,
            join,
            discover: self.discover.or(boot.discover).unwrap_or_default(),
            credentials: self.credentials.clone(),
            state: self.state.clone(),
            run: self.run.clone(),
            labels,
            label_from,
            capacity: self.capacity.clone(),
            ports: self.ports.clone(),
            images: self.images.clone(),
            grants: self.grants.clone(),
        })
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), String> {
    if labels.len() > LABELS_MAX {
        return Err(format!("{} labels, {LABELS_MAX} are allowed", labels.len()));
    }
    for text in labels.iter().flat_map(|(key, value)| [key, value]) {
        if text.is_empty() || text.len() > LABEL_BYTES_MAX {
            return Err(format!("label {text:?} must have 1 to {LABEL_BYTES_MAX} bytes"));
        }
    }
    Ok(())
}

impl NodeConfig {
    /// Where gossip listens and is reached.
    pub fn gossip_addr(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.ports.gossip)
    }

    /// The multicast group in which this node looks for others, if it does and its address is on a link.
    pub fn discover_group(&self) -> Option<SocketAddr> {
        let looks = match self.discover {
            Discover::On => true,
            Discover::Auto => self.join.is_empty(),
            Discover::Off => false,
        };
        let group = gossip::driver::group_for(self.address, self.ports.gossip);
        group.filter(|_| looks)
    }

    /// Whether there is nobody to wait for: this node may be the first of its flock.
    pub fn is_first(&self) -> bool {
        self.join.is_empty() && self.discover != Discover::On
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

    fn resolved(text: &str, boot: &str, net: &str) -> Option<NodeConfig> {
        let image = [("power".to_owned(), "p9".to_owned()), ("rack".to_owned(), "i".to_owned())];
        NodeFile::parse(text).unwrap().resolve("n7", &image, &Boot::parse(boot), &Net::parse(net))
    }

    #[test]
    fn defaults_and_a_round_trip() {
        let file = NodeFile::parse("name = \"n1\"\naddress = \"10.0.0.1\"").unwrap();
        let text = toml::to_string(&file).unwrap();
        let file = NodeFile::parse(&text).unwrap();
        let config = file.resolve("n7", &[], &Boot::default(), &Net::default()).unwrap();
        assert_eq!(config.api_addr(), "10.0.0.1:7402".parse().unwrap());
        assert_eq!((config.name.as_str(), config.address_from.as_str()), ("n1", "node.toml"));
        assert!(!file.maintenance);
    }

    #[test]
    fn the_network_gives_what_the_file_leaves_out() {
        assert!(resolved("", "", "").is_none(), "no address yet");
        let net = "device=eth0\naddress=10.0.0.9\nseed=10.0.0.2:7400\nseed=10.0.0.9:7400\n";
        let config = resolved("join = [\"10.0.0.2:7400\"]", "", net).unwrap();
        assert_eq!((config.name.as_str(), config.address), ("n7", [10, 0, 0, 9].into()));
        assert_eq!(config.address_from, "the network, eth0");
        assert_eq!(config.join, ["10.0.0.2:7400".parse().unwrap()], "not itself, nobody twice");
    }

    #[test]
    fn discovery_by_the_file_then_the_kernel_then_for_want_of_seeds() {
        let looks = |text: &str, boot: &str| {
            let text = format!("address = \"10.0.0.1\"\n{text}");
            let config = resolved(&text, boot, "").unwrap();
            (config.discover_group().is_some(), config.is_first())
        };
        let join = "join = [\"10.0.0.2:7400\"]";
        assert_eq!(looks("", ""), (true, true));
        assert_eq!(looks(join, ""), (false, false));
        assert_eq!(looks(join, "discover=on"), (true, false));
        assert_eq!(looks("discover = \"off\"", "discover=on"), (false, true));
        assert_eq!(looks("discover = \"on\"", "discover=off"), (true, false));
        let own = resolved("address = \"127.0.0.1\"\ndiscover = \"on\"", "", "").unwrap();
        assert_eq!(own.discover_group(), None, "on no link");
    }

    #[test]
    fn labels_by_rank_of_their_source() {
        let config = resolved(
            "address = \"10.0.0.1\"\n[labels]\nrow = \"file\"",
            "label=row=kernel\nlabel=rack=kernel\nlabel=site=kernel",
            "label=site=dhcp\nlabel=zone=dhcp\nlabel=row=dhcp",
        )
        .unwrap();
        let told: Vec<(&str, &str, &str)> = config
            .labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str(), config.label_from[k].as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("power", "p9", "labels file"),
                ("rack", "i", "labels file"),
                ("row", "file", "node.toml"),
                ("site", "kernel", "kernel command line"),
                ("zone", "dhcp", "network"),
            ]
        );
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("name = \"n1\"\naddress = \"10.0.0.1\"\njoined = []", "line 3"),
            ("discover = \"yes\"", "expected one of `auto`, `on`, `off`"),
            ("name = \"N 1\"\naddress = \"10.0.0.1\"", "cannot be a name"),
            ("name = \"n1\"\naddress = \"0.0.0.0\"", "peers can reach"),
            ("name = \"n1\"\naddress = \"10.0.0.1\"\n[capacity]\ncpu = -1.0", "capacity.cpu"),
        ];
        for (text, expected) in cases {
            let error = NodeFile::parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
