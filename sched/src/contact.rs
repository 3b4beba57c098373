//! Before it starts anything a coordinator makes sure that it still hears the flock.
//!
//! A node that was cut off takes seconds, a lone one much longer, to see the others die, and until then it
//! believes itself in the majority. So it asks those it takes for alive (a sample of them in a large flock)
//! and starts only while so many have answered within the last moments that they and it are more than half
//! of the roster. On a healthy LAN that costs a
//! round trip after an idle time, and nothing while starts go on.

use std::collections::BTreeMap;

use crate::msg::Message;
use crate::turn::Turn;
use crate::view::View;

/// Nodes asked at once; all of them in a small flock.
const SAMPLE_MAX: usize = 15;
/// An answer counts for this long, microseconds.
const FRESH_US: u64 = 2_000_000;
/// The unanswered are asked again after this, milliseconds.
const RESEND_MS: u64 = 80;
/// After this a new sample is taken, microseconds.
const ROUND_US: u64 = 1_000_000;
/// Failing for this long is worth saying, microseconds.
const TELL_US: u64 = 1_500_000;

#[derive(Debug)]
struct Round {
    nonce: u64,
    asked: BTreeMap<String, bool>,
    began_us: u64,
    resend_at: u64,
}

/// Whether enough of the flock was heard just now.
#[derive(Debug, Default)]
pub(crate) struct Contact {
    round: Option<Round>,
    fresh_until: u64,
    failing_since: Option<u64>,
    /// Of the last failed round: answers, and nodes asked; both with this node.
    last: (usize, usize),
}

impl Contact {
    pub(crate) fn is_fresh(&self, now_us: u64, live: usize) -> bool {
        live <= 1 || now_us < self.fresh_until
    }

    /// What to say when it fails for longer than a moment.
    pub(crate) fn trouble(&self, now_us: u64) -> Option<String> {
        let since = self.failing_since?;
        let (answered, asked) = self.last;
        (now_us >= since + TELL_US).then(|| {
            format!("only {answered} of {asked} nodes that should be alive answer this one")
        })
    }

    /// This node does not know what the past is worth: ask again before the next start.
    pub(crate) fn forget(&mut self) {
        self.round = None;
        self.fresh_until = 0;
    }

    /// Something is to be started: asks the flock, unless that is under way.
    pub(crate) fn want(&mut self, turn: &mut Turn<'_>) {
        self.failing_since.get_or_insert(turn.now_us);
        if self.round.is_some() {
            return;
        }
        let me = turn.me().to_owned();
        let mut others: Vec<String> = turn
            .view
            .nodes
            .iter()
            .filter(|(name, n)| n.live() && **name != me)
            .map(|(name, _)| name.clone())
            .collect();
        // The first of a shuffle: a sample in which every node is equally likely.
        let sample = others.len().min(SAMPLE_MAX);
        for i in 0..sample {
            let rest = (others.len() - i) as u64;
            let at = i + (turn.rng.next_u64() % rest) as usize;
            others.swap(i, at);
        }
        others.truncate(sample);
        let asked = others.into_iter().map(|name| (name, false)).collect();
        let (nonce, began_us) = (turn.rng.next_u64(), turn.now_us);
        self.round = Some(Round { nonce, asked, began_us, resend_at: began_us });
        self.timer(turn);
    }

    /// Asks the unanswered again, and ends a round that took too long.
    pub(crate) fn timer(&mut self, turn: &mut Turn<'_>) {
        let Some(mut round) = self.round.take() else { return };
        if turn.now_us >= round.began_us + ROUND_US {
            let answered = round.asked.values().filter(|a| **a).count();
            self.last = (answered + 1, round.asked.len() + 1);
            return;
        }
        if turn.now_us >= round.resend_at {
            for (name, _) in round.asked.iter().filter(|(_, answered)| !**answered) {
                turn.send(name, Message::Ping { nonce: round.nonce });
            }
            round.resend_at = turn.after(RESEND_MS);
        }
        self.round = Some(round);
    }

    /// A node answered. True: enough have.
    pub(crate) fn answered(&mut self, now_us: u64, view: &View, from: &str, nonce: u64) -> bool {
        let Some(round) = self.round.as_mut().filter(|r| r.nonce == nonce) else { return false };
        let Some(answered) = round.asked.get_mut(from) else { return false };
        *answered = true;
        let yes = round.asked.values().filter(|a| **a).count() + 1;
        // The share of the sample that answered, of all that should be alive, against half the roster.
        if yes * view.live() * 2 <= (round.asked.len() + 1) * view.roster() {
            return false;
        }
        self.round = None;
        self.failing_since = None;
        self.fresh_until = now_us + FRESH_US;
        true
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.round.as_ref().map(|r| r.resend_at.min(r.began_us + ROUND_US))
    }
}
