//! Just enough rtnetlink (rtnetlink(7)): links up, addresses, routes. Requests are built here, answers parsed with checked lengths.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use crate::sys;

const REPLY_MAX_BYTES: usize = 32 * 1024;
/// Datagrams read for one answer before giving up.
const REPLIES_MAX: usize = 256;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_GSO_MAX_SEGS: u16 = 40;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_UNIVERSE: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What to set on a link besides bringing it up.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkSettings {
    pub(crate) mtu: Option<u16>,
    pub(crate) queue_len: Option<u32>,
    /// Segments of the largest packet before segmentation.
    pub(crate) gso_max_segments: Option<u32>,
}

/// An rtnetlink socket in the namespace of the thread that made it.
pub(crate) struct Netlink {
    socket: File,
    sequence: u32,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self { socket: File::from(sys::netlink_socket()?), sequence: 0 })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn link_up(&mut self, index: u32, settings: LinkSettings) -> io::Result<()> {
        let mut request = Request::new(RTM_NEWLINK, 0);
        request.link_header(index, IFF_UP, IFF_UP);
        if let Some(mtu) = settings.mtu {
            request.attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
        }
        if let Some(len) = settings.queue_len {
            request.attribute(IFLA_TXQLEN, &len.to_ne_bytes());
        }
        if let Some(segments) = settings.gso_max_segments {
            request.attribute(IFLA_GSO_MAX_SEGS, &segments.to_ne_bytes());
        }
        self.execute(request)
    }

    pub(crate) fn link_delete(&mut self, index: u32) -> io::Result<()> {
        let mut request = Request::new(RTM_DELLINK, 0);
        request.link_header(index, 0, 0);
        self.execute(request)
    }

    /// Adds a host address (/32 or /128) without a route; no duplicate address detection.
    pub(crate) fn address_add(&mut self, index: u32, addr: IpAddr) -> io::Result<()> {
        let request =
            address_request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, addr, host_len(addr));
        self.execute(request)
    }

    pub(crate) fn address_delete(&mut self, index: u32, addr: IpAddr, len: u8) -> io::Result<()> {
        self.execute(address_request(RTM_DELADDR, 0, index, addr, len))
    }

    /// The addresses of one link with their prefix lengths.
    pub(crate) fn addresses(&mut self, index: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let mut request = Request::new(RTM_GETADDR, NLM_F_DUMP);
        request.address_header(0, 0, 0);
        let mut found = Vec::new();
        self.exchange(request, |kind, body| {
            if kind == RTM_NEWADDR
                && let Some((at, addr, len)) = parse_address(body)
                && at == index
            {
                found.push((addr, len));
            }
        })?;
        Ok(found)
    }

    /// A route through a link; replaces one to the same prefix.
    pub(crate) fn route_add(
        &mut self,
        index: u32,
        to: IpAddr,
        len: u8,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let mut request = Request::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        let scope = if to.is_ipv4() { RT_SCOPE_LINK } else { RT_SCOPE_UNIVERSE };
        request.bytes(&[family(to), len, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST]);
        request.bytes(&0u32.to_ne_bytes());
        if len > 0 {
            request.address(RTA_DST, to);
        }
        request.attribute(RTA_OIF, &index.to_ne_bytes());
        if let Some(source) = source {
            request.address(RTA_PREFSRC, source);
        }
        self.execute(request)
    }

    fn execute(&mut self, request: Request) -> io::Result<()> {
        self.exchange(request, |_, _| {})
    }

    /// Sends a request and reads until its acknowledgement, error or end of dump.
    fn exchange(
        &mut self,
        mut request: Request,
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = request.finish(self.sequence);
        self.socket.write_all(message)?;
        let mut buf = vec![0; REPLY_MAX_BYTES];
        for _ in 0..REPLIES_MAX {
            let len = self.socket.read(&mut buf)?;
            let mut rest = buf.get(..len).unwrap_or_default();
            while let Some((kind, sequence, body, next)) = split_message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue;
                }
                match kind {
                    NLMSG_ERROR => {
                        return match body.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)) {
                            Some(0) => Ok(()),
                            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
                            None => Err(io::ErrorKind::InvalidData.into()),
                        };
                    }
                    NLMSG_DONE => return Ok(()),
                    kind => each(kind, body),
                }
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

fn address_request(kind: u16, flags: u16, index: u32, addr: IpAddr, len: u8) -> Request {
    let mut request = Request::new(kind, flags);
    request.address_header(family(addr), len, index);
    request.address(IFA_LOCAL, addr);
    request.address(IFA_ADDRESS, addr);
    if kind == RTM_NEWADDR {
        request.attribute(IFA_FLAGS, &(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).to_ne_bytes());
    }
    request
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn host_len(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

/// A request under construction: nlmsghdr, a fixed header, attributes.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        let flags =
            NLM_F_REQUEST | flags | if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn link_header(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&change.to_ne_bytes());
    }

    fn address_header(&mut self, family: u8, len: u8, index: u32) {
        self.bytes(&[family, len, 0, 0]);
        self.bytes(&index.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Values here are at most 16 bytes.
        let len = (4 + value.len()) as u16;
        self.bytes(&len.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn address(&mut self, kind: u16, addr: IpAddr) {
        match addr {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

/// Splits the first message off: kind, sequence, body, rest.
fn split_message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let body = bytes.get(16..len)?;
    let rest = bytes.get(len.checked_next_multiple_of(4)?..).unwrap_or_default();
    Some((u16_at(bytes, 4)?, u32_at(bytes, 8)?, body, rest))
}

/// The link, address and prefix length of an RTM_NEWADDR body.
fn parse_address(body: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let len = *body.get(1)?;
    let index = u32_at(body, 4)?;
    let mut rest = body.get(8..)?;
    let mut found = None;
    while let (Some(size), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let size = usize::from(size);
        let Some(value) = rest.get(4..size) else { break };
        let addr = match value.len() {
            4 => value.first_chunk::<4>().map(|b| IpAddr::from(*b)),
            16 => value.first_chunk::<16>().map(|b| IpAddr::from(*b)),
            _ => None,
        };
        // IFA_LOCAL is the own address on point-to-point links, IFA_ADDRESS the other end.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = addr.or(found);
        }
        rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
    }
    Some((index, found?, len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_padded_and_sized() {
        let mut request = address_request(RTM_NEWADDR, 0, 7, "10.0.0.1".parse().unwrap(), 32);
        let bytes = request.finish(9).to_vec();
        assert_eq!(bytes.len() % 4, 0);
        let (kind, sequence, body, rest) = split_message(&bytes).unwrap();
        assert_eq!((kind, sequence, rest.len()), (RTM_NEWADDR, 9, 0));
        assert_eq!(parse_address(body), Some((7, "10.0.0.1".parse().unwrap(), 32)));
    }

    proptest! {
        #[test]
        fn any_reply_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            for _ in 0..64 {
                let Some((_, _, body, next)) = split_message(rest) else { break };
                let _ = parse_address(body);
                prop_assert!(next.len() < rest.len());
                rest = next;
            }
        }
    }
}
