//! What is said about an image: blob references, the replicated record, reference names.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::oci::{LAYERS_MAX, RunConfig};

/// What a blob is; decides where it lies and how it is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// An image manifest.
    Manifest,
    /// An image config.
    Config,
    /// A layer's *uncompressed* tar, addressed by its diff_id.
    Layer,
}

impl fmt::Display for BlobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BlobKind::Manifest => "manifest",
            BlobKind::Config => "config",
            BlobKind::Layer => "layer",
        })
    }
}

/// One thing to fetch or serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobRef {
    /// What it is.
    pub kind: BlobKind,
    /// Its digest; of a layer the diff_id.
    pub digest: Digest,
    /// Its exact size, bytes.
    pub size_bytes: u64,
}

/// A layer in an image record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// SHA-256 of the uncompressed tar.
    pub diff_id: Digest,
    /// Length of the uncompressed tar.
    pub size_bytes: u64,
    /// fs-verity digest of the uncompressed tar; commits to the piece list.
    pub verity: Digest,
}

/// What the flock knows of an image: the body of `i/<reference>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Normalised name, `hello:latest`.
    pub reference: String,
    /// The manifest blob.
    pub manifest_digest: Digest,
    /// Its size, bytes.
    pub manifest_bytes: u64,
    /// The config blob.
    pub config_digest: Digest,
    /// Its size, bytes.
    pub config_bytes: u64,
    /// `os/arch`.
    pub platform: String,
    /// Lowest first.
    pub layers: Vec<LayerRecord>,
}

/// First byte of the binary form.
const RECORD_VERSION: u8 = 1;

impl ImageRecord {
    /// Versioned binary form, under 16 KiB for every image within the limits. Later versions append fields; they are
    /// skipped here.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECORD_VERSION];
        // Serialising plain data into a growing vector has no failure.
        out.extend(postcard::to_stdvec(self).unwrap_or_default());
        out
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<ImageRecord> {
        let bad = |detail: String| Error::Json { what: "image record".into(), detail };
        let Some((&RECORD_VERSION, body)) = bytes.split_first() else {
            return Err(bad("unknown version".into()));
        };
        let (record, _later_fields) =
            postcard::take_from_bytes::<ImageRecord>(body).map_err(|e| bad(e.to_string()))?;
        if record.layers.len() > LAYERS_MAX {
            return Err(bad("too many layers".into()));
        }
        reference(&record.reference)?;
        Ok(record)
    }

    /// Everything the image consists of: manifest, config, then the distinct layers, lowest first.
    pub fn blobs(&self) -> Vec<BlobRef> {
        let blob = |kind, digest, size_bytes| BlobRef { kind, digest, size_bytes };
        let mut out = vec![
            blob(BlobKind::Manifest, self.manifest_digest, self.manifest_bytes),
            blob(BlobKind::Config, self.config_digest, self.config_bytes),
        ];
        let mut seen = BTreeSet::new();
        let distinct = self.layers.iter().filter(|l| seen.insert(l.diff_id));
        out.extend(distinct.map(|l| blob(BlobKind::Layer, l.diff_id, l.size_bytes)));
        out
    }

    /// Sum of the layers' sizes, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, l| sum.saturating_add(l.size_bytes))
    }
}

/// An image that is completely here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What it consists of.
    pub record: ImageRecord,
    /// How it wants to be run.
    pub config: RunConfig,
}

/// Longest reference, bytes; percent-encoded it is still a file name.
const REFERENCE_BYTES_MAX: usize = 180;
const TAG_BYTES_MAX: usize = 128;

/// Checks a reference and completes it: without a tag or digest it gets `:latest`. No registry is guessed.
///
/// `[host[:port]/]path[:tag][@sha256:…]`, path components of lower-case letters, digits and inner `. _ -`.
pub fn reference(text: &str) -> Result<String> {
    let bad = |why| Err(Error::BadReference { reference: text.chars().take(200).collect(), why });
    if text.is_empty() || text.len() > REFERENCE_BYTES_MAX {
        return bad("must have 1 to 180 characters");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|d| d.parse::<Digest>().is_err()) {
        return bad("what follows @ must be sha256: and 64 hex digits");
    }
    // A colon before the last slash is a port.
    let name_at = rest.rfind('/').map_or(0, |i| i + 1);
    let (path, tag) = match rest.get(name_at..).unwrap_or("").split_once(':') {
        Some((name, tag)) => (rest.get(..name_at + name.len()).unwrap_or(""), Some(tag)),
        None => (rest, None),
    };
    let ok = |c: char, also: &str| c.is_ascii_alphanumeric() || also.contains(c);
    if let Some(tag) = tag
        && (tag.is_empty()
            || tag.len() > TAG_BYTES_MAX
            || tag.starts_with(['.', '-'])
            || !tag.chars().all(|c| ok(c, "._-")))
    {
        return bad("a tag has letters, digits, . _ - and does not start with . or -");
    }
    for (i, part) in path.split('/').enumerate() {
        let port = if i == 0 && path.contains('/') { ":" } else { "" };
        let chars = part
            .chars()
            .all(|c| ok(c, "._-") && !c.is_ascii_uppercase() || port.contains(c) && c == ':');
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        if !chars || !ends(part.chars().next()) || !ends(part.chars().next_back()) {
            return bad("a name has lower-case letters and digits, with . _ - inside");
        }
    }
    Ok(if tag.is_none() && digest.is_none() { format!("{text}:latest") } else { text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (given, want) in [
            ("hello", "hello:latest"),
            ("hello:1.0", "hello:1.0"),
            ("team/web-app_2", "team/web-app_2:latest"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("reg.example.org/a:V1", "reg.example.org/a:V1"),
        ] {
            assert_eq!(reference(given).unwrap(), want);
            assert_eq!(reference(want).unwrap(), want);
        }
        let digest = Digest::of(b"").to_string();
        assert_eq!(reference(&format!("a@{digest}")).unwrap(), format!("a@{digest}"));
        for bad in [
            "",
            "Hello",
            "a/",
            "/a",
            "a//b",
            "..",
            "a/../b",
            "a:",
            "a:.x",
            "a:b:c",
            "a b",
            "a@sha256:12",
            "-a",
            "a-",
            "a%2F",
            "ä",
            "a\0b",
        ] {
            assert!(reference(bad).is_err(), "{bad:?}");
        }
        assert!(reference(&"a".repeat(181)).is_err());
    }

    #[test]
    fn largest_record_fits_the_map() {
        let d = Digest([0xff; 32]);
        let layer = LayerRecord { diff_id: d, size_bytes: u64::MAX, verity: d };
        let record = ImageRecord {
            reference: format!("{}:latest", "a".repeat(173)),
            manifest_digest: d,
            manifest_bytes: u64::MAX,
            config_digest: d,
            config_bytes: u64::MAX,
            platform: "linux/amd64/v8".into(),
            layers: vec![layer; LAYERS_MAX],
        };
        let bytes = record.encode();
        assert!(bytes.len() < 16 << 10, "{}", bytes.len());
        assert_eq!(ImageRecord::decode(&bytes).unwrap(), record);
        // Fields of a later version.
        assert_eq!(ImageRecord::decode(&[&bytes[..], b"more"].concat()).unwrap(), record);
        assert!(ImageRecord::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(ImageRecord::decode(&[]).is_err());
        assert!(ImageRecord::decode(&[9, 1, 2]).is_err());
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<ImageRecord>(&json).unwrap(), record);
        assert_eq!(record.blobs().len(), 3);
    }
}
