//! The network devices of a machine: which there are, which have a carrier, which IPv6 address the kernel gave them.

use super::super::{
    cmdline::{Device, parse_mac},
    console::say,
    netlink::{Listener, Message, request},
};
use rustix::fd::BorrowedFd;
use std::{
    collections::BTreeMap,
    net::Ipv6Addr,
    path::{Path, PathBuf},
};

/// Devices tried at once; further ones are left alone.
pub const DEVICES_MAX: usize = 16;

/// A network device with hardware behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
    pub(super) carrier: bool,
}

impl Link {
    /// Whether an operator's words mean this one.
    pub(super) fn is(&self, device: Option<&Device>) -> bool {
        match device {
            None => true,
            Some(Device::Name(name)) => *name == self.name,
            Some(Device::Mac(mac)) => *mac == self.mac,
        }
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
pub(in crate::machine) fn first_mac() -> Option<[u8; 6]> {
    links().first().map(|link| link.mac)
}

/// The lowest hardware address, for an identity of last resort: names may change from boot to boot.
pub(in crate::machine) fn lowest_mac() -> Option<[u8; 6]> {
    links().iter().map(|link| link.mac).min()
}

/// What has been seen of the devices.
#[derive(Debug)]
pub(super) struct Watch {
    known: BTreeMap<u32, bool>,
    listener: Option<Listener>,
}

impl Watch {
    /// Asks the kernel to tell of changes. Without that, one has to look again and again.
    pub(super) fn new() -> Self {
        let listener = Listener::open();
        if let Err(e) = &listener {
            say!("net: {e}");
        }
        Self { known: BTreeMap::new(), listener: listener.ok() }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(Listener::fd)
    }

    /// Whether a device, a carrier or an IPv6 address has changed since this was asked last.
    pub(super) fn has_news(&self) -> bool {
        self.listener.as_ref().is_some_and(Listener::drain)
    }

    /// Switches on what is off, once per device, and says when a carrier comes or goes.
    pub(super) fn look(&mut self) -> Vec<Link> {
        let links = links();
        self.known.retain(|index, _| links.iter().any(|link| link.index == *index));
        for link in &links {
            match self.known.insert(link.index, link.carrier) {
                None => {
                    autoconfigure(&link.name);
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
}

/// IPv6 by router advertisements, which the kernel does alone: addresses from the prefix and the hardware address,
/// the same at every boot. 2: also when this machine forwards for others (ip-sysctl.rst).
fn autoconfigure(device: &str) {
    let dir = Path::new("/proc/sys/net/ipv6/conf").join(device);
    for (name, value) in
        [("accept_ra", "2"), ("autoconf", "1"), ("addr_gen_mode", "0"), ("use_tempaddr", "0")]
    {
        // A kernel without IPv6 has none of them.
        let _ = std::fs::write(dir.join(name), value);
    }
}

/// The lowest global address of the devices in `indexes` that is ready to be used, with its prefix length.
pub(super) fn address6(indexes: impl Fn(u32) -> bool) -> Option<(Ipv6Addr, u8)> {
    lowest6(&std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default(), indexes)
}

/// `fd77… 02 40 00 80 eth0`: address, index, prefix length, scope, flags, all hexadecimal.
fn lowest6(text: &str, indexes: impl Fn(u32) -> bool) -> Option<(Ipv6Addr, u8)> {
    // IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE.
    const UNUSABLE: u32 = 0x08 | 0x20 | 0x40;
    let hex = |word: &str| u32::from_str_radix(word, 16).ok();
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = u128::from_str_radix(words.next()?, 16).ok()?;
            let (index, prefix) = (hex(words.next()?)?, hex(words.next()?)?);
            let (scope, flags) = (hex(words.next()?)?, hex(words.next()?)?);
            let good = scope == 0 && flags & UNUSABLE == 0 && indexes(index);
            good.then_some((Ipv6Addr::from_bits(address), u8::try_from(prefix).ok()?))
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_addresses_that_are_ready() {
        let text = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000505400fffe000001 02 40 20 80     eth0\n\
            fd77000000000000505400fffe000009 02 40 00 40     eth0\n\
            fd77000000000000505400fffe000002 03 40 00 80     eth1\n\
            fd77000000000000505400fffe000003 02 40 00 80     eth0\n\
            rubbish\n";
        let want = |text: &str| Some((text.parse::<Ipv6Addr>().unwrap(), 64));
        assert_eq!(lowest6(text, |index| index == 2), want("fd77::5054:ff:fe00:3"));
        assert_eq!(lowest6(text, |_| true), want("fd77::5054:ff:fe00:2"));
        assert_eq!(lowest6(text, |index| index == 9), None);
    }

    #[test]
    fn an_operator_means_a_device_by_name_or_address() {
        let link = Link { name: "eth0".into(), index: 2, mac: [2, 0, 0, 0, 0, 1], carrier: true };
        assert!(link.is(None));
        assert!(link.is(Some(&Device::Name("eth0".into()))));
        assert!(!link.is(Some(&Device::Name("eth1".into()))));
        assert!(link.is(Some(&Device::Mac([2, 0, 0, 0, 0, 1]))));
        assert!(!link.is(Some(&Device::Mac([2; 6]))));
    }
}
