//! The network of a machine, in a process of its own: carriers, DHCP or a given address, IPv6, renewals, the clock.
//!
//! PID 1 starts it under the name [`NETD`] and reads one line from its stdout: `up …` or `off`. What strangers send is
//! parsed here and never in PID 1, with no more rights than the work needs; if this process falls, PID 1 starts it
//! again and pods go on.
//!
//! Every device is switched on and every one with a carrier asks for a lease. The first that gets one is the primary:
//! its default route, host name, servers and labels count, and stay until its lease ends; the others have their address
//! and nothing else.

mod clock;
mod facts;
mod links;
mod nic;

use super::{
    cmdline::{Cmdline, Ip},
    coldplug::Coldplug,
    console::say,
    dhcp::{Change, Client, Lease},
    identity,
    netlink::{Message, request},
    state, sys,
};
use clock::Clock;
use facts::Facts;
use links::{Link, Watch};
use nic::Nic;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

pub use clock::CLOCK_FILE;
pub use links::DEVICES_MAX;
pub(super) use links::{first_mac, lowest_mac};

/// The name (argv\[0\]) this role runs under.
pub const NETD: &str = "quelea-netd";
/// What the network is, for the agent: `key=value` lines, replaced as a whole.
pub const NET_FILE: &str = "/run/quelea/net";
/// How often devices and carriers are looked at when the kernel does not tell of changes.
const LOOK_US: u64 = 100_000;
/// How often they are looked at all the same while there is no address.
const LOOK_AGAIN_US: u64 = 5_000_000;
/// A packet socket stays open for answers this long; with the lease settled it costs a copy of every frame.
const LISTEN_US: u64 = 2_000_000;
/// How long an IPv6 address waits for a DHCP answer before the network counts as up without IPv4.
const ALONE_US: u64 = 5_000_000;
/// How long the boot waits for the time, where there is somebody to ask.
const TIME_US: u64 = 1_500_000;
/// No device at all after this long is said.
const DEVICELESS_US: u64 = 2_000_000;

/// The role. Returns the exit code: 0 when there is nothing to keep watch over. `again`: it fell and this is not the
/// machine's boot any more.
#[must_use]
pub fn main(again: bool) -> i32 {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut keeper = Keeper::new(Cmdline::parse(&line), again);
    if keeper.cmdline.ip == Ip::Off {
        keeper.publish();
        report("off");
        return 0;
    }
    if let Err(e) = sys::keep_network_rights() {
        say!("net: give up rights: {e}");
    }
    loop {
        keeper.turn();
    }
}

fn via(lease: &Lease) -> String {
    if lease.server.is_unspecified() { "static".into() } else { format!("dhcp:{}", lease.server) }
}

struct Keeper {
    cmdline: Cmdline,
    /// Of the firmware.
    labels: Vec<String>,
    watch: Watch,
    look_at_us: u64,
    nics: BTreeMap<u32, Nic>,
    primary: Option<u32>,
    orders: u64,
    address6: Option<(Ipv6Addr, u8)>,
    address6_since_us: u64,
    published: String,
    clock: Clock,
    started_us: u64,
    up_since_us: Option<u64>,
    /// PID 1 has its line.
    reported: bool,
    told_no_time: bool,
    told_no_device: bool,
}

impl Keeper {
    fn new(cmdline: Cmdline, again: bool) -> Self {
        let now = now_us();
        Self {
            cmdline,
            labels: identity::firmware().labels,
            watch: Watch::new(),
            look_at_us: 0,
            nics: BTreeMap::new(),
            primary: None,
            orders: 0,
            address6: None,
            address6_since_us: 0,
            published: String::new(),
            clock: Clock::new(state::image_floor_s()),
            started_us: now,
            up_since_us: None,
            reported: again,
            told_no_time: again,
            told_no_device: again,
        }
    }

    /// One round: look, ask, answer, tell, sleep.
    fn turn(&mut self) {
        let now = now_us();
        if self.watch.has_news() || now >= self.look_at_us {
            self.look(now);
        }
        let mut changed = false;
        for nic in self.nics.values_mut() {
            match nic.poll(now) {
                Some(Change::Granted(lease)) => {
                    self.orders += 1;
                    nic.grant(lease, self.orders);
                    changed = true;
                }
                Some(Change::Lost) if nic.lease.is_some() => {
                    nic.lose("lease ended");
                    changed = true;
                }
                Some(Change::Lost) | None => {}
            }
        }
        if changed {
            self.settle();
        }
        let waited = now.saturating_sub(self.started_us) / 1_000_000;
        let before_running = !self.reported && waited < u64::from(self.cmdline.net_wait_s);
        self.clock.poll(now, before_running);
        self.report_once(now);
        self.wait();
    }

