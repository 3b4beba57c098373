use proptest::prelude::*;

use super::*;
use crate::path::PodId;
use crate::wire::finish_checksum;

const TO: End = End::Pod(PodId(2));

/// A TCP or UDP packet with a payload of distinct bytes and the checksum open.
fn packet(ipv4: bool, tcp: bool, payload: usize, flags: u8) -> Vec<u8> {
    let mut p = if ipv4 {
        let mut p = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 63, if tcp { 6 } else { 17 }, 0, 0];
        p.extend_from_slice(&[100, 64, 1, 2, 100, 64, 2, 3]);
        p
    } else {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, if tcp { 6 } else { 17 }, 63];
        p.extend_from_slice(&[0xfd; 16]);
        p.extend_from_slice(&[0xfe; 16]);
        p
    };
    let transport = p.len();
    if tcp {
        p.extend_from_slice(&[
            0x30, 0x39, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, 0x80, flags, 1, 0, 0, 0, 0, 0,
        ]);
        p.extend_from_slice(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        p.extend_from_slice(&[0x30, 0x39, 0, 53, 0, 0, 0, 0]);
    }
    let headers = p.len();
    p.extend((0..payload).map(|n| (n * 7 + n / 251) as u8));
    let layout = Layout { part: if tcp { Part::Tcp } else { Part::Udp }, transport, headers };
    finish_headers(&mut p[..headers], &layout, ipv4, payload, 0).unwrap();
    p
}

fn header(ipv4: bool, tcp: bool, gso_size: u16) -> VnetHdr {
    VnetHdr {
        needs_checksum: true,
        gso_type: match (tcp, ipv4) {
            (true, true) => GSO_TCPV4,
            (true, false) => GSO_TCPV6,
            _ => GSO_UDP_L4,
        },
        header_len: 0,
        gso_size,
        checksum_start: if ipv4 { 20 } else { 40 },
        checksum_offset: if tcp { 16 } else { 6 },
    }
}

/// Splits, and lays the segments into one buffer as a receiver would find them.
fn split(large: &Large, packet: &[u8]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut buffer = vec![0xee; 5];
    let mut ranges = Vec::new();
    for index in 0..large.count() {
        let mut segment = vec![0; large.segment_len(index)];
        large.write(packet, index, &mut segment).unwrap();
        ranges.push(buffer.len()..buffer.len() + segment.len());
        buffer.extend_from_slice(&segment);
        buffer.extend_from_slice(&[0xee; 36]);
    }
    (buffer, ranges)
}

fn meta(part: Part, index: usize) -> Meta {
    Meta { part, partial_checksum: true, frame: 7, index: index as u16 }
}

fn flat(joined: &Joined, buffer: &[u8]) -> Vec<u8> {
    let mut out = joined.head.to_vec();
    joined.payloads.iter().for_each(|r| out.extend_from_slice(&buffer[r.clone()]));
    assert_eq!(out.len(), joined.len);
    out
}

/// Pushes as the engine does; gives all that was finished.
fn push(
    rebuild: &mut Rebuild,
    part: Part,
    index: usize,
    bytes: &[u8],
    at: usize,
    done: &mut Vec<Joined>,
) {
    let inner = Inner::parse(bytes).expect("a segment is a valid packet");
    if rebuild.push(TO, meta(part, index), &inner, bytes, at) == Pushed::NotNow {
        done.extend(rebuild.finish().cloned());
        assert_eq!(rebuild.push(TO, meta(part, index), &inner, bytes, at), Pushed::Taken);
    }
}

fn join(buffer: &[u8], ranges: &[Range<usize>], part: Part) -> Vec<Joined> {
    let mut rebuild = Rebuild::default();
    let mut done = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        push(&mut rebuild, part, index, &buffer[range.clone()], range.start, &mut done);
    }
    done.extend(rebuild.finish().cloned());
    done
}

