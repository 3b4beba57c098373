//! Two engines joined in memory, and bytes of a fuzzer between them. They panic if an invariant breaks.

use std::net::Ipv4Addr;

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::*;
use crate::addr::{Prefix4, Prefix6};
use crate::ipam::PodAddr;
use crate::keys::{Psk, SecretKey};
use crate::path::{OwnPrefixes, PeerPrefixes, PodId, Pods, Routes};
use crate::session::Identity;

const MTU: u16 = 1_400;
const POD: End = End::Pod(PodId(2));
/// Steps of one run.
const OPS_MAX: usize = 64;

/// Ends that keep what comes out.
#[derive(Default)]
pub(super) struct Wires {
    pub(super) sent: Vec<(SocketAddr, Vec<u8>, usize)>,
    pub(super) written: Vec<(End, VnetHdr, Vec<u8>)>,
    pub(super) offload: bool,
    /// The socket takes nothing.
    pub(super) full: bool,
    /// Largest datagram, if not 0.
    pub(super) narrow: usize,
}

impl Ports for Wires {
    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent {
        assert!(segment > 0 && bytes.len() <= BATCH_MAX_BYTES);
        if self.full {
            return Sent::Full;
        }
        if self.narrow != 0 && segment.min(bytes.len()) > self.narrow {
            return Sent::TooBig;
        }
        self.sent.push((to, bytes.to_vec(), segment));
        Sent::Ok
    }

    fn write(
        &mut self,
        to: End,
        header: &VnetHdr,
        head: &[u8],
        payloads: &[Range<usize>],
        buffer: &[u8],
    ) -> bool {
        let mut packet = head.to_vec();
        payloads.iter().for_each(|r| packet.extend_from_slice(&buffer[r.clone()]));
        self.written.push((to, *header, packet));
        true
    }

    fn offload(&self, _to: End) -> bool {
        self.offload
    }
}

fn node6(n: u16) -> Prefix6 {
    format!("fd00:1:2:0:0:{n:x}::/96").parse().expect("a prefix")
}

fn underlay(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 7401))
}

fn pod(n: u16) -> PodAddr {
    let ip6 = std::net::Ipv6Addr::new(0xfd00, 1, 2, 0, 0, n, 0, 0x102);
    PodAddr { ip4: Ipv4Addr::new(100, 64, n as u8, 2), ip6 }
}

/// Nodes 1 and 2 with a pod each, and a session between the two.
struct Pair {
    now_us: u64,
    engines: [Engine<Xoshiro256PlusPlus>; 2],
    wires: [Wires; 2],
}

impl Pair {
    fn new(offload: bool) -> Self {
        let keys = [1u8, 2].map(|n| SecretKey::from_bytes([n; 32]));
        let engine = |at: usize| {
            let (me, other) = (at as u16 + 1, 2 - at as u16);
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(at as u64);
            let (key, psk) = (keys[at].clone(), Psk::from_bytes([9; 32]));
            let identity = Identity { key, psk, boot: 1, aes: true };
            let mut sessions = Sessions::new(identity, 0, &mut rng);
            let ids = sessions.set_peers(&[(keys[1 - at].public_key(), underlay(other))]);
            let id = ids[0].expect("there is room");
            let peer = PeerPrefixes { id, prefix4: Prefix4::node(other), prefix6: node6(other) };
            let own = OwnPrefixes {
                prefix4: Prefix4::node(me),
                prefix6: node6(me),
                overlay6: "fd00:1:2::/48".parse().expect("a prefix"),
                egress: false,
            };
            let mut pods = Pods::default();
            pods.insert(pod(me)).expect("there is room");
            let path = Path { routes: Routes::new(own, &[peer]), pods, host: true, mtu: MTU };
            Engine::new(path, sessions, Arc::new(Counters::default()), rng, 0)
        };
        let wires = [0, 1].map(|_| Wires { offload, ..Wires::default() });
        let mut pair = Self { now_us: 1_000, engines: [engine(0), engine(1)], wires };
        pair.hello();
        pair
    }

    /// A good packet from pod to pod gets through.
    fn hello(&mut self) {
        let mut packet = vec![0x45, 0, 0, 33, 0, 7, 0x40, 0, 64, wire::PROTOCOL_UDP, 0, 0];
        packet.extend_from_slice(&pod(1).ip4.octets());
        packet.extend_from_slice(&pod(2).ip4.octets());
        packet.extend_from_slice(&[0x30, 0x39, 0, 53, 0, 13, 0, 0]);
        packet.extend_from_slice(b"hello");
        wire::fill_ipv4_checksum(&mut packet, 20);
        self.wires[1].written.clear();
        self.tun(VnetHdr::default(), &packet);
        self.settle();
        let got =
            self.wires[1].written.iter().any(|(to, _, p)| *to == POD && p.ends_with(b"hello"));
        assert!(got, "the session carries");
    }

    fn tun(&mut self, header: VnetHdr, packet: &[u8]) {
        let mut bytes = header.emit().to_vec();
        bytes.extend_from_slice(packet);
        self.engines[0].tun_packet(self.now_us, POD, true, &mut bytes, &mut self.wires[0]);
    }

