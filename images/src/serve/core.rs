//! What a boot server decides, without IO: who is answered, what each machine loads, and who gets a configuration.
//!
//! ```text
//!  DHCP from a MAC ─▶ a window opens ─▶ its script or image, named by a one-time token ─▶ its configuration, once
//!                                       (asked for by the address that ARP knows as that MAC)
//! ```

use super::{
    dhcp::{Client, Kind, Mac, Reply, Request, Verdict},
    event::Event,
    http::{self, Target},
    lease::{LEASE, Pool},
    rack::{Machine, Rack},
};
use crate::ipxe;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

/// Machines remembered. When that many were seen, further ones are not answered.
pub const SEEN_MAX: usize = 4096;
/// Machines remembered when one that `rack.toml` does not name is passed over: made-up addresses do not shut those out that are.
pub const SEEN_BY_STRANGERS_MAX: usize = SEEN_MAX / 2;
/// Machines booted before that a new one is told to join.
pub const PEERS_MAX: usize = 8;

/// The same news of one machine is told again after that.
const AGAIN: Duration = Duration::from_secs(10);
const BROADCAST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);

/// What is done with a machine that `rack.toml` does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It boots, without credentials, and waits.
    Maintenance,
    /// It is not answered.
    Ignore,
    /// It becomes a node, named by the template.
    Auto,
}

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our address on the provisioning network.
    pub server: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// Port of our web server.
    pub http_port: u16,
    /// Who is not in `rack.toml`.
    pub unknown: Unknown,
    /// The name of who is not in `rack.toml`: `{mac}`, `{mac6}`, `{mac4}` are replaced.
    pub names: String,
    /// Whether configurations hold a node's keys.
    pub credentials: bool,
    /// How long after a machine's DHCP its configuration can be fetched.
    pub window: Duration,
    /// Addresses to lend; `None`: a proxy beside the site's own DHCP server.
    pub pool: Option<Pool>,
    /// Kernel arguments of every machine.
    pub cmdline: String,
}

/// Random bytes that name one fetch.
pub type Token = [u8; 16];

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// To whom.
    pub to: SocketAddrV4,
    /// What.
    pub bytes: Vec<u8>,
}

/// What a web request comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A file of the boot directory.
    File(&'static str),
    /// Text.
    Text(String),
    /// A machine's own archive, or the image with it inside.
    Node(Box<Given>),
    /// No, with an HTTP status and why.
    Refuse(u16, String),
}

/// A configuration that is given away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// To whom.
    pub mac: Mac,
    /// What it is.
    pub machine: Machine,
    /// Its `node.toml`.
    pub node_toml: String,
    /// Whether its keys go with it.
    pub credentials: bool,
    /// As an EFI image with kernel and initramfs.
    pub uki: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The DHCP answer named the token.
    Open(Token),
    /// The script named this one.
    Scripted(Token),
    /// The configuration is on its way to this address.
    Taken(Token, Ipv4Addr),
}

#[derive(Debug, Clone, Default)]
struct Seen {
    opened: Duration,
    stage: Option<Stage>,
    address: Option<Ipv4Addr>,
    configured: bool,
    told: Option<(&'static str, Duration)>,
}

/// The server's mind.
#[derive(Debug)]
pub struct Core {
    config: Config,
    rack: Rack,
    seen: BTreeMap<Mac, Seen>,
}

impl Core {
    /// A server that has seen nobody.
    #[must_use]
    pub fn new(mut config: Config, rack: Rack) -> Self {
        if let Some(pool) = &mut config.pool {
            for (mac, address) in rack.addresses() {
                if let IpAddr::V4(address) = address {
                    pool.reserve(address, mac);
                }
            }
            // Within the range or not, ours is not lent: no Ethernet machine has this hardware address.
            pool.reserve(config.server, Mac([0; 6]));
        }
        Self { config, rack, seen: BTreeMap::new() }
    }

    /// Machines that `rack.toml` names, and how many of them have their configuration.
    #[must_use]
    pub fn progress(&self) -> (usize, usize) {
        let done = |(mac, seen): &(&Mac, &Seen)| seen.configured && self.rack.names(**mac);
        (self.seen.iter().filter(done).count(), self.rack.named())
    }

    /// The name of a machine; empty where it has none.
    #[must_use]
    pub fn name_of(&self, mac: Mac) -> String {
        self.machine(mac).map(|machine| machine.name).unwrap_or_default()
    }

