//! The kernel command line: the arguments that are ours, and a warning for those that only look like it.
//!
//! ```text
//! quelea.ip=dhcp[,dev=NAME|MAC] | off | ADDRESS/PREFIX[,gw=ADDRESS][,dev=NAME|MAC]     default dhcp
//! quelea.net.wait=SECONDS      how long boot waits for an address   default 30
//! quelea.hostname=NAME         before DHCP's and /etc/quelea/hostname
//! quelea.label=KEY=VALUE       may be repeated; handed on to the agent
//! quelea.join=IP:PORT[,…]      nodes to meet; may be repeated; before DHCP's (option 225)
//! quelea.discover=on | auto | off   for the agent: whether to look for nodes on the link
//! quelea.ntp=IP[:PORT][,…]     time servers; before DHCP's (option 42)
//! quelea.state=auto | memory | disk | format:WHICH                  default auto; the same words may stand in
//!                              /etc/quelea/state ([`Wish`](super::disk::Wish))
//! quelea.state.wait=SECONDS    how long a disk that is expected is waited for    default 15
//! quelea.watchdog=auto | soft | off                                 default auto: the hardware's, if there is one
//! quelea.trial=SECONDS         reboot by then unless the agent says that this kernel is to be kept
//! quelea.adopt=on | off        for the agent: whether a machine without a configuration can be adopted   default on
//! quelea.image=ID              for the agent: the boot image, as an upgrade named it
//! ```
//!
//! Bonds and VLANs are not made here: a machine whose only way out is one of them needs its switch to send untagged
//! frames on a single port.

use super::disk::Wish;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Most labels taken from the command line; further ones are refused with a warning.
pub const LABELS_MAX: usize = 32;
/// Longest wait for an address or a disk; longer ones are refused with a warning.
pub const WAIT_S_MAX: u32 = 3600;
/// Shortest and longest trial of a kernel; others are refused with a warning.
pub const TRIAL_S: std::ops::RangeInclusive<u64> = 10..=3600;

/// Most nodes to meet; further ones are refused with a warning.
pub const SEEDS_MAX: usize = 16;
/// Most time servers; further ones are refused with a warning.
pub const NTP_MAX: usize = 4;
/// Where time servers listen (RFC 5905).
const NTP_PORT: u16 = 123;

/// A network device as an operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// As the kernel calls it; may change from boot to boot on a machine with several.
    Name(String),
    /// Its hardware address.
    Mac([u8; 6]),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Mac([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
        }
    }
}

/// How the machine gets an IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ip {
    /// From whoever answers.
    Dhcp,
    /// None from us.
    Off,
    /// Given.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// Prefix length, 1 to 32.
        prefix: u8,
        /// Default gateway.
        gateway: Option<Ipv4Addr>,
    },
}

/// Which watchdog is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogMode {
    /// The hardware's, where there is one.
    Auto,
    /// The hardware's, or else the kernel's own timer: no help against a kernel that hangs.
    Soft,
    /// None.
    Off,
}

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// Address configuration.
    pub ip: Ip,
    /// The network device to use; every one with a carrier when absent (a given address goes to the first).
    pub device: Option<Device>,
    /// How long boot waits for an address, in seconds.
    pub net_wait_s: u32,
    /// Host name.
    pub hostname: Option<String>,
    /// Where state is kept, if this is where it is said.
    pub state: Option<Wish>,
    /// How long a disk is waited for, in seconds, if this is where it is said.
    pub state_wait_s: Option<u32>,
    /// Which watchdog is used.
    pub watchdog: WatchdogMode,
    /// Uptime in seconds by which this kernel must have been kept.
    pub trial_s: Option<u64>,
    /// `key=value` labels in order.
    pub labels: Vec<String>,
    /// Nodes to meet, in order.
    pub seeds: Vec<SocketAddr>,
    /// Whether the agent looks for nodes on its link, in its own words.
    pub discover: Option<String>,
    /// Time servers, in order.
    pub ntp: Vec<SocketAddr>,
    /// What was ignored, and why: one sentence each, for the console.
    pub warnings: Vec<String>,
}

