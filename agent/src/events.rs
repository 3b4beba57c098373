//! What happened on this node, for `quelea events` and `why`: a ring of the newest.

use std::collections::VecDeque;

use crate::api::types::Event;

/// Events kept; the oldest go first.
pub const EVENTS_MAX: usize = 1024;

/// The ring.
#[derive(Debug, Default)]
pub struct Events {
    ring: VecDeque<Event>,
    next: u64,
}

impl Events {
    /// Appends one, and writes it to the agent's log as well.
    pub fn add(&mut self, at_ms: u64, about: impl Into<String>, message: impl Into<String>) {
        let event =
            Event { cursor: self.next, at_ms, about: about.into(), message: message.into() };
        tracing::info!(about = %event.about, "{}", event.message);
        self.next += 1;
        if self.ring.len() == EVENTS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(event);
    }

    /// Those at or after a cursor, oldest first.
    pub fn since(&self, cursor: u64) -> Vec<Event> {
        self.ring.iter().filter(|event| event.cursor >= cursor).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_cursors_stay() {
        let mut events = Events::default();
        for n in 0..EVENTS_MAX + 5 {
            events.add(0, "x", n.to_string());
        }
        let all = events.since(0);
        assert_eq!(all.len(), EVENTS_MAX);
        assert_eq!(all.first().map(|e| e.cursor), Some(5));
        assert_eq!(events.since(EVENTS_MAX as u64 + 4).len(), 1);
    }
}
