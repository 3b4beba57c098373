//! The handshake's bytes: Noise_IKpsk2 by snow inside of our framing, its MACs and cookies.

use std::net::SocketAddr;

use rand::Rng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher as SnowCipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState};

use super::transport::Cipher;
use crate::keys::{Psk, PublicKey, SecretKey};
use crate::wire::{Kind, TAG_LEN, VERSION};

const PATTERN: &str = "Noise_IKpsk2_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"quelea overlay 1";
const MAC_LEN: usize = 16;
const COOKIE_LEN: usize = 16;
const NONCE_LEN: usize = 12;
const INITIATION_PAYLOAD_LEN: usize = 17;
const INITIATION_HEADER_LEN: usize = 8;
const INITIATION_NOISE_LEN: usize = 32 + 32 + TAG_LEN + INITIATION_PAYLOAD_LEN + TAG_LEN;
/// Length of an initiation.
pub(super) const INITIATION_LEN: usize = INITIATION_HEADER_LEN + INITIATION_NOISE_LEN + 2 * MAC_LEN;
const RESPONSE_HEADER_LEN: usize = 12;
const RESPONSE_NOISE_LEN: usize = 32 + 1 + TAG_LEN;
/// Length of a response.
pub(super) const RESPONSE_LEN: usize = RESPONSE_HEADER_LEN + RESPONSE_NOISE_LEN + 2 * MAC_LEN;
const COOKIE_HEADER_LEN: usize = 8;
/// Length of a cookie message.
pub(super) const COOKIE_MESSAGE_LEN: usize = COOKIE_HEADER_LEN + NONCE_LEN + COOKIE_LEN + TAG_LEN;

/// A cookie, as a sender keeps it.
pub(super) type CookieValue = [u8; COOKIE_LEN];
/// The first MAC of a message, by which a cookie is bound to it.
pub(super) type Mac = [u8; MAC_LEN];

/// The order of a node's initiations: boot generation, then a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    pub(super) boot: u64,
    pub(super) sequence: u64,
}

/// Keys that prove knowledge of the flock's key towards one receiver.
pub(super) struct MacKeys {
    mac1: hmac::Key,
    cookie: [u8; 32],
}

impl MacKeys {
    /// For messages to the owner of `receiver`.
    pub(super) fn new(psk: &Psk, receiver: &PublicKey) -> Self {
        Self {
            mac1: hmac::Key::new(hmac::HMAC_SHA256, &derive(b"quelea mac1", psk, receiver)),
            cookie: derive(b"quelea cookie", psk, receiver),
        }
    }

    fn mac1(&self, body: &[u8]) -> Mac {
        truncate(hmac::sign(&self.mac1, body))
    }

    /// Fills in both MACs at the end of a message.
    pub(super) fn sign(&self, message: &mut [u8], cookie: Option<&CookieValue>) -> Mac {
        let Some(body_len) = message.len().checked_sub(2 * MAC_LEN) else { return [0; MAC_LEN] };
        let (body, macs) = message.split_at_mut(body_len);
        let mac1 = self.mac1(body);
        if let Some((first, second)) = macs.split_first_chunk_mut::<MAC_LEN>() {
            *first = mac1;
            if let Some(cookie) = cookie {
                second.copy_from_slice(&mac2(cookie, body, &mac1));
            }
        }
        mac1
    }

    /// The first MAC, if it is right.
    pub(super) fn verify(&self, message: &[u8]) -> Option<Mac> {
        let (rest, _mac2) = message.split_last_chunk::<MAC_LEN>()?;
        let (body, mac1) = rest.split_last_chunk::<MAC_LEN>()?;
        constant_time_eq(&self.mac1(body), mac1).then_some(*mac1)
    }

    /// Seals a cookie for the sender of the message with this first MAC.
    pub(super) fn seal_cookie<R: Rng + ?Sized>(
        &self,
        receiver: u32,
        mac1: &Mac,
        cookie: &CookieValue,
        rng: &mut R,
    ) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut sealed = cookie.to_vec();
        self.cookie_key()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(mac1),
                &mut sealed,
            )
            .ok()?;
        let mut message = vec![Kind::Cookie.code(), VERSION, 0, 0];
        message.extend_from_slice(&receiver.to_le_bytes());
        message.extend_from_slice(&nonce);
        message.extend_from_slice(&sealed);
        Some(message)
    }

    /// Opens a cookie sent in answer to our message with this first MAC.
    pub(super) fn open_cookie(&self, message: &[u8], mac1: &Mac) -> Option<CookieValue> {
        let message: &[u8; COOKIE_MESSAGE_LEN] = message.try_into().ok()?;
        let (nonce, sealed) = message.get(COOKIE_HEADER_LEN..)?.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let cookie = self
            .cookie_key()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(mac1), &mut sealed)
            .ok()?;
        CookieValue::try_from(&*cookie).ok()
    }

    fn cookie_key(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&CHACHA20_POLY1305, &self.cookie).ok().map(LessSafeKey::new)
    }
}

