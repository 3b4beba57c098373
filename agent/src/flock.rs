//! A flock's identity: the bundle an operator keeps, and the credentials each node is given.
//!
//! ```text
//! bundle (operator)                      credentials (one node)
//!   flock.json   id, name                  flock.json
//!   ca.pem ca.key                          ca.pem
//!   gossip.key   32 bytes, hex             gossip.key
//!   operator.pem operator.key              node.pem node.key
//!   gossip.ring  once rotated                gossip.ring
//!                                          operators   one `HEX NAME` a line
//! ```
//!
//! The certificate authority vouches for TLS peers: `NAME.node.quelea` or `NAME.operator.quelea`. Operator keys
//! (Ed25519) also sign specs, see [`crate::trust`]; nodes never hold one.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use ring::rand::SecureRandom as _;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::hex;

/// The DNS suffix of node certificates.
pub const NODE_SUFFIX: &str = ".node.quelea";
/// The DNS suffix of operator certificates.
pub const OPERATOR_SUFFIX: &str = ".operator.quelea";
/// The longest node, operator or flock name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// What everybody may know of a flock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlockInfo {
    /// 16 random bytes, hex; the overlay's address range is derived from it.
    pub id: String,
    /// A name for people.
    pub name: String,
}

impl FlockInfo {
    /// The id as bytes.
    pub fn id_bytes(&self) -> Result<[u8; 16], Error> {
        hex::decode_array(&self.id).ok_or_else(|| Error::Credential {
            path: "flock.json".into(),
            reason: "`id` is not 32 hex digits".into(),
        })
    }
}

/// The bundle that an operator keeps: everything that a flock's trust rests on.
pub struct Bundle {
    dir: PathBuf,
    /// What everybody may know.
    pub info: FlockInfo,
}

/// What one node holds.
pub struct Credentials {
    /// What everybody may know.
    pub info: FlockInfo,
    /// The directory it was read from.
    pub dir: PathBuf,
    /// Whom its certificate names.
    pub node: String,
    /// The gossip key.
    pub gossip_key: [u8; 32],
    /// Public keys whose signature makes a spec valid, with the operator's name.
    pub operators: Vec<([u8; 32], String)>,
}

