//! How long a datagram to a peer may be: found by sending longer ones (RFC 8899), never assumed.
//!
//! ```text
//!            much more than one fits    answered
//!   Safe ──────────────────────▶ Asking ───────▶ Found(size)
//!     ▲                            │  ▲              │
//!     │    no size left; for a     │  └─ next size ──┤  the kernel refuses that length,
//!     └──── long time no more ─────┘     below it    ┘  or long frames are not answered
//! ```
//!
//! Nothing here has a timer: a path is looked at only while there is something long to send over it, and a longer frame
//! asks for its own receipt now and then. Until a size has been answered, and for everything that is not bulk, frames
//! stay within [`PACKET_SAFE_BYTES`]. Only longer ones are sent with "don't fragment": a path narrower than the safe size
//! may fragment it, a longer one is lost and so found out.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::config::{PACKET_MAX_BYTES, PACKET_SAFE_BYTES};
use crate::member::Nid;

/// What is tried, longest first: 48 bytes of IPv6 and UDP below jumbo frames (9,000), Ethernet (1,500), and the usual
/// tunnels (1,420 and 1,360).
const SIZES: [usize; 4] = [PACKET_MAX_BYTES, 1_452, 1_372, 1_312];
/// Peers whose paths are known at once; the one not used for longest gives way and starts again from the safe size.
const PATHS_MAX: usize = 256;
/// A receipt is due by then, and asked for so often at most.
const ANSWER_US: u64 = 500_000;
/// Full frames to one peer, each within [`BULK_US`] of the former, after which it is worth asking.
const BULK_FRAMES: u32 = 16;
const BULK_US: u64 = 1_000_000;
/// Receipts missed in a row: that size does not pass.
const MISSED_MAX: u32 = 2;
/// A path that could carry more by now is tried again after so long.
const AGAIN_US: u64 = 600_000_000;

/// The path to one peer.
#[derive(Debug, Clone, Copy)]
struct Path {
    addr: SocketAddr,
    /// What was answered last; the safe size before that.
    found: usize,
    /// Index into [`SIZES`] of what is tried next; past its end: nothing.
    next: usize,
    /// Receipts missed in a row.
    missed: u32,
    /// When the receipt under way was asked for.
    asked_us: Option<u64>,
    /// When the search begins anew.
    again_us: u64,
    /// Full frames lately, and when the last one was.
    full: u32,
    used_us: u64,
}

/// The paths to the peers that more was to be said to than fits in one frame.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    paths: BTreeMap<Nid, Path>,
}

impl Paths {
    /// Longest frame for a peer to whom there is more to say than fits; and the peer is remembered.
    pub(crate) fn room_for_more(&mut self, nid: Nid, addr: SocketAddr, now_us: u64) -> usize {
        if !self.paths.contains_key(&nid) && self.paths.len() >= PATHS_MAX {
            let oldest = self.paths.iter().min_by_key(|(nid, p)| (p.used_us, **nid));
            if let Some(nid) = oldest.map(|(nid, _)| *nid) {
                self.paths.remove(&nid);
            }
        }
        let path = self.paths.entry(nid).or_insert_with(|| Path::new(addr, now_us));
        if path.addr != addr || now_us >= path.again_us {
            let found = if path.addr == addr { path.found } else { PACKET_SAFE_BYTES };
            *path = Path { found, ..Path::new(addr, now_us) };
        }
        let goes_on = now_us < path.used_us + BULK_US;
        path.full = if goes_on { path.full.saturating_add(1) } else { 1 };
        path.used_us = now_us;
        path.judge(now_us);
        path.found
    }

    /// Whether a frame longer than the safe size is to ask for a receipt, and to which size it is filled up for that:
    /// a receipt for less would say nothing.
    pub(crate) fn asks(&mut self, nid: Nid, now_us: u64) -> Option<usize> {
        let path = self.paths.get_mut(&nid)?;
        if path.found <= PACKET_SAFE_BYTES || path.asked_us.is_some() {
            return None;
        }
        path.asked_us = Some(now_us);
        Some(path.found)
    }

    /// A longer size that is to be tried now with a frame of its own.
    pub(crate) fn probe(&mut self, nid: Nid, now_us: u64) -> Option<usize> {
        let path = self.paths.get_mut(&nid)?;
        let size = SIZES.get(path.next).copied().filter(|size| *size > path.found)?;
        if path.asked_us.is_some() || path.full < BULK_FRAMES {
            return None;
        }
        path.asked_us = Some(now_us);
        Some(size)
    }

    /// A peer has received a frame of this length that asked for a receipt.
    pub(crate) fn answered(&mut self, nid: Nid, len: usize) {
        let Some(path) = self.paths.get_mut(&nid).filter(|p| len >= p.found) else { return };
        path.asked_us = None;
        path.missed = 0;
        // Not more than was tried, whatever is claimed.
        if SIZES.get(path.next).is_some_and(|size| *size <= len) {
            path.found = path.found.max(SIZES.get(path.next).copied().unwrap_or(0));
        }
    }

