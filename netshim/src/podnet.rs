//! Network namespaces of pods and the host's own interface, made through rtnetlink and `/dev/net/tun`.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use crate::Error;
use crate::addr::{OVERLAY4, Prefix4, Prefix6};
use crate::netlink::{LinkSettings, Netlink};
use crate::sys;

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
    /// Whether any process of the pod may listen on ports below 1024. The namespace belongs to the caller's user namespace: there
    /// CAP_NET_BIND_SERVICE of the pod's own one counts for nothing, so this is how it is granted.
    pub low_ports: bool,
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
    let config = config.clone();
    let worker = thread::Builder::new()
        .name("podnet".into())
        .spawn(move || create_here(&config))
        .map_err(|errno| Error::Thread { op: "start", errno })?;
    match worker.join() {
        Ok(made) => made,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs on a thread that ends afterwards, because its namespace stays changed.
fn create_here(config: &PodConfig) -> Result<PodNet, Error> {
    sys::unshare_netns().map_err(|errno| Error::Netns { op: "unshare", errno })?;
    let mut netlink = open_netlink()?;
    let netns =
        sys::netns_of(netlink.as_fd()).map_err(|errno| Error::Netns { op: "get its fd", errno })?;
    let mut missing = Vec::new();
    let low_ports = (PORT_START, if config.low_ports { "0" } else { PORT_START_DEFAULT });
    for (path, value) in SYSCTLS.iter().chain([&low_ports]) {
        // Optional on purpose: kernels without IPv6 lack half of them, and a pod works with the defaults.
        if let Err(errno) = std::fs::write(path, value) {
            missing.push(format!("sysctl {path} = {value}: {errno}"));
        }
    }
    let lo = index_of("lo")?;
    netlink.link_up(lo, LinkSettings::default()).map_err(|errno| Error::Netlink {
        op: "bring up",
        object: "lo".into(),
        errno,
    })?;

    let tun = open_tun(POD_INTERFACE, config.offload, &mut missing)?;
    let eth0 = index_of(POD_INTERFACE)?;
    link_up(&mut netlink, eth0, POD_INTERFACE, config.mtu)?;
    let [any4, any6] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    add_address(&mut netlink, eth0, config.ip4.into())?;
    add_route(&mut netlink, eth0, any4, 0, config.ip4.into())?;
    if have_ipv6() {
        add_address(&mut netlink, eth0, config.ip6.into())?;
        add_route(&mut netlink, eth0, any6, 0, config.ip6.into())?;
    } else {
        missing.push("no IPv6 in this kernel: pods have IPv4 only".into());
    }
    Ok(PodNet { netns, tun, missing })
}

/// Makes `mesh0` in the caller's network namespace, or attaches to the one left by a former agent and brings its addresses and routes up to date.
///
/// # Errors
/// [`Error::Tun`] or [`Error::Netlink`]; a partly configured interface may remain, the next call completes it. While an overlay of this node holds the
/// interface it is busy (EBUSY): use [`update_host`] then.
pub fn host(config: &HostConfig) -> Result<OwnedFd, Error> {
    let mut missing = Vec::new();
    let tun = open_tun(HOST_INTERFACE, config.offload, &mut missing)?;
    update_host(config)?;
    Ok(tun)
}

/// Brings the addresses and routes of an existing `mesh0` up to date, as when the node got another prefix. The overlay goes on using it.
///
/// # Errors
/// [`Error::Netlink`]; a partly configured interface may remain, the next call completes it.
pub fn update_host(config: &HostConfig) -> Result<(), Error> {
    let mesh0 = index_of(HOST_INTERFACE)?;
    let mut netlink = open_netlink()?;
    // RFC 4862 link-local addresses mean nothing here; without the sysctl they merely exist.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/mesh0/addr_gen_mode", "1");
    link_up(&mut netlink, mesh0, HOST_INTERFACE, config.mtu)?;

    let mut wanted: Vec<(IpAddr, IpAddr, u8)> = Vec::new();
    if let Some(prefix4) = config.prefix4 {
        wanted.push((prefix4.gateway().into(), OVERLAY4.network().into(), OVERLAY4.len()));
    }
    if have_ipv6() {
        let overlay = config.overlay6;
        wanted.push((config.prefix6.gateway().into(), overlay.network().into(), overlay.len()));
    }
    let present = netlink.addresses(mesh0).map_err(|errno| Error::Netlink {
        op: "list the addresses of",
        object: HOST_INTERFACE.into(),
        errno,
    })?;
    for (addr, len) in present {
        if !wanted.iter().any(|(want, _, _)| *want == addr) {
            netlink.address_delete(mesh0, addr, len).map_err(|errno| Error::Netlink {
                op: "delete address",
                object: addr.to_string(),
                errno,
            })?;
        }
    }
    for (addr, overlay, len) in wanted {
        add_address(&mut netlink, mesh0, addr)?;
        add_route(&mut netlink, mesh0, overlay, len, addr)?;
    }
    Ok(())
}

/// Removes `mesh0` from the caller's network namespace. `Ok(false)` if there was none.
///
/// # Errors
/// [`Error::Netlink`].
pub fn remove_host() -> Result<bool, Error> {
    let Ok(index) = sys::interface_index(HOST_INTERFACE) else { return Ok(false) };
    open_netlink()?.link_delete(index).map_err(|errno| Error::Netlink {
        op: "delete",
        object: HOST_INTERFACE.into(),
        errno,
    })?;
    Ok(true)
}

pub(crate) const TUN_PATH: &str = "/dev/net/tun";
/// Packets that wait for the data thread per interface; more are dropped by the kernel.
const QUEUE_LEN_MAX: u32 = 1_000;
/// The header before each packet: `struct virtio_net_hdr`.
const VNET_HDR_BYTES: i32 = crate::wire::VNET_HDR_LEN as i32;

/// The first port that needs no capability (ip-sysctl.rst), and what it is by itself.
const PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const PORT_START_DEFAULT: &str = "1024";

/// For the namespace of a pod, before `eth0` exists so that it inherits them.
const SYSCTLS: &[(&str, &str)] = &[
    // Containers need no CAP_NET_RAW for ping.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
    // There is no router and no neighbour on a TUN: no solicitations, no link-local address.
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_ra", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1"),
];

