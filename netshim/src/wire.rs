//! Packet formats: the overlay's own datagrams, the TUN's vnet_hdr, and what is needed of the inner IP headers. Views check lengths once;
//! everything after that is total.
//!
//! ```text
//! data       type=4 ver 0 0 | receiver u32 | counter u64 | AEAD{ kind u8 | frame u8 | index u16 | inner packet } | tag 16
//! initiation type=1 ver 0 0 | sender u32 | Noise e, es, s, ss, psk ‖ payload | mac1 16 | mac2 16
//! response   type=2 ver 0 0 | sender u32 | receiver u32 | Noise e, ee, se, psk ‖ payload | mac1 16 | mac2 16
//! cookie     type=3 ver 0 0 | receiver u32 | nonce 12 | AEAD{ cookie 16 } | tag 16
//! ```
//! Integers of ours are little-endian.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

/// The protocol version in every datagram.
pub const VERSION: u8 = 1;
/// `struct virtio_net_hdr` before each packet of a TUN.
pub const VNET_HDR_LEN: usize = 10;
/// Header of a data datagram.
pub const DATA_HEADER_LEN: usize = 16;
/// What stands before the inner packet inside of the encryption.
pub const META_LEN: usize = 4;
/// The AEAD tag.
pub const TAG_LEN: usize = 16;
/// All that a data datagram adds to the inner packet.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + META_LEN + TAG_LEN;

/// Type of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// First handshake message.
    Initiation,
    /// Second handshake message.
    Response,
    /// Asks an initiator to prove its address.
    Cookie,
    /// An inner packet, or nothing (keepalive).
    Data,
}

impl Kind {
    /// The first byte.
    pub fn code(self) -> u8 {
        match self {
            Kind::Initiation => 1,
            Kind::Response => 2,
            Kind::Cookie => 3,
            Kind::Data => 4,
        }
    }

    /// The type of a datagram; `None` for unknown types and versions, and for what is shorter than any datagram.
    pub fn of(datagram: &[u8]) -> Option<Kind> {
        match datagram.first_chunk::<DATA_HEADER_LEN>()? {
            [1, VERSION, 0, 0, ..] => Some(Kind::Initiation),
            [2, VERSION, 0, 0, ..] => Some(Kind::Response),
            [3, VERSION, 0, 0, ..] => Some(Kind::Cookie),
            [4, VERSION, 0, 0, ..] => Some(Kind::Data),
            _ => None,
        }
    }
}

/// Header of a data datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// The receiver's index of the session.
    pub receiver: u32,
    /// Packet number, the nonce.
    pub counter: u64,
}

impl DataHeader {
    /// The wire form.
    pub fn emit(self) -> [u8; DATA_HEADER_LEN] {
        let r = self.receiver.to_le_bytes();
        let c = self.counter.to_le_bytes();
        [
            Kind::Data.code(),
            VERSION,
            0,
            0,
            r[0],
            r[1],
            r[2],
            r[3],
            c[0],
            c[1],
            c[2],
            c[3],
            c[4],
            c[5],
            c[6],
            c[7],
        ]
    }

    /// Reads it from a datagram of [`Kind::Data`]; `None` if that is too short to hold the meta bytes and the tag.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() < DATA_OVERHEAD {
            return None;
        }
        let [_, _, _, _, r0, r1, r2, r3, counter @ ..] =
            datagram.first_chunk::<DATA_HEADER_LEN>()?;
        Some(Self {
            receiver: u32::from_le_bytes([*r0, *r1, *r2, *r3]),
            counter: u64::from_le_bytes(*counter),
        })
    }
}

/// What an inner packet is a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Nothing: a packet as the pod sent it.
    Whole,
    /// A segment of a large TCP packet.
    Tcp,
    /// A datagram of a large UDP packet.
    Udp,
}

/// The bytes before the inner packet. Hints for the receiver, which checks whatever it builds from them against the inner headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What the packet is a part of.
    pub part: Part,
    /// Whether the transport checksum is left to be filled in by the receiving kernel (the AEAD guards the bytes on the way).
    pub partial_checksum: bool,
    /// Which large packet, modulo 256.
    pub frame: u8,
    /// Which part of it, from 0.
    pub index: u16,
}

impl Meta {
    /// A packet by itself.
    pub const WHOLE: Meta = Meta { part: Part::Whole, partial_checksum: false, frame: 0, index: 0 };

