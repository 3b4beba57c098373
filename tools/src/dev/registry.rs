//! Where a dev flock's things are on this machine, and which nodes it has: `flock.json`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Sockets, keys, logs: everything that need not outlive the flock.
pub const RUN_DIR: &str = "/run/quelea-dev";
/// The nodes' disks: images and records.
pub const STATE_DIR: &str = "/var/lib/quelea-dev";

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
}

impl DevFlock {
    /// A node by its name.
    pub fn node(&self, name: &str) -> Option<&DevNode> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Writes it for others to read, as a whole.
    pub fn write(&self) -> std::io::Result<()> {
        let path = Path::new(RUN_DIR).join("flock.json");
        let new = Path::new(RUN_DIR).join("flock.json.new");
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, path)
    }
}

impl DevNode {
    /// Its directory for what a reboot clears.
    pub fn dir(&self) -> PathBuf {
        Path::new(RUN_DIR).join("nodes").join(&self.name)
    }

    /// Its disk.
    pub fn state(&self) -> PathBuf {
        Path::new(STATE_DIR).join(&self.name)
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
        self.pid_path().exists()
    }
}

/// The dev flock of this machine, if one is registered.
pub fn read() -> Option<DevFlock> {
    let bytes = std::fs::read(Path::new(RUN_DIR).join("flock.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}
