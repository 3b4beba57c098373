//! Messages on their way out: grouped by addressee, packed into as few frames as they need.

use std::net::SocketAddr;

use rand::Rng;

use crate::api::Output;
use crate::config::{PACKET_MAX_BYTES, PACKET_SAFE_BYTES};
use crate::frame::{Binding, COUNTER_MAX, HEADER_BYTES, KeyRing, OVERHEAD_BYTES};
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
    /// Whom for, and where it ends in `bytes`.
    items: Vec<(Dest, usize)>,
    bytes: Vec<u8>,
    /// Frames being filled; empty between steps, kept for its room.
    open: Vec<(Dest, Vec<u8>)>,
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

    /// Adds one message: tag, length, content, which `write` appends. A message has to fit [`ROOM_BYTES`] with its head.
    pub(crate) fn push(&mut self, dest: Dest, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
        self.push_some(dest, tag, |out| {
            write(out);
            1
        });
    }

    /// Adds one message unless `write` says that it wrote nothing; the length of its content.
    pub(crate) fn push_some(
        &mut self,
        dest: Dest,
        tag: u8,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) -> Option<usize> {
        let len = message(&mut self.bytes, tag, write)?;
        assert!(len + 3 <= ROOM_BYTES, "a message of type {tag} outgrew the packet");
        self.items.push((dest, self.bytes.len()));
        Some(len)
    }

    /// The messages, whoever they are for, instead of sealing them.
    #[cfg(test)]
    pub(crate) fn drain(&mut self) -> Vec<Vec<u8>> {
        let (mut start, bytes) = (0, std::mem::take(&mut self.bytes));
        let items = std::mem::take(&mut self.items).into_iter();
        items.map(|(_, end)| bytes[std::mem::replace(&mut start, end)..end].to_vec()).collect()
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
        let mut items = std::mem::take(&mut self.items);
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut open = std::mem::take(&mut self.open);
        let first = items.first().map(|(dest, _)| *dest);
        let lone = items.iter().all(|(dest, _)| Some(*dest) == first);
        let mut start = 0;
        for (dest, end) in items.drain(..) {
            let message = bytes.get(start..end).unwrap_or(&[]);
            // Most steps answer one peer: then all that follows goes there.
            let room = if lone { bytes.len() - start } else { message.len() };
            start = end;
            let slot = match open.iter().position(|(d, _)| *d == dest) {
                Some(slot) => slot,
                None => {
                    open.push((dest, head(me, room)));
                    open.len() - 1
                }
            };
            let Some((_, packet)) = open.get_mut(slot) else { continue };
            let len = plain(packet) + message.len();
            if len > PACKET_SAFE_BYTES - OVERHEAD_BYTES && len > self.room_for_more(dest, now_us) {
                let full = std::mem::replace(packet, head(me, room));
                self.seal(keys, dest, full, now_us, out);
                self.probe(keys, dest, (me, now_us), out);
            }
            if let Some((_, packet)) = open.get_mut(slot) {
                packet.extend_from_slice(message);
            }
        }
        for (dest, mut packet) in open.drain(..) {
            let room = (PACKET_SAFE_BYTES - OVERHEAD_BYTES).saturating_sub(plain(&packet));
            fill(dest, &mut packet, room);
            self.seal(keys, dest, packet, now_us, out);
        }
        // Keep the allocations for the next step.
        bytes.clear();
        (self.items, self.bytes, self.open) = (items, bytes, open);
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
        let mut packet = head(me, size);
        pad(&mut packet, size);
        self.seal_as_is(keys, dest, packet, out);
    }

    fn seal(
        &mut self,
        keys: &KeyRing,
        dest: Dest,
        mut packet: Vec<u8>,
        now_us: u64,
        out: &mut Vec<Output>,
    ) {
        if plain(&packet) + OVERHEAD_BYTES > PACKET_SAFE_BYTES
            && let Binding::To { nid, .. } = dest.to
            && let Some(size) = self.paths.asks(nid, now_us)
        {
            pad(&mut packet, size);
        }
        self.seal_as_is(keys, dest, packet, out);
    }

    fn seal_as_is(
        &mut self,
        keys: &KeyRing,
        dest: Dest,
        mut frame: Vec<u8>,
        out: &mut Vec<Output>,
    ) {
        if self.counter >= COUNTER_MAX {
            return;
        }
        self.counter += 1;
        self.sealed += 1;
        keys.seal_in_place(dest.to, self.boot, self.counter, &mut frame);
        debug_assert!(frame.len() <= PACKET_MAX_BYTES);
        out.push(Output::Send { to: dest.addr, bytes: frame });
    }
}

