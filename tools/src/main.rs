//! The `quelea` binary.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    agent::backtrace::forbid();
    let cli = tools::cli::Cli::parse();
    match tools::cmd::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("quelea: {error:#}");
            if let Some(agent::Error::Unreachable { .. }) = error.downcast_ref() {
                eprintln!(
                    "Does its agent run? Every other node can be asked as well: --node NAME, or --node NAME@ADDRESS."
                );
            }
            ExitCode::FAILURE
        }
    }
}
