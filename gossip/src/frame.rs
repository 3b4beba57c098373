//! Sealed datagrams: nobody without the flock's key can say, learn or provoke anything.
//!
//! ```text
//! byte 0      version (low nibble) | kind (high nibble: 0 bound, 1 open)
//! byte 1      key id
//! 2..9        sender's boot id, random per boot  \ together the 96-bit nonce: never
//! 9..14       counter, big endian                / the same twice under one key
//! 14..        AES-256-GCM ciphertext and tag
//! ```
//!
//! A *bound* frame has the addressee's name hash and generation in its associated data. They are not sent, so it costs
//! nothing, and a recorded frame opens neither at another node nor at the same node after a restart, for which a replay
//! window alone could not care. An *open* frame greets an address whose owner is not known yet; it may only be answered,
//! never believed.

use std::fmt;
use std::sync::Arc;

use ring::aead;

use crate::error::Error;
use crate::member::Nid;

const VERSION: u8 = 1;
pub(crate) const HEADER_BYTES: usize = 14;
const TAG_BYTES: usize = 16;
/// What sealing adds to a payload.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Boot ids have 56 bits.
pub(crate) const BOOT_MASK: u64 = (1 << 56) - 1;
/// Frames of one boot: 34 years at 1,000 a second. The sender falls silent after that rather than use a nonce twice.
pub(crate) const COUNTER_MAX: u64 = (1 << 40) - 1;
/// Keys accepted at once: the old, the present and the next.
pub const KEYS_MAX: usize = 3;

/// 32 secret bytes. Without `Debug` on purpose.
#[derive(Clone)]
pub struct SecretKey {
    id: u8,
    bytes: [u8; 32],
}

impl SecretKey {
    /// A key and the id by which frames name it.
    pub fn new(id: u8, bytes: [u8; 32]) -> SecretKey {
        SecretKey { id, bytes }
    }
}

struct Key {
    id: u8,
    aead: aead::LessSafeKey,
}

/// The keys a node accepts and the one it uses.
///
/// Rotation in three steps, each once the former has reached everybody: [`KeyRing::accept`] the new key,
/// [`KeyRing::select`] it, [`KeyRing::remove`] the old one.
#[derive(Clone)]
pub struct KeyRing {
    keys: Vec<Arc<Key>>,
    primary: Arc<Key>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u8> = self.keys.iter().map(|k| k.id).collect();
        f.debug_struct("KeyRing").field("ids", &ids).field("primary", &self.primary.id).finish()
    }
}

impl KeyRing {
    /// A ring of one key.
    pub fn new(key: &SecretKey) -> KeyRing {
        let key = Arc::new(Key::new(key));
        KeyRing { keys: vec![key.clone()], primary: key }
    }

    /// Accepts frames under one more key.
    ///
    /// # Errors
    /// [`Error::KeyRing`] when [`KEYS_MAX`] are held or the id is taken.
    pub fn accept(&mut self, key: &SecretKey) -> Result<(), Error> {
        if self.keys.len() >= KEYS_MAX || self.find(key.id).is_some() {
            return Err(Error::KeyRing { id: key.id, operation: "accept" });
        }
        self.keys.push(Arc::new(Key::new(key)));
        Ok(())
    }

    /// Seals with this key from now on.
    ///
    /// # Errors
    /// [`Error::KeyRing`] when it is not held.
    pub fn select(&mut self, id: u8) -> Result<(), Error> {
        let key = self.find(id).ok_or(Error::KeyRing { id, operation: "select" })?;
        self.primary = key.clone();
        Ok(())
    }

    /// No longer accepts a key.
    ///
    /// # Errors
    /// [`Error::KeyRing`] when it is not held or is the one in use.
    pub fn remove(&mut self, id: u8) -> Result<(), Error> {
        if self.primary.id == id || self.find(id).is_none() {
            return Err(Error::KeyRing { id, operation: "remove" });
        }
        self.keys.retain(|k| k.id != id);
        Ok(())
    }

