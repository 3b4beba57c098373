//! Limits of a cgroup, as the spec says them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Most devices with limits of their own.
pub(crate) const IO_LIMITS_MAX: usize = 16;
/// Most sizes of huge pages; no machine has more.
pub(crate) const HUGE_PAGES_MAX: usize = 8;

/// Cgroup limits; `None` leaves the kernel's default. What the machine lacks is reported as a condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `cpu.weight`, 1..=10000.
    pub cpu_weight: Option<u32>,
    /// `cpu.max` in thousandths of a CPU.
    pub cpu_max_milli: Option<u32>,
    /// `cpuset.cpus`: CPUs it may run on, as a list like `0-3,8`.
    pub cpus: Option<String>,
    /// `cpuset.mems`: NUMA nodes it may take memory from, as such a list.
    pub memory_nodes: Option<String>,
    /// `memory.max`; sets `memory.oom.group` as well.
    pub memory_max_bytes: Option<u64>,
    /// `memory.high`: above this it is slowed down and its memory taken back.
    pub memory_high_bytes: Option<u64>,
    /// `memory.swap.max`.
    pub swap_max_bytes: Option<u64>,
    /// `hugetlb.<size>.max`.
    pub huge_pages: Vec<HugePages>,
    /// `pids.max`.
    pub pids_max: Option<u32>,
    /// `io.weight`, 1..=10000.
    pub io_weight: Option<u32>,
    /// `io.max`.
    pub io: Vec<IoLimit>,
}

/// How much of one size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePages {
    /// Size of a page, 2 MiB for example.
    pub page_bytes: u64,
    /// Most bytes of such pages.
    pub max_bytes: u64,
}

/// Limits on the traffic with one disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// A block device, or a file or directory on it. A partition stands for its whole disk, which is what the kernel limits.
    pub device: PathBuf,
    /// Bytes read a second.
    pub read_bytes_per_s: Option<u64>,
    /// Bytes written a second.
    pub write_bytes_per_s: Option<u64>,
    /// Reads a second.
    pub read_ops_per_s: Option<u64>,
    /// Writes a second.
    pub write_ops_per_s: Option<u64>,
}

impl IoLimit {
    /// In the words of `io.max` (cgroup-v2.rst).
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static str, Option<u64>)> {
        [
            ("rbps", self.read_bytes_per_s),
            ("wbps", self.write_bytes_per_s),
            ("riops", self.read_ops_per_s),
            ("wiops", self.write_ops_per_s),
        ]
        .into_iter()
    }
}