impl Default for Cmdline {
    fn default() -> Self {
        Self {
            ip: Ip::Dhcp,
            device: None,
            net_wait_s: 30,
            hostname: None,
            state: None,
            state_wait_s: None,
            watchdog: WatchdogMode::Auto,
            trial_s: None,
            labels: Vec::new(),
            seeds: Vec::new(),
            discover: None,
            ntp: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Cmdline {
    /// Parses `/proc/cmdline`. Arguments without `quelea.` belong to others; what is wrong in ours is
    /// ignored with a warning, because a typing error must not keep a rack from booting.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut line = Self::default();
        for word in text.split_ascii_whitespace() {
            let Some(argument) = word.strip_prefix("quelea.") else { continue };
            let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
            if let Err(why) = line.take(key, value) {
                line.warnings.push(format!("ignored {word}: {why}"));
            }
        }
        line
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "ip" => (self.ip, self.device) = parse_ip(value)?,
            "join" => extend(&mut self.seeds, value, SEEDS_MAX, "not IP:PORT", |one| {
                one.parse().ok().filter(seed_is_valid)
            })?,
            "discover" => {
                if !["on", "auto", "off"].contains(&value) {
                    return Err("discovery is on, auto or off");
                }
                self.discover = Some(value.to_owned());
            }
            "ntp" => extend(&mut self.ntp, value, NTP_MAX, "not IP or IP:PORT", |one| {
                let bare = |ip: IpAddr| SocketAddr::new(ip, NTP_PORT);
                one.parse().ok().or_else(|| one.parse().ok().map(bare)).filter(seed_is_valid)
            })?,
            "net.wait" => self.net_wait_s = parse_wait(value)?,
            "state" => self.state = Some(Wish::parse(value)?),
            "state.wait" => self.state_wait_s = Some(parse_wait(value)?),
            "hostname" => {
                if !hostname_is_valid(value) {
                    return Err("a host name has 1 to 63 of a-z 0-9 -");
                }
                self.hostname = Some(value.to_owned());
            }
            "watchdog" => {
                self.watchdog = match value {
                    "auto" => WatchdogMode::Auto,
                    "soft" => WatchdogMode::Soft,
                    "off" => WatchdogMode::Off,
                    _ => return Err("a watchdog is auto, soft or off"),
                };
            }
            "trial" => {
                let trial: u64 = value.parse().map_err(|_| "not a number of seconds")?;
                if !TRIAL_S.contains(&trial) {
                    return Err("a trial lasts 10 seconds to an hour");
                }
                self.trial_s = Some(trial);
            }
            "image" => {}
            "adopt" => {
                if !["on", "off"].contains(&value) {
                    return Err("adoption is on or off");
                }
            }
            "label" => {
                if !label_is_valid(value) {
                    return Err("a label is KEY=VALUE");
                }
                if self.labels.len() >= LABELS_MAX {
                    return Err("too many labels");
                }
                self.labels.push(value.to_owned());
            }
            _ => return Err("unknown argument"),
        }
        Ok(())
    }
}

/// `[a-z0-9-]{1,63}`, no dash at either end.
#[must_use]
pub fn hostname_is_valid(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// `KEY=VALUE`, neither empty.
pub(super) fn label_is_valid(label: &str) -> bool {
    label.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty())
}

/// Whether something can listen there.
pub(super) fn seed_is_valid(at: &SocketAddr) -> bool {
    let ip = at.ip();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    at.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() && !broadcast
}

/// Adds a list of addresses as a whole or not at all; what is there already is not added again.
fn extend(
    list: &mut Vec<SocketAddr>,
    value: &str,
    max: usize,
    form: &'static str,
    parse: impl Fn(&str) -> Option<SocketAddr>,
) -> Result<(), &'static str> {
    let mut longer = list.clone();
    for one in value.split(',') {
        let at = parse(one).ok_or(form)?;
        if !longer.contains(&at) {
            longer.push(at);
        }
    }
    if longer.len() > max {
        return Err("too many addresses");
    }
    *list = longer;
    Ok(())
}

fn parse_wait(value: &str) -> Result<u32, &'static str> {
    let wait: u32 = value.parse().map_err(|_| "not a number of seconds")?;
    if wait > WAIT_S_MAX { Err("longer than an hour") } else { Ok(wait) }
}

fn parse_ip(value: &str) -> Result<(Ip, Option<Device>), &'static str> {
    let mut parts = value.split(',');
    let given = match parts.next() {
        Some("off") if value == "off" => return Ok((Ip::Off, None)),
        Some("dhcp") => None,
        Some(address) => Some(parse_address(address)?),
        None => return Err("empty"),
    };
    let (mut gateway, mut device) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("gw", v)) if given.is_some() => {
                gateway = Some(v.parse().map_err(|_| "gw is not an IPv4 address")?);
            }
            Some(("dev", v)) => {
                device = Some(parse_device(v).ok_or("dev is neither a device nor a MAC")?);
            }
            _ => return Err("after dhcp only dev= may follow, after an address gw= and dev="),
        }
    }
    let ip = given.map_or(Ip::Dhcp, |(address, prefix)| Ip::Static { address, prefix, gateway });
    Ok((ip, device))
}

