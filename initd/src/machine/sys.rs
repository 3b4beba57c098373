//! The one system call of this half that rustix has no safe form for.
#![allow(unsafe_code)]

use rustix::{
    fd::{AsFd, AsRawFd, OwnedFd},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socket_with},
};

/// A raw packet socket on one device: every frame it receives, each send a whole frame (packet(7)).
/// Nonblocking, close-on-exec.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`; `ENODEV` when the device is gone; `ENETDOWN` when it is down.
pub(super) fn packet_socket(device_index: u32) -> Result<OwnedFd, Errno> {
    let every_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be();
    let index = i32::try_from(device_index).map_err(|_| Errno::NODEV)?;
    // Protocol 0: nothing is received before the bind names device and protocol together.
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: every_protocol,
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a live, fully initialised sockaddr_ll and the length is its size.
    let failed = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if failed == 0 {
        Ok(socket)
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}
