//! What a spec insists on and a node may lack, and the words in which a node says what it has.
//!
//! A node lists its features in its record. Both halves of scheduling ask the same question here, so that a node refuses
//! what its coordinator would not have offered, for the same reason.

use std::collections::BTreeMap;
use std::fmt;

use super::units::show_size;
use super::{Container, Spec};

/// Features of a node: name → how much of it.
pub type Features = BTreeMap<String, u64>;

/// One thing that a node must have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// A controller of cgroup v2, by its name.
    Controller(&'static str),
    /// So many CPUs: the highest number in a `cpuset`, plus one.
    Cpus(u64),
    /// Huge pages of this size, so many bytes of them set aside at boot or since.
    Hugepages {
        /// `2Mi` or `1Gi`.
        page: String,
        /// Bytes.
        bytes: u64,
    },
    /// A device that the node grants under this name.
    Device(String),
    /// A program of the host that the node permits.
    HostTool(String),
    /// A system call filter of this name.
    Seccomp(String),
}

impl Demand {
    /// The name under which a node says that it has this.
    #[must_use]
    pub fn feature(&self) -> String {
        match self {
            Self::Controller(name) => format!("cgroup.{name}"),
            Self::Cpus(_) => "cpus".to_owned(),
            Self::Hugepages { page, .. } => format!("hugepages.{page}"),
            Self::Device(name) => format!("device.{name}"),
            Self::HostTool(path) => format!("host.{path}"),
            Self::Seccomp(name) => format!("seccomp.{name}"),
        }
    }

    /// Whether these features have it. A host tool is permitted by its path or by a directory above it that is
    /// listed with a slash at its end.
    #[must_use]
    pub fn met(&self, features: &Features) -> bool {
        let have = |name: &str| features.get(name).copied().unwrap_or(0);
        match self {
            Self::Cpus(n) => have("cpus") >= *n,
            Self::Hugepages { bytes, .. } => have(&self.feature()) >= *bytes,
            Self::HostTool(path) => {
                let above = path.match_indices('/').map(|(at, _)| path.get(..=at));
                have(&self.feature()) > 0
                    || above.flatten().any(|dir| have(&format!("host.{dir}")) > 0)
            }
            _ => have(&self.feature()) > 0,
        }
    }

    /// What an operator can do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Controller(name) => {
                format!("give the node the {name} controller of cgroup v2, or take the limit out")
            }
            Self::Cpus(_) => "name CPUs that the nodes have".to_owned(),
            Self::Hugepages { page, .. } => {
                format!(
                    "set {page} pages aside on a node (vm.nr_hugepages or the kernel's command line)"
                )
            }
            Self::Device(name) => {
                format!(
                    "grant it in a node's node.toml: [grants] devices = {{ {name} = [\"/dev/...\"] }}"
                )
            }
            Self::HostTool(path) => {
                format!("permit it in a node's node.toml: [grants] host_tools = [\"{path}\"]")
            }
            Self::Seccomp(name) => {
                format!(
                    "put the filter on a node and name it in node.toml: [grants] seccomp = {{ {name} = ... }}"
                )
            }
        }
    }
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller(name) => write!(f, "the {name} controller of cgroup v2"),
            Self::Cpus(n) => write!(f, "CPU number {}", n.saturating_sub(1)),
            Self::Hugepages { page, bytes } => {
                write!(f, "{} of huge pages of {page}", show_size(*bytes))
            }
            Self::Device(name) => write!(f, "a device named {name}"),
            Self::HostTool(path) => write!(f, "the permission to run {path} of the host"),
            Self::Seccomp(name) => write!(f, "a system call filter named {name}"),
        }
    }
}

impl Spec {
    /// Everything a node must have beyond room, in a fixed order, each once.
    #[must_use]
    pub fn demands(&self) -> Vec<Demand> {
        let mut list: Vec<Demand> = self.containers.iter().flat_map(of).collect();
        if self.limits_required {
            list.extend(["cpu", "memory", "pids"].map(Demand::Controller));
        }
        list.sort();
        list.dedup();
        list
    }

    /// The first demand that these features do not meet, and its place in [`demands`](Self::demands).
    #[must_use]
    pub fn lacking(&self, features: &Features) -> Option<(usize, Demand)> {
        self.demands().into_iter().enumerate().find(|(_, d)| !d.met(features))
    }
}

/// `io`, `cpuset`, `hugepages`, devices, host tools and own filters are insisted on by whoever writes them.
fn of(c: &Container) -> Vec<Demand> {
    let mut list = Vec::new();
    if c.io != super::Io::default() {
        list.push(Demand::Controller("io"));
    }
    if let Some(cpus) = &c.cpuset {
        list.push(Demand::Controller("cpuset"));
        let highest = cpus.split([',', '-']).filter_map(|n| n.parse::<u64>().ok()).max();
        list.extend(highest.map(|n| Demand::Cpus(n + 1)));
    }
    for (page, bytes) in &c.hugepages {
        list.push(Demand::Controller("hugetlb"));
        list.push(Demand::Hugepages { page: page.clone(), bytes: *bytes });
    }
    list.extend(c.devices.iter().cloned().map(Demand::Device));
    list.extend(c.exec.iter().filter_map(|argv| argv.first().cloned()).map(Demand::HostTool));
    if let Some(name) = &c.seccomp
        && !super::SECCOMP_BUILT_IN.contains(&name.as_str())
    {
        list.push(Demand::Seccomp(name.clone()));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_tools_permits_what_is_below_it_only() {
        let have = |names: &[&str]| -> Features {
            names.iter().map(|n| (format!("host.{n}"), 1)).collect()
        };
        let tool = Demand::HostTool("/opt/tools/bin/x".into());
        assert!(tool.met(&have(&["/opt/tools/"])));
        assert!(tool.met(&have(&["/opt/tools/bin/x"])));
        assert!(tool.met(&have(&["/"])));
        for none in ["/opt/tools", "/opt/tool/", "/opt/tools/bin/x/", "/opt/tools/bin/xy"] {
            assert!(!tool.met(&have(&[none])), "{none}");
        }
        assert!(!tool.met(&Features::new()));
    }

    #[test]
    fn amounts_count() {
        let have = Features::from([("cpus".into(), 4), ("hugepages.2Mi".into(), 4 << 20)]);
        assert!(Demand::Cpus(4).met(&have) && !Demand::Cpus(5).met(&have));
        let pages = |bytes| Demand::Hugepages { page: "2Mi".into(), bytes };
        assert!(pages(4 << 20).met(&have) && !pages(6 << 20).met(&have));
    }
}
