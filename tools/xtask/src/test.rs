//! `cargo xtask test`: everything that CI runs, stage by stage, and one summary line at the end.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::{qemu, run};

struct Stage {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<Outcome>,
}

enum Outcome {
    Passed,
    Skipped(&'static str),
}

const STAGES: &[Stage] = &[
    Stage { name: "fmt", what: "the code is formatted", run: fmt },
    Stage { name: "clippy", what: "no lint, anywhere", run: clippy },
    Stage { name: "deny", what: "licences, sources and duplicates of what we build on", run: deny },
    Stage { name: "doc", what: "the documentation builds, its links lead somewhere", run: doc },
    Stage { name: "unit", what: "all tests, those that need root too", run: unit },
    Stage { name: "sim", what: "whole clusters on virtual time, from fixed seeds", run: sim },
    Stage { name: "demo", what: "the demo, with its checks", run: demo },
    Stage { name: "qemu", what: "the smoke set on machines of their own kernel", run: qemu },
];

/// Names the stages.
pub(crate) fn list() {
    for stage in STAGES {
        println!("{:8} {}", stage.name, stage.what);
    }
}

/// Runs the stages named, or all.
pub(crate) fn test(wanted: &[String]) -> Result<()> {
    if let Some(odd) = wanted.iter().find(|name| !STAGES.iter().any(|s| s.name == *name)) {
        bail!("no stage {odd:?}; `cargo xtask test --list` names them");
    }
    run::install(&[
        ("ip", "iproute2"),
        // What `initd`'s tests of state disks make, to be known or refused.
        ("mkfs.ext4", "e2fsprogs"),
        ("mkfs.vfat", "dosfstools"),
        ("mkfs.xfs", "xfsprogs"),
        ("parted", "parted"),
        ("losetup", "mount"),
        // Namespaces of users and mounts, made and entered from outside.
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        // What `imagefs` compares its readers with.
        ("tar", "tar"),
        ("python3", "python3"),
        ("zstd", "zstd"),
        // What `initd` compares its isolation and its filters with. (A path stands for itself.)
        ("crun", "crun"),
        ("runc", "runc"),
        ("cc", "gcc"),
        ("/usr/include/seccomp.h", "libseccomp-dev"),
    ])?;
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let mut lines = Vec::new();
    for stage in STAGES.iter().filter(|s| wanted.is_empty() || wanted.iter().any(|w| w == s.name)) {
        println!("\n==== {}: {}", stage.name, stage.what);
        let start = Instant::now();
        let word = match (stage.run)() {
            Ok(Outcome::Passed) => {
                passed += 1;
                "passed".to_owned()
            }
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                format!("skipped: {why}")
            }
            Err(error) => {
                failed += 1;
                println!("{error:#}");
                "FAILED".to_owned()
            }
        };
        lines.push(format!("{:8} {:7.1} s  {word}", stage.name, start.elapsed().as_secs_f64()));
    }
    println!("\n{}", lines.join("\n"));
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} stages failed");
    }
    Ok(())
}

fn passed(command: &mut Command) -> Result<Outcome> {
    run::check(command).map(|()| Outcome::Passed)
}

fn fmt() -> Result<Outcome> {
    passed(&mut run::cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<Outcome> {
    let args =
        ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
    passed(&mut run::cargo(&args))
}

fn deny() -> Result<Outcome> {
    if !run::is_there("cargo-deny") {
        return Ok(Outcome::Skipped("cargo-deny is not installed (cargo install cargo-deny)"));
    }
    // Advisories come from a repository that a closed network does not reach; the others need none.
    passed(&mut run::cargo(&["deny", "--locked", "check", "bans", "licenses", "sources"]))
}

fn doc() -> Result<Outcome> {
    let mut doc = run::cargo(&["doc", "--workspace", "--no-deps", "--locked", "--quiet"]);
    passed(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

fn unit() -> Result<Outcome> {
    if !run::is_there("cargo-nextest") {
        bail!("cargo-nextest is missing: cargo install cargo-nextest --locked");
    }
    let args = ["nextest", "run", "--workspace", "--locked", "--no-fail-fast"];
    // What is skipped has failed, but for what `tools/skip` lists.
    passed(run::cargo(&args).env("QUELEA_NO_SKIP", "1"))
}

fn sim() -> Result<Outcome> {
    crate::sim::stage().map(|()| Outcome::Passed)
}

fn qemu() -> Result<Outcome> {
    qemu::smoke().map(|()| Outcome::Passed)
}

fn demo() -> Result<Outcome> {
    crate::demo::demo(false, true).map(|()| Outcome::Passed)
}
