//! What happens to a packet between reading and writing: path, sessions and large packets put together. No IO of its own: it writes through
//! [`Ports`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use rand::Rng;

use crate::counters::{Count, Counters, DropReason};
use crate::gso::{Large, Pushed, Rebuild, open_checksum};
use crate::path::{End, Path, Verdict, icmp};
use crate::session::{Bucket, NotSealed, Opened, Output, PeerId, Sessions};
use crate::wire::{
    self, DATA_HEADER_LEN, DATA_OVERHEAD, GSO_NONE, Inner, META_LEN, Meta, TAG_LEN, VnetHdr,
};

mod batch;
mod local;

use batch::Batch;
pub(super) use batch::{BATCH_MAX_BYTES, BATCH_MAX_SEGMENTS};

/// What fits any underlay that can carry IPv6 pods at all: the least MTU of IPv6. Pods learn it by ICMP when the underlay is narrower than their own.
const NARROW_MTU: u16 = 1_280;
/// After this time a large packet is tried again.
const NARROW_US: u64 = 600_000_000;

/// What became of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    Ok,
    /// The socket is full: try again when it is writable.
    Full,
    /// Larger than the route's MTU; it was not fragmented.
    TooBig,
    Failed,
}

/// The fds, as the engine sees them.
pub(super) trait Ports {
    /// Sends datagrams of `segment` bytes each, the last may be shorter.
    fn send(&mut self, to: SocketAddr, bytes: &[u8], segment: usize) -> Sent;
    /// Writes a packet to a TUN that takes headers: `head`, then ranges of `buffer`.
    fn write(
        &mut self,
        to: End,
        header: &VnetHdr,
        head: &[u8],
        payloads: &[Range<usize>],
        buffer: &[u8],
    ) -> bool;
    /// Whether the TUN takes large packets and open checksums.
    fn offload(&self, to: End) -> bool;
}

pub(super) struct Engine<R> {
    pub(super) path: Path,
    pub(super) sessions: Sessions,
    counters: Arc<Counters>,
    rng: R,
    rebuild: Rebuild,
    batch: Batch,
    /// The socket was full: the batch waits, and no TUN is to be read.
    pub(super) blocked: bool,
    /// Peers to whom the underlay refused a datagram for its size, and until when they get small ones only.
    narrow: BTreeMap<PeerId, u64>,
    /// The newest time heard of.
    now_us: u64,
    /// Sessions came or went since this was last cleared.
    pub(super) sessions_changed: bool,
    icmp_bucket: Bucket,
    icmp: Vec<u8>,
    flat: Vec<u8>,
    outputs: Vec<Output>,
    frame: u8,
}

impl<R: Rng> Engine<R> {
    pub(super) fn new(
        path: Path,
        sessions: Sessions,
        counters: Arc<Counters>,
        rng: R,
        now_us: u64,
    ) -> Self {
        Self {
            path,
            sessions,
            counters,
            rng,
            rebuild: Rebuild::default(),
            batch: Batch::new(),
            blocked: false,
            narrow: BTreeMap::new(),
            now_us,
            sessions_changed: false,
            icmp_bucket: Bucket::new(icmp::ERRORS_PER_S_MAX, icmp::ERRORS_BURST, now_us),
            icmp: Vec::new(),
            flat: Vec::new(),
            outputs: Vec::new(),
            frame: 0,
        }
    }

    /// A packet read from a pod's or the host's TUN, with the header before it if the TUN has those.
    pub(super) fn tun_packet(
        &mut self,
        now_us: u64,
        from: End,
        has_header: bool,
        bytes: &mut [u8],
        ports: &mut impl Ports,
    ) {
        self.now_us = now_us;
        let (header, packet) = if has_header {
            match VnetHdr::split(bytes) {
                Some(split) => split,
                None => return self.counters.dropped(DropReason::Malformed),
            }
        } else {
            (VnetHdr::default(), bytes)
        };
        self.counters.add(Count::TunRxPackets, 1);
        self.counters.add(Count::TunRxBytes, packet.len() as u64);
        let Some(inner) = Inner::parse(packet) else {
            return self.counters.dropped(DropReason::Malformed);
        };
        let large = if header.gso_type == GSO_NONE {
            None
        } else {
            match Large::parse(&header, &inner, packet) {
                Some(large) if large.largest() <= usize::from(self.path.mtu) => Some(large),
                _ => return self.counters.dropped(DropReason::BadOffload),
            }
        };
        match self.path.decide(from, &inner, packet.len(), large.is_some()) {
            Verdict::Drop(why) => self.counters.dropped(why),
            Verdict::Refuse(why, reason) => {
                self.counters.dropped(why);
                self.refuse(now_us, from, reason, &inner, packet, ports);
            }
            Verdict::Forward(to) => {
                let size = large.map_or(packet.len(), |l| l.largest());
                if let End::Peer(peer) = to
                    && size > usize::from(NARROW_MTU)
                    && self.is_narrow(now_us, peer)
                {
                    self.counters.dropped(DropReason::TooBig);
                    let reason = icmp::Reason::TooBig { mtu: NARROW_MTU };
                    return self.refuse(now_us, from, reason, &inner, packet, ports);
                }
                wire::decrement_ttl(packet);
                match (to, large) {
                    (End::Peer(peer), Some(large)) => {
                        self.large_to_peer(now_us, peer, &large, packet, ports);
                    }
                    (End::Peer(peer), None) => {
                        self.single_to_peer(now_us, peer, &header, &inner, packet, ports);
                    }
                    (_, Some(large)) => self.local(to, large.header(), packet, ports),
                    (_, None) => self.single_to_local(to, &header, &inner, packet, ports),
                }
            }
        }
    }

