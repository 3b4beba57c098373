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

/// What a server does that it should not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    Silent,
    Nak,
    NoIdentifier,
    NoAddress,
    NoMask,
    CrookedMask,
    NoLease,
    LeaseOfNothing,
    OtherAddressInAck,
}

#[derive(Default)]
struct Server {
    inbox: VecDeque<Vec<u8>>,
    requests: Vec<DhcpMessageType>,
    /// The server a request named.
    named: Option<Ipv4Addr>,
    fault: Fault,
    /// A second server, which answers before this one, whoever is asked.
    other: Option<Ipv4Addr>,
    /// What the second one says to a request.
    other_says: Option<DhcpMessageType>,
    t1_t2: Option<(u32, u32)>,
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
        self.named = asked.server_identifier;
        let request = asked.message_type == DhcpMessageType::Request;
        if let Some(other) = self.other {
            let says = if request { self.other_says } else { Some(DhcpMessageType::Offer) };
            if let Some(says) = says {
                self.answer(&asked, says, other, Ipv4Addr::new(10, 0, 0, 99));
            }
        }
        let says = match (request, self.fault) {
            (_, Fault::Silent) => return,
            (true, Fault::Nak) => DhcpMessageType::Nak,
            (true, _) => DhcpMessageType::Ack,
            (false, _) => DhcpMessageType::Offer,
        };
        let other = request && self.fault == Fault::OtherAddressInAck;
        let offered = if other { Ipv4Addr::new(10, 0, 0, 66) } else { OFFERED };
        self.answer(&asked, says, SERVER, offered);
    }
}

impl Server {
    fn with(fault: Fault) -> Self {
        Self { fault, ..Self::default() }
    }

    fn answer(
        &mut self,
        asked: &DhcpRepr<'_>,
        says: DhcpMessageType,
        from: Ipv4Addr,
        offered: Ipv4Addr,
    ) {
        // smoltcp reads T1 and T2 and does not write them.
        let (t1, t2) = self.t1_t2.unwrap_or((300, 525));
        let (t1, t2) = (t1.to_be_bytes(), t2.to_be_bytes());
        let options = [
            DhcpOption { kind: 58, data: &t1 },
            DhcpOption { kind: 59, data: &t2 },
            DhcpOption { kind: OPT_HOSTNAME, data: b"n7" },
            DhcpOption { kind: OPT_LABELS, data: b"rack=a3,row=1" },
            DhcpOption { kind: OPT_NTP, data: &[10, 0, 0, 9, 0, 0, 0, 0, 10, 0, 0, 8, 10] },
            DhcpOption { kind: OPT_SEEDS, data: b"10.0.0.2:7400 10.0.0.3:7400" },
        ];
        let fault = |fault| from == SERVER && self.fault == fault;
        let mask = match from == SERVER && self.fault == Fault::CrookedMask {
            true => Ipv4Addr::new(255, 0, 255, 0),
            false => Ipv4Addr::new(255, 255, 255, 0),
        };
        let frame = reply(&DhcpRepr {
            message_type: says,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: if fault(Fault::NoAddress) { Ipv4Addr::UNSPECIFIED } else { offered },
            server_ip: from,
            router: Some(SERVER),
            subnet_mask: (!fault(Fault::NoMask)).then_some(mask),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip: None,
            client_identifier: None,
            server_identifier: (!fault(Fault::NoIdentifier)).then_some(from),
            parameter_request_list: None,
            max_size: None,
            lease_duration: match self.fault {
                Fault::NoLease => None,
                Fault::LeaseOfNothing => Some(0),
                _ => Some(600),
            },
            renew_duration: None,
            rebind_duration: None,
            dns_servers: None,
            additional_options: &options,
        });
        self.inbox.push_back(frame);
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

fn client() -> Client {
    Client::new(MAC, 1, 0)
}

fn discovers(server: &Server) -> usize {
    server.requests.iter().filter(|kind| **kind == DhcpMessageType::Discover).count()
}

fn granted(changes: &[Change]) -> Option<&Lease> {
    match changes.last() {
        Some(Change::Granted(lease)) => Some(lease),
        _ => None,
    }
}

#[test]
fn a_lease_is_granted_with_what_a_node_wants_and_renewed() {
    let (mut client, mut server, mut now) = (client(), Server::default(), 0);
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
        ntp: vec![[10, 0, 0, 9].into(), [10, 0, 0, 8].into()],
        seeds: Some("10.0.0.2:7400 10.0.0.3:7400".into()),
    };
    assert_eq!(changes.last(), Some(&Change::Granted(lease)));
    assert_eq!(server.requests, [DhcpMessageType::Discover, DhcpMessageType::Request]);
    // Half of the lease later it asks again. Nobody answers ARP here, so in the end by broadcast.
    let changes = run(&mut client, &mut server, &mut now, 595_000_000);
    assert!(!changes.contains(&Change::Lost), "{changes:?}");
    assert!(server.requests.len() > 2, "{:?}", server.requests);
    let changes = run(&mut client, &mut server, &mut now, 1_100_000_000);
    assert!(!changes.contains(&Change::Lost), "the renewal counts: {changes:?}");
}

#[test]
fn the_times_of_renewal_are_the_server_s() {
    let mut server = Server { t1_t2: Some((100, 200)), ..Server::default() };
    let (mut client, mut now) = (client(), 0);
    run(&mut client, &mut server, &mut now, 199_000_000);
    // By T1 to this server alone, which nobody here can find by ARP; by T2 to all.
    assert_eq!(server.requests.len(), 2, "{:?}", server.requests);
    run(&mut client, &mut server, &mut now, 205_000_000);
    assert_eq!(server.requests.len(), 3, "{:?}", server.requests);
}

#[test]
fn after_t2_any_server_may_go_on_with_the_lease() {
    let (mut client, mut server, mut now) = (client(), Server::default(), 0);
    run(&mut client, &mut server, &mut now, 1_000_000);
    // The old server is gone; the new one speaks of another address first.
    server.fault = Fault::Silent;
    server.other = Some(Ipv4Addr::new(10, 0, 0, 3));
    server.other_says = Some(DhcpMessageType::Ack);
    let changes = run(&mut client, &mut server, &mut now, 590_000_000);
    assert_eq!(changes, [], "another address than the one held is no renewal");
    server.other_says = Some(DhcpMessageType::Nak);
    let changes = run(&mut client, &mut server, &mut now, 700_000_000);
    assert_eq!(changes.first(), Some(&Change::Lost));
}

#[test]
fn silence_is_asked_again_every_two_seconds() {
    let (mut server, mut client, mut now) = (Server::with(Fault::Silent), client(), 0);
    let changes = run(&mut client, &mut server, &mut now, 9_000_000);
    assert!(changes.iter().all(|c| *c == Change::Lost), "{changes:?}");
    assert!((4..=6).contains(&server.requests.len()), "{:?}", server.requests);
    server.fault = Fault::None;
    let changes = run(&mut client, &mut server, &mut now, 13_000_000);
    assert!(granted(&changes).is_some(), "{changes:?}");
}

#[test]
fn a_refusal_starts_over_after_pauses_that_double() {
    let (mut server, mut client, mut now) = (Server::with(Fault::Nak), client(), 0);
    let changes = run(&mut client, &mut server, &mut now, 130_000_000);
    assert!(changes.iter().all(|c| *c == Change::Lost), "{changes:?}");
    // At 0, 1, 3, 7, 15, 31, 63 and 127 seconds, and a little for gathering offers.
    assert_eq!(discovers(&server), 8, "{:?}", server.requests);
    assert_eq!(client.take_notes(), ["server 10.0.0.1 refuses: asking again later"]);
    server.fault = Fault::None;
    let changes = run(&mut client, &mut server, &mut now, 260_000_000);
    assert!(granted(&changes).is_some(), "{changes:?}");
}

#[test]
fn of_two_servers_the_lower_one_is_taken_whoever_is_quicker() {
    for (other, address, server) in [
        (Ipv4Addr::new(10, 0, 0, 250), OFFERED, SERVER),
        (Ipv4Addr::new(9, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 99), Ipv4Addr::new(9, 0, 0, 1)),
    ] {
        let (mut client, mut now) = (client(), 0);
        let mut servers = Server {
            other: Some(other),
            other_says: Some(DhcpMessageType::Ack),
            ..Server::default()
        };
        let changes = run(&mut client, &mut servers, &mut now, 1_000_000);
        let lease = granted(&changes).unwrap();
        assert_eq!((lease.address, lease.server), (address, server), "beside {other}");
        assert_eq!(servers.named, Some(server), "the request names its server");
        let notes = client.take_notes();
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].ends_with(&format!("taking {server}")), "{notes:?}");
    }
}

