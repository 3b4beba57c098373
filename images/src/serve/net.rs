//! The machine we serve from: its interfaces, its sockets, its neighbours.

use super::dhcp::Mac;
use crate::{Error, Result};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

/// Processes looked at to name who holds a port.
const PROCESSES_MAX: usize = 65_536;

/// The interface a server stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
}

impl Interface {
    /// The interface of that name, or the only one that could be meant.
    ///
    /// # Errors
    /// [`Error::Interface`], with those there are.
    pub fn find(name: Option<&str>) -> Result<Self> {
        let all = interfaces()?;
        let list = || {
            let names: Vec<String> =
                all.iter().map(|i| format!("{} ({}/{})", i.name, i.address, i.prefix)).collect();
            if names.is_empty() { "there is none".into() } else { names.join(", ") }
        };
        let what = match name {
            Some(name) => match all.iter().find(|i| i.name == name) {
                Some(found) => return Ok(found.clone()),
                None if Path::new("/sys/class/net").join(name).exists() => format!(
                    "{name} has no IPv4 address or is down; give it one: ip addr add 10.0.0.1/24 dev {name}; ip link set {name} up"
                ),
                None => format!("there is no interface {name}; with an address: {}", list()),
            },
            None => match all.as_slice() {
                [only] => return Ok(only.clone()),
                _ => format!("which interface? give --interface; with an address: {}", list()),
            },
        };
        Err(Error::Interface { what })
    }
}

/// Interfaces that are up and have an IPv4 address, but for the loopback.
fn interfaces() -> Result<Vec<Interface>> {
    use nix::net::if_::InterfaceFlags;
    let failed = |errno: nix::Error| Error::Io {
        op: "list interfaces",
        path: "/proc/net".into(),
        source: errno.into(),
    };
    let mut found: Vec<Interface> = Vec::new();
    for item in nix::ifaddrs::getifaddrs().map_err(failed)? {
        let up = item.flags.contains(InterfaceFlags::IFF_UP);
        let (Some(address), Some(mask)) = (
            item.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip()),
            item.netmask.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip()),
        ) else {
            continue;
        };
        let known = found.iter().any(|i| i.name == item.interface_name);
        if up && !item.flags.contains(InterfaceFlags::IFF_LOOPBACK) && !known {
            let prefix = u8::try_from(u32::from(mask).count_ones()).unwrap_or(32);
            found.push(Interface { name: item.interface_name, address, prefix });
        }
    }
    Ok(found)
}

/// A UDP socket of one interface: `address` unspecified hears broadcasts, too.
///
/// # Errors
/// [`Error::Port`], with who holds it.
pub fn udp(interface: &str, address: Ipv4Addr, port: u16) -> Result<tokio::net::UdpSocket> {
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddrV4::new(address, port).into())?;
        tokio::net::UdpSocket::from_std(socket.into())
    };
    make().map_err(|source| taken("udp", port, source))
}

/// A TCP listener.
///
/// # Errors
/// [`Error::Port`], with who holds it.
pub fn tcp(address: Ipv4Addr, port: u16) -> Result<tokio::net::TcpListener> {
    let make = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddrV4::new(address, port).into())?;
        socket.listen(128)?;
        tokio::net::TcpListener::from_std(socket.into())
    };
    make().map_err(|source| taken("tcp", port, source))
}

pub(super) fn taken(protocol: &'static str, port: u16, source: std::io::Error) -> Error {
    let in_use = source.kind() == std::io::ErrorKind::AddrInUse;
    let holder = if in_use { holder(protocol, port) } else { None };
    Error::Port { protocol, port, holder, source }
}

/// Who holds a port: `dnsmasq (process 712)`.
fn holder(protocol: &str, port: u16) -> Option<String> {
    let table = std::fs::read_to_string(format!("/proc/thread-self/net/{protocol}")).ok()?;
    let inodes: Vec<String> = inodes(&table, port).map(|n| format!("socket:[{n}]")).collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.parse::<u32>().ok().map(|pid| (pid, path))
    });
    for (pid, path) in processes.take(PROCESSES_MAX) {
        let Ok(fds) = std::fs::read_dir(path.join("fd")) else { continue };
        let links = fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        if links
            .into_iter()
            .any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
        {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("{} (process {pid})", name.trim()));
        }
    }
    None
}

/// Inodes of sockets bound to a port, from `/proc/net/udp` or `tcp`.
fn inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        fields.nth(1).filter(|local| local.ends_with(&suffix))?;
        fields.nth(7)
    })
}

/// The hardware address of a neighbour, as the kernel's ARP table knows it.
#[must_use]
pub fn neighbour(interface: &str, address: Ipv4Addr) -> Option<Mac> {
    in_arp(&std::fs::read_to_string("/proc/thread-self/net/arp").ok()?, interface, address)
}

fn in_arp(table: &str, interface: &str, address: Ipv4Addr) -> Option<Mac> {
    let address = address.to_string();
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            // Flags 0x2: the entry is complete.
            [ip, _, flags, mac, _, device] if *ip == address && *device == interface => {
                let flags = u32::from_str_radix(flags.strip_prefix("0x")?, 16).ok()?;
                (flags & 2 != 0).then(|| mac.parse().ok())?
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_knows_complete_neighbours_of_this_link() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.0.0.7         0x1         0x2         52:54:00:12:34:56     *        eth0\n\
            10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
            10.0.0.9         0x1         0x2         52:54:00:12:34:57     *        eth1\n";
        let of = |ip: &str| in_arp(table, "eth0", ip.parse().unwrap()).map(|mac| mac.to_string());
        assert_eq!(of("10.0.0.7").as_deref(), Some("52:54:00:12:34:56"));
        assert_eq!(of("10.0.0.8"), None);
        assert_eq!(of("10.0.0.9"), None);
    }

    #[test]
    fn who_holds_a_port_is_named() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let holder = holder("udp", port).unwrap();
        assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    }

    #[test]
    fn an_interface_that_is_not_there_is_named() {
        let error = Interface::find(Some("nosuch0")).unwrap_err().to_string();
        assert!(error.contains("no interface nosuch0"), "{error}");
    }
}
