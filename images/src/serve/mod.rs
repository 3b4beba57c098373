//! Boots machines over their network: DHCP (beside the site's own server, or as the only one), TFTP for iPXE, HTTP for
//! the rest.
//!
//! ```text
//!  BIOS        ─DHCP▶ undionly.kpxe ─TFTP▶ iPXE ─DHCP▶ boot.ipxe ─HTTP▶ vmlinuz initramfs.cpio node.cpio
//!  UEFI PXE    ─DHCP▶ snponly.efi   ─TFTP▶ iPXE ─DHCP▶ boot.ipxe ─HTTP▶ the same
//!  UEFI HTTP   ─DHCP▶ uki.efi ─HTTP▶ one file with the machine's own archive inside
//! ```
//!
//! [`core`], [`dhcp`], [`tftp`], [`http`], [`lease`] and [`rack`] decide, without IO; what is here carries.
//!
//! **What is protected, and what is not.** A configuration with keys is given once for each time the machine's hardware
//! address asked by DHCP, within [`core::Config::window`], to the address that ARP knows as that hardware address, under
//! a one-time name. That keeps out mistakes, other subnets, and everybody who comes late. It does not keep out someone
//! on the same network who pretends to be the machine while it boots, or who reads its cable or its switch: plain HTTP
//! hides nothing. Provision on a network that only the rack is on, or serve without credentials.
//!
//! Invariants: read-only; nothing but the fixed names can be asked for; one datagram is answered by one at most, and
//! only to who asked; the site's own addresses are never given by a proxy.

pub mod core;
pub mod dhcp;
pub mod event;
pub mod http;
pub mod lease;
pub mod net;
pub mod ports;
pub mod rack;
pub mod tftp;
mod web;

pub use self::core::{Config, Unknown};
pub use dhcp::Mac;
pub use event::Event;
pub use net::Interface;
pub use ports::Ports;
pub use rack::Rack;

use self::core::{Answer, Core, Token};
use crate::{BootDir, Error, Result, Uki};
use bytes::Bytes;
use ports::{Guest, Neighbours, Opener, Port, Web};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

/// Downloads by TFTP at a time. Further requests are not answered; clients ask again.
pub const TFTP_SESSIONS_MAX: usize = 64;
/// Web connections at a time. Further ones wait.
pub const CONNECTIONS_MAX: usize = 256;
/// Longest that a web client may take for its request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest that one web connection lasts: a slow machine's kernel and initramfs.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(900);

/// Where a node's keys come from.
pub trait Keys {
    /// The files of one node's credentials, made at the first call for that machine and the same ever after.
    ///
    /// # Errors
    /// Why there are none, for people.
    fn files(&self, mac: Mac, name: &str) -> std::result::Result<Vec<(String, Vec<u8>)>, String>;
}

/// What a server serves, to whom, and whom it tells.
pub struct Server {
    /// What is booted.
    pub dir: BootDir,
    /// Who is who.
    pub rack: Rack,
    /// Where it stands and how it decides.
    pub config: Config,
    /// Keys for machines; `None`: none are given.
    pub keys: Option<Box<dyn Keys>>,
    /// Told everything.
    pub events: Box<dyn FnMut(Event)>,
}

/// What the tasks share.
struct Shared {
    core: RefCell<Core>,
    dir: BootDir,
    keys: Option<Box<dyn Keys>>,
    events: RefCell<Box<dyn FnMut(Event)>>,
    public_uki: RefCell<Option<Vec<Bytes>>>,
    start: Instant,
    opener: Opener,
    neighbours: Neighbours,
    sessions: RefCell<BTreeSet<SocketAddrV4>>,
}

