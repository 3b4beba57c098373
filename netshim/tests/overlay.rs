//! Whole overlays between network namespaces, on the real kernel. Needs root and `ip`.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netshim::DropReason;
use netshim::addr::{Prefix4, Prefix6};
use netshim::ipam;
use netshim::overlay::Gso;
use netshim::podnet::{self, HostConfig};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use ring::digest::{Context, SHA256};

mod support;

use support::*;

/// Sends `bytes` over TCP from one namespace to another and compares digests. Returns the seconds it took.
fn transfer(from: &OwnedFd, to: &OwnedFd, addr: IpAddr, bytes: usize) -> f64 {
    let (tell, told) = mpsc::channel();
    let server = spawn_inside(to, move || {
        let listener = TcpListener::bind((addr, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut digest, mut total, mut buf) = (Context::new(&SHA256), 0, vec![0; 1 << 16]);
        while total < bytes {
            let len = stream.read(&mut buf).expect("data goes on");
            assert!(len > 0, "closed after {total} bytes");
            digest.update(&buf[..len]);
            total += len;
        }
        stream.write_all(digest.finish().as_ref()).unwrap();
    });
    let addr: SocketAddr = told.recv().unwrap();
    let start = Instant::now();
    let same = inside(from, move || {
        let mut stream = TcpStream::connect_timeout(&addr, Duration::from_secs(5)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut digest, mut sent, mut state) = (Context::new(&SHA256), 0, 1u64);
        let mut buf = vec![0; 100_000];
        while sent < bytes {
            for chunk in buf.chunks_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
            }
            let len = buf.len().min(bytes - sent);
            stream.write_all(&buf[..len]).unwrap();
            digest.update(&buf[..len]);
            sent += len;
        }
        let mut theirs = [0; 32];
        stream.read_exact(&mut theirs).unwrap();
        theirs == digest.finish().as_ref()
    });
    server.join().unwrap();
    assert!(same, "bytes were changed on the way");
    start.elapsed().as_secs_f64()
}

/// UDP of several sizes there and back.
fn echo(from: &OwnedFd, source: IpAddr, to: &OwnedFd, addr: IpAddr) {
    let (server, thread) = udp_echo(to, addr);
    inside(from, move || {
        let socket = udp(source);
        let mut buf = [0; 66_000];
        for size in [0, 1, 64, 1_000, 1_352, 1_353, 1_372, 1_373, 5_000, 30_000] {
            let sent: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            socket.send_to(&sent, server).unwrap();
            let (len, peer) =
                socket.recv_from(&mut buf).unwrap_or_else(|e| panic!("{addr} {size}: {e}"));
            assert_eq!((&buf[..len], peer), (&sent[..], server), "{size}");
        }
        socket.send_to(b"end", server).unwrap();
    });
    assert_eq!(thread.join().unwrap(), 10);
}

/// ICMP echoes by an unprivileged ping socket, until one is answered.
fn ping(from: &OwnedFd, to: IpAddr) -> bool {
    inside(from, move || {
        let (family, protocol, request, reply) = match to {
            IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
            IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
        };
        let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
        let socket = UdpSocket::from(fd);
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        socket.connect((to, 0)).unwrap();
        let mut buf = [0; 100];
        // A peer that has not heard of the other yet answers its second handshake, 5 s after the first.
        (0..3).any(|_| {
            socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3]).unwrap();
            matches!(socket.recv(&mut buf), Ok(len) if len == 11 && buf[0] == reply && buf[8..11] == [1, 2, 3])
        })
    })
}

#[test]
fn pods_talk_across_nodes_in_both_families() {
    if skip("pods_talk_across_nodes_in_both_families") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 3]);
    let pods: Vec<_> = net.nodes.iter_mut().map(Node::pod).collect();
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        let (a, b) = (&pods[a], &pods[b]);
        for (source, to) in both(a.addr).into_iter().zip(both(b.addr)) {
            assert!(ping(&a.netns, to), "{to}");
            echo(&a.netns, source, &b.netns, to);
            transfer(&a.netns, &b.netns, to, 20_000_000);
        }
    }
    for node in &net.nodes {
        let stats = node.overlay().stats();
        assert_eq!(stats.sessions, 2);
        for why in [
            DropReason::SpoofedSource,
            DropReason::PeerSource,
            DropReason::BadOffload,
            DropReason::Unauthenticated,
            DropReason::TunFailed,
            DropReason::Malformed,
            DropReason::TooBig,
        ] {
            assert_eq!(stats.drops(why), 0, "{why:?}");
        }
    }
}

