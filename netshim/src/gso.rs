//! Large packets: split into what fits the wire, and rebuilt on the other side. Pure.
//!
//! A TUN with offloads hands over up to 64 KiB of one TCP or UDP flow with a segment size. Each segment travels as an inner packet of its own, with
//! correct headers but for the transport checksum, so that a lost one costs no other; the receiver joins those that arrive together and are
//! contiguous, and lets the kernel see one large packet again. What is joined is decided by the inner headers, never by the sender's word alone.

use std::ops::Range;

use heapless::Vec as FixedVec;

use crate::path::End;
use crate::wire::{
    self, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Inner, Meta, PROTOCOL_TCP, PROTOCOL_UDP,
    Part, VnetHdr, fill_ipv4_checksum, fold, pseudo_sum,
};

/// Segments of one large packet; the kernel's smallest MSS makes no more than 1,365.
pub const SEGMENTS_MAX: usize = 2_048;
/// Segments joined on receipt: what one receive call brings.
pub const JOINED_MAX: usize = 128;
/// Largest IP packet.
const PACKET_MAX_BYTES: usize = 65_535;
/// IPv4 with options and TCP with options.
const HEADERS_MAX_BYTES: usize = 120;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_PSH: u8 = 0x08;
const TCP_URG: u8 = 0x20;
const TCP_CWR: u8 = 0x80;

/// Headers of a TCP or UDP packet: where the transport begins and the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    part: Part,
    transport: usize,
    headers: usize,
}

impl Layout {
    fn of(inner: &Inner, packet: &[u8]) -> Option<Self> {
        if inner.fragment {
            return None;
        }
        let transport = inner.header_len;
        let (part, headers) = match inner.protocol {
            PROTOCOL_TCP => {
                let words = usize::from(packet.get(transport + 12)? >> 4);
                if words < 5 {
                    return None;
                }
                (Part::Tcp, transport + 4 * words)
            }
            PROTOCOL_UDP => (Part::Udp, transport + 8),
            _ => return None,
        };
        (headers <= packet.len() && headers <= HEADERS_MAX_BYTES).then_some(Self {
            part,
            transport,
            headers,
        })
    }

    fn checksum_offset(&self) -> usize {
        if self.part == Part::Tcp { 16 } else { 6 }
    }

    fn gso_type(&self, ipv4: bool) -> u8 {
        match (self.part, ipv4) {
            (Part::Tcp, true) => GSO_TCPV4,
            (Part::Tcp, false) => GSO_TCPV6,
            _ => GSO_UDP_L4,
        }
    }
}

/// A large packet, checked against its own headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Large {
    layout: Layout,
    ipv4: bool,
    segment_size: usize,
    payload_len: usize,
    cwr: bool,
}

impl Large {
    /// Checks a large packet and its header from a TUN. `None` if the two do not fit each other.
    pub fn parse(header: &VnetHdr, inner: &Inner, packet: &[u8]) -> Option<Self> {
        let layout = Layout::of(inner, packet)?;
        let ecn = header.gso_type & wire::GSO_ECN != 0;
        let plain_type = header.gso_type & !wire::GSO_ECN;
        let segment_size = usize::from(header.gso_size);
        let payload_len = packet.len() - layout.headers;
        let right = plain_type == layout.gso_type(inner.is_ipv4())
            && (!ecn || layout.part == Part::Tcp)
            && header.needs_checksum
            && usize::from(header.checksum_start) == layout.transport
            && usize::from(header.checksum_offset) == layout.checksum_offset()
            && segment_size > 0
            && payload_len > 0
            && payload_len.div_ceil(segment_size) <= SEGMENTS_MAX;
        right.then_some(Self { layout, ipv4: inner.is_ipv4(), segment_size, payload_len, cwr: ecn })
    }

    /// How many segments it makes; at least one.
    pub fn count(&self) -> usize {
        self.payload_len.div_ceil(self.segment_size)
    }

    /// The length of the largest segment, headers included.
    pub fn largest(&self) -> usize {
        self.layout.headers + self.segment_size.min(self.payload_len)
    }

    /// The length of one segment, headers included.
    pub fn segment_len(&self, index: usize) -> usize {
        let from = index * self.segment_size;
        self.layout.headers + self.segment_size.min(self.payload_len.saturating_sub(from))
    }

