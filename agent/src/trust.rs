//! Who may change what runs: specs are signed by operator keys, and every node verifies before it acts.
//!
//! A node holds no operator key, so a stolen node can drop or delay a spec but not invent one. Replay of an older spec is refused by
//! its generation: a node acts on a generation only if it is higher than any it has verified of that app.

use std::collections::BTreeMap;
use std::path::Path;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flock::OPERATOR_SUFFIX;

/// Keeps this use of an operator's key apart from all others.
const DOMAIN: &[u8] = b"quelea submission v1\0";
/// The version byte that opens a signed submission.
const VERSION: u8 = 1;
/// The largest spec text, in bytes: a signed submission must fit a record of the map.
pub const DOCUMENT_BYTES_MAX: usize = 12 * 1024;
/// Images that one spec may name.
pub const IMAGES_MAX: usize = 32;

/// What an operator submits: a spec text and the exact images that it means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The namespace; `default` where none is given.
    pub namespace: String,
    /// The app.
    pub app: String,
    /// Grows by one with each submission of this app.
    pub generation: u64,
    /// The operator's clock when it was signed, in milliseconds since 1970; for people only.
    pub at_ms: u64,
    /// Whether the app is to be stopped; its spec is kept.
    pub stopped: bool,
    /// Each image reference of the spec and the manifest digest it had when submitted (`sha256:…`).
    pub images: BTreeMap<String, String>,
    /// The spec, TOML.
    pub document: String,
}

/// A submission as it is stored and gossiped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    payload: Vec<u8>,
    key: [u8; 32],
    signature: Vec<u8>,
}

/// An operator's signing key.
pub struct OperatorKey {
    pair: Ed25519KeyPair,
    name: String,
}

impl OperatorKey {
    /// Reads the operator's key and name from a bundle.
    pub fn open(bundle: &Path) -> Result<Self, Error> {
        let bad = |path: &Path, reason: String| Error::Credential { path: path.into(), reason };
        let path = bundle.join("operator.key");
        let pem = crate::flock::read(&path)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| bad(&path, e.to_string()))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_der())
            .map_err(|e| bad(&path, format!("is not an Ed25519 key: {e}")))?;
        let path = bundle.join("operator.pem");
        let cert = CertificateDer::from_pem_slice(&crate::flock::read(&path)?)
            .map_err(|e| bad(&path, e.to_string()))?;
        let names = crate::tls::dns_names(&cert)?;
        let name = names
            .iter()
            .find_map(|name| name.strip_suffix(OPERATOR_SUFFIX))
            .ok_or_else(|| bad(&path, "names no operator".into()))?;
        Ok(Self { pair, name: name.to_owned() })
    }

    /// The operator's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public half, as nodes list it.
    pub fn public_key(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        key
    }

    /// Signs a submission.
    pub fn sign(&self, submission: &Submission) -> Result<Signed, Error> {
        if submission.document.len() > DOCUMENT_BYTES_MAX {
            return Err(Error::Malformed {
                what: "submission",
                reason: format!(
                    "the spec has {} bytes, {DOCUMENT_BYTES_MAX} are allowed",
                    submission.document.len()
                ),
            });
        }
        let payload = postcard::to_stdvec(submission)
            .map_err(|e| Error::Malformed { what: "submission", reason: e.to_string() })?;
        Ok(self.sign_for(DOMAIN, payload))
    }

    /// Signs bytes for one purpose; `domain` keeps the purposes apart.
    pub(crate) fn sign_for(&self, domain: &[u8], payload: Vec<u8>) -> Signed {
        let signature = self.pair.sign(&[domain, &payload].concat()).as_ref().to_vec();
        Signed { payload, key: self.public_key(), signature }
    }
}

