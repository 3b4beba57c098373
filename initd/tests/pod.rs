//! Pods that really run.
#![allow(missing_docs)]

mod common;

use std::time::Duration;

use common::{Bed, LONG, eventually, finish, root_or_skip};
use initd::pod::{Check, ContainerSpec, Kind, Probe, Restart, Stop};
use initd::shim::{ContainerState, Event, PodPhase, Shim};

#[test]
fn a_program_runs_logs_and_ends() {
    if !root_or_skip("a_program_runs_logs_and_ends") {
        return;
    }
    let bed = Bed::new("runs");
    let (exit, log) = bed.run(bed.container(&["echo", "hello", "pod"]));
    assert_eq!(exit.code, Some(0));
    assert_eq!(log, "hello pod\n");
    assert!(!bed.pod_dir().join("shim.sock").exists());
    let status = initd::shim::last_status(&bed.pod_dir()).expect("status");
    assert_eq!(status.phase, PodPhase::Stopped);
    assert_eq!(status.containers[0].last_exit, Some(exit));
}
