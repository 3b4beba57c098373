//! The anti-replay window (RFC 6479): a ring of words, so that it moves without shifting.

/// Packets behind the newest one that are still accepted once.
pub const WINDOW_PACKETS: u64 = 8_192;

/// One word more than the window, so that the newest word may be half-filled.
const WORDS: usize = WINDOW_PACKETS as usize / 64 + 1;

/// Which counters of a session were seen. Starts empty; 1 KiB.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// One above the highest counter seen.
    next: u64,
    bits: [u64; WORDS],
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self { next: 0, bits: [0; WORDS] }
    }
}

impl ReplayWindow {
    /// Whether this counter is new. Changes nothing, so that it may be asked before the packet is authenticated.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW_PACKETS && self.word(counter) & bit(counter) == 0
    }

    /// Marks the counter of an authenticated packet; `false` if it was seen or is too old.
    pub fn commit(&mut self, counter: u64) -> bool {
        if !self.is_new(counter) || counter == u64::MAX {
            return false;
        }
        if counter >= self.next {
            let (old, new) = (self.next.saturating_sub(1) / 64, counter / 64);
            // Words between the old and the new highest one hold counters of a lap ago.
            for word in 1..=(new - old).min(WORDS as u64) {
                if let Some(w) = self.bits.get_mut(slot(old + word)) {
                    *w = 0;
                }
            }
            self.next = counter + 1;
        }
        if let Some(w) = self.bits.get_mut(slot(counter / 64)) {
            *w |= bit(counter);
        }
        true
    }

    fn word(&self, counter: u64) -> u64 {
        self.bits.get(slot(counter / 64)).copied().unwrap_or(0)
    }
}

fn slot(word: u64) -> usize {
    (word % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn edges() {
        let mut w = ReplayWindow::default();
        assert!(w.commit(0) && !w.commit(0));
        assert!(w.commit(WINDOW_PACKETS));
        assert!(!w.is_new(0), "seen, and one too old");
        assert!(w.commit(1) && !w.commit(1));
        assert!(w.commit(u64::MAX - 1));
        assert!(!w.commit(u64::MAX), "the nonce space ends before");
        assert!(w.commit(u64::MAX - WINDOW_PACKETS + 3));
        assert!(!w.is_new(u64::MAX - 1 - WINDOW_PACKETS));
    }

    proptest! {
        /// Agrees with a set that remembers everything.
        #[test]
        fn as_a_set(steps in proptest::collection::vec((0u64..4, 0u64..20_000), 1..300)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut base = 0u64;
            for (kind, value) in steps {
                let counter = match kind {
                    0 => { base += value; base }
                    1 => base.saturating_sub(value),
                    2 => base.saturating_sub(value % 70),
                    _ => base + value % 70,
                };
                let newest = seen.last().copied();
                let too_old = newest.is_some_and(|n: u64| n >= counter && n + 1 - counter > WINDOW_PACKETS);
                let expect = !too_old && !seen.contains(&counter);
                prop_assert_eq!(window.is_new(counter), expect);
                prop_assert_eq!(window.commit(counter), expect);
                if expect { seen.insert(counter); }
            }
        }
    }
}
