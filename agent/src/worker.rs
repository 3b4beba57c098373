//! The worker thread: what takes milliseconds and would hold up gossip: mounts, namespaces, shims, small files.
//!
//! Jobs run one after the other in the order given; each answers with a [`Done`].

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use imagefs::{Digest, Image, ImageRecord, Mounts, Store, Upper};
use initd::cgroup::NodeCgroup;
use initd::shim::{PodFds, Shim, Zygote};
use initd::userns::{self, IdMap};
use netshim::Overlay;
use netshim::podnet::{self, PodConfig};

use crate::disk::{self, Bounding};
use crate::node::Survey;
use crate::peers::Text;
use crate::plan::Plan;
use crate::pods::Failure;
use crate::reserve;

/// MTU of pods: the underlay's 1,500 less the overlay's headers, rounded down.
pub const POD_MTU: u16 = 1400;
/// The file that tells a later agent whose pod a directory is.
pub const KEPT_NAME: &str = "kept.json";

/// The file in a pod's info directory that names the replicas of its app.
pub const PEERS_NAME: &str = "peers.json";
/// Jobs that may wait: those of twice all the addresses there are (a pod has one under way, and its predecessor's images are to be
/// noted as used), of as many remains of an earlier agent, and the node's own three.
pub const JOBS_MAX: usize = 1024;

/// What to do.
pub enum Job {
    /// Make a pod and start its shim.
    Prepare {
        /// What it is to be.
        plan: Box<Plan>,
        /// Where its packets go.
        overlay: Arc<Overlay>,
        /// Who its peers are as it starts.
        peers: Text,
    },
    /// Remove everything of a pod.
    Teardown {
        /// The claim.
        claim: String,
        /// The pod's directory.
        dir: PathBuf,
        /// Where its packets went, and its address there.
        network: Option<(Arc<Overlay>, std::net::Ipv4Addr)>,
    },
    /// Look through the images; answer with [`Done::Surveyed`].
    Survey,
    /// Remove images; answer with [`Done::Collected`].
    Collect {
        /// Manifest digests of what goes.
        digests: Vec<String>,
        /// What stays, also without a name in the store.
        keep: Vec<ImageRecord>,
    },
    /// Note that images are used until now.
    Used {
        /// Their manifest digests.
        digests: Vec<String>,
    },
    /// Replace what pods are told of their peers; answer with [`Done::Told`].
    Tell {
        /// Claims, the files and their new texts.
        files: Vec<(String, PathBuf, Text)>,
    },
}

/// What became of a job.
pub enum Done {
    /// [`Job::Prepare`].
    Prepared {
        /// The claim.
        claim: String,
        /// The shim of the started pod.
        result: Result<Shim, Failure>,
        /// What the machine could not give, one line each.
        conditions: Vec<String>,
    },
    /// [`Job::Teardown`].
    Torn {
        /// The claim.
        claim: String,
        /// What could not be removed, one line each; nothing is in use any more.
        left: Vec<String>,
    },
    /// [`Job::Survey`].
    Surveyed(Result<Survey, String>),
    /// [`Job::Collect`]: bytes given back.
    Collected(Result<u64, String>),
    /// What the containers' layers hold; the answer to no job, as it comes from a thread of its own.
    Measured(crate::disk::Seen),
    /// [`Job::Tell`].
    Told {
        /// Claims whose files could not be written.
        failed: Vec<String>,
    },
}

/// The state of the worker thread.
pub struct Worker {
    store: Arc<Store>,
    mounts: Mounts,
    cgroup: Option<NodeCgroup>,
    upper: PathBuf,
    bounding: Bounding,
    zygote: Zygote,
}

impl Worker {
    /// A worker that writes containers' changes below `upper` and spawns shims from the binary `quelead`.
    pub fn new(
        store: Arc<Store>,
        mounts: Mounts,
        cgroup: Option<NodeCgroup>,
        upper: PathBuf,
        quelead: &Path,
    ) -> Self {
        let bounding = disk::bounding(&upper);
        Self { store, mounts, cgroup, upper, bounding, zygote: Zygote::new(quelead) }
    }

    /// How containers' layers are bounded here.
    pub fn bounding(&self) -> &Bounding {
        &self.bounding
    }

