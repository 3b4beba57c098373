//! When starts are held: a mass failure and a partition look alike, and the heal after one is worse.

use std::collections::{BTreeSet, VecDeque};

use crate::api::{Config, MemberState};
use crate::hash;

/// Losses and rejoins remembered; beyond it the oldest are dropped, which the counts reach long after a
/// mass loss is already declared.
const EVENTS_MAX: usize = 4096;
/// A mass loss is more than this many nodes ...
const MASS_MIN: usize = 3;
/// ... and more than this percentage of the roster.
const MASS_PERCENT: usize = 10;

/// What holds starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// At most half of the known roster lives: this may be the minority.
    Minority { live: usize, roster: usize },
    /// Many were lost at once.
    MassLoss { lost: usize, roster: usize },
    /// No other node was met since the start.
    Alone,
    /// One was lost just now; more may follow.
    RecentLoss,
    /// Nodes came back just now; their claims may not have arrived.
    Rejoin,
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Hold::Minority { live, roster } => write!(
                f,
                "only {live} of {roster} known nodes are alive, which may be the smaller side of a \
                 partition; `quelea forget` removes nodes that will not come back"
            ),
            Hold::MassLoss { lost, roster } => {
                write!(
                    f,
                    "{lost} of {roster} nodes were lost within seconds; waiting for more to show"
                )
            }
            Hold::Alone => write!(f, "this node has not met its flock yet"),
            Hold::RecentLoss => write!(f, "a node was lost a moment ago"),
            Hold::Rejoin => write!(f, "nodes came back a moment ago"),
        }
    }
}

/// Watches losses and rejoins.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// When, and the name's hash: one node lost over and over is no mass loss.
    losses: VecDeque<(u64, u64)>,
    rejoins: VecDeque<(u64, u64)>,
    mass: Option<(u64, usize)>,
}

impl Guard {
    /// Notes a member's change of state. `roster` counts this node and all members not left or forgotten.
    pub(crate) fn member(
        &mut self,
        config: &Config,
        now_us: u64,
        name: &str,
        (old, new): (Option<MemberState>, MemberState),
        roster: usize,
    ) {
        let node = hash::stable(&[name.as_bytes()]);
        let was_live = matches!(old, Some(MemberState::Alive | MemberState::Suspect));
        if was_live && new == MemberState::Dead {
            push(&mut self.losses, now_us, node);
            let lost = within(&self.losses, now_us, config.mass_window_ms);
            if lost > MASS_MIN && lost * 100 > roster * MASS_PERCENT {
                self.mass = Some((now_us + config.mass_hold_ms * 1000, lost));
            }
        }
        if old == Some(MemberState::Dead) && new == MemberState::Alive {
            push(&mut self.rejoins, now_us, node);
        }
    }

    /// What holds starts now, and when that alone would end.
    pub(crate) fn hold(
        &self,
        config: &Config,
        now_us: u64,
        live: usize,
        roster: usize,
    ) -> Option<(Hold, Option<u64>)> {
        if live * 2 <= roster {
            return Some((Hold::Minority { live, roster }, None));
        }
        // Once all are back there is no more to wait for than their claims: see below.
        if let Some((until, lost)) = self.mass
            && now_us < until
            && live < roster
        {
            return Some((Hold::MassLoss { lost, roster }, Some(until)));
        }
        if let Some((last, _)) = self.rejoins.back() {
            let until = last + config.rejoin_quiet_ms * 1000;
            let recent = || within(&self.rejoins, now_us, config.rejoin_quiet_ms);
            // More than 1 % of the roster; in a small flock that is any node.
            if now_us < until && recent() * 100 > roster {
                return Some((Hold::Rejoin, Some(until)));
            }
        }
        if let Some((last, _)) = self.losses.back() {
            let until = last + config.loss_hold_ms * 1000;
            if now_us < until {
                return Some((Hold::RecentLoss, Some(until)));
            }
        }
        None
    }
}

fn push(events: &mut VecDeque<(u64, u64)>, now_us: u64, node: u64) {
    if events.len() == EVENTS_MAX {
        events.pop_front();
    }
    events.push_back((now_us, node));
}

/// Different nodes within a window.
fn within(events: &VecDeque<(u64, u64)>, now_us: u64, window_ms: u64) -> usize {
    let from = now_us.saturating_sub(window_ms * 1000);
    let recent = events.iter().rev().take_while(|(at, _)| *at > from || from == 0);
    recent.map(|(_, node)| node).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;

    fn lose(guard: &mut Guard, now: u64, n: usize, roster: usize) {
        for i in 0..n {
            let change = (Some(MemberState::Alive), MemberState::Dead);
            guard.member(&Config::new("a"), now, &format!("n{i}"), change, roster);
        }
    }

    fn hold(guard: &Guard, now: u64, live: usize, roster: usize) -> Option<Hold> {
        guard.hold(&Config::new("a"), now, live, roster).map(|(h, _)| h)
    }

    #[test]
    fn a_three_node_flock_goes_on_with_two() {
        let mut g = Guard::default();
        lose(&mut g, 100 * S, 1, 3);
        assert_eq!(hold(&g, 100 * S, 2, 3), Some(Hold::RecentLoss));
        assert_eq!(hold(&g, 101 * S + S / 2, 2, 3), None, "free after 1.5 s");
        lose(&mut g, 200 * S, 1, 3);
        assert!(
            matches!(hold(&g, 300 * S, 1, 3), Some(Hold::Minority { .. })),
            "one of three waits"
        );
    }

    #[test]
    fn half_is_a_minority_on_both_sides() {
        let g = Guard::default();
        assert!(matches!(hold(&g, 0, 2, 4), Some(Hold::Minority { .. })));
        assert_eq!(hold(&g, 0, 3, 4), None);
        assert_eq!(hold(&g, 0, 1, 1), None, "a flock of one is whole");
    }

    #[test]
    fn a_mass_loss_waits_twenty_seconds() {
        let mut g = Guard::default();
        lose(&mut g, 100 * S, 4, 20);
        assert!(matches!(hold(&g, 119 * S, 16, 20), Some(Hold::MassLoss { lost: 4, .. })));
        assert_eq!(hold(&g, 120 * S, 16, 20), None);
        assert!(!matches!(hold(&g, 110 * S, 20, 20), Some(Hold::MassLoss { .. })), "all are back");
        // A rack of three out of nine is no mass loss; nor is 2.5 % of a large flock.
        let mut g = Guard::default();
        lose(&mut g, 100 * S, 3, 9);
        assert_eq!(hold(&g, 102 * S, 6, 9), None);
        let mut g = Guard::default();
        lose(&mut g, 100 * S, 25, 1000);
        assert_eq!(hold(&g, 102 * S, 975, 1000), None);
    }

    #[test]
    fn rejoining_nodes_get_three_quiet_seconds() {
        let c = Config::new("a");
        let mut g = Guard::default();
        let back = (Some(MemberState::Dead), MemberState::Alive);
        g.member(&c, 100 * S, "b", back, 3);
        g.member(&c, 102 * S, "b", back, 3);
        assert_eq!(hold(&g, 104 * S, 3, 3), Some(Hold::Rejoin));
        assert_eq!(hold(&g, 105 * S, 3, 3), None);
        g.member(&c, 200 * S, "d", (None, MemberState::Alive), 3);
        assert_eq!(hold(&g, 200 * S, 3, 3), None, "a first join holds nobody");
    }
}
