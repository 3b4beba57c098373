//! Processes: PID 1, pod shims, container launch and isolation.
