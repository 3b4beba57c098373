use proptest::prelude::*;

use super::icmp::Reason;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::wire::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP, fold, sum_words};

const FLOCK6: &str = "fd00:1:2::/48";

fn node6(n: u16) -> Prefix6 {
    format!("fd00:1:2:0:0:{n:x}::/96").parse().unwrap()
}

fn pod(node: u16, host: u8) -> PodAddr {
    let p4 = Prefix4::node(node).unwrap();
    PodAddr {
        ip4: Ipv4Addr::from_bits(p4.network().to_bits() | u32::from(host)),
        ip6: Ipv6Addr::from_bits(node6(node).network().to_bits() | 0x700 | u128::from(host)),
    }
}

fn own(egress: bool) -> OwnPrefixes {
    OwnPrefixes {
        prefix4: Prefix4::node(1),
        prefix6: node6(1),
        overlay6: FLOCK6.parse().unwrap(),
        egress,
    }
}

fn path(egress: bool) -> Path {
    let peers = [2u16, 3].map(|n| PeerPrefixes {
        id: PeerId(n),
        prefix4: Prefix4::node(n),
        prefix6: node6(n),
    });
    let mut pods = Pods::default();
    pods.insert(pod(1, 2)).unwrap();
    pods.insert(pod(1, 3)).unwrap();
    Path { routes: Routes::new(own(egress), &peers), pods, host: true, mtu: 1_400 }
}

fn inner(source: &str, destination: &str) -> Inner {
    Inner {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        header_len: 20,
        protocol: PROTOCOL_UDP,
        ttl: 64,
        later_fragment: false,
        fragment: false,
    }
}

fn decide(from: End, source: &str, destination: &str) -> Verdict {
    path(false).decide(from, &inner(source, destination), 100, false)
}

const POD: End = End::Pod(PodId(2));
const PEER: End = End::Peer(PeerId(2));

#[test]
fn pods_reach_pods_hosts_and_peers_in_both_families() {
    for (to, end) in [
        ("100.64.1.3", End::Pod(PodId(3))),
        ("100.64.1.1", End::Host),
        ("100.64.2.9", End::Peer(PeerId(2))),
        ("100.64.3.1", End::Peer(PeerId(3))),
    ] {
        assert_eq!(decide(POD, "100.64.1.2", to), Verdict::Forward(end), "{to}");
    }
    for (to, end) in [
        ("fd00:1:2:0:0:1:0:703", End::Pod(PodId(3))),
        ("fd00:1:2:0:0:1:0:1", End::Host),
        ("fd00:1:2:0:0:2:9:9", End::Peer(PeerId(2))),
    ] {
        assert_eq!(decide(POD, "fd00:1:2:0:0:1:0:702", to), Verdict::Forward(end), "{to}");
    }
    assert_eq!(
        decide(End::Host, "100.64.1.1", "100.64.3.3"),
        Verdict::Forward(End::Peer(PeerId(3)))
    );
    assert_eq!(decide(End::Host, "100.64.1.1", "100.64.1.2"), Verdict::Forward(POD));
    assert_eq!(decide(PEER, "100.64.2.77", "100.64.1.2"), Verdict::Forward(POD));
    assert_eq!(decide(PEER, "100.64.2.1", "100.64.1.1"), Verdict::Forward(End::Host));
}

#[test]
fn sources_are_bound_to_their_sender() {
    for source in [
        "100.64.1.3",
        "100.64.2.2",
        "8.8.8.8",
        "100.64.1.1",
        "fd00:1:2:0:0:1:0:703",
        "fd00:1:2:0:0:1:0:2",
    ] {
        let to = if source.contains(':') { "fd00:1:2:0:0:2::2" } else { "100.64.2.2" };
        assert_eq!(decide(POD, source, to), Verdict::Drop(DropReason::SpoofedSource), "{source}");
    }
    for source in ["100.64.3.2", "100.64.1.2", "10.0.0.1", "127.0.0.1", "100.65.2.1"] {
        assert_eq!(
            decide(PEER, source, "100.64.1.2"),
            Verdict::Drop(DropReason::PeerSource),
            "{source}"
        );
    }
    for source in ["fd00:1:2:0:0:3::1", "fd00:1:2:0:0:1:0:702", "::1", "fe80::1"] {
        let got = decide(PEER, source, "fd00:1:2:0:0:1:0:702");
        assert_eq!(got, Verdict::Drop(DropReason::PeerSource), "{source}");
    }
    assert_eq!(
        decide(End::Host, "10.0.0.1", "100.64.2.2"),
        Verdict::Drop(DropReason::SpoofedSource)
    );
    assert_eq!(decide(POD, "fe80::1", "ff02::2"), Verdict::Drop(DropReason::Martian));
    assert_eq!(decide(POD, "0.0.0.0", "255.255.255.255"), Verdict::Drop(DropReason::Martian));
    assert_eq!(
        decide(End::Pod(PodId(9)), "100.64.1.9", "100.64.2.2"),
        Verdict::Drop(DropReason::SpoofedSource)
    );
}

