//! SMBIOS: labels and the identity that a machine's maker or owner wrote into its firmware. Pure.
//!
//! ```text
//! quelea:label=KEY=VALUE       an OEM string (type 11); QEMU: -smbios type=11,value=quelea:label=rack=a3
//! ```
//!
//! Source: DMTF DSP0134 §6.1.2, §6.1.3 (text strings), §7.2 (system), §7.12 (OEM strings). The bytes come from firmware
//! and are often wrong: what does not fit ends the reading, and what was read before it counts.

use super::cmdline::{LABELS_MAX, label_is_valid};

/// Largest table read; the rest is ignored. Servers have 4 to 20 kB.
pub const TABLE_BYTES_MAX: usize = 256 << 10;
/// Most structures looked at.
const STRUCTURES_MAX: usize = 4096;
/// Longest string taken; longer ones are ignored.
const STRING_BYTES_MAX: usize = 255;
/// How an OEM string that is ours begins.
const LABEL_PREFIX: &str = "quelea:label=";

const SYSTEM: u8 = 1;
const OEM_STRINGS: u8 = 11;
const END_OF_TABLE: u8 = 127;

/// What is ours in a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firmware {
    /// `key=value` labels in order, at most [`LABELS_MAX`].
    pub labels: Vec<String>,
    /// The system's UUID in the order of its text form, unjudged.
    pub uuid: Option<[u8; 16]>,
}

impl Firmware {
    /// Reads a structure table (`/sys/firmware/dmi/tables/DMI`).
    #[must_use]
    pub fn parse(table: &[u8]) -> Self {
        let mut found = Self::default();
        let mut rest = table.get(..TABLE_BYTES_MAX).unwrap_or(table);
        for _ in 0..STRUCTURES_MAX {
            let Some((structure, after)) = next(rest) else { break };
            match structure.kind {
                SYSTEM if found.uuid.is_none() => found.uuid = structure.uuid(),
                OEM_STRINGS => found.take_labels(structure.strings),
                END_OF_TABLE => break,
                _ => {}
            }
            rest = after;
        }
        found
    }

    fn take_labels(&mut self, strings: &[u8]) {
        for string in strings.split(|byte| *byte == 0) {
            let Ok(text) = std::str::from_utf8(string) else { continue };
            let Some(label) = text.trim_end().strip_prefix(LABEL_PREFIX) else { continue };
            let plain =
                label.len() <= STRING_BYTES_MAX && label.bytes().all(|b| b.is_ascii_graphic());
            if plain && label_is_valid(label) && self.labels.len() < LABELS_MAX {
                self.labels.push(label.to_owned());
            }
        }
    }
}

struct Structure<'a> {
    kind: u8,
    formatted: &'a [u8],
    strings: &'a [u8],
}

impl Structure<'_> {
    /// Offset 8; the first three fields are little endian since SMBIOS 2.6.
    fn uuid(&self) -> Option<[u8; 16]> {
        let b: [u8; 16] = self.formatted.get(8..24)?.try_into().ok()?;
        let [a0, a1, a2, a3, b0, b1, c0, c1, tail @ ..] = b;
        let mut text = [0; 16];
        text[..8].copy_from_slice(&[a3, a2, a1, a0, b1, b0, c1, c0]);
        text[8..].copy_from_slice(&tail);
        Some(text)
    }
}

