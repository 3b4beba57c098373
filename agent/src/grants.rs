//! `[grants]` of node.toml: what a node's owner lets pods have besides what is theirs, and what the node tells of itself.
//!
//! ```toml
//! [grants]
//! devices = { kvm = ["/dev/kvm"], gpu0 = ["/dev/nvidia0", "/dev/nvidiactl"] }
//! host_tools = ["/usr/sbin/smartd", "/usr/lib/", "/lib64/"]     # what `exec` may run, and what that needs; read-only
//! seccomp = { db = "/etc/quelea/seccomp/db" }                   # filters, see `initd::seccomp::own`
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use initd::cgroup::Cgroups;
use initd::grants::{DeviceGrant, Grants};
use initd::seccomp::own;
use sched::spec::{Demand, Features};
use serde::{Deserialize, Serialize};

/// The name under which all of `host_tools` is granted.
pub const HOST_TOOLS: &str = "host_tools";
/// Entries of each kind.
pub const GRANTS_MAX: usize = 64;
/// Sizes of huge pages that specs may ask for, and where the kernel counts them.
const HUGE_PAGES: [(&str, u64, &str); 2] = [
    ("2Mi", 2 << 20, "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"),
    ("1Gi", 1 << 30, "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages"),
];

/// As written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GrantsFile {
    /// Programs of the host and what they need, absolute; a directory stands for all below it.
    pub host_tools: Vec<PathBuf>,
    /// Name → device nodes.
    pub devices: BTreeMap<String, Vec<PathBuf>>,
    /// Name → file of a system call filter.
    pub seccomp: BTreeMap<String, PathBuf>,
}

/// What is granted, what the node tells of it, and what of it is not there.
#[derive(Debug, Default)]
pub struct Opened {
    /// For the pods' plans.
    pub grants: Grants,
    /// For the node's record.
    pub features: Features,
    /// One line for each thing that cannot be granted; pods that need it go elsewhere.
    pub conditions: Vec<String>,
}

impl GrantsFile {
    /// Everything that is wrong with it before looking at the machine.
    ///
    /// # Errors
    /// The first mistake, for people.
    pub fn check(&self) -> Result<(), String> {
        if self.devices.len().max(self.host_tools.len()).max(self.seccomp.len()) > GRANTS_MAX {
            return Err(format!("[grants]: more than {GRANTS_MAX} entries of one kind"));
        }
        for (name, paths) in &self.devices {
            if let Some(path) = paths.iter().find(|p| !p.starts_with("/dev") || !plain(p)) {
                let path = path.display();
                return Err(format!("[grants] devices.{name}: {path} is no path below /dev"));
            }
        }
        if let Some(path) = self.host_tools.iter().find(|p| !p.is_absolute() || !plain(p)) {
            return Err(format!("[grants] host_tools: {} is no absolute path", path.display()));
        }
        Ok(())
    }

    /// Looks at the machine and compiles the filters.
    #[must_use]
    pub fn open(&self, cgroups: Option<&Cgroups>) -> Opened {
        let mut opened = Opened::default();
        for controller in cgroups.iter().flat_map(|c| &c.controllers) {
            opened.features.insert(format!("cgroup.{controller}"), 1);
        }
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        opened.features.insert(Demand::Cpus(0).feature(), cpus);
        for (page, bytes, file) in HUGE_PAGES {
            let count = std::fs::read_to_string(file).ok().and_then(|t| t.trim().parse().ok());
            if let Some(count @ 1..) = count {
                let feature = Demand::Hugepages { page: page.to_owned(), bytes: 0 }.feature();
                opened.features.insert(feature, bytes.saturating_mul(count));
            }
        }
        self.devices(&mut opened);
        self.host_tools(&mut opened);
        self.filters(&mut opened);
        opened
    }

