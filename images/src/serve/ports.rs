//! The ports a server answers on: this machine's own, or those of a machine that carries for it.

use super::{
    core::SEEN_MAX,
    dhcp::Mac,
    net::{self, Interface},
};
use crate::Result;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UdpSocket},
    sync::mpsc,
};

/// A connection, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + std::marker::Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + std::marker::Send> Stream for T {}

/// Somebody who has connected.
pub struct Guest {
    /// The connection.
    pub stream: Box<dyn Stream>,
    /// From where.
    pub from: SocketAddrV4,
    /// The hardware address behind it, where it is a neighbour.
    pub mac: Option<Mac>,
}

/// A datagram that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// From where.
    pub from: SocketAddrV4,
    /// The hardware address behind it, where it is a neighbour.
    pub mac: Option<Mac>,
    /// What it says.
    pub bytes: Vec<u8>,
}

/// Sends a datagram from another machine.
pub type Send = Box<dyn Fn(SocketAddrV4, &[u8])>;

/// A UDP port of a machine that carries for us. Dropping it gives it back.
pub struct Far {
    /// What came; its end is the end of the other machine's service.
    pub inbox: mpsc::Receiver<Datagram>,
    /// Sends one.
    pub send: Send,
    /// Says that it is not needed any more.
    pub close: Option<Box<dyn FnOnce()>>,
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(close) = self.close.take() {
            close();
        }
    }
}

/// A UDP port.
pub enum Port {
    /// This machine's.
    Here(UdpSocket),
    /// Another's.
    There(Far),
}

impl Port {
    /// The next datagram; one that is longer than the buffer is cut.
    ///
    /// # Errors
    /// As `recvfrom(2)`; [`io::ErrorKind::BrokenPipe`] when the other machine is gone.
    pub(super) async fn receive(
        &mut self,
        buffer: &mut [u8],
        known: &Neighbours,
    ) -> io::Result<(usize, SocketAddr)> {
        match self {
            Self::Here(socket) => socket.recv_from(buffer).await,
            Self::There(far) => {
                let datagram = far.inbox.recv().await.ok_or(io::ErrorKind::BrokenPipe)?;
                known.learn(*datagram.from.ip(), datagram.mac);
                let len = datagram.bytes.len().min(buffer.len());
                buffer[..len].copy_from_slice(&datagram.bytes[..len]);
                Ok((len, datagram.from.into()))
            }
        }
    }

    /// Sends one.
    ///
    /// # Errors
    /// As `sendto(2)`; what another machine sends is not known to have left.
    pub(super) async fn send(&self, bytes: &[u8], to: SocketAddrV4) -> io::Result<()> {
        match self {
            Self::Here(socket) => socket.send_to(bytes, to).await.map(drop),
            Self::There(far) => {
                (far.send)(to, bytes);
                Ok(())
            }
        }
    }
}

/// The web server's port.
pub enum Web {
    /// This machine's.
    Here(TcpListener),
    /// Connections that another machine took.
    There(mpsc::Receiver<Guest>),
}

impl Web {
    /// The next connection; none of a client that is not on IPv4.
    ///
    /// # Errors
    /// As `accept(2)`; [`io::ErrorKind::InvalidInput`] when there will be no further one.
    pub(super) async fn accept(&mut self, known: &Neighbours) -> io::Result<Option<Guest>> {
        match self {
            Self::Here(listener) => {
                let (stream, from) = listener.accept().await?;
                let SocketAddr::V4(from) = from else { return Ok(None) };
                Ok(Some(Guest { stream: Box::new(stream), from, mac: None }))
            }
            Self::There(guests) => {
                let guest = guests.recv().await.ok_or(io::ErrorKind::InvalidInput)?;
                known.learn(*guest.from.ip(), guest.mac);
                Ok(Some(guest))
            }
        }
    }
}

/// How further ports are had, one a download by TFTP.
pub enum Opener {
    /// Here.
    Here {
        /// The interface.
        interface: String,
        /// Our address.
        address: Ipv4Addr,
    },
    /// There, for one peer.
    There(Box<dyn Fn(SocketAddrV4) -> Far>),
}

impl Opener {
    /// A port that hears one peer only.
    ///
    /// # Errors
    /// [`crate::Error::Port`].
    pub(super) async fn open(&self, peer: SocketAddrV4) -> Result<Port> {
        match self {
            Self::Here { interface, address } => {
                let socket = net::udp(interface, *address, 0)?;
                let connected = socket.connect(peer).await;
                connected.map_err(|source| net::taken("udp", peer.port(), source))?;
                Ok(Port::Here(socket))
            }
            Self::There(open) => Ok(Port::There(open(peer))),
        }
    }
}

/// Who has which hardware address on the provisioning network.
pub enum Neighbours {
    /// As this machine's ARP table has it, on this interface.
    Here(String),
    /// As the other machine said last.
    There(RefCell<BTreeMap<Ipv4Addr, Mac>>),
}

impl Neighbours {
    fn learn(&self, address: Ipv4Addr, mac: Option<Mac>) {
        let Self::There(known) = self else { return };
        let mut known = known.borrow_mut();
        if known.len() >= SEEN_MAX {
            known.clear();
        }
        match mac {
            Some(mac) => known.insert(address, mac),
            None => known.remove(&address),
        };
    }

    pub(super) fn find(&self, address: Ipv4Addr) -> Option<Mac> {
        match self {
            Self::Here(interface) => net::neighbour(interface, address),
            Self::There(known) => known.borrow().get(&address).copied(),
        }
    }
}

/// All of a server's ports.
pub struct Ports {
    /// UDP 67.
    pub dhcp: Port,
    /// UDP 4011.
    pub late: Port,
    /// UDP 69.
    pub files: Port,
    /// TCP.
    pub web: Web,
    /// Further ones.
    pub opener: Opener,
    /// Who is who there.
    pub neighbours: Neighbours,
}

impl Ports {
    /// This machine's, on one interface.
    ///
    /// # Errors
    /// [`crate::Error::Port`], with who holds it.
    pub fn here(interface: &Interface, http_port: u16) -> Result<Self> {
        let (name, address) = (&interface.name, interface.address);
        Ok(Self {
            dhcp: Port::Here(net::udp(name, Ipv4Addr::UNSPECIFIED, 67)?),
            late: Port::Here(net::udp(name, address, 4011)?),
            files: Port::Here(net::udp(name, address, 69)?),
            web: Web::Here(net::tcp(address, http_port)?),
            opener: Opener::Here { interface: name.clone(), address },
            neighbours: Neighbours::Here(name.clone()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_machine_says_of_its_neighbours_is_the_last_word() {
        let known = Neighbours::There(RefCell::default());
        let (ip, mac) = ([10, 0, 0, 7].into(), "52:54:00:12:34:56".parse().unwrap());
        known.learn(ip, Some(mac));
        assert_eq!(known.find(ip), Some(mac));
        known.learn(ip, None);
        assert_eq!(known.find(ip), None, "whoever has the address now is not that machine");
    }
}
