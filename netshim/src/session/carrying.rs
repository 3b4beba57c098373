//! What goes through an open session: data, keepalives, what was held until it opened.

use std::net::SocketAddr;

use super::transport::{Fault, Session};
use super::{KEEPALIVE_US, NUDGE_US, Opened, Output, PeerId, REJECT_AFTER_US, Sessions};
use crate::counters::DropReason;
use crate::wire::{DATA_HEADER_LEN, DataHeader, META_LEN, Meta, TAG_LEN};

impl Sessions {
    pub(super) fn on_data(
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
    pub(super) fn promote(&mut self, now_us: u64, id: PeerId, out: &mut Vec<Output>) {
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
    pub(super) fn flush_pending(
        &mut self,
        now_us: u64,
        id: PeerId,
        out: &mut Vec<Output>,
    ) -> usize {
        let Some(peer) = self.peer_mut(id) else { return 0 };
        let pending = std::mem::take(&mut peer.pending);
        let count = pending.len();
        for plaintext in pending {
            self.send_sealed(now_us, id, &plaintext, out);
        }
        count
    }

    pub(super) fn send_keepalive(&mut self, now_us: u64, id: PeerId, out: &mut Vec<Output>) {
        self.send_sealed(now_us, id, &Meta::WHOLE.emit(), out);
    }

    pub(super) fn send_sealed(
        &mut self,
        now_us: u64,
        id: PeerId,
        plaintext: &[u8],
        out: &mut Vec<Output>,
    ) {
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
    pub(super) fn nudge(&mut self, now_us: u64, from: SocketAddr) {
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
}
