//! `rack.toml`: which machine is which, by hardware address.
//!
//! ```toml
//! [defaults]                        # of every machine, known or not
//! join = ["10.0.0.11"]              # running nodes; port 7400 where none is given
//! labels = { row = "a" }
//! cmdline = "console=ttyS1,115200"  # further kernel arguments
//!
//! [[machine]]
//! mac = "52:54:00:12:34:56"
//! name = "a3-01"                    # [a-z0-9-]{1,63}, unique
//! labels = { rack = "a3" }          # beside and before the defaults
//! address = "10.0.0.21"             # optional: what DHCP gives it, where this is the DHCP server; its own name for itself
//! state = "disk"                    # optional: quelea.state= of its command line: auto, memory, disk, format:WHICH
//!
//! [[machine]]                       # a whole rack at once
//! mac = "52:54:00:13:*:*"           # whole bytes may be *
//! name = "a4-{mac6}"                # {mac}: 12 hex digits, {mac6}, {mac4}: the last ones
//! labels = { rack = "a4" }
//! ```

use super::dhcp::Mac;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

/// Machines in one file. More are refused.
pub const MACHINES_MAX: usize = 4096;
/// The longest name, label key or label value, in bytes, as an agent allows them.
pub const WORD_BYTES_MAX: usize = 63;
/// Labels that one machine may have, as an agent allows them.
pub const LABELS_MAX: usize = 32;
/// Nodes that one machine is told to join.
pub const JOIN_MAX: usize = 16;

/// UDP port of gossip, where `join` names none.
const GOSSIP_PORT: u16 = 7400;

/// `rack.toml`, read and checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rack {
    defaults: Settings,
    exact: BTreeMap<Mac, Machine>,
    globs: Vec<([Option<u8>; 6], Machine)>,
}

/// What may be said of one machine and of all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    join: Vec<String>,
    labels: BTreeMap<String, String>,
    cmdline: String,
    state: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    defaults: Settings,
    #[serde(default)]
    machine: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    mac: String,
    name: String,
    #[serde(default)]
    join: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    cmdline: String,
    state: Option<String>,
    address: Option<IpAddr>,
}

/// What one machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its name in the flock.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Nodes it joins.
    pub join: Vec<SocketAddr>,
    /// Its address, where it is fixed.
    pub address: Option<IpAddr>,
    /// Its kernel arguments.
    pub cmdline: String,
    /// Why it must not run pods; such a machine is given no credentials.
    pub maintenance: Option<String>,
}

