//! `quelea boot`: what machines boot, built here and served from here.

mod build;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};

use crate::cli::Global;

/// `quelea boot`.
#[derive(Subcommand, Debug)]
pub enum Boot {
    /// Make a boot directory: kernel, initramfs, iPXE script and unified kernel image
    Build(Build),
}

/// `quelea boot build`.
#[derive(Args, Debug)]
pub struct Build {
    /// The node binary that machines run, static
    #[arg(long, value_name = "FILE")]
    pub quelead: PathBuf,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// For which machines
    #[arg(long, value_enum, default_value_t = SetName::Rack)]
    pub set: SetName,
    /// A kernel package of Debian's: a .deb, or a directory into which `dpkg-deb -x` put one [default: the newest 6.12, by apt]
    #[arg(long, value_name = "DEB|DIR")]
    pub kernel: Option<PathBuf>,
    /// Further kernel arguments, such as console=ttyS1,115200 where there is such a port
    #[arg(long, value_name = "ARGS", default_value = "")]
    pub cmdline: String,
    /// Where unpacked packages are kept [default: $XDG_CACHE_HOME/quelea, or ~/.cache/quelea]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Which modules an image has.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetName {
    /// Virtio devices, on Debian's cloud kernel: small, boots fastest
    Qemu,
    /// Server NICs, disks, watchdogs and consoles
    Rack,
}

/// Runs `quelea boot`.
pub(super) fn run(boot: &Boot, global: &Global) -> Result<ExitCode> {
    match boot {
        Boot::Build(args) => build::build(args, global.output)?,
    }
    Ok(ExitCode::SUCCESS)
}
