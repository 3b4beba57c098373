//! A DHCP server that lives in the switch, with the faults a rack's server has.

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr,
        EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol,
        Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
    },
};
use std::{collections::BTreeMap, net::Ipv4Addr};

/// How the server behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mood {
    /// Answers.
    #[default]
    Normal,
    /// Hears and says nothing.
    Silent,
    /// Offers, then refuses the request.
    Nak,
    /// A second server ([`SECOND`]) answers as well, first, and acknowledges whatever is asked of the other one.
    TwoServers,
}

/// The second server of [`Mood::TwoServers`]; it gives address + 100.
pub const SECOND: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// What one machine is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Its address; the prefix is /24.
    pub address: Ipv4Addr,
    /// Option 12.
    pub hostname: String,
    /// Option 224, `key=value,key=value`; empty: not sent.
    pub labels: String,
}

/// What a machine is told to load at its first leases, whatever a boot server says: a loader of the site's own choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loader {
    /// The machine.
    pub mac: [u8; 6],
    /// Who has the file, by TFTP.
    pub server: Ipv4Addr,
    /// Its name.
    pub file: String,
    /// At how many leases.
    pub leases: u32,
}

/// The server.
#[derive(Debug, Clone)]
pub struct Dhcp {
    /// Its address and default gateway.
    pub server: Ipv4Addr,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Machines by hardware address; strangers get no answer.
    pub grants: BTreeMap<[u8; 6], Grant>,
    /// Option 42: time servers; empty: not sent.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 225: nodes to meet; empty: not sent.
    pub seeds: String,
    /// A loader for one machine.
    pub loader: Option<Loader>,
    /// Lease in seconds.
    pub lease_s: u32,
    /// How it behaves.
    pub mood: Mood,
    /// Messages it understood, for assertions.
    pub heard: u64,
    /// Requests it refused, for assertions.
    pub refused: u64,
}