    /// What the segments are parts of.
    pub fn part(&self) -> Part {
        self.layout.part
    }

    /// The header for a TUN that takes the packet whole.
    pub fn header(&self) -> VnetHdr {
        let ecn = if self.cwr { wire::GSO_ECN } else { 0 };
        // Lengths are below 64 KiB, as they came from u16 fields and a packet's length.
        VnetHdr {
            needs_checksum: true,
            gso_type: self.layout.gso_type(self.ipv4) | ecn,
            header_len: self.layout.headers as u16,
            gso_size: self.segment_size as u16,
            checksum_start: self.layout.transport as u16,
            checksum_offset: self.layout.checksum_offset() as u16,
        }
    }

    /// Writes one segment into `out`, which has [`Large::segment_len`] bytes. Its checksum field holds the pseudo-header's sum. `None`
    /// if `packet` is not the parsed one or `out` is not of that length.
    pub fn write(&self, packet: &[u8], index: usize, out: &mut [u8]) -> Option<()> {
        let Layout { part, transport, headers } = self.layout;
        let from = headers + index.checked_mul(self.segment_size)?;
        let to = (from + self.segment_size).min(packet.len());
        let (head, payload) = out.split_at_mut_checked(headers)?;
        head.copy_from_slice(packet.get(..headers)?);
        let source = packet.get(from..to)?;
        if payload.len() != source.len() {
            return None;
        }
        payload.copy_from_slice(source);
        let last = to == packet.len();
        if part == Part::Tcp {
            let tcp = head.get_mut(transport..)?;
            let sequence = tcp.get_mut(4..8)?.first_chunk_mut::<4>()?;
            let at = (index * self.segment_size) as u32;
            *sequence = u32::from_be_bytes(*sequence).wrapping_add(at).to_be_bytes();
            let flags = tcp.get_mut(13)?;
            if !last {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                *flags &= !TCP_CWR;
            }
        }
        // Fewer than 2,048.
        finish_headers(head, &self.layout, self.ipv4, source.len(), index as u16)
    }
}

/// Sets all lengths for a payload of `len` bytes, the IPv4 identification and checksum, and the unfinished transport checksum.
fn finish_headers(
    head: &mut [u8],
    layout: &Layout,
    ipv4: bool,
    len: usize,
    id_step: u16,
) -> Option<()> {
    let transport_len = layout.headers - layout.transport + len;
    if ipv4 {
        let total = u16::try_from(layout.transport + transport_len).ok()?;
        *head.get_mut(2..4)?.first_chunk_mut::<2>()? = total.to_be_bytes();
        let id = head.get_mut(4..6)?.first_chunk_mut::<2>()?;
        *id = u16::from_be_bytes(*id).wrapping_add(id_step).to_be_bytes();
        fill_ipv4_checksum(head, layout.transport);
    } else {
        let payload = u16::try_from(transport_len).ok()?;
        *head.get_mut(4..6)?.first_chunk_mut::<2>()? = payload.to_be_bytes();
    }
    if layout.part == Part::Udp {
        let length = u16::try_from(transport_len).ok()?;
        let field = head.get_mut(layout.transport + 4..)?.first_chunk_mut::<2>()?;
        *field = length.to_be_bytes();
    }
    let sum = pseudo_of(head, ipv4, transport_len)?;
    let at = layout.transport + layout.checksum_offset();
    *head.get_mut(at..)?.first_chunk_mut::<2>()? = fold(sum).to_be_bytes();
    Some(())
}

/// The pseudo-header's sum from an IP header alone (the packet's length is not at hand yet).
fn pseudo_of(head: &[u8], ipv4: bool, len: usize) -> Option<u64> {
    let (addresses, protocol) =
        if ipv4 { (head.get(12..20)?, head.get(9)?) } else { (head.get(8..40)?, head.get(6)?) };
    Some(wire::sum_words(0, addresses) + len as u64 + u64::from(*protocol))
}

