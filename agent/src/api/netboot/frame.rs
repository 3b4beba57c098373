//! What goes between an operator who boots machines and the node in between.
//!
//! A frame is `length (2 bytes, of what follows), kind (1), body`; numbers are big endian:
//!
//! | kind | from | body |
//! |---|---|---|
//! | 0 hello | node | JSON, [`Hello`]; the first frame |
//! | 1 datagram | both | socket (2), IPv4 address and port of the peer (6), its hardware address or zeros (6), bytes |
//! | 2 connection | node | number (4), address and port (6), hardware address (6): `POST /v1/node/netboot/NUMBER` takes it |
//! | 3 close | operator | socket (2) |
//! | 4 ping | operator | nothing |

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest frame after its length, in bytes; a larger one ends it.
pub const FRAME_BYTES_MAX: usize = 4096;

/// Where the node stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The interface.
    pub interface: String,
    /// The node's address there.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
}

/// A peer on the provisioning network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address and port.
    pub at: SocketAddrV4,
    /// Its hardware address as the node's ARP table has it.
    pub mac: Option<[u8; 6]>,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The first.
    Hello(Hello),
    /// A datagram that came, or is to be sent.
    Datagram(u16, Peer, Vec<u8>),
    /// Somebody has connected.
    Connection(u32, Peer),
    /// A socket with a peer is not needed any more.
    Close(u16),
    /// Still here.
    Ping,
}

impl Frame {
    /// As sent.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0, 0];
        let peer = |out: &mut Vec<u8>, peer: &Peer| {
            out.extend(peer.at.ip().octets());
            out.extend(peer.at.port().to_be_bytes());
            out.extend(peer.mac.unwrap_or_default());
        };
        match self {
            Self::Hello(hello) => {
                out.push(0);
                // Three plain fields: serialising them cannot fail.
                out.extend(serde_json::to_vec(hello).unwrap_or_default());
            }
            Self::Datagram(socket, from, bytes) => {
                out.push(1);
                out.extend(socket.to_be_bytes());
                peer(&mut out, from);
                out.extend(bytes);
            }
            Self::Connection(number, from) => {
                out.push(2);
                out.extend(number.to_be_bytes());
                peer(&mut out, from);
            }
            Self::Close(socket) => {
                out.push(3);
                out.extend(socket.to_be_bytes());
            }
            Self::Ping => out.push(4),
        }
        let length = u16::try_from(out.len() - 2).unwrap_or(u16::MAX).to_be_bytes();
        out.splice(..2, length);
        out
    }

    /// What follows a length; `None` for what is no frame.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (kind, body) = bytes.split_first()?;
        let peer = |body: &[u8]| {
            let (at, mac) = body.split_first_chunk::<6>()?;
            let (mac, rest) = mac.split_first_chunk::<6>()?;
            let [a, b, c, d, p, q] = *at;
            let at = SocketAddrV4::new([a, b, c, d].into(), u16::from_be_bytes([p, q]));
            Some((Peer { at, mac: Some(*mac).filter(|mac| *mac != [0; 6]) }, rest.to_vec()))
        };
        match kind {
            0 => Some(Self::Hello(serde_json::from_slice(body).ok()?)),
            1 => {
                let (socket, body) = body.split_first_chunk::<2>()?;
                let (peer, bytes) = peer(body)?;
                Some(Self::Datagram(u16::from_be_bytes(*socket), peer, bytes))
            }
            2 => {
                let (number, body) = body.split_first_chunk::<4>()?;
                let (peer, rest) = peer(body)?;
                rest.is_empty().then_some(Self::Connection(u32::from_be_bytes(*number), peer))
            }
            3 => Some(Self::Close(u16::from_be_bytes(body.try_into().ok()?))),
            4 => body.is_empty().then_some(Self::Ping),
            _ => None,
        }
    }

    /// Reads one. Must not be given up half-way.
    ///
    /// # Errors
    /// The stream ended, or what came is no frame.
    pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Self> {
        let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidData, "no netboot frame");
        let length = usize::from(from.read_u16().await?);
        if length > FRAME_BYTES_MAX {
            return Err(invalid());
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes).await?;
        Self::parse(&bytes).ok_or_else(invalid)
    }

    /// Writes it.
    ///
    /// # Errors
    /// The stream ended.
    pub async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
        to.write_all(&self.bytes()).await?;
        to.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(mac: Option<[u8; 6]>) -> Peer {
        Peer { at: "10.0.0.7:68".parse().unwrap(), mac }
    }

    #[test]
    fn frames_round_trip() {
        let hello = Hello { interface: "eth0".into(), address: [10, 0, 0, 1].into(), prefix: 24 };
        let mac = Some([0x52, 0x54, 0, 1, 2, 3]);
        for frame in [
            Frame::Hello(hello),
            Frame::Datagram(2, peer(mac), b"x".repeat(1500)),
            Frame::Datagram(99, peer(None), Vec::new()),
            Frame::Connection(7, peer(mac)),
            Frame::Close(16),
            Frame::Ping,
        ] {
            let bytes = frame.bytes();
            let (length, rest) = bytes.split_first_chunk::<2>().unwrap();
            assert_eq!(usize::from(u16::from_be_bytes(*length)), rest.len());
            assert_eq!(Frame::parse(rest), Some(frame));
        }
        for bad in [&[][..], &[9], &[4, 1], &[3, 1], &[2, 0, 0, 0, 1], &[1, 0, 0], &[0, b'{']] {
            assert_eq!(Frame::parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_frame_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(frame) = Frame::parse(&bytes)
                && !matches!(frame, Frame::Hello(_))
            {
                prop_assert_eq!(&frame.bytes()[2..], &bytes[..]);
            }
        }
    }
}
