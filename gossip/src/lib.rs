//! Knowledge: SWIM membership, the replicated map and authenticated frames.
