//! `quelea boot`: what machines boot, built here and served from here.

mod build;
mod far;
mod serve;

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
    /// Boot machines over their network: DHCP, TFTP and HTTP from this machine, or through a running node
    ///
    /// Beside the site's own DHCP server, which goes on giving addresses; or with --dhcp as the only one. BIOS and UEFI
    /// machines boot by PXE (iPXE comes by TFTP, the rest by HTTP), UEFI machines by HTTP boot, too. Each machine gets its
    /// name, labels and keys with its image.
    ///
    /// What is protected: a machine's keys are given once for each time its hardware address asked by DHCP, soon after, to
    /// the address that ARP knows as that hardware address, under a name used once. What is not: plain HTTP hides nothing
    /// from who reads the network, and who pretends to be the machine while it boots is given its keys. Provision on a
    /// network that only the rack is on, or give --no-credentials.
    Serve(Serve),
}

/// `quelea boot serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The boot directory, made by `quelea boot build`
    pub dir: PathBuf,
    /// Which machine is which, by hardware address (TOML)
    #[arg(long, value_name = "FILE")]
    pub rack: Option<PathBuf>,
    /// Serve through this node's network: NAME in the flock that --node leads to, or NAME@ADDRESS
    ///
    /// The node opens the ports and carries bytes; files, names and keys stay here.
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
    /// The interface to the machines [default: the only one with an address; with --on the node's own]
    #[arg(short, long, value_name = "NAME")]
    pub interface: Option<String>,
    /// What becomes of machines that --rack does not name
    #[arg(long, value_enum, default_value_t = UnknownName::Maintenance)]
    pub unknown: UnknownName,
    /// How those are named: {mac}, {mac6} and {mac4} are the last digits of the hardware address
    #[arg(long, value_name = "TEMPLATE", default_value = "m-{mac6}")]
    pub names: String,
    /// Be the DHCP server, with these addresses; only on a network that has none
    #[arg(long, value_name = "FIRST-LAST")]
    pub dhcp: Option<String>,
    /// Give no keys: machines have theirs on their state disk
    #[arg(long)]
    pub no_credentials: bool,
    /// How long after its DHCP a machine can fetch its configuration
    #[arg(long, value_name = "SECONDS", default_value_t = 180, value_parser = clap::value_parser!(u64).range(10..=3600))]
    pub window: u64,
    /// Further kernel arguments
    #[arg(long, value_name = "ARGS", default_value = "")]
    pub cmdline: String,
    /// Where machines' credentials are kept, so that each boot gives the same [default: DIR/machines]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Port of the web server
    #[arg(long, value_name = "PORT", default_value_t = 7403)]
    pub http_port: u16,
}

/// What becomes of machines that nobody named.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownName {
    /// They boot without keys and wait for somebody to look
    Maintenance,
    /// They are not answered
    Ignore,
    /// They become nodes of the flock
    Auto,
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
        Boot::Serve(args) => serve::serve(args, global)?,
    }
    Ok(ExitCode::SUCCESS)
}