impl Rack {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// What is wrong, with the line or the machine.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.machine.len() > MACHINES_MAX {
            return Err(format!("{} machines, {MACHINES_MAX} are allowed", file.machine.len()));
        }
        let mut rack = Self { defaults: file.defaults, ..Self::default() };
        join(&rack.defaults.join).map_err(|error| format!("[defaults] {error}"))?;
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for entry in file.machine {
            let of = |error: String| format!("machine {:?}: {error}", entry.mac);
            let pattern = pattern(&entry.mac).map_err(of)?;
            let machine = rack.machine(&entry).map_err(of)?;
            if !names.insert(machine.name.clone()) {
                return Err(of(format!("another machine is named {:?}", machine.name)));
            }
            if machine.address.is_some_and(|address| !addresses.insert(address)) {
                return Err(of("another machine has that address".into()));
            }
            let whole: Option<Vec<u8>> = pattern.iter().copied().collect();
            match whole.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
                Some(mac) => {
                    if rack.exact.insert(Mac(mac), machine).is_some() {
                        return Err(of("is there twice".into()));
                    }
                }
                None if !machine.name.contains("{mac") => {
                    return Err(of("many machines need many names: use {mac6} in `name`".into()));
                }
                None if machine.address.is_some() => {
                    return Err(of("many machines cannot have one `address`".into()));
                }
                None => rack.globs.push((pattern, machine)),
            }
        }
        Ok(rack)
    }

    fn machine(&self, entry: &Entry) -> Result<Machine, String> {
        let mut labels = self.defaults.labels.clone();
        labels.extend(entry.labels.clone());
        if labels.len() > LABELS_MAX {
            return Err(format!("{} labels, {LABELS_MAX} are allowed", labels.len()));
        }
        let long = |text: &&String| text.is_empty() || text.len() > WORD_BYTES_MAX;
        if let Some(text) = labels.iter().flat_map(|(k, v)| [k, v]).find(long) {
            return Err(format!("label {text:?} must have 1 to {WORD_BYTES_MAX} bytes"));
        }
        let sample = expand(&entry.name, Mac([0; 6]));
        if !name_is_valid(&sample) {
            return Err(format!(
                "{:?} cannot be a name: 1 to {WORD_BYTES_MAX} of a-z, 0-9 and -, no - at the ends",
                entry.name
            ));
        }
        let state = entry.state.as_ref().or(self.defaults.state.as_ref());
        let cmdline = [
            self.defaults.cmdline.trim(),
            entry.cmdline.trim(),
            &state.map(|state| format!("quelea.state={state}")).unwrap_or_default(),
        ]
        .join(" ");
        if cmdline.contains(|c: char| c.is_control() || c == '$') {
            return Err("`cmdline` and `state` must be one line without $".into());
        }
        let asked = if entry.join.is_empty() { &self.defaults.join } else { &entry.join };
        Ok(Machine {
            name: entry.name.clone(),
            labels,
            join: join(asked)?,
            address: entry.address,
            cmdline: cmdline.split_whitespace().collect::<Vec<_>>().join(" "),
            maintenance: None,
        })
    }

    /// How many machines are named one by one.
    #[must_use]
    pub fn named(&self) -> usize {
        self.exact.len()
    }

    /// Whether this machine is named by its own address, not by a pattern.
    #[must_use]
    pub fn names(&self, mac: Mac) -> bool {
        self.exact.contains_key(&mac)
    }

    /// Addresses that are some machine's own.
    pub fn addresses(&self) -> impl Iterator<Item = (Mac, IpAddr)> + '_ {
        self.exact.iter().filter_map(|(mac, machine)| Some((*mac, machine.address?)))
    }

    /// The machine of that address: its own entry, else the first pattern that fits.
    #[must_use]
    pub fn find(&self, mac: Mac) -> Option<Machine> {
        if let Some(machine) = self.exact.get(&mac) {
            return Some(machine.clone());
        }
        let fits = |pattern: &[Option<u8>; 6]| {
            pattern.iter().zip(mac.0).all(|(want, byte)| want.is_none_or(|want| want == byte))
        };
        let (_, machine) = self.globs.iter().find(|(pattern, _)| fits(pattern))?;
        Some(Machine { name: expand(&machine.name, mac), ..machine.clone() })
    }

    /// A machine that no entry fits, named by a template.
    ///
    /// # Errors
    /// When the template gives no name.
    pub fn unnamed(
        &self,
        template: &str,
        mac: Mac,
        maintenance: Option<&str>,
    ) -> Result<Machine, String> {
        let entry = Entry {
            mac: mac.to_string(),
            name: template.into(),
            join: Vec::new(),
            labels: BTreeMap::new(),
            cmdline: String::new(),
            state: None,
            address: None,
        };
        let machine = self.machine(&entry)?;
        Ok(Machine {
            name: expand(template, mac),
            maintenance: maintenance.map(str::to_owned),
            ..machine
        })
    }
}

impl Machine {
    /// Its `node.toml`. `peers` are further nodes to join: machines that were booted before it.
    #[must_use]
    pub fn node_toml(&self, peers: &[SocketAddr]) -> String {
        let (mut table, mut head) = (toml::Table::new(), String::new());
        table.insert("name".into(), self.name.clone().into());
        if let Some(address) = self.address {
            table.insert("address".into(), address.to_string().into());
        }
        let mut join: Vec<SocketAddr> = self.join.clone();
        join.extend(peers.iter().filter(|peer| !self.join.contains(peer)));
        let mine = self.address;
        let join: Vec<toml::Value> = join
            .iter()
            .filter(|peer| Some(peer.ip()) != mine)
            .take(JOIN_MAX)
            .map(|peer| peer.to_string().into())
            .collect();
        table.insert("join".into(), join.into());
        if let Some(reason) = &self.maintenance {
            table.insert("maintenance".into(), true.into());
            head = format!("# {}\n", reason.replace(char::is_control, " "));
        }
        let labels: toml::Table =
            self.labels.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        table.insert("labels".into(), labels.into());
        head + &table.to_string()
    }
}

