//! The network of a machine, in a process of its own: carrier, DHCP or a given address, renewals, late links.
//!
//! PID 1 starts it under the name [`NETD`] and reads one line from its stdout: `up …` or `off`. What strangers
//! send is parsed here and never in PID 1; if this process falls, PID 1 starts it again and pods go on.

use super::{
    cmdline::{Cmdline, Ip, hostname_is_valid},
    console::say,
    dhcp::{Change, Client, Lease, Wire},
    netlink::{Message, request},
    sys,
};
use crate::Result;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// The name (argv\[0\]) this role runs under.
pub const NETD: &str = "quelea-netd";
/// What the network is, for the agent: `key=value` lines, replaced as a whole.
pub const NET_FILE: &str = "/run/quelea/net";
/// Devices tried at once; further ones are left alone.
pub const DEVICES_MAX: usize = 16;
/// How often devices and carriers are looked at while there is no address.
const LOOK_US: u64 = 100_000;
/// A packet socket stays open for answers this long; with the lease settled it costs a copy of every frame.
const LISTEN_US: u64 = 2_000_000;

/// A network device with hardware behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Link {
    name: String,
    index: u32,
    mac: [u8; 6],
    carrier: bool,
}

/// The role. Returns the exit code: 0 when there is nothing to keep watch over.
#[must_use]
pub fn main() -> i32 {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match Cmdline::parse(&line).ip {
        Ip::Off => {
            report("off");
            0
        }
        Ip::Static { address, prefix, gateway, device } => {
            let link = wait_for_carrier(device.as_deref());
            let lease = Lease {
                address,
                prefix,
                gateway,
                dns: Vec::new(),
                server: Ipv4Addr::UNSPECIFIED,
                lease_s: None,
                hostname: None,
                labels: None,
            };
            apply(&link, &lease, None);
            0
        }
        Ip::Dhcp => keep_lease(),
    }
}

/// Devices with hardware behind them (`/sys/class/net/*/device`), by name.
fn links() -> Vec<Link> {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let mut links: Vec<Link> = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let dir = entry.path();
            let name = entry.file_name().into_string().ok()?;
            if !dir.join("device").exists() {
                return None;
            }
            let index = read(dir.join("ifindex")).trim().parse().ok()?;
            let mac = parse_mac(read(dir.join("address")).trim())?;
            // Unreadable (EINVAL) while the device is down.
            let carrier = read(dir.join("carrier")).trim() == "1";
            Some(Link { name, index, mac, carrier })
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links.truncate(DEVICES_MAX);
    links
}

/// The hardware address of the first device, for a host name of last resort.
pub(super) fn first_mac() -> Option<[u8; 6]> {
    links().first().map(|link| link.mac)
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Switches on what is off, once per device, and says so when a carrier comes or goes.
fn watch(known: &mut BTreeMap<u32, bool>) -> Vec<Link> {
    let links = links();
    for link in &links {
        match known.insert(link.index, link.carrier) {
            None => {
                if let Err(e) = request("link up", &link.name, Message::link_up(link.index)) {
                    say!("net: {e}");
                }
            }
            Some(before) if before != link.carrier => {
                say!("net: {} carrier {}", link.name, if link.carrier { "up" } else { "down" });
            }
            Some(_) => {}
        }
    }
    links
}

fn wait_for_carrier(device: Option<&str>) -> Link {
    let mut known = BTreeMap::new();
    loop {
        let found = watch(&mut known)
            .into_iter()
            .find(|link| link.carrier && device.is_none_or(|name| name == link.name));
        if let Some(link) = found {
            return link;
        }
        std::thread::sleep(std::time::Duration::from_micros(LOOK_US / 5));
    }
}

struct Attempt {
    link: Link,
    client: Client,
    socket: Option<Packets>,
    closes_at_us: u64,
}

struct Packets(OwnedFd);

impl Wire for Packets {
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1514];
        let (len, _) = recv(&self.0, &mut frame[..], RecvFlags::empty()).ok()?;
        frame.truncate(len);
        Some(frame)
    }

    fn send(&mut self, frame: &[u8]) {
        let _ = send(&self.0, frame, SendFlags::empty());
    }
}

/// Gets a lease on the first device whose server answers, keeps it, and starts over when it is lost.
fn keep_lease() -> i32 {
    let mut known = BTreeMap::new();
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut held: Option<Lease> = None;
    let mut look_at_us = 0;
    loop {
        let now = now_us();
        if held.is_none() && now >= look_at_us {
            look_at_us = now + LOOK_US;
            for link in watch(&mut known) {
                let tried = attempts.iter().any(|a| a.link.index == link.index);
                if link.carrier && !tried && attempts.len() < DEVICES_MAX {
                    say!("net: {} asking for an address", link.name);
                    let client = Client::new(link.mac, seed(), now);
                    attempts.push(Attempt { link, client, socket: None, closes_at_us: 0 });
                }
            }
        }
        let mut granted = None;
        for (at, attempt) in attempts.iter_mut().enumerate() {
            match attempt.poll(now) {
                Some(Change::Granted(lease)) => {
                    apply(&attempt.link, &lease, held.as_ref());
                    held = Some(lease);
                    granted = Some(at);
                    break;
                }
                Some(Change::Lost) => {
                    if let Some(old) = held.take() {
                        say!("net: {} lease of {} lost", attempt.link.name, old.address);
                        let gone = Message::no_address(attempt.link.index, old.address, old.prefix);
                        let _ = request("address", &attempt.link.name, gone);
                        let _ = std::fs::remove_file(NET_FILE);
                    }
                }
                None => {}
            }
        }
        if let Some(at) = granted {
            let winner = attempts.swap_remove(at);
            attempts = vec![winner];
        }
        wait(&mut attempts, held.is_none().then_some(look_at_us));
    }
}

