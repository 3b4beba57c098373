//! Keys of the overlay. Secrets have no `Debug`.

use std::fmt;

use rand::Rng;
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};

/// A node's X25519 private key. Born on the node, never leaves it.
#[derive(Clone)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// Takes 32 bytes from disk.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new key. `rng` must be cryptographically secure.
    pub fn generate<R: Rng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// The bytes, to be written to disk.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half, for the node record.
    pub fn public_key(&self) -> PublicKey {
        let mut public = [0; 32];
        if let Some(mut dh) = DefaultResolver.resolve_dh(&DHChoice::Curve25519) {
            dh.set(&self.0);
            public.copy_from_slice(dh.pubkey());
        }
        PublicKey(public)
    }
}

/// A node's X25519 public key, known from the membership.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|b| write!(f, "{b:02x}"))?;
        write!(f, "…")
    }
}

/// The flock's pre-shared key: without it a packet is not even looked at.
#[derive(Clone)]
pub struct Psk([u8; 32]);

impl Psk {
    /// Takes the 32 bytes of the flock's secret for the overlay.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
