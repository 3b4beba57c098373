//! Two engines joined in memory: what a hostile pod or peer can make of them.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use rand::TryRng;

use super::fuzz::Wires;
use super::*;
use crate::addr::{Prefix4, Prefix6};
use crate::ipam::PodAddr;
use crate::keys::{Psk, SecretKey};
use crate::path::{OwnPrefixes, PeerPrefixes, PodId, Pods, Routes};
use crate::session::{Identity, PENDING_MAX};
use crate::wire::{
    GSO_TCPV4, GSO_UDP_L4, PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, Part, fill_ipv4_checksum,
    fold, sum_words,
};

struct TestRng(u64);

impl TryRng for TestRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|v| v as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Ok(self.0 ^ self.0 >> 29)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        for byte in dst {
            *byte = (self.try_next_u64()? >> 20) as u8;
        }
        Ok(())
    }
}

const MTU: u16 = 1_400;
const POD: End = End::Pod(PodId(2));

fn node6(n: u16) -> Prefix6 {
    format!("fd00:1:2:0:0:{n:x}::/96").parse().unwrap()
}

fn underlay(n: u16) -> SocketAddr {
    format!("10.0.0.{n}:7700").parse().unwrap()
}

fn pod4(node: u16) -> Ipv4Addr {
    format!("100.64.{node}.2").parse().unwrap()
}

/// Nodes 1 and 2 with a pod each; node 3 is known to both and silent.
struct World {
    now_us: u64,
    engines: [Engine<TestRng>; 2],
    ports: [Wires; 2],
    counters: [Arc<Counters>; 2],
}

impl World {
    fn new(offload: bool) -> Self {
        let keys = [1u8, 2, 3].map(|n| SecretKey::from_bytes([n; 32]));
        let counters = [Arc::new(Counters::default()), Arc::new(Counters::default())];
        let engine = |at: usize| {
            let me = at as u16 + 1;
            let mut rng = TestRng(at as u64);
            let identity = Identity {
                key: keys[at].clone(),
                psk: Psk::from_bytes([9; 32]),
                boot: 1,
                aes: true,
            };
            let mut sessions = Sessions::new(identity, 0, &mut rng);
            let others: Vec<u16> = (1..=3).filter(|n| *n != me).collect();
            let list: Vec<_> = others
                .iter()
                .map(|n| (keys[usize::from(*n) - 1].public_key(), underlay(*n)))
                .collect();
            let ids = sessions.set_peers(&list);
            let prefixes: Vec<_> = others
                .iter()
                .zip(ids)
                .map(|(n, id)| PeerPrefixes {
                    id: id.unwrap(),
                    prefix4: Prefix4::node(*n),
                    prefix6: node6(*n),
                })
                .collect();
            let own = OwnPrefixes {
                prefix4: Prefix4::node(me),
                prefix6: node6(me),
                overlay6: "fd00:1:2::/48".parse().unwrap(),
                egress: false,
            };
            let mut pods = Pods::default();
            pods.insert(PodAddr {
                ip4: pod4(me),
                ip6: format!("fd00:1:2:0:0:{me:x}:0:102").parse().unwrap(),
            })
            .unwrap();
            let path = Path { routes: Routes::new(own, &prefixes), pods, host: true, mtu: MTU };
            Engine::new(path, sessions, counters[at].clone(), rng, 0)
        };
        let ports =
            [Wires { offload, ..Default::default() }, Wires { offload, ..Default::default() }];
        Self { now_us: 1_000, engines: [engine(0), engine(1)], ports, counters }
    }

    /// With a session between the two.
    fn connected(offload: bool) -> Self {
        let mut world = Self::new(offload);
        world.pod_sends(0, VnetHdr::default(), &udp(pod4(1), pod4(2), b"hello"));
        world.settle();
        assert_eq!(world.ports[1].written.len(), 1, "connected");
        world.ports[1].written.clear();
        world
    }

    fn pod_sends(&mut self, at: usize, header: VnetHdr, packet: &[u8]) {
        let mut bytes = header.emit().to_vec();
        bytes.extend_from_slice(packet);
        let (engine, ports) = (&mut self.engines[at], &mut self.ports[at]);
        engine.tun_packet(self.now_us, POD, true, &mut bytes, ports);
    }

