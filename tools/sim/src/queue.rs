//! Events in order of time; equal times in the order they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// What the heap moves: small, whatever the event is.
#[derive(PartialEq, Eq)]
struct Entry {
    at: u64,
    number: u64,
    slot: usize,
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    // The heap gives its greatest: the earliest has to be that.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The events to come.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Entry>,
    number: u64,
    events: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), number: 0, events: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn push(&mut self, at: u64, event: T) {
        self.number += 1;
        let slot = self.free.pop().unwrap_or(self.events.len());
        match self.events.get_mut(slot) {
            Some(place) => *place = Some(event),
            None => self.events.push(Some(event)),
        }
        self.heap.push(Entry { at, number: self.number, slot });
    }

    /// The earliest event, if it is not after `end`.
    pub(crate) fn pop(&mut self, end: u64) -> Option<(u64, T)> {
        if self.heap.peek()?.at > end {
            return None;
        }
        let entry = self.heap.pop()?;
        let event = self.events.get_mut(entry.slot)?.take()?;
        self.free.push(entry.slot);
        Some((entry.at, event))
    }
}
