//! Devices that have no driver and no module in this image: what a rack's owner must be told.

use super::modules::Index;
use std::{fmt, path::Path};

/// Most devices told of by name; the rest is a number.
pub(super) const LINES_MAX: usize = 16;
/// Most devices looked at on one bus.
const DEVICES_MAX: usize = 4096;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Missing {
    pub(super) class: &'static str,
    address: String,
    pub(super) alias: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ({})", self.class, self.address, self.alias)
    }
}

/// What a network device is called here.
pub(super) const NETWORK: &str = "network device";

/// Devices on the PCI and virtio buses that matter to a node, have no driver, and for which `index` has no module.
pub(super) fn find(index: &Index) -> Vec<Missing> {
    let mut found = Vec::new();
    for bus in ["pci", "virtio"] {
        let dir = Path::new("/sys/bus").join(bus).join("devices");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().take(DEVICES_MAX) {
            let path = entry.path();
            if path.join("driver").exists() {
                continue;
            }
            let alias = std::fs::read_to_string(path.join("modalias")).unwrap_or_default();
            let alias = alias.trim();
            let Some(class) = class(alias).filter(|_| index.matching(alias).is_empty()) else {
                continue;
            };
            let address = entry.file_name().to_string_lossy().into_owned();
            found.push(Missing { class, address, alias: alias.to_owned() });
        }
    }
    found.sort();
    found
}

/// What kind of device an alias names; `None` for those that a node does without (bridges, graphics, sound).
/// PCI: class and subclass after `bc` and `sc` (PCI Code and ID Assignment §1); virtio: the device number.
pub(super) fn class(alias: &str) -> Option<&'static str> {
    if let Some(rest) = alias.strip_prefix("virtio:d") {
        return match u32::from_str_radix(rest.get(..8)?, 16).ok()? {
            1 => Some(NETWORK),
            2 | 8 | 26 => Some("storage device"),
            _ => None,
        };
    }
    let at = alias.strip_prefix("pci:").and_then(|rest| rest.get(rest.rfind("bc")? + 2..))?;
    let (base, sub) = (at.get(..2)?, at.strip_prefix(at.get(..2)?)?.strip_prefix("sc")?.get(..2)?);
    match (base, sub) {
        ("01", _) => Some("storage device"),
        ("02", _) | ("0C", "06") => Some(NETWORK),
        ("0C", "03") => Some("USB controller"),
        ("0C", "04") => Some("Fibre Channel controller"),
        ("12", _) => Some("accelerator"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_devices() {
        for (alias, want) in [
            ("pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00", Some(NETWORK)),
            ("pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", Some("storage device")),
            ("pci:v0000BCBCd0000BC02sv00008086sd00000000bc06sc00i00", None),
            ("pci:v000015B3d00001017sv000015B3sd00000007bc0Csc06i00", Some(NETWORK)),
            ("virtio:d00000001v00001AF4", Some(NETWORK)),
            ("virtio:d00000002v00001AF4", Some("storage device")),
            ("virtio:d00000004v00001AF4", None),
            ("virtio:d0001", None),
            ("pci:v1bc", None),
            ("acpi:PNP0A08:", None),
            ("", None),
        ] {
            assert_eq!(class(alias), want, "{alias}");
        }
    }

    #[test]
    fn a_line_names_class_place_and_alias() {
        let one =
            Missing { class: NETWORK, address: "0000:00:03.0".into(), alias: "pci:v1".into() };
        assert_eq!(one.to_string(), "network device at 0000:00:03.0 (pci:v1)");
    }
}