    fn large_to_peer(
        &mut self,
        now_us: u64,
        peer: PeerId,
        large: &Large,
        packet: &[u8],
        ports: &mut impl Ports,
    ) {
        self.frame = self.frame.wrapping_add(1);
        for index in 0..large.count() {
            let len = large.segment_len(index);
            // SEGMENTS_MAX fits a u16.
            let meta = Meta {
                part: large.part(),
                partial_checksum: true,
                frame: self.frame,
                index: index as u16,
            };
            self.seal_to(now_us, peer, meta, len, ports, |out| large.write(packet, index, out));
        }
    }

    fn single_to_peer(
        &mut self,
        now_us: u64,
        peer: PeerId,
        header: &VnetHdr,
        inner: &Inner,
        packet: &mut [u8],
        ports: &mut impl Ports,
    ) {
        let Some(partial_checksum) = carry_checksum(header, inner, packet) else {
            return self.counters.dropped(DropReason::BadOffload);
        };
        let meta = Meta { partial_checksum, ..Meta::WHOLE };
        self.seal_to(now_us, peer, meta, packet.len(), ports, |out| {
            (out.len() == packet.len()).then(|| out.copy_from_slice(packet))
        });
    }

    /// Seals one inner packet, written by `fill`, into the batch.
    fn seal_to(
        &mut self,
        now_us: u64,
        peer: PeerId,
        meta: Meta,
        len: usize,
        ports: &mut impl Ports,
        fill: impl FnOnce(&mut [u8]) -> Option<()>,
    ) {
        let total = DATA_OVERHEAD + len;
        if !self.batch.fits(peer, total) && !self.flush(ports) {
            self.counters.dropped_many(DropReason::SendFailed, self.batch.count as u64);
            self.batch.clear();
        }
        let Some(datagram) = self.batch.room(total) else {
            return self.counters.dropped(DropReason::TooBig);
        };
        let Some(plain) = datagram.get_mut(DATA_HEADER_LEN..total - TAG_LEN) else { return };
        let Some((head, inner)) = plain.split_first_chunk_mut::<META_LEN>() else { return };
        *head = meta.emit();
        if fill(inner).is_none() {
            return self.counters.dropped(DropReason::BadOffload);
        }
        match self.sessions.seal(now_us, peer, datagram) {
            Ok(()) => self.batch.commit(peer, total),
            Err(NotSealed::NoSession) => {
                let plain = datagram.get(DATA_HEADER_LEN..total - TAG_LEN).unwrap_or_default();
                let lost = self.sessions.hold(peer, plain);
                self.counters.dropped_many(DropReason::PendingFull, lost);
            }
            Err(NotSealed::Impossible) => self.counters.dropped(DropReason::NoPeer),
        }
    }

    /// Sends the batch. `false` if the socket is full: it is kept.
    pub(super) fn flush(&mut self, ports: &mut impl Ports) -> bool {
        let batch = &mut self.batch;
        if let Some(to) = batch.to.and_then(|peer| self.sessions.endpoint(peer)) {
            let bytes = batch.buffer.get(..batch.len).unwrap_or_default();
            match ports.send(to, bytes, batch.segment) {
                Sent::Ok => {
                    self.counters.add(Count::UdpTxCalls, 1);
                    self.counters.add(Count::UdpTxDatagrams, batch.count as u64);
                    self.counters.add(Count::UdpTxBytes, batch.len as u64);
                }
                Sent::Full => {
                    self.blocked = true;
                    return false;
                }
                Sent::TooBig => {
                    self.counters.dropped_many(DropReason::UnderlayMtu, batch.count as u64);
                    if let Some(peer) = batch.to {
                        // At most one entry a peer.
                        self.narrow.insert(peer, self.now_us + NARROW_US);
                    }
                }
                Sent::Failed => {
                    self.counters.dropped_many(DropReason::SendFailed, batch.count as u64)
                }
            }
        }
        batch.clear();
        self.blocked = false;
        true
    }

    /// Whether the way to a peer takes only small packets.
    fn is_narrow(&mut self, now_us: u64, peer: PeerId) -> bool {
        match self.narrow.get(&peer) {
            Some(until_us) if now_us < *until_us => true,
            Some(_) => {
                self.narrow.remove(&peer);
                false
            }
            None => false,
        }
    }