/// Whether `name` may name a node, an operator or a flock: `[a-z0-9-]{1,63}`, no dash at the ends.
pub fn name_is_valid(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

impl Bundle {
    /// Makes a new flock in `dir`, which must not hold one yet. On an error nothing valid is left there: `flock.json` is
    /// written last.
    pub fn create(dir: &Path, name: &str, operator: &str) -> Result<Self, Error> {
        for name in [name, operator] {
            if !name_is_valid(name) {
                return Err(Error::Name { name: name.into() });
            }
        }
        if dir.join("flock.json").exists() {
            return Err(Error::FlockExists { path: dir.into() });
        }
        make_private_dir(dir)?;
        let ca_key = new_key()?;
        let mut ca = CertificateParams::new(Vec::<String>::new()).map_err(Error::cert)?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        ca.distinguished_name = distinguished_name(&format!("quelea flock {name}"));
        for_ever(&mut ca);
        let ca_cert = ca.self_signed(&ca_key).map_err(Error::cert)?;
        write_secret(&dir.join("ca.key"), ca_key.serialize_pem().as_bytes())?;
        write_public(&dir.join("ca.pem"), ca_cert.pem().as_bytes())?;
        let mut gossip_key = [0; 32];
        random(&mut gossip_key)?;
        write_secret(&dir.join("gossip.key"), hex::encode(&gossip_key).as_bytes())?;

        let mut id = [0; 16];
        random(&mut id)?;
        let info = FlockInfo { id: hex::encode(&id), name: name.into() };
        let bundle = Self { dir: dir.into(), info };
        let operator_key = new_key()?;
        let names = vec![format!("{operator}{OPERATOR_SUFFIX}")];
        let cert = bundle.issue(names, &operator_key, ExtendedKeyUsagePurpose::ClientAuth)?;
        write_secret(&dir.join("operator.key"), operator_key.serialize_pem().as_bytes())?;
        write_public(&dir.join("operator.pem"), cert.as_bytes())?;
        write_public(&dir.join("flock.json"), &info_json(&bundle.info))?;
        Ok(bundle)
    }

    /// Reads a bundle made by [`Bundle::create`].
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Ok(Self { dir: dir.into(), info: read_info(dir)? })
    }

    /// The flock's gossip keys, after the last rotation.
    pub fn keys(&self) -> Result<crate::keys::Ring, Error> {
        if let Some(keys) = crate::keys::Ring::read(&self.dir.join(crate::keys::FILE))? {
            return Ok(keys);
        }
        let secret = read_gossip_key(&self.dir)?;
        Ok(crate::keys::Ring::first(derive(&secret, "gossip")))
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the credentials of the node `name` into `dir` (made if absent). Its key is new each time.
    pub fn issue_node(&self, name: &str, dir: &Path) -> Result<(), Error> {
        if !name_is_valid(name) {
            return Err(Error::Name { name: name.into() });
        }
        make_private_dir(dir)?;
        let key = new_key()?;
        let names = vec![format!("{name}{NODE_SUFFIX}")];
        // A node serves its API and asks its peers for blobs.
        let cert = self.issue(names, &key, ExtendedKeyUsagePurpose::ServerAuth)?;
        write_secret(&dir.join("node.key"), key.serialize_pem().as_bytes())?;
        write_public(&dir.join("node.pem"), cert.as_bytes())?;
        write_public(&dir.join("ca.pem"), &read(&self.dir.join("ca.pem"))?)?;
        write_secret(&dir.join("gossip.key"), &read(&self.dir.join("gossip.key"))?)?;
        if let Some(keys) = crate::keys::Ring::read(&self.dir.join(crate::keys::FILE))? {
            keys.write(&dir.join(crate::keys::FILE))?;
        }
        let operator = crate::trust::OperatorKey::open(&self.dir)?;
        let line = format!("{} {}\n", hex::encode(&operator.public_key()), operator.name());
        write_public(&dir.join("operators"), line.as_bytes())?;
        write_public(&dir.join("flock.json"), &info_json(&self.info))
    }

    fn issue(
        &self,
        names: Vec<String>,
        key: &KeyPair,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<String, Error> {
        let ca_key =
            KeyPair::from_pem(&read_text(&self.dir.join("ca.key"))?).map_err(Error::cert)?;
        let ca_pem = read_text(&self.dir.join("ca.pem"))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(Error::cert)?;
        let common_name = names.first().cloned().unwrap_or_default();
        let mut params = CertificateParams::new(names).map_err(Error::cert)?;
        params.distinguished_name = distinguished_name(&common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            ExtendedKeyUsagePurpose::ServerAuth => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            other => vec![other],
        };
        for_ever(&mut params);
        Ok(params.signed_by(key, &issuer).map_err(Error::cert)?.pem())
    }
}

impl Credentials {
    /// Reads what [`Bundle::issue_node`] wrote.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let gossip_key = read_gossip_key(dir)?;
        let path = dir.join("operators");
        let mut operators = Vec::new();
        for line in read_text(&path)?.lines().filter(|line| !line.trim().is_empty()) {
            let (key, name) = line.split_once(' ').unwrap_or((line, ""));
            let key = hex::decode_array(key).ok_or_else(|| Error::Credential {
                path: path.clone(),
                reason: format!("{line:?} is not `HEX NAME`"),
            })?;
            operators.push((key, name.to_owned()));
        }
        let node = certified_name(dir)?;
        Ok(Self { info: read_info(dir)?, dir: dir.into(), node, gossip_key, operators })
    }

    /// A key for another purpose, derived from the gossip key; `purpose` keeps the two apart (RFC 5869).
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        derive(&self.gossip_key, purpose)
    }
}

/// Whom `node.pem` in a directory names.
fn certified_name(dir: &Path) -> Result<String, Error> {
    use rustls::pki_types::pem::PemObject as _;
    let path = dir.join("node.pem");
    let bad = |reason: String| Error::Credential { path: path.clone(), reason };
    let cert = rustls::pki_types::CertificateDer::from_pem_slice(&read(&path)?)
        .map_err(|e| bad(e.to_string()))?;
    let names = crate::tls::dns_names(&cert)?;
    let name = names.iter().find_map(|name| name.strip_suffix(NODE_SUFFIX));
    name.map(str::to_owned).ok_or_else(|| bad("names no node".into()))
}

