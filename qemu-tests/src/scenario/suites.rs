//! The test programs of other crates, run on a kernel with everything: real cgroups, real limits, nothing else running.

use super::{Outcome, passed};
use crate::{Cluster, Env, disk::Disk, env::GUEST, figures::Figure};
use anyhow::{Context as _, Result, bail, ensure};
use images::cpio::Archive;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// How long one program of tests may take on an idle machine.
const SUITE_MS: u64 = 240_000;

/// Test programs of `initd`, and which of their tests; all when none is named.
pub(super) const SUITES: &[(&str, &[&str])] = &[
    ("escape", &[]),
    ("hostile", &[]),
    ("limits", &[]),
    ("leaks", &[]),
    // What would fill the node.
    ("bad", &["a_flood", "a_full"]),
    ("pod", &["a_fork_bomb"]),
];

/// For the tests: they may count everything there is; what is repeated is repeated less, as emulation is slow; a disk that may be
/// written to; three pages of 2 MiB more than a test takes.
const ARGS: &str = "QUELEA_ALONE=1 QUELEA_TEST_PERCENT=16 QUELEA_TEST_DISK=/dev/vda hugepages=7";

/// A test program that cargo has built.
struct Program {
    name: String,
    bytes: Vec<u8>,
}

/// A program without what only a debugger reads: emulated machines have little memory.
fn stripped(path: &Path) -> Result<Vec<u8>> {
    let out = std::env::temp_dir().join(format!("quelea-stripped-{}", std::process::id()));
    let done = Command::new("strip").arg("-o").args([&out, path]).status();
    let bytes = if done.is_ok_and(|status| status.success()) {
        std::fs::read(&out)
    } else {
        std::fs::read(path)
    };
    let _ = std::fs::remove_file(&out);
    bytes.with_context(|| format!("read {}", path.display()))
}

/// Builds the test programs of a package and the binaries they start, which they know by their paths here: the
/// profile that `cargo test` and nextest use, so that they are there already where those have run.
fn build<'t>(
    package: &str,
    tests: impl Iterator<Item = &'t str>,
    files: &mut Archive,
) -> Result<Vec<Program>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--quiet", "--no-run", "--message-format=json", "--package", package]);
    let mut wanted = 0;
    for test in tests {
        command.args(["--test", test]);
        wanted += 1;
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
        let bytes = stripped(Path::new(path))?;
        if message["target"]["kind"][0] == "test" {
            programs.push(Program { name: name.into(), bytes });
        } else {
            files.file(path, 0o755, bytes)?;
        }
    }
    ensure!(programs.len() == wanted, "cargo built {} of {wanted} programs", programs.len());
    Ok(programs)
}

/// `initd`'s own tests: every way out of a container, leaks, limits. Here nothing of them may be skipped.
pub(super) fn escape_suite_real_cgroups(env: &Env, test: &str) -> Result<Outcome> {
    let mut files = Archive::new();
    let programs = build("initd", SUITES.iter().map(|(name, _)| *name), &mut files)?;
    for program in &programs {
        files.file(&format!("usr/lib/suite/{}", program.name), 0o755, program.bytes.clone())?;
    }
    files.symlink("usr/bin/ip", &format!("/{GUEST}"))?;
    let builder = Cluster::builder(env, test).memory_mib(288).args(ARGS).extra(files);
    // Two processors, for those that may use one only.
    let mut cluster = builder.qemu(&["-smp", "2"]).disk(&Disk::virtio(16)).start()?;
    cluster.network_up()?;
    let mut ctl = cluster.vms[0].ctl()?;
    let (mut count, mut times) = (0, Vec::new());
    for (name, tests) in SUITES {
        let path = format!("/usr/lib/suite/{name}");
        let mut argv = vec![path.as_str(), "--test-threads=1", "--nocapture"];
        argv.extend(*tests);
        let begun = Instant::now();
        let answer = ctl.exec_for(&argv, SUITE_MS)?;
        times.push((name, begun.elapsed()));
        let text = format!("{}{}", answer.out, answer.err);
        if answer.code != 0 {
            bail!("{name} ended with {}:\n{text}", answer.code);
        }
        if let Some(line) = text.lines().find(|line| line.contains("SKIP")) {
            bail!("{name} skipped a test on a kernel that has everything: {line}");
        }
        std::fs::write(cluster.dir.join(format!("{name}.log")), &text)?;
        let result = text.lines().find(|line| line.starts_with("test result: ok. "));
        let passed = result.and_then(|line| line.split(' ').nth(3)?.parse::<u32>().ok());
        let passed = passed.with_context(|| format!("{name}: no result in {text}"))?;
        ensure!(passed as usize >= tests.len().max(1), "{name}: {passed} tests of {tests:?}");
        count += passed;
    }
    let longest =
        times.iter().max_by_key(|(_, took)| *took).map_or(Duration::ZERO, |(_, took)| *took);
    for (name, took) in &times {
        eprintln!("     {name}: {:.1} s", took.as_secs_f64());
    }
    // No promises: they tell that the tests ran, and which of them are slow.
    let ran = Figure::lower("qemu_suites", "initd_tests_passed", f64::from(count), "tests", None);
    let slowest = Figure::lower("qemu_suites", "slowest_s", longest.as_secs_f64(), "s", None);
    Ok(passed(env, cluster, vec![Figure { better: "higher", ..ran }, slowest]))
}