#[test]
fn every_mix_of_offloads_carries_the_same_bytes() {
    if skip("every_mix_of_offloads_carries_the_same_bytes") {
        return;
    }
    let plain = Options { offload: false, gso: Gso::Off, ..Options::default() };
    let half = Options { offload: true, gso: Gso::Off, ..Options::default() };
    let mut net = Net::new(&[Options::default(), plain, half]);
    let pods: Vec<_> = net.nodes.iter_mut().map(Node::pod).collect();
    for (a, b) in [(0, 1), (1, 0), (1, 2), (2, 1), (0, 2), (2, 0)] {
        for (source, to) in both(pods[a].addr).into_iter().zip(both(pods[b].addr)) {
            echo(&pods[a].netns, source, &pods[b].netns, to);
            transfer(&pods[a].netns, &pods[b].netns, to, 5_000_000);
        }
    }
}

#[test]
fn bursts_of_small_datagrams_arrive_whole_and_in_order() {
    const BURST: u32 = 150;
    if skip("bursts_of_small_datagrams_arrive_whole_and_in_order") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    for (source, to) in both(a.addr).into_iter().zip(both(b.addr)) {
        assert!(ping(&a.netns, to));
        let receiver = inside(&b.netns, move || udp(to));
        let target = receiver.local_addr().unwrap();
        inside(&a.netns, move || {
            let socket = udp(source);
            for n in 0..BURST {
                let mut datagram = [n as u8; 64];
                datagram[..4].copy_from_slice(&n.to_le_bytes());
                // One of another size in between ends what is joined.
                let len = if n % 50 == 49 { 20 } else { 64 };
                socket.send_to(&datagram[..len], target).unwrap();
            }
        });
        let mut buf = [0; 2_000];
        for n in 0..BURST {
            let len = receiver.recv(&mut buf).unwrap();
            assert_eq!(len, if n % 50 == 49 { 20 } else { 64 }, "datagram {n}");
            assert_eq!(buf[..4], n.to_le_bytes());
            assert!(buf[4..len].iter().all(|byte| *byte == n as u8));
        }
    }
}

#[test]
fn pods_of_one_node_talk_without_the_wire() {
    if skip("pods_of_one_node_talk_without_the_wire") {
        return;
    }
    let mut net = Net::new(&[Options::default()]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[0].pod());
    for (source, to) in both(a.addr).into_iter().zip(both(b.addr)) {
        assert!(ping(&a.netns, to));
        echo(&a.netns, source, &b.netns, to);
        transfer(&a.netns, &b.netns, to, 50_000_000);
    }
    assert_eq!(net.nodes[0].overlay().stats().count(netshim::Count::UdpTxDatagrams), 0);
}

#[test]
fn hosts_reach_pods_here_and_there() {
    if skip("hosts_reach_pods_here_and_there") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (here, there) = (net.nodes[0].pod(), net.nodes[1].pod());
    let host = net.nodes[0].space.run(current_netns);
    for (n, source) in gateway(&net.nodes[0]).into_iter().enumerate() {
        for pod in [&here, &there] {
            let to = both(pod.addr)[n];
            echo(&host, source, &pod.netns, to);
            transfer(&host, &pod.netns, to, 5_000_000);
            transfer(&pod.netns, &host, source, 5_000_000);
        }
        assert!(ping(&there.netns, source), "a pod pings another node");
        assert!(ping(&there.netns, gateway(&net.nodes[1])[n]), "a pod pings its own");
    }
}

fn current_netns() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

