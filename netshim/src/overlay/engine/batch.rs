//! What leaves with one system call.

use crate::session::PeerId;

/// Bytes sent with one system call; UDP's limit less headers.
pub(in crate::overlay) const BATCH_MAX_BYTES: usize = 65_000;
/// Datagrams sent with one system call: UDP_MAX_SEGMENTS of the kernels we run on (64 before 6.9).
pub(in crate::overlay) const BATCH_MAX_SEGMENTS: usize = 64;

/// Datagrams of one size for one peer, in one buffer.
pub(super) struct Batch {
    pub(super) buffer: Vec<u8>,
    pub(super) len: usize,
    pub(super) to: Option<PeerId>,
    pub(super) segment: usize,
    pub(super) count: usize,
    /// The last datagram was shorter: nothing may follow it.
    pub(super) closed: bool,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; BATCH_MAX_BYTES],
            len: 0,
            to: None,
            segment: 0,
            count: 0,
            closed: false,
        }
    }

    pub(super) fn fits(&self, peer: PeerId, len: usize) -> bool {
        self.count == 0
            || (self.to == Some(peer)
                && !self.closed
                && len <= self.segment
                && self.count < BATCH_MAX_SEGMENTS
                && self.len + len <= BATCH_MAX_BYTES)
    }

    /// Room for one datagram; `None` if it is larger than any batch.
    pub(super) fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        self.buffer.get_mut(self.len..self.len + len)
    }

    pub(super) fn commit(&mut self, peer: PeerId, len: usize) {
        if self.count == 0 {
            self.to = Some(peer);
            self.segment = len;
        }
        self.closed = len < self.segment;
        self.len += len;
        self.count += 1;
    }

    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.count = 0;
        self.to = None;
        self.closed = false;
    }
}
