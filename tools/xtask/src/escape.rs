//! `cargo xtask escape`: every way out of a container (docs/escapes.md), here in namespaces and on a machine with real cgroups.

use anyhow::Result;
use clap::Args;

use crate::{qemu, run};

/// What the tries are compared with, and what they call. (A path stands for itself.)
const PACKAGES: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("crun", "crun"),
    ("runc", "runc"),
    ("cc", "gcc"),
    ("/usr/include/seccomp.h", "libseccomp-dev"),
];

/// Test programs of `initd`: the ways out, the peers, the filter's oracle, limits, leaks, bad programs.
const TESTS: &[&str] =
    &["items", "escape", "hostile", "isolation", "seccomp", "limits", "leaks", "bad"];

/// What is asked for.
#[derive(Args)]
pub(crate) struct Asked {
    /// Only in namespaces on this machine
    #[arg(long)]
    here: bool,
    /// Also start and stop ten thousand pods and count what is left; takes minutes
    #[arg(long)]
    ten_thousand: bool,
    /// Cargo profile of what the machine runs: `fast` builds in a tenth of the time
    #[arg(long, default_value = "release")]
    profile: String,
}

/// Runs the tests, then the scenario.
pub(crate) fn escape(asked: &Asked) -> Result<()> {
    run::install(PACKAGES)?;
    let mut here = run::cargo(&["test", "--locked", "-p", "initd"]);
    for test in TESTS {
        here.args(["--test", test]);
    }
    // One after the other: they count what is left in this process and on this machine.
    here.args(["--", "--test-threads=1"]).env("QUELEA_NO_SKIP", "1");
    run::check(&mut here)?;
    if asked.ten_thousand {
        let args = ["test", "--locked", "-p", "initd", "--test", "leaks", "--", "--ignored"];
        run::check(run::cargo(&args).arg("--nocapture"))?;
    }
    if asked.here {
        return Ok(());
    }
    qemu::scenario("escape_suite_real_cgroups", &asked.profile)
}