#[test]
fn a_refusal_by_a_server_that_was_not_asked_is_nothing() {
    let (mut client, mut now) = (client(), 0);
    let mut servers = Server {
        other: Some(Ipv4Addr::new(10, 0, 0, 250)),
        other_says: Some(DhcpMessageType::Nak),
        ..Server::default()
    };
    let changes = run(&mut client, &mut servers, &mut now, 1_000_000);
    assert_eq!(granted(&changes).map(|lease| lease.server), Some(SERVER));
}

#[test]
fn offers_that_lack_something_are_ignored_with_a_reason() {
    for (fault, why) in [
        (Fault::NoIdentifier, "no server identifier"),
        (Fault::NoAddress, "no address"),
        (Fault::NoMask, "no subnet mask"),
        (Fault::CrookedMask, "a subnet mask that is none"),
        (Fault::NoLease, "no lease time"),
        (Fault::LeaseOfNothing, "no lease time"),
    ] {
        let (mut server, mut client, mut now) = (Server::with(fault), client(), 0);
        let changes = run(&mut client, &mut server, &mut now, 9_000_000);
        assert!(granted(&changes).is_none(), "{fault:?}: {changes:?}");
        assert_eq!(server.requests.len(), discovers(&server), "{fault:?}: nothing is requested");
        assert_eq!(client.take_notes(), [format!("offer of 10.0.0.1 ignored: {why}")]);
        server.fault = Fault::None;
        let changes = run(&mut client, &mut server, &mut now, 13_000_000);
        assert!(granted(&changes).is_some(), "{fault:?}: {changes:?}");
    }
}

#[test]
fn a_lease_of_another_address_than_was_asked_for_is_none() {
    let (mut server, mut client, mut now) = (Server::with(Fault::OtherAddressInAck), client(), 0);
    let changes = run(&mut client, &mut server, &mut now, 5_000_000);
    assert!(granted(&changes).is_none(), "{changes:?}");
}

#[test]
fn a_silent_server_at_renewal_loses_the_lease_when_it_ends_and_not_before() {
    let (mut client, mut server, mut now) = (client(), Server::default(), 0);
    run(&mut client, &mut server, &mut now, 1_000_000);
    server.fault = Fault::Silent;
    let changes = run(&mut client, &mut server, &mut now, 600_000_000);
    assert_eq!(changes, []);
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