/// Makes and checks cookies: proofs that a sender receives at the address it sends from.
pub(super) struct CookieJar {
    secret: [u8; 32],
    made_us: u64,
}

impl CookieJar {
    /// Cookies of an older secret are refused.
    const SECRET_LIFETIME_US: u64 = 120_000_000;

    pub(super) fn new<R: Rng + ?Sized>(now_us: u64, rng: &mut R) -> Self {
        let mut secret = [0; 32];
        rng.fill_bytes(&mut secret);
        Self { secret, made_us: now_us }
    }

    /// The cookie of an address, now.
    pub(super) fn cookie<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        rng: &mut R,
    ) -> CookieValue {
        if now_us.saturating_sub(self.made_us) > Self::SECRET_LIFETIME_US {
            *self = Self::new(now_us, rng);
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let mut context = hmac::Context::with_key(&key);
        match from {
            SocketAddr::V4(a) => context.update(&a.ip().octets()),
            SocketAddr::V6(a) => context.update(&a.ip().octets()),
        }
        context.update(&from.port().to_le_bytes());
        truncate(context.sign())
    }
}

/// Whether the second MAC of a message was made with this cookie.
pub(super) fn verify_mac2(message: &[u8], cookie: &CookieValue) -> bool {
    let Some((rest, second)) = message.split_last_chunk::<MAC_LEN>() else { return false };
    let Some((body, mac1)) = rest.split_last_chunk::<MAC_LEN>() else { return false };
    constant_time_eq(&mac2(cookie, body, mac1), second)
}

fn mac2(cookie: &CookieValue, body: &[u8], mac1: &Mac) -> Mac {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, cookie));
    context.update(body);
    context.update(mac1);
    truncate(context.sign())
}

fn truncate(tag: hmac::Tag) -> Mac {
    let mut out = [0; MAC_LEN];
    for (to, from) in out.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    out
}

fn constant_time_eq(a: &Mac, b: &Mac) -> bool {
    a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

fn derive(label: &[u8], psk: &Psk, receiver: &PublicKey) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(label);
    context.update(psk.as_bytes());
    context.update(&receiver.0);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Our keys as the handshake needs them.
pub(super) struct Local<'a> {
    pub(super) key: &'a SecretKey,
    pub(super) psk: &'a Psk,
}

/// A handshake that we began and that waits for its response.
pub(super) struct Initiated {
    noise: Box<HandshakeState>,
}

/// Writes an initiation without its MACs filled in.
pub(super) fn initiate<R: Rng + ?Sized>(
    local: &Local<'_>,
    peer: &PublicKey,
    sender: u32,
    stamp: Stamp,
    aes: bool,
    rng: &mut R,
) -> Option<(Initiated, Vec<u8>)> {
    let mut noise = builder(local, rng)?.remote_public_key(&peer.0).ok()?.build_initiator().ok()?;
    let mut payload = [0; INITIATION_PAYLOAD_LEN];
    payload[..8].copy_from_slice(&stamp.boot.to_le_bytes());
    payload[8..16].copy_from_slice(&stamp.sequence.to_le_bytes());
    payload[16] = u8::from(aes);
    let mut message = vec![0; INITIATION_LEN];
    message[..4].copy_from_slice(&[Kind::Initiation.code(), VERSION, 0, 0]);
    message[4..8].copy_from_slice(&sender.to_le_bytes());
    let written = noise
        .write_message(&payload, &mut message[INITIATION_HEADER_LEN..INITIATION_LEN - 2 * MAC_LEN])
        .ok()?;
    (written == INITIATION_NOISE_LEN).then_some((Initiated { noise: Box::new(noise) }, message))
}

/// An initiation whose sender's key is known, but not yet whether that is a peer.
pub(super) struct Initiation {
    noise: HandshakeState,
    pub(super) peer: PublicKey,
    pub(super) sender: u32,
    pub(super) stamp: Stamp,
    pub(super) aes: bool,
}