    /// Takes a datagram of port 67, or of 4011 (`late`), where PXE asks again who already has an address.
    pub fn dhcp(
        &mut self,
        now: Duration,
        late: bool,
        from: SocketAddrV4,
        bytes: &[u8],
        fresh: &mut dyn FnMut() -> Token,
    ) -> (Option<Send>, Vec<Event>) {
        // What cannot be read is not for us: other vendors' options are many.
        let Ok(request) = Request::parse(bytes) else { return (None, Vec::new()) };
        let mac = request.mac;
        if self.config.pool.is_none() && request.client == Client::Other {
            return (None, Vec::new());
        }
        let Some(machine) = self.machine(mac) else {
            let event = Event::new("unknown", mac).detail("not in rack.toml: not answered");
            return (None, self.tell(now, event));
        };
        if self.is_full_for(mac) {
            let event = Event::new("unknown", mac).detail("too many machines seen: not answered");
            return (None, vec![event]);
        }
        let (file, class, mut events) = self.loads(now, &request, &machine, fresh);
        let send = if late {
            let wanted = request.kind == Kind::Request && file.is_some();
            wanted.then(|| self.reply(&request, Verdict::Ack, None, file.as_deref(), class, from))
        } else if self.config.pool.is_some() {
            self.lend(now, &request, &machine, file.as_deref(), class)
        } else {
            let wanted = request.kind == Kind::Discover && file.is_some();
            wanted.then(|| {
                self.reply(&request, Verdict::Offer, None, file.as_deref(), class, BROADCAST)
            })
        };
        if send.is_none() {
            events.clear();
        }
        (send, events)
    }

    /// What this client is told to load, and as what the answer declares itself.
    fn loads(
        &mut self,
        now: Duration,
        request: &Request,
        machine: &Machine,
        fresh: &mut dyn FnMut() -> Token,
    ) -> (Option<String>, Option<&'static str>, Vec<Event>) {
        let mac = request.mac;
        let asks = |what: &'static str, detail: String| {
            Event::new(what, mac).machine(&machine.name).detail(&detail)
        };
        let (file, class, event) = match request.client {
            Client::Other => return (None, None, Vec::new()),
            Client::Pxe(0) => {
                let file = "undionly.kpxe".to_owned();
                (file, "PXEClient", asks("pxe", "BIOS asks by PXE: iPXE by TFTP".into()))
            }
            Client::Pxe(7 | 9) => {
                let file = "snponly.efi".to_owned();
                (file, "PXEClient", asks("pxe", "UEFI asks by PXE: iPXE by TFTP".into()))
            }
            Client::Ipxe => {
                let token = self.open(now, mac, fresh);
                let file = self.url(mac, token, "boot.ipxe");
                (file, "PXEClient", asks("ipxe", "iPXE asks: its script by HTTP".into()))
            }
            Client::Http(16) => {
                let token = self.open(now, mac, fresh);
                let file = self.url(mac, token, "uki.efi");
                (file, "HTTPClient", asks("http-boot", "UEFI asks by HTTP boot: its image".into()))
            }
            Client::Pxe(arch) | Client::Http(arch) => {
                let event =
                    asks("pxe", format!("there is nothing to boot for architecture {arch}"));
                return (None, None, self.tell(now, event));
            }
        };
        (Some(file), Some(class), self.tell(now, event))
    }

    fn lend(
        &mut self,
        now: Duration,
        request: &Request,
        machine: &Machine,
        file: Option<&str>,
        class: Option<&'static str>,
    ) -> Option<Send> {
        let (mac, server) = (request.mac, self.config.server);
        let pool = self.config.pool.as_mut()?;
        if request.server.is_some_and(|chosen| chosen != server) {
            return None;
        }
        let (verdict, address) = match request.kind {
            Kind::Discover => (Verdict::Offer, pool.offer(now, mac, request.wanted)?),
            Kind::Request => {
                let had = Some(request.ciaddr).filter(|a| !a.is_unspecified());
                let address = request.wanted.or(had)?;
                if pool.take(now, mac, address) {
                    (Verdict::Ack, address)
                } else {
                    return Some(self.reply(request, Verdict::Nak, None, None, None, BROADCAST));
                }
            }
            Kind::Inform => (Verdict::Ack, Ipv4Addr::UNSPECIFIED),
            Kind::Decline => {
                pool.decline(now, mac, request.wanted?);
                return None;
            }
            Kind::Release => {
                pool.release(mac);
                return None;
            }
        };
        // A server that also gives addresses declares itself to HTTP boot only: PXE would look for menus.
        let class = class.filter(|class| *class == "HTTPClient");
        let given = Some((address, machine.name.as_str())).filter(|(a, _)| !a.is_unspecified());
        let to = match (request.ciaddr, request.giaddr) {
            (_, relay) if !relay.is_unspecified() => SocketAddrV4::new(relay, 67),
            (own, _) if !own.is_unspecified() => SocketAddrV4::new(own, 68),
            _ => BROADCAST,
        };
        Some(self.reply(request, verdict, given, file, class, to))
    }

