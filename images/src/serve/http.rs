//! Paths and ranges of the web server, without IO: a fixed list of names, so that no path leads anywhere else.

use super::{core::Token, dhcp::Mac};

/// Longest path looked at.
pub const PATH_BYTES_MAX: usize = 256;

/// A request, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The path, as sent.
    pub path: String,
    /// Only the headers are wanted.
    pub head: bool,
    /// It goes on with an earlier download: its range does not begin at the first byte.
    pub resumes: bool,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// What this server is.
    Index,
    /// A file of the boot directory.
    File(&'static str),
    /// A file of one machine.
    Machine {
        /// Which.
        mac: Mac,
        /// What it was told.
        token: Token,
        /// `boot.ipxe`, `node.cpio` or `uki.efi`.
        file: &'static str,
    },
}

/// Files that everybody may have: nothing of a machine is in them.
pub const PUBLIC: [&str; 5] =
    ["vmlinuz", "initramfs.cpio", "uki.efi", "undionly.kpxe", "snponly.efi"];
const OWN: [&str; 3] = ["boot.ipxe", "node.cpio", "uki.efi"];

/// What a path names, `None` when nothing.
#[must_use]
pub fn target(path: &str) -> Option<Target> {
    let path = path.strip_prefix('/').filter(|path| path.len() <= PATH_BYTES_MAX)?;
    if path.is_empty() {
        return Some(Target::Index);
    }
    if let Some(name) = PUBLIC.into_iter().find(|name| *name == path) {
        return Some(Target::File(name));
    }
    let mut parts = path.strip_prefix("m/")?.split('/');
    let (mac, token, name) = (parts.next()?, parts.next()?, parts.next()?);
    let file = OWN.into_iter().find(|own| *own == name)?;
    let target = Target::Machine { mac: mac.parse().ok()?, token: unhex(token)?, file };
    parts.next().is_none().then_some(target)
}

fn unhex(text: &str) -> Option<Token> {
    let digits = text.as_bytes();
    if digits.len() != 32 || !digits.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
    {
        return None;
    }
    let mut token = [0; 16];
    for (n, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()?;
    }
    Some(token)
}

/// What a `Range` header asks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// All of it: no header, one of another unit, several ranges (RFC 9110, 14.2 allows to pass it over).
    Whole,
    /// From the first to before the second.
    Part(u64, u64),
    /// Beyond the end.
    Unsatisfiable,
}

/// Reads a `Range` header for a file of `len` bytes.
#[must_use]
pub fn range(header: Option<&str>, len: u64) -> Range {
    let Some((first, last)) = header
        .and_then(|text| text.trim().strip_prefix("bytes="))
        .filter(|text| !text.contains(','))
        .and_then(|text| text.split_once('-'))
    else {
        return Range::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim(), number(first), last.trim(), number(last)) {
        ("", _, _, Some(0)) => Range::Unsatisfiable,
        ("", _, _, Some(n)) if len > 0 => Range::Part(len.saturating_sub(n), len),
        (_, Some(a), "", _) if a < len => Range::Part(a, len),
        (_, Some(a), _, Some(b)) if a <= b && a < len => {
            Range::Part(a, b.saturating_add(1).min(len))
        }
        (_, Some(a), "", _) if a >= len => Range::Unsatisfiable,
        (_, Some(a), _, Some(b)) if a <= b => Range::Unsatisfiable,
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_there_are() {
        assert_eq!(target("/"), Some(Target::Index));
        assert_eq!(target("/vmlinuz"), Some(Target::File("vmlinuz")));
        let token = "0123456789abcdef0123456789abcdef";
        let path = format!("/m/52-54-00-12-34-56/{token}/node.cpio");
        let Some(Target::Machine { mac, token: read, file }) = target(&path) else { panic!() };
        assert_eq!(
            (mac.to_string().as_str(), read[1], file),
            ("52:54:00:12:34:56", 0x23, "node.cpio")
        );
        for bad in [
            "",
            "vmlinuz",
            "//vmlinuz",
            "/vmlinuz/",
            "/../etc/shadow",
            "/%2e%2e/boot.toml",
            "/boot.toml",
            "/rack.toml",
            "/m/52-54-00-12-34-56/node.cpio",
            &format!("/m/52-54-00-12-34-56/{token}/node.toml"),
            &format!("/m/52-54-00-12-34-56/{token}/node.cpio/x"),
            &format!("/m/52-54-00-12-34-56/{}/node.cpio", &token[..30]),
            &format!("/m/52-54-00-12-34-56/{}/node.cpio", token.to_uppercase()),
        ] {
            assert_eq!(target(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges() {
        let cases = [
            (None, Range::Whole),
            (Some("bytes=0-99"), Range::Part(0, 100)),
            (Some("bytes=50-"), Range::Part(50, 100)),
            (Some("bytes=50-59"), Range::Part(50, 60)),
            (Some("bytes=90-1000"), Range::Part(90, 100)),
            (Some("bytes=-10"), Range::Part(90, 100)),
            (Some("bytes=-1000"), Range::Part(0, 100)),
            (Some("bytes=100-"), Range::Unsatisfiable),
            (Some("bytes=-0"), Range::Unsatisfiable),
            (Some("bytes=5-1"), Range::Whole),
            (Some("bytes=0-1,3-4"), Range::Whole),
            (Some("lines=1-2"), Range::Whole),
            (Some("bytes=18446744073709551615-"), Range::Unsatisfiable),
        ];
        for (header, expected) in cases {
            assert_eq!(range(header, 100), expected, "{header:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_part_lies_within_the_file(header in ".{0,30}", a in 0u64.., b in 0u64.., len in 0u64..1000) {
            let _ = target(&header);
            for text in [header, format!("bytes={a}-{b}"), format!("bytes={}-{}", a % 1200, b % 1200)] {
                if let Range::Part(from, to) = range(Some(&text), len) {
                    proptest::prop_assert!(from < to && to <= len);
                }
            }
        }
    }
}
