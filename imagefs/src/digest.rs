//! `sha256:` digests, the only kind this crate speaks.

use std::fmt;
use std::str::FromStr;

use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Error;

/// A SHA-256 digest. Text form `sha256:<64 hex>`; in binary serde formats 32 bytes, in textual ones the text form.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

const HEX: &[u8; 16] = b"0123456789abcdef";

impl Digest {
    /// Of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        from_ring(&digest(&SHA256, bytes))
    }

    /// 64 lower-case hex digits without the `sha256:`; the name of its file in a store.
    pub fn hex(&self) -> String {
        let mut s = String::with_capacity(64);
        for b in self.0 {
            s.push(char::from(HEX[usize::from(b >> 4)]));
            s.push(char::from(HEX[usize::from(b & 15)]));
        }
        s
    }

    /// From 64 lower-case hex digits.
    pub fn from_hex(hex: &str) -> Option<Digest> {
        let hex: &[u8; 64] = hex.as_bytes().try_into().ok()?;
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
            // Upper case is not canonical (OCI image spec, descriptor.md) and would give one blob two names.
            let digit = |c: u8| HEX.iter().position(|h| *h == c);
            let (hi, lo) = (digit(pair[0])?, digit(pair[1])?);
            *byte = (hi as u8) << 4 | lo as u8;
        }
        Some(Digest(out))
    }

    /// The first 8 bytes: what a node's record carries for each image it holds.
    pub fn prefix(&self) -> [u8; 8] {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        [a, b, c, d, e, f, g, h]
    }
}

/// SHA-256 of a stream. By ring and not sha2: most servers in racks have no SHA extensions, and there its assembly is
/// twice as fast.
#[derive(Clone)]
pub(crate) struct Hasher(Context);

impl Hasher {
    pub(crate) fn new() -> Hasher {
        Hasher(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        from_ring(&self.0.finish())
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

fn from_ring(d: &ring::digest::Digest) -> Digest {
    let mut out = [0; 32];
    // A SHA-256 has 32 bytes; the lengths cannot differ.
    out.copy_from_slice(d.as_ref());
    Digest(out)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(s: &str) -> Result<Digest, Error> {
        s.strip_prefix("sha256:")
            .and_then(Digest::from_hex)
            .ok_or_else(|| Error::BadDigest { text: s.chars().take(100).collect() })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(self) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        if d.is_human_readable() {
            let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
            s.parse().map_err(de::Error::custom)
        } else {
            Ok(Digest(Deserialize::deserialize(d)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_and_refusals() {
        let d = Digest::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(d.to_string(), text);
        assert_eq!(text.parse::<Digest>().unwrap(), d);
        let upper = text.to_uppercase().replace("SHA256", "sha256");
        for bad in ["", "sha256:", "sha512:00", &text[..70], &format!("{text}0"), &upper] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&d).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Digest>(&format!("\"{text}\"")).unwrap(), d);
        assert_eq!(postcard::to_stdvec(&d).unwrap(), d.0);
        assert_eq!(postcard::from_bytes::<Digest>(&d.0).unwrap(), d);
    }
}