/// Serves until `stop` is done.
///
/// # Errors
/// [`Error::Serve`] when the network goes away.
pub async fn run(server: Server, ports: Ports, stop: impl Future<Output = ()>) -> Result<()> {
    let Ports { mut dhcp, mut late, mut files, mut web, opener, neighbours } = ports;
    let shared = Rc::new(Shared {
        core: RefCell::new(Core::new(server.config, server.rack)),
        dir: server.dir,
        keys: server.keys,
        events: RefCell::new(server.events),
        public_uki: RefCell::default(),
        start: Instant::now(),
        opener,
        neighbours,
        sessions: RefCell::default(),
    });
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            tokio::select! {
                () = stop => Ok(()),
                error = answer_dhcp(&shared, &mut dhcp, false) => Err(gone("DHCP", error)),
                error = answer_dhcp(&shared, &mut late, true) => Err(gone("PXE", error)),
                error = answer_tftp(&shared, &mut files) => Err(gone("TFTP", error)),
                error = answer_http(&shared, &mut web) => Err(gone("HTTP", error)),
            }
        })
        .await
}

fn gone(what: &'static str, source: std::io::Error) -> Error {
    Error::Serve { what, source }
}

impl Shared {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn tell(&self, events: Vec<Event>) {
        let mut sink = self.events.borrow_mut();
        events.into_iter().for_each(&mut **sink);
    }

    fn trouble(&self, mac: Mac, name: &str, why: &str) {
        self.tell(vec![Event::new("error", mac).machine(name).detail(why)]);
    }

    fn http(&self, peer: Ipv4Addr, mac: Option<Mac>, ask: &http::Ask) -> Answer {
        let (answer, events) = self.core.borrow_mut().http(self.now(), peer, mac, ask, &mut fresh);
        self.tell(events);
        answer
    }

    fn keys(&self, mac: Mac, name: &str) -> std::result::Result<Vec<(String, Vec<u8>)>, String> {
        match &self.keys {
            Some(keys) => keys.files(mac, name),
            None => Ok(Vec::new()),
        }
    }

    /// A file that everybody may have.
    fn file(&self, name: &str) -> std::result::Result<Vec<Bytes>, String> {
        let one = match name {
            "vmlinuz" => &self.dir.vmlinuz,
            "initramfs.cpio" => &self.dir.initramfs,
            "undionly.kpxe" => &self.dir.undionly,
            "snponly.efi" => &self.dir.snponly,
            _ => {
                let mut kept = self.public_uki.borrow_mut();
                if kept.is_none() {
                    let uki = Uki::new(&self.dir.parts("", None)).map_err(|e| e.to_string())?;
                    *kept = Some(uki.segments);
                }
                return Ok(kept.clone().unwrap_or_default());
            }
        };
        Ok(vec![one.clone()])
    }

    /// A file that TFTP has.
    fn loader(&self, name: &str) -> Option<Bytes> {
        match name {
            "undionly.kpxe" => Some(self.dir.undionly.clone()),
            "snponly.efi" => Some(self.dir.snponly.clone()),
            _ => None,
        }
    }
}

/// Sixteen random bytes. Not to be had only on a kernel that has not started: then no answer is better than a guess.
fn fresh() -> Token {
    let mut token = [0; 16];
    let mut have = 0;
    while have < token.len() {
        have += rustix::rand::getrandom(&mut token[have..], rustix::rand::GetRandomFlags::empty())
            .unwrap_or(0);
    }
    token
}

async fn answer_dhcp(shared: &Shared, port: &mut Port, late: bool) -> std::io::Error {
    let mut buffer = [0; dhcp::MESSAGE_BYTES_MAX + 1];
    loop {
        let (len, from) = match port.receive(&mut buffer, &shared.neighbours).await {
            Ok(got) => got,
            Err(error) if passing(&error) => continue,
            Err(error) => return error,
        };
        let SocketAddr::V4(from) = from else { continue };
        let (send, events) =
            shared.core.borrow_mut().dhcp(shared.now(), late, from, &buffer[..len], &mut fresh);
        shared.tell(events);
        if let Some(send) = send
            && let Err(error) = port.send(&send.bytes, send.to).await
            && !passing(&error)
        {
            return error;
        }
    }
}

/// A destination that is not there is the client's trouble, not ours.
fn passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | Interrupted)
}

