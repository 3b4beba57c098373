//! One session's data keys: sealing and opening in place.

use ring::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;

use super::replay::ReplayWindow;
use crate::wire::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, TAG_LEN};

/// The cipher of the data packets of a session: the initiator offers, the responder chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// Where both ends have AES instructions.
    Aes128Gcm,
    /// Elsewhere.
    ChaCha20Poly1305,
}

impl Cipher {
    pub(super) fn code(self) -> u8 {
        match self {
            Cipher::Aes128Gcm => 1,
            Cipher::ChaCha20Poly1305 => 2,
        }
    }

    pub(super) fn parse(code: u8) -> Option<Self> {
        match code {
            1 => Some(Cipher::Aes128Gcm),
            2 => Some(Cipher::ChaCha20Poly1305),
            _ => None,
        }
    }
}

/// Why a packet could not be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The buffer is too short.
    Length,
    /// The tag does not fit.
    Authentication,
    /// Seen before.
    Replayed,
}

/// A key pair that both ends have agreed on.
pub(super) struct Session {
    pub(super) local_index: u32,
    pub(super) remote_index: u32,
    pub(super) created_us: u64,
    pub(super) initiator: bool,
    seal: LessSafeKey,
    open: LessSafeKey,
    next_counter: u64,
    window: ReplayWindow,
}

/// What both ends know of a new session.
pub(super) struct Agreed {
    pub(super) cipher: Cipher,
    pub(super) local_index: u32,
    pub(super) remote_index: u32,
    pub(super) initiator: bool,
    /// Noise's two keys: initiator to responder, and back.
    pub(super) split: ([u8; 32], [u8; 32]),
}

impl Session {
    pub(super) fn new(agreed: &Agreed, now_us: u64) -> Option<Self> {
        let (to_responder, to_initiator) = &agreed.split;
        let (seal, open) = if agreed.initiator {
            (to_responder, to_initiator)
        } else {
            (to_initiator, to_responder)
        };
        Some(Self {
            local_index: agreed.local_index,
            remote_index: agreed.remote_index,
            created_us: now_us,
            initiator: agreed.initiator,
            seal: data_key(agreed.cipher, seal)?,
            open: data_key(agreed.cipher, open)?,
            next_counter: 0,
            window: ReplayWindow::default(),
        })
    }

    pub(super) fn sent(&self) -> u64 {
        self.next_counter
    }

    /// Seals `[header space | plaintext | tag space]` in place.
    pub(super) fn seal(&mut self, datagram: &mut [u8]) -> Result<(), Fault> {
        if datagram.len() < DATA_OVERHEAD {
            return Err(Fault::Length);
        }
        let (header, rest) =
            datagram.split_first_chunk_mut::<DATA_HEADER_LEN>().ok_or(Fault::Length)?;
        let (plain, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(Fault::Length)?;
        let counter = self.next_counter;
        *header = DataHeader { receiver: self.remote_index, counter }.emit();
        let sealed = self
            .seal
            .seal_in_place_separate_tag(nonce(counter), Aad::from(&header[..]), plain)
            .map_err(|_| Fault::Length)?;
        tag.copy_from_slice(sealed.as_ref());
        self.next_counter += 1;
        Ok(())
    }

    /// Opens a datagram in place; the plaintext lies behind the header. The window moves only for authentic packets.
    pub(super) fn open(&mut self, header: DataHeader, datagram: &mut [u8]) -> Result<(), Fault> {
        if !self.window.is_new(header.counter) {
            return Err(Fault::Replayed);
        }
        let (aad, sealed) =
            datagram.split_first_chunk_mut::<DATA_HEADER_LEN>().ok_or(Fault::Length)?;
        self.open
            .open_in_place(nonce(header.counter), Aad::from(&aad[..]), sealed)
            .map_err(|_| Fault::Authentication)?;
        if self.window.commit(header.counter) { Ok(()) } else { Err(Fault::Replayed) }
    }
}

fn nonce(counter: u64) -> Nonce {
    let c = counter.to_le_bytes();
    Nonce::assume_unique_for_key([0, 0, 0, 0, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]])
}

/// A key of the cipher's own from Noise's: one never serves two ciphers.
fn data_key(cipher: Cipher, noise: &[u8; 32]) -> Option<LessSafeKey> {
    let noise = hmac::Key::new(hmac::HMAC_SHA256, noise);
    let (algorithm, label) = match cipher {
        Cipher::Aes128Gcm => (&AES_128_GCM, &b"quelea data aes-128-gcm"[..]),
        Cipher::ChaCha20Poly1305 => (&CHACHA20_POLY1305, &b"quelea data chacha20-poly1305"[..]),
    };
    let derived = hmac::sign(&noise, label);
    let bytes = derived.as_ref().get(..algorithm.key_len())?;
    UnboundKey::new(algorithm, bytes).ok().map(LessSafeKey::new)
}
