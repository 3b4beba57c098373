//! Who a machine is when nothing on a disk says so: its SMBIOS UUID, or an identity made from a hardware address.

use super::{cmdline::Cmdline, console::say, netd, smbios::Firmware};
use std::fmt::Write as _;

const TABLE: &str = "/sys/firmware/dmi/tables/DMI";
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// UUIDs that makers left in thousands of machines.
const DUMMIES: [&str; 5] = [
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "78563412-3412-7856-90ab-cddeefaabbcc",
    "01234567-89ab-cdef-0123-456789abcdef",
];

/// What the firmware says.
pub(super) fn firmware() -> Firmware {
    std::fs::read(TABLE).map(|table| Firmware::parse(&table)).unwrap_or_default()
}

/// `label=` and `discover=` lines of the command line and the `uuid=` line of [`super::BOOT_FILE`]. A UUID that is refused is said.
pub(super) fn boot_lines(cmdline: &Cmdline) -> String {
    let mut out = String::new();
    for label in &cmdline.labels {
        let _ = writeln!(out, "label={label}");
    }
    if let Some(how) = &cmdline.discover {
        let _ = writeln!(out, "discover={how}");
    }
    // The kernel knows which SMBIOS version it is and so the order of the bytes.
    let told = std::fs::read_to_string(PRODUCT_UUID).unwrap_or_default();
    let given = Some(told.trim().to_ascii_lowercase())
        .filter(|text| !text.is_empty())
        .or_else(|| firmware().uuid.map(|bytes| text(&bytes)));
    let uuid = match (given, netd::lowest_mac()) {
        (Some(uuid), mac) => match (refused(&uuid), mac) {
            (None, _) => Some(uuid),
            (Some(why), mac) => {
                let instead =
                    mac.map_or("this machine has no identity", |_| "a hardware address instead");
                say!("identity: SMBIOS UUID {uuid} refused ({why}); {instead}");
                mac.map(|mac| from_mac(&mac))
            }
        },
        (None, mac) => mac.map(|mac| from_mac(&mac)),
    };
    if let Some(uuid) = uuid {
        let _ = writeln!(out, "uuid={uuid}");
    }
    out
}

/// Why this UUID tells no machine from another.
fn refused(uuid: &str) -> Option<&'static str> {
    let digits: Vec<u8> = uuid.bytes().filter(|b| *b != b'-').collect();
    let form = uuid.len() == 36
        && digits.len() == 32
        && digits.iter().all(u8::is_ascii_hexdigit)
        && [8, 13, 18, 23].iter().all(|at| uuid.as_bytes().get(*at) == Some(&b'-'));
    if !form {
        return Some("not a UUID");
    }
    let mut bytes = digits.chunks(2);
    let first = digits.get(..2);
    if bytes.all(|byte| Some(byte) == first) {
        return Some("one byte repeated");
    }
    DUMMIES.contains(&uuid).then_some("a maker's placeholder")
}

/// Version 8 (RFC 9562 §5.8, for our own use) with the address at its end.
fn from_mac(mac: &[u8; 6]) -> String {
    let mut bytes = *b"quelea\x80\x00\x80\x00\0\0\0\0\0\0";
    bytes[10..].copy_from_slice(mac);
    text(&bytes)
}

fn text(bytes: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_refused_and_real_ones_are_not() {
        for bad in [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            "fefefefe-fefe-fefe-fefe-fefefefefefe",
            "03000200-0400-0500-0006-000700080009",
            "12345678-1234-5678-90ab-cddeefaabbcc",
            "",
            "Not Settable",
            "4c4c4544-0042-3510-8052-b4c04f34333",
            "4c4c45440-042-3510-8052-b4c04f343331",
        ] {
            assert!(refused(bad).is_some(), "{bad}");
        }
        for good in ["00000000-0000-4000-8000-000000000001", "4c4c4544-0042-3510-8052-b4c04f343331"]
        {
            assert_eq!(refused(good), None, "{good}");
        }
    }

    #[test]
    fn a_hardware_address_makes_an_identity_of_its_own() {
        let one = from_mac(&[0x52, 0x54, 0, 0, 0, 1]);
        assert_eq!(one, "7175656c-6561-8000-8000-525400000001");
        assert_eq!(refused(&one), None);
        assert_ne!(one, from_mac(&[0x52, 0x54, 0, 0, 0, 2]));
    }
}
