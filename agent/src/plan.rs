//! From a claim and its images to what a shim is told: names, environment, limits, mounts. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use imagefs::Image;
use initd::grants::Grants;
use initd::pod::{Bind, ContainerSpec, PodSpec, Volume};
use netshim::ipam::PodAddr;
use sched::spec;
use serde::{Deserialize, Serialize};

mod container;

use crate::grants::HOST_TOOLS;

/// Where a pod sees what the node tells it (`peers.json`).
pub const INFO_TARGET: &str = "/run/quelea";
/// The search path where an image names none, as Docker has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is kept with a pod for the agent that finds it after a restart: `kept.json` in its directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// The claim's record when it was started.
    pub record: sched::ClaimRecord,
    /// Its addresses.
    pub addr: PodAddr,
    /// Its user namespace slot.
    pub slot: u32,
    /// Names of its containers.
    pub containers: Vec<String>,
    /// Those of them that the pod is for; none where an older agent wrote this: then it is for all.
    #[serde(default)]
    pub mains: Vec<String>,
    /// How long its stop takes when each container has its own grace, milliseconds; 0 where an older agent wrote this.
    #[serde(default)]
    pub grace_ms: u64,
    /// Manifest digests of its images; none where an older agent wrote this.
    #[serde(default)]
    pub images: Vec<String>,
    /// Bytes that containers may write, where the spec says so.
    #[serde(default)]
    pub disk: BTreeMap<String, u64>,
}

impl Kept {
    /// Whether the pod is for this container.
    pub fn is_main(&self, container: &str) -> bool {
        self.mains.is_empty() || self.mains.iter().any(|name| name == container)
    }
}

/// What this node is, as far as a pod is told.
#[derive(Clone, Debug)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

/// A pod that is to be made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The claim.
    pub claim: sched::Claim,
    /// The pod's directory.
    pub dir: PathBuf,
    /// Its addresses.
    pub addr: PodAddr,
    /// Its user namespace slot.
    pub slot: u32,
    /// Where it runs.
    pub place: Place,
    /// Its cgroup and its shim's, where the machine has cgroups.
    pub cgroups: Option<(PathBuf, PathBuf)>,
    /// What this node's owner lets pods have.
    pub grants: Arc<Grants>,
    /// A directory on the disk whose bandwidth is limited.
    pub disk: PathBuf,
}

impl Plan {
    /// The name of the image's manifest digest in a container's `image`: `REFERENCE@DIGEST`.
    pub fn digest_of(image: &str) -> &str {
        image.rsplit_once('@').map_or(image, |(_, digest)| digest)
    }

    /// Whether ports below 1024 are open to the pod: its network namespace belongs to the node, so no capability of a user
    /// namespace counts there; the kernel asks the namespace's own bound, which all containers of the pod share.
    pub fn low_ports(&self) -> bool {
        let bind = initd::pod::Caps::named("NET_BIND_SERVICE").unwrap_or(initd::pod::Caps::NONE);
        let has =
            |c: &spec::Container| container::caps(c).is_ok_and(|caps| caps.with(bind) == caps);
        self.claim.spec.containers.iter().any(has)
    }

    /// Manifest digests, one for each container that has an image.
    pub fn images(&self) -> Vec<String> {
        let containers = self.claim.spec.containers.iter().filter(|c| c.exec.is_none());
        containers.map(|c| Self::digest_of(&c.image).to_owned()).collect()
    }

    /// What to keep for a later agent.
    pub fn kept(&self) -> Kept {
        Kept {
            record: self.claim.record.clone(),
            addr: self.addr,
            slot: self.slot,
            containers: self.claim.spec.containers.iter().map(|c| c.name.clone()).collect(),
            mains: self
                .claim
                .spec
                .containers
                .iter()
                .filter(|c| c.role == spec::Role::Main)
                .map(|c| c.name.clone())
                .collect(),
            grace_ms: self.claim.spec.grace_ms(),
            images: self.images(),
            disk: self
                .claim
                .spec
                .containers
                .iter()
                .filter_map(|c| Some((c.name.clone(), c.disk_bytes?)))
                .collect(),
        }
    }

    /// The directory of one container.
    pub fn container_dir(&self, container: &str) -> PathBuf {
        self.dir.join("containers").join(container)
    }

    /// The directory that the pod sees at [`INFO_TARGET`].
    pub fn info_dir(&self) -> PathBuf {
        self.dir.join("info")
    }

    /// `/etc/hosts`.
    pub fn hosts(&self) -> String {
        let name = self.hostname();
        format!(
            "127.0.0.1 localhost\n::1 localhost ip6-localhost\n{} {name}\n{} {name}\n",
            self.addr.ip4, self.addr.ip6
        )
    }

    /// The pod's host name: its name with a dash for the dot, cut to 63 bytes (RFC 1123).
    pub fn hostname(&self) -> String {
        let mut name = self.claim.pod_name().replace('.', "-");
        name.truncate(63);
        name
    }