    /// What one receive call brought: datagrams of `segment` bytes from one sender.
    pub(super) fn udp_datagrams(
        &mut self,
        now_us: u64,
        from: SocketAddr,
        buffer: &mut [u8],
        segment: usize,
        ports: &mut impl Ports,
    ) {
        self.counters.add(Count::UdpRxBytes, buffer.len() as u64);
        let mut at = 0;
        while at < buffer.len() {
            let end = (at + segment.max(1)).min(buffer.len());
            self.counters.add(Count::UdpRxDatagrams, 1);
            let Some(datagram) = buffer.get_mut(at..end) else { break };
            match self.sessions.handle(now_us, from, datagram, &mut self.rng, &mut self.outputs) {
                Ok(Opened::Packet { peer, meta, inner }) => {
                    self.peer_packet(
                        now_us,
                        peer,
                        meta,
                        at + inner.start..at + inner.end,
                        buffer,
                        ports,
                    );
                }
                Ok(Opened::Empty | Opened::Handshake) => {}
                Err(why) => self.counters.dropped(why),
            }
            at = end;
        }
        self.finish_joined(buffer, ports);
        self.act(ports);
    }

    /// An authentic inner packet at `range` of the receive buffer.
    fn peer_packet(
        &mut self,
        now_us: u64,
        peer: PeerId,
        meta: Meta,
        range: Range<usize>,
        buffer: &mut [u8],
        ports: &mut impl Ports,
    ) {
        let Some(packet) = buffer.get_mut(range.clone()) else { return };
        let Some(inner) = Inner::parse(packet) else {
            return self.counters.dropped(DropReason::Malformed);
        };
        let from = End::Peer(peer);
        let to = match self.path.decide(from, &inner, packet.len(), false) {
            Verdict::Forward(to) => to,
            Verdict::Drop(why) => return self.counters.dropped(why),
            Verdict::Refuse(why, reason) => {
                self.counters.dropped(why);
                return self.refuse(now_us, from, reason, &inner, packet, ports);
            }
        };
        if packet.len() > usize::from(self.path.mtu) {
            return self.counters.dropped(DropReason::TooBig);
        }
        if !meta.partial_checksum {
            self.finish_joined(buffer, ports);
            let Some(packet) = buffer.get(range) else { return };
            return self.local(to, VnetHdr::default(), packet, ports);
        }
        let Some(header) = open_checksum(&inner, packet) else {
            return self.counters.dropped(DropReason::BadOffload);
        };
        let mut pushed = Pushed::Never;
        if ports.offload(to) {
            pushed = self.rebuild.push(to, meta, &inner, packet, range.start);
            if pushed == Pushed::NotNow {
                self.finish_joined(buffer, ports);
                let Some(packet) = buffer.get(range.clone()) else { return };
                pushed = self.rebuild.push(to, meta, &inner, packet, range.start);
            }
        }
        if pushed != Pushed::Taken {
            self.finish_joined(buffer, ports);
            let Some(packet) = buffer.get(range) else { return };
            self.local(to, header, packet, ports);
        }
    }

    /// Does what the sessions have due.
    pub(super) fn timer(&mut self, now_us: u64, ports: &mut impl Ports) {
        self.sessions.timer(now_us, &mut self.rng, &mut self.outputs);
        self.sessions_changed = true;
        self.act(ports);
    }

    fn act(&mut self, ports: &mut impl Ports) {
        for output in self.outputs.drain(..) {
            match output {
                Output::Send { to, bytes } => match ports.send(to, &bytes, bytes.len()) {
                    Sent::Ok => {
                        self.counters.add(Count::UdpTxCalls, 1);
                        self.counters.add(Count::UdpTxDatagrams, 1);
                        self.counters.add(Count::UdpTxBytes, bytes.len() as u64);
                    }
                    Sent::TooBig => self.counters.dropped(DropReason::UnderlayMtu),
                    Sent::Full | Sent::Failed => self.counters.dropped(DropReason::SendFailed),
                },
                Output::Up(_) => {
                    self.sessions_changed = true;
                    self.counters.add(Count::Handshakes, 1);
                }
                Output::Dropped(why, packets) => self.counters.dropped_many(why, packets),
            }
        }
    }
}

/// Whether the transport checksum of a packet from a TUN can stay open on the way. If it is open but nothing the receiver could find again, it is
/// finished here. `None` if the TUN's header lies.
fn carry_checksum(header: &VnetHdr, inner: &Inner, packet: &mut [u8]) -> Option<bool> {
    if !header.needs_checksum {
        return Some(false);
    }
    let (start, offset) = (usize::from(header.checksum_start), usize::from(header.checksum_offset));
    let findable = inner.checksum_offset() == Some(offset)
        && start == inner.header_len
        && packet.len() >= start + offset + 2;
    if findable {
        return Some(true);
    }
    wire::finish_checksum(packet, start, offset).then_some(false)
}

#[allow(clippy::indexing_slicing)] // Indexes of two nodes.
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
