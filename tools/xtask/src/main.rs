//! `cargo xtask`: what is done from a clone. Nothing here that a user could not type.

mod bench;
mod demo;
mod escape;
mod flock;
mod qemu;
mod run;
mod sim;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures Quelea from a clone.
#[derive(Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the binaries that a machine and an operator run
    Build,
    /// Start a flock of three nodes on this machine and show what it does, step by step
    Demo {
        /// Leave the flock up at the end
        #[arg(long)]
        keep: bool,
        /// Print the figures as JSON lines at the end, too
        #[arg(long)]
        json: bool,
    },
    /// Everything that CI runs
    Test {
        /// Only these stages; `--list` names them
        stages: Vec<String>,
        /// Name the stages
        #[arg(long)]
        list: bool,
    },
    /// Run the seeded simulator; arguments are passed on
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure one part against its goals and its peers
    Bench {
        /// Which: gossip or container
        name: String,
        #[command(flatten)]
        options: bench::Options,
    },
    /// Make what machines boot, in target/image/SET: kernel, initramfs, iPXE script, unified kernel image
    Image {
        /// Which modules it has: `qemu`, or `rack` for server NICs and disks
        #[arg(long, default_value = "rack", value_parser = ["qemu", "rack"])]
        set: String,
    },
    /// Try every way out of a container, in namespaces here and on a machine with real cgroups
    Escape(escape::Asked),
    /// Run the tests on QEMU machines, each with a kernel of its own
    Qemu(qemu::Asked),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Build => run::build().map(drop),
        Task::Demo { keep, json } => demo::demo(keep, json),
        Task::Test { list: true, .. } => {
            test::list();
            Ok(())
        }
        Task::Test { stages, .. } => test::test(&stages),
        Task::Sim { args } => run::sim(&args.iter().map(String::as_str).collect::<Vec<_>>()),
        Task::Bench { name, options } => bench::bench(&name, &options),
        Task::Image { set } => run::image(&set),
        Task::Escape(asked) => escape::escape(&asked),
        Task::Qemu(asked) => qemu::qemu(&asked),
    }
}
