//! The system calls that std and mio lack. The only unsafe code of the crate.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io::{self, Error};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Gives the calling thread a new network namespace. Only for a thread that ends soon after.
pub(crate) fn unshare_netns() -> io::Result<()> {
    // SAFETY: no memory is involved; only the calling thread's namespace changes.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// The network namespace that a socket belongs to.
pub(crate) fn netns_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // linux/sockios.h; not in libc.
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the request takes no argument.
    let fd = check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel made this fd (close-on-exec) for us just now; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An rtnetlink socket of the calling thread's network namespace. Replies wait at most two seconds.
pub(crate) fn netlink_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE)
    })?;
    // SAFETY: the fd is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let timeout = libc::timeval { tv_sec: 2, tv_usec: 0 };
    setsockopt(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    Ok(socket)
}

/// The index of an interface in the calling thread's network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(Error::last_os_error()),
        index => Ok(index),
    }
}

/// What a TUN fd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TunInfo {
    pub(crate) name: String,
    pub(crate) vnet_hdr: bool,
    pub(crate) is_tun: bool,
}

/// Attaches an fd of `/dev/net/tun` to the device `name`, made if it does not exist.
pub(crate) fn tun_set_iff(fd: BorrowedFd<'_>, name: &str, vnet_hdr: bool) -> io::Result<()> {
    let mut request = ifreq(name)?;
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if vnet_hdr {
        flags |= libc::IFF_VNET_HDR;
    }
    // The flags fit 16 bits; the union's other members are zero.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: `request` is a valid ifreq for the length of the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) }).map(drop)
}

/// The name and kind of the device behind a TUN fd; works from any network namespace.
pub(crate) fn tun_info(fd: BorrowedFd<'_>) -> io::Result<TunInfo> {
    let mut request = ifreq("")?;
    // SAFETY: `request` is a valid ifreq for the length of the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF has filled in the flags; every bit pattern is a valid integer.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let name: Vec<u8> =
        request.ifr_name.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
    Ok(TunInfo {
        name: String::from_utf8_lossy(&name).into_owned(),
        vnet_hdr: flags & libc::IFF_VNET_HDR != 0,
        is_tun: flags & libc::IFF_TUN != 0,
    })
}

/// Tells the kernel which unfinished packets we take: `TUN_F_*` bits.
pub(crate) fn tun_set_offload(fd: BorrowedFd<'_>, bits: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument is an integer, passed by value as the request wants it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
        .map(drop)
}

/// Keeps the device when its last fd is closed.
pub(crate) fn tun_set_persist(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: the argument is an integer, passed by value as the request wants it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(on)) })
        .map(drop)
}

/// Sets the size of the header before each packet.
pub(crate) fn tun_set_vnet_hdr_size(fd: BorrowedFd<'_>, size_bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the request reads one int behind the pointer, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size_bytes) }).map(drop)
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain C data; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

/// Sets fds to non-blocking, as edge-triggered polling needs it.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: integers only.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: integers only.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// Sets a boolean or integer socket option.
pub(crate) fn set_option(
    fd: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    setsockopt(fd, level, name, &value)
}

fn setsockopt<T>(
    fd: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes behind a reference that outlives the call.
    check(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Room for one control message that holds an int.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends `bytes` to `to` as datagrams of `segment` bytes each (the last may be shorter), or as one if `segment` is `None`.
pub(crate) fn send_to(
    fd: &impl AsRawFd,
    bytes: &[u8],
    to: &RawAddr,
    segment: Option<u16>,
) -> io::Result<usize> {
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 64]);
    // SAFETY: msghdr is plain C data; all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = std::ptr::from_ref(&to.storage).cast_mut().cast();
    message.msg_namelen = to.len;
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if let Some(size) = segment {
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(2) } as _;
        // SAFETY: `control` is aligned, zeroed and larger than CMSG_SPACE(2), so that the first header and its two bytes of
        // data lie inside of it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_UDP;
            (*header).cmsg_type = libc::UDP_SEGMENT;
            (*header).cmsg_len = libc::CMSG_LEN(2) as _;
            libc::CMSG_DATA(header).cast::<u16>().write_unaligned(size);
        }
    }
    // SAFETY: every pointer in `message` is to a local or an argument that outlives the call; the kernel only reads through them.
    let sent =
        unsafe { libc::sendmsg(fd.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| Error::last_os_error())
}