    /// Carries datagrams until nothing moves.
    fn settle(&mut self) {
        loop {
            for at in 0..2 {
                let (engine, ports) = (&mut self.engines[at], &mut self.ports[at]);
                engine.flush(ports);
                engine.timer(self.now_us, ports);
            }
            let moved: Vec<_> = (0..2).map(|at| std::mem::take(&mut self.ports[at].sent)).collect();
            if moved.iter().all(Vec::is_empty) {
                return;
            }
            for (from, sent) in moved.into_iter().enumerate() {
                for (to, mut bytes, segment) in sent {
                    if to == underlay(2 - from as u16) {
                        let (engine, ports) =
                            (&mut self.engines[1 - from], &mut self.ports[1 - from]);
                        engine.udp_datagrams(
                            self.now_us,
                            underlay(from as u16 + 1),
                            &mut bytes,
                            segment,
                            ports,
                        );
                    }
                }
            }
        }
    }

    /// Node 1, whose engine checks nothing, sends this inner packet to node 2.
    fn hostile_peer(&mut self, meta: Meta, packet: &[u8]) {
        let peer = PeerId(0);
        let engine = &mut self.engines[0];
        engine.seal_to(self.now_us, peer, meta, packet.len(), &mut self.ports[0], |out| {
            out.copy_from_slice(packet);
            Some(())
        });
        self.settle();
    }

    fn drops(&self, at: usize, why: DropReason) -> u64 {
        self.counters[at].snapshot().drops(why)
    }

    fn total_drops(&self, at: usize) -> u64 {
        self.counters[at].snapshot().drops.iter().map(|(_, n)| n).sum()
    }
}

fn ipv4(source: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, l0, l1, 0, 7, 0x40, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    fill_ipv4_checksum(&mut packet, 20);
    packet
}

fn udp(source: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let [l0, l1] = (8 + payload.len() as u16).to_be_bytes();
    let mut segment = vec![0x30, 0x39, 0, 53, l0, l1, 0, 0];
    segment.extend_from_slice(payload);
    ipv4(source, to, PROTOCOL_UDP, &segment)
}

