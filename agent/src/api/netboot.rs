//! The provisioning network of a node, for an operator who boots machines through it: sockets are carried, nothing is decided.
//!
//! ```text
//!  operator: `quelea boot serve --on NODE` ◀─ frames ─▶ node: UDP 67, 4011, 69 and one port a download of TFTP
//!                                          ◀─ one stream a connection ─ node: TCP, the web server's port
//! ```
//!
//! What is served, who is who and every key stay with the operator. The node opens these ports of one interface and no other,
//! for one operator at a time, and closes them when the operator is gone or silent.

mod frame;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::response::Response;
use axum::routing::post;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

pub use frame::{FRAME_BYTES_MAX, Frame, Hello, Peer};

use super::relay::upgraded;
use super::server::{Refused, Shared};
use crate::tls::Caller;

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "quelea-netboot/1";
/// The call that opens the ports.
pub const PATH: &str = "/v1/node/netboot";
/// Ports that are always open, by the number of their socket.
pub const PORTS: [u16; 3] = [67, 4011, 69];
/// Sockets from here on are the operator's to number: each has a port of its own and one peer.
pub const SESSION_FIRST: u16 = 16;
/// How often an operator who has nothing to say says so.
pub const PING_EVERY: Duration = Duration::from_secs(5);
/// An operator who is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(20);
/// Sockets with a peer at a time; further ones are not opened.
const SESSIONS_MAX: usize = 64;
/// Connections that nobody has taken yet; the oldest goes when there are more.
const PENDING_MAX: usize = 64;
/// Frames on their way to the operator; datagrams beyond are lost, as datagrams may be.
const QUEUE_MAX: usize = 256;
/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 2048;
/// Bytes carried in one go, each way.
const BUFFER_BYTES: usize = 64 * 1024;

/// What the calls share: one operator at a time, and connections that wait to be taken.
pub struct Desk {
    turn: Arc<Semaphore>,
    pending: Mutex<BTreeMap<u32, TcpStream>>,
}

impl Default for Desk {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), pending: Mutex::default() }
    }
}

impl Desk {
    fn pending(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, TcpStream>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn routes() -> Router<Shared> {
    Router::new().route(PATH, post(open)).route("/v1/node/netboot/{number}", post(take))
}

#[derive(Deserialize)]
struct Wanted {
    /// The interface to the machines; the one with the node's address where absent.
    interface: Option<String>,
    /// The web server's port.
    http: u16,
}

async fn open(
    State(shared): State<Shared>,
    Query(wanted): Query<Wanted>,
    caller: Extension<Caller>,
    mut request: Request,
) -> Result<Response, Refused> {
    let turn =
        shared.netboot.turn.clone().try_acquire_owned().map_err(|_| {
            Refused(409, "an operator boots machines through this node already".into())
        })?;
    let own = shared.core.call(|node| node.config.address).await?;
    let place = place(wanted.interface.as_deref(), own).map_err(|why| Refused(409, why))?;
    let sockets = bind(&place, wanted.http).await.map_err(|why| Refused(409, why))?;
    let upgrade = hyper::upgrade::on(&mut request);
    let who = match caller.0 {
        Caller::Root => "root".to_owned(),
        Caller::Operator(name) | Caller::Node(name) => name,
    };
    let began = format!("{who} boots machines through {} of this node", place.interface);
    shared.core.call(move |node| node.event("machine", began)).await?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let desk = shared.netboot.clone();
            // Who goes away ends it.
            let _ = carry(TokioIo::new(upgraded), &desk, place, sockets).await;
            desk.pending().clear();
        }
        let ended = format!("{who} boots no more machines through this node");
        let _ = shared.core.insist(move |node| node.event("machine", ended)).await;
        drop(turn);
    });
    Ok(upgraded(PROTOCOL))
}

async fn take(
    State(shared): State<Shared>,
    Path(number): Path<u32>,
    mut request: Request,
) -> Result<Response, Refused> {
    let gone = || Refused(404, format!("connection {number} is gone"));
    let mut guest = shared.netboot.pending().remove(&number).ok_or_else(gone)?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let mut caller = TokioIo::new(upgraded);
            let (there, back) = (BUFFER_BYTES, BUFFER_BYTES);
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut caller, &mut guest, there, back)
                .await;
        }
    });
    Ok(upgraded(PROTOCOL))
}

