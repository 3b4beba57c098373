//! `quelea boot serve --on NODE`: the ports are a node's, everything else is here.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agent::api::client::{Endpoint, empty};
use agent::api::netboot::{Frame, PATH, PING_EVERY, PORTS, PROTOCOL, Peer, SESSION_FIRST};
use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use images::serve::Interface;
use images::serve::TFTP_SESSIONS_MAX;
use images::serve::ports::{Datagram, Far, Guest, Neighbours, Opener, Port, Ports, Web};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

/// Datagrams of one port, and connections, that wait to be looked at; further datagrams are lost.
const QUEUE_MAX: usize = 256;
/// Frames that wait to be sent to the node: datagrams, further ones are lost, and a place for each session's end, which is not.
const FRAMES_MAX: usize = QUEUE_MAX + 2 * TFTP_SESSIONS_MAX;

/// Where datagrams of a socket go.
type Inboxes = Arc<Mutex<BTreeMap<u16, mpsc::Sender<Datagram>>>>;

fn register(inboxes: &Inboxes, socket: u16) -> mpsc::Receiver<Datagram> {
    let (sender, inbox) = mpsc::channel(QUEUE_MAX);
    inboxes.lock().unwrap_or_else(PoisonError::into_inner).insert(socket, sender);
    inbox
}

/// Opens the ports of a node. They are closed when what is returned is dropped.
///
/// # Errors
/// The node is out of reach, or refuses: a port is taken, or another operator is there.
pub(super) async fn open(
    endpoint: Endpoint,
    interface: Option<&str>,
    http_port: u16,
) -> Result<(Interface, Ports)> {
    let mut path = format!("{PATH}?http={http_port}");
    if let Some(name) = interface {
        // What no interface is named would be another query.
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@:".contains(&b)) {
            bail!("{name:?} is no name of an interface");
        }
        path += &format!("&interface={name}");
    }
    let response = endpoint.upgrade(&path, empty(), PROTOCOL).await?;
    let stream = TokioIo::new(hyper::upgrade::on(response).await.context("the node ended it")?);
    let (mut from, to) = tokio::io::split(stream);
    let first = Frame::read(&mut from).await.context("the node ended it")?;
    let Frame::Hello(hello) = first else { bail!("the node speaks another protocol") };
    let (frames, queue) = mpsc::channel(FRAMES_MAX);
    let inboxes = Inboxes::default();
    let mut ports = (0u16..).zip(PORTS).map(|(socket, _)| {
        let inbox = register(&inboxes, socket);
        Port::There(far(socket, inbox, &frames, None))
    });
    let (Some(dhcp), Some(late), Some(files)) = (ports.next(), ports.next(), ports.next()) else {
        bail!("three ports are expected")
    };
    drop(ports);
    let (guests, connections) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(write(to, queue));
    tokio::spawn(read(from, Arc::clone(&inboxes), endpoint, guests));
    let place = Interface { name: hello.interface, address: hello.address, prefix: hello.prefix };
    let opener = Opener::There(opener(inboxes, frames));
    let (web, neighbours) = (Web::There(connections), Neighbours::There(RefCell::default()));
    Ok((place, Ports { dhcp, late, files, web, opener, neighbours }))
}

fn far(
    socket: u16,
    inbox: mpsc::Receiver<Datagram>,
    frames: &mpsc::Sender<Frame>,
    close: Option<Box<dyn FnOnce()>>,
) -> Far {
    let frames = frames.clone();
    let send = Box::new(move |at, bytes: &[u8]| {
        // What stays free is for sessions that open. The end of the writer is the end of the reader, which says so.
        if frames.capacity() > TFTP_SESSIONS_MAX {
            let _ =
                frames.try_send(Frame::Datagram(socket, Peer { at, mac: None }, bytes.to_vec()));
        }
    });
    Far { inbox, send, close }
}