    /// Ids of the keys that are accepted, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = u8> {
        self.keys.iter().map(|k| k.id)
    }

    /// Id of the key in use.
    pub fn used(&self) -> u8 {
        self.primary.id
    }

    fn find(&self, id: u8) -> Option<&Arc<Key>> {
        self.keys.iter().find(|k| k.id == id)
    }

    /// Seals `plain`.
    pub(crate) fn seal(&self, to: Binding, boot: u64, counter: u64, plain: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        frame.extend_from_slice(plain);
        self.seal_in_place(to, boot, counter, &mut frame);
        frame
    }

    /// Seals a frame whose first [`HEADER_BYTES`] are to be written and whose rest is to be encrypted.
    pub(crate) fn seal_in_place(&self, to: Binding, boot: u64, counter: u64, frame: &mut Vec<u8>) {
        let nonce = nonce_bytes(boot, counter);
        let (header, body) = frame.split_at_mut(HEADER_BYTES);
        if let [first, key, rest @ ..] = header {
            (*first, *key) = (VERSION | to.kind() << 4, self.primary.id);
            rest.copy_from_slice(&nonce);
        }
        let (aad, aad_len) = associated(header, to);
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let aad = aead::Aad::from(aad.get(..aad_len).unwrap_or(&[]));
        let tag = self
            .primary
            .aead
            .seal_in_place_separate_tag(nonce, aad, body)
            .expect("ring fails only for inputs of many gigabytes");
        frame.extend_from_slice(tag.as_ref());
    }

    /// Opens a frame addressed to `me`, decrypting into `scratch`. `None` is every reason not to speak.
    pub(crate) fn open<'s>(
        &self,
        me: Nid,
        generation: u64,
        frame: &[u8],
        scratch: &'s mut Vec<u8>,
    ) -> Option<Opened<'s>> {
        let (header, body) = frame.split_at_checked(HEADER_BYTES)?;
        let mut reader = crate::wire::Reader::new(header);
        let first = reader.u8()?;
        let key = self.find(reader.u8()?)?;
        let nonce = reader.array::<{ aead::NONCE_LEN }>()?;
        let (boot, counter) = split_nonce(nonce);
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let to = match (first & 0x0f, first >> 4) {
            (VERSION, 0) => Binding::To { nid: me, generation },
            (VERSION, 1) => Binding::Open,
            _ => return None,
        };
        let (aad, aad_len) = associated(header, to);
        scratch.clear();
        scratch.extend_from_slice(body);
        let aad = aead::Aad::from(aad.get(..aad_len)?);
        let plain = key.aead.open_in_place(nonce, aad, scratch).ok()?;
        Some(Opened { bound: to != Binding::Open, key: key.id, boot, counter, plain })
    }
}

impl Key {
    fn new(key: &SecretKey) -> Key {
        let unbound = aead::UnboundKey::new(&aead::AES_256_GCM, &key.bytes)
            .expect("AES-256 takes exactly the 32 bytes that SecretKey holds");
        Key { id: key.id, aead: aead::LessSafeKey::new(unbound) }
    }
}

/// For whom a frame is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// One boot of one node.
    To { nid: Nid, generation: u64 },
    /// Whoever holds the key.
    Open,
}

impl Binding {
    fn kind(self) -> u8 {
        match self {
            Binding::To { .. } => 0,
            Binding::Open => 1,
        }
    }
}

/// An authenticated frame.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) bound: bool,
    pub(crate) key: u8,
    pub(crate) boot: u64,
    pub(crate) counter: u64,
    pub(crate) plain: &'a [u8],
}

fn nonce_bytes(boot: u64, counter: u64) -> [u8; aead::NONCE_LEN] {
    let word = u128::from(boot & BOOT_MASK) << 40 | u128::from(counter & COUNTER_MAX);
    let [_, _, _, _, nonce @ ..] = word.to_be_bytes();
    nonce
}

fn split_nonce(nonce: [u8; aead::NONCE_LEN]) -> (u64, u64) {
    let word = nonce.iter().fold(0u128, |word, byte| word << 8 | u128::from(*byte));
    ((word >> 40) as u64 & BOOT_MASK, word as u64 & COUNTER_MAX)
}

fn associated(header: &[u8], to: Binding) -> ([u8; HEADER_BYTES + 16], usize) {
    let mut aad = [0u8; HEADER_BYTES + 16];
    let (head, tail) = aad.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(header);
    match to {
        Binding::Open => (aad, HEADER_BYTES),
        Binding::To { nid, generation } => {
            let (left, right) = tail.split_at_mut(8);
            left.copy_from_slice(&nid.0.to_le_bytes());
            right.copy_from_slice(&generation.to_le_bytes());
            (aad, HEADER_BYTES + 16)
        }
    }
}

/// Which counters of one sender boot have been seen: the newest and the 128 below it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Window {
    newest: u64,
    seen: u128,
}

impl Window {
    /// Marks a counter; `false` when it was seen before or is too old to tell. Counters start at 1.
    pub(crate) fn admit(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let shift = counter - self.newest;
            let shift = u32::try_from(shift).unwrap_or(u32::MAX);
            self.seen = self.seen.checked_shl(shift).unwrap_or(0) | 1;
            self.newest = counter;
            return true;
        }
        let age = self.newest - counter;
        if age >= u64::from(u128::BITS) {
            return false;
        }
        let bit = 1u128 << age;
        let fresh = self.seen & bit == 0 && counter != 0;
        self.seen |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests;