/// Fills a packet with a probe so that its frame gets this long. The length always takes two bytes (LEB128 may be longer
/// than it needs to be).
fn pad(packet: &mut Vec<u8>, frame_bytes: usize) {
    let end = frame_bytes.saturating_sub(OVERHEAD_BYTES);
    let len = end.saturating_sub(plain(packet) + PROBE_HEAD_BYTES);
    packet.extend_from_slice(&[tag::PATH_PROBE, (len as u8 & 0x7f) | 0x80, (len >> 7) as u8]);
    packet.resize(packet.len() + len, 0);
}

/// Bytes of a frame being filled that are to be encrypted.
fn plain(packet: &[u8]) -> usize {
    packet.len() - HEADER_BYTES
}

/// Appends a message whose content `write` appends, unless it says that it wrote nothing; the length of the content.
pub(crate) fn message(
    out: &mut Vec<u8>,
    tag: u8,
    write: impl FnOnce(&mut Vec<u8>) -> usize,
) -> Option<usize> {
    let start = out.len();
    out.extend_from_slice(&[tag, 0]);
    if write(out) == 0 {
        out.truncate(start);
        return None;
    }
    let content = start + 2;
    let len = out.len() - content;
    if let Some(byte) = out.get_mut(start + 1).filter(|_| len < 0x80) {
        *byte = len as u8;
        return Some(len);
    }
    // The length takes two bytes; nothing longer than a packet gets here.
    let [low, high] = [(len as u8 & 0x7f) | 0x80, (len >> 7) as u8];
    assert!(len < 0x80 << 7, "a message of {len} bytes");
    out.insert(content, high);
    if let Some(byte) = out.get_mut(start + 1) {
        *byte = low;
    }
    Some(len)
}

/// A frame that says whom it is from, with room for what follows.
fn head(me: Sender, room: usize) -> Vec<u8> {
    let bytes = (OVERHEAD_BYTES + 18 + room).min(PACKET_MAX_BYTES);
    let mut frame = Vec::with_capacity(bytes);
    frame.resize(HEADER_BYTES, 0);
    frame.extend_from_slice(&me.nid.0.to_le_bytes());
    put_varint(&mut frame, me.generation);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reader;

    #[test]
    fn messages_of_every_length_read_back() {
        for len in [0, 1, 126, 127, 128, 129, 255, 256, 1100, ROOM_BYTES - 3] {
            let mut out = vec![9];
            let content: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let wrote = message(&mut out, 7, |out| {
                out.extend_from_slice(&content);
                1
            });
            assert_eq!(wrote, Some(len));
            let mut reader = Reader::new(&out);
            assert_eq!((reader.u8(), reader.u8()), (Some(9), Some(7)));
            assert_eq!(reader.len(usize::MAX), Some(len));
            assert_eq!(reader.rest(), content);
        }
        let mut out = vec![9];
        assert_eq!(message(&mut out, 7, |_| 0), None);
        assert_eq!(out, [9]);
    }

    /// A nonce is never used twice: rather silent.
    #[test]
    fn who_has_no_counter_left_falls_silent() {
        let keys = KeyRing::new(&crate::frame::SecretKey::new(1, [7; 32]));
        let dest = Dest { addr: SocketAddr::from(([10, 0, 0, 1], 1)), to: Binding::Open };
        let me = Sender { nid: Nid(1), generation: 1 };
        let mut net = Outbox { boot: 7, counter: COUNTER_MAX - 1, ..Outbox::default() };
        let mut said = || {
            let mut out = Vec::new();
            net.push(dest, tag::WHO_ARE_YOU, |_| {});
            net.flush(&keys, me, 0, &mut out, |_, _, _| {});
            out.len()
        };
        assert_eq!([said(), said(), said()], [1, 0, 0]);
    }
}