/// What [`receive`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes in the buffer.
    pub(crate) len: usize,
    /// Size of each datagram in it (the last may be shorter); equals `len` for a single one.
    pub(crate) segment: usize,
    /// Who sent them all.
    pub(crate) from: SocketAddr,
    /// Whether bytes were lost for want of room.
    pub(crate) truncated: bool,
}

/// Receives one datagram, or several of one sender that the kernel joined (UDP_GRO).
pub(crate) fn receive(fd: &impl AsRawFd, buf: &mut [u8]) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut control = Control([0; 64]);
    // SAFETY: plain C data; all zeroes is a valid value.
    let mut name: libc::sockaddr_storage = unsafe { mem::zeroed() };
    // SAFETY: plain C data; all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = std::ptr::from_mut(&mut name).cast();
    message.msg_namelen = mem::size_of_val(&name) as libc::socklen_t;
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: every pointer in `message` is to a local or an argument that outlives the call, with its true size.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let len = usize::try_from(got).map_err(|_| Error::last_os_error())?;
    let mut segment = len;
    // SAFETY: the kernel has set msg_controllen to what it wrote into `control`; the macros stay inside of that. UDP_GRO carries an int.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_UDP && (*header).cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
                segment = usize::try_from(size).unwrap_or(0);
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if segment == 0 || segment > len {
        segment = len;
    }
    let from = RawAddr { storage: name, len: message.msg_namelen }
        .parse()
        .ok_or_else(|| Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
    Ok(Received { len, segment, from, truncated: message.msg_flags & libc::MSG_TRUNC != 0 })
}

/// A socket address as the kernel takes it, converted once a peer.
#[derive(Clone, Copy)]
pub(crate) struct RawAddr {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddr {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        // SAFETY: plain C data; all zeroes is a valid value.
        let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let len = match addr {
            SocketAddr::V4(v4) => {
                let raw = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: v4.ip().to_bits().to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr.
                unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in>().write(raw) };
                mem::size_of_val(&raw)
            }
            SocketAddr::V6(v6) => {
                let raw = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: sockaddr_storage is larger than and aligned for every sockaddr.
                unsafe { std::ptr::from_mut(&mut storage).cast::<libc::sockaddr_in6>().write(raw) };
                mem::size_of_val(&raw)
            }
        };
        Self { storage, len: len as libc::socklen_t }
    }

    fn parse(&self) -> Option<SocketAddr> {
        let len = usize::try_from(self.len).ok()?;
        match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET if len >= mem::size_of::<libc::sockaddr_in>() => {
                // SAFETY: the family says what it is, and the storage is large enough and aligned for it.
                let raw =
                    unsafe { &*std::ptr::from_ref(&self.storage).cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from_bits(u32::from_be(raw.sin_addr.s_addr));
                Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(raw.sin_port)))
            }
            libc::AF_INET6 if len >= mem::size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let raw =
                    unsafe { &*std::ptr::from_ref(&self.storage).cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
                Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(raw.sin6_port)))
            }
            _ => None,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn addresses_survive_the_kernel_form() {
        for text in ["127.0.0.1:80", "[fd00::1]:65535", "255.255.255.255:0"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddr::new(addr).parse(), Some(addr));
        }
    }

    #[test]
    fn segments_are_sent_and_received() {
        let a = UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = RawAddr::new(b.local_addr().unwrap());
        let bytes: Vec<u8> = (0..250).collect();
        assert_eq!(send_to(&a, &bytes, &to, Some(100)).unwrap(), 250);
        let mut got = Vec::new();
        let mut buf = [0; 2_000];
        while got.len() < 250 {
            let received = receive(&b, &mut buf).unwrap();
            assert_eq!(received.from, a.local_addr().unwrap());
            assert!(received.segment == 100 || received.len == 50);
            got.extend_from_slice(&buf[..received.len]);
        }
        assert_eq!(got, bytes);
        send_to(&a, &bytes, &to, None).unwrap();
        let received = receive(&b, &mut buf[..20]).unwrap();
        assert!(received.truncated);
        assert_eq!(receive(&b, &mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
