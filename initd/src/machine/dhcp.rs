//! A DHCPv4 client on one device: smoltcp's state machine over a packet socket.
//!
//! The kernel serves the address once it is configured. So that smoltcp does not answer for it (it would refuse
//! every flow it does not know), it is shown ARP answers and DHCP replies and nothing else, and of those only what
//! [`gate`] lets through. A refusal (NAK) starts over, after a pause that doubles.

mod gate;

use super::cmdline::NTP_MAX;
use gate::Gate;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{self, Checksum, Device, DeviceCapabilities, Medium},
    socket::dhcpv4,
    time::{Duration, Instant},
    wire::{DhcpPacket, EthernetAddress, IpCidr},
};
use std::net::Ipv4Addr;

/// Frames looked at in one poll; the rest waits in the socket, whose buffer drops what does not fit.
const BURST_MAX: usize = 64;
/// Largest frame received; longer ones are cut and fail their checksum.
const FRAME_BYTES_MAX: usize = 1514;
/// Longest host name or label list taken from a server; longer ones are ignored.
const TEXT_BYTES_MAX: usize = 255;
/// Labels as `key=value,key=value`: from the range RFC 3942 leaves to sites.
const OPT_LABELS: u8 = 224;
/// Nodes to meet, `IP:PORT` separated by spaces or commas; from the same range.
const OPT_SEEDS: u8 = 225;
const OPT_NTP: u8 = 42;
const OPT_HOSTNAME: u8 = 12;
const OPT_LEASE: u8 = 51;
/// Subnet mask, router, DNS, host name, time servers, lease time, labels, nodes.
const WANTED: &[u8] = &[1, 3, 6, OPT_HOSTNAME, OPT_NTP, OPT_LEASE, OPT_LABELS, OPT_SEEDS];
/// Pause after the first refusal; doubled by each further one.
const REFUSED_US: u64 = 1_000_000;
/// Longest pause after a refusal.
const REFUSED_US_MAX: u64 = 64_000_000;

/// Something frames go through.
pub(super) trait Wire {
    /// The next frame, `None` when there is none now.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// Sends a frame; a frame that cannot be sent is lost, as on any wire.
    fn send(&mut self, frame: &[u8]);
}

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) server: Ipv4Addr,
    pub(super) lease_s: Option<u32>,
    pub(super) hostname: Option<String>,
    pub(super) labels: Option<String>,
    pub(super) ntp: Vec<Ipv4Addr>,
    pub(super) seeds: Option<String>,
}

/// A change of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Granted(Lease),
    Lost,
}

/// The client of one device.
pub(super) struct Client {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    gate: Gate,
    refusals: u32,
    quiet_until_us: u64,
}

impl Client {
    /// `mac` of the device, `seed` for transaction numbers.
    pub(super) fn new(mac: [u8; 6], seed: u64, now_us: u64) -> Self {
        let mut config = Config::new(EthernetAddress(mac).into());
        config.random_seed = seed;
        let mut gate = Gate::default();
        let mut nothing = Frames { wire: &mut Nothing, gate: &mut gate, now_us };
        let interface = Interface::new(config, &mut nothing, instant(now_us));
        let mut socket = dhcpv4::Socket::new();
        let mut retry = socket.get_retry_config();
        // Switches drop the first frames while a port learns; ten seconds would be most of a boot.
        retry.discover_timeout = Duration::from_secs(2);
        retry.initial_request_timeout = Duration::from_secs(2);
        retry.request_retries = 3;
        socket.set_retry_config(retry);
        socket.set_parameter_request_list(WANTED);
        // One buffer per device and process life; smoltcp wants to borrow it for as long as the socket lives.
        socket.set_receive_packet_buffer(Box::leak(Box::new([0; FRAME_BYTES_MAX])));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, gate, refusals: 0, quiet_until_us: 0 }
    }

    /// Takes what the wire has and sends what is due.
    pub(super) fn poll(&mut self, now_us: u64, wire: &mut dyn Wire) -> Option<Change> {
        if now_us < self.quiet_until_us {
            return None;
        }
        let mut frames = Frames { wire, gate: &mut self.gate, now_us };
        self.interface.poll(instant(now_us), &mut frames, &mut self.sockets);
        if self.gate.take_refused() {
            let pause = REFUSED_US << self.refusals.min(16);
            self.quiet_until_us = now_us + pause.min(REFUSED_US_MAX);
            self.refusals = self.refusals.saturating_add(1);
        }
        let change = match self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle).poll()? {
            dhcpv4::Event::Deconfigured => Change::Lost,
            dhcpv4::Event::Configured(config) => {
                let option = |kind| config.packet.as_ref().and_then(|packet| find(packet, kind));
                let text = |kind| option(kind).and_then(printable);
                Change::Granted(Lease {
                    address: config.address.address(),
                    prefix: config.address.prefix_len(),
                    gateway: config.router,
                    dns: config.dns_servers.iter().copied().collect(),
                    server: config.server.identifier,
                    lease_s: option(OPT_LEASE)
                        .and_then(|b| Some(u32::from_be_bytes(b.try_into().ok()?))),
                    hostname: text(OPT_HOSTNAME),
                    labels: text(OPT_LABELS),
                    ntp: option(OPT_NTP).map(addresses).unwrap_or_default(),
                    seeds: text(OPT_SEEDS),
                })
            }
        };
        if matches!(change, Change::Granted(_)) {
            self.refusals = 0;
        }
        // Renewals are sent from the address, and ARP for the server needs it too.
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            if let Change::Granted(lease) = &change {
                let cidr = smoltcp::wire::Ipv4Cidr::new(lease.address, lease.prefix);
                let _ = addresses.push(IpCidr::Ipv4(cidr));
            }
        });
        self.interface.routes_mut().remove_default_ipv4_route();
        if let Change::Granted(Lease { gateway: Some(gateway), .. }) = change {
            let _ = self.interface.routes_mut().add_default_ipv4_route(gateway);
        }
        Some(change)
    }

    /// When [`Client::poll`] is due even without a frame.
    pub(super) fn next_deadline(&mut self, now_us: u64) -> Option<u64> {
        if now_us < self.quiet_until_us {
            return Some(self.quiet_until_us);
        }
        let at = self.interface.poll_at(instant(now_us), &self.sockets);
        let at = at.map(|at| u64::try_from(at.total_micros()).unwrap_or(0));
        at.into_iter().chain(self.gate.next_deadline()).min()
    }

    /// Sentences for the console about what servers did.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        self.gate.take_notes()
    }
}