    /// What the shim is told, given each container's image and mounted root, in the spec's order.
    ///
    /// # Errors
    /// A line for people that names the container and what cannot be run.
    pub fn pod_spec(&self, roots: &[Option<(Image, PathBuf)>]) -> Result<PodSpec, String> {
        let mut pod = PodSpec::new(self.claim.id.clone(), self.dir.clone());
        pod.hostname = self.hostname();
        if let Some((cgroup, shim_cgroup)) = &self.cgroups {
            pod.cgroup = Some(cgroup.clone());
            pod.shim_cgroup = Some(shim_cgroup.clone());
        }
        // Among pods the pod's own weight counts, among its containers theirs.
        pod.resources.cpu_weight = Some(container::cpu_weight(self.claim.spec.cpu_milli()));
        pod.share_pid = self.claim.spec.share_pid;
        let volume = |v: &spec::Volume| Volume {
            name: v.name.clone(),
            size_bytes: v.size_bytes,
            // As /tmp: containers may run as different users.
            mode: 0o1777,
        };
        pod.volumes = self.claim.spec.volumes.iter().map(volume).collect();
        for (container, root) in self.claim.spec.containers.iter().zip(roots) {
            let built = self.container(container, root.as_ref());
            pod.containers.push(built.map_err(|e| format!("container {}: {e}", container.name))?);
        }
        Ok(pod)
    }

    fn container(
        &self,
        from: &spec::Container,
        root: Option<&(Image, PathBuf)>,
    ) -> Result<ContainerSpec, String> {
        let image = root.map(|(image, _)| image);
        let mut container = match (root, &from.exec) {
            (Some((image, root)), _) => {
                let argv = container::argv(from, image);
                if argv.is_empty() {
                    return Err(format!(
                        "neither the spec nor the image {} says what to run; set `command`",
                        image.record.reference
                    ));
                }
                ContainerSpec::new(from.name.clone(), root, argv)
            }
            (None, Some(argv)) => self
                .grants
                .host_workload(&from.name, [HOST_TOOLS], argv)
                .map_err(|e| format!("{e}; see [grants] host_tools in node.toml"))?,
            (None, None) => return Err("it has neither an image nor `exec`".into()),
        };
        container::fill(&mut container, from, image, &self.grants, &self.disk)?;
        container.env = self.env(from, image)?;
        container.binds.extend(self.binds());
        Ok(container)
    }

    fn env(
        &self,
        from: &spec::Container,
        image: Option<&Image>,
    ) -> Result<Vec<(String, String)>, String> {
        let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        for pair in image.iter().flat_map(|image| &image.config.env) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            env.insert(name.to_owned(), value.to_owned());
        }
        for (name, value) in &from.env {
            let value = spec::template::render(value, |name| self.lookup(name))
                .map_err(|e| format!("env.{name}: {e}"))?;
            env.insert(name.clone(), value);
        }
        let ours = [
            ("HOSTNAME", self.hostname()),
            ("QUELEA_POD", self.claim.pod_name()),
            ("QUELEA_POD_IP", self.addr.ip4.to_string()),
            ("QUELEA_POD_IP6", self.addr.ip6.to_string()),
            ("QUELEA_NODE", self.place.node.clone()),
            ("QUELEA_ROW", self.label("row")),
            ("QUELEA_RACK", self.label("rack")),
        ];
        env.extend(ours.map(|(name, value)| (name.to_owned(), value)));
        env.retain(|name, _| !name.is_empty());
        Ok(env.into_iter().collect())
    }

    fn label(&self, name: &str) -> String {
        self.place.labels.get(name).cloned().unwrap_or_default()
    }

    fn lookup(&self, name: &str) -> Option<String> {
        Some(match name {
            "pod.name" => self.claim.pod_name(),
            "pod.ip" => self.addr.ip4.to_string(),
            "pod.slot" => self.claim.record.slot.to_string(),
            "node.name" => self.place.node.clone(),
            "app.name" => self.claim.spec.app.clone(),
            "app.namespace" => self.claim.spec.namespace.clone(),
            "app.generation" => self.claim.record.generation.to_string(),
            _ => self.label(name.strip_prefix("node.")?),
        })
    }

    fn binds(&self) -> Vec<Bind> {
        let file = |name: &str, target: &str| Bind {
            source: self.dir.join(name),
            target: target.to_owned(),
            read_only: true,
            idmap: true,
        };
        vec![
            file("hosts", "/etc/hosts"),
            file("hostname", "/etc/hostname"),
            file("resolv.conf", "/etc/resolv.conf"),
            file("info", INFO_TARGET),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_what_follows_the_at() {
        assert_eq!(Plan::digest_of("reg/a:1@sha256:00"), "sha256:00");
        assert_eq!(Plan::digest_of("a"), "a");
    }
}
