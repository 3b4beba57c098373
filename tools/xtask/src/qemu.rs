//! `cargo xtask qemu`: the tests that need a kernel of their own.

use anyhow::Result;
use clap::Args;

use crate::run;

/// What the tests need, by Debian package.
const PACKAGES: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("dpkg-deb", "dpkg"),
    ("mkfs.ext4", "e2fsprogs"),
    // Firmware of machines that boot from the network: files, not programs.
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
];

/// What is asked for.
#[derive(Args, Default)]
pub(crate) struct Asked {
    /// Scenarios to run, a prefix is enough; all of them (up to 30 minutes) when none is named
    names: Vec<String>,
    /// Run the short set, 4 to 7 minutes
    #[arg(long, conflicts_with = "names")]
    smoke: bool,
    /// Name the scenarios and what each proves
    #[arg(long)]
    list: bool,
    /// Cargo profile of what the machines run: `fast` builds in a tenth of the time
    #[arg(long, default_value = "release")]
    profile: String,
    /// Print figures alone on stdout, as JSON lines
    #[arg(long)]
    json: bool,
    /// Keep serial logs and captures of scenarios that pass, too
    #[arg(long)]
    keep: bool,
    /// Seed of the network's losses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where Debian's kernel packages are kept [default: target/kernels]
    #[arg(long)]
    cache: Option<std::path::PathBuf>,
}

/// The short set, as CI runs it.
pub(crate) fn smoke() -> Result<()> {
    qemu(&Asked { smoke: true, profile: "release".into(), seed: 1, ..Asked::default() })
}

/// One scenario, by name.
pub(crate) fn scenario(name: &str, profile: &str) -> Result<()> {
    qemu(&Asked { names: vec![name.into()], profile: profile.into(), seed: 1, ..Asked::default() })
}

/// Builds what is needed and runs the scenarios.
pub(crate) fn qemu(asked: &Asked) -> Result<()> {
    let mut command = run::cargo(&["run", "--quiet", "--locked", "-p", "qemu-tests"]);
    if asked.profile != "release" {
        command.args(["--profile", &asked.profile]);
    }
    command.arg("--").args(&asked.names);
    for (wanted, flag) in [
        (asked.smoke, "--smoke"),
        (asked.list, "--list"),
        (asked.json, "--json"),
        (asked.keep, "--keep"),
    ] {
        command.args(wanted.then_some(flag));
    }
    if asked.list {
        return run::check(&mut command);
    }
    run::install(PACKAGES)?;
    command.args(["--profile", &asked.profile, "--seed", &asked.seed.to_string()]);
    // Where `cargo xtask image` keeps them, too, and CI from one run to the next.
    let cache = asked.cache.clone().unwrap_or_else(|| run::root().join("target/kernels"));
    command.arg("--cache").arg(cache);
    if asked.profile == "release" {
        let built = run::build()?;
        for name in ["quelead", "quelea", "hello"] {
            command.arg(format!("--{name}")).arg(built.dir.join(name));
        }
    }
    run::check(&mut command)
}