#[test]
fn a_wrong_flock_key_gets_silence() {
    if skip("a_wrong_flock_key_gets_silence") {
        return;
    }
    let stranger = Options { psk: 2, ..Options::default() };
    let mut net = Net::new(&[Options::default(), stranger]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    let to = SocketAddr::new(a.addr.ip4.into(), 9);
    let source = b.addr.ip4;
    inside(&b.netns, move || udp(source).send_to(b"x", to)).unwrap();
    eventually("the stranger's handshakes are refused", || {
        net.nodes[0].overlay().stats().drops(DropReason::BadHandshake) >= 3
    });
    let stats = net.nodes[0].overlay().stats();
    assert_eq!(stats.count(netshim::Count::UdpTxDatagrams), 0, "not a byte in answer");
    assert_eq!(stats.sessions, 0);
}

#[test]
fn a_pod_cannot_send_as_another() {
    if skip("a_pod_cannot_send_as_another") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, neighbour, b) = (net.nodes[0].pod(), net.nodes[0].pod(), net.nodes[1].pod());
    for (n, forged) in both(neighbour.addr).into_iter().chain(both(b.addr)).enumerate() {
        let to = SocketAddr::new(both(b.addr)[n % 2], 9);
        inside(&a.netns, move || {
            let len = if forged.is_ipv4() { 32 } else { 128 };
            let nodad = if forged.is_ipv4() { "" } else { "nodad" };
            ip(&format!("addr add {forged}/{len} dev lo {nodad}"));
            udp(forged).send_to(b"forged", to).unwrap();
        });
    }
    let overlay = net.nodes[0].overlay();
    // The two that forge the destination itself never leave the pod.
    eventually("forged packets are counted", || {
        overlay.stats().drops(DropReason::SpoofedSource) >= 2
    });
    assert_eq!(overlay.stats().count(netshim::Count::UdpTxDatagrams), 0);
}

#[test]
fn nothing_readable_is_on_the_wire() {
    if skip("nothing_readable_is_on_the_wire") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    let mut sniffer = net.switch.run(|| {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK,
            SockProtocol::EthAll,
        );
        std::fs::File::from(fd.unwrap())
    });
    let secret = b"a secret of forty bytes that pods exchange";
    let (server, thread) = udp_echo(&b.netns, b.addr.ip4);
    let source = a.addr.ip4;
    inside(&a.netns, move || {
        let socket = udp(source);
        let mut buf = [0; 100];
        for message in [&secret[..], b"end"] {
            socket.send_to(message, server).unwrap();
            socket.recv(&mut buf).unwrap();
        }
    });
    thread.join().unwrap();
    let (mut frames, mut buf) = (0, [0; 70_000]);
    while let Ok(len) = sniffer.read(&mut buf) {
        frames += 1;
        assert!(!buf[..len].windows(8).any(|w| w == &secret[..8]));
        assert!(
            !buf[..len].windows(8).any(|w| w[..4] == source.octets()),
            "no inner address either"
        );
    }
    assert!(frames >= 6, "{frames} frames seen");
}

#[test]
fn senders_are_told_what_is_not_there() {
    if skip("senders_are_told_what_is_not_there") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, gone) = (net.nodes[0].pod(), net.nodes[1].pod());
    net.nodes[1].overlay().remove_pod(gone.addr.ip4).unwrap();
    for (n, missing) in both(gone.addr).into_iter().enumerate() {
        let nowhere: IpAddr = ["100.127.0.9", "fd99::1"][n].parse().unwrap();
        for to in [missing, nowhere] {
            let start = Instant::now();
            let error = inside(&a.netns, move || {
                TcpStream::connect_timeout(&SocketAddr::new(to, 80), Duration::from_secs(5))
                    .unwrap_err()
            });
            // ECONNREFUSED, EHOSTUNREACH, ENETUNREACH or EACCES; what matters is that it is not a timeout.
            assert!(start.elapsed() < Duration::from_secs(4), "{to}: {error}");
        }
    }
    let dropped = net.nodes[1].overlay().stats().drops(DropReason::NoPod);
    assert!(dropped >= 2, "{dropped}");
}

#[test]
fn a_restart_keeps_the_pods() {
    if skip("a_restart_keeps_the_pods") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    let (server, thread) = udp_echo(&b.netns, b.addr.ip4);
    let source = a.addr.ip4;
    let talk = move || {
        let socket = udp(source);
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut buf = [0; 100];
        (0..25).find(|_| socket.send_to(b"hello", server).is_ok() && socket.recv(&mut buf).is_ok())
    };
    assert!(inside(&a.netns, talk).is_some());

    // A TCP connection that lives through it.
    let (tell, told) = mpsc::channel();
    let address = b.addr.ip4;
    let tcp = spawn_inside(&b.netns, move || {
        let listener = TcpListener::bind((address, 0)).unwrap();
        tell.send(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).unwrap();
        stream.read_exact(&mut buf).unwrap();
        buf
    });
    let to = told.recv().unwrap();
    let mut stream = inside(&a.netns, move || TcpStream::connect(to).unwrap());
    stream.write_all(b"1234").unwrap();

    // The agent of node 1 dies: only the shim's duplicate of the TUN is left.
    drop(net.nodes[1].overlay.take());
    net.nodes[1].start();
    let duplicate = b.tun.try_clone().unwrap();
    net.nodes[1].overlay().add_pod(b.addr.ip4, b.addr.ip6, duplicate).unwrap();
    net.introduce();

    let tries = inside(&a.netns, talk).expect("the pod is reached again");
    assert!(tries <= 10, "after {tries} lost");
    stream.write_all(b"5678").unwrap();
    assert_eq!(&tcp.join().unwrap(), b"5678");
    inside(&a.netns, move || udp(source).send_to(b"end", server)).unwrap();
    thread.join().unwrap();
}

