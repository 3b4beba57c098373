//! What proves Quelea on a real kernel: QEMU clusters.