/// The interface of this name, or the one with this address.
fn place(name: Option<&str>, own: std::net::IpAddr) -> Result<Hello, String> {
    let all = nix::ifaddrs::getifaddrs().map_err(|e| format!("cannot list interfaces: {e}"))?;
    let mut seen = Vec::new();
    for item in all {
        let ip = |a: &Option<nix::sys::socket::SockaddrStorage>| {
            a.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip())
        };
        let (Some(address), Some(mask)) = (ip(&item.address), ip(&item.netmask)) else { continue };
        let meant = match name {
            Some(name) => item.interface_name == name,
            None => own == address,
        };
        if meant {
            let prefix = u8::try_from(u32::from(mask).count_ones()).unwrap_or(32);
            return Ok(Hello { interface: item.interface_name, address, prefix });
        }
        if !address.is_loopback() {
            seen.push(format!("{} ({address})", item.interface_name));
        }
    }
    let name = name.map_or_else(|| format!("with {own}"), str::to_owned);
    Err(format!("no interface {name} with an IPv4 address here; there are {}", seen.join(", ")))
}

struct Sockets {
    udp: Vec<Arc<UdpSocket>>,
    web: TcpListener,
}

async fn udp(place: &Hello, address: Ipv4Addr, port: u16) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address, port)).await?;
    socket.bind_device(Some(place.interface.as_bytes()))?;
    socket.set_broadcast(true)?;
    Ok(socket)
}

async fn bind(place: &Hello, http: u16) -> Result<Sockets, String> {
    let failed = |what: &str, port: u16, e: &std::io::Error| {
        format!("cannot listen on {what} {port} of {}: {e}", place.interface)
    };
    let mut sockets = Vec::new();
    for port in PORTS {
        // Who has no address yet asks by broadcast.
        let address = if port == 67 { Ipv4Addr::UNSPECIFIED } else { place.address };
        let socket = udp(place, address, port).await.map_err(|e| failed("UDP", port, &e))?;
        sockets.push(Arc::new(socket));
    }
    let web = TcpListener::bind((place.address, http)).await;
    Ok(Sockets { udp: sockets, web: web.map_err(|e| failed("TCP", http, &e))? })
}

async fn carry(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    desk: &Arc<Desk>,
    place: Hello,
    sockets: Sockets,
) -> std::io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let (news, mut queue) = mpsc::channel::<Frame>(QUEUE_MAX);
    // Ends with this function, and all in it.
    let mut tasks = JoinSet::new();
    Frame::Hello(place.clone()).write(&mut to).await?;
    for (number, socket) in (0u16..).zip(&sockets.udp) {
        tasks.spawn(listen(number, socket.clone(), place.interface.clone(), news.clone()));
    }
    tasks.spawn(accept(sockets.web, desk.clone(), place.interface.clone(), news.clone()));
    let writer = tasks.spawn(async move {
        while let Some(frame) = queue.recv().await {
            if frame.write(&mut to).await.is_err() {
                break;
            }
        }
    });
    let mut sessions: BTreeMap<u16, (Arc<UdpSocket>, AbortHandle)> = BTreeMap::new();
    while !writer.is_finished() {
        let frame = tokio::time::timeout(SILENCE, Frame::read(&mut from)).await;
        match frame.map_err(|_| std::io::ErrorKind::TimedOut)?? {
            Frame::Datagram(number, peer, bytes) => {
                let known = sockets.udp.get(usize::from(number));
                let socket = match known.or(sessions.get(&number).map(|(socket, _)| socket)) {
                    Some(socket) => socket.clone(),
                    None if number >= SESSION_FIRST && sessions.len() < SESSIONS_MAX => {
                        let socket = Arc::new(udp(&place, place.address, 0).await?);
                        socket.connect(SocketAddr::V4(peer.at)).await?;
                        let (device, news) = (place.interface.clone(), news.clone());
                        let task = tasks.spawn(listen(number, socket.clone(), device, news));
                        sessions.insert(number, (socket.clone(), task));
                        socket
                    }
                    None => continue,
                };
                // A peer that is not there is its own trouble.
                let _ = if number >= SESSION_FIRST {
                    socket.send(&bytes).await
                } else {
                    socket.send_to(&bytes, SocketAddr::V4(peer.at)).await
                };
            }
            Frame::Close(number) => {
                if let Some((_, task)) = sessions.remove(&number) {
                    task.abort();
                }
            }
            Frame::Ping | Frame::Hello(_) | Frame::Connection(..) => {}
        }
        while tasks.try_join_next().is_some() {}
    }
    writer.abort();
    Ok(())
}

