//! How one container comes to be.

use serde::{Deserialize, Serialize};

/// The step of a launch at which something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Step {
    Spec,
    Cgroup,
    Rootfs,
    User,
    Log,
    Clone,
    Userns,
    Propagation,
    Proc,
    Sys,
    Dev,
    Mount,
    Device,
    Mask,
    Pivot,
    Rlimit,
    Bounding,
    Ids,
    Workdir,
    Caps,
    NoNewPrivs,
    Seccomp,
    Stdio,
    Exec,
    Setns,
}
