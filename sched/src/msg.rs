//! Unicast messages between coordinators and nodes.

/// Bytes of one message: it travels in one datagram.
pub const MESSAGE_MAX: usize = 1_100;