/// Prepares a single packet whose transport checksum the sender left open: puts the pseudo-header's sum into the field and gives the header for the
/// TUN. `None` if it has no such checksum.
pub fn open_checksum(inner: &Inner, packet: &mut [u8]) -> Option<VnetHdr> {
    let offset = inner.checksum_offset()?;
    let len = packet.len().checked_sub(inner.header_len)?;
    let sum = fold(pseudo_sum(inner, len));
    let at = inner.header_len.checked_add(offset)?;
    *packet.get_mut(at..)?.first_chunk_mut::<2>()? = sum.to_be_bytes();
    // An IP header is at most 60 bytes.
    Some(VnetHdr {
        needs_checksum: true,
        gso_type: GSO_NONE,
        header_len: 0,
        gso_size: 0,
        checksum_start: inner.header_len as u16,
        checksum_offset: offset as u16,
    })
}

/// Packets joined to one: headers, and where in the receive buffer the payloads lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Where it goes.
    pub to: End,
    /// The header for the TUN.
    pub header: VnetHdr,
    /// IP and transport headers.
    pub head: FixedVec<u8, HEADERS_MAX_BYTES>,
    /// Payloads in order, as ranges of the receive buffer.
    pub payloads: FixedVec<Range<usize>, JOINED_MAX>,
    /// Bytes of head and payloads.
    pub len: usize,
}

/// What became of a packet given to [`Rebuild::push`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is part of the large packet under construction.
    Taken,
    /// It may begin one, but another must be finished first.
    NotNow,
    /// It cannot be part of any; finish the open one before it, to keep the order.
    Never,
}

/// Joins packets of one receive call.
pub struct Rebuild {
    joined: Joined,
    state: Option<Open>,
}

/// What the next segment of the open packet must look like.
struct Open {
    meta: Meta,
    layout: Layout,
    ipv4: bool,
    /// The head with all that may differ between segments zeroed.
    pattern: FixedVec<u8, HEADERS_MAX_BYTES>,
    segment_size: usize,
    payload_len: usize,
    next_sequence: u32,
    next_index: u16,
    last_flags: u8,
    /// A short or final segment ends it.
    closed: bool,
}

impl Default for Rebuild {
    fn default() -> Self {
        let joined = Joined {
            to: End::Host,
            header: VnetHdr::default(),
            head: FixedVec::new(),
            payloads: FixedVec::new(),
            len: 0,
        };
        Self { joined, state: None }
    }
}

impl Rebuild {
    /// Takes a packet with an open checksum that lies at `at` in the receive buffer.
    pub fn push(&mut self, to: End, meta: Meta, inner: &Inner, packet: &[u8], at: usize) -> Pushed {
        let Some(layout) = Layout::of(inner, packet).filter(|l| joinable(l, meta, packet)) else {
            return Pushed::Never;
        };
        let payload = at + layout.headers..at + packet.len();
        let taken = match &mut self.state {
            Some(open) => {
                let same_way = self.joined.to == to && !self.joined.payloads.is_full();
                if !same_way || !open.extend(meta, &layout, packet) {
                    return Pushed::NotNow;
                }
                Some(())
            }
            None => self.begin(to, meta, inner, layout, packet),
        };
        match taken {
            // There is room: a new packet has none yet, and a full one was sorted out above.
            Some(()) if self.joined.payloads.push(payload).is_ok() => Pushed::Taken,
            _ => Pushed::Never,
        }
    }

    /// Ends what is open.
    pub fn finish(&mut self) -> Option<&Joined> {
        let open = self.state.take()?;
        let Open { layout, ipv4, .. } = open;
        let joined = &mut self.joined;
        if layout.part == Part::Tcp {
            *joined.head.get_mut(layout.transport + 13)? |= open.last_flags & (TCP_FIN | TCP_PSH);
        }
        finish_headers(&mut joined.head, &layout, ipv4, open.payload_len, 0)?;
        let large = joined.payloads.len() > 1;
        // Lengths of headers and of one payload are below 64 KiB.
        joined.header = VnetHdr {
            needs_checksum: true,
            gso_type: if large { layout.gso_type(ipv4) } else { GSO_NONE },
            header_len: layout.headers as u16,
            gso_size: if large { open.segment_size as u16 } else { 0 },
            checksum_start: layout.transport as u16,
            checksum_offset: layout.checksum_offset() as u16,
        };
        joined.len = joined.head.len() + open.payload_len;
        Some(joined)
    }

