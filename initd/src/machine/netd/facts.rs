//! What the network is, as text for the agent: [`NET_FILE`](super::NET_FILE).
//!
//! ```text
//! device=eth0                  where the default route and the lease are
//! address=10.0.0.5/24          absent on a network without IPv4
//! address6=fd00::5/64          by router advertisement; absent without
//! gateway=10.0.0.1
//! via=dhcp:10.0.0.1 | static | ra | off
//! hostname=n5                  DHCP option 12
//! dns=10.0.0.1                 repeated
//! ntp=10.0.0.1:123             repeated; the command line's, then option 42's
//! seed=10.0.0.2:7400           repeated; the command line's, then option 225's
//! label=rack=a3                repeated, each key once; DHCP option 224 before SMBIOS type 11
//! other=eth1,10.1.0.5/24       further devices with an address, repeated
//! lease_s=3600
//! ```
//!
//! Labels of the command line are in `/run/quelea/boot` and come before these; those of the node's own configuration
//! come before all.

use super::super::{
    cmdline::{LABELS_MAX, NTP_MAX, SEEDS_MAX, hostname_is_valid, label_is_valid, seed_is_valid},
    dhcp::Lease,
};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// What goes into the file, whoever said it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    pub(super) device: Option<&'a str>,
    pub(super) lease: Option<&'a Lease>,
    pub(super) address6: Option<(Ipv6Addr, u8)>,
    pub(super) via: String,
    /// Of the command line.
    pub(super) seeds: &'a [SocketAddr],
    /// Of the command line.
    pub(super) ntp: &'a [SocketAddr],
    /// Of the firmware.
    pub(super) labels: &'a [String],
    /// Further devices and their leases.
    pub(super) others: Vec<(&'a str, &'a Lease)>,
}

impl Facts<'_> {
    /// The file.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(out, "{key}={value}");
        };
        if let Some(device) = self.device {
            line("device", &device);
        }
        if let Some(lease) = self.lease {
            line("address", &format_args!("{}/{}", lease.address, lease.prefix));
        }
        if let Some((address, prefix)) = self.address6 {
            line("address6", &format_args!("{address}/{prefix}"));
        }
        line("via", &self.via);
        if let Some(lease) = self.lease {
            lease.gateway.iter().for_each(|ip| line("gateway", ip));
            lease.dns.iter().for_each(|ip| line("dns", ip));
            lease.lease_s.iter().for_each(|seconds| line("lease_s", seconds));
            let name = lease.hostname.iter().find(|name| hostname_is_valid(name));
            name.iter().for_each(|name| line("hostname", name));
        }
        self.ntp().iter().for_each(|at| line("ntp", at));
        self.seeds().iter().for_each(|at| line("seed", at));
        self.labels().iter().for_each(|label| line("label", label));
        for (device, lease) in &self.others {
            line("other", &format_args!("{device},{}/{}", lease.address, lease.prefix));
        }
        out
    }

    /// Time servers, in the order they are asked.
    pub(super) fn ntp(&self) -> Vec<SocketAddr> {
        let leased = self.lease.into_iter().flat_map(|lease| &lease.ntp);
        let leased = leased.map(|ip| SocketAddr::new(IpAddr::V4(*ip), 123));
        unique(self.ntp.iter().copied().chain(leased), NTP_MAX)
    }

    fn seeds(&self) -> Vec<SocketAddr> {
        let text = self.lease.and_then(|lease| lease.seeds.as_deref()).unwrap_or_default();
        let leased = text.split([' ', ',']).filter_map(|word| word.parse().ok());
        unique(self.seeds.iter().copied().chain(leased.filter(seed_is_valid)), SEEDS_MAX)
    }

    fn labels(&self) -> Vec<&str> {
        let text = self.lease.and_then(|lease| lease.labels.as_deref()).unwrap_or_default();
        let mut keys = BTreeSet::new();
        text.split(',')
            .chain(self.labels.iter().map(String::as_str))
            .filter(|label| label_is_valid(label) && label.bytes().all(|b| b.is_ascii_graphic()))
            .filter(|label| label.split('=').next().is_some_and(|key| keys.insert(key)))
            .take(LABELS_MAX)
            .collect()
    }
}

fn unique(all: impl Iterator<Item = SocketAddr>, max: usize) -> Vec<SocketAddr> {
    let mut seen = BTreeSet::new();
    all.filter(|at| seen.insert(*at)).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease() -> Lease {
        Lease {
            address: [10, 0, 0, 5].into(),
            prefix: 24,
            gateway: Some([10, 0, 0, 1].into()),
            dns: vec![[10, 0, 0, 3].into()],
            server: [10, 0, 0, 1].into(),
            lease_s: Some(60),
            hostname: Some("n5".into()),
            labels: Some("rack=a3,broken,row=1,room=b c".into()),
            ntp: vec![[10, 0, 0, 9].into(), [10, 0, 0, 8].into()],
            seeds: Some("10.0.0.2:7400 10.0.0.1:7400,junk 0.0.0.0:7400 [fd00::2]:7400".into()),
        }
    }

    #[test]
    fn every_key_once_by_priority() {
        let lease = lease();
        let facts = Facts {
            device: Some("eth0"),
            lease: Some(&lease),
            address6: Some(("fd00::5".parse().unwrap(), 64)),
            via: "dhcp:10.0.0.1".into(),
            seeds: &["10.0.0.1:7400".parse().unwrap()],
            ntp: &["10.0.0.8:123".parse().unwrap()],
            labels: &["row=9".into(), "height=12".into()],
            others: vec![("eth1", &lease)],
        };
        assert_eq!(
            facts.text(),
            "device=eth0\naddress=10.0.0.5/24\naddress6=fd00::5/64\nvia=dhcp:10.0.0.1\ngateway=10.0.0.1\n\
             dns=10.0.0.3\nlease_s=60\nhostname=n5\nntp=10.0.0.8:123\nntp=10.0.0.9:123\nseed=10.0.0.1:7400\n\
             seed=10.0.0.2:7400\nseed=[fd00::2]:7400\nlabel=rack=a3\nlabel=row=1\nlabel=height=12\n\
             other=eth1,10.0.0.5/24\n"
        );
    }

    #[test]
    fn keeps_only_what_is_well_formed() {
        let lease = Lease { hostname: Some("Bad_Name".into()), ntp: vec![], ..lease() };
        let facts = Facts { lease: Some(&lease), via: "static".into(), ..Facts::default() };
        assert!(!facts.text().contains("hostname"), "{}", facts.text());
        let off = Facts { via: "off".into(), labels: &["a=b".into()], ..Facts::default() };
        assert_eq!(off.text(), "via=off\nlabel=a=b\n");
    }
}