impl Attempt {
    fn poll(&mut self, now_us: u64) -> Option<Change> {
        let due = self.client.next_deadline(now_us).is_some_and(|at| at <= now_us);
        if due {
            if self.socket.is_none() {
                // A device that went away or down: tried again when the next message is due.
                self.socket = sys::packet_socket(self.link.index).ok().map(Packets);
            }
            self.closes_at_us = now_us + LISTEN_US;
        }
        let wire = self.socket.as_mut()?;
        let change = self.client.poll(now_us, wire);
        if matches!(change, Some(Change::Granted(_))) || now_us >= self.closes_at_us {
            self.socket = None;
        }
        change
    }
}

/// Sleeps until a frame comes or something is due.
fn wait(attempts: &mut [Attempt], look_at_us: Option<u64>) {
    let now = now_us();
    let mut until = look_at_us.unwrap_or(u64::MAX);
    for attempt in attempts.iter_mut() {
        let mut due = attempt.client.next_deadline(now).unwrap_or(u64::MAX);
        if attempt.socket.is_some() {
            due = due.min(attempt.closes_at_us);
        } else {
            // Without a socket nothing can be sent: not a busy loop while the device is away.
            due = due.max(now + LOOK_US);
        }
        until = until.min(due);
    }
    let left_us = until.saturating_sub(now).min(3_600_000_000);
    let timeout = Timespec {
        tv_sec: i64::try_from(left_us / 1_000_000).unwrap_or(3600),
        tv_nsec: i64::try_from(left_us % 1_000_000 * 1000).unwrap_or(0),
    };
    let mut fds: Vec<PollFd<'_>> = attempts
        .iter()
        .filter_map(|a| Some(PollFd::new(&a.socket.as_ref()?.0, PollFlags::IN)))
        .collect();
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(_) => std::thread::sleep(std::time::Duration::from_micros(LOOK_US)),
    }
}

/// Gives the kernel the address and tells everybody.
fn apply(link: &Link, lease: &Lease, before: Option<&Lease>) {
    let Lease { address, prefix, .. } = *lease;
    let done = (|| -> Result<()> {
        if let Some(old) = before.filter(|old| (old.address, old.prefix) != (address, prefix)) {
            let _ = request(
                "address",
                &link.name,
                Message::no_address(link.index, old.address, old.prefix),
            );
        }
        request(
            "address",
            &link.name,
            Message::address(link.index, address, prefix, lease.lease_s),
        )?;
        if let Some(gateway) = lease.gateway {
            request("default route", &link.name, Message::default_route(link.index, gateway))?;
        }
        Ok(())
    })();
    if let Err(e) = done {
        say!("net: {e}");
    }
    let via = if lease.server.is_unspecified() {
        "static".into()
    } else {
        format!("dhcp:{}", lease.server)
    };
    let facts = facts(link, lease, &via);
    if let Err(e) = replace(Path::new(NET_FILE), &facts) {
        say!("net: write {NET_FILE}: {e}");
    }
    if !lease.dns.is_empty() {
        let lines: String = lease.dns.iter().map(|ip| format!("nameserver {ip}\n")).collect();
        let _ = replace(Path::new("/etc/resolv.conf"), &lines);
    }
    if before.is_none_or(|old| old.address != address) {
        say!("net: up device={} address={address}/{prefix} via={via}", link.name);
    }
    report(&format!("up {}", facts.trim_end().replace('\n', " ")));
}

fn facts(link: &Link, lease: &Lease, via: &str) -> String {
    let mut out =
        format!("device={}\naddress={}/{}\nvia={via}\n", link.name, lease.address, lease.prefix);
    if let Some(gateway) = lease.gateway {
        let _ = writeln!(out, "gateway={gateway}");
    }
    for dns in &lease.dns {
        let _ = writeln!(out, "dns={dns}");
    }
    if let Some(seconds) = lease.lease_s {
        let _ = writeln!(out, "lease_s={seconds}");
    }
    if let Some(name) = lease.hostname.as_deref().filter(|name| hostname_is_valid(name)) {
        let _ = writeln!(out, "hostname={name}");
    }
    for label in lease.labels.iter().flat_map(|list| list.split(',')) {
        if label.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty()) {
            let _ = writeln!(out, "label={label}");
        }
    }
    out
}

fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

/// One line to PID 1; nobody listens after boot.
fn report(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Not yet initialised early in a boot without an entropy source: transaction numbers need no secrecy.
    let flags = rustix::rand::GetRandomFlags::NONBLOCK | rustix::rand::GetRandomFlags::INSECURE;
    let _ = rustix::rand::getrandom(&mut bytes[..], flags);
    u64::from_ne_bytes(bytes) ^ now_us()
}

fn now_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_devices() {
        assert_eq!(parse_mac("52:54:00:12:34:56"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5254:00:12:34:zz:56"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn facts_keep_only_what_is_well_formed() {
        let link = Link { name: "eth0".into(), index: 2, mac: [0; 6], carrier: true };
        let lease = Lease {
            address: [10, 0, 0, 5].into(),
            prefix: 24,
            gateway: None,
            dns: vec![],
            server: [10, 0, 0, 1].into(),
            lease_s: Some(60),
            hostname: Some("Bad_Name".into()),
            labels: Some("rack=a3,broken,row=1".into()),
        };
        let text = facts(&link, &lease, "dhcp:10.0.0.1");
        assert_eq!(
            text,
            "device=eth0\naddress=10.0.0.5/24\nvia=dhcp:10.0.0.1\nlease_s=60\nlabel=rack=a3\nlabel=row=1\n"
        );
    }
}
