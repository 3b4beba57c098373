//! The data thread: TUNs and the UDP socket, driven by mio. Decides nothing itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use crate::Error;
use crate::addr::{Prefix4, Prefix6};
use crate::counters::Stats;
use crate::keys::{Psk, PublicKey, SecretKey};

/// Peers that an overlay talks to; more are refused, see [`Overlay::set_peers`].
pub const PEERS_MAX: usize = 4_096;

/// What an overlay is made of.
#[derive(Clone)]
pub struct Config {
    /// The UDP address to bind; port 0 picks one, see [`Overlay::local_addr`].
    pub bind: SocketAddr,
    /// This node's key.
    pub static_key: SecretKey,
    /// The flock's key.
    pub psk: Psk,
    /// Grows with every start of the node (the boot generation): a recorded handshake of an earlier boot is refused by it.
    pub boot: u64,
    /// Largest packet of pods, in bytes; the same in [`crate::podnet::PodConfig`].
    pub mtu: u16,
    /// This node's IPv4 prefix, if it has one already; see [`Overlay::set_prefixes`].
    pub prefix4: Option<Prefix4>,
    /// This node's IPv6 prefix.
    pub prefix6: Prefix6,
    /// The flock's IPv6 prefix.
    pub overlay6: Prefix6,
    /// Whether pods may send to addresses outside of the overlay, through the host's interface (which must forward and masquerade).
    pub egress: bool,
    /// Whether to use UDP segmentation offload. `Auto` probes; `Off` is the kill switch.
    pub gso: Gso,
}

/// Use of UDP_SEGMENT and UDP_GRO on the underlay socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// Use what a probe on the loopback interface shows to work.
    Auto,
    /// Never.
    Off,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The node's name; unique.
    pub name: String,
    /// Its key from the node record; a session is bound to it.
    pub public_key: PublicKey,
    /// Where its overlay listens.
    pub endpoint: SocketAddr,
    /// Its IPv4 prefix: the only IPv4 sources accepted from it.
    pub prefix4: Option<Prefix4>,
    /// Its IPv6 prefix: the only IPv6 sources accepted from it.
    pub prefix6: Prefix6,
}

/// A peer that [`Overlay::set_peers`] left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The peer.
    pub name: String,
    /// Why.
    pub why: &'static str,
}

/// A running overlay: one data thread. Dropping it ends the thread and closes its fds; TUNs and pods stay.
pub struct Overlay {
    local_addr: SocketAddr,
}

impl Overlay {
    /// Binds the socket and starts the data thread.
    ///
    /// # Errors
    /// [`Error::Bind`], [`Error::Thread`] or [`Error::Config`].
    pub fn spawn(config: Config) -> Result<Self, Error> {
        let _ = &config;
        Err(Error::Stopped)
    }

    /// The bound address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Replaces the whole list of peers. Sessions of peers whose key and endpoint did not change go on. Returns those left out: the prefix of
    /// another peer or ours, no node prefix, our own key, or over [`PEERS_MAX`]; of two with the same prefix or key the lower name stays.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn set_peers(&self, peers: Vec<Peer>) -> Result<Vec<Refused>, Error> {
        let _ = peers;
        Err(Error::Stopped)
    }

    /// Changes this node's prefixes (a claim became usable, or was lost).
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn set_prefixes(&self, prefix4: Option<Prefix4>, prefix6: Prefix6) -> Result<(), Error> {
        let _ = (prefix4, prefix6);
        Err(Error::Stopped)
    }

    /// Connects a pod. A pod with the same addresses is replaced.
    ///
    /// # Errors
    /// [`Error::Tun`] if `tun` is no TUN, [`Error::Full`], [`Error::Stopped`].
    pub fn add_pod(&self, ip4: Ipv4Addr, ip6: Ipv6Addr, tun: OwnedFd) -> Result<(), Error> {
        let _ = (ip4, ip6, tun);
        Err(Error::Stopped)
    }

    /// Disconnects a pod, named by either address. Packets to it are answered with ICMP unreachable from then on.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn remove_pod(&self, ip: impl Into<IpAddr>) -> Result<(), Error> {
        let _ = ip.into();
        Err(Error::Stopped)
    }

    /// Connects the host's interface made by [`crate::podnet::host`].
    ///
    /// # Errors
    /// As [`Overlay::add_pod`].
    pub fn set_host(&self, tun: OwnedFd) -> Result<(), Error> {
        let _ = tun;
        Err(Error::Stopped)
    }

    /// The counters so far. Cheap; from any thread.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