    fn reply(
        &self,
        request: &Request,
        verdict: Verdict,
        given: Option<(Ipv4Addr, &str)>,
        file: Option<&str>,
        class: Option<&str>,
        to: SocketAddrV4,
    ) -> Send {
        let mut options = Vec::new();
        if self.config.pool.is_some() && verdict != Verdict::Nak {
            let mask = u32::MAX.checked_shl(32 - u32::from(self.config.prefix)).unwrap_or(0);
            options.push((1, mask.to_be_bytes().to_vec()));
            if let Some((_, name)) = given {
                let seconds = u32::try_from(LEASE.as_secs()).unwrap_or(u32::MAX);
                options.push((12, name.as_bytes().to_vec()));
                options.push((51, seconds.to_be_bytes().to_vec()));
            }
        }
        let reply = Reply {
            verdict,
            server: self.config.server,
            yiaddr: given.map_or(Ipv4Addr::UNSPECIFIED, |(address, _)| address),
            file,
            class,
            // UEFI's PXE refuses a proxy that bypasses discovery, and asks port 4011 by itself.
            no_discovery: class == Some("PXEClient")
                && matches!(request.client, Client::Ipxe | Client::Pxe(0)),
            options,
        };
        Send { to, bytes: reply.bytes(request) }
    }

    /// Takes a web request of `peer`, whose hardware address is known to be `mac` if it is.
    pub fn http(
        &mut self,
        now: Duration,
        peer: Ipv4Addr,
        mac: Option<Mac>,
        ask: &http::Ask,
        fresh: &mut dyn FnMut() -> Token,
    ) -> (Answer, Vec<Event>) {
        let who = mac.filter(|mac| self.seen.contains_key(mac));
        match http::target(&ask.path) {
            Some(Target::Index) => (Answer::Text(self.index()), Vec::new()),
            Some(Target::File(name)) => {
                let event = who.map(|mac| {
                    let machine = self.name_of(mac);
                    Event::new("fetch", mac).machine(&machine).address(peer.into()).detail(name)
                });
                (Answer::File(name), event.filter(|_| !ask.head).into_iter().collect())
            }
            Some(Target::Machine { mac: of, token, file }) => {
                self.own(now, peer, mac, of, token, file, ask, fresh)
            }
            None => (Answer::Refuse(404, "there is no such file".into()), Vec::new()),
        }
    }

