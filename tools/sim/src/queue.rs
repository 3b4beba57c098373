//! Events in order of time; equal times in the order they were put in.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

struct Entry<T> {
    at: u64,
    number: u64,
    event: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    // The heap gives its greatest: the earliest has to be that.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// The events to come.
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Entry<T>>,
    number: u64,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new(), number: 0 }
    }

    pub(crate) fn push(&mut self, at: u64, event: T) {
        self.number += 1;
        self.heap.push(Entry { at, number: self.number, event });
    }

    /// The earliest event, if it is not after `end`.
    pub(crate) fn pop(&mut self, end: u64) -> Option<(u64, T)> {
        if self.heap.peek()?.at > end {
            return None;
        }
        self.heap.pop().map(|e| (e.at, e.event))
    }
}
