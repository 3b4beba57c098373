//! Messages on their way out: grouped by addressee, packed into as few frames as they need.

use std::net::SocketAddr;

use rand::Rng;

use crate::api::Output;
use crate::config::{PACKET_MAX_BYTES, PACKET_SAFE_BYTES};
use crate::frame::{Binding, COUNTER_MAX, KeyRing, OVERHEAD_BYTES};
use crate::member::Nid;
use crate::message::tag;
use crate::path::Paths;
use crate::wire::put_varint;

/// Room for messages in one packet, after frame, name hash and the longest generation.
pub(crate) const ROOM_BYTES: usize = PACKET_SAFE_BYTES - OVERHEAD_BYTES - 8 - 10;
/// Tag and length of a probe's padding.
const PROBE_HEAD_BYTES: usize = 3;

/// An addressee.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dest {
    pub(crate) addr: SocketAddr,
    pub(crate) to: Binding,
}

/// Who we are, for every packet's head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sender {
    pub(crate) nid: Nid,
    pub(crate) generation: u64,
}

/// Collects the messages of one step.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    items: Vec<(Dest, usize)>,
    bytes: Vec<u8>,
    boot: u64,
    counter: u64,
    /// Frames sealed so far.
    pub(crate) sealed: u64,
    /// How long frames may be.
    pub(crate) paths: Paths,
}

impl Outbox {
    /// Draws the boot id, once.
    pub(crate) fn start(&mut self, rng: &mut dyn Rng) {
        if self.boot == 0 {
            self.boot = (rng.next_u64() & crate::frame::BOOT_MASK).max(1);
        }
    }

    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// Adds one message: tag, length, content. A message has to fit [`ROOM_BYTES`] with its head.
    pub(crate) fn push(&mut self, dest: Dest, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let mut content = Vec::with_capacity(64);
        write(&mut content);
        assert!(content.len() + 3 <= ROOM_BYTES, "a message of type {tag} outgrew the packet");
        self.bytes.push(tag);
        put_varint(&mut self.bytes, content.len() as u64);
        self.bytes.extend_from_slice(&content);
        self.items.push((dest, self.bytes.len()));
    }

    /// Seals everything. `fill` adds riders to a packet: it gets the addressee and the room left.
    pub(crate) fn flush(
        &mut self,
        keys: &KeyRing,
        me: Sender,
        now_us: u64,
        out: &mut Vec<Output>,
        mut fill: impl FnMut(Dest, &mut Vec<u8>, usize),
    ) {
        if self.items.is_empty() {
            return;
        }
        let items = std::mem::take(&mut self.items);
        let bytes = std::mem::take(&mut self.bytes);
        let mut open: Vec<(Dest, Vec<u8>)> = Vec::new();
        let mut start = 0;
        for (dest, end) in items {
            let message = bytes.get(start..end).unwrap_or(&[]);
            start = end;
            let slot = match open.iter().position(|(d, _)| *d == dest) {
                Some(slot) => slot,
                None => {
                    open.push((dest, head(me)));
                    open.len() - 1
                }
            };
            let Some((_, packet)) = open.get_mut(slot) else { continue };
            if packet.len() + message.len() > PACKET_SAFE_BYTES - OVERHEAD_BYTES
                && packet.len() + message.len() > self.room_for_more(dest, now_us)
            {
                let full = std::mem::replace(packet, head(me));
                self.seal(keys, dest, full, now_us, out);
                self.probe(keys, dest, (me, now_us), out);
            }
            if let Some((_, packet)) = open.get_mut(slot) {
                packet.extend_from_slice(message);
            }
        }
        for (dest, mut packet) in open {
            let room = (PACKET_SAFE_BYTES - OVERHEAD_BYTES).saturating_sub(packet.len());
            fill(dest, &mut packet, room);
            self.seal(keys, dest, packet, now_us, out);
        }
        // Keep the allocations for the next step.
        self.bytes = bytes;
        self.bytes.clear();
    }

    /// Longest plain text for an addressee to whom there is more to say than fits; with room for a probe's head.
    fn room_for_more(&mut self, dest: Dest, now_us: u64) -> usize {
        let found = match dest.to {
            Binding::Open => PACKET_SAFE_BYTES,
            Binding::To { nid, .. } => self.paths.room_for_more(nid, dest.addr, now_us),
        };
        let safe = PACKET_SAFE_BYTES - OVERHEAD_BYTES;
        safe.max(found.saturating_sub(OVERHEAD_BYTES + PROBE_HEAD_BYTES))
    }

    /// Tries a longer frame, if that is due: there is more to say than fits into one.
    fn probe(
        &mut self,
        keys: &KeyRing,
        dest: Dest,
        (me, now_us): (Sender, u64),
        out: &mut Vec<Output>,
    ) {
        let Binding::To { nid, .. } = dest.to else { return };
        let Some(size) = self.paths.probe(nid, now_us) else { return };
        let mut packet = head(me);
        pad(&mut packet, size);
        self.seal_as_is(keys, dest, &packet, out);
    }

    fn seal(
        &mut self,
        keys: &KeyRing,
        dest: Dest,
        mut packet: Vec<u8>,
        now_us: u64,
        out: &mut Vec<Output>,
    ) {
        if packet.len() + OVERHEAD_BYTES > PACKET_SAFE_BYTES
            && let Binding::To { nid, .. } = dest.to
            && let Some(size) = self.paths.asks(nid, now_us)
        {
            pad(&mut packet, size);
        }
        self.seal_as_is(keys, dest, &packet, out);
    }

    fn seal_as_is(&mut self, keys: &KeyRing, dest: Dest, plain: &[u8], out: &mut Vec<Output>) {
        if self.counter >= COUNTER_MAX {
            return;
        }
        self.counter += 1;
        self.sealed += 1;
        let bytes = keys.seal(dest.to, self.boot, self.counter, plain);
        debug_assert!(bytes.len() <= PACKET_MAX_BYTES);
        out.push(Output::Send { to: dest.addr, bytes });
    }
}

/// Fills a packet with a probe so that its frame gets this long. The length always takes two bytes (LEB128 may be longer
/// than it needs to be).
fn pad(packet: &mut Vec<u8>, frame_bytes: usize) {
    let end = frame_bytes.saturating_sub(OVERHEAD_BYTES);
    let len = end.saturating_sub(packet.len() + PROBE_HEAD_BYTES);
    packet.extend_from_slice(&[tag::PATH_PROBE, (len as u8 & 0x7f) | 0x80, (len >> 7) as u8]);
    packet.resize(packet.len() + len, 0);
}

fn head(me: Sender) -> Vec<u8> {
    let mut packet = Vec::with_capacity(128);
    packet.extend_from_slice(&me.nid.0.to_le_bytes());
    put_varint(&mut packet, me.generation);
    packet
}