    fn devices(&self, opened: &mut Opened) {
        for (name, paths) in &self.devices {
            if let Some(missing) = paths.iter().find(|p| !p.exists()) {
                let missing = missing.display();
                opened
                    .conditions
                    .push(format!("the granted device {name} is missing: no {missing}"));
                continue;
            }
            let grant = |path: &PathBuf| DeviceGrant { path: path.clone(), read_only: false };
            opened.grants.devices.insert(name.clone(), paths.iter().map(grant).collect());
            opened.features.insert(Demand::Device(name.clone()).feature(), 1);
        }
    }

    fn host_tools(&self, opened: &mut Opened) {
        let mut there = Vec::new();
        for path in &self.host_tools {
            let Ok(metadata) = std::fs::metadata(path) else {
                opened
                    .conditions
                    .push(format!("the granted host tool {} is missing", path.display()));
                continue;
            };
            let mut text = path.display().to_string();
            text.truncate(text.trim_end_matches('/').len());
            if metadata.is_dir() {
                text.push('/');
            }
            opened.features.insert(Demand::HostTool(text).feature(), 1);
            there.push(path.clone());
        }
        if !there.is_empty() {
            opened.grants.host_paths.insert(HOST_TOOLS.to_owned(), there);
        }
    }

    fn filters(&self, opened: &mut Opened) {
        for (name, path) in &self.seccomp {
            let compiled = std::fs::read_to_string(path)
                .map_err(|e| e.to_string())
                .and_then(|text| own::compile(&text).map_err(|e| e.to_string()));
            match compiled {
                Ok(program) => {
                    opened.grants.seccomp.insert(name.clone(), program);
                    opened.features.insert(Demand::Seccomp(name.clone()).feature(), 1);
                }
                Err(why) => opened
                    .conditions
                    .push(format!("the system call filter {name} at {}: {why}", path.display())),
            }
        }
    }
}

/// No `..` in it.
fn plain(path: &Path) -> bool {
    path.components().all(|c| c != std::path::Component::ParentDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> GrantsFile {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_is_there_is_granted_and_the_rest_is_told() {
        let dir = crate::testing::temp_dir("grants");
        std::fs::write(dir.join("good"), "base default\ndeny ptrace\n").unwrap();
        std::fs::write(dir.join("bad"), "base default\nallow ptraze\n").unwrap();
        let text = format!(
            "devices = {{ nil = [\"/dev/null\"], gone = [\"/dev/nothing-here\"] }}\nhost_tools = [\"/usr/bin\", \"/bin/nothing-here\", \"/etc/hostname\"]\nseccomp = {{ good = \"{0}/good\", bad = \"{0}/bad\" }}",
            dir.display()
        );
        let opened = file(&text).open(None);
        let met = |d: Demand| d.met(&opened.features);
        assert!(met(Demand::Device("nil".into())) && !met(Demand::Device("gone".into())));
        assert!(met(Demand::HostTool("/usr/bin/env".into())));
        assert!(met(Demand::HostTool("/etc/hostname".into())));
        assert!(!met(Demand::HostTool("/etc/passwd".into())));
        assert!(met(Demand::Seccomp("good".into())) && !met(Demand::Seccomp("bad".into())));
        assert!(met(Demand::Cpus(1)) && !met(Demand::Controller("memory")));
        let told = opened.conditions.join("\n");
        for part in ["gone is missing", "/bin/nothing-here is missing", "filter bad", "line 2"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert_eq!(opened.conditions.len(), 3, "{told}");
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn mistakes_are_refused() {
        for (text, part) in [
            ("devices = { x = [\"/etc/passwd\"] }", "below /dev"),
            ("devices = { x = [\"/dev/../etc\"] }", "below /dev"),
            ("host_tools = [\"bin\"]", "absolute"),
        ] {
            assert!(file(text).check().unwrap_err().contains(part), "{text}");
        }
        assert!(toml::from_str::<GrantsFile>("tools = []").is_err());
    }
}