/// The sender's index of an initiation, before anything is verified.
pub(super) fn initiation_sender(message: &[u8]) -> Option<u32> {
    message.get(4..8)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// Reads an initiation whose first MAC was verified.
pub(super) fn read_initiation<R: Rng + ?Sized>(
    local: &Local<'_>,
    message: &[u8],
    rng: &mut R,
) -> Option<Initiation> {
    let message: &[u8; INITIATION_LEN] = message.try_into().ok()?;
    let mut noise = builder(local, rng)?.build_responder().ok()?;
    let mut payload = [0; INITIATION_NOISE_LEN];
    let len = noise
        .read_message(
            message.get(INITIATION_HEADER_LEN..INITIATION_LEN - 2 * MAC_LEN)?,
            &mut payload,
        )
        .ok()?;
    if len != INITIATION_PAYLOAD_LEN {
        return None;
    }
    let peer = PublicKey(noise.get_remote_static()?.try_into().ok()?);
    let (boot, rest) = payload.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let stamp = Stamp { boot: u64::from_le_bytes(*boot), sequence: u64::from_le_bytes(*sequence) };
    let aes = rest.first() == Some(&1);
    Some(Initiation { noise, peer, sender: initiation_sender(message)?, stamp, aes })
}

impl Initiation {
    /// Writes the response, without its MACs, and gives the session's keys.
    pub(super) fn respond(mut self, local_index: u32, cipher: Cipher) -> Option<(Vec<u8>, Split)> {
        let mut message = vec![0; RESPONSE_LEN];
        message[..4].copy_from_slice(&[Kind::Response.code(), VERSION, 0, 0]);
        message[4..8].copy_from_slice(&local_index.to_le_bytes());
        message[8..12].copy_from_slice(&self.sender.to_le_bytes());
        let written = self
            .noise
            .write_message(
                &[cipher.code()],
                &mut message[RESPONSE_HEADER_LEN..RESPONSE_LEN - 2 * MAC_LEN],
            )
            .ok()?;
        (written == RESPONSE_NOISE_LEN).then(|| (message, self.noise.dangerously_get_raw_split()))
    }
}

/// Noise's two keys: initiator to responder, and back.
pub(super) type Split = ([u8; 32], [u8; 32]);

/// The sender's and receiver's index of a response.
pub(super) fn response_indexes(message: &[u8]) -> Option<(u32, u32)> {
    let sender = message.get(4..8)?.first_chunk()?;
    let receiver = message.get(8..12)?.first_chunk()?;
    Some((u32::from_le_bytes(*sender), u32::from_le_bytes(*receiver)))
}

impl Initiated {
    /// Reads the response. snow keeps its state on failure, so that a forged response does not end the true handshake.
    pub(super) fn read_response(&mut self, message: &[u8]) -> Option<(Cipher, Split)> {
        let message: &[u8; RESPONSE_LEN] = message.try_into().ok()?;
        let mut payload = [0; RESPONSE_NOISE_LEN];
        let len = self
            .noise
            .read_message(
                message.get(RESPONSE_HEADER_LEN..RESPONSE_LEN - 2 * MAC_LEN)?,
                &mut payload,
            )
            .ok()?;
        let cipher = match payload.get(..len)? {
            [code] => Cipher::parse(*code)?,
            _ => return None,
        };
        Some((cipher, self.noise.dangerously_get_raw_split()))
    }
}

fn builder<'a, R: Rng + ?Sized>(local: &Local<'a>, rng: &mut R) -> Option<Builder<'a>> {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    Builder::with_resolver(PATTERN.parse().ok()?, Box::new(Resolver { seed }))
        .prologue(PROLOGUE)
        .ok()?
        .psk(2, local.psk.as_bytes())
        .ok()?
        .local_private_key(local.key.as_bytes())
        .ok()
}

/// snow's portable primitives with our randomness, so that a seed replays a handshake.
struct Resolver {
    seed: [u8; 32],
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Expand { seed: self.seed, block: 0 }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn SnowCipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

/// The seed stretched by HMAC in counter mode; snow draws one ephemeral key from it.
struct Expand {
    seed: [u8; 32],
    block: u64,
}

impl Random for Expand {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.seed);
        for chunk in dest.chunks_mut(32) {
            let block = hmac::sign(&key, &self.block.to_le_bytes());
            self.block += 1;
            for (to, from) in chunk.iter_mut().zip(block.as_ref()) {
                *to = *from;
            }
        }
        Ok(())
    }
}
