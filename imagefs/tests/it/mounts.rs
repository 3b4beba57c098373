//! Assembling, sharing, recovering.
