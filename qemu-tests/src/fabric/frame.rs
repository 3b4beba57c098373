//! Ethernet frames that servers in the switch send.

/// UDP over IPv4 in an Ethernet frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Udp4 {
    pub(super) from_mac: [u8; 6],
    pub(super) to_mac: [u8; 6],
    pub(super) from: [u8; 4],
    pub(super) to: [u8; 4],
    pub(super) from_port: u16,
    pub(super) to_port: u16,
}

impl Udp4 {
    /// The datagram in a frame that is none of ours: where it came from, and its payload.
    pub(super) fn read(frame: &[u8]) -> Option<(Self, &[u8])> {
        let ip = frame.get(14..)?;
        let udp = ip.get(usize::from(*ip.first()? & 15) * 4..)?;
        if frame.get(12..14)? != [8, 0] || *ip.get(9)? != 17 {
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
        let header = Self {
            from_mac: frame.get(6..12)?.try_into().ok()?,
            to_mac: frame.get(..6)?.try_into().ok()?,
            from: ip.get(12..16)?.try_into().ok()?,
            to: ip.get(16..20)?.try_into().ok()?,
            from_port: port(0)?,
            to_port: port(2)?,
        };
        Some((header, udp.get(8..)?))
    }

    /// The header of an answer.
    pub(super) fn back(self) -> Self {
        Self {
            from_mac: self.to_mac,
            to_mac: self.from_mac,
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
        }
    }

    /// The frame. A UDP checksum of 0 is none.
    pub(super) fn write(self, payload: &[u8]) -> Vec<u8> {
        let len = |more: usize| u16::try_from(payload.len() + more).unwrap_or(0).to_be_bytes();
        let mut ip = vec![0x45, 0];
        ip.extend(len(28));
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(self.from);
        ip.extend(self.to);
        let sum = checksum(&[&ip]).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        let mut out = [&self.to_mac[..], &self.from_mac, &[8, 0], &ip].concat();
        out.extend(self.from_port.to_be_bytes());
        out.extend(self.to_port.to_be_bytes());
        out.extend(len(8));
        out.extend([0, 0]);
        out.extend(payload);
        out
    }
}

/// The Internet checksum (RFC 1071) over parts of even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u32 =
        words.map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