#[test]
fn a_lost_segment_costs_one() {
    let packet = packet(true, true, 5_000, TCP_PSH | 0x10);
    let inner = Inner::parse(&packet).unwrap();
    let large = Large::parse(&header(true, true, 1_000), &inner, &packet).unwrap();
    let (buffer, mut ranges) = split(&large, &packet);
    ranges.remove(2);
    let mut rebuild = Rebuild::default();
    let mut done = Vec::new();
    for (at, range) in ranges.iter().enumerate() {
        let index = if at < 2 { at } else { at + 1 };
        push(&mut rebuild, Part::Tcp, index, &buffer[range.clone()], range.start, &mut done);
    }
    done.extend(rebuild.finish().cloned());
    let counts: Vec<_> = done.iter().map(|j| j.payloads.len()).collect();
    assert_eq!(counts, [2, 2]);
    assert_eq!(done[1].head[20 + 13], TCP_PSH | 0x10, "the end keeps its flags");
    assert_eq!(done[0].head[20 + 13], 0x10);
}

type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn strangers_are_not_joined() {
    let first = packet(true, true, 1_000, 0x10);
    let inner = Inner::parse(&first).unwrap();
    let base = |change: Change| {
        let mut next = packet(true, true, 1_000, 0x10);
        next[24..28].copy_from_slice(&0xffff_ff00u32.wrapping_add(1_000).to_be_bytes());
        change(&mut next);
        fill_ipv4_checksum(&mut next, 20);
        let inner2 = Inner::parse(&next).unwrap();
        let mut rebuild = Rebuild::default();
        assert_eq!(rebuild.push(TO, meta(Part::Tcp, 0), &inner, &first, 0), Pushed::Taken);
        rebuild.push(TO, meta(Part::Tcp, 1), &inner2, &next, 2_000)
    };
    assert_eq!(base(&|_| {}), Pushed::Taken, "the control joins");
    let differs: [Change; 7] = [
        &|p| p[21] ^= 1,
        &|p| p[27] ^= 1,
        &|p| p[31] ^= 1,
        &|p| p[1] ^= 4,
        &|p| p[8] -= 1,
        &|p| p[15] ^= 1,
        &|p| p[45] ^= 1,
    ];
    for (n, change) in differs.iter().enumerate() {
        assert_eq!(base(change), Pushed::NotNow, "change {n}");
    }
    for flag in [TCP_SYN, TCP_RST, TCP_URG, TCP_CWR] {
        assert_eq!(base(&|p| p[33] |= flag), Pushed::Never, "flag {flag:#x}");
    }
}

#[test]
fn headers_that_lie_are_refused() {
    let tcp = packet(true, true, 3_000, 0x10);
    let udp = packet(true, false, 3_000, 0);
    let six = packet(false, true, 3_000, 0x10);
    let parse = |h: VnetHdr, p: &[u8]| Large::parse(&h, &Inner::parse(p).unwrap(), p);
    let good = header(true, true, 1_000);
    assert!(parse(good, &tcp).is_some());
    for bad in [
        VnetHdr { gso_size: 0, ..good },
        VnetHdr { gso_size: 1, ..good },
        VnetHdr { gso_type: 3, ..good },
        VnetHdr { gso_type: GSO_UDP_L4, ..good },
        VnetHdr { gso_type: GSO_TCPV6, ..good },
        VnetHdr { gso_type: 0x7f, ..good },
        VnetHdr { needs_checksum: false, ..good },
        VnetHdr { checksum_start: 0, ..good },
        VnetHdr { checksum_offset: 6, ..good },
    ] {
        assert_eq!(parse(bad, &tcp), None, "{bad:?}");
    }
    assert_eq!(parse(good, &udp), None, "TSO on UDP");
    assert_eq!(parse(good, &six), None);
    assert_eq!(parse(good, &packet(true, true, 0, 0x10)), None, "no payload");
    let mut short = tcp.clone();
    short[32] = 0x40;
    assert_eq!(parse(good, &short), None, "TCP header under 20 bytes");
    short[32] = 0xf0;
    assert!(parse(good, &short).is_some());
    let tiny = packet(true, true, 20, 0x10);
    let mut long_header = tiny.clone();
    long_header[32] = 0xf0;
    assert_eq!(parse(good, &long_header), None, "TCP header beyond the packet");
}

