//! Capabilities by name and number.

use serde::{Deserialize, Serialize};

/// A set of capabilities, one bit for each number of `linux/capability.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps(pub u64);

const CAP_NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Caps {
    /// None at all.
    pub const NONE: Self = Self(0);
    /// The eight that each container gets: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID
    /// NET_BIND_SERVICE.
    pub const STRICT: Self =
        Self(1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10);
    /// The strict ones and SETPCAP, SETFCAP, SYS_CHROOT, for images that expect what Docker gives.
    pub const COMPAT: Self = Self(Self::STRICT.0 | 1 << 8 | 1 << 18 | 1 << 31);

    /// The capability of this name, without `CAP_`, in capitals.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        CAP_NAMES.iter().position(|n| *n == name).map(|bit| Self(1 << bit))
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Names of those in the set, in the order of their numbers.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        CAP_NAMES.iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 == 1).map(|(_, n)| *n)
    }
}
