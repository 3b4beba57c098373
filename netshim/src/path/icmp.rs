//! ICMP errors (RFC 792, RFC 4443): who gets one, and its bytes.

use std::net::IpAddr;

use crate::wire::{
    self, Inner, PROTOCOL_ICMP, PROTOCOL_ICMPV6, fill_ipv4_checksum, fold, pseudo_sum, sum_words,
};

/// ICMP errors a second; more are counted and not sent.
pub const ERRORS_PER_S_MAX: u32 = 200;
/// ICMP errors at once.
pub const ERRORS_BURST: u32 = 50;
/// Largest error for IPv4 (RFC 1812) and IPv6 (the least MTU).
const ERROR4_MAX_BYTES: usize = 576;
const ERROR6_MAX_BYTES: usize = 1_280;
const TTL: u8 = 64;

/// What to tell the sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The destination's node is known, but no such pod runs there.
    NoHost,
    /// No node has the destination's prefix.
    NoRoute,
    /// Not allowed.
    Prohibited,
    /// TTL or hop limit used up.
    TimeExceeded,
    /// Larger than this MTU.
    TooBig {
        /// Bytes.
        mtu: u16,
    },
}

impl Reason {
    fn v4(self) -> (u8, u8, u32) {
        match self {
            Reason::NoHost => (3, 1, 0),
            Reason::NoRoute => (3, 0, 0),
            Reason::Prohibited => (3, 13, 0),
            Reason::TimeExceeded => (11, 0, 0),
            Reason::TooBig { mtu } => (3, 4, u32::from(mtu)),
        }
    }

    fn v6(self) -> (u8, u8, u32) {
        match self {
            Reason::NoHost => (1, 3, 0),
            Reason::NoRoute => (1, 0, 0),
            Reason::Prohibited => (1, 1, 0),
            Reason::TimeExceeded => (3, 0, 0),
            Reason::TooBig { mtu } => (2, 0, u32::from(mtu)),
        }
    }
}

/// Writes the error about `packet` (parsed as `inner`) from `gateway` into `out`. `None` where none may be sent: about ICMP errors, later fragments, and
/// sources that are no single host.
pub fn error<'a>(
    reason: Reason,
    inner: &Inner,
    packet: &[u8],
    gateway: IpAddr,
    out: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    if inner.later_fragment || wire::is_martian(inner.source) || is_icmp_error(inner, packet) {
        return None;
    }
    out.clear();
    match (gateway, inner.source) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (kind, code, rest) = reason.v4();
            let quoted = packet.get(..packet.len().min(ERROR4_MAX_BYTES - 28))?;
            // At most 576.
            let [l0, l1] = ((28 + quoted.len()) as u16).to_be_bytes();
            out.extend_from_slice(&[0x45, 0, l0, l1, 0, 0, 0, 0, TTL, PROTOCOL_ICMP, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            out.extend_from_slice(&[kind, code, 0, 0]);
            out.extend_from_slice(&rest.to_be_bytes());
            out.extend_from_slice(quoted);
            fill_ipv4_checksum(out, 20);
            let sum = !fold(sum_words(0, out.get(20..)?));
            out.get_mut(22..24)?.copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (kind, code, rest) = reason.v6();
            let quoted = packet.get(..packet.len().min(ERROR6_MAX_BYTES - 48))?;
            let len = 8 + quoted.len();
            // At most 1,240.
            let [l0, l1] = (len as u16).to_be_bytes();
            out.extend_from_slice(&[0x60, 0, 0, 0, l0, l1, PROTOCOL_ICMPV6, TTL]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
            out.extend_from_slice(&[kind, code, 0, 0]);
            out.extend_from_slice(&rest.to_be_bytes());
            out.extend_from_slice(quoted);
            let reply = Inner::parse(out)?;
            let sum = !fold(sum_words(pseudo_sum(&reply, len), out.get(40..)?));
            out.get_mut(42..44)?.copy_from_slice(&sum.to_be_bytes());
        }
        _ => return None,
    }
    Some(out)
}

fn is_icmp_error(inner: &Inner, packet: &[u8]) -> bool {
    let kind = packet.get(inner.header_len).copied();
    match inner.protocol {
        // Echo request and reply, and timestamps, are no errors; a missing type byte is treated as one.
        PROTOCOL_ICMP => !matches!(kind, Some(0 | 8 | 13 | 14)),
        PROTOCOL_ICMPV6 => !matches!(kind, Some(128..)),
        _ => false,
    }
}