    /// Does one job; `None` where nobody waits for the answer.
    pub fn run(&mut self, job: Job) -> Option<Done> {
        match job {
            Job::Prepare { plan, overlay, peers } => {
                let claim = plan.claim.id.clone();
                let mut conditions = Vec::new();
                let result = self.prepare((&plan, &peers), &overlay, &mut conditions);
                Some(Done::Prepared { claim, result, conditions })
            }
            Job::Teardown { claim, dir, network } => {
                let left = self.teardown(&claim, &dir, network);
                Some(Done::Torn { claim, left })
            }
            Job::Survey => Some(Done::Surveyed(self.survey().map_err(|e| e.to_string()))),
            Job::Collect { digests, keep } => {
                let result = self.collect(&digests, &keep);
                Some(Done::Collected(result.map_err(|e| e.to_string())))
            }
            Job::Used { digests } => {
                for digest in digests.iter().filter_map(|d| Digest::from_str(d).ok()) {
                    if let Err(error) = self.store.mark_used(&digest) {
                        tracing::warn!(%error, "cannot note when an image was used");
                    }
                }
                None
            }
            Job::Tell { files } => Some(Done::Told { failed: tell(&files) }),
        }
    }

    fn prepare(
        &mut self,
        (plan, peers): (&Plan, &[u8]),
        overlay: &Overlay,
        conditions: &mut Vec<String>,
    ) -> Result<Shim, Failure> {
        let again = |reason: String| Failure { reason, retryable: true };
        self.write_files(plan, peers).map_err(again)?;
        crate::fall::step("files");
        let map = IdMap::slot(plan.slot)
            .ok_or_else(|| again(format!("no user namespace has the slot {}", plan.slot)))?;
        let userns = userns::create(map).map_err(|e| again(format!("user namespace: {e}")))?;
        crate::fall::step("userns");
        let mut roots: Vec<Option<(Image, PathBuf)>> = Vec::new();
        for (at, container) in plan.claim.spec.containers.iter().enumerate() {
            if container.exec.is_some() {
                roots.push(None);
                continue;
            }
            let image = self.image(Plan::digest_of(&container.image)).map_err(again)?;
            let dir = plan.container_dir(&container.name);
            let upper = self.upper(plan, at, container).map_err(again)?;
            let root = self
                .mounts
                .assemble(&self.store, &image, &dir, upper, Some(userns.as_fd()))
                .map_err(|e| again(format!("container {}: {e}", container.name)))?;
            roots.push(Some((image, root.path)));
            crate::fall::step("root");
        }
        let spec = plan.pod_spec(&roots).map_err(|reason| Failure { reason, retryable: false })?;
        let net = podnet::create(&PodConfig {
            ip4: plan.addr.ip4,
            ip6: plan.addr.ip6,
            mtu: POD_MTU,
            offload: true,
            low_ports: plan.low_ports(),
        })
        .map_err(|e| again(format!("pod network: {e}")))?;
        crate::fall::step("network");
        conditions.extend(net.missing);
        let tun = net.tun.try_clone().map_err(|e| again(format!("pod network: {e}")))?;
        overlay
            .add_pod(plan.addr.ip4, plan.addr.ip6, tun)
            .map_err(|e| again(format!("overlay: {e}")))?;
        crate::fall::step("overlay");
        let fds = PodFds {
            netns: Some(net.netns.as_fd()),
            tun: Some(net.tun.as_fd()),
            userns: Some((userns.as_fd(), map)),
        };
        let shim = self.zygote.spawn(&spec, fds);
        crate::fall::step("shim");
        shim.map_err(|e| again(format!("shim: {e}")))
    }

    /// Where a container's changes go. What is measured on a disk has its size in memory.
    fn upper(
        &self,
        plan: &Plan,
        at: usize,
        container: &sched::spec::Container,
    ) -> Result<Upper, String> {
        let disk = disk::file_system(&self.upper)
            .map_err(|e| format!("cannot look at {}: {e}", self.upper.display()))?;
        let size_bytes = disk::allowed_bytes(container.disk_bytes, disk.bytes);
        if disk.in_memory {
            return Ok(Upper::Tmpfs { size_bytes });
        }
        reserve::check(&self.upper, 0)
            .map_err(|lacks| format!("container {}: no room to write: {lacks}", container.name))?;
        let dir = self.upper.join(&plan.claim.id).join(&container.name);
        let bounded = self.bounding == Bounding::Quota;
        let quota = bounded.then(|| disk::layer_quota(plan.slot, at, size_bytes));
        Ok(Upper::Disk { dir, quota })
    }

    fn survey(&self) -> imagefs::Result<Survey> {
        let since = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ms = |at| u64::try_from(since(at).as_millis()).unwrap_or(u64::MAX);
        let images = self.store.list_used()?.into_iter().map(|(r, at)| (r, ms(at))).collect();
        let disk = nix::sys::statvfs::statvfs(self.store.root());
        // A file system that does not tell its size bounds nothing.
        let disk_bytes = disk.map_or(u64::MAX, |d| d.blocks().saturating_mul(d.fragment_size()));
        Ok(Survey { images, disk_bytes })
    }

