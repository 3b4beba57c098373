//! News still to be passed on, least passed on first.

use std::collections::{BTreeMap, BTreeSet};

use crate::member::Nid;

/// Only names are queued; what is said about them is taken from the table when a packet leaves, so that it is never
/// older than what we know. Bounded by the table.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: BTreeSet<(u32, u64, Nid)>,
    index: BTreeMap<Nid, (u32, u64)>,
    stamp: u64,
}

impl Queue {
    /// Puts news about a member first in line.
    pub(crate) fn push(&mut self, nid: Nid) {
        self.remove(nid);
        // The newest first among those equally often sent.
        self.stamp += 1;
        let place = (0, u64::MAX - self.stamp);
        self.index.insert(nid, place);
        self.order.insert((place.0, place.1, nid));
    }

    pub(crate) fn remove(&mut self, nid: Nid) {
        if let Some((sends, stamp)) = self.index.remove(&nid) {
            self.order.remove(&(sends, stamp, nid));
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// In the order of sending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Nid> {
        self.order.iter().map(|(_, _, nid)| *nid)
    }

    /// Counts one sending of each and drops what was sent `limit` times.
    pub(crate) fn sent(&mut self, nids: &[Nid], limit: u32) {
        for nid in nids {
            let Some(place) = self.index.get_mut(nid) else { continue };
            self.order.remove(&(place.0, place.1, *nid));
            place.0 += 1;
            if place.0 >= limit {
                self.index.remove(nid);
            } else {
                self.order.insert((place.0, place.1, *nid));
            }
        }
    }
}
