//! The client against a server written for the test, on virtual time.

use super::*;
use smoltcp::wire::{
    DhcpMessageType, DhcpOption, DhcpRepr, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use std::collections::VecDeque;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OFFERED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 77);

#[derive(Default)]
struct Server {
    inbox: VecDeque<Vec<u8>>,
    requests: Vec<DhcpMessageType>,
    silent: bool,
    nak: bool,
}

impl Wire for Server {
    fn receive(&mut self) -> Option<Vec<u8>> {
        self.inbox.pop_front()
    }

    fn send(&mut self, frame: &[u8]) {
        let ethernet = EthernetFrame::new_checked(frame).unwrap();
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return;
        }
        let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        let packet = DhcpPacket::new_checked(udp.payload()).unwrap();
        let asked = DhcpRepr::parse(&packet).unwrap();
        self.requests.push(asked.message_type);
        if self.silent {
            return;
        }
        let message_type = match asked.message_type {
            DhcpMessageType::Discover => DhcpMessageType::Offer,
            DhcpMessageType::Request if self.nak => DhcpMessageType::Nak,
            DhcpMessageType::Request => DhcpMessageType::Ack,
            other => panic!("{other:?}"),
        };
        let options = [
            DhcpOption { kind: OPT_HOSTNAME, data: b"n7" },
            DhcpOption { kind: OPT_LABELS, data: b"rack=a3,row=1" },
        ];
        self.inbox.push_back(reply(&DhcpRepr {
            message_type,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: OFFERED,
            server_ip: SERVER,
            router: Some(SERVER),
            subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(SERVER),
            parameter_request_list: None,
            max_size: None,
            lease_duration: Some(600),
            renew_duration: None,
            rebind_duration: None,
            dns_servers: None,
            additional_options: &options,
        }));
    }
}

fn reply(dhcp: &DhcpRepr<'_>) -> Vec<u8> {
    let udp = UdpRepr { src_port: 67, dst_port: 68 };
    let ip = Ipv4Repr {
        src_addr: SERVER,
        dst_addr: OFFERED,
        next_header: IpProtocol::Udp,
        payload_len: 8 + dhcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2; 6]),
        dst_addr: EthernetAddress(MAC),
        ethertype: EthernetProtocol::Ipv4,
    };
    let mut bytes = vec![0; 14 + 20 + 8 + dhcp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    ethernet.emit(&mut frame);
    let caps = phy::ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &caps);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    udp.emit(
        &mut datagram,
        &IpAddress::Ipv4(SERVER),
        &IpAddress::Ipv4(OFFERED),
        dhcp.buffer_len(),
        |buffer| dhcp.emit(&mut DhcpPacket::new_unchecked(buffer)).unwrap(),
        &caps,
    );
    bytes
}

/// Runs until `until_us` or the first change after a lease; returns the time and the changes.
fn run(client: &mut Client, server: &mut Server, now: &mut u64, until_us: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    while *now < until_us {
        if let Some(change) = client.poll(*now, server) {
            changes.push(change);
        }
        let due = client.next_deadline(*now).unwrap_or(until_us).max(*now + 1000);
        *now = if server.inbox.is_empty() { due } else { *now + 1000 };
    }
    changes
}

#[test]
fn a_lease_is_granted_with_host_name_and_labels_and_renewed() {
    let (mut client, mut server, mut now) = (Client::new(MAC, 1, 0), Server::default(), 0);
    let changes = run(&mut client, &mut server, &mut now, 1_000_000);
    let lease = Lease {
        address: OFFERED,
        prefix: 24,
        gateway: Some(SERVER),
        dns: vec![],
        server: SERVER,
        lease_s: Some(600),
        hostname: Some("n7".into()),
        labels: Some("rack=a3,row=1".into()),
    };
    assert_eq!(changes.last(), Some(&Change::Granted(lease)));
    assert_eq!(server.requests, [DhcpMessageType::Discover, DhcpMessageType::Request]);
    // Half of the lease later it asks again. Nobody answers ARP here, so in the end by broadcast.
    let changes = run(&mut client, &mut server, &mut now, 595_000_000);
    assert!(!changes.contains(&Change::Lost), "{changes:?}");
    assert!(server.requests.len() > 2, "{:?}", server.requests);
}

#[test]
fn silence_is_asked_again_every_two_seconds() {
    let mut server = Server { silent: true, ..Server::default() };
    let (mut client, mut now) = (Client::new(MAC, 1, 0), 0);
    let changes = run(&mut client, &mut server, &mut now, 9_000_000);
    assert!(changes.iter().all(|c| *c == Change::Lost), "{changes:?}");
    assert!((4..=6).contains(&server.requests.len()), "{:?}", server.requests);
    server.silent = false;
    let changes = run(&mut client, &mut server, &mut now, 13_000_000);
    assert!(matches!(changes.last(), Some(Change::Granted(_))), "{changes:?}");
}

#[test]
fn a_refusal_starts_over() {
    let mut server = Server { nak: true, ..Server::default() };
    let (mut client, mut now) = (Client::new(MAC, 1, 0), 0);
    let changes = run(&mut client, &mut server, &mut now, 3_000_000);
    assert!(changes.iter().all(|c| *c == Change::Lost), "{changes:?}");
    assert!(server.requests.iter().filter(|r| **r == DhcpMessageType::Discover).count() > 1);
}

#[test]
fn a_silent_server_at_renewal_loses_the_lease_in_the_end() {
    let (mut client, mut server, mut now) = (Client::new(MAC, 1, 0), Server::default(), 0);
    run(&mut client, &mut server, &mut now, 1_000_000);
    server.silent = true;
    let changes = run(&mut client, &mut server, &mut now, 700_000_000);
    assert_eq!(changes.first(), Some(&Change::Lost));
}

#[test]
fn only_dhcp_and_arp_answers_are_seen() {
    let mut arp = vec![0; 42];
    arp[12..14].copy_from_slice(&[8, 6]);
    arp[21] = 1;
    assert!(!wanted(&arp), "an ARP question is the kernel's");
    arp[21] = 2;
    assert!(wanted(&arp));
    let mut udp = vec![0; 60];
    udp[12..15].copy_from_slice(&[8, 0, 0x45]);
    udp[23] = 17;
    udp[36..38].copy_from_slice(&[0, 68]);
    assert!(wanted(&udp));
    udp[20] = 0x20;
    assert!(!wanted(&udp), "a fragment");
    udp[20] = 0;
    udp[37] = 53;
    assert!(!wanted(&udp));
    udp[23] = 6;
    assert!(!wanted(&udp), "a TCP segment would be reset");
    for len in 0..60 {
        let _ = wanted(&udp[..len]);
    }
}
