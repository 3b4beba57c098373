//! Encrypted sessions with peers: a state machine without IO.
//!
//! ```text
//!   Idle --seal()--> Handshaking --response--> Up(current)        initiator
//!                        | retry 250 ms × 2^n, 30 s, then queue dropped
//!   any  --initiation from a known key--> next --first data--> current    responder
//!   current --120 s, or data unanswered for 1 s--> Handshaking again, current goes on
//!   current --180 s--> gone
//! ```
//!
//! Invariants: nothing is sent to, and no state is made for, someone who does not know the flock's key; a session is made only with a key of the
//! peer list; a responder sends on a new session only after the initiator proved that it has it; the replay window moves only for
//! authentic packets; every table is bounded by the number of peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;

use rand::{Rng, RngExt};

use crate::counters::DropReason;
use crate::keys::{Psk, PublicKey, SecretKey};
use crate::wire::{DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, Kind, META_LEN, Meta, TAG_LEN};

mod handshake;
mod replay;
mod tables;
mod transport;

use handshake::{
    CookieJar, CookieValue, INITIATION_LEN, Initiated, Local, Mac, MacKeys, RESPONSE_LEN, Stamp,
};
pub use replay::{ReplayWindow, WINDOW_PACKETS};
pub(crate) use tables::Bucket;
use tables::Indexes;
pub use transport::Cipher;
use transport::{Agreed, Fault, Session};

/// Peers of one node; more are left out.
pub const PEERS_MAX: usize = 4_096;
/// A session is renewed by its initiator after this time of use.
pub const REKEY_AFTER_US: u64 = 120_000_000;
/// The responder renews later, so that usually one end does.
const REKEY_AFTER_RESPONDER_US: u64 = 140_000_000;
/// A session is not used beyond this age.
pub const REJECT_AFTER_US: u64 = 180_000_000;
/// A session is renewed after this many packets: far below what AES-GCM bears with one key.
pub const REKEY_AFTER_PACKETS: u64 = 1 << 30;
const REJECT_AFTER_PACKETS: u64 = 1 << 32;
/// The first wait for a response; doubled up to [`RETRY_MAX_US`].
pub const RETRY_FIRST_US: u64 = 250_000;
/// The longest wait for a response.
pub const RETRY_MAX_US: u64 = 4_000_000;
/// A handshake that nobody answers is given up after this time; the next packet begins another.
pub const GIVE_UP_US: u64 = 30_000_000;
/// Data was received and nothing sent: an empty packet says that we live.
pub const KEEPALIVE_US: u64 = 300_000;
/// Data was sent and nothing received: the peer may have lost the session.
pub const UNANSWERED_US: u64 = 1_000_000;
/// Packets held for one peer while its session comes up; the oldest is dropped for a new one.
pub const PENDING_MAX: usize = 64;
/// Handshakes worked on a second, over all senders; others are dropped, or asked for a cookie first. One costs about 0.2 ms.
pub const HANDSHAKES_PER_S_MAX: u32 = 400;
const HANDSHAKE_BURST: u32 = 256;
/// Below this many left, a sender must prove its address.
const COOKIE_BELOW: u32 = HANDSHAKE_BURST / 2;
/// Two initiations of one peer closer than this are one too many.
const PEER_INITIATION_US: u64 = 20_000;
/// Unknown sessions of a peer's address make us begin a handshake this often at most.
const NUDGE_US: u64 = 500_000;
const COOKIE_VALID_US: u64 = 100_000_000;

/// A peer's number, stable while the peer is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u16);

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this datagram.
    Send {
        /// To whom.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// A handshake was completed.
    Up(PeerId),
    /// Packets that were held for a session are lost.
    Dropped(DropReason, u64),
}

/// What was in a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// An inner packet, in place.
    Packet {
        /// Who sent it, authenticated.
        peer: PeerId,
        /// What it is a part of.
        meta: Meta,
        /// Where in the datagram it lies.
        inner: Range<usize>,
    },
    /// A keepalive.
    Empty,
    /// A handshake message, worked on.
    Handshake,
}

/// A datagram could not be sealed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotSealed {
    /// A session is being made: [`Sessions::hold`] the packet.
    NoSession,
    /// There is no such peer, or the buffer is too short.
    Impossible,
}