/// Whether `name` may name a node, as agents see it.
#[must_use]
pub fn name_is_valid(name: &str) -> bool {
    (1..=WORD_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn expand(template: &str, mac: Mac) -> String {
    let hex = mac.to_string().replace(':', "");
    template.replace("{mac}", &hex).replace("{mac6}", &hex[6..]).replace("{mac4}", &hex[8..])
}

fn pattern(text: &str) -> Result<[Option<u8>; 6], String> {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    let parts = <[&str; 6]>::try_from(parts).map_err(|_| {
        "six bytes are needed, such as 52:54:00:12:34:56 or 52:54:00:13:*:*".to_owned()
    })?;
    let mut out = [None; 6];
    for (slot, part) in out.iter_mut().zip(parts) {
        *slot = match part {
            "*" => None,
            part if part.len() == 2 => Some(
                u8::from_str_radix(part, 16).map_err(|_| format!("{part:?} is no byte in hex"))?,
            ),
            part => return Err(format!("{part:?} is neither a byte in hex nor *")),
        };
    }
    Ok(out)
}

fn join(texts: &[String]) -> Result<Vec<SocketAddr>, String> {
    if texts.len() > JOIN_MAX {
        return Err(format!("`join` has {} entries, {JOIN_MAX} are allowed", texts.len()));
    }
    let one = |text: &String| {
        text.parse()
            .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, GOSSIP_PORT)))
            .map_err(|_| format!("`join`: {text:?} is no address (10.0.0.11 or 10.0.0.11:7400)"))
    };
    texts.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [defaults]
        join = ["10.0.0.11", "10.0.0.12:7500"]
        labels = { row = "a", rack = "none" }
        cmdline = "console=tty0"
        [[machine]]
        mac = "52:54:00:12:34:56"
        name = "a3-01"
        labels = { rack = "a3" }
        address = "10.0.0.21"
        state = "disk"
        [[machine]]
        mac = "52:54:00:13:*:*"
        name = "a4-{mac6}"
        join = ["10.0.0.99"]
    "#;

    #[test]
    fn machines_are_found_by_address_then_by_pattern() {
        let rack = Rack::parse(TEXT).unwrap();
        let one = rack.find("52:54:00:12:34:56".parse().unwrap()).unwrap();
        assert_eq!(one.name, "a3-01");
        assert_eq!(one.labels["rack"], "a3");
        assert_eq!(one.labels["row"], "a");
        assert_eq!(one.cmdline, "console=tty0 quelea.state=disk");
        assert_eq!(
            one.join,
            ["10.0.0.11:7400".parse().unwrap(), "10.0.0.12:7500".parse().unwrap()]
        );
        let many = rack.find("52:54:00:13:0A:07".parse().unwrap()).unwrap();
        assert_eq!(many.name, "a4-130a07");
        assert_eq!(many.join, ["10.0.0.99:7400".parse().unwrap()]);
        assert_eq!(rack.find("52:54:00:14:00:01".parse().unwrap()), None);
        let unnamed = rack.unnamed("m-{mac}", Mac([1, 2, 3, 4, 5, 6]), Some("why")).unwrap();
        assert_eq!(
            (unnamed.name.as_str(), unnamed.maintenance.as_deref()),
            ("m-010203040506", Some("why"))
        );
    }

    #[test]
    fn node_toml_names_itself_and_joins_others() {
        let rack = Rack::parse(TEXT).unwrap();
        let one = rack.find("52:54:00:12:34:56".parse().unwrap()).unwrap();
        let peers = ["10.0.0.21:7400".parse().unwrap(), "10.0.0.30:7400".parse().unwrap()];
        let table: toml::Table = one.node_toml(&peers).parse().unwrap();
        assert_eq!(table["name"].as_str(), Some("a3-01"));
        assert_eq!(table["address"].as_str(), Some("10.0.0.21"));
        let join: Vec<&str> =
            table["join"].as_array().unwrap().iter().filter_map(|v| v.as_str()).collect();
        assert_eq!(join, ["10.0.0.11:7400", "10.0.0.12:7500", "10.0.0.30:7400"]);
        assert!(!table.contains_key("maintenance"));
        let unnamed = rack.unnamed("m-{mac}", Mac([0; 6]), Some("not in rack.toml")).unwrap();
        let table: toml::Table = unnamed.node_toml(&[]).parse().unwrap();
        assert_eq!(table["maintenance"].as_bool(), Some(true));
    }

    #[test]
    fn mistakes_are_named() {
        let machine = |text: &str| format!("[[machine]]\n{text}");
        let cases = [
            ("macs = 1".to_owned(), "unknown field `macs`"),
            (machine("mac = \"52:54:00:12:34\"\nname = \"a\""), "six bytes are needed"),
            (machine("mac = \"52:54:00:12:34:xx\"\nname = \"a\""), "\"xx\" is no byte in hex"),
            (machine("mac = \"52:54:00:12:34:*\"\nname = \"a\""), "use {mac6}"),
            (machine("mac = \"52:54:00:12:34:56\"\nname = \"A_1\""), "cannot be a name"),
            (
                machine("mac = \"52:54:00:12:34:56\"\nname = \"a\"\njoin = [\"here\"]"),
                "`join`: \"here\"",
            ),
            (
                machine("mac = \"52:54:00:12:34:56\"\nname = \"a\"\ncmdline = \"a\\nb\""),
                "must be one line",
            ),
            (
                machine("mac = \"52:54:00:12:34:56\"\nname = \"a\"\nlabels = { x = \"\" }"),
                "label \"\"",
            ),
            (
                machine("mac = \"52:54:00:12:34:56\"\nname = \"a\"\n")
                    + &machine("mac = \"52-54-00-12-34-56\"\nname = \"b\""),
                "is there twice",
            ),
            (
                machine("mac = \"52:54:00:12:34:56\"\nname = \"a\"\n")
                    + &machine("mac = \"52:54:00:12:34:57\"\nname = \"a\""),
                "another machine is named \"a\"",
            ),
        ];
        for (text, expected) in cases {
            let error = Rack::parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}", mac in ".{0,20}") {
            let _ = Rack::parse(&text);
            let _ = pattern(&mac);
        }
    }
}