async fn answer_tftp(shared: &Rc<Shared>, port: &mut Port) -> std::io::Error {
    let mut buffer = [0; tftp::PACKET_BYTES_MAX];
    loop {
        let (len, from) = match port.receive(&mut buffer, &shared.neighbours).await {
            Ok(got) => got,
            Err(error) if passing(&error) => continue,
            Err(error) => return error,
        };
        let SocketAddr::V4(from) = from else { continue };
        let busy = shared.sessions.borrow().len() >= TFTP_SESSIONS_MAX;
        // The same request once more: its session sends again by itself.
        if busy || shared.sessions.borrow().contains(&from) {
            continue;
        }
        match tftp::start(shared.now(), &buffer[..len], |name| shared.loader(name)) {
            tftp::Start::Ignore => {}
            tftp::Start::Refuse(packet, why) => {
                tell_tftp(shared, from, "refused", &format!("TFTP: {why}"));
                let _ = port.send(&packet, from).await;
            }
            tftp::Start::Serve(session, first) => {
                shared.sessions.borrow_mut().insert(from);
                let shared = Rc::clone(shared);
                tokio::task::spawn_local(async move {
                    let (name, end) =
                        (session.name().to_owned(), carry(&shared, session, first, from).await);
                    shared.sessions.borrow_mut().remove(&from);
                    match end {
                        Ok(()) => tell_tftp(&shared, from, "tftp", &format!("has {name}")),
                        Err(why) => tell_tftp(&shared, from, "tftp", &format!("{name}: {why}")),
                    }
                });
            }
        }
    }
}

/// One download, from a port of its own (RFC 1350, 4).
async fn carry(
    shared: &Shared,
    mut session: tftp::Session,
    first: Vec<u8>,
    to: SocketAddrV4,
) -> std::result::Result<(), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut port = shared.opener.open(to).await.map_err(|e| e.to_string())?;
    let mut buffer = [0; tftp::PACKET_BYTES_MAX];
    let mut step = tftp::Step::Send(first);
    loop {
        match step {
            tftp::Step::Send(packet) => {
                port.send(&packet, to).await.map_err(failed)?;
            }
            tftp::Step::Wait => {}
            tftp::Step::Done => return Ok(()),
            tftp::Step::Failed(why) => return Err(why),
        }
        let wait = session.deadline().saturating_sub(shared.now());
        let answer = port.receive(&mut buffer, &shared.neighbours);
        step = match tokio::time::timeout(wait, answer).await {
            Ok(Ok((len, _))) => session.input(shared.now(), &buffer[..len]),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => session.timeout(shared.now()),
        };
    }
}

fn tell_tftp(shared: &Shared, from: SocketAddrV4, what: &'static str, detail: &str) {
    let mac = shared.neighbours.find(*from.ip()).unwrap_or(Mac([0; 6]));
    let name = shared.core.borrow().name_of(mac);
    shared.tell(vec![
        Event::new(what, mac).machine(&name).address((*from.ip()).into()).detail(detail),
    ]);
}

async fn answer_http(shared: &Rc<Shared>, web: &mut Web) -> std::io::Error {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // Before it is accepted, so that those who wait take no descriptor. The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { continue };
        let guest = match web.accept(&shared.neighbours).await {
            Ok(Some(guest)) => guest,
            Ok(None) => continue,
            // Out of descriptors, or the client went: others go on.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return error,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shared = Rc::clone(shared);
        tokio::task::spawn_local(async move {
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve_one(&shared, guest)).await;
            drop(place);
        });
    }
}

async fn serve_one(shared: &Shared, Guest { stream, from, .. }: Guest) {
    let peer = *from.ip();
    let service = hyper::service::service_fn(|request| {
        let mac = shared.neighbours.find(peer);
        let response = web::answer(shared, peer, mac, &request);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    // A client that goes away has its reasons; it was told of when it asked.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(hyper_util::rt::TokioIo::new(stream), service)
        .await;
}

#[cfg(test)]
#[path = "shell_tests.rs"]
mod tests;
