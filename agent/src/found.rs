//! What the machine found out by itself: the files that PID 1 and its network keeper leave in the run directory. Pure.
//!
//! | file | from | says |
//! |---|---|---|
//! | `net` | the network keeper | device, address, host name, `label=K=V`, `seed=IP:PORT` |
//! | `boot` | PID 1 | `label=K=V` and `discover=` of the kernel command line, `state=disk\|memory`, `uuid=`, `fault=PHASE: REASON` |
//! | `labels` beside node.toml | the boot image | `K=V`, one a line |
//!
//! Lines are `key=value`; unknown keys and lines that are not understood are ignored: a later PID 1 may say more.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use crate::config::{Discover, LABEL_BYTES_MAX, LABELS_MAX};

/// Bytes read of any of these files; the rest is ignored.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Seeds taken from the network; further ones are ignored.
pub const SEEDS_MAX: usize = 64;
/// Faults of one boot that are kept; further ones are ignored.
pub const FAULTS_MAX: usize = 16;

/// What is on the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Net {
    /// The device with the address.
    pub device: String,
    /// This machine's address; the IPv6 one where there is no other.
    pub address: Option<IpAddr>,
    /// Labels (DHCP option 224).
    pub labels: Vec<(String, String)>,
    /// Gossip addresses of running nodes.
    pub seeds: Vec<SocketAddr>,
}

/// What PID 1 found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Labels of the kernel command line.
    pub labels: Vec<(String, String)>,
    /// `disk` or `memory`; empty where nobody said.
    pub state: String,
    /// The machine's identity; empty where it has none that is its own.
    pub uuid: String,
    /// Whether to look for nodes on the link, where the kernel command line says it.
    pub discover: Option<Discover>,
    /// What went wrong on the way up: `PHASE: REASON`.
    pub faults: Vec<String>,
}

impl Net {
    /// Reads `key=value` lines.
    pub fn parse(text: &str) -> Self {
        let mut net = Self::default();
        let mut address6 = None;
        for (key, value) in lines(text) {
            match key {
                "device" => value.clone_into(&mut net.device),
                // A prefix length may follow.
                "address" => net.address = address(value),
                "address6" if address6.is_none() => address6 = address(value),
                "label" => take_label(value, &mut net.labels),
                "seed" if net.seeds.len() < SEEDS_MAX => {
                    net.seeds.extend(value.parse::<SocketAddr>())
                }
                _ => {}
            }
        }
        net.address = net.address.or(address6);
        net
    }

    /// Reads the file in the run directory; nothing where it is not there (yet).
    pub fn read(run: &Path) -> Self {
        Self::parse(&read(&run.join("net")))
    }
}

impl Boot {
    /// Reads `key=value` lines.
    pub fn parse(text: &str) -> Self {
        let mut boot = Self::default();
        for (key, value) in lines(text) {
            match key {
                "label" => take_label(value, &mut boot.labels),
                "discover" => boot.discover = Discover::parse(value),
                "state" => value.clone_into(&mut boot.state),
                "uuid" if uuid_is_own(value) => boot.uuid = value.to_ascii_lowercase(),
                "fault" if boot.faults.len() < FAULTS_MAX => boot.faults.push(value.to_owned()),
                _ => {}
            }
        }
        boot
    }

    /// Reads the file in the run directory; nothing where there is none.
    pub fn read(run: &Path) -> Self {
        Self::parse(&read(&run.join("boot")))
    }
}

/// Labels in a file of `K=V` lines; `#` begins a comment.
pub fn labels(text: &str) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        take_label(line, &mut labels);
    }
    labels
}

/// At most [`FILE_BYTES_MAX`] of a file; empty where there is none.
pub fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What could be read is what there is.
        let _ = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.trim().split_once('='))
}

fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.split('/').next()?.parse().ok()?;
    (!address.is_unspecified()).then_some(address)
}

fn take_label(text: &str, labels: &mut Vec<(String, String)>) {
    let fits = |text: &str| (1..=LABEL_BYTES_MAX).contains(&text.len());
    if let Some((key, value)) = text.split_once('=')
        && fits(key)
        && fits(value)
        && labels.len() < LABELS_MAX
    {
        labels.push((key.to_owned(), value.to_owned()));
    }
}

/// Whether a SMBIOS UUID tells machines apart. Boards come with all zeroes, all ones, or one of the values below, which
/// vendors forgot to replace.
pub fn uuid_is_own(uuid: &str) -> bool {
    const DUMMIES: [&str; 6] = [
        "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009",
        "03020100-0504-0706-0809-0a0b0c0d0e0f",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "11111111-2222-3333-4444-555555555555",
        "fefefefe-fefe-fefe-fefe-fefefefefefe",
    ];
    let uuid = uuid.trim().to_ascii_lowercase();
    let digits: Vec<u8> = uuid.bytes().filter(u8::is_ascii_hexdigit).collect();
    let all = |digit: u8| digits.iter().all(|d| *d == digit);
    let shaped = uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-') && digits.len() == 32;
    shaped && !all(b'0') && !all(b'f') && !DUMMIES.contains(&uuid.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_the_network_says() {
        let net = Net::parse(
            "device=eth0\naddress=10.0.0.7\nprefix=24\ngateway=10.0.0.1\nvia=dhcp\nlabel=rack=a3\nlabel=x=y=z\nseed=10.0.0.2:7400\nseed=nonsense\nlater=1\nno line",
        );
        assert_eq!((net.device.as_str(), net.address), ("eth0", Some([10, 0, 0, 7].into())));
        assert_eq!(net.labels, [("rack".into(), "a3".into()), ("x".into(), "y=z".into())]);
        assert_eq!(net.seeds, ["10.0.0.2:7400".parse().unwrap()]);
        assert_eq!(Net::parse("address=0.0.0.0").address, None, "not an address yet");
        assert_eq!(Net::parse("address6=fd00::7/64").address, "fd00::7".parse().ok());
        let both = Net::parse("address6=fd00::7\naddress=10.0.0.7/24");
        assert_eq!(both.address, Some([10, 0, 0, 7].into()));
    }

    #[test]
    fn what_pid_1_says() {
        let boot = Boot::parse(
            "phase=early start_us=1 end_us=2 ok=true\nlabel=rack=b\ndiscover=on\nstate=disk\nfault=net-up: no carrier\nuuid=4C4C4544-0042-3510-8057-B4C04F503533\n",
        );
        assert_eq!(boot.uuid, "4c4c4544-0042-3510-8057-b4c04f503533");
        assert_eq!((boot.state.as_str(), boot.faults.len()), ("disk", 1));
        assert_eq!(boot.discover, Some(Discover::On));
        assert_eq!(Boot::parse("discover=maybe").discover, None);
    }

    #[test]
    fn a_uuid_that_many_machines_have_is_none() {
        for bad in [
            "",
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "03020100-0504-0706-0809-0A0B0C0D0E0F",
            "Not Settable",
            "4c4c4544",
        ] {
            assert!(!uuid_is_own(bad), "{bad}");
        }
        assert!(uuid_is_own("4c4c4544-0042-3510-8057-b4c04f503533"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_within_bounds(text in "([a-z6]{0,8}=?[ -~]{0,80}\n){0,120}") {
            let (net, boot) = (Net::parse(&text), Boot::parse(&text));
            prop_assert!(net.seeds.len() <= SEEDS_MAX && net.labels.len() <= LABELS_MAX);
            prop_assert!(boot.faults.len() <= FAULTS_MAX && labels(&text).len() <= LABELS_MAX);
        }
    }
}