/// HKDF-SHA256 of a flock secret for one named purpose.
fn derive(secret: &[u8; 32], purpose: &str) -> [u8; 32] {
    let salt = ring::hkdf::Salt::new(ring::hkdf::HKDF_SHA256, b"quelea flock v1");
    let prk = salt.extract(secret);
    let mut key = [0; 32];
    let info = [purpose.as_bytes()];
    if let Ok(okm) = prk.expand(&info, ring::hkdf::HKDF_SHA256) {
        // 32 bytes are what HKDF_SHA256 yields: `fill` refuses only another length.
        let _ = okm.fill(&mut key);
    }
    assert_ne!(key, [0; 32], "HKDF of one block cannot fail");
    key
}

fn read_gossip_key(dir: &Path) -> Result<[u8; 32], Error> {
    let path = dir.join("gossip.key");
    let key = hex::decode_array(read_text(&path)?.trim());
    key.ok_or_else(|| Error::Credential { path, reason: "is not 64 hex digits".into() })
}

fn new_key() -> Result<KeyPair, Error> {
    KeyPair::generate_for(&PKCS_ED25519).map_err(Error::cert)
}

fn random(bytes: &mut [u8]) -> Result<(), Error> {
    ring::rand::SystemRandom::new().fill(bytes).map_err(|_| Error::Random)
}

/// Nodes may boot without a clock, so trust ends by revocation and not by a date.
fn for_ever(params: &mut CertificateParams) {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1);
    params.not_after = rcgen::date_time_ymd(4096, 1, 1);
}

fn distinguished_name(common_name: &str) -> rcgen::DistinguishedName {
    let mut name = rcgen::DistinguishedName::new();
    name.push(rcgen::DnType::CommonName, common_name);
    name
}

fn info_json(info: &FlockInfo) -> Vec<u8> {
    // Two strings: serialising them cannot fail.
    serde_json::to_vec_pretty(info).unwrap_or_default()
}

fn read_info(dir: &Path) -> Result<FlockInfo, Error> {
    let path = dir.join("flock.json");
    serde_json::from_slice(&read(&path)?)
        .map_err(|error| Error::Credential { path, reason: error.to_string() })
}

pub(crate) fn make_private_dir(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::io("create directory", dir, error))
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let write = || {
        // A stale file could have a wider mode: replace it instead of truncating it.
        match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| Error::io("write", path, error))
}

pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_with(path, bytes, 0o600)
}

pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    write_with(path, bytes, 0o644)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::io("read", path, error))
}

pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::io("read", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_credentials_read_back_and_name_the_operator() {
        let dir = crate::testing::temp_dir("flock");
        let bundle = Bundle::create(&dir.join("bundle"), "test", "alice").unwrap();
        bundle.issue_node("n1", &dir.join("n1")).unwrap();
        let node = Credentials::open(&dir.join("n1")).unwrap();
        assert_eq!(node.info, bundle.info);
        assert_eq!(node.node, "n1");
        assert_eq!(node.operators.len(), 1);
        assert_eq!(node.operators[0].1, "alice");
        assert_ne!(node.derive("a"), node.derive("b"));
        let mode = |name: &str| {
            use std::os::unix::fs::PermissionsExt as _;
            fs::metadata(dir.join("n1").join(name)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("node.key"), mode("gossip.key")), (0o600, 0o600));
        assert!(!dir.join("n1/operator.key").exists(), "a node never holds an operator key");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_second_flock_in_one_directory_is_refused() {
        let dir = crate::testing::temp_dir("flock-twice");
        let first = Bundle::create(&dir, "test", "alice").unwrap().info;
        assert!(matches!(Bundle::create(&dir, "other", "bob"), Err(Error::FlockExists { .. })));
        assert_eq!(Bundle::open(&dir).unwrap().info, first);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_are_checked() {
        for good in ["n1", "rack-7-node-12", "a"] {
            assert!(name_is_valid(good), "{good}");
        }
        for bad in ["", "-a", "a-", "N1", "a.b", "a/b", "ü", &"a".repeat(64)] {
            assert!(!name_is_valid(bad), "{bad}");
        }
    }
}