impl Dhcp {
    /// The answers to a frame; none when it is none of its business.
    pub fn answer(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        let Ok(ethernet) = EthernetFrame::new_checked(frame) else { return Vec::new() };
        match ethernet.ethertype() {
            EthernetProtocol::Arp => self.arp(&ethernet).into_iter().collect(),
            EthernetProtocol::Ipv4 => self.dhcp(&ethernet).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    fn arp(&self, ethernet: &EthernetFrame<&[u8]>) -> Option<Vec<u8>> {
        let packet = ArpPacket::new_checked(ethernet.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        if target_protocol_addr != self.server {
            return None;
        }
        let reply = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(self.mac),
            source_protocol_addr: self.server,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        let mut bytes =
            self.ethernet(source_hardware_addr, EthernetProtocol::Arp, reply.buffer_len());
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        reply.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        Some(bytes)
    }

    fn dhcp(&mut self, ethernet: &EthernetFrame<&[u8]>) -> Option<Vec<Vec<u8>>> {
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        let udp = UdpPacket::new_checked(ip.payload()).ok().filter(|udp| udp.dst_port() == 67)?;
        let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
        let asked = DhcpRepr::parse(&packet).ok()?;
        let grant = self.grants.get(&asked.client_hardware_address.0)?;
        self.heard += 1;
        let message_type = match (asked.message_type, self.mood) {
            (_, Mood::Silent) => return None,
            (DhcpMessageType::Discover, _) => DhcpMessageType::Offer,
            (DhcpMessageType::Request, Mood::Nak) => {
                self.refused += 1;
                DhcpMessageType::Nak
            }
            (DhcpMessageType::Request, Mood::Normal | Mood::TwoServers) => DhcpMessageType::Ack,
            _ => return None,
        };
        let grant = grant.clone();
        let mut answers = Vec::new();
        if self.mood == Mood::TwoServers {
            let address = Ipv4Addr::from_bits(grant.address.to_bits() + 100);
            let second = Grant { address, ..grant.clone() };
            answers.push(self.reply(&asked, message_type, SECOND, &second));
        }
        answers.push(self.reply(&asked, message_type, self.server, &grant));
        if let Some(loader) = &mut self.loader
            && message_type == DhcpMessageType::Ack
            && loader.mac == asked.client_hardware_address.0
        {
            loader.leases = loader.leases.saturating_sub(1);
        }
        Some(answers)
    }

    fn reply(
        &self,
        asked: &DhcpRepr<'_>,
        message_type: DhcpMessageType,
        server: Ipv4Addr,
        grant: &Grant,
    ) -> Vec<u8> {
        let ntp: Vec<u8> = self.ntp.iter().flat_map(Ipv4Addr::octets).collect();
        let mine = |l: &&Loader| l.mac == asked.client_hardware_address.0 && l.leases > 0;
        let loader = self.loader.as_ref().filter(mine);
        let file = loader.map(|loader| loader.file.as_bytes()).unwrap_or_default();
        // iPXE's own option in its own space (etherboot encapsulated options, no-pxedhcp): no other server is asked.
        let alone: &[u8] = if loader.is_some() { &[0xb0, 1, 1] } else { &[] };
        let texts = [
            (67, file),
            (175, alone),
            (12, grant.hostname.as_bytes()),
            (42, &ntp),
            (224, grant.labels.as_bytes()),
            (225, self.seeds.as_bytes()),
        ];
        let options: Vec<DhcpOption<'_>> = texts
            .into_iter()
            .filter(|(_, data)| !data.is_empty())
            .map(|(kind, data)| DhcpOption { kind, data })
            .collect();
        let granted = message_type != DhcpMessageType::Nak;
        let reply = DhcpRepr {
            message_type,
            transaction_id: asked.transaction_id,
            secs: 0,
            client_hardware_address: asked.client_hardware_address,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: if granted { grant.address } else { Ipv4Addr::UNSPECIFIED },
            server_ip: loader.map_or(server, |loader| loader.server),
            router: granted.then_some(self.server),
            subnet_mask: granted.then_some(Ipv4Addr::new(255, 255, 255, 0)),
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: asked.broadcast,
            requested_ip: None,
            client_identifier: None,
            server_identifier: Some(server),
            parameter_request_list: None,
            max_size: None,
            lease_duration: granted.then_some(self.lease_s),
            renew_duration: None,
            rebind_duration: None,
            dns_servers: None,
            additional_options: if granted { &options } else { &[] },
        };
        // UEFI hears only what is sent to all until it has an address, and says so (RFC 2131, 4.1).
        let (to, address) = if asked.broadcast {
            (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST)
        } else {
            (asked.client_hardware_address, grant.address)
        };
        self.datagram(to, server, address, &reply)
    }

    fn datagram(
        &self,
        to: EthernetAddress,
        server: Ipv4Addr,
        address: Ipv4Addr,
        dhcp: &DhcpRepr<'_>,
    ) -> Vec<u8> {
        let caps = ChecksumCapabilities::default();
        let ip = Ipv4Repr {
            src_addr: server,
            dst_addr: address,
            next_header: IpProtocol::Udp,
            payload_len: 8 + dhcp.buffer_len(),
            hop_limit: 64,
        };
        let mut bytes = self.ethernet(to, EthernetProtocol::Ipv4, 28 + dhcp.buffer_len());
        let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &caps);
        UdpRepr { src_port: 67, dst_port: 68 }.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &IpAddress::Ipv4(server),
            &IpAddress::Ipv4(address),
            dhcp.buffer_len(),
            // The buffer has the size the message says it needs.
            |buffer| {
                let _ = dhcp.emit(&mut DhcpPacket::new_unchecked(buffer));
            },
            &caps,
        );
        bytes
    }

    fn ethernet(&self, to: EthernetAddress, kind: EthernetProtocol, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; 14 + len];
        EthernetRepr { src_addr: EthernetAddress(self.mac), dst_addr: to, ethertype: kind }
            .emit(&mut EthernetFrame::new_unchecked(&mut bytes[..]));
        bytes
    }
}