#[test]
fn garbage_on_the_socket_stops_nothing() {
    if skip("garbage_on_the_socket_stops_nothing") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    assert!(ping(&a.netns, b.addr.ip4.into()));
    let target = SocketAddr::new(net.nodes[1].underlay.into(), 7_700);
    let flood = net.nodes[0].space.run(move || {
        let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
        let mut bytes: Vec<u8> =
            (0..65_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut sent = 0u64;
        for round in 0..200 {
            for (kind, len) in [
                (0, 0),
                (4, 1),
                (4, 36),
                (1, 153),
                (2, 93),
                (3, 52),
                (4, 1_400),
                (9, 1_400),
                (4, 65_000),
            ] {
                bytes[..4].copy_from_slice(&[kind, 1, 0, 0]);
                bytes[4] = round as u8;
                sent += u64::from(socket.send_to(&bytes[..len], target).is_ok());
            }
        }
        sent
    });
    assert!(ping(&a.netns, b.addr.ip4.into()));
    transfer(&a.netns, &b.netns, b.addr.ip6.into(), 5_000_000);
    let stats = net.nodes[1].overlay().stats();
    let dropped: u64 = [
        DropReason::OuterMalformed,
        DropReason::UnknownSession,
        DropReason::BadHandshake,
        DropReason::Unauthenticated,
    ]
    .iter()
    .map(|why| stats.drops(*why))
    .sum();
    assert!(dropped > flood / 2, "{dropped} of {flood} seen");
    assert_eq!(stats.count(netshim::Count::Handshakes), 1);
}

#[test]
fn a_pods_flood_leaves_its_neighbours_alone() {
    if skip("a_pods_flood_leaves_its_neighbours_alone") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (loud, quiet, b) = (net.nodes[0].pod(), net.nodes[0].pod(), net.nodes[1].pod());
    assert!(ping(&quiet.netns, b.addr.ip4.into()));
    let (stop, stopped) = mpsc::channel::<()>();
    let source = loud.addr.ip4;
    let flood = spawn_inside(&loud.netns, move || {
        let socket = udp(source);
        socket.set_broadcast(true).unwrap();
        let mut sent = 0u64;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            for to in ["224.0.0.251:5353", "255.255.255.255:9", "100.64.1.200:9", "100.127.1.1:9"] {
                sent += u64::from(socket.send_to(&[0; 64], to).is_ok());
            }
        }
        sent
    });
    let overlay = net.nodes[0].overlay();
    eventually("the flood flows", || overlay.stats().drops(DropReason::Martian) > 1_000);
    for _ in 0..50 {
        assert!(ping(&quiet.netns, b.addr.ip4.into()));
    }
    drop(stop);
    assert!(flood.join().unwrap() > 1_000);
    let stats = overlay.stats();
    assert!(stats.drops(DropReason::NoPod) > 0 && stats.drops(DropReason::NoPeer) > 0);
}

#[test]
fn an_ipv6_socket_serves_both_families() {
    if skip("an_ipv6_socket_serves_both_families") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    // Node 1 listens on the unspecified IPv6 address, and its peers still know it by IPv4.
    drop(net.nodes[1].overlay.take());
    net.nodes[1].bind = Some("[::]:7700".parse().unwrap());
    net.nodes[1].start();
    let duplicate = b.tun.try_clone().unwrap();
    net.nodes[1].overlay().add_pod(b.addr.ip4, b.addr.ip6, duplicate).unwrap();
    net.introduce();
    assert!(ping(&b.netns, a.addr.ip4.into()));
    transfer(&a.netns, &b.netns, b.addr.ip4.into(), 5_000_000);
    transfer(&b.netns, &a.netns, a.addr.ip6.into(), 5_000_000);
}

