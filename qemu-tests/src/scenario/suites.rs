//! The test programs of other crates, run on a kernel with everything: real cgroups, real memory limits.

use super::{Outcome, passed};
use crate::{Cluster, Env, env::GUEST, figures::Figure};
use anyhow::{Context as _, Result, bail, ensure};
use images::cpio::Archive;
use std::{path::Path, process::Command};

/// How long one program of tests may take on an idle machine.
const SUITE_MS: u64 = 240_000;

/// A test program that cargo has built.
struct Program {
    name: String,
    bytes: Vec<u8>,
}

/// Builds the test programs of a package and the binaries they start, which they know by their paths here: the
/// profile that `cargo test` and nextest use, so that they are there already where those have run.
fn build(package: &str, tests: &[&str], files: &mut Archive) -> Result<Vec<Program>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--quiet", "--no-run", "--message-format=json", "--package", package]);
    for test in tests {
        command.args(["--test", test]);
    }
    let out = command
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("start cargo")?;
    ensure!(out.status.success(), "cargo test: {}", String::from_utf8_lossy(&out.stderr));
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        let Some(path) = message["executable"].as_str() else { continue };
        let name = message["target"]["name"].as_str().context("target")?;
        if message["target"]["kind"][0] == "test" {
            programs.push(Program { name: name.into(), bytes: std::fs::read(path)? });
        } else {
            files.file_from(path, 0o755, Path::new(path))?;
        }
    }
    ensure!(programs.len() == tests.len(), "cargo built {} of {tests:?}", programs.len());
    Ok(programs)
}

/// `initd`'s own tests: every way out of a container, leaks, limits. Here nothing of them may be skipped.
pub(super) fn escape_suite_real_cgroups(env: &Env, test: &str) -> Result<Outcome> {
    let mut files = Archive::new();
    let programs = build("initd", &["escape", "leaks"], &mut files)?;
    for program in &programs {
        files.file(&format!("usr/lib/suite/{}", program.name), 0o755, program.bytes.clone())?;
    }
    files.symlink("usr/bin/ip", &format!("/{GUEST}"))?;
    let mut cluster = Cluster::builder(env, test).memory_mib(256).extra(files).start()?;
    cluster.network_up()?;
    let mut ctl = cluster.vms[0].ctl()?;
    let mut count = 0;
    for program in &programs {
        let argv = [&format!("/usr/lib/suite/{}", program.name), "--test-threads=1", "--nocapture"];
        let answer = ctl.exec_for(&argv, SUITE_MS)?;
        let text = format!("{}{}", answer.out, answer.err);
        if answer.code != 0 {
            bail!("{} ended with {}:\n{text}", program.name, answer.code);
        }
        if let Some(line) = text.lines().find(|line| line.contains("SKIP")) {
            bail!("{} skipped a test on a kernel that has everything: {line}", program.name);
        }
        let result = text.lines().find(|line| line.starts_with("test result: ok. "));
        let passed = result.and_then(|line| line.split(' ').nth(3)?.parse::<u32>().ok());
        count += passed.with_context(|| format!("{}: no result in {text}", program.name))?;
    }
    ensure!(count > 0, "no test ran");
    // No promise: it tells that they ran.
    let figure = Figure {
        better: "higher",
        ..Figure::lower("qemu_suites", "initd_tests_passed", f64::from(count), "tests", None)
    };
    Ok(passed(env, cluster, vec![figure]))
}