#[test]
fn what_came_from_a_peer_is_not_forwarded_again() {
    for to in ["100.64.3.2", "100.64.2.2", "8.8.8.8", "100.64.9.9"] {
        assert_eq!(decide(PEER, "100.64.2.2", to), Verdict::Drop(DropReason::NotMine), "{to}");
    }
    let got = path(true).decide(PEER, &inner("100.64.2.2", "8.8.8.8"), 100, false);
    assert_eq!(got, Verdict::Drop(DropReason::NotMine), "no exit for others");
}

#[test]
fn martian_destinations_are_dropped() {
    for to in
        ["127.0.0.1", "224.0.0.251", "255.255.255.255", "169.254.169.254", "0.0.0.0", "240.1.1.1"]
    {
        assert_eq!(decide(POD, "100.64.1.2", to), Verdict::Drop(DropReason::Martian), "{to}");
        assert_eq!(decide(PEER, "100.64.2.2", to), Verdict::Drop(DropReason::Martian), "{to}");
    }
}

#[test]
fn senders_learn_why() {
    let refused = |why, reason| Verdict::Refuse(why, reason);
    assert_eq!(
        decide(POD, "100.64.1.2", "100.64.1.200"),
        refused(DropReason::NoPod, Reason::NoHost)
    );
    assert_eq!(
        decide(PEER, "100.64.2.2", "100.64.1.200"),
        refused(DropReason::NoPod, Reason::NoHost)
    );
    // The right host number under an old allocation.
    let stale = decide(PEER, "fd00:1:2:0:0:2::2", "fd00:1:2:0:0:1:0:602");
    assert_eq!(stale, refused(DropReason::NoPod, Reason::NoHost));
    assert_eq!(
        decide(POD, "100.64.1.2", "100.64.9.2"),
        refused(DropReason::NoPeer, Reason::NoRoute)
    );
    assert_eq!(
        decide(POD, "100.64.1.2", "8.8.8.8"),
        refused(DropReason::NoEgress, Reason::Prohibited)
    );
    let out = path(true).decide(POD, &inner("100.64.1.2", "8.8.8.8"), 100, false);
    assert_eq!(out, Verdict::Forward(End::Host));
    let back = path(true).decide(End::Host, &inner("8.8.8.8", "100.64.1.2"), 100, false);
    assert_eq!(back, Verdict::Forward(POD));

    let mut old = inner("100.64.1.2", "100.64.2.2");
    old.ttl = 1;
    let got = path(false).decide(POD, &old, 100, false);
    assert_eq!(got, refused(DropReason::TtlExceeded, Reason::TimeExceeded));
    let big = inner("100.64.1.2", "100.64.2.2");
    let got = path(false).decide(POD, &big, 1_401, false);
    assert_eq!(got, refused(DropReason::TooBig, Reason::TooBig { mtu: 1_400 }));
    assert_eq!(path(false).decide(POD, &big, 60_000, true), Verdict::Forward(PEER));
}

#[test]
fn contested_and_odd_prefixes_are_left_out() {
    let peer = |id, p4: &str, p6: &str| PeerPrefixes {
        id: PeerId(id),
        prefix4: Some(p4.parse().unwrap()),
        prefix6: p6.parse().unwrap(),
    };
    let routes = Routes::new(
        own(false),
        &[
            peer(1, "100.64.5.0/24", "fd00:1:2:0:0:5::/96"),
            peer(2, "100.64.5.0/24", "fd00:1:2:0:0:5::/96"),
            peer(3, "100.64.1.0/24", "fd00:1:2:0:0:1::/96"),
            peer(4, "100.64.0.0/10", "fd00:1:2::/48"),
            peer(5, "100.64.6.0/25", "fd00:9:9:0:0:5::/96"),
            peer(6, "10.0.0.0/24", "::/0"),
        ],
    );
    assert_eq!(routes.peer_of("100.64.5.9".parse().unwrap()), Some(PeerId(1)));
    assert_eq!(routes.peer_of("fd00:1:2:0:0:5::9".parse().unwrap()), Some(PeerId(1)));
    for addr in [
        "100.64.1.9",
        "100.64.6.9",
        "10.0.0.1",
        "100.64.0.1",
        "fd00:1:2:0:0:1::9",
        "fd00:9:9:0:0:5::1",
        "::1",
    ] {
        assert_eq!(routes.peer_of(addr.parse().unwrap()), None, "{addr}");
    }
}

