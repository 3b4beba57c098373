//! A time server that lives in the switch, honest or not.

use super::frame::Udp4;
use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Seconds between 1900 and 1970.
const NTP_EPOCH_S: u64 = 2_208_988_800;

/// How the server behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Telling {
    /// The time of this machine.
    #[default]
    Truth,
    /// A day in 1999, before any image was made.
    LastCentury,
    /// The truth, without the echo that proves who was asked.
    WithoutEcho,
    /// That it has no time itself.
    Unsynchronised,
}

/// The server.
#[derive(Debug, Clone)]
pub struct TimeServer {
    /// Its address; whoever has it in the switch answers ARP for it.
    pub address: Ipv4Addr,
    /// How it behaves.
    pub telling: Telling,
    /// Questions it heard.
    pub heard: u64,
}

impl TimeServer {
    /// The answer to a frame, `None` when it is none of its business.
    pub(super) fn answer(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (header, asked) = Udp4::read(frame)?;
        if header.to != self.address.octets() || header.to_port != 123 || asked.len() < 48 {
            return None;
        }
        self.heard += 1;
        let now = match self.telling {
            Telling::LastCentury => Duration::from_secs(946_684_799),
            _ => SystemTime::now().duration_since(UNIX_EPOCH).ok()?,
        };
        let fraction = (u64::from(now.subsec_nanos()) << 32) / 1_000_000_000;
        let stamp = (((now.as_secs() + NTP_EPOCH_S) << 32) | fraction).to_be_bytes();
        let mut packet = [0; 48];
        packet[0] = 4 << 3 | 4;
        packet[1] = 2;
        if self.telling == Telling::Unsynchronised {
            packet[0] |= 3 << 6;
        }
        if self.telling != Telling::WithoutEcho {
            packet[24..32].copy_from_slice(&asked[40..48]);
        }
        packet[32..40].copy_from_slice(&stamp);
        packet[40..48].copy_from_slice(&stamp);
        Some(header.back().write(&packet))
    }
}
