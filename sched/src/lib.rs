//! Decisions: the app spec, placement, offers, claims and rollouts.