#[test]
fn pods_come_and_go() {
    let mut pods = Pods::default();
    assert_eq!(pods.insert(pod(1, 1)), None, "the gateway's");
    let odd = PodAddr { ip4: pod(1, 4).ip4, ip6: pod(1, 5).ip6 };
    assert_eq!(pods.insert(odd), None);
    let id = pods.insert(pod(1, 4)).unwrap();
    assert_eq!(pods.find(pod(1, 4).ip6.into()), Some(id));
    assert_eq!(pods.find(pod(2, 4).ip4.into()), None, "another node's");
    assert_eq!(pods.remove(pod(1, 4).ip6.into()), Some(id));
    assert_eq!(pods.find(pod(1, 4).ip4.into()), None);
}

fn packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (s, d): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut p;
    match (s, d) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let [l0, l1] = (20 + payload.len() as u16).to_be_bytes();
            p = vec![0x45, 0, l0, l1, 0, 0, 0, 0, 64, protocol, 0, 0];
            p.extend_from_slice(&s.octets());
            p.extend_from_slice(&d.octets());
            fill_checksum(&mut p);
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let [l0, l1] = (payload.len() as u16).to_be_bytes();
            p = vec![0x60, 0, 0, 0, l0, l1, protocol, 64];
            p.extend_from_slice(&s.octets());
            p.extend_from_slice(&d.octets());
        }
        _ => panic!("mixed families"),
    }
    p.extend_from_slice(payload);
    p
}

fn fill_checksum(p: &mut [u8]) {
    wire::fill_ipv4_checksum(p, 20);
}

#[test]
fn icmp_errors_are_well_formed() {
    for (source, to, gateway, body) in [
        ("100.64.1.2", "100.64.1.9", "100.64.1.1", 2_000),
        ("fd00::2", "fd00::9", "fd00::1", 2_000),
        ("100.64.1.2", "100.64.1.9", "100.64.1.1", 3),
    ] {
        let packet = packet(source, to, PROTOCOL_TCP, &vec![7; body]);
        let inner = Inner::parse(&packet).unwrap();
        let mut out = Vec::new();
        let reply =
            icmp::error(Reason::NoHost, &inner, &packet, gateway.parse().unwrap(), &mut out);
        let reply = reply.expect("an error");
        let parsed = Inner::parse(reply).expect("valid");
        assert_eq!(parsed.source, gateway.parse::<IpAddr>().unwrap());
        assert_eq!(parsed.destination, inner.source);
        let pseudo = if parsed.is_ipv4() { 0 } else { wire::pseudo_sum(&parsed, reply.len() - 40) };
        assert_eq!(fold(sum_words(pseudo, &reply[parsed.header_len..])), 0xffff);
        assert!(reply.len() <= if parsed.is_ipv4() { 576 } else { 1_280 });
        // No error about an error.
        let mut again = Vec::new();
        let copy = reply.to_vec();
        assert!(icmp::error(Reason::NoHost, &parsed, &copy, inner.source, &mut again).is_none());
    }
}

#[test]
fn pings_get_errors_and_fragments_do_not() {
    let mut ping = packet("100.64.1.2", "100.64.1.9", PROTOCOL_ICMP, &[8, 0, 0, 0, 0, 0, 0, 0]);
    let gateway: IpAddr = "100.64.1.1".parse().unwrap();
    let mut out = Vec::new();
    let inner = Inner::parse(&ping).unwrap();
    assert!(icmp::error(Reason::NoHost, &inner, &ping, gateway, &mut out).is_some());
    ping[7] = 9;
    fill_checksum(&mut ping);
    let inner = Inner::parse(&ping).unwrap();
    assert!(inner.later_fragment);
    assert!(icmp::error(Reason::NoHost, &inner, &ping, gateway, &mut out).is_none());
}

proptest! {
    /// No packet from anyone is passed on with a source that is not the sender's.
    #[test]
    fn forwarded_sources_are_true(from in 0u8..4, s: [u8; 4], d: [u8; 4], narrow: bool, ttl: u8, len in 20usize..3_000) {
        let near = |a: [u8; 4]| if narrow { [100, 64, a[2] % 5, a[3] % 6] } else { a };
        let (s, d) = (Ipv4Addr::from(near(s)), Ipv4Addr::from(near(d)));
        let from = match from { 0 => POD, 1 => End::Host, 2 => PEER, _ => End::Peer(PeerId(3)) };
        let inner = Inner { source: s.into(), destination: d.into(), ttl, ..inner("1.1.1.1", "1.1.1.1") };
        if let Verdict::Forward(to) = path(false).decide(from, &inner, len, false) {
            let true_source = match from {
                End::Pod(_) => s == pod(1, 2).ip4,
                End::Host => s == Prefix4::node(1).unwrap().gateway(),
                End::Peer(PeerId(n)) => Prefix4::node(n).unwrap().contains(s),
            };
            prop_assert!(true_source);
            prop_assert!(!(matches!(from, End::Peer(_)) && matches!(to, End::Peer(_))));
        }
    }
}