fn tcp(source: Ipv4Addr, to: Ipv4Addr, payload: usize) -> Vec<u8> {
    let mut segment = vec![0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    segment.extend((0..payload).map(|n| n as u8));
    ipv4(source, to, PROTOCOL_TCP, &segment)
}

fn open(gso_type: u8, gso_size: u16, offset: u16) -> VnetHdr {
    VnetHdr {
        needs_checksum: true,
        gso_type,
        header_len: 0,
        gso_size,
        checksum_start: 20,
        checksum_offset: offset,
    }
}

#[test]
fn a_large_packet_crosses_in_few_calls_and_arrives_large() {
    let mut world = World::connected(true);
    world.pod_sends(0, open(GSO_TCPV4, 1_360, 16), &tcp(pod4(1), pod4(2), 40 * 1_360));
    world.engines[0].flush(&mut world.ports[0]);
    assert_eq!(world.ports[0].sent.len(), 1, "one send call");
    assert_eq!(world.ports[0].sent[0].2, 1_400 + DATA_OVERHEAD);
    world.settle();
    let (to, header, packet) = &world.ports[1].written[0];
    assert_eq!((*to, header.gso_type, header.gso_size), (POD, GSO_TCPV4, 1_360));
    assert_eq!(packet.len(), 40 + 40 * 1_360);
    assert_eq!(packet[8], 63, "one hop");
    assert_eq!(world.ports[1].written.len(), 1);
    assert_eq!(world.total_drops(0) + world.total_drops(1), 0);
}

#[test]
fn without_offloads_every_packet_is_whole_and_summed() {
    let mut world = World::connected(false);
    world.pod_sends(0, open(GSO_TCPV4, 1_000, 16), &tcp(pod4(1), pod4(2), 3_500));
    world.pod_sends(0, open(GSO_UDP_L4, 700, 6), &udp(pod4(1), pod4(2), &[7; 1_500]));
    world.pod_sends(0, open(0, 0, 6), &udp(pod4(1), pod4(2), &[7; 10]));
    world.settle();
    let written = &world.ports[1].written;
    assert_eq!(written.len(), 4 + 3 + 1);
    for (_, header, packet) in written {
        assert_eq!(*header, VnetHdr::default());
        let inner = Inner::parse(packet).unwrap();
        let sum = wire::pseudo_sum(&inner, packet.len() - 20);
        assert_eq!(fold(sum_words(sum, &packet[20..])), 0xffff);
        assert_eq!(fold(sum_words(0, &packet[..20])), 0xffff);
    }
}

#[test]
fn small_datagrams_of_one_flow_are_joined() {
    let mut world = World::connected(true);
    for n in 0..10u8 {
        world.pod_sends(0, open(0, 0, 6), &udp(pod4(1), pod4(2), &[n; 64]));
    }
    world.settle();
    let (_, header, packet) = &world.ports[1].written[0];
    assert_eq!((header.gso_type, header.gso_size, packet.len()), (GSO_UDP_L4, 64, 28 + 640));
    assert_eq!(world.ports[1].written.len(), 1);
}

#[test]
fn a_peer_sends_only_from_its_prefix_and_only_to_us() {
    let mut world = World::connected(true);
    for source in ["100.64.3.2", "100.64.2.2", "8.8.8.8", "127.0.0.1", "100.64.2.1"] {
        world.hostile_peer(Meta::WHOLE, &udp(source.parse().unwrap(), pod4(2), b"x"));
    }
    assert_eq!(world.drops(1, DropReason::PeerSource), 5);
    for to in ["100.64.3.2", "100.64.1.2", "8.8.8.8"] {
        world.hostile_peer(Meta::WHOLE, &udp(pod4(1), to.parse().unwrap(), b"x"));
    }
    assert_eq!(world.drops(1, DropReason::NotMine), 3, "never forwarded again");
    for to in ["127.0.0.1", "224.0.0.251", "255.255.255.255"] {
        world.hostile_peer(Meta::WHOLE, &udp(pod4(1), to.parse().unwrap(), b"x"));
    }
    assert_eq!(world.drops(1, DropReason::Martian), 3);
    assert!(world.ports[1].written.is_empty());
}

#[test]
fn a_peers_metadata_is_not_believed() {
    let mut world = World::connected(true);
    let meta = |part, partial_checksum, index| Meta { part, partial_checksum, frame: 3, index };
    // "TCP segments" that are UDP, ICMP, a later fragment, a cut-off header, or a lie about the length.
    world.hostile_peer(meta(Part::Tcp, true, 0), &udp(pod4(1), pod4(2), b"x"));
    world.hostile_peer(
        meta(Part::Tcp, true, 0),
        &ipv4(pod4(1), pod4(2), PROTOCOL_ICMP, &[8, 0, 0, 0]),
    );
    world.hostile_peer(meta(Part::Tcp, true, 0), &ipv4(pod4(1), pod4(2), PROTOCOL_TCP, &[0; 5]));
    let mut fragment = tcp(pod4(1), pod4(2), 10);
    fragment[7] = 1;
    fill_ipv4_checksum(&mut fragment, 20);
    world.hostile_peer(meta(Part::Tcp, true, 0), &fragment);
    let mut long = tcp(pod4(1), pod4(2), 10);
    long[3] += 1;
    world.hostile_peer(meta(Part::Tcp, true, 0), &long);
    assert_eq!(world.drops(1, DropReason::BadOffload), 3, "ICMP, cut off, fragment");
    assert_eq!(world.drops(1, DropReason::Malformed), 1);
    // The UDP packet went through as what it is.
    assert_eq!(world.ports[1].written.len(), 1);
    assert_eq!(world.ports[1].written[0].1.gso_type, GSO_NONE);
    // Segments that do not follow each other are not joined, whatever their index says.
    world.ports[1].written.clear();
    for index in 0..3 {
        let packet = tcp(pod4(1), pod4(2), 100);
        world.engines[0].seal_to(
            world.now_us,
            PeerId(0),
            meta(Part::Tcp, true, index),
            packet.len(),
            &mut world.ports[0],
            |out| {
                out.copy_from_slice(&packet);
                Some(())
            },
        );
    }
    world.settle();
    assert_eq!(world.ports[1].written.len(), 3);
}

#[test]
fn bad_transport_checksums_are_passed_unmarked() {
    let mut world = World::connected(true);
    let mut bad = udp(pod4(1), pod4(2), b"x");
    bad[26..28].copy_from_slice(&[0xde, 0xad]);
    world.pod_sends(0, VnetHdr::default(), &bad);
    world.settle();
    let (_, header, packet) = &world.ports[1].written[0];
    assert_eq!(*header, VnetHdr::default(), "the receiver's kernel judges");
    assert_eq!(packet[26..28], [0xde, 0xad]);
}

#[test]
fn a_pods_lies_to_its_tun_are_refused() {
    let mut world = World::connected(true);
    let good = tcp(pod4(1), pod4(2), 5_000);
    for header in [
        open(GSO_TCPV4, 0, 16),
        open(3, 1_000, 16),
        open(GSO_UDP_L4, 1_000, 16),
        open(GSO_TCPV4, 1_361, 16),
        open(0x55, 1_000, 16),
    ] {
        world.pod_sends(0, header, &good);
    }
    let small = udp(pod4(1), pod4(2), b"x");
    world.pod_sends(0, VnetHdr { checksum_start: 9_000, ..open(0, 0, 6) }, &small);
    assert_eq!(world.drops(0, DropReason::BadOffload), 6);
    for len in 0..28 {
        world.pod_sends(0, VnetHdr::default(), &small[..len]);
    }
    assert_eq!(world.drops(0, DropReason::Malformed), 28);
    world.settle();
    assert!(world.ports[1].written.is_empty());
}

#[test]
fn extension_headers_are_not_taken_for_tcp() {
    let mut world = World::connected(true);
    let (source, to) = ("fd00:1:2:0:0:1:0:102", "fd00:1:2:0:0:2:0:102");
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, 0, 64];
    for addr in [source, to] {
        packet.extend_from_slice(&addr.parse::<std::net::Ipv6Addr>().unwrap().octets());
    }
    // Hop-by-hop options, then UDP whose checksum is open.
    packet.extend_from_slice(&[17, 0, 1, 4, 0, 0, 0, 0]);
    packet.extend_from_slice(&[0x30, 0x39, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
    let pseudo: u64 = sum_words(0, &packet[8..40]) + 12 + 17;
    packet[54..56].copy_from_slice(&fold(pseudo).to_be_bytes());
    world.pod_sends(0, VnetHdr { checksum_start: 48, ..open(0, 0, 6) }, &packet);
    world.settle();
    let (_, header, arrived) = &world.ports[1].written[0];
    assert_eq!(*header, VnetHdr::default());
    assert_eq!(fold(sum_words(pseudo, &arrived[48..])), 0xffff, "finished before it left");
}

#[test]
fn errors_to_senders_are_limited() {
    let mut world = World::connected(true);
    for port in 0..500u16 {
        let [p0, p1] = port.to_be_bytes();
        let to = Ipv4Addr::new(100, 64, 1, 3 + (port % 200) as u8);
        world.pod_sends(
            0,
            VnetHdr::default(),
            &ipv4(
                pod4(1),
                to,
                PROTOCOL_TCP,
                &[9, 9, p0, p1, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0],
            ),
        );
    }
    let stats = world.counters[0].snapshot();
    assert_eq!(stats.drops(DropReason::NoPod), 500);
    assert_eq!(stats.count(Count::IcmpSent), u64::from(icmp::ERRORS_BURST));
    assert_eq!(stats.count(Count::IcmpLimited), 500 - u64::from(icmp::ERRORS_BURST));
    let (to, _, error) = &world.ports[0].written[0];
    assert_eq!((*to, error[20], error[21]), (POD, 3, 1), "host unreachable, from the gateway");
    assert_eq!(error[12..16], [100, 64, 1, 1]);
}

#[test]
fn ttl_ends_at_the_first_node() {
    let mut world = World::connected(true);
    for ttl in [0, 1] {
        let mut packet = udp(pod4(1), pod4(2), b"x");
        packet[8] = ttl;
        fill_ipv4_checksum(&mut packet, 20);
        world.pod_sends(0, VnetHdr::default(), &packet);
    }
    assert_eq!(world.drops(0, DropReason::TtlExceeded), 2);
    assert_eq!(world.ports[0].written[0].2[20], 11, "time exceeded");
}

#[test]
fn a_silent_peer_holds_a_bounded_queue_and_nothing_grows() {
    let mut world = World::connected(true);
    for _ in 0..1_000 {
        world.pod_sends(0, VnetHdr::default(), &udp(pod4(1), pod4(3), &[0; 1_000]));
    }
    assert_eq!(world.drops(0, DropReason::PendingFull), 1_000 - PENDING_MAX as u64);
    for _ in 0..400 {
        world.now_us += 100_000;
        world.settle();
    }
    assert_eq!(world.drops(0, DropReason::NoSession), PENDING_MAX as u64);
}

#[test]
fn a_full_socket_loses_nothing_that_was_batched() {
    let mut world = World::connected(true);
    world.pod_sends(0, VnetHdr::default(), &udp(pod4(1), pod4(2), b"waits"));
    world.ports[0].full = true;
    assert!(!world.engines[0].flush(&mut world.ports[0]));
    assert!(world.engines[0].blocked);
    world.ports[0].full = false;
    assert!(world.engines[0].flush(&mut world.ports[0]));
    assert!(!world.engines[0].blocked);
    world.settle();
    assert_eq!(world.ports[1].written.len(), 1);
}

#[test]
fn pods_are_told_of_a_narrow_underlay() {
    let mut world = World::connected(true);
    world.ports[0].narrow = 1_400;
    let large = tcp(pod4(1), pod4(2), 40 * 1_360);
    world.pod_sends(0, open(GSO_TCPV4, 1_360, 16), &large);
    world.settle();
    assert_eq!(world.drops(0, DropReason::UnderlayMtu), 40, "the first are lost");
    world.pod_sends(0, open(GSO_TCPV4, 1_360, 16), &large);
    let (to, _, error) = &world.ports[0].written[0];
    assert_eq!(
        (*to, error[20], error[21], &error[26..28]),
        (POD, 3, 4, &1_280u16.to_be_bytes()[..])
    );
    world.pod_sends(0, open(GSO_TCPV4, 1_240, 16), &large);
    world.settle();
    assert_eq!(world.ports[1].written.len(), 1, "smaller ones pass");
    // The underlay was mended; after a while it is tried again.
    world.ports[0].narrow = 0;
    world.now_us += NARROW_US + 1;
    world.pod_sends(0, open(GSO_TCPV4, 1_360, 16), &large);
    world.settle();
    assert_eq!(world.drops(0, DropReason::TooBig), 1);
}

#[test]
fn truncated_datagrams_are_dropped_before_crypto() {
    let mut world = World::connected(true);
    let before = world.total_drops(1);
    for len in 0..DATA_OVERHEAD {
        let mut bytes = vec![4, 1, 0, 0];
        bytes.resize(len, 0);
        bytes.truncate(len);
        let (engine, ports) = (&mut world.engines[1], &mut world.ports[1]);
        engine.udp_datagrams(world.now_us, underlay(1), &mut bytes, len, ports);
    }
    assert_eq!(
        world.drops(1, DropReason::OuterMalformed),
        DATA_OVERHEAD as u64 - 1,
        "an empty one is none"
    );
    assert_eq!(world.total_drops(1) - before, DATA_OVERHEAD as u64 - 1);
}

proptest! {
    /// A pod may write anything into its TUN.
    #[test]
    fn any_pod_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..2_000), shape: bool, gso_type in 0u8..8, gso_size in 0u16..1_500) {
        let mut world = World::connected(true);
        if shape && bytes.len() >= 50 {
            // Mostly right, so that the depths are reached.
            let len = (bytes.len() - 10) as u16;
            bytes[0] = 1;
            bytes[1] = gso_type;
            bytes[4..6].copy_from_slice(&gso_size.to_ne_bytes());
            bytes[6..8].copy_from_slice(&20u16.to_ne_bytes());
            let tcp = bytes[19] & 1 == 0;
            bytes[8..10].copy_from_slice(&(if tcp { 16u16 } else { 6 }).to_ne_bytes());
            bytes[10] = 0x45;
            bytes[12..14].copy_from_slice(&len.to_be_bytes());
            bytes[16..18].fill(0);
            bytes[19] = if tcp { 6 } else { 17 };
            bytes[22..26].copy_from_slice(&pod4(1).octets());
            bytes[26..30].copy_from_slice(&pod4(2).octets());
        }
        let (engine, ports) = (&mut world.engines[0], &mut world.ports[0]);
        engine.tun_packet(world.now_us, POD, true, &mut bytes, ports);
        world.settle();
        for (_, _, packet) in &world.ports[1].written {
            let inner = Inner::parse(packet).expect("only valid packets are written");
            prop_assert_eq!(inner.source, IpAddr::V4(pod4(1)));
        }
    }

    /// A peer may seal anything.
    #[test]
    fn any_peer_bytes(bytes in proptest::collection::vec(any::<u8>(), 1..1_500), kind: u8, frame: u8, index: u16, shape: bool) {
        let mut world = World::connected(true);
        let mut bytes = bytes;
        if shape && bytes.len() >= 40 {
            let len = bytes.len() as u16;
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = if bytes[9] & 1 == 0 { 6 } else { 17 };
            bytes[12..16].copy_from_slice(&pod4(1).octets());
            bytes[16..20].copy_from_slice(&pod4(2).octets());
        }
        let [i0, i1] = index.to_le_bytes();
        if let Some(meta) = Meta::parse([kind, frame, i0, i1]) {
            for _ in 0..3 {
                world.hostile_peer(meta, &bytes);
            }
        }
        for (to, _, packet) in &world.ports[1].written {
            prop_assert_eq!(*to, POD);
            let inner = Inner::parse(packet).expect("only valid packets are written");
            prop_assert_eq!(inner.source, IpAddr::V4(pod4(1)));
        }
    }
}
