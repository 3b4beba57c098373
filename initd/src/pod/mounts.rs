//! What is mounted in a container besides its root.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A bind mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host; a directory or a file.
    pub source: PathBuf,
    /// Absolute path inside; resolved in the root file system, created when missing.
    pub target: String,
    /// Read-only, with everything mounted below the source.
    pub read_only: bool,
    /// Map the owners into the pod's user namespace (host root appears as the pod's root). Where the file
    /// system cannot, the mount is made unmapped and owners appear as `nobody`.
    pub idmap: bool,
}

/// A tmpfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path inside; created when missing.
    pub target: String,
    /// Most bytes it may hold.
    pub size_bytes: u64,
    /// Mode of its root.
    pub mode: u32,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path below `/dev`, inside.
    pub name: String,
    /// Path of the node on the host. Inside there is a node of the same number that the pod may use; every other device is
    /// refused by the cgroup's device filter.
    pub source: PathBuf,
    /// Only reading.
    pub read_only: bool,
}

/// A tmpfs that several containers of a pod mount. It is empty when the pod starts, survives restarts of containers and
/// ends with the pod; its pages count as memory of who writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique in the pod, `[A-Za-z0-9._-]{1,128}`.
    pub name: String,
    /// Most bytes it may hold.
    pub size_bytes: u64,
    /// Mode of its root, which belongs to the pod's root.
    pub mode: u32,
}

/// Where a container has a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Absolute path inside; created when missing.
    pub target: String,
    /// Read-only here.
    pub read_only: bool,
}
