//! Packets: pod networks, the encrypted overlay and address management.