    /// Devices, carriers, IPv6 addresses.
    fn look(&mut self, now: u64) {
        let again = if self.watch.fd().is_none() { LOOK_US } else { LOOK_AGAIN_US };
        let links = self.watch.look();
        let gone: Vec<u32> =
            self.nics.keys().copied().filter(|n| links.iter().all(|l| l.index != *n)).collect();
        for index in &gone {
            if let Some(mut nic) = self.nics.remove(index) {
                nic.lose("device gone");
            }
        }
        for link in &links {
            let wanted = link.is(self.cmdline.device.as_ref());
            if link.carrier && wanted && !self.nics.contains_key(&link.index) {
                self.begin(link.clone(), now);
            }
        }
        let ours = |index| links.iter().any(|link| link.index == index);
        let address6 = links::address6(ours);
        if address6 != self.address6 {
            if let Some((address, prefix)) = address6 {
                say!("net: address6={address}/{prefix} via=ra");
            }
            if self.address6.is_none() {
                self.address6_since_us = now;
            }
            self.address6 = address6;
        }
        if links.is_empty() && !self.told_no_device && now >= self.started_us + DEVICELESS_US {
            self.told_no_device = true;
            let missing = Coldplug::open().missing_network();
            let seen = if missing.is_empty() {
                "none on the PCI bus either".into()
            } else {
                format!("without a driver: {}", missing.join(", "))
            };
            say!("net: no network device; {seen}");
        }
        // No device yet: one may be on its way up, and one without a driver is worth a word soon.
        let soon = links.is_empty() && !self.told_no_device;
        self.look_at_us = match self.primary {
            None if soon => now + LOOK_US,
            None => now + again,
            Some(_) if again == LOOK_US => now + LOOK_AGAIN_US,
            Some(_) => u64::MAX,
        };
        self.settle();
    }

    fn begin(&mut self, link: Link, now: u64) {
        let mut nic =
            Nic { link, client: None, socket: None, closes_at_us: 0, lease: None, order: 0 };
        match self.cmdline.ip {
            Ip::Off => return,
            // To the first device with a carrier.
            Ip::Static { .. } if !self.nics.is_empty() => return,
            Ip::Static { address, prefix, gateway } => {
                self.orders += 1;
                nic.grant(given(address, prefix, gateway), self.orders);
            }
            Ip::Dhcp => {
                say!("net: {} asking for an address", nic.link.name);
                nic.client = Some(Client::new(nic.link.mac, seed(), now));
            }
        }
        self.nics.insert(nic.link.index, nic);
    }

    /// Chooses the primary, and tells the kernel and everybody what follows from it.
    fn settle(&mut self) {
        let leased = self.nics.iter().filter(|(_, nic)| nic.lease.is_some());
        self.primary = choose(self.primary, leased.map(|(index, nic)| (*index, nic.order)));
        let primary = self.primary.and_then(|index| self.nics.get(&index));
        if let Some((nic, lease)) = primary.and_then(|nic| Some((nic, nic.lease.as_ref()?))) {
            if let Some(gateway) = lease.gateway {
                let route = Message::default_route(nic.link.index, gateway);
                if let Err(e) = request("default route", &nic.link.name, route) {
                    say!("net: {e}");
                }
            }
            if !lease.dns.is_empty() {
                let lines: String =
                    lease.dns.iter().map(|ip| format!("nameserver {ip}\n")).collect();
                let _ = replace(Path::new("/etc/resolv.conf"), &lines);
            }
        }
        self.publish();
    }