#[test]
fn a_narrow_underlay_is_counted_and_pods_adapt() {
    if skip("a_narrow_underlay_is_counted_and_pods_adapt") {
        return;
    }
    let mut net = Net::new(&[Options::default(); 2]);
    let (a, b) = (net.nodes[0].pod(), net.nodes[1].pod());
    for node in &net.nodes {
        node.space.ip("link set u0 mtu 1400");
    }
    for to in both(b.addr) {
        assert!(ping(&a.netns, to), "small packets pass");
        transfer(&a.netns, &b.netns, to, 5_000_000);
    }
    let stats = net.nodes[0].overlay().stats();
    assert!(stats.drops(DropReason::UnderlayMtu) > 0);
    assert!(stats.gso, "it is the underlay's fault, not the offload's");
}

#[test]
fn pod_interfaces_are_as_configured() {
    if skip("pod_interfaces_are_as_configured") {
        return;
    }
    let mut net = Net::new(&[Options::default()]);
    let pod = net.nodes[0].pod();
    let show = |what: &'static str| inside(&pod.netns, move || support::ip_output(what));
    let link = show("-d link show eth0");
    for wanted in ["mtu 1400", "qlen 1000", "gso_max_segs 45", "UP", "persist on", "vnet_hdr on"] {
        assert!(link.contains(wanted), "{wanted}: {link}");
    }
    let addresses = show("addr show eth0");
    assert!(addresses.contains(&format!("inet {}/32", pod.addr.ip4)), "{addresses}");
    assert!(addresses.contains(&format!("inet6 {}/128", pod.addr.ip6)), "{addresses}");
    assert!(!addresses.contains("fe80"), "no link-local address: {addresses}");
    assert!(show("link show lo").contains("LOWER_UP"));
    assert!(show("route").contains("default dev eth0"));
    assert!(show("-6 route").contains("default dev eth0"));
    let sysctl =
        |path: &'static str| inside(&pod.netns, move || std::fs::read_to_string(path).unwrap());
    assert_eq!(sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start").trim(), "0");
    assert!(sysctl("/proc/sys/net/ipv4/ping_group_range").contains("2147483647"));
}

#[test]
fn the_host_interface_follows_the_prefix_and_goes_on_request() {
    if skip("the_host_interface_follows_the_prefix_and_goes_on_request") {
        return;
    }
    let net = Net::new(&[Options::default()]);
    let node = &net.nodes[0];
    let overlay6 = Prefix6::new(node.prefix6.network(), 48).unwrap();
    let config = |index| HostConfig {
        prefix4: Prefix4::node(index),
        prefix6: ipam::prefix6(FLOCK, "n0"),
        overlay6,
        mtu: MTU,
        offload: true,
    };
    // A second holder is told so: the first still has it.
    let busy = config(1);
    let error = node.space.run(move || podnet::host(&busy).unwrap_err());
    assert!(error.to_string().contains("mesh0"), "{error}");
    // But it may change the addresses.
    let other = config(5);
    node.space.run(move || {
        podnet::update_host(&other).unwrap();
        let addresses = support::ip_output("addr show mesh0");
        assert!(addresses.contains("inet 100.64.5.1/32"), "{addresses}");
        assert!(!addresses.contains("100.64.1.1/32"), "{addresses}");
    });
    let mut node = net.nodes.into_iter().next().unwrap();
    drop(node.overlay.take());
    let moved = config(77);
    node.space.run(move || {
        let _tun = podnet::host(&moved).unwrap();
        let addresses = support::ip_output("addr show mesh0");
        assert!(addresses.contains("inet 100.64.77.1/32"), "{addresses}");
        assert!(!addresses.contains("100.64.5.1/32"), "{addresses}");
        let routes = support::ip_output("route");
        assert!(routes.contains("100.64.0.0/10 dev mesh0"), "{routes}");
        assert!(routes.contains("src 100.64.77.1"), "{routes}");
        assert!(podnet::remove_host().unwrap());
        assert!(!podnet::remove_host().unwrap());
    });
}

#[test]
fn the_caller_stays_in_its_namespace() {
    if skip("the_caller_stays_in_its_namespace") {
        return;
    }
    let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut net = Net::new(&[Options::default()]);
    let pod = net.nodes[0].pod();
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
    let inner = inside(&pod.netns, || std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    assert_ne!(inner, before);
}
