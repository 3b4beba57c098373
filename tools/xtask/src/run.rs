//! Runs programs: cargo, apt-get, our own binaries.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The root of the clone.
pub(crate) fn root() -> PathBuf {
    // tools/xtask lies two below.
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// `cargo`, as this process was started by.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(args).current_dir(root());
    // What `cargo run` told this process about its package would make build scripts run again in the cargo below.
    let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"];
    for (name, _) in std::env::vars_os() {
        if ours.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a program whose output people see.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// Runs a program and returns its output; its errors are part of ours.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}):\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).context("the output is not UTF-8")
}

/// Where built binaries are.
pub(crate) struct Built {
    /// The directory.
    pub(crate) dir: PathBuf,
}

impl Built {
    /// `quelea`.
    pub(crate) fn quelea(&self) -> PathBuf {
        self.dir.join("quelea")
    }
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
}

/// Added to the flags of `.cargo/config.toml` for what machines run: 0.8 MB less. Tables to unwind a stack that aborts are left
/// out (only here: tests do unwind), and relocations are packed, which glibc reads from 2.36 on.
fn small() -> String {
    let script = root().join("tools/xtask/src/no-unwind.ld");
    format!(
        r#"target.'cfg(target_os="linux")'.rustflags=["-Clink-arg=-Wl,-T,{},--no-eh-frame-hdr,--icf=all,-z,pack-relative-relocs"]"#,
        script.display()
    )
}

/// Builds the release binaries, says how large they are, and returns where.
pub(crate) fn build() -> Result<Built> {
    let start = Instant::now();
    let small = small();
    let packages = ["-p", "agent", "-p", "tools", "-p", "hello"];
    let args = [&["--config", &small, "build", "--release", "--locked"], &packages[..]].concat();
    check(&mut cargo(&args))?;
    // A second call only names what the first has built.
    let built = built(cargo(&args).arg("--quiet"))?;
    let dir = &built.dir;
    for name in ["quelead", "quelea", "hello"] {
        let bytes = std::fs::metadata(dir.join(name))?.len();
        println!("  {name:8} {:6.2} MB, static", bytes as f64 / 1e6);
    }
    println!("  built in {:.1} s", start.elapsed().as_secs_f64());
    Ok(built)
}

/// Where a build that builds `quelead` puts its binaries.
pub(crate) fn built(build: &mut Command) -> Result<Built> {
    let text = output(build.args(["--message-format", "json"]))?;
    let executables: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .collect();
    let quelead = executables.iter().find(|path| path.ends_with("quelead"));
    let dir = quelead.and_then(|path| path.parent()).context("cargo built no quelead")?;
    Ok(Built { dir: dir.to_owned() })
}

/// Makes a boot directory with the release `quelead`, as `quelea boot build` does, and prints its figures.
pub(crate) fn image(set: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Report {
        files: std::collections::BTreeMap<String, u64>,
        initramfs_bytes_max: u64,
    }
    let built = build()?;
    let out = root().join("target/image").join(set);
    let mut command = Command::new(built.quelea());
    command.args(["boot", "build", "--set", set, "--quelead"]).arg(built.dir.join("quelead"));
    command.arg("--cache").arg(root().join("target/kernels")).arg("--out").arg(&out);
    check(&mut command)?;
    let report: Report = serde_json::from_str(&output(command.args(["-o", "json"]))?)?;
    let figures = [
        ("vmlinuz", None),
        ("initramfs.cpio", Some(report.initramfs_bytes_max)),
        ("uki.efi", None),
    ];
    for (file, goal) in figures {
        let value = report.files.get(file).copied().unwrap_or_default();
        let metric = format!("{}_{set}_bytes", file.split('.').next().unwrap_or(file));
        let pass = goal.is_none_or(|goal| value <= goal);
        println!(
            "{}",
            serde_json::json!({"bench": "image", "metric": metric, "value": value, "unit": "B", "goal": goal,
                "better": "lower", "peer": null, "pass": pass})
        );
    }
    Ok(())
}

/// The simulator, optimised and with assertions.
pub(crate) fn simulator() -> Command {
    cargo(&["run", "--profile", "sim", "--quiet", "--locked", "-p", "sim", "--"])
}

/// Runs the simulator.
pub(crate) fn sim(args: &[&str]) -> Result<()> {
    check(simulator().args(args))
}

/// Installs Debian packages whose programs are missing, after saying so.
pub(crate) fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing with apt-get: {}", missing.join(" "));
    check(Command::new("apt-get").args(["-qq", "update"]))?;
    let mut install = Command::new("apt-get");
    install.args(["-qq", "-y", "--no-install-recommends", "install"]).args(&missing);
    check(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null()))
}

/// Whether a program is in `PATH` or where root's programs are.
pub(crate) fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.into_iter().any(|dir| dir.join(program).exists())
}
