//! How sessions open: initiations, responses and cookies (the messages themselves are in [`super::handshake`]).

use std::net::SocketAddr;

use rand::{Rng, RngExt as _};

use super::handshake::{self, INITIATION_LEN, Local, Mac, RESPONSE_LEN, Stamp};
use super::transport::{Agreed, Cipher, Session};
use super::{
    Attempt, COOKIE_BELOW, COOKIE_VALID_US, Opened, Output, PEER_INITIATION_US, PeerId,
    REJECT_AFTER_US, RETRY_FIRST_US, RETRY_MAX_US, Sessions,
};
use crate::counters::DropReason;

impl Sessions {
    /// Sends an initiation: the first of an attempt, or again.
    pub(super) fn initiate<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        id: PeerId,
        rng: &mut R,
        out: &mut Vec<Output>,
    ) {
        let Some(index) = self.indexes.allocate(id, rng) else { return };
        self.sequence += 1;
        let stamp = Stamp { boot: self.me.boot, sequence: self.sequence };
        let local = Local { key: &self.me.key, psk: &self.me.psk };
        let Some(Some(peer)) = self.peers.get_mut(usize::from(id.0)) else {
            self.indexes.free(index);
            return;
        };
        let Some((initiated, mut bytes)) =
            handshake::initiate(&local, &peer.key, index, stamp, self.me.aes, rng)
        else {
            // Only a peer key that is no curve point ends here.
            self.indexes.free(index);
            return;
        };
        let cookie = peer
            .cookie
            .filter(|(_, got_us)| now_us.saturating_sub(*got_us) < COOKIE_VALID_US)
            .map(|(cookie, _)| cookie);
        let mac1 = peer.macs.sign(&mut bytes, cookie.as_ref());
        let former = peer.attempt.take();
        let (began_us, wait_us) = match &former {
            Some(f) => (f.began_us, (f.wait_us * 2).min(RETRY_MAX_US)),
            None => (now_us, RETRY_FIRST_US),
        };
        if let Some(former) = former {
            self.indexes.free(former.index);
        }
        // Jitter keeps two ends that began at once from staying in step.
        let jitter_us = rng.random_range(0..wait_us / 4);
        let retry_at_us = now_us + wait_us + jitter_us;
        peer.attempt = Some(Attempt { initiated, index, mac1, began_us, retry_at_us, wait_us });
        out.push(Output::Send { to: peer.endpoint, bytes });
        self.arm(id, retry_at_us);
    }

    pub(super) fn on_initiation<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        message: &[u8],
        rng: &mut R,
        out: &mut Vec<Output>,
    ) -> Result<Opened, DropReason> {
        if message.len() != INITIATION_LEN {
            return Err(DropReason::OuterMalformed);
        }
        let mac1 = self.my_macs.verify(message).ok_or(DropReason::BadHandshake)?;
        self.admit(now_us, from, message, &mac1, rng, out)?;
        let local = Local { key: &self.me.key, psk: &self.me.psk };
        let initiation =
            handshake::read_initiation(&local, message, rng).ok_or(DropReason::BadHandshake)?;
        let id = *self.by_key.get(&initiation.peer).ok_or(DropReason::BadHandshake)?;
        let index = self.indexes.allocate(id, rng).ok_or(DropReason::HandshakeLimit)?;
        let made = self.respond(now_us, id, initiation, index);
        match made {
            Ok(bytes) => {
                out.push(Output::Send { to: from, bytes });
                self.arm_next(now_us, id);
                Ok(Opened::Handshake)
            }
            Err(why) => {
                self.indexes.free(index);
                Err(why)
            }
        }
    }

    /// Whether to work on an initiation whose first MAC is right.
    pub(super) fn admit<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        message: &[u8],
        mac1: &Mac,
        rng: &mut R,
        out: &mut Vec<Output>,
    ) -> Result<(), DropReason> {
        if self.bucket.left(now_us) < COOKIE_BELOW {
            let cookie = self.cookies.cookie(now_us, from, rng);
            if !handshake::verify_mac2(message, &cookie) {
                if let Some(sender) = handshake::initiation_sender(message)
                    && let Some(bytes) = self.my_macs.seal_cookie(sender, mac1, &cookie, rng)
                {
                    out.push(Output::Send { to: from, bytes });
                }
                return Err(DropReason::HandshakeLimit);
            }
        }
        if self.bucket.take(now_us) { Ok(()) } else { Err(DropReason::HandshakeLimit) }
    }

    pub(super) fn respond(
        &mut self,
        now_us: u64,
        id: PeerId,
        initiation: handshake::Initiation,
        index: u32,
    ) -> Result<Vec<u8>, DropReason> {
        let aes = self.me.aes && initiation.aes;
        let cipher = if aes { Cipher::Aes128Gcm } else { Cipher::ChaCha20Poly1305 };
        let peer = self.peers.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let peer = peer.ok_or(DropReason::BadHandshake)?;
        if let Some((stamp, at_us)) = peer.last_initiation {
            let age_us = now_us.saturating_sub(at_us);
            if age_us < PEER_INITIATION_US {
                return Err(DropReason::HandshakeLimit);
            }
            // A recorded initiation. After a session's life it can do no harm, and a node whose boot count was lost gets in again.
            if initiation.stamp <= stamp && age_us < REJECT_AFTER_US {
                return Err(DropReason::Replayed);
            }
        }
        let (stamp, remote_index) = (initiation.stamp, initiation.sender);
        let (mut bytes, split) =
            initiation.respond(index, cipher).ok_or(DropReason::BadHandshake)?;
        let agreed = Agreed { cipher, local_index: index, remote_index, initiator: false, split };
        let session = Session::new(&agreed, now_us).ok_or(DropReason::BadHandshake)?;
        peer.last_initiation = Some((stamp, now_us));
        peer.macs.sign(&mut bytes, None);
        if let Some(unused) = peer.next.replace(Box::new(session)) {
            self.indexes.free(unused.local_index);
        }
        Ok(bytes)
    }

    pub(super) fn on_response(
        &mut self,
        now_us: u64,
        message: &[u8],
        out: &mut Vec<Output>,
    ) -> Result<Opened, DropReason> {
        if message.len() != RESPONSE_LEN {
            return Err(DropReason::OuterMalformed);
        }
        self.my_macs.verify(message).ok_or(DropReason::BadHandshake)?;
        let (remote_index, index) =
            handshake::response_indexes(message).ok_or(DropReason::OuterMalformed)?;
        let id = self.indexes.peer(index).ok_or(DropReason::UnknownSession)?;
        let peer = self.peers.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let peer = peer.ok_or(DropReason::UnknownSession)?;
        let attempt =
            peer.attempt.as_mut().filter(|a| a.index == index).ok_or(DropReason::UnknownSession)?;
        let (cipher, split) =
            attempt.initiated.read_response(message).ok_or(DropReason::BadHandshake)?;
        let agreed = Agreed { cipher, local_index: index, remote_index, initiator: true, split };
        let session = Session::new(&agreed, now_us).ok_or(DropReason::BadHandshake)?;
        peer.attempt = None;
        peer.unanswered_since_us = None;
        let current = peer.current.replace(Box::new(session));
        // A session that the peer began meanwhile may still carry its packets.
        let former = match peer.next.take() {
            Some(next) => {
                if let Some(old) = current {
                    self.indexes.free(old.local_index);
                }
                Some(next)
            }
            None => current,
        };
        if let Some(former) = former
            && let Some(older) = peer.previous.replace(former)
        {
            self.indexes.free(older.local_index);
        }
        out.push(Output::Up(id));
        if self.flush_pending(now_us, id, out) == 0 {
            // The responder may send only after it heard from us.
            self.send_keepalive(now_us, id, out);
        }
        self.arm_next(now_us, id);
        Ok(Opened::Handshake)
    }

    pub(super) fn on_cookie(&mut self, now_us: u64, message: &[u8]) -> Result<Opened, DropReason> {
        let index = handshake::initiation_sender(message).ok_or(DropReason::OuterMalformed)?;
        let id = self.indexes.peer(index).ok_or(DropReason::UnknownSession)?;
        let peer = self.peer_mut(id).ok_or(DropReason::UnknownSession)?;
        let attempt =
            peer.attempt.as_mut().filter(|a| a.index == index).ok_or(DropReason::UnknownSession)?;
        let cookie =
            peer.macs.open_cookie(message, &attempt.mac1).ok_or(DropReason::BadHandshake)?;
        peer.cookie = Some((cookie, now_us));
        Ok(Opened::Handshake)
    }
}