    fn begin(
        &mut self,
        to: End,
        meta: Meta,
        inner: &Inner,
        layout: Layout,
        packet: &[u8],
    ) -> Option<()> {
        let head = packet.get(..layout.headers)?;
        let payload_len = packet.len() - layout.headers;
        let (sequence, flags) = match layout.part {
            Part::Tcp => tcp_fields(&layout, packet)?,
            _ => (0, 0),
        };
        self.joined.to = to;
        self.joined.head = FixedVec::from_slice(head).ok()?;
        self.joined.payloads.clear();
        self.state = Some(Open {
            meta,
            layout,
            ipv4: inner.is_ipv4(),
            pattern: pattern(&layout, inner.is_ipv4(), head)?,
            segment_size: payload_len,
            payload_len,
            next_sequence: sequence.wrapping_add(payload_len as u32),
            next_index: meta.index.wrapping_add(1),
            last_flags: flags,
            closed: flags & (TCP_FIN | TCP_PSH) != 0,
        });
        Some(())
    }
}

fn joinable(layout: &Layout, meta: Meta, packet: &[u8]) -> bool {
    let payload = packet.len() - layout.headers;
    if !meta.partial_checksum
        || payload == 0
        || (meta.part != Part::Whole && meta.part != layout.part)
    {
        return false;
    }
    match layout.part {
        Part::Tcp => packet
            .get(layout.transport + 13)
            .is_some_and(|flags| flags & (TCP_SYN | TCP_RST | TCP_URG | TCP_CWR) == 0),
        Part::Udp => true,
        Part::Whole => false,
    }
}

/// The headers with everything zeroed that differs between segments of one large packet.
fn pattern(layout: &Layout, ipv4: bool, head: &[u8]) -> Option<FixedVec<u8, HEADERS_MAX_BYTES>> {
    let mut p: FixedVec<u8, HEADERS_MAX_BYTES> = FixedVec::from_slice(head).ok()?;
    if ipv4 {
        // Total length, identification; checksum.
        p.get_mut(2..6)?.fill(0);
        p.get_mut(10..12)?.fill(0);
    } else {
        p.get_mut(4..6)?.fill(0);
    }
    let transport = p.get_mut(layout.transport..)?;
    if layout.part == Part::Tcp {
        transport.get_mut(4..8)?.fill(0);
        *transport.get_mut(13)? &= !(TCP_FIN | TCP_PSH);
        transport.get_mut(16..18)?.fill(0);
    } else {
        transport.get_mut(4..8)?.fill(0);
    }
    Some(p)
}

fn tcp_fields(layout: &Layout, packet: &[u8]) -> Option<(u32, u8)> {
    let tcp = packet.get(layout.transport..)?;
    Some((u32::from_be_bytes(*tcp.get(4..)?.first_chunk()?), *tcp.get(13)?))
}

impl Open {
    /// Whether the packet continues this one; counts it if so.
    fn extend(&mut self, meta: Meta, layout: &Layout, packet: &[u8]) -> bool {
        let payload = packet.len() - layout.headers;
        let follows = self.meta.part == meta.part
            && (meta.part == Part::Whole
                || (self.meta.frame == meta.frame && self.next_index == meta.index));
        if self.closed
            || !follows
            || self.layout != *layout
            || payload > self.segment_size
            || layout.headers + self.payload_len + payload > PACKET_MAX_BYTES
        {
            return false;
        }
        let (sequence, flags) = match layout.part {
            Part::Tcp => match tcp_fields(layout, packet) {
                Some(fields) => fields,
                None => return false,
            },
            _ => (self.next_sequence, 0),
        };
        let Some(head) = packet.get(..layout.headers) else { return false };
        let ipv4 = head.first().is_some_and(|b| b >> 4 == 4);
        if sequence != self.next_sequence
            || ipv4 != self.ipv4
            || pattern(layout, ipv4, head).as_ref() != Some(&self.pattern)
        {
            return false;
        }
        self.payload_len += payload;
        if layout.part == Part::Tcp {
            self.next_sequence = sequence.wrapping_add(payload as u32);
        }
        self.next_index = self.next_index.wrapping_add(1);
        self.last_flags = flags;
        self.closed = payload < self.segment_size || flags & (TCP_FIN | TCP_PSH) != 0;
        true
    }
}

#[cfg(test)]
mod tests;
