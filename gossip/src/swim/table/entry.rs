//! One member as a table holds it.

use crate::frame::Window;
use crate::member::{Member, Nid, State};
use crate::message::Accusers;
use crate::outbox::Dest;
use crate::wire::mix;

/// Not among the live ones.
pub(super) const NOT_LIVE: u32 = u32::MAX;
/// In place of incarnation and state in the summary of who is only remembered; no incarnation is that high.
const REMEMBERED: u64 = u64::MAX;
/// Names up to this long stand in the entry itself.
const INLINE_BYTES: usize = 16;

/// A running suspicion.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Suspicion {
    pub(crate) since_us: u64,
    pub(crate) deadline_us: u64,
    pub(crate) min_us: u64,
    pub(crate) max_us: u64,
    pub(crate) accusers: Accusers,
    /// Our own probe failed since it began.
    pub(crate) verified: bool,
    /// It began with a rumour of death: only a failed probe of our own ends it so.
    pub(crate) rumoured: bool,
    /// Who has not failed to reach it waits for the word of those who have so long before asking as well.
    pub(crate) grace_us: u64,
}

/// One member.
///
/// A large flock's tables fit no cache, and most of what is heard is known: what tells that (whose name it is, and how new
/// what we hold) is in the first line of 64 bytes, what it takes to pass it on in the second.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    pub(super) nid: Nid,
    /// Its place in line to be passed on; 0 when it is in no line.
    pub(crate) news: u64,
    pub(super) live_at: u32,
    /// From a disk, ours or a peer's, and confirmed by nobody yet: passed on as a hint only.
    pub(crate) remembered: bool,
    /// How often others said what we hold since we began to pass it on.
    pub(crate) heard: u8,
    /// Of the name; the longer ones are not held inline.
    name_bytes: u8,
    inline: [u8; INLINE_BYTES],
    pub(crate) member: Member,
    pub(crate) suspicion: Option<Box<Suspicion>>,
    pub(crate) rttvar_us: u32,
    /// Boot id and counters of its frames.
    pub(crate) boot: u64,
    pub(crate) changed_us: u64,
    pub(crate) window: Window,
}

impl Entry {
    pub(super) fn new(nid: Nid, member: Member, remembered: bool, now_us: u64) -> Entry {
        let mut inline = [0; INLINE_BYTES];
        for (to, from) in inline.iter_mut().zip(member.name.bytes()) {
            *to = from;
        }
        Entry {
            nid,
            news: 0,
            live_at: NOT_LIVE,
            remembered,
            heard: 0,
            // Names are bounded to 63 bytes.
            name_bytes: member.name.len() as u8,
            inline,
            member,
            suspicion: None,
            rttvar_us: 0,
            boot: 0,
            changed_us: now_us,
            window: Window::default(),
        }
    }

    /// Whether this is its name.
    pub(super) fn is_named(&self, name: &str) -> bool {
        if name.len() != usize::from(self.name_bytes) {
            return false;
        }
        match self.inline.get(..name.len()) {
            // Shorter than a call to compare them.
            Some(inline) => inline.iter().zip(name.as_bytes()).all(|(a, b)| a == b),
            None => *self.member.name == *name,
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        let inline = self.inline.get(..usize::from(self.name_bytes));
        inline.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or(&self.member.name)
    }

    /// Where and for whom to seal.
    pub(crate) fn dest(&self, nid: Nid) -> Dest {
        let to = crate::frame::Binding::To { nid, generation: self.member.generation };
        Dest { addr: self.member.addr, to }
    }

    pub(super) fn contribution(&self, nid: Nid) -> u64 {
        let m = &self.member;
        if self.remembered {
            // Which incarnation a disk has seen last says nothing.
            return mix(nid.0, mix(m.generation, REMEMBERED));
        }
        // A suspicion is passing weather and not worth a table comparison.
        let class = match m.state {
            State::Alive | State::Suspect => 0,
            State::Dead => 1,
            State::Left => 2,
        };
        mix(nid.0, mix(m.generation, m.incarnation << 2 | class))
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn what_is_asked_most_is_in_the_first_line() {
        let member = offset_of!(Entry, member);
        assert!(member + offset_of!(Member, state) < 64);
        assert!(member + offset_of!(Member, incarnation) < 64);
        assert!(member + offset_of!(Member, addr) < 128);
        assert!(size_of::<Entry>() <= 192, "{}", size_of::<Entry>());
        assert_eq!(size_of::<Option<Entry>>(), size_of::<Entry>());
    }
}