impl Signed {
    /// Verifies the signature against the flock's operators, then reads the submission. The name is the operator's.
    pub fn verify<'a>(
        &self,
        operators: &'a [([u8; 32], String)],
    ) -> Result<(Submission, &'a str), Error> {
        let (payload, name) = self.open_for(DOMAIN, operators)?;
        let malformed = |reason: String| Error::Malformed { what: "submission", reason };
        let submission: Submission =
            postcard::from_bytes(payload).map_err(|e| malformed(e.to_string()))?;
        if submission.document.len() > DOCUMENT_BYTES_MAX || submission.images.len() > IMAGES_MAX {
            return Err(malformed("over its limits".into()));
        }
        Ok((submission, name))
    }

    /// The bytes that one of the flock's operators signed for this purpose, and that operator's name.
    pub(crate) fn open_for<'a>(
        &self,
        domain: &[u8],
        operators: &'a [([u8; 32], String)],
    ) -> Result<(&[u8], &'a str), Error> {
        let (key, name) = operators.iter().find(|(key, _)| *key == self.key).ok_or_else(|| {
            let key = crate::hex::encode(&self.key);
            Error::Untrusted { reason: format!("no operator of this flock has the key {key}") }
        })?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(&[domain, &self.payload].concat(), &self.signature)
            .map_err(|_| Error::Untrusted {
                reason: format!("the signature is not {name}'s: what was signed was altered"),
            })?;
        Ok((&self.payload, name))
    }

    /// The bytes kept in the map.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![VERSION];
        bytes.extend(
            postcard::to_stdvec(self)
                .map_err(|e| Error::Malformed { what: "submission", reason: e.to_string() })?,
        );
        Ok(bytes)
    }

    /// Reads what [`Signed::to_bytes`] wrote; nothing in it is verified yet.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { what: "submission", reason };
        match bytes.split_first() {
            Some((&VERSION, rest)) => {
                postcard::from_bytes(rest).map_err(|e| malformed(e.to_string()))
            }
            Some((version, _)) => Err(malformed(format!("version {version} is unknown"))),
            None => Err(malformed("no bytes".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flock::{Bundle, Credentials};

    fn submission() -> Submission {
        Submission {
            namespace: "default".into(),
            app: "web".into(),
            generation: 3,
            at_ms: 1,
            stopped: false,
            images: BTreeMap::from([("web".into(), "sha256:00".into())]),
            document: "app = \"web\"".into(),
        }
    }

    #[test]
    fn only_an_operator_of_this_flock_can_sign() {
        let dir = crate::testing::temp_dir("trust");
        let ours = Bundle::create(&dir.join("ours"), "ours", "alice").unwrap();
        let theirs = Bundle::create(&dir.join("theirs"), "theirs", "mallory").unwrap();
        ours.issue_node("n1", &dir.join("n1")).unwrap();
        let operators = Credentials::open(&dir.join("n1")).unwrap().operators;

        let signed = OperatorKey::open(ours.dir()).unwrap().sign(&submission()).unwrap();
        let signed = Signed::from_bytes(&signed.to_bytes().unwrap()).unwrap();
        let (read, name) = signed.verify(&operators).unwrap();
        assert_eq!((read, name), (submission(), "alice"));

        let foreign = OperatorKey::open(theirs.dir()).unwrap().sign(&submission()).unwrap();
        assert!(matches!(foreign.verify(&operators), Err(Error::Untrusted { .. })));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn every_flipped_byte_is_refused() {
        let dir = crate::testing::temp_dir("trust-flip");
        let bundle = Bundle::create(&dir.join("b"), "b", "alice").unwrap();
        bundle.issue_node("n1", &dir.join("n1")).unwrap();
        let operators = Credentials::open(&dir.join("n1")).unwrap().operators;
        let key = OperatorKey::open(bundle.dir()).unwrap();
        let bytes = key.sign(&submission()).unwrap().to_bytes().unwrap();
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let verified = Signed::from_bytes(&bad).and_then(|s| s.verify(&operators).map(|v| v.0));
            assert!(verified.is_err(), "byte {at} flipped and still accepted");
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
