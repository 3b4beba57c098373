//! TLS between operators and nodes and among nodes: 1.3 only, both sides with a certificate of the flock's authority.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

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

pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
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
