//! rtnetlink(7): what a machine needs to reach the network (link up, address, default route, and taking them back),
//! and to hear that something has changed.

use crate::{Error, Result};
use rustix::{
    fd::{AsFd as _, BorrowedFd, OwnedFd},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink, recv, send, socket_with,
    },
};
use std::net::Ipv4Addr;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
/// `RTMGRP_LINK` and `RTMGRP_IPV6_IFADDR`.
const CHANGES: u32 = 0x1 | 0x100;
/// Messages drained in one go; the rest makes the next poll return at once.
const DRAIN_MAX: usize = 1024;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;

/// One request; sent by [`request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(64);
        // Length comes last; sequence 1, port 0.
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        Self(bytes)
    }

    fn body(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }

    /// Sets `IFF_UP`.
    pub(super) fn link_up(index: u32) -> Self {
        // ifinfomsg: family, pad, type, index, flags, change.
        let mut body = vec![0; 4];
        body.extend(index.to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        body.extend(1u32.to_ne_bytes());
        Self::new(RTM_NEWLINK, 0).body(&body)
    }

    /// Adds or renews an address; `lifetime_s` of `None` is for ever.
    pub(super) fn address(
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
        lifetime_s: Option<u32>,
    ) -> Self {
        let lifetime = lifetime_s.unwrap_or(u32::MAX);
        // ifa_cacheinfo: preferred, valid, created, updated.
        let mut cache = Vec::new();
        for value in [lifetime, lifetime, 0, 0] {
            cache.extend(value.to_ne_bytes());
        }
        Self::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
            .body(&ifaddrmsg(index, prefix))
            .attribute(2, &address.octets())
            .attribute(1, &address.octets())
            .attribute(4, &broadcast(address, prefix).octets())
            .attribute(6, &cache)
    }

    /// Takes an address back; routes through it go with it.
    pub(super) fn no_address(index: u32, address: Ipv4Addr, prefix: u8) -> Self {
        Self::new(RTM_DELADDR, 0).body(&ifaddrmsg(index, prefix)).attribute(2, &address.octets())
    }

    /// Makes `gateway` the default route.
    pub(super) fn default_route(index: u32, gateway: Ipv4Addr) -> Self {
        // rtmsg: family, dst_len, src_len, tos, table main, protocol static, scope universe, type unicast, flags.
        Self::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
            .body(&[2, 0, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0])
            .attribute(5, &gateway.octets())
            .attribute(4, &index.to_ne_bytes())
    }

    /// Takes that route back.
    pub(super) fn no_default_route(index: u32, gateway: Ipv4Addr) -> Self {
        Self::new(RTM_DELROUTE, 0)
            .body(&[2, 0, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0])
            .attribute(5, &gateway.octets())
            .attribute(4, &index.to_ne_bytes())
    }
}

/// Hears that links or IPv6 addresses have changed. What exactly is looked up in /sys and /proc.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

impl Listener {
    /// # Errors
    /// [`Error::Sys`] when the kernel gives no such socket.
    pub(super) fn open() -> Result<Self> {
        let fail = |e: Errno| Error::sys("listen", "rtnetlink", e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).map_err(fail)?;
        bind(&socket, &SocketAddrNetlink::new(0, CHANGES)).map_err(fail)?;
        Ok(Self(socket))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Forgets what waits. Whether there was anything, or more than the kernel kept.
    pub(super) fn drain(&self) -> bool {
        let mut news = false;
        for _ in 0..DRAIN_MAX {
            let mut message = [0; 512];
            match recv(&self.0, &mut message[..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(Errno::NOBUFS) => news = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        news
    }
}

fn ifaddrmsg(index: u32, prefix: u8) -> Vec<u8> {
    // family AF_INET, prefix length, flags, scope universe, index.
    let mut body = vec![2, prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    body
}

fn broadcast(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let host = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from_bits(address.to_bits() | host)
}

/// Sends one request and waits for the kernel's answer.
///
/// # Errors
/// [`Error::Sys`] with the kernel's errno; `what` is the device.
pub(super) fn request(op: &'static str, what: &str, message: Message) -> Result<()> {
    let fail = |e: Errno| Error::sys(op, what, e);
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // Protocol 0 is NETLINK_ROUTE.
        None,
    )
    .map_err(fail)?;
    send(&socket, &message.finish(), SendFlags::empty()).map_err(fail)?;
    let mut answer = [0; 512];
    let (len, _) = recv(&socket, &mut answer[..], RecvFlags::empty()).map_err(fail)?;
    match ack(answer.get(..len).unwrap_or(&answer)) {
        Some(0) => Ok(()),
        Some(errno) => Err(fail(Errno::from_raw_os_error(errno))),
        None => Err(fail(Errno::BADMSG)),
    }
}

/// The errno of an `NLMSG_ERROR`, 0 for an acknowledgement.
fn ack(bytes: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| error.saturating_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_their_length_and_are_aligned() {
        let bytes = Message::address(2, [10, 0, 0, 5].into(), 24, Some(60)).finish();
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        assert_eq!(bytes.len() % 4, 0);
        // Header 16, ifaddrmsg 8, then IFA_LOCAL.
        assert_eq!(&bytes[16..24], &[2, 24, 0, 0, 2, 0, 0, 0]);
        assert_eq!(&bytes[24..32], &[8, 0, 2, 0, 10, 0, 0, 5]);
        assert_eq!(broadcast([10, 0, 0, 5].into(), 24), Ipv4Addr::new(10, 0, 0, 255));
        assert_eq!(broadcast([10, 0, 0, 5].into(), 32), Ipv4Addr::new(10, 0, 0, 5));
    }

    #[test]
    fn answers_are_read_and_rubbish_is_not() {
        let mut answer = vec![0; 20];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(ack(&answer), Some(0));
        answer[16..20].copy_from_slice(&(-19i32).to_ne_bytes());
        assert_eq!(ack(&answer), Some(19));
        assert_eq!(ack(&answer[..19]), None);
        answer[4] = 3;
        assert_eq!(ack(&answer), None);
    }
}
