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
            ExitCode::FAILURE
        }
    }
}