fn instant(now_us: u64) -> Instant {
    Instant::from_micros(i64::try_from(now_us).unwrap_or(i64::MAX))
}

fn find<'a>(packet: &'a DhcpPacket<&'a [u8]>, kind: u8) -> Option<&'a [u8]> {
    packet.options().find(|option| option.kind == kind).map(|option| option.data)
}

/// Text of a stranger: printable ASCII, bounded, trailing NULs of old servers cut.
fn printable(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let good = !text.is_empty()
        && text.len() <= TEXT_BYTES_MAX
        && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    good.then(|| text.to_owned())
}

/// Addresses of machines in a list of a stranger, at most as many as are ever asked.
fn addresses(bytes: &[u8]) -> Vec<Ipv4Addr> {
    let read = |b: &[u8]| b.try_into().ok().map(|b: [u8; 4]| Ipv4Addr::from(b));
    bytes
        .chunks_exact(4)
        .filter_map(read)
        .filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast())
        .take(NTP_MAX)
        .collect()
}

/// Whether smoltcp may see a frame: ARP answers, and UDP to port 68 in an unfragmented IPv4 packet.
fn wanted(frame: &[u8]) -> bool {
    const ARP: &[u8] = &[0x08, 0x06];
    const IPV4: &[u8] = &[0x08, 0x00];
    match frame.get(12..14) {
        Some(ARP) => frame.get(20..22) == Some(&[0, 2]),
        Some(IPV4) => {
            let Some(first) = frame.get(14) else { return false };
            let header = usize::from(first & 0x0f) * 4;
            let whole = frame.get(20..22).is_some_and(|b| b[0] & 0x3f == 0 && b[1] == 0);
            whole
                && frame.get(23) == Some(&17)
                && frame.get(14 + header + 2..14 + header + 4) == Some(&[0, 68])
        }
        _ => false,
    }
}

struct Frames<'w> {
    wire: &'w mut dyn Wire,
    gate: &'w mut Gate,
    now_us: u64,
}
struct Received(Vec<u8>);
struct Transmit<'a> {
    wire: &'a mut dyn Wire,
    gate: &'a mut Gate,
}
struct Nothing;

impl Wire for Nothing {
    fn receive(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn send(&mut self, _: &[u8]) {}
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl phy::TxToken for Transmit<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.gate.sent(&frame);
        self.wire.send(&frame);
        result
    }
}

impl Device for Frames<'_> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Transmit<'a>
    where
        Self: 'a;

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = FRAME_BYTES_MAX;
        // A server on the same host leaves checksums to hardware that is not there (packet(7),
        // TP_STATUS_CSUMNOTREADY): check none, write all.
        caps.checksum.udp = Checksum::Tx;
        caps.checksum.ipv4 = Checksum::Tx;
        caps
    }

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmit<'_>)> {
        let Self { wire, gate, now_us } = self;
        let transmit = |frame, wire, gate| Some((Received(frame), Transmit { wire, gate }));
        if let Some(offer) = gate.due(*now_us) {
            return transmit(offer, &mut **wire, gate);
        }
        for _ in 0..BURST_MAX {
            let frame = wire.receive()?;
            if !wanted(&frame) {
                continue;
            }
            if let Some(frame) = gate.received(*now_us, frame) {
                return transmit(frame, &mut **wire, gate);
            }
        }
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmit<'_>> {
        // The next question waits until the pause after a refusal is over.
        (!self.gate.is_refused()).then_some(Transmit { wire: self.wire, gate: self.gate })
    }
}

#[cfg(test)]
mod tests;
