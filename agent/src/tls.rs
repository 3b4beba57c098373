//! TLS between operators and nodes and among nodes: 1.3 only, both sides with a certificate of the flock's authority.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::{cipher_suite, kx_group, sign::any_eddsa_type};
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SigningKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use crate::error::Error;
use crate::flock::{NODE_SUFFIX, OPERATOR_SUFFIX};

/// Who is at the other end of a connection, by its certificate or by the socket it came through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Root on this machine, through the unix socket.
    Root,
    /// An operator of the flock.
    Operator(String),
    /// Another node of the flock.
    Node(String),
}

/// The DNS names in a certificate.
pub fn dns_names(cert: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let cert = webpki::EndEntityCert::try_from(cert)
        .map_err(|e| Error::Certificate { reason: e.to_string() })?;
    Ok(cert.valid_dns_names().map(str::to_owned).collect())
}

/// Who a verified certificate names; `None` if neither a node nor an operator.
pub fn caller(cert: &CertificateDer<'_>) -> Option<Caller> {
    dns_names(cert).ok()?.iter().find_map(|name| {
        let node = name.strip_suffix(NODE_SUFFIX).map(|n| Caller::Node(n.to_owned()));
        node.or_else(|| name.strip_suffix(OPERATOR_SUFFIX).map(|n| Caller::Operator(n.to_owned())))
    })
}

/// What a node serves its API with.
pub fn server(credentials: &Path) -> Result<Arc<ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(credentials)?, provider())
        .build()
        .map_err(|e| Error::Certificate { reason: e.to_string() })?;
    let (chain, key) = identity(credentials, "node")?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// What a node (`who` = `node`) or an operator (`operator`) calls nodes with.
pub fn client(credentials: &Path, who: &str) -> Result<Arc<ClientConfig>, Error> {
    let (chain, key) = identity(credentials, who)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(credentials)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// What a flock speaks: Ed25519 certificates and X25519, which is all that its own authority issues. The library's whole list would
/// be 190 kB larger, and would let others choose what nobody here uses.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Ring,
        key_provider: &Ring,
    })
}

static SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[webpki::ring::ED25519],
    mapping: &[(SignatureScheme::ED25519, &[webpki::ring::ED25519])],
};

#[derive(Debug)]
struct Ring;

impl SecureRandom for Ring {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        use ring::rand::SecureRandom as _;
        ring::rand::SystemRandom::new().fill(bytes).map_err(|_| GetRandomFailed)
    }
}

impl KeyProvider for Ring {
    fn load_private_key(
        &self,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        match &key {
            PrivateKeyDer::Pkcs8(key) => any_eddsa_type(key),
            _ => Err(rustls::Error::General("the key is not Ed25519 in PKCS#8".into())),
        }
    }
}

fn roots(dir: &Path) -> Result<Arc<RootCertStore>, Error> {
    let path = dir.join("ca.pem");
    let cert = CertificateDer::from_pem_slice(&crate::flock::read(&path)?)
        .map_err(|e| Error::Credential { path, reason: e.to_string() })?;
    let mut roots = RootCertStore::empty();
    roots.add(cert)?;
    Ok(Arc::new(roots))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn identity(dir: &Path, who: &str) -> Result<Identity, Error> {
    let path = dir.join(format!("{who}.pem"));
    let cert = CertificateDer::from_pem_slice(&crate::flock::read(&path)?)
        .map_err(|e| Error::Credential { path, reason: e.to_string() })?;
    let path = dir.join(format!("{who}.key"));
    let key = PrivateKeyDer::from_pem_slice(&crate::flock::read(&path)?)
        .map_err(|e| Error::Credential { path, reason: e.to_string() })?;
    Ok((vec![cert], key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_of_a_flock_are_taken() {
        let keys = provider().key_provider;
        let ours = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = PrivateKeyDer::Pkcs8(ours.serialize_der().into());
        assert!(keys.load_private_key(der).is_ok());
        let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let der = PrivateKeyDer::Pkcs8(other.serialize_der().into());
        assert!(keys.load_private_key(der).is_err());
        let old = PrivateKeyDer::Sec1(vec![48, 3, 2, 1, 1].into());
        let refused = keys.load_private_key(old).unwrap_err().to_string();
        assert!(refused.contains("not Ed25519"), "{refused}");
    }
}