async fn listen(number: u16, socket: Arc<UdpSocket>, device: String, news: mpsc::Sender<Frame>) {
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, SocketAddr::V4(at))) => {
                let peer = Peer { at, mac: neighbour(&device, *at.ip()) };
                let bytes = buffer.get(..length).unwrap_or_default().to_vec();
                // Full: it is lost, and its sender asks again.
                let _ = news.try_send(Frame::Datagram(number, peer, bytes));
            }
            Ok(_) => {}
            // ICMP's word about an earlier datagram.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn accept(web: TcpListener, desk: Arc<Desk>, device: String, news: mpsc::Sender<Frame>) {
    let mut number = 0u32;
    loop {
        let Ok((stream, SocketAddr::V4(at))) = web.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        number = number.wrapping_add(1);
        {
            let mut pending = desk.pending();
            while pending.len() >= PENDING_MAX {
                pending.pop_first();
            }
            pending.insert(number, stream);
        }
        let peer = Peer { at, mac: neighbour(&device, *at.ip()) };
        if news.send(Frame::Connection(number, peer)).await.is_err() {
            return;
        }
    }
}

/// The hardware address of a neighbour, as the kernel's ARP table has it.
fn neighbour(device: &str, address: Ipv4Addr) -> Option<[u8; 6]> {
    in_arp(&std::fs::read_to_string("/proc/thread-self/net/arp").ok()?, device, address)
}

/// Columns: address, type, flags (0x2: complete), hardware address, mask, device.
fn in_arp(table: &str, device: &str, address: Ipv4Addr) -> Option<[u8; 6]> {
    let address = address.to_string();
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let ours = fields.next()? == address;
        let flags = u32::from_str_radix(fields.nth(1)?.strip_prefix("0x")?, 16).ok()?;
        let mac = fields.next()?;
        if !ours || flags & 2 == 0 || fields.nth(1)? != device {
            return None;
        }
        let mut bytes = [0; 6];
        let mut parts = mac.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_knows_complete_neighbours_of_one_device() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.0.0.7         0x1         0x2         52:54:00:12:34:56     *        eth0\n\
            10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        eth0\n\
            10.0.0.9         0x1         0x2         52:54:00:12:34:57     *        eth1\n";
        let of = |ip: &str| in_arp(table, "eth0", ip.parse().unwrap());
        assert_eq!(of("10.0.0.7"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert_eq!((of("10.0.0.8"), of("10.0.0.9"), of("10.0.0.1")), (None, None, None));
    }

    #[test]
    fn datagrams_and_connections_are_carried_until_the_operator_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let place = place(None, [127, 0, 0, 1].into()).unwrap();
            assert_eq!(place.interface, "lo");
            let local = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
            let socket = Arc::new(local().await.unwrap());
            let at = socket.local_addr().unwrap();
            let web = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let web_at = web.local_addr().unwrap();
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            let desk = Arc::new(Desk::default());
            let sockets = Sockets { udp: vec![socket], web };
            let shared = desk.clone();
            let task = tokio::spawn(async move { carry(theirs, &shared, place, sockets).await });
            let (mut from, mut to) = tokio::io::split(ours);
            assert!(matches!(Frame::read(&mut from).await.unwrap(), Frame::Hello(_)));

            let machine = local().await.unwrap();
            machine.send_to(b"discover", at).await.unwrap();
            let Frame::Datagram(0, peer, bytes) = Frame::read(&mut from).await.unwrap() else {
                panic!("no datagram")
            };
            assert_eq!((bytes.as_slice(), peer.mac), (&b"discover"[..], None));
            // From a port of its own, and back there.
            let data = Frame::Datagram(SESSION_FIRST, peer, b"block 1".to_vec());
            data.write(&mut to).await.unwrap();
            let mut buffer = [0; 64];
            let (n, session) = machine.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..n], b"block 1");
            assert_ne!(session, at);
            machine.send_to(b"ack 1", session).await.unwrap();
            let answer = Frame::read(&mut from).await.unwrap();
            assert_eq!(answer, Frame::Datagram(SESSION_FIRST, peer, b"ack 1".to_vec()));
            Frame::Close(SESSION_FIRST).write(&mut to).await.unwrap();

            let _guest = TcpStream::connect(web_at).await.unwrap();
            assert!(matches!(Frame::read(&mut from).await.unwrap(), Frame::Connection(1, _)));
            assert!(desk.pending().contains_key(&1));

            drop((from, to));
            assert!(task.await.unwrap().is_err(), "its end is the operator's");
            assert!(UdpSocket::bind(at).await.is_ok(), "the ports are free again");
        });
    }
}