struct Peer {
    key: PublicKey,
    endpoint: SocketAddr,
    macs: MacKeys,
    current: Option<Box<Session>>,
    previous: Option<Box<Session>>,
    next: Option<Box<Session>>,
    attempt: Option<Attempt>,
    pending: VecDeque<Vec<u8>>,
    cookie: Option<(CookieValue, u64)>,
    /// The newest initiation accepted, and when.
    last_initiation: Option<(Stamp, u64)>,
    last_nudge_us: Option<u64>,
    /// A handshake is due although there is nothing to send.
    nudged: bool,
    /// Since when sent data waits for any answer.
    unanswered_since_us: Option<u64>,
    /// Since when received data waits for anything to be sent.
    owed_since_us: Option<u64>,
    armed_us: Option<u64>,
}

struct Attempt {
    initiated: Initiated,
    index: u32,
    mac1: Mac,
    began_us: u64,
    retry_at_us: u64,
    wait_us: u64,
}

/// Who we are.
pub struct Identity {
    /// This node's key.
    pub key: SecretKey,
    /// The flock's key.
    pub psk: Psk,
    /// Grows with every start of the node.
    pub boot: u64,
    /// Whether this machine has AES instructions.
    pub aes: bool,
}

/// All sessions of a node.
pub struct Sessions {
    me: Identity,
    my_macs: MacKeys,
    peers: Vec<Option<Peer>>,
    by_key: BTreeMap<PublicKey, PeerId>,
    by_endpoint: BTreeMap<SocketAddr, PeerId>,
    indexes: Indexes,
    timers: BTreeSet<(u64, PeerId)>,
    cookies: CookieJar,
    bucket: Bucket,
    sequence: u64,
}

impl Sessions {
    /// No peers yet.
    pub fn new<R: Rng + ?Sized>(me: Identity, now_us: u64, rng: &mut R) -> Self {
        let my_macs = MacKeys::new(&me.psk, &me.key.public_key());
        Self {
            me,
            my_macs,
            peers: Vec::new(),
            by_key: BTreeMap::new(),
            by_endpoint: BTreeMap::new(),
            indexes: Indexes::default(),
            timers: BTreeSet::new(),
            cookies: CookieJar::new(now_us, rng),
            bucket: Bucket::new(HANDSHAKES_PER_S_MAX, HANDSHAKE_BURST, now_us),
            sequence: 0,
        }
    }

    /// Replaces the list of peers; sessions of keys that stay go on. Returns the number of each in the order given, `None` for our own key, a
    /// key listed twice, and beyond [`PEERS_MAX`].
    pub fn set_peers(&mut self, list: &[(PublicKey, SocketAddr)]) -> Vec<Option<PeerId>> {
        let wanted: BTreeSet<PublicKey> = list.iter().map(|(key, _)| *key).collect();
        let gone: Vec<PeerId> =
            self.by_key.iter().filter(|(k, _)| !wanted.contains(k)).map(|(_, id)| *id).collect();
        for id in gone {
            self.remove_peer(id);
        }
        self.by_endpoint.clear();
        let mine = self.me.key.public_key();
        let mut listed = BTreeSet::new();
        list.iter()
            .map(|(key, endpoint)| {
                if *key == mine || !listed.insert(*key) {
                    return None;
                }
                let id =
                    self.by_key.get(key).copied().or_else(|| self.add_peer(*key, *endpoint))?;
                if let Some(peer) = self.peer_mut(id) {
                    peer.endpoint = *endpoint;
                }
                self.by_endpoint.insert(*endpoint, id);
                Some(id)
            })
            .collect()
    }

    /// Where a peer listens.
    pub fn endpoint(&self, id: PeerId) -> Option<SocketAddr> {
        Some(self.peer(id)?.endpoint)
    }

    /// Peers with a session that data can be sent on.
    pub fn up(&self) -> usize {
        self.peers.iter().flatten().filter(|p| p.current.is_some()).count()
    }