/// Each has a number of its own; the server bounds how many there are.
fn opener(
    inboxes: Inboxes,
    frames: mpsc::Sender<Frame>,
) -> Box<dyn Fn(std::net::SocketAddrV4) -> Far> {
    let next = std::cell::Cell::new(SESSION_FIRST);
    Box::new(move |_| {
        let socket = next.get();
        next.set(socket.checked_add(1).unwrap_or(SESSION_FIRST));
        let inbox = register(&inboxes, socket);
        // Its end has its place from the start.
        let Ok(end) = frames.clone().try_reserve_owned() else {
            // The node takes nothing any more: to whoever reads it this port has ended already.
            inboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(&socket);
            return far(socket, inbox, &frames, None);
        };
        let inboxes = Arc::clone(&inboxes);
        let close = Box::new(move || {
            inboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(&socket);
            end.send(Frame::Close(socket));
        });
        far(socket, inbox, &frames, Some(close))
    })
}

async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Frame>) {
    loop {
        let frame = match tokio::time::timeout(PING_EVERY, queue.recv()).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return,
            Err(_) => Frame::Ping,
        };
        if frame.write(&mut to).await.is_err() {
            return;
        }
    }
}

/// Ends with the node's service; what waits for datagrams or connections hears of it then.
async fn read(
    mut from: impl AsyncRead + Unpin,
    inboxes: Inboxes,
    endpoint: Endpoint,
    guests: mpsc::Sender<Guest>,
) {
    while let Ok(frame) = Frame::read(&mut from).await {
        match frame {
            Frame::Datagram(socket, peer, bytes) => {
                let inboxes = inboxes.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(inbox) = inboxes.get(&socket) {
                    let mac = peer.mac.map(images::serve::Mac);
                    let _ = inbox.try_send(Datagram { from: peer.at, mac, bytes });
                }
            }
            Frame::Connection(number, peer) => {
                tokio::spawn(fetch(endpoint.clone(), number, peer, guests.clone()));
            }
            Frame::Hello(_) | Frame::Close(_) | Frame::Ping => {}
        }
    }
    inboxes.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Takes a connection that waits at the node. One that fails is closed there; its machine asks again.
async fn fetch(endpoint: Endpoint, number: u32, peer: Peer, guests: mpsc::Sender<Guest>) {
    let path = format!("{PATH}/{number}");
    let Ok(response) = endpoint.upgrade(&path, empty(), PROTOCOL).await else { return };
    let Ok(upgraded) = hyper::upgrade::on(response).await else { return };
    let stream = Box::new(TokioIo::new(upgraded));
    let mac = peer.mac.map(images::serve::Mac);
    let _ = guests.send(Guest { stream, from: peer.at, mac }).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: std::net::SocketAddrV4 =
        std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 69);

    /// A node that reads nothing: datagrams are lost beyond the bound, every session's end is kept, and a session too many
    /// begins with its end.
    #[test]
    fn what_a_node_does_not_take_is_bounded_and_no_end_is_lost() {
        let (frames, mut queue) = mpsc::channel(FRAMES_MAX);
        let inboxes = Inboxes::default();
        let open = opener(Arc::clone(&inboxes), frames);
        let first = open(ANY);
        for _ in 0..2 * FRAMES_MAX {
            (first.send)(ANY, b"lost");
        }
        assert_eq!(queue.len(), FRAMES_MAX - 1 - TFTP_SESSIONS_MAX, "one place is the first's end");
        let open_now = || inboxes.lock().unwrap().len();
        let sessions: Vec<Far> = (0..TFTP_SESSIONS_MAX).map(|_| open(ANY)).collect();
        assert_eq!(open_now(), 1 + TFTP_SESSIONS_MAX);
        let mut refused = open(ANY);
        assert_eq!(open_now(), 1 + TFTP_SESSIONS_MAX);
        assert!(refused.inbox.blocking_recv().is_none());
        drop((first, sessions));
        assert_eq!((open_now(), queue.len()), (0, FRAMES_MAX));
        let mut ends = 0;
        while let Ok(frame) = queue.try_recv() {
            ends += usize::from(matches!(frame, Frame::Close(_)));
        }
        assert_eq!(ends, 1 + TFTP_SESSIONS_MAX);
    }
}