    /// The kernel refused a datagram of this length: our own link is narrower.
    pub(crate) fn refused(&mut self, addr: SocketAddr, len: usize) {
        for path in self.paths.values_mut().filter(|p| p.addr == addr) {
            path.asked_us = None;
            while SIZES.get(path.next).is_some_and(|size| *size >= len) {
                path.step_down();
            }
        }
    }
}

impl Path {
    fn new(addr: SocketAddr, now_us: u64) -> Path {
        let again_us = now_us + AGAIN_US;
        let found = PACKET_SAFE_BYTES;
        let (next, missed, asked_us, full) = (0, 0, None, 0);
        Path { addr, found, next, missed, asked_us, again_us, full, used_us: now_us }
    }

    /// A receipt that has not come in time counts as missed.
    fn judge(&mut self, now_us: u64) {
        if self.asked_us.is_none_or(|at| now_us < at + ANSWER_US) {
            return;
        }
        self.asked_us = None;
        self.missed += 1;
        if self.missed >= MISSED_MAX {
            self.step_down();
        }
    }

    fn step_down(&mut self) {
        self.found = PACKET_SAFE_BYTES;
        self.next = (self.next + 1).min(SIZES.len());
        self.missed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    /// A path that carries so much, used every 100 ms; the size it ends with, and what was lost on it.
    fn settle(paths: &mut Paths, from_us: u64, carries: usize, time_us: u64) -> (usize, usize) {
        let (nid, mut lost, mut found) = (Nid(7), 0, 0);
        for now_us in (from_us..from_us + time_us).step_by(100_000) {
            for _ in 0..BULK_FRAMES {
                found = paths.room_for_more(nid, addr(1), now_us);
            }
            let asked = paths.asks(nid, now_us).or_else(|| paths.probe(nid, now_us));
            lost += usize::from(found > carries);
            if let Some(size) = asked {
                lost += usize::from(size > carries && size != found);
                if size <= carries {
                    paths.answered(nid, size);
                }
            }
        }
        (found, lost)
    }

    #[test]
    fn the_longest_size_that_passes_is_found_with_few_losses() {
        for (carries, expected) in
            [(9_000, 8_952), (1_472, 1_452), (1_400, 1_372), (1_320, 1_312), (1_280, 1_232)]
        {
            let (found, lost) = settle(&mut Paths::default(), 0, carries, 10 * S);
            assert_eq!(found, expected, "over {carries}");
            assert!(lost <= SIZES.len() * 2, "{lost} lost over {carries}");
        }
    }

    #[test]
    fn a_path_that_becomes_a_black_hole_is_left_within_two_seconds() {
        let mut paths = Paths::default();
        assert_eq!(settle(&mut paths, 0, 9_000, S).0, 8_952);
        let (found, _) = settle(&mut paths, S, 1_300, 2 * S);
        assert_eq!(found, PACKET_SAFE_BYTES);
        // What was lost on the way stays lost; nothing longer is tried again for ten minutes.
        settle(&mut paths, 3 * S, 1_300, 6 * S);
        assert_eq!(settle(&mut paths, 9 * S, 1_300, 60 * S), (PACKET_SAFE_BYTES, 0));
        assert_eq!(settle(&mut paths, 602 * S, 9_000, S).0, 8_952, "then it is");
    }

    #[test]
    fn what_the_kernel_refuses_is_skipped_at_once() {
        let mut paths = Paths::default();
        for _ in 1..BULK_FRAMES {
            paths.room_for_more(Nid(7), addr(1), 0);
        }
        assert_eq!(paths.probe(Nid(7), 0), None, "that little is not worth it");
        paths.room_for_more(Nid(7), addr(1), 0);
        assert_eq!(paths.probe(Nid(7), 0), Some(8_952));
        assert_eq!(paths.probe(Nid(7), 1), None, "one at a time");
        paths.refused(addr(1), 8_952);
        paths.refused(addr(2), 100);
        assert_eq!(paths.probe(Nid(7), 2), Some(1_452));
        paths.answered(Nid(7), 65_000);
        assert_eq!(paths.room_for_more(Nid(7), addr(1), 3), 1_452, "not what was only claimed");
        paths.refused(addr(1), 1_452);
        assert_eq!(paths.room_for_more(Nid(7), addr(1), 4), PACKET_SAFE_BYTES);
        // Another address is another path.
        for _ in 0..BULK_FRAMES {
            assert_eq!(paths.room_for_more(Nid(7), addr(9), 5), PACKET_SAFE_BYTES);
        }
        assert_eq!(paths.probe(Nid(7), 5), Some(8_952));
    }

    #[test]
    fn the_table_is_bounded_and_unasked_receipts_change_nothing() {
        let mut paths = Paths::default();
        for n in 0..1_000u64 {
            paths.room_for_more(Nid(n), addr(1), n);
        }
        assert_eq!(paths.paths.len(), PATHS_MAX);
        assert!(paths.paths.contains_key(&Nid(999)) && !paths.paths.contains_key(&Nid(0)));
        paths.answered(Nid(5_000), 9_000);
        paths.answered(Nid(999), 1_300);
        assert_eq!(paths.room_for_more(Nid(999), addr(1), 2_000), PACKET_SAFE_BYTES);
    }
}