/// The first structure and what follows it. A structure without its end is none.
fn next(bytes: &[u8]) -> Option<(Structure<'_>, &[u8])> {
    let (kind, len) = (*bytes.first()?, usize::from(*bytes.get(1)?));
    // Type, length, handle.
    if len < 4 {
        return None;
    }
    let formatted = bytes.get(..len)?;
    let strings = bytes.get(len..)?;
    let end = strings.windows(2).position(|pair| pair == [0, 0])?;
    Some((Structure { kind, formatted, strings: strings.get(..end)? }, strings.get(end + 2..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn structure(kind: u8, formatted: &[u8], strings: &[&str]) -> Vec<u8> {
        let mut out = vec![kind, u8::try_from(4 + formatted.len()).unwrap(), 0, 0];
        out.extend_from_slice(formatted);
        for string in strings {
            out.extend_from_slice(string.as_bytes());
            out.push(0);
        }
        out.extend_from_slice(if strings.is_empty() { &[0, 0] } else { &[0] });
        out
    }

    fn system(uuid: [u8; 16]) -> Vec<u8> {
        let mut formatted = vec![1, 2, 3, 4];
        formatted.extend(uuid);
        structure(SYSTEM, &formatted, &["Maker", "Model"])
    }

    #[test]
    fn labels_and_uuid_among_others() {
        let mut table = structure(0, &[1, 2], &["BIOS"]);
        table.extend(system([3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]));
        table.extend(structure(
            OEM_STRINGS,
            &[4],
            &["quelea:label=rack=a3", "Dell System", "quelea:label=broken", "quelea:label=row=1 "],
        ));
        table.extend(structure(END_OF_TABLE, &[], &[]));
        table.extend(structure(OEM_STRINGS, &[1], &["quelea:label=after=end"]));
        let found = Firmware::parse(&table);
        assert_eq!(found.labels, ["rack=a3", "row=1"]);
        assert_eq!(found.uuid, Some(std::array::from_fn(|n| u8::try_from(n).unwrap())));
    }

    #[test]
    fn what_is_broken_ends_the_reading_and_keeps_what_was_read() {
        let good = structure(OEM_STRINGS, &[1], &["quelea:label=a=b"]);
        for bad in [
            &[OEM_STRINGS, 3, 0, 0, 0, 0][..],
            &[1],
            &[1, 255, 0, 0, 0, 0],
            &[11, 5, 0, 0, 1, b'x'],
        ] {
            let table = [&good, bad].concat();
            assert_eq!(Firmware::parse(&table).labels, ["a=b"], "{bad:?}");
        }
        let short = structure(SYSTEM, &[1, 2, 3, 4, 5], &[]);
        assert_eq!(Firmware::parse(&short).uuid, None, "a system structure of SMBIOS 2.0");
        let colour = structure(OEM_STRINGS, &[1], &["quelea:label=a=\x1b[31m"]);
        assert_eq!(Firmware::parse(&colour).labels, Vec::<String>::new());
    }

    #[test]
    fn a_flood_of_labels_is_bounded() {
        let many = vec!["quelea:label=a=b"; LABELS_MAX + 5];
        let table = structure(OEM_STRINGS, &[1], &many);
        assert_eq!(Firmware::parse(&table).labels.len(), LABELS_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
            let _ = Firmware::parse(&bytes);
        }

        #[test]
        fn damage_is_survived(at in 0usize..200, to: u8, cut in 0usize..200) {
            let mut table = system([7; 16]);
            table.extend(structure(OEM_STRINGS, &[2], &["quelea:label=a=b", "quelea:label=c=d"]));
            if let Some(byte) = table.get_mut(at) {
                *byte = to;
            }
            table.truncate(table.len().max(cut) - cut.min(table.len()));
            let found = Firmware::parse(&table);
            prop_assert!(found.labels.len() <= 2);
            prop_assert!(found.labels.iter().all(|label| label_is_valid(label)));
        }

        #[test]
        fn what_was_written_is_read(uuid: [u8; 16], keys in proptest::collection::vec("[a-z]{1,8}=[a-z0-9]{1,8}", 0..8)) {
            let strings: Vec<String> = keys.iter().map(|key| format!("quelea:label={key}")).collect();
            let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
            let mut table = structure(OEM_STRINGS, &[1], &strings);
            table.extend(system(uuid));
            let found = Firmware::parse(&table);
            prop_assert_eq!(found.labels, keys);
            prop_assert_eq!(found.uuid.map(|u| u[8..].to_vec()), Some(uuid[8..].to_vec()));
        }
    }
}
