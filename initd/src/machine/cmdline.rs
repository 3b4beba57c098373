//! The kernel command line: the arguments that are ours, and a warning for those that only look like it.
//!
//! ```text
//! quelea.ip=dhcp | off | ADDRESS/PREFIX[,gw=ADDRESS][,dev=NAME]     default dhcp
//! quelea.net.wait=SECONDS      how long boot waits for an address   default 30
//! quelea.hostname=NAME         before DHCP's and /etc/quelea/hostname
//! quelea.label=KEY=VALUE       may be repeated; handed on to the agent
//! ```

use std::net::Ipv4Addr;

/// Most labels taken from the command line; further ones are refused with a warning.
pub const LABELS_MAX: usize = 32;
/// Longest wait for an address; longer ones are cut with a warning.
pub const NET_WAIT_S_MAX: u32 = 3600;

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
        /// Network device; the first with a carrier when absent.
        device: Option<String>,
    },
}

/// What the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// Address configuration.
    pub ip: Ip,
    /// How long boot waits for an address, in seconds.
    pub net_wait_s: u32,
    /// Host name.
    pub hostname: Option<String>,
    /// `key=value` labels in order.
    pub labels: Vec<String>,
    /// What was ignored, and why: one sentence each, for the console.
    pub warnings: Vec<String>,
}

impl Default for Cmdline {
    fn default() -> Self {
        Self {
            ip: Ip::Dhcp,
            net_wait_s: 30,
            hostname: None,
            labels: Vec::new(),
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
            "ip" => self.ip = parse_ip(value)?,
            "net.wait" => {
                let wait: u32 = value.parse().map_err(|_| "not a number of seconds")?;
                if wait > NET_WAIT_S_MAX {
                    return Err("longer than an hour");
                }
                self.net_wait_s = wait;
            }
            "hostname" => {
                if !hostname_is_valid(value) {
                    return Err("a host name has 1 to 63 of a-z 0-9 -");
                }
                self.hostname = Some(value.to_owned());
            }
            "label" => {
                let complete =
                    value.split_once('=').is_some_and(|(k, v)| !k.is_empty() && !v.is_empty());
                if !complete {
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

fn parse_ip(value: &str) -> Result<Ip, &'static str> {
    let mut parts = value.split(',');
    let address = match parts.next() {
        Some("dhcp") if value == "dhcp" => return Ok(Ip::Dhcp),
        Some("off") if value == "off" => return Ok(Ip::Off),
        Some(address) => address,
        None => return Err("empty"),
    };
    let (address, prefix) =
        address.split_once('/').ok_or("neither dhcp, off nor ADDRESS/PREFIX")?;
    let address: Ipv4Addr = address.parse().map_err(|_| "not an IPv4 address")?;
    let prefix: u8 = prefix.parse().map_err(|_| "not a prefix length")?;
    if !(1..=32).contains(&prefix) {
        return Err("a prefix length is 1 to 32");
    }
    if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
        return Err("not an address of a machine");
    }
    let (mut gateway, mut device) = (None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("gw", v)) => gateway = Some(v.parse().map_err(|_| "gw is not an IPv4 address")?),
            Some(("dev", v)) if device_is_valid(v) => device = Some(v.to_owned()),
            _ => return Err("after the address only gw= and dev= may follow"),
        }
    }
    Ok(Ip::Static { address, prefix, gateway, device })
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
                device: Some("eth1".into())
            }
        );
        assert_eq!((c.net_wait_s, c.hostname.as_deref()), (5, Some("n1")));
        assert_eq!(c.labels, ["rack=a3"]);
        assert_eq!(c.warnings, Vec::<String>::new());
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
        ] {
            let c = Cmdline::parse(bad);
            assert_eq!(c.warnings.len(), 1, "{bad}");
            assert!(c.warnings[0].starts_with(&format!("ignored {bad}: ")), "{:?}", c.warnings);
            assert_eq!(Cmdline { warnings: vec![], ..c }, Cmdline::default(), "{bad}");
        }
    }
}