/// Opens a TUN in the calling thread's namespace.
fn open_tun(name: &str, offload: bool, missing: &mut Vec<String>) -> Result<OwnedFd, Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN_PATH)
        .map_err(|errno| Error::File { op: "open", path: TUN_PATH.into(), errno })?;
    let tun = OwnedFd::from(file);
    let failed = |op| move |errno| Error::Tun { op, device: name.to_owned(), errno };
    sys::tun_set_iff(tun.as_fd(), name, offload).map_err(failed("TUNSETIFF"))?;
    sys::tun_set_persist(tun.as_fd(), true).map_err(failed("TUNSETPERSIST"))?;
    if offload {
        sys::tun_set_vnet_hdr_size(tun.as_fd(), VNET_HDR_BYTES)
            .map_err(failed("TUNSETVNETHDRSZ"))?;
        let basic = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let usual = basic | libc::TUN_F_USO4 | libc::TUN_F_USO6;
        // USO came with 6.2.
        if sys::tun_set_offload(tun.as_fd(), usual).is_err() {
            missing.push("TUN without UDP segmentation offload (needs Linux 6.2)".into());
            sys::tun_set_offload(tun.as_fd(), basic).map_err(failed("TUNSETOFFLOAD"))?;
        }
    } else {
        sys::tun_set_offload(tun.as_fd(), 0).map_err(failed("TUNSETOFFLOAD"))?;
    }
    Ok(tun)
}

/// Makes a TUN fd ready for the data thread, whatever its former user did with it. Says whether its packets have headers.
pub(crate) fn adopt(tun: &OwnedFd) -> Result<bool, Error> {
    let failed = |device: &str, op| {
        let device = device.to_owned();
        move |errno| Error::Tun { op, device, errno }
    };
    let info = sys::tun_info(tun.as_fd()).map_err(failed("(unknown)", "TUNGETIFF"))?;
    if !info.is_tun {
        let errno = std::io::ErrorKind::InvalidInput.into();
        return Err(Error::Tun { op: "use as a TUN", device: info.name, errno });
    }
    sys::set_nonblocking(tun.as_fd()).map_err(failed(&info.name, "set O_NONBLOCK"))?;
    if info.vnet_hdr {
        sys::tun_set_vnet_hdr_size(tun.as_fd(), VNET_HDR_BYTES)
            .map_err(failed(&info.name, "TUNSETVNETHDRSZ"))?;
    }
    Ok(info.vnet_hdr)
}

fn have_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn open_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(|errno| Error::Netlink {
        op: "open a socket for",
        object: "rtnetlink".into(),
        errno,
    })
}

fn index_of(name: &str) -> Result<u32, Error> {
    sys::interface_index(name).map_err(|errno| Error::Netlink {
        op: "find",
        object: name.into(),
        errno,
    })
}

fn link_up(netlink: &mut Netlink, index: u32, name: &str, mtu: u16) -> Result<(), Error> {
    let settings = LinkSettings {
        mtu: Some(mtu),
        queue_len: Some(QUEUE_LEN_MAX),
        gso_max_segments: Some(crate::overlay::batch_segments(mtu)),
    };
    netlink.link_up(index, settings).map_err(|errno| Error::Netlink {
        op: "bring up",
        object: format!("{name} with MTU {mtu}"),
        errno,
    })
}

fn add_address(netlink: &mut Netlink, index: u32, addr: IpAddr) -> Result<(), Error> {
    netlink.address_add(index, addr).map_err(|errno| Error::Netlink {
        op: "add address",
        object: addr.to_string(),
        errno,
    })
}

fn add_route(
    netlink: &mut Netlink,
    index: u32,
    to: IpAddr,
    len: u8,
    source: IpAddr,
) -> Result<(), Error> {
    netlink.route_add(index, to, len, Some(source)).map_err(|errno| Error::Netlink {
        op: "add route",
        object: format!("{to}/{len} from {source}"),
        errno,
    })
}
