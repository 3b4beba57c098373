//! What a node lets its pods have besides what is theirs: devices, programs of its own, its network, filters. By name, so
//! that a spec says `gpu` and each node's owner says what that is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::pod::{ContainerSpec, Device, Seccomp};
use crate::seccomp::Insn;

/// A node's grants. An empty one grants nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// Device nodes behind a name: `gpu` may be `/dev/nvidia0` and `/dev/nvidiactl`.
    pub devices: BTreeMap<String, Vec<DeviceGrant>>,
    /// Files and directories behind a name, read-only and where they are: what a host program and its libraries need.
    pub host_paths: BTreeMap<String, Vec<PathBuf>>,
    /// Pods may run in the node's own network.
    pub host_network: bool,
    /// System call filters, compiled by [`seccomp::own::compile`](crate::seccomp::own::compile).
    pub seccomp: BTreeMap<String, Vec<Insn>>,
}

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceGrant {
    /// Its path, below `/dev`.
    pub path: PathBuf,
    /// Only reading.
    pub read_only: bool,
}

impl Grants {
    /// The devices of this name, under their host's names inside.
    ///
    /// # Errors
    /// [`Error::NotGranted`]; [`Error::Spec`] for a grant that is not below `/dev`.
    pub fn devices(&self, name: &str) -> Result<Vec<Device>> {
        let granted = self.devices.get(name).ok_or_else(|| refused("device", name))?;
        granted
            .iter()
            .map(|g| {
                let inside = g.path.strip_prefix("/dev").ok().and_then(Path::to_str);
                let inside = inside.ok_or_else(|| Error::Spec {
                    field: format!("grant of device {name}"),
                    why: "not a path below /dev",
                })?;
                Ok(Device {
                    name: inside.to_owned(),
                    source: g.path.clone(),
                    read_only: g.read_only,
                })
            })
            .collect()
    }

    /// A container that runs a program of the host from the paths of these names.
    ///
    /// # Errors
    /// [`Error::NotGranted`] with the first name that is not; [`Error::Spec`] when the program lies in none of the paths.
    pub fn host_workload<'n>(
        &self,
        container: &str,
        names: impl IntoIterator<Item = &'n str>,
        argv: &[String],
    ) -> Result<ContainerSpec> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for name in names {
            let granted = self.host_paths.get(name).ok_or_else(|| refused("host program", name))?;
            paths
                .extend(granted.iter().filter(|p| !paths.contains(p)).cloned().collect::<Vec<_>>());
        }
        let program = Path::new(argv.first().map_or("", String::as_str));
        let plain = !program.components().any(|c| c == std::path::Component::ParentDir);
        if !program.is_absolute() || !plain || !paths.iter().any(|p| program.starts_with(p)) {
            return Err(Error::Spec {
                field: format!("containers[{container}].argv"),
                why: "a host program is named by its absolute path, in what was granted",
            });
        }
        Ok(ContainerSpec::host(container, paths, argv.iter().cloned()))
    }

    /// Whether a pod may run in the node's network.
    ///
    /// # Errors
    /// [`Error::NotGranted`].
    pub fn network(&self) -> Result<()> {
        if self.host_network { Ok(()) } else { Err(refused("host network", "")) }
    }

    /// A filter: `default`, `compat`, or one of the node's. `unconfined` is none of them.
    ///
    /// # Errors
    /// [`Error::NotGranted`].
    pub fn filter(&self, name: &str) -> Result<Seccomp> {
        match name {
            "default" => Ok(Seccomp::Default),
            "compat" => Ok(Seccomp::Compat),
            _ => {
                let program = self.seccomp.get(name);
                let program = program.ok_or_else(|| refused("seccomp profile", name))?.clone();
                Ok(Seccomp::Own { name: name.to_owned(), program })
            }
        }
    }
}

fn refused(what: &'static str, name: &str) -> Error {
    Error::NotGranted { what, name: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Root;

    fn grants() -> Grants {
        let grant = |path: &str, read_only| DeviceGrant { path: path.into(), read_only };
        Grants {
            devices: BTreeMap::from([
                ("gpu".into(), vec![grant("/dev/dri/card0", false), grant("/dev/kmsg", true)]),
                ("odd".into(), vec![grant("/etc/passwd", true)]),
            ]),
            host_paths: BTreeMap::from([
                ("tools".into(), vec!["/usr/bin".into(), "/usr/lib".into()]),
                ("more".into(), vec!["/usr/lib".into(), "/opt".into()]),
            ]),
            host_network: false,
            seccomp: BTreeMap::from([("db".into(), crate::seccomp::COMPAT.to_vec())]),
        }
    }

    #[test]
    fn what_is_not_granted_is_refused_by_name() {
        let none = Grants::default();
        let words = ["/bin/x".to_owned()];
        for (error, want) in [
            (none.devices("gpu").map(drop), "device \"gpu\": not granted on this node"),
            (none.network(), "host network: not granted on this node"),
            (none.filter("db").map(drop), "seccomp profile \"db\": not granted on this node"),
            (
                none.filter("unconfined").map(drop),
                "seccomp profile \"unconfined\": not granted on this node",
            ),
            (
                none.host_workload("c", ["tools"], &words).map(drop),
                "host program \"tools\": not granted on this node",
            ),
        ] {
            assert_eq!(error.expect_err(want).to_string(), want);
        }
    }

    #[test]
    fn what_is_granted_is_what_the_node_says() {
        let g = grants();
        let gpu = g.devices("gpu").expect("granted");
        assert_eq!(gpu[0].name, "dri/card0");
        assert_eq!((gpu[1].source.as_path(), gpu[1].read_only), (Path::new("/dev/kmsg"), true));
        assert!(matches!(g.devices("odd"), Err(Error::Spec { .. })));
        assert!(matches!(g.filter("db"), Ok(Seccomp::Own { .. })));
        assert_eq!(g.filter("compat"), Ok(Seccomp::Compat));
    }

    #[test]
    fn a_host_workload_has_the_granted_paths_read_only_and_an_empty_root() {
        let g = grants();
        let argv = ["/usr/bin/env".to_owned(), "A=b".to_owned()];
        let c = g.host_workload("c", ["tools", "more"], &argv).expect("granted");
        assert!(matches!(c.root, Root::Fresh { .. }));
        let binds: Vec<_> = c.binds.iter().map(|b| (b.target.as_str(), b.read_only)).collect();
        assert_eq!(binds, [("/usr/bin", true), ("/usr/lib", true), ("/opt", true)]);
        for program in ["/bin/sh", "env", "/usr/binary", "/usr/bin/../../bin/sh"] {
            let refused = g.host_workload("c", ["tools"], &[program.to_owned()]);
            assert!(matches!(refused, Err(Error::Spec { .. })), "{program}");
        }
    }
}
