//! quelead: what a machine runs. Wires gossip, sched, initd, imagefs and netshim.