    /// References first: after a power cut the bytes have no name, and the next collection takes them.
    fn collect(&self, digests: &[String], keep: &[ImageRecord]) -> imagefs::Result<u64> {
        let goes = |r: &&ImageRecord| digests.contains(&r.manifest_digest.to_string());
        for record in self.store.list()?.iter().filter(goes) {
            self.store.remove(&record.reference)?;
        }
        Ok(self.store.gc(keep)?.freed_bytes)
    }

    fn image(&self, digest: &str) -> Result<Image, String> {
        let parsed = Digest::from_str(digest).map_err(|e| format!("image {digest}: {e}"))?;
        match self.store.get(&parsed) {
            Ok(Some(image)) => Ok(image),
            Ok(None) => Err(format!("image {digest} is not in this node's store any more")),
            Err(error) => Err(format!("image {digest}: {error}")),
        }
    }

    fn write_files(&self, plan: &Plan, peers: &[u8]) -> Result<(), String> {
        let make = |dir: &Path| {
            fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))
        };
        make(&plan.dir)?;
        crate::fall::step("directory");
        make(&plan.info_dir())?;
        // First of all: from here on a later agent knows whose remains these are.
        let kept = serde_json::to_vec(&plan.kept()).map_err(|e| format!("{KEPT_NAME}: {e}"))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = plan.dir.join(name);
            replace(&path, bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))
        };
        write(KEPT_NAME, &kept)?;
        write("hosts", plan.hosts().as_bytes())?;
        write("hostname", format!("{}\n", plan.hostname()).as_bytes())?;
        write("resolv.conf", b"# The flock has no name server yet.\n")?;
        let path = plan.info_dir().join(PEERS_NAME);
        replace(&path, peers).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        for container in &plan.claim.spec.containers {
            make(&plan.container_dir(&container.name))?;
            make(&self.upper.join(&plan.claim.id))?;
        }
        Ok(())
    }

    /// Removes whatever is there, in the order that needs no retry; a missing part is no error.
    fn teardown(
        &mut self,
        claim: &str,
        dir: &Path,
        network: Option<(Arc<Overlay>, std::net::Ipv4Addr)>,
    ) -> Vec<String> {
        crate::fall::step("teardown");
        let mut left = Vec::new();
        if let Some((overlay, ip4)) = network
            && let Err(error) = overlay.remove_pod(ip4)
        {
            left.push(format!("overlay: {error}"));
        }
        // Kills what a vanished shim left behind.
        if let Some(cgroup) = &self.cgroup
            && let Err(error) = cgroup.remove_pod(claim)
        {
            left.push(format!("cgroup: {error}"));
        }
        crate::fall::step("killed");
        let containers = dir.join("containers");
        for entry in fs::read_dir(&containers).into_iter().flatten().flatten() {
            if let Err(error) = self.mounts.release(&entry.path()) {
                left.push(format!("{}: {error}", entry.path().display()));
            }
        }
        crate::fall::step("unmounted");
        if left.is_empty() {
            for dir in [dir, &self.upper.join(claim)] {
                match fs::remove_dir_all(dir) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        left.push(format!("{}: {error}", dir.display()));
                    }
                    _ => {}
                }
            }
        }
        left
    }
}

/// Replaces these files; the claims of those that could not be.
fn tell(files: &[(String, PathBuf, Text)]) -> Vec<String> {
    let mut failed = Vec::new();
    for (claim, path, text) in files {
        if let Err(error) = replace(path, text) {
            // Its pod may have been torn down meanwhile.
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "cannot write");
            }
            failed.push(claim.clone());
        }
    }
    failed
}

/// Writes a file beside its target and renames it over: readers see the old or the new, never a part.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_and_those_that_cannot_be_are_named() {
        let dir = crate::testing::temp_dir("tell");
        let path = dir.join(PEERS_NAME);
        let text = |text: &str| Text::from(text.as_bytes());
        let gone = dir.join("gone").join(PEERS_NAME);
        let files = |t: &str| {
            vec![("c1".into(), gone.clone(), text(t)), ("c2".into(), path.clone(), text(t))]
        };
        assert_eq!(tell(&files("a longer one")), ["c1"]);
        assert_eq!(tell(&files("new")), ["c1"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing beside it");
        fs::remove_dir_all(&dir).unwrap();
    }
}