fn parse_address(text: &str) -> Result<(Ipv4Addr, u8), &'static str> {
    let (address, prefix) = text.split_once('/').ok_or("neither dhcp, off nor ADDRESS/PREFIX")?;
    let address: Ipv4Addr = address.parse().map_err(|_| "not an IPv4 address")?;
    let prefix: u8 = prefix.parse().map_err(|_| "not a prefix length")?;
    if !(1..=32).contains(&prefix) {
        return Err("a prefix length is 1 to 32");
    }
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err("not an address of a machine");
    }
    Ok((address, prefix))
}

/// No device's name holds a colon, so a MAC is never taken for one.
fn parse_device(text: &str) -> Option<Device> {
    if text.contains(':') {
        return parse_mac(text).map(Device::Mac);
    }
    device_is_valid(text).then(|| Device::Name(text.to_owned()))
}

/// `52:54:00:12:34:56`.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// As the kernel's `dev_valid_name`: 1 to 15 bytes, no `/`, no `:`, no space, neither `.` nor `..`.
fn device_is_valid(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && name != "."
        && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_ours_and_leaves_the_rest() {
        let c = Cmdline::parse(
            "console=ttyS0 ip=any quelea.ip=10.0.0.2/24,gw=10.0.0.1,dev=eth1 quelea.net.wait=5 quelea.hostname=n1 \
             quelea.label=rack=a3\n",
        );
        assert_eq!(
            c.ip,
            Ip::Static {
                address: [10, 0, 0, 2].into(),
                prefix: 24,
                gateway: Some([10, 0, 0, 1].into()),
            }
        );
        assert_eq!(c.device, Some(Device::Name("eth1".into())));
        assert_eq!((c.net_wait_s, c.hostname.as_deref()), (5, Some("n1")));
        assert_eq!(c.labels, ["rack=a3"]);
        assert_eq!(c.warnings, Vec::<String>::new());
    }

    #[test]
    fn devices_by_name_or_hardware_address() {
        let mac = Device::Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let c = Cmdline::parse("quelea.ip=dhcp,dev=52:54:00:12:34:56");
        assert_eq!((c.ip, c.device.as_ref(), c.warnings), (Ip::Dhcp, Some(&mac), vec![]));
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        for bad in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5254:00:12:34:zz:56", "+2:0:0:0:0:0"]
        {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn addresses_to_meet_and_to_ask() {
        let c = Cmdline::parse(
            "quelea.join=10.0.0.1:7400,[fd00::1]:7400 quelea.join=10.0.0.1:7400,10.0.0.2:7400 \
             quelea.ntp=10.0.0.9,10.0.0.8:1230,fd00::9 quelea.discover=on",
        );
        assert_eq!(c.discover.as_deref(), Some("on"));
        assert_eq!(c.warnings, Vec::<String>::new());
        let text = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(text(&c.seeds), ["10.0.0.1:7400", "[fd00::1]:7400", "10.0.0.2:7400"]);
        assert_eq!(text(&c.ntp), ["10.0.0.9:123", "10.0.0.8:1230", "[fd00::9]:123"]);
    }

    #[test]
    fn what_is_wrong_is_warned_about_and_ignored() {
        for bad in [
            "quelea.colour=red",
            "quelea.ip=",
            "quelea.ip=dhcp,gw=1.2.3.4",
            "quelea.ip=10.0.0.1",
            "quelea.ip=10.0.0.1/33",
            "quelea.ip=0.0.0.0/8",
            "quelea.ip=10.0.0.1/8,dev=a/b",
            "quelea.net.wait=soon",
            "quelea.net.wait=4000",
            "quelea.hostname=-x",
            "quelea.hostname=Ünder",
            "quelea.label=x",
            "quelea.ip=dhcp,dev=52:54:00",
            "quelea.ip=off,dev=eth0",
            "quelea.join=10.0.0.1",
            "quelea.join=10.0.0.1:0",
            "quelea.join=10.0.0.1:7400,host:7400",
            "quelea.discover=yes",
            "quelea.ntp=pool.ntp.org",
            "quelea.ntp=224.0.1.1",
            "quelea.ntp=10.0.0.1,10.0.0.2,10.0.0.3,10.0.0.4,10.0.0.5",
            "quelea.watchdog=on",
            "quelea.state=tape",
            "quelea.state=format:",
            "quelea.state.wait=-1",
            "quelea.trial=5",
            "quelea.trial=5000",
        ] {
            let c = Cmdline::parse(bad);
            assert_eq!(c.warnings.len(), 1, "{bad}");
            assert!(c.warnings[0].starts_with(&format!("ignored {bad}: ")), "{:?}", c.warnings);
            assert_eq!(Cmdline { warnings: vec![], ..c }, Cmdline::default(), "{bad}");
        }
    }
}