#[test]
fn an_open_checksum_is_finished_right() {
    for (ipv4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut p = packet(ipv4, tcp, 333, 0x18);
        let inner = Inner::parse(&p).unwrap();
        let header = open_checksum(&inner, &mut p).unwrap();
        let (start, offset) = (header.checksum_start.into(), header.checksum_offset.into());
        assert!(finish_checksum(&mut p, start, offset));
        let sum = wire::sum_words(pseudo_sum(&inner, p.len() - start), &p[start..]);
        assert_eq!(fold(sum), 0xffff);
    }
    let mut icmp = packet(true, false, 10, 0);
    icmp[9] = 1;
    let inner = Inner::parse(&icmp).unwrap();
    assert_eq!(open_checksum(&inner, &mut icmp), None);
}

proptest! {
    /// What is split and joined again is the packet it was.
    #[test]
    fn split_and_join_are_inverse(ipv4: bool, tcp: bool, payload in 1usize..20_000, size in 200u16..1_400, push: bool) {
        let flags = if push { TCP_PSH | 0x10 } else { 0x10 };
        let packet = packet(ipv4, tcp, payload, flags);
        let inner = Inner::parse(&packet).unwrap();
        let large = Large::parse(&header(ipv4, tcp, size), &inner, &packet).unwrap();
        let (buffer, ranges) = split(&large, &packet);
        let part = if tcp { Part::Tcp } else { Part::Udp };
        let joined = join(&buffer, &ranges, part);
        prop_assert_eq!(joined.len(), 1);
        prop_assert_eq!(flat(&joined[0], &buffer), packet);
        let again = Large::parse(&joined[0].header, &inner, &flat(&joined[0], &buffer));
        prop_assert_eq!(again.map_or(1, |l| l.count()), ranges.len());
    }

    /// Every segment, its checksum finished, is what a receiver without offloads accepts.
    #[test]
    fn segments_are_valid_packets(ipv4: bool, tcp: bool, payload in 1usize..9_000, size in 100u16..1_400) {
        let packet = packet(ipv4, tcp, payload, 0x18);
        let inner = Inner::parse(&packet).unwrap();
        let large = Large::parse(&header(ipv4, tcp, size), &inner, &packet).unwrap();
        let (buffer, ranges) = split(&large, &packet);
        for range in ranges {
            let mut segment = buffer[range].to_vec();
            let inner = Inner::parse(&segment).unwrap();
            let start = inner.header_len;
            prop_assert!(finish_checksum(&mut segment, start, inner.checksum_offset().unwrap()));
            let sum = wire::sum_words(pseudo_sum(&inner, segment.len() - start), &segment[start..]);
            prop_assert_eq!(fold(sum), 0xffff);
            prop_assert!(segment.len() <= large.largest());
        }
    }

    /// Any bytes with any meta are survived, and what is joined is never longer than what came in.
    #[test]
    fn any_packets_are_survived(
        packets in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..120), any::<u16>(), 0u8..3), 0..12),
        gso_type: u8, gso_size: u16,
    ) {
        let mut rebuild = Rebuild::default();
        let mut total = 0;
        let check = |joined: Option<&Joined>, total: usize| assert!(joined.is_none_or(|j| j.len <= total));
        for (frame, bytes, index, part) in packets {
            let mut bytes = bytes;
            if bytes.len() >= 20 {
                // Right lengths, so that the rest is reached.
                bytes[0] = 0x45 | bytes[0] & 0x03;
                let len = bytes.len() as u16;
                bytes[2..4].copy_from_slice(&len.to_be_bytes());
                bytes[9] = if bytes[9] & 1 == 0 { 6 } else { 17 };
                bytes[6] = 0;
                bytes[7] = 0;
            }
            total += bytes.len();
            let Some(inner) = Inner::parse(&bytes) else { continue };
            let part = [Part::Whole, Part::Tcp, Part::Udp][usize::from(part)];
            let meta = Meta { part, partial_checksum: true, frame, index };
            if rebuild.push(TO, meta, &inner, &bytes, total) != Pushed::Taken {
                check(rebuild.finish(), total);
            }
            let vnet = VnetHdr { gso_type, gso_size, ..header(true, inner.protocol == 6, 1) };
            if let Some(large) = Large::parse(&vnet, &inner, &bytes) {
                let mut out = vec![0; large.segment_len(0)];
                large.write(&bytes, 0, &mut out).unwrap();
            }
            open_checksum(&inner, &mut bytes);
        }
        check(rebuild.finish(), total);
    }
}
