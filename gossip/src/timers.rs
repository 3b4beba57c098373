//! Deadlines of a core.

use std::collections::BTreeSet;

/// Deadlines in order. Cancelling is the owner's business: what fires is compared with what the owner expects, and is
/// ignored when it expects something else.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    due: BTreeSet<(u64, T)>,
}

impl<T: Ord + Copy> Timers<T> {
    pub(crate) fn new() -> Timers<T> {
        Timers { due: BTreeSet::new() }
    }

    pub(crate) fn set(&mut self, at_us: u64, what: T) {
        self.due.insert((at_us, what));
    }

    pub(crate) fn cancel(&mut self, at_us: u64, what: T) {
        self.due.remove(&(at_us, what));
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn pop(&mut self, now_us: u64) -> Option<(u64, T)> {
        let first = *self.due.first()?;
        if first.0 > now_us {
            return None;
        }
        self.due.remove(&first);
        Some(first)
    }
}
