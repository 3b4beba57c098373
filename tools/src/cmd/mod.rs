//! The commands, one file each.

pub mod boot;
mod exec;
mod forward;
mod image;
mod init;
mod keys;
mod list;
mod logs;
mod node;
mod pod;
mod run;
mod stranger;
mod top;
mod upgrade;

use std::process::ExitCode;

use anyhow::{Context as _, Result};

use sched::record::CORDON;

use crate::cli::{Cli, Command, Init};
use crate::context::Context;

/// Runs one command.
///
/// # Errors
/// What was attempted, on what, why it failed, and what to do.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Dev(dev) => return crate::dev::run(&dev),
        Command::Init(Init::Flock { dir, name, operator }) => {
            init::flock(&dir, &name, &operator)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Init(Init::Node { name, out }) => {
            init::node(cli.global.flock.as_deref(), &name, &out)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Image(crate::cli::Image::Pack(pack)) => {
            image::pack(&pack, cli.global.output)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Boot(boot) => return boot::run(&boot, &cli.global),
        Command::Completion { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(shell, &mut command, "quelea", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    let format = cli.global.output;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let code = runtime.block_on(async {
        match &cli.command {
            Command::Adopt(args) => {
                stranger::adopt_any(&cli.global, args, format).await?;
                return anyhow::Ok(ExitCode::SUCCESS);
            }
            Command::Strangers(args) => {
                stranger::list(&cli.global, args).await?;
                return Ok(ExitCode::SUCCESS);
            }
            _ => {}
        }
        let context = Context::find(&cli.global)?;
        match cli.command {
            Command::Nodes => list::nodes(&context, format).await?,
            Command::Node { target } => node::show(&context, format, &target).await?,
            Command::Cordon { target } => node::wish(&context, format, &target, CORDON).await?,
            Command::Uncordon { target } => node::wish(&context, format, &target, "").await?,
            Command::Drain(args) => node::drain(&context, format, &args).await?,
            Command::Reboot(args) => node::end(&context, format, &args, "reboot").await?,
            Command::Poweroff(args) => node::end(&context, format, &args, "off").await?,
            Command::Upgrade(args) => upgrade::upgrade(&context, format, &args).await?,
            Command::Console { target } => node::console(&context, format, &target).await?,
            Command::Retry { target } => node::retry(&context, format, &target).await?,
            Command::Forget { target } => node::forget(&context, format, &target).await?,
            Command::Ps { app } => list::ps(&context, format, app.as_deref()).await?,
            Command::Pod { target } => pod::show(&context, format, &target).await?,
            Command::Why { app } => list::why(&context, format, &app).await?,
            Command::Events { follow } => list::events(&context, format, follow).await?,
            Command::Status => list::status(&context, format).await?,
            Command::Run(args) => run::run(&context, &args).await?,
            Command::Stop(args) => run::stop(&context, &args).await?,
            Command::Top(args) => top::top(&context, format, &args).await?,
            Command::Logs(args) => logs::logs(&context, &args).await?,
            Command::Exec(args) => return exec::exec(&context, &args).await,
            Command::Attach(args) => return exec::attach(&context, &args).await,
            Command::PortForward(args) => forward::forward(&context, &args).await?,
            Command::Image(crate::cli::Image::Import { path, tag }) => {
                image::import(&context, format, &path, tag.as_deref()).await?;
            }
            Command::Image(crate::cli::Image::Rm { images }) => {
                return image::remove(&context, format, &images).await;
            }
            Command::Image(crate::cli::Image::Ls) => image::ls(&context, format).await?,
            Command::Keys { action: None } => keys::list(&context, format).await?,
            Command::Keys { action: Some(crate::cli::Keys::Rotate(args)) } => {
                keys::rotate(&context, &args).await?;
            }
            // Done above: these need not ask a node.
            Command::Dev(_)
            | Command::Adopt(_)
            | Command::Strangers(_)
            | Command::Boot(_)
            | Command::Init(_)
            | Command::Image(crate::cli::Image::Pack(_))
            | Command::Completion { .. } => {}
        }
        Ok(ExitCode::SUCCESS)
    });
    // Reading standard input may be under way on a thread that cannot be interrupted.
    runtime.shutdown_background();
    code
}