    fn facts(&self) -> Facts<'_> {
        let primary = self.primary.and_then(|index| self.nics.get(&index));
        let lease = primary.and_then(|nic| nic.lease.as_ref());
        let others = self.nics.iter().filter(|(index, _)| Some(**index) != self.primary);
        let others =
            others.filter_map(|(_, nic)| Some((nic.link.name.as_str(), nic.lease.as_ref()?)));
        Facts {
            device: primary.map(|nic| nic.link.name.as_str()),
            lease,
            address6: self.address6,
            via: match lease {
                Some(lease) => via(lease),
                None if self.address6.is_some() => "ra".into(),
                None => "off".into(),
            },
            seeds: &self.cmdline.seeds,
            ntp: &self.cmdline.ntp,
            labels: &self.labels,
            others: others.collect(),
        }
    }

    /// Writes [`NET_FILE`] when it would say something else; without any address there is none, unless that is wanted.
    fn publish(&mut self) {
        let up = self.primary.is_some() || self.address6.is_some();
        let facts = self.facts();
        let text = if up || self.cmdline.ip == Ip::Off { facts.text() } else { String::new() };
        let ntp: Vec<SocketAddr> = if up { facts.ntp() } else { Vec::new() };
        self.clock.follow(now_us(), ntp);
        if text == self.published {
            return;
        }
        let done = if text.is_empty() {
            std::fs::remove_file(NET_FILE)
        } else {
            replace(Path::new(NET_FILE), &text)
        };
        if let Err(e) = done {
            say!("net: write {NET_FILE}: {e}");
        }
        self.published = text;
    }

    /// Tells PID 1 as soon as there is an address, and the time where somebody has it.
    fn report_once(&mut self, now: u64) {
        let alone = self.address6.is_some() && now >= self.address6_since_us + ALONE_US;
        if self.reported || !(self.primary.is_some() || alone) {
            return;
        }
        let up_since_us = *self.up_since_us.get_or_insert(now);
        if !self.clock.has_servers() && !self.told_no_time {
            self.told_no_time = true;
            say!(
                "clock: no time server (DHCP option 42, quelea.ntp=): nothing corrects this clock"
            );
        }
        let waits = self.clock.has_servers() && !self.clock.is_synced();
        if waits && now < up_since_us + TIME_US {
            return;
        }
        self.reported = true;
        let facts = self.facts();
        let name = facts.lease.and_then(|lease| lease.hostname.as_deref());
        let name = name.filter(|name| super::cmdline::hostname_is_valid(name));
        let device = facts.device.unwrap_or("none");
        report(&name.map_or(format!("up device={device}"), |name| {
            format!("up device={device} hostname={name}")
        }));
    }

    /// When something is due even without news.
    fn next_deadline(&mut self, now: u64) -> u64 {
        let mut until = self.look_at_us;
        for nic in self.nics.values_mut() {
            until = until.min(nic.next_deadline(now).unwrap_or(u64::MAX));
        }
        until = until.min(self.clock.next_deadline().unwrap_or(u64::MAX));
        if !self.reported {
            if let Some(up) = self.up_since_us {
                until = until.min(up + TIME_US);
            } else if self.address6.is_some() {
                until = until.min(self.address6_since_us + ALONE_US);
            }
        }
        until
    }

    /// Sleeps until something comes or is due.
    fn wait(&mut self) {
        let now = now_us();
        let left_us = self.next_deadline(now).saturating_sub(now).min(3_600_000_000);
        let timeout = Timespec {
            tv_sec: i64::try_from(left_us / 1_000_000).unwrap_or(3600),
            tv_nsec: i64::try_from(left_us % 1_000_000 * 1000).unwrap_or(0),
        };
        let packets = self.nics.values().filter_map(|nic| nic.socket.as_ref());
        let mut fds: Vec<PollFd<'_>> = packets
            .map(|packets| PollFd::new(&packets.0, PollFlags::IN))
            .chain(self.watch.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .chain(self.clock.fd().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)))
            .collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(std::time::Duration::from_micros(LOOK_US)),
        }
    }
}

/// The primary: the one it is as long as it has a lease, else the one that got its lease first.
fn choose(now: Option<u32>, leased: impl Iterator<Item = (u32, u64)> + Clone) -> Option<u32> {
    now.filter(|index| leased.clone().any(|(other, _)| other == *index))
        .or_else(|| leased.min_by_key(|(_, order)| *order).map(|(index, _)| index))
}

fn given(address: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) -> Lease {
    Lease {
        address,
        prefix,
        gateway,
        dns: Vec::new(),
        server: Ipv4Addr::UNSPECIFIED,
        lease_s: None,
        hostname: None,
        labels: None,
        ntp: Vec::new(),
        seeds: None,
    }
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
    // Not yet initialised early in a boot without an entropy source: better than no answer at all.
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
    fn the_first_to_get_a_lease_is_primary_until_it_ends() {
        let choose = |now, leased: &[(u32, u64)]| choose(now, leased.iter().copied());
        assert_eq!(choose(None, &[]), None);
        assert_eq!(choose(None, &[(2, 7), (3, 1)]), Some(3));
        assert_eq!(choose(Some(2), &[(2, 7), (3, 1)]), Some(2));
        assert_eq!(choose(Some(2), &[(3, 1)]), Some(3));
    }
}
