//! What std and mio lack: options of UDP sockets, and a socket that hears a multicast group.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use mio::net::UdpSocket;

/// Asks for a receive buffer of this size; the kernel gives what `net.core.rmem_max` allows, which is no error.
pub(crate) fn set_receive_buffer(socket: &impl AsRawFd, size_bytes: i32) {
    // Best effort: a smaller buffer works too.
    let _ = set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, size_bytes);
}

/// Whether datagrams of this socket may not be fragmented, here or on the way (ip(7): `IP_PMTUDISC_PROBE` sets "don't
/// fragment" and asks no cache that a forged ICMP message could have filled). Else they may be.
pub(crate) fn set_whole(socket: &impl AsRawFd, local: SocketAddr, whole: bool) {
    // A kernel that refuses leaves its default, which finds path MTUs by ICMP.
    let _ = match local.ip() {
        IpAddr::V4(_) => {
            let mode = if whole { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, mode)
        }
        IpAddr::V6(_) => {
            let mode = if whole { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_DONT };
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, mode)
        }
    };
}

/// A multicast group on the link of a local address: IPv6 names the interface in the address, IPv4 is routed by the
/// source address (ip(7), `ip_route_output_key` for bound sockets).
pub(crate) fn on_link(group: SocketAddr, local: IpAddr) -> SocketAddr {
    match (group, local) {
        (SocketAddr::V6(mut v6), IpAddr::V6(local)) if v6.scope_id() == 0 => {
            let table =
                std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
            v6.set_scope_id(interface_of(&table, local).unwrap_or(0));
            SocketAddr::V6(v6)
        }
        _ => group,
    }
}

/// The index of the interface with an address, from `/proc/net/if_inet6`: address, index, prefix, scope, flags, name.
fn interface_of(table: &str, local: Ipv6Addr) -> Option<u32> {
    let wanted =
        local.octets().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let line = table.lines().find(|line| line.starts_with(&wanted))?;
    u32::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok()
}

/// A socket that hears what is sent to a group on the link of `local`, and nothing else; several processes may have one.
/// An error comes with the call that failed.
pub(crate) fn join_group(
    group: SocketAddr,
    local: IpAddr,
) -> Result<UdpSocket, (&'static str, io::Error)> {
    let family = if group.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(("socket", io::Error::last_os_error()));
    }
    // SAFETY: the descriptor was just opened and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_option(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).map_err(|e| ("setsockopt", e))?;
    bind(&fd, group).map_err(|e| ("bind", e))?;
    let socket = std::net::UdpSocket::from(fd);
    let joined = match (group.ip(), local, group) {
        (IpAddr::V4(group), IpAddr::V4(local), _) => socket.join_multicast_v4(&group, &local),
        (IpAddr::V6(ip), IpAddr::V6(_), SocketAddr::V6(v6)) => {
            socket.join_multicast_v6(&ip, v6.scope_id())
        }
        _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    };
    joined.map_err(|e| ("join multicast group", e))?;
    Ok(UdpSocket::from_std(socket))
}

fn bind(fd: &OwnedFd, addr: SocketAddr) -> io::Result<()> {
    let done = match addr {
        SocketAddr::V4(v4) => {
            let name = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            // SAFETY: `name` is a whole sockaddr_in, `len` its size, and it outlives the call.
            unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&name).cast(), len) }
        }
        SocketAddr::V6(v6) => {
            let name = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            let len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            // SAFETY: `name` is a whole sockaddr_in6, `len` its size, and it outlives the call.
            unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&name).cast(), len) }
        }
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_option(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    let value = std::ptr::from_ref(&value).cast::<libc::c_void>();
    // SAFETY: `value` points to an i32 that outlives the call and `len` is its size; the fd is open while borrowed.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value, len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The group in which a node with this address looks for others: administratively scoped (RFC 2365) or link-local
/// (RFC 4291), never routed off the link with the default TTL of one.
pub(crate) fn group_for(local: IpAddr, port: u16) -> Option<SocketAddr> {
    if local.is_loopback() || local.is_unspecified() {
        return None;
    }
    let group = match local {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(239, 255, 74, 0)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0x7175, 0x656c)),
    };
    Some(SocketAddr::new(group, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_found_by_its_address() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fe800000000000000242acfffe110002 1f 40 20 80     eth0\n";
        assert_eq!(interface_of(table, "fe80::242:acff:fe11:2".parse().unwrap()), Some(31));
        assert_eq!(interface_of(table, "fe80::1".parse().unwrap()), None);
        assert_eq!(interface_of("", Ipv6Addr::LOCALHOST), None);
    }

    #[test]
    fn loopback_has_no_link() {
        let group = |text: &str| group_for(text.parse().unwrap(), 7400);
        assert_eq!(group("127.0.0.1"), None);
        assert_eq!(group("::1"), None);
        assert_eq!(group("10.0.0.1"), "239.255.74.0:7400".parse().ok());
        assert_eq!(group("fd00::1"), "[ff02::7175:656c]:7400".parse().ok());
    }
}
