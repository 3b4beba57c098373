//! An IPv6 router that lives in the switch and does nothing but advertise a prefix (RFC 4861 §4.2, §4.6.2).

use super::frame::checksum;
use std::net::Ipv6Addr;

const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 133;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The router.
#[derive(Debug, Clone)]
pub struct Router {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The /64 it advertises for autoconfiguration.
    pub prefix: Ipv6Addr,
}

impl Router {
    /// An advertisement to everybody, for a frame that solicits one.
    pub(super) fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let asks = frame.get(12..14)? == [0x86, 0xdd]
            && *frame.get(20)? == ICMPV6
            && *frame.get(54)? == SOLICITATION;
        asks.then(|| self.advertisement())
    }

    fn advertisement(&self) -> Vec<u8> {
        // Type, code, checksum, hop limit, flags, lifetime 1800 s, reachable and retransmission times unspecified.
        let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        // Source link-layer address.
        message.extend([1, 1]);
        message.extend(self.mac);
        // Prefix information: /64, on-link and autonomous, valid a day, preferred four hours.
        message.extend([3, 4, 64, 0xc0]);
        message.extend(86_400u32.to_be_bytes());
        message.extend(14_400u32.to_be_bytes());
        message.extend([0; 4]);
        message.extend(self.prefix.octets());
        let len = u16::try_from(message.len()).unwrap_or(0).to_be_bytes();
        let (from, to) = (LINK_LOCAL.octets(), ALL_NODES.octets());
        let pseudo = [0, 0, len[0], len[1], 0, 0, 0, ICMPV6];
        let sum = checksum(&[&from, &to, &pseudo, &message]).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        let mut out = vec![0x33, 0x33, 0, 0, 0, 1];
        out.extend(self.mac);
        // Version 6, payload length, next header, hop limit 255 (RFC 4861 §6.1.2).
        out.extend([0x86, 0xdd, 0x60, 0, 0, 0, len[0], len[1], ICMPV6, 255]);
        out.extend(from);
        out.extend(to);
        out.extend(message);
        out
    }
}