    /// A machine's own files.
    #[allow(clippy::too_many_arguments)]
    fn own(
        &mut self,
        now: Duration,
        peer: Ipv4Addr,
        peer_mac: Option<Mac>,
        mac: Mac,
        token: Token,
        file: &'static str,
        ask: &http::Ask,
        fresh: &mut dyn FnMut() -> Token,
    ) -> (Answer, Vec<Event>) {
        let Some(machine) = self.machine(mac) else {
            return (Answer::Refuse(404, "there is no such machine".into()), Vec::new());
        };
        let event = |what: &'static str, detail: &str| {
            vec![Event::new(what, mac).machine(&machine.name).address(peer.into()).detail(detail)]
        };
        let guarded = self.config.credentials && machine.maintenance.is_none();
        let refuse = |why: &str| {
            let events = event("refused", &format!("{file}: {why}"));
            (Answer::Refuse(403, format!("{file} of {mac}: {why}")), events)
        };
        if guarded && peer_mac != Some(mac) {
            return refuse(&match peer_mac {
                Some(other) => format!("asked for by {other}"),
                None => "asked for from beyond this link".to_owned(),
            });
        }
        let window = self.config.window;
        let Some(seen) = self.seen.get_mut(&mac).filter(|seen| now - seen.opened <= window) else {
            return refuse("its window is over; boot the machine again");
        };
        let uki = file == "uki.efi";
        let fits = match seen.stage {
            Some(Stage::Open(t)) => same(&t, &token) && file != "node.cpio",
            Some(Stage::Scripted(t)) => same(&t, &token) && file == "node.cpio",
            // An interrupted download goes on where it was.
            Some(Stage::Taken(t, by)) => {
                same(&t, &token) && (!guarded || (by == peer && ask.resumes))
            }
            None => false,
        };
        if !fits {
            return refuse("was given already, or the address is not the one it was told");
        }
        if file == "boot.ipxe" {
            let next = fresh();
            if !ask.head {
                seen.stage = Some(Stage::Scripted(next));
            }
            let text = self.script(mac, next, &machine);
            return (Answer::Text(text), event("script", "has its script"));
        }
        let first = !matches!(seen.stage, Some(Stage::Taken(..)));
        if !ask.head {
            seen.stage = Some(Stage::Taken(token, peer));
            (seen.configured, seen.address) = (true, Some(peer));
        }
        let peers = self.peers(mac);
        let node_toml = machine.node_toml(&peers);
        let events = if first && !ask.head {
            let (done, named) = self.progress();
            let detail = match (&machine.maintenance, guarded) {
                (Some(reason), _) => format!("has a configuration for maintenance: {reason}"),
                (None, true) => "has its configuration and keys".into(),
                (None, false) => "has its configuration".into(),
            };
            let mut events = event("configured", &detail);
            events.iter_mut().for_each(|e| e.progress = Some((done, named)));
            events
        } else {
            Vec::new()
        };
        let given = Given { mac, machine, node_toml, credentials: guarded, uki };
        (Answer::Node(Box::new(given)), events)
    }

    /// What `mac` is; `None`: not answered.
    fn machine(&self, mac: Mac) -> Option<Machine> {
        self.rack.find(mac).or_else(|| {
            let reason = match self.config.unknown {
                Unknown::Ignore => return None,
                Unknown::Maintenance => Some("MAC not in rack.toml"),
                Unknown::Auto => None,
            };
            self.rack.unnamed(&self.config.names, mac, reason).ok()
        })
    }

    /// Whether this machine cannot be remembered as well.
    fn is_full_for(&self, mac: Mac) -> bool {
        let most = if self.rack.names(mac) { SEEN_MAX } else { SEEN_BY_STRANGERS_MAX };
        self.seen.len() >= most && !self.seen.contains_key(&mac)
    }

    /// The token of a machine's window: the one that is open, or a new one.
    fn open(&mut self, now: Duration, mac: Mac, fresh: &mut dyn FnMut() -> Token) -> Token {
        let window = self.config.window;
        let seen = self.seen.entry(mac).or_default();
        match seen.stage {
            // The same question once more, as DHCP asks.
            Some(Stage::Open(token)) if now - seen.opened <= window => token,
            _ => {
                let token = fresh();
                seen.stage = Some(Stage::Open(token));
                seen.opened = now;
                token
            }
        }
    }

    /// Machines that were booted before, as nodes to join.
    fn peers(&self, mac: Mac) -> Vec<SocketAddr> {
        let others = self.seen.iter().filter(|(m, seen)| **m != mac && seen.configured);
        let in_flock =
            others.filter(|(m, _)| self.machine(**m).is_some_and(|m| m.maintenance.is_none()));
        let own = |(m, seen): (&Mac, &Seen)| {
            let fixed = self.machine(*m).and_then(|machine| machine.address);
            fixed.or(seen.address.map(IpAddr::V4))
        };
        in_flock.filter_map(own).map(|ip| SocketAddr::new(ip, 7400)).take(PEERS_MAX).collect()
    }

    fn script(&self, mac: Mac, token: Token, machine: &Machine) -> String {
        let base = format!("http://{}:{}", self.config.server, self.config.http_port);
        ipxe::Script {
            kernel: &format!("{base}/vmlinuz"),
            initramfs: &format!("{base}/initramfs.cpio"),
            node: &self.url(mac, token, "node.cpio"),
            node_is_optional: false,
            cmdline: &crate::bootdir::join(&self.config.cmdline, &machine.cmdline),
        }
        .text()
    }

    fn url(&self, mac: Mac, token: Token, file: &str) -> String {
        let (server, port) = (self.config.server, self.config.http_port);
        let mac = mac.to_string().replace(':', "-");
        format!("http://{server}:{port}/m/{mac}/{}/{file}", crate::bootdir::hex(&token))
    }

    fn index(&self) -> String {
        let (done, named) = self.progress();
        format!("quelea boot serve: {done} of {named} named machines have their configuration\n")
    }

    /// Passes news on, unless the same was just told.
    fn tell(&mut self, now: Duration, event: Event) -> Vec<Event> {
        if self.is_full_for(event.mac) {
            return vec![event];
        }
        let seen = self.seen.entry(event.mac).or_default();
        if seen.told.is_some_and(|(what, at)| what == event.event && now < at + AGAIN) {
            return Vec::new();
        }
        seen.told = Some((event.event, now));
        vec![event]
    }
}

/// Compares all of it, however early they differ: how long a refusal takes says nothing.
fn same(one: &Token, other: &Token) -> bool {
    one.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
