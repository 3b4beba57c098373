//! `quelea exec`: a program in a replica, with its output, its exit code and, if asked for, our input.

use std::io::Write as _;
use std::process::ExitCode;

use agent::api::client::full;
use agent::api::exec::{self, Kind};
use agent::api::types::Exec;
use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cli;
use crate::context::Context;

/// Runs a program and ends with its code.
pub(super) async fn exec(context: &Context, args: &cli::Exec) -> Result<ExitCode> {
    let (endpoint, pod) = context.find_pod(&args.pod).await?;
    let request = Exec { container: args.container.clone(), argv: args.argv.clone() };
    let path = format!("/v1/pods/{}/{}/exec", pod.namespace, pod.name);
    let body = full(serde_json::to_vec(&request)?);
    let response = endpoint.upgrade(&path, body, exec::PROTOCOL).await?;
    let upgraded = hyper::upgrade::on(response)
        .await
        .with_context(|| format!("{endpoint} did not begin an exec"))?;
    let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
    if args.stdin {
        tokio::spawn(async move {
            let mut stdin = tokio::io::stdin();
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
                let bytes = buffer.get(..n).unwrap_or_default();
                if exec::write(&mut to, Kind::Stdin, bytes).await.is_err() {
                    return;
                }
            }
            // The end of ours is the end of the program's; without a reader it does not matter.
            let _ = exec::write(&mut to, Kind::Stdin, b"").await;
            std::future::pending::<()>().await;
        });
    } else {
        exec::write(&mut to, Kind::Stdin, b"").await?;
        to.flush().await?;
        // Kept open: its end would end the exec.
        tokio::spawn(async move {
            let _to = to;
            std::future::pending::<()>().await;
        });
    }
    loop {
        match exec::read(&mut from).await.context("the exec broke off")? {
            Some((Kind::Stdout, bytes)) => {
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
            }
            Some((Kind::Stderr, bytes)) => std::io::stderr().write_all(&bytes)?,
            Some((Kind::Exit, bytes)) => {
                let code = <[u8; 4]>::try_from(bytes.as_slice()).map_or(255, i32::from_be_bytes);
                return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(255)));
            }
            Some((Kind::Failed, bytes)) => {
                bail!(
                    "{} in {}: {}",
                    args.argv.join(" "),
                    pod.name,
                    String::from_utf8_lossy(&bytes)
                );
            }
            Some((Kind::Stdin, _)) => {}
            None => bail!("{} went away before the program ended", pod.node),
        }
    }
}
