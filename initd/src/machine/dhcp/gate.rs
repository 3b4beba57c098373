//! Which DHCP messages reach the client: the judgement that smoltcp's state machine leaves out. No IO, no clock.
//!
//! - Of several offers the one of the lowest server identifier wins, whoever was quicker: a rack with two servers boots
//!   the same way every time. Offers are gathered for [`OFFERS_US`] after the first.
//! - An offer that lacks what a machine needs is dropped, with a note for the console.
//! - An answer counts only when it comes from the server that was asked and speaks of the address that was asked for;
//!   once T2 has passed any server may answer (RFC 2131 §4.4.5).

use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetFrame, IpAddress, Ipv4Packet, UdpPacket,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

/// How long further offers are waited for.
pub(super) const OFFERS_US: u64 = 100_000;
/// Most offers gathered; further servers are not heard.
const OFFERS_MAX: usize = 8;
/// Most different notes in a life; further ones are kept silent.
const NOTES_MAX: usize = 16;

/// What the last message sent asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Asked {
    #[default]
    Nothing,
    /// Anybody for an offer.
    Offer,
    /// This server for this address.
    Lease(Ipv4Addr, Ipv4Addr),
    /// Any server for this address.
    Any(Ipv4Addr),
}

/// The state; one a client.
#[derive(Debug, Default)]
pub(super) struct Gate {
    asked: Asked,
    xid: u32,
    /// By server identifier.
    offers: BTreeMap<Ipv4Addr, Vec<u8>>,
    choose_at_us: Option<u64>,
    server: Option<Ipv4Addr>,
    refused: bool,
    noted: BTreeSet<String>,
    notes: Vec<String>,
}

impl Gate {
    /// To be shown every frame the client sends.
    pub(super) fn sent(&mut self, frame: &[u8]) {
        let _ = with_message(frame, |message| {
            self.xid = message.transaction_id;
            match message.message_type {
                DhcpMessageType::Discover => {
                    self.asked = Asked::Offer;
                    self.offers.clear();
                    self.choose_at_us = None;
                }
                DhcpMessageType::Request => {
                    let unspecified = message.client_ip.is_unspecified();
                    let address = message.requested_ip.filter(|_| unspecified);
                    let address = address.unwrap_or(message.client_ip);
                    let server = message.server_identifier.or(self.server);
                    // A renewal goes to the server that gave the lease, a rebinding to everybody.
                    let everybody = frame.get(..6) == Some(&[0xff; 6]) && !unspecified;
                    self.asked = match server {
                        Some(server) if !everybody => Asked::Lease(server, address),
                        _ => Asked::Any(address),
                    };
                }
                _ => {}
            }
        });
    }

    /// A frame from the wire; returned when the client may see it now.
    pub(super) fn received(&mut self, now_us: u64, frame: Vec<u8>) -> Option<Vec<u8>> {
        let judged = with_message(&frame, |message| self.judge(message));
        match judged {
            // Not DHCP: an ARP answer, or rubbish that the client drops itself.
            None => Some(frame),
            Some(Verdict::Pass) => Some(frame),
            Some(Verdict::Drop) => None,
            Some(Verdict::Gather(server)) => {
                if self.offers.len() < OFFERS_MAX || self.offers.contains_key(&server) {
                    self.offers.insert(server, frame);
                    self.choose_at_us.get_or_insert(now_us + OFFERS_US);
                }
                None
            }
        }
    }

    /// The offer chosen, once it is time.
    pub(super) fn due(&mut self, now_us: u64) -> Option<Vec<u8>> {
        self.choose_at_us.filter(|at| now_us >= *at)?;
        self.choose_at_us = None;
        let (server, frame) = self.offers.pop_first()?;
        let others: Vec<String> = self.offers.keys().map(ToString::to_string).collect();
        if !others.is_empty() {
            self.note(format!(
                "servers {server} and {} answer: taking {server}",
                others.join(", ")
            ));
        }
        self.offers.clear();
        Some(frame)
    }

    /// When [`Gate::due`] has something.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.choose_at_us
    }

    /// Whether a server has refused since this was asked last.
    pub(super) fn take_refused(&mut self) -> bool {
        std::mem::take(&mut self.refused)
    }

    /// Whether one has, and nothing may be sent for now.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Sentences for the console, each once.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn note(&mut self, text: String) {
        if self.noted.len() < NOTES_MAX && self.noted.insert(text.clone()) {
            self.notes.push(text);
        }
    }

    fn judge(&mut self, message: &DhcpRepr<'_>) -> Verdict {
        if message.transaction_id != self.xid {
            return Verdict::Drop;
        }
        match message.message_type {
            DhcpMessageType::Offer if self.asked == Asked::Offer => match lacks(message) {
                Ok(server) => Verdict::Gather(server),
                Err(what) => {
                    let server = message.server_identifier.unwrap_or(message.server_ip);
                    self.note(format!("offer of {server} ignored: {what}"));
                    Verdict::Drop
                }
            },
            DhcpMessageType::Ack => {
                let Ok(server) = lacks(message) else { return Verdict::Drop };
                if !self.is_asked(server, Some(message.your_ip)) {
                    return Verdict::Drop;
                }
                self.server = Some(server);
                Verdict::Pass
            }
            DhcpMessageType::Nak => {
                let server = message.server_identifier.unwrap_or(Ipv4Addr::UNSPECIFIED);
                if !self.is_asked(server, None) {
                    return Verdict::Drop;
                }
                self.note(format!("server {server} refuses: asking again later"));
                self.refused = true;
                Verdict::Pass
            }
            _ => Verdict::Drop,
        }
    }

    fn is_asked(&self, from: Ipv4Addr, about: Option<Ipv4Addr>) -> bool {
        match self.asked {
            Asked::Lease(server, address) => server == from && about.is_none_or(|a| a == address),
            Asked::Any(address) => about.is_none_or(|a| a == address),
            Asked::Nothing | Asked::Offer => false,
        }
    }
}

enum Verdict {
    Pass,
    Drop,
    Gather(Ipv4Addr),
}

/// The server's identifier, or what an offer or a lease lacks.
fn lacks(message: &DhcpRepr<'_>) -> Result<Ipv4Addr, &'static str> {
    let machine = |ip: &Ipv4Addr| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
    let server = message.server_identifier.filter(machine).ok_or("no server identifier")?;
    if !machine(&message.your_ip) || message.your_ip.is_loopback() {
        return Err("no address");
    }
    let mask = message.subnet_mask.ok_or("no subnet mask")?;
    if IpAddress::Ipv4(mask).prefix_len().is_none_or(|len| len == 0) {
        return Err("a subnet mask that is none");
    }
    if message.lease_duration.is_none_or(|seconds| seconds == 0) {
        return Err("no lease time");
    }
    Ok(server)
}

/// Reads the DHCP message in a frame, whichever way it goes.
fn with_message<T>(frame: &[u8], read: impl FnOnce(&DhcpRepr<'_>) -> T) -> Option<T> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    let udp = UdpPacket::new_checked(ip.payload()).ok()?;
    if !matches!((udp.src_port(), udp.dst_port()), (67, 68) | (68, 67)) {
        return None;
    }
    let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
    Some(read(&DhcpRepr::parse(&packet).ok()?))
}