    /// When [`Sessions::timer`] is due.
    pub fn next_deadline(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Seals `[header space | meta | inner | tag space]` in place for a peer. Without a session a handshake becomes due at once (by
    /// [`Sessions::next_deadline`]).
    ///
    /// # Errors
    /// See [`NotSealed`].
    pub fn seal(&mut self, now_us: u64, id: PeerId, datagram: &mut [u8]) -> Result<(), NotSealed> {
        let peer = self.peers.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let peer = peer.ok_or(NotSealed::Impossible)?;
        let Some(session) = peer.current.as_mut().filter(|s| usable(s, now_us)) else {
            self.arm(id, now_us);
            return Err(NotSealed::NoSession);
        };
        session.seal(datagram).map_err(|_| NotSealed::Impossible)?;
        let stale = peer.attempt.is_none() && wants_rekey(session, now_us);
        peer.owed_since_us = None;
        let keepalive = datagram.len() == DATA_OVERHEAD;
        let first_unanswered = !keepalive && peer.unanswered_since_us.is_none();
        if first_unanswered {
            peer.unanswered_since_us = Some(now_us);
        }
        if stale {
            self.arm(id, now_us);
        } else if first_unanswered {
            self.arm(id, now_us + UNANSWERED_US);
        }
        Ok(())
    }

    /// Holds `meta ‖ inner` until the peer's session is up. Returns how many older packets were dropped for it.
    pub fn hold(&mut self, id: PeerId, plaintext: &[u8]) -> u64 {
        let Some(peer) = self.peer_mut(id) else { return 1 };
        let mut dropped = 0;
        while peer.pending.len() >= PENDING_MAX {
            peer.pending.pop_front();
            dropped += 1;
        }
        peer.pending.push_back(plaintext.to_vec());
        dropped
    }

    /// Takes one datagram. A packet's bytes are opened in place.
    ///
    /// # Errors
    /// Why it was dropped. Nothing was changed by what is not authentic.
    pub fn handle<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        datagram: &mut [u8],
        rng: &mut R,
        out: &mut Vec<Output>,
    ) -> Result<Opened, DropReason> {
        match Kind::of(datagram).ok_or(DropReason::OuterMalformed)? {
            Kind::Data => self.on_data(now_us, from, datagram, out),
            Kind::Initiation => self.on_initiation(now_us, from, datagram, rng, out),
            Kind::Response => self.on_response(now_us, datagram, out),
            Kind::Cookie => self.on_cookie(now_us, datagram),
        }
    }

    /// Does what is due.
    pub fn timer<R: Rng + ?Sized>(&mut self, now_us: u64, rng: &mut R, out: &mut Vec<Output>) {
        while let Some((at, id)) = self.timers.first().copied()
            && at <= now_us
        {
            self.timers.remove(&(at, id));
            if let Some(peer) = self.peer_mut(id) {
                peer.armed_us = None;
                self.on_timer(now_us, id, rng, out);
            }
        }
    }

    fn on_timer<R: Rng + ?Sized>(
        &mut self,
        now_us: u64,
        id: PeerId,
        rng: &mut R,
        out: &mut Vec<Output>,
    ) {
        self.expire(now_us, id);
        let Some(peer) = self.peer_mut(id) else { return };
        if peer.owed_since_us.is_some_and(|since| now_us >= since + KEEPALIVE_US) {
            peer.owed_since_us = None;
            self.send_keepalive(now_us, id, out);
        }
        let Some(peer) = self.peer_mut(id) else { return };
        let nudged = std::mem::take(&mut peer.nudged);
        let unanswered =
            nudged || peer.unanswered_since_us.is_some_and(|s| now_us >= s + UNANSWERED_US);
        let stale = peer.current.as_ref().is_none_or(|s| wants_rekey(s, now_us));
        match &peer.attempt {
            Some(attempt) if now_us >= attempt.began_us + GIVE_UP_US => self.give_up(id, out),
            Some(attempt) if now_us >= attempt.retry_at_us => {
                self.initiate(now_us, id, rng, out);
            }
            Some(_) => {}
            // A session that is old but idle is left to expire.
            None if unanswered
                || (stale && (peer.current.is_some() || !peer.pending.is_empty())) =>
            {
                peer.unanswered_since_us = None;
                self.initiate(now_us, id, rng, out);
            }
            None => {}
        }
        self.arm_next(now_us, id);
    }

    /// Arms the timer for whatever the peer waits for.
    fn arm_next(&mut self, now_us: u64, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let expiry = [&peer.current, &peer.previous, &peer.next]
            .into_iter()
            .flatten()
            .map(|s| s.created_us + REJECT_AFTER_US)
            .min();
        let waits = [
            peer.attempt.as_ref().map(|a| a.retry_at_us.min(a.began_us + GIVE_UP_US)),
            peer.owed_since_us.map(|s| s + KEEPALIVE_US),
            // While a handshake runs its retries are what is waited for.
            peer.unanswered_since_us.filter(|_| peer.attempt.is_none()).map(|s| s + UNANSWERED_US),
            expiry,
        ];
        if let Some(at) = waits.into_iter().flatten().min() {
            // Never now: a wait that could not be served must not spin.
            self.arm(id, at.max(now_us + 1_000));
        }
    }

    fn expire(&mut self, now_us: u64, id: PeerId) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(id.0)) else { return };
        for slot in [&mut peer.current, &mut peer.previous, &mut peer.next] {
            if let Some(session) = slot.take_if(|s| now_us >= s.created_us + REJECT_AFTER_US) {
                self.indexes.free(session.local_index);
            }
        }
    }

    fn give_up(&mut self, id: PeerId, out: &mut Vec<Output>) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(id.0)) else { return };
        if let Some(attempt) = peer.attempt.take() {
            self.indexes.free(attempt.index);
        }
        peer.unanswered_since_us = None;
        let lost = peer.pending.len() as u64;
        peer.pending.clear();
        if lost > 0 {
            out.push(Output::Dropped(DropReason::NoSession, lost));
        }
    }

    /// Sends an initiation: the first of an attempt, or again.
    fn initiate<R: Rng + ?Sized>(
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

    fn on_initiation<R: Rng + ?Sized>(
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
    fn admit<R: Rng + ?Sized>(
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

    fn respond(
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

    fn on_response(
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

    fn on_cookie(&mut self, now_us: u64, message: &[u8]) -> Result<Opened, DropReason> {
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

    fn on_data(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        datagram: &mut [u8],
        out: &mut Vec<Output>,
    ) -> Result<Opened, DropReason> {
        // A keepalive has no meta bytes either way: the shortest packet holds them.
        let header = DataHeader::parse(datagram).ok_or(DropReason::OuterMalformed)?;
        let Some(id) = self.indexes.peer(header.receiver) else {
            self.nudge(now_us, from);
            return Err(DropReason::UnknownSession);
        };
        let peer = self.peers.get_mut(usize::from(id.0)).and_then(Option::as_mut);
        let peer = peer.ok_or(DropReason::UnknownSession)?;
        let is =
            |s: &Option<Box<Session>>| s.as_ref().is_some_and(|s| s.local_index == header.receiver);
        let (slot, promote) = if is(&peer.current) {
            (&mut peer.current, false)
        } else if is(&peer.next) {
            (&mut peer.next, true)
        } else {
            (&mut peer.previous, false)
        };
        let session = slot.as_mut().filter(|s| s.local_index == header.receiver);
        let session = session.ok_or(DropReason::UnknownSession)?;
        if now_us >= session.created_us + REJECT_AFTER_US {
            return Err(DropReason::Expired);
        }
        session.open(header, datagram).map_err(|fault| match fault {
            Fault::Length => DropReason::OuterMalformed,
            Fault::Authentication => DropReason::Unauthenticated,
            Fault::Replayed => DropReason::Replayed,
        })?;
        peer.unanswered_since_us = None;
        let inner = DATA_HEADER_LEN + META_LEN..datagram.len() - TAG_LEN;
        let first_owed = !inner.is_empty() && peer.owed_since_us.is_none();
        if first_owed {
            peer.owed_since_us = Some(now_us);
        }
        if promote {
            self.promote(now_us, id, out);
        }
        if first_owed {
            self.arm(id, now_us + KEEPALIVE_US);
        }
        if inner.is_empty() {
            return Ok(Opened::Empty);
        }
        let meta = datagram.get(DATA_HEADER_LEN..).and_then(|m| m.first_chunk::<META_LEN>());
        let meta = meta.and_then(|m| Meta::parse(*m)).ok_or(DropReason::BadOffload)?;
        Ok(Opened::Packet { peer: id, meta, inner })
    }

    /// The initiator has used the session that we answered: from now on so do we.
    fn promote(&mut self, now_us: u64, id: PeerId, out: &mut Vec<Output>) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(id.0)) else { return };
        let former = std::mem::replace(&mut peer.current, peer.next.take());
        if let Some(older) = std::mem::replace(&mut peer.previous, former) {
            self.indexes.free(older.local_index);
        }
        // Ours, if we began one as well, is not needed any more.
        if let Some(attempt) = peer.attempt.take() {
            self.indexes.free(attempt.index);
        }
        out.push(Output::Up(id));
        self.flush_pending(now_us, id, out);
    }

    /// Sends what was held. Returns how many packets.
    fn flush_pending(&mut self, now_us: u64, id: PeerId, out: &mut Vec<Output>) -> usize {
        let Some(peer) = self.peer_mut(id) else { return 0 };
        let pending = std::mem::take(&mut peer.pending);
        let count = pending.len();
        for plaintext in pending {
            self.send_sealed(now_us, id, &plaintext, out);
        }
        count
    }

    fn send_keepalive(&mut self, now_us: u64, id: PeerId, out: &mut Vec<Output>) {
        self.send_sealed(now_us, id, &Meta::WHOLE.emit(), out);
    }

    fn send_sealed(&mut self, now_us: u64, id: PeerId, plaintext: &[u8], out: &mut Vec<Output>) {
        let mut bytes = vec![0; DATA_HEADER_LEN];
        bytes.extend_from_slice(plaintext);
        bytes.extend_from_slice(&[0; TAG_LEN]);
        if self.seal(now_us, id, &mut bytes).is_ok()
            && let Some(to) = self.endpoint(id)
        {
            out.push(Output::Send { to, bytes });
        }
    }

    /// A peer's address sends on a session that we do not have: we were restarted, and it does not know yet. A handshake from our side tells
    /// it. (A forged address costs one initiation to a true peer.)
    fn nudge(&mut self, now_us: u64, from: SocketAddr) {
        let Some(id) = self.by_endpoint.get(&from).copied() else { return };
        let Some(peer) = self.peer_mut(id) else { return };
        let lately = peer.last_nudge_us.is_some_and(|at| now_us.saturating_sub(at) < NUDGE_US);
        if peer.current.is_some() || peer.next.is_some() || peer.attempt.is_some() || lately {
            return;
        }
        peer.last_nudge_us = Some(now_us);
        peer.nudged = true;
        self.arm(id, now_us);
    }

    fn arm(&mut self, id: PeerId, at_us: u64) {
        let Some(Some(peer)) = self.peers.get_mut(usize::from(id.0)) else { return };
        match peer.armed_us {
            Some(armed) if armed <= at_us => {}
            armed => {
                if let Some(later) = armed {
                    self.timers.remove(&(later, id));
                }
                peer.armed_us = Some(at_us);
                self.timers.insert((at_us, id));
            }
        }
    }

    fn add_peer(&mut self, key: PublicKey, endpoint: SocketAddr) -> Option<PeerId> {
        let free = self.peers.iter().position(Option::is_none);
        let at = free.unwrap_or(self.peers.len());
        if at >= PEERS_MAX {
            return None;
        }
        let id = PeerId(u16::try_from(at).ok()?);
        let peer = Peer {
            key,
            endpoint,
            macs: MacKeys::new(&self.me.psk, &key),
            current: None,
            previous: None,
            next: None,
            attempt: None,
            pending: VecDeque::new(),
            cookie: None,
            last_initiation: None,
            last_nudge_us: None,
            nudged: false,
            unanswered_since_us: None,
            owed_since_us: None,
            armed_us: None,
        };
        match self.peers.get_mut(at) {
            Some(slot) => *slot = Some(peer),
            None => self.peers.push(Some(peer)),
        }
        self.by_key.insert(key, id);
        Some(id)
    }

    fn remove_peer(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(usize::from(id.0)).and_then(Option::take) else {
            return;
        };
        self.by_key.remove(&peer.key);
        if let Some(at) = peer.armed_us {
            self.timers.remove(&(at, id));
        }
        let sessions = [peer.current, peer.previous, peer.next];
        let indexes = sessions.iter().flatten().map(|s| s.local_index);
        for index in indexes.chain(peer.attempt.iter().map(|a| a.index)) {
            self.indexes.free(index);
        }
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(usize::from(id.0))?.as_ref()
    }

    fn peer_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(id.0))?.as_mut()
    }
}

fn usable(session: &Session, now_us: u64) -> bool {
    now_us < session.created_us + REJECT_AFTER_US && session.sent() < REJECT_AFTER_PACKETS
}

fn wants_rekey(session: &Session, now_us: u64) -> bool {
    let after_us = if session.initiator { REKEY_AFTER_US } else { REKEY_AFTER_RESPONDER_US };
    now_us >= session.created_us + after_us || session.sent() >= REKEY_AFTER_PACKETS
}

#[cfg(test)]
mod tests;
