//! What a boot server tells people and programs: one event, one line.

use super::dhcp::Mac;
use serde::Serialize;
use std::net::IpAddr;

/// Something that happened to one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What: `pxe`, `ipxe`, `http-boot`, `tftp`, `fetch`, `script`, `configured`, `refused`, `unknown`, `error`.
    pub event: &'static str,
    /// Whose.
    #[serde(serialize_with = "as_text")]
    pub mac: Mac,
    /// Its name, where it has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub machine: String,
    /// The address it asked from, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// For people.
    pub detail: String,
    /// Of the machines that are named: how many have their configuration, and how many there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<(usize, usize)>,
}

fn as_text<S: serde::Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

impl Event {
    /// An event of a machine.
    #[must_use]
    pub fn new(event: &'static str, mac: Mac) -> Self {
        Self {
            event,
            mac,
            machine: String::new(),
            address: None,
            detail: String::new(),
            progress: None,
        }
    }

    /// With its name.
    #[must_use]
    pub fn machine(mut self, name: &str) -> Self {
        self.machine = name.to_owned();
        self
    }

    /// With the address it asked from.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.address = Some(address);
        self
    }

    /// With what it is about.
    #[must_use]
    pub fn detail(mut self, detail: &str) -> Self {
        self.detail = detail.to_owned();
        self
    }

    /// The line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let name = if self.machine.is_empty() { "?" } else { &self.machine };
        let address = self.address.map(|a| a.to_string()).unwrap_or_default();
        let progress = self
            .progress
            .map(|(n, of)| format!(" ({n} of {of} named machines)"))
            .unwrap_or_default();
        format!(
            "{name:<12} {} {address:<15} {:<10} {}{progress}",
            self.mac, self.event, self.detail
        )
    }
}