    /// Carries datagrams until nothing moves.
    fn settle(&mut self) {
        loop {
            for at in 0..2 {
                self.engines[at].flush(&mut self.wires[at]);
                self.engines[at].timer(self.now_us, &mut self.wires[at]);
            }
            let moved = [0, 1].map(|at| std::mem::take(&mut self.wires[at].sent));
            if moved.iter().all(Vec::is_empty) {
                return;
            }
            for (from, sent) in moved.into_iter().enumerate() {
                let to = 1 - from;
                for (addr, mut bytes, segment) in sent {
                    assert_eq!(addr, underlay(to as u16 + 1), "to whom nobody knows");
                    let addr = underlay(from as u16 + 1);
                    let wires = &mut self.wires[to];
                    self.engines[to].udp_datagrams(self.now_us, addr, &mut bytes, segment, wires);
                }
            }
        }
    }

    /// What came out at node 2 is for its pod or itself, and from where node 1 may send.
    fn check(&mut self) {
        for (to, _, packet) in std::mem::take(&mut self.wires[1].written) {
            let inner = Inner::parse(&packet).expect("a whole packet");
            let from = match inner.source {
                IpAddr::V4(ip) => Prefix4::node(1).is_some_and(|p| p.contains(ip)),
                IpAddr::V6(ip) => node6(1).contains(ip),
            };
            assert!(from, "node 1 speaks as {}", inner.source);
            match to {
                POD => {
                    let own = [IpAddr::V4(pod(2).ip4), IpAddr::V6(pod(2).ip6)];
                    assert!(own.contains(&inner.destination), "for {}", inner.destination);
                }
                End::Host => {}
                to => panic!("written to {to:?}"),
            }
        }
    }
}

/// Anything from an address that may be a peer's: nothing is answered, nothing comes out, and the session goes on.
pub fn datagram(bytes: &[u8]) {
    let mut pair = Pair::new(true);
    let Some((how, bytes)) = bytes.split_first() else { return };
    let from = underlay(u16::from(how % 4));
    let segment = if how & 0x40 == 0 { bytes.len().max(1) } else { usize::from(*how) };
    pair.wires[1].written.clear();
    let mut buffer = bytes.to_vec();
    let wires = &mut pair.wires[1];
    pair.engines[1].udp_datagrams(pair.now_us, from, &mut buffer, segment, wires);
    assert!(pair.wires[1].sent.is_empty(), "a stranger was answered");
    assert!(pair.wires[1].written.is_empty(), "a stranger's packet came out");
    pair.hello();
}

/// Runs of: a length byte, what to do, and so many bytes of a packet; from a pod, or from a peer that holds the key and
/// checks nothing.
pub fn packet(bytes: &[u8]) {
    let Some((flags, mut rest)) = bytes.split_first() else { return };
    let mut pair = Pair::new(flags & 1 == 0);
    pair.wires[0].narrow = if flags & 2 != 0 { 1_300 } else { 0 };
    for _ in 0..OPS_MAX {
        let Some(([what, len, repeat], tail)) = rest.split_first_chunk::<3>() else { break };
        let (piece, tail) = tail.split_at(usize::from(*len).min(tail.len()));
        rest = tail;
        let mut packet = piece.to_vec();
        // Longer than a fuzzer likes to write.
        packet.resize(piece.len() + usize::from(*repeat) * 64, 0x55);
        if what & 0x80 != 0 {
            right_lengths(&mut packet);
        }
        let (head, body) = packet.split_at(packet.len().min(META_LEN));
        match what % 4 {
            0 => {
                let mut bytes = packet.clone();
                let wires = &mut pair.wires[0];
                pair.engines[0].tun_packet(pair.now_us, POD, true, &mut bytes, wires);
            }
            1 => {
                let large = VnetHdr {
                    needs_checksum: true,
                    gso_type: if what & 4 == 0 { wire::GSO_TCPV4 } else { wire::GSO_UDP_L4 },
                    header_len: 0,
                    gso_size: u16::from(*len) * 8,
                    checksum_start: 20,
                    checksum_offset: if what & 4 == 0 { 16 } else { 6 },
                };
                pair.tun(large, &packet);
            }
            2 => pair.now_us += u64::from(*len) * 100_000,
            _ => {
                let meta: [u8; META_LEN] = head.try_into().unwrap_or_default();
                let meta = Meta::parse(meta).unwrap_or(Meta::WHOLE);
                let (now_us, wires) = (pair.now_us, &mut pair.wires[0]);
                pair.engines[0].seal_to(now_us, PeerId(0), meta, body.len(), wires, |out| {
                    out.copy_from_slice(body);
                    Some(())
                });
            }
        }
        pair.settle();
        pair.check();
    }
    pair.wires[0].narrow = 0;
    pair.now_us += 10_000_000;
    pair.hello();
}

/// Version, lengths and addresses as a pod of node 1 would write them to one of node 2: past the first checks.
fn right_lengths(packet: &mut [u8]) {
    let len = packet.len() as u16;
    if packet.len() >= 20 && packet[0] & 1 == 0 {
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet[12..16].copy_from_slice(&pod(1).ip4.octets());
        packet[16..20].copy_from_slice(&pod(2).ip4.octets());
        wire::fill_ipv4_checksum(packet, 20);
    } else if packet.len() >= 40 {
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        packet[8..24].copy_from_slice(&pod(1).ip6.octets());
        packet[24..40].copy_from_slice(&pod(2).ip6.octets());
    }
}
