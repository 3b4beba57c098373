//! From a claim and its images to what a shim is told: names, environment, limits, mounts. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use imagefs::Image;
use initd::pod::{Bind, Caps, Check, ContainerSpec, PodSpec, Probe, Resources, Restart, Stop};
use netshim::ipam::PodAddr;
use nix::sys::signal::Signal;
use sched::spec;
use serde::{Deserialize, Serialize};

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
}

impl Plan {
    /// The name of the image's manifest digest in a container's `image`: `REFERENCE@DIGEST`.
    pub fn digest_of(image: &str) -> &str {
        image.rsplit_once('@').map_or(image, |(_, digest)| digest)
    }

    /// Manifest digests, one for each container.
    pub fn images(&self) -> Vec<String> {
        let containers = self.claim.spec.containers.iter();
        containers.map(|c| Self::digest_of(&c.image).to_owned()).collect()
    }

    /// What to keep for a later agent.
    pub fn kept(&self) -> Kept {
        Kept {
            record: self.claim.record.clone(),
            addr: self.addr,
            slot: self.slot,
            containers: self.claim.spec.containers.iter().map(|c| c.name.clone()).collect(),
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
    pub fn pod_spec(&self, roots: &[(Image, PathBuf)]) -> Result<PodSpec, String> {
        let mut pod = PodSpec::new(self.claim.id.clone(), self.dir.clone());
        pod.hostname = self.hostname();
        if let Some((cgroup, shim_cgroup)) = &self.cgroups {
            pod.cgroup = Some(cgroup.clone());
            pod.shim_cgroup = Some(shim_cgroup.clone());
        }
        // Among pods the pod's own weight counts, among its containers theirs.
        pod.resources.cpu_weight = Some(cpu_weight(self.claim.spec.cpu_milli()));
        for (container, (image, root)) in self.claim.spec.containers.iter().zip(roots) {
            let built = self.container(container, image, root);
            pod.containers.push(built.map_err(|e| format!("container {}: {e}", container.name))?);
        }
        Ok(pod)
    }

    fn container(
        &self,
        from: &spec::Container,
        image: &Image,
        root: &Path,
    ) -> Result<ContainerSpec, String> {
        let argv = argv(from, image);
        if argv.is_empty() {
            return Err(format!(
                "neither the spec nor the image {} says what to run; set `command`",
                image.record.reference
            ));
        }
        let mut container = ContainerSpec::new(from.name.clone(), root, argv);
        container.read_only = from.read_only;
        // The kernel ignores a signal that PID 1 has no handler for, and most programs reap nobody.
        container.init = true;
        container.env = self.env(from, image)?;
        container.workdir =
            from.workdir.clone().unwrap_or_else(|| image.config.working_dir.clone());
        container.user = from.user.clone().unwrap_or_else(|| image.config.user.clone());
        container.caps = caps(from)?;
        container.binds = self.binds();
        container.resources = Resources {
            cpu_weight: Some(cpu_weight(from.cpu_milli)),
            memory_max_bytes: Some(from.memory_bytes),
            pids_max: Some(from.pids),
            ..Resources::default()
        };
        container.restart = match from.restart {
            spec::Restart::Always => Restart::Always,
            spec::Restart::OnFailure => Restart::OnFailure,
            spec::Restart::Never => Restart::Never,
        };
        container.ready = from.ready.as_ref().map(probe);
        container.stop = stop(from, image)?;
        Ok(container)
    }

    fn env(&self, from: &spec::Container, image: &Image) -> Result<Vec<(String, String)>, String> {
        let mut env = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
        for pair in &image.config.env {
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

/// 1 CPU is the kernel's default weight of 100 (cgroup-v2.rst, cpu.weight).
fn cpu_weight(cpu_milli: u64) -> u32 {
    u32::try_from((cpu_milli / 10).clamp(1, 10_000)).unwrap_or(1)
}

fn argv(from: &spec::Container, image: &Image) -> Vec<String> {
    let args = from.args.clone();
    match &from.command {
        Some(command) => command.iter().cloned().chain(args.unwrap_or_default()).collect(),
        None => {
            let args = args.unwrap_or_else(|| image.config.cmd.clone());
            image.config.entrypoint.iter().cloned().chain(args).collect()
        }
    }
}

fn caps(from: &spec::Container) -> Result<Caps, String> {
    let Some(names) = &from.caps else { return Ok(Caps::STRICT) };
    names.iter().try_fold(Caps::NONE, |caps, name| {
        Caps::named(name).map(|cap| caps.with(cap)).ok_or(format!("no capability named {name}"))
    })
}

fn probe(from: &spec::Probe) -> Probe {
    let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX).max(1);
    let check = match &from.check {
        spec::Check::Http { port, path } => Check::Http { port: *port, path: path.clone() },
        spec::Check::Tcp { port } => Check::Tcp { port: *port },
    };
    let mut probe = Probe::new(check);
    probe.every_ms = ms(from.every_ms);
    probe.timeout_ms = ms(from.timeout_ms);
    probe.failures = from.fail.max(1);
    probe
}

fn stop(from: &spec::Container, image: &Image) -> Result<Stop, String> {
    let named = from.stop.signal.as_deref().unwrap_or(&image.config.stop_signal);
    let signal = if named.is_empty() { Signal::SIGTERM as i32 } else { signal_number(named)? };
    let grace_ms = u32::try_from(from.stop.grace_ms).unwrap_or(u32::MAX);
    Ok(Stop { signal, grace_ms })
}

/// `TERM`, `SIGTERM` or `15`.
fn signal_number(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>()
        && (1..=64).contains(&number)
    {
        return Ok(number);
    }
    let name = format!("SIG{}", text.strip_prefix("SIG").unwrap_or(text));
    name.parse::<Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| format!("no signal named {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("TERM"), Ok(15));
        assert_eq!(signal_number("SIGQUIT"), Ok(3));
        assert_eq!(signal_number("37"), Ok(37));
        assert!(signal_number("65").is_err());
        assert!(signal_number("NOPE").is_err());
    }

    #[test]
    fn the_digest_is_what_follows_the_at() {
        assert_eq!(Plan::digest_of("reg/a:1@sha256:00"), "sha256:00");
        assert_eq!(Plan::digest_of("a"), "a");
    }
}
