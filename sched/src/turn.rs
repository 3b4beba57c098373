//! What one step works with: the time, a random source, the view, and where its effects go.

use std::collections::VecDeque;

use rand::Rng;

use crate::api::{Config, Event, MemberState, Output};
use crate::msg::Message;
use crate::view::{Node, View};

/// One step's surroundings.
pub(crate) struct Turn<'a> {
    pub(crate) config: &'a Config,
    pub(crate) now_us: u64,
    pub(crate) wall_ms: u64,
    pub(crate) rng: &'a mut dyn Rng,
    pub(crate) view: &'a mut View,
    pub(crate) out: &'a mut Vec<Output>,
    /// Offers of this node that are not answered yet, over all apps.
    pub(crate) in_flight: &'a mut usize,
    /// Whether enough of the flock was heard just now to start something.
    pub(crate) in_contact: bool,
    /// Set when it was not and something is to be started.
    pub(crate) want_contact: &'a mut bool,
    /// Messages of this node to itself, handled within the step.
    pub(crate) local: &'a mut VecDeque<Message>,
}

impl Turn<'_> {
    pub(crate) fn me(&self) -> &str {
        &self.config.node
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.push(Output::Event(event));
    }

    /// Carries a message, to this node itself at once.
    pub(crate) fn send(&mut self, to: &str, message: Message) {
        if to == self.config.node {
            self.local.push_back(message);
            return;
        }
        match message.encode() {
            Ok(bytes) => self.out.push(Output::Send { to: to.to_owned(), bytes }),
            Err(e) => {
                self.event(Event::Malformed { from: self.me().to_owned(), error: e.to_string() })
            }
        }
    }

    /// Carries a message that went unanswered: directly, and through some third node as well. One
    /// direction of one link may be cut for long while everybody is alive.
    pub(crate) fn send_again(&mut self, to: &str, message: Message) {
        let me = self.me().to_owned();
        let others = |(name, n): &(&String, &Node)| {
            n.state == Some(MemberState::Alive) && **name != me && **name != to
        };
        let count = self.view.nodes.iter().filter(others).count() as u64;
        if count > 0 && to != me {
            // Fits: it is below a count of nodes.
            let at = (self.rng.next_u64() % count) as usize;
            let via = self.view.nodes.iter().filter(others).nth(at).map(|(name, _)| name.clone());
            if let (Some(via), Ok(bytes)) = (via, message.encode()) {
                self.send(&via, Message::Forward { origin: me, to: to.to_owned(), bytes });
            }
        }
        self.send(to, message);
    }

    /// Now plus a time with up to half of it again.
    pub(crate) fn after(&mut self, ms: u64) -> u64 {
        self.now_us + self.jitter_us(ms)
    }

    /// A time of `ms` to 1.5 `ms`, in microseconds.
    pub(crate) fn jitter_us(&mut self, ms: u64) -> u64 {
        let us = ms.saturating_mul(1000);
        us.saturating_add(self.rng.next_u64() % (us / 2 + 1))
    }
}

/// `first · 2^(tries-1)`, at most `max`.
pub(crate) fn backoff_ms(first: u64, max: u64, tries: u32) -> u64 {
    first.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(max)
}