    /// The wire form.
    pub fn emit(self) -> [u8; META_LEN] {
        let part = match self.part {
            Part::Whole => 0,
            Part::Tcp => 1,
            Part::Udp => 2,
        };
        let index = self.index.to_le_bytes();
        [part | u8::from(self.partial_checksum) << 7, self.frame, index[0], index[1]]
    }

    /// Reads it; `None` for unknown kinds and bits.
    pub fn parse(bytes: [u8; META_LEN]) -> Option<Self> {
        let [kind, frame, i0, i1] = bytes;
        let part = match kind & 0x7f {
            0 => Part::Whole,
            1 => Part::Tcp,
            2 => Part::Udp,
            _ => return None,
        };
        Some(Self {
            part,
            partial_checksum: kind & 0x80 != 0,
            frame,
            index: u16::from_le_bytes([i0, i1]),
        })
    }
}

/// `struct virtio_net_hdr` as the TUN has it: host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHdr {
    /// Whether the checksum at `checksum_start + checksum_offset` is unfinished: it holds the pseudo-header's sum.
    pub needs_checksum: bool,
    /// Segmentation type, `GSO_*`.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub header_len: u16,
    /// Payload bytes a segment.
    pub gso_size: u16,
    /// Where the summed range begins.
    pub checksum_start: u16,
    /// Where in it the checksum lies.
    pub checksum_offset: u16,
}

/// No segmentation.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6.
pub const GSO_TCPV6: u8 = 4;
/// UDP datagrams of either family (not the long gone UFO, 3).
pub const GSO_UDP_L4: u8 = 5;
/// Or'ed to TCP types: the first segment carries CWR.
pub const GSO_ECN: u8 = 0x80;

const NEEDS_CSUM: u8 = 1;

impl VnetHdr {
    /// The bytes to write before a packet.
    pub fn emit(self) -> [u8; VNET_HDR_LEN] {
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        let flags = if self.needs_checksum { NEEDS_CSUM } else { 0 };
        [flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }

    /// Splits it off a packet read from a TUN.
    pub fn split(bytes: &mut [u8]) -> Option<(Self, &mut [u8])> {
        let (header, packet) = bytes.split_first_chunk_mut::<VNET_HDR_LEN>()?;
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *header;
        let header = Self {
            needs_checksum: flags & NEEDS_CSUM != 0,
            gso_type,
            header_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            checksum_start: u16::from_ne_bytes([s0, s1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        };
        Some((header, packet))
    }
}

/// What the overlay needs to know of an inner packet. Made only from a packet whose IP header agrees with its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Bytes of the IP header, extension headers not included.
    pub header_len: usize,
    /// IPv4 protocol or IPv6 next header of the first header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Whether it is a fragment other than the first, of IPv4: it has no transport header.
    pub later_fragment: bool,
    /// Whether it is a fragment at all, of IPv4.
    pub fragment: bool,
}

impl Inner {
    /// Parses a packet. `None` unless version, header length and total length are right: the packet must be exactly as long as its header says.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4Packet::new_checked(packet).ok()?;
                let header_len = usize::from(ip.header_len());
                if usize::from(ip.total_len()) != packet.len() || header_len < 20 {
                    return None;
                }
                Some(Self {
                    source: IpAddr::V4(ip.src_addr()),
                    destination: IpAddr::V4(ip.dst_addr()),
                    header_len,
                    protocol: ip.next_header().into(),
                    ttl: ip.hop_limit(),
                    later_fragment: ip.frag_offset() != 0,
                    fragment: ip.more_frags() || ip.frag_offset() != 0,
                })
            }
            6 => {
                let ip = Ipv6Packet::new_checked(packet).ok()?;
                if ip.total_len() != packet.len() {
                    return None;
                }
                Some(Self {
                    source: IpAddr::V6(ip.src_addr()),
                    destination: IpAddr::V6(ip.dst_addr()),
                    header_len: ip.header_len(),
                    protocol: ip.next_header().into(),
                    ttl: ip.hop_limit(),
                    later_fragment: false,
                    fragment: false,
                })
            }
            _ => None,
        }
    }

    /// Whether it is IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.source.is_ipv4()
    }

    /// Where the checksum of a TCP or UDP header directly behind the IP header lies, from the transport header on. `None` for other protocols,
    /// fragments and extension headers.
    pub fn checksum_offset(&self) -> Option<usize> {
        match self.protocol {
            _ if self.fragment => None,
            PROTOCOL_TCP => Some(16),
            PROTOCOL_UDP => Some(6),
            _ => None,
        }
    }
}

/// TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// ICMP for IPv4.
pub const PROTOCOL_ICMP: u8 = 1;
/// ICMP for IPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Takes one off the TTL or hop limit, with the IPv4 header checksum (RFC 1624). The packet must have been parsed by [`Inner::parse`].
pub fn decrement_ttl(packet: &mut [u8]) {
    match packet {
        [first, ..] if *first >> 4 == 4 => {
            if let Some(header) = packet.first_chunk_mut::<20>() {
                header[8] = header[8].saturating_sub(1);
                let old = u16::from_be_bytes([header[10], header[11]]);
                // The TTL is the high byte of its word: the sum falls by 0x100, so its complement grows by that.
                let (sum, carry) = old.overflowing_add(0x100);
                let sum = sum + u16::from(carry);
                [header[10], header[11]] = sum.to_be_bytes();
            }
        }
        _ => {
            if let Some(header) = packet.first_chunk_mut::<40>() {
                header[7] = header[7].saturating_sub(1);
            }
        }
    }
}

/// The unfolded one's complement sum of big-endian words, continuing `sum`.
pub fn sum_words(sum: u64, bytes: &[u8]) -> u64 {
    let mut sum = u128::from(sum);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut wide = 0u64;
    let mut carries = 0u64;
    for word in words {
        let (next, carry) = wide.overflowing_add(u64::from_be_bytes(*word));
        wide = next;
        carries += u64::from(carry);
    }
    sum += u128::from(wide) + u128::from(carries);
    let mut tail = [0u8; 8];
    for (to, from) in tail.iter_mut().zip(rest) {
        *to = *from;
    }
    sum += u128::from(u64::from_be_bytes(tail));
    // 2^64 is 1 in one's complement arithmetic of 16-bit words.
    let folded = (sum & u128::from(u64::MAX)) + (sum >> 64);
    fold_to_32(folded)
}

fn fold_to_32(mut sum: u128) -> u64 {
    while sum >> 32 != 0 {
        sum = (sum & 0xffff_ffff) + (sum >> 32);
    }
    sum as u64
}

/// Folds a sum to the 16 bits that go into a header before the complement.
pub fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo-header (RFC 793, RFC 8200) for a transport segment of `len` bytes.
pub fn pseudo_sum(inner: &Inner, len: usize) -> u64 {
    let sum = match (inner.source, inner.destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => sum_words(sum_words(0, &s.octets()), &d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => sum_words(sum_words(0, &s.octets()), &d.octets()),
        _ => 0,
    };
    sum + len as u64 + u64::from(inner.protocol)
}

/// Finishes the checksum of a packet whose field holds the pseudo-header's sum: `start` and `offset` as in [`VnetHdr`]. `false`, and nothing
/// changed, if they lie outside of the packet.
pub fn finish_checksum(packet: &mut [u8], start: usize, offset: usize) -> bool {
    let Some(range) = packet.get_mut(start..) else { return false };
    let sum = !fold(sum_words(0, range));
    let Some(field) = range.get_mut(offset..).and_then(|f| f.first_chunk_mut::<2>()) else {
        return false;
    };
    // UDP: zero would mean "no checksum"; for TCP both mean the same.
    *field = if sum == 0 { [0xff, 0xff] } else { sum.to_be_bytes() };
    true
}

/// Sets the IPv4 header checksum.
pub fn fill_ipv4_checksum(packet: &mut [u8], header_len: usize) {
    if let Some(header) = packet.get_mut(..header_len) {
        let mut ip = Ipv4Packet::new_unchecked(header);
        ip.fill_checksum();
    }
}

/// Whether an address must not appear in a packet on the overlay.
pub fn is_martian(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => martian4(a),
        IpAddr::V6(a) => martian6(a),
    }
}

fn martian4(a: Ipv4Addr) -> bool {
    a.is_unspecified()
        || a.is_loopback()
        || a.is_multicast()
        || a.is_broadcast()
        || a.is_link_local()
        || matches!(a.octets()[0], 0 | 240..)
}

fn martian6(a: Ipv6Addr) -> bool {
    a.is_unspecified()
        || a.is_loopback()
        || a.is_multicast()
        || a.is_unicast_link_local()
        || a.to_ipv4_mapped().is_some()
}

/// The IPv4 protocol or IPv6 next header number as smoltcp names it.
pub fn protocol(number: u8) -> IpProtocol {
    IpProtocol::from(number)
}

#[cfg(test)]
mod tests;
