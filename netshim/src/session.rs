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

use rand::Rng;

use crate::counters::DropReason;
use crate::keys::{Psk, PublicKey, SecretKey};
use crate::wire::{DATA_OVERHEAD, Kind, Meta};

mod carrying;
mod handshake;
mod opening;
mod replay;
mod tables;
mod transport;

use handshake::{CookieJar, CookieValue, Initiated, Mac, MacKeys, Stamp};
pub use replay::{ReplayWindow, WINDOW_PACKETS};
pub(crate) use tables::Bucket;
use tables::Indexes;
pub use transport::Cipher;
use transport::Session;

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
