//! Where a dev flock's things are on this machine, and which nodes it has: `flock.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Names the dev flock meant, where several run on one machine.
pub const NAME_VARIABLE: &str = "QUELEA_DEV";

/// The name of the dev flock meant: `$QUELEA_DEV`, or `dev`. One that could not name a directory is not taken.
pub fn name() -> String {
    let name = std::env::var(NAME_VARIABLE).unwrap_or_default();
    if agent::flock::name_is_valid(&name) { name } else { "dev".into() }
}

/// Sockets, keys, logs: everything that need not outlive the flock.
pub fn run_dir() -> PathBuf {
    Path::new("/run/quelea-dev").join(name())
}

/// The nodes' disks: images and records.
pub fn state_dir() -> PathBuf {
    Path::new("/var/lib/quelea-dev").join(name())
}

/// Held by the flock's supervisor as long as it lives.
pub fn lock_path() -> PathBuf {
    Path::new("/run/lock").join(format!("quelea-{}.lock", name()))
}

/// A running dev flock.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DevFlock {
    /// The supervisor's PID.
    pub supervisor: i32,
    /// The operator's bundle.
    pub bundle: PathBuf,
    /// Its nodes.
    pub nodes: Vec<DevNode>,
}

/// One of its nodes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DevNode {
    /// Its name.
    pub name: String,
    /// Its address on the flock's bridge.
    pub address: String,
    /// Its rack.
    pub rack: String,
    /// The name of its cgroup.
    pub cgroup: String,
}

impl DevFlock {
    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&DevNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Writes it for others to read, as a whole.
    pub fn write(&self) -> std::io::Result<()> {
        let path = run_dir().join("flock.json");
        let new = run_dir().join("flock.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, path)
    }
}

impl DevNode {
    /// Its directory for what a reboot clears.
    pub fn dir(&self) -> PathBuf {
        run_dir().join("nodes").join(&self.name)
    }

    /// Its disk.
    pub fn state(&self) -> PathBuf {
        state_dir().join(&self.name)
    }

    /// Its API.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("run").join("api.sock")
    }

    /// The file that holds its PID 1's PID while its power is on.
    pub fn pid_path(&self) -> PathBuf {
        self.dir().join("pid")
    }

    /// Whether its power is on.
    pub fn is_up(&self) -> bool {
        let pid = std::fs::read_to_string(self.pid_path()).unwrap_or_default();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The state follows the name, which may hold anything in parentheses (proc(5)); a zombie has no power.
        let state = stat.rsplit(')').next().unwrap_or_default().trim_start().chars().next();
        state.is_some_and(|state| state != 'Z')
    }
}

/// The dev flock of this machine, if one is registered.
pub fn read() -> Option<DevFlock> {
    let bytes = std::fs::read(run_dir().join("flock.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}
