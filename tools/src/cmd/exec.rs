//! `quelea exec`: a program in a replica, with its output, its exit code and, if asked for, our input and our terminal.
//! `quelea attach`: the same with the program that runs there already.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use agent::api::client::{Endpoint, empty, full};
use agent::api::exec::{self, Kind};
use agent::api::programs::{NO_INPUT_HEADER, TERMINAL_HEADER};
use agent::api::types::Exec;
use anyhow::{Context as _, Result, bail};
use hyper::Response;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::run::escape;
use crate::cli;
use crate::context::Context;
use crate::terminal::{self, Raw};

/// Bytes of input sent in one go.
const INPUT_BYTES: usize = 16 * 1024;
/// Input that waits to be sent, in pieces; more waits where it comes from.
const INPUT_MAX: usize = 8;

/// Runs a program and ends with its code.
pub(super) async fn exec(context: &Context, args: &cli::Exec) -> Result<ExitCode> {
    let (endpoint, pod) = context.find_pod(&args.pod).await?;
    let env = match std::env::var("TERM") {
        Ok(term) if args.tty => vec![("TERM".to_owned(), term)],
        _ => Vec::new(),
    };
    let request = Exec {
        container: args.container.clone(),
        argv: args.argv.clone(),
        env,
        terminal: args.tty,
    };
    let raw = args.tty.then(Raw::enter).transpose()?;
    let path = format!("/v1/pods/{}/{}/exec", pod.namespace, pod.name);
    let body = full(serde_json::to_vec(&request)?);
    let response = endpoint.upgrade(&path, body, exec::PROTOCOL).await?;
    let ended = carry(response, &endpoint, args.tty, args.stdin).await;
    // What is printed from here on is for a terminal as it was.
    drop(raw);
    match ended? {
        Ok(code) => Ok(exit_code(code)),
        Err((code, why)) => {
            eprintln!("quelea: {} in {}: {why}", args.argv.join(" "), pod.name);
            Ok(exit_code(code))
        }
    }
}

/// Watches a running container's program, with our input where it takes any.
pub(super) async fn attach(context: &Context, args: &cli::Attach) -> Result<ExitCode> {
    let (endpoint, pod) = context.find_pod(&args.pod).await?;
    let mut path = format!("/v1/pods/{}/{}/attach", pod.namespace, pod.name);
    if let Some(container) = &args.container {
        path.push_str(&format!("?container={}", escape(container)));
    }
    let response = endpoint.upgrade(&path, empty(), exec::PROTOCOL).await?;
    let says = |name| response.headers().contains_key(name);
    let takes_input = !says(NO_INPUT_HEADER) && !args.no_stdin;
    let terminal = says(TERMINAL_HEADER) && takes_input && std::io::stdin().is_terminal();
    if !takes_input && !args.no_stdin {
        eprintln!("{} takes no input: its spec has no `stdin`", pod.name);
    }
    if terminal {
        eprintln!(
            "attached to {}; to leave it running, close this terminal or end `quelea` from another",
            pod.name
        );
    }
    let raw = terminal.then(Raw::enter).transpose()?;
    let ended = carry(response, &endpoint, terminal, takes_input).await;
    drop(raw);
    match ended? {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err((_, why)) => bail!("{}: {why}", pod.name),
    }
}

/// The low byte, as the kernel has it.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).unwrap_or(255))
}

/// Carries frames both ways until the last: the exit code, or that of a shell and why there is none.
async fn carry(
    response: Response<Incoming>,
    endpoint: &Endpoint,
    terminal: bool,
    stdin: bool,
) -> Result<Result<i32, (i32, String)>> {
    let upgraded = hyper::upgrade::on(response)
        .await
        .with_context(|| format!("{endpoint} did not begin to carry the program's streams"))?;
    let (mut from, to) = tokio::io::split(TokioIo::new(upgraded));
    let (sender, frames) = mpsc::channel(INPUT_MAX);
    if terminal {
        tokio::spawn(sizes(sender.clone()));
    }
    tokio::spawn(input(sender, stdin));
    tokio::spawn(send(to, frames));
    loop {
        match exec::read(&mut from).await.context("the connection broke off")? {
            Some((Kind::Stdout, bytes)) => {
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
            }
            Some((Kind::Stderr, bytes)) => std::io::stderr().write_all(&bytes)?,
            Some((Kind::Exit, bytes)) => {
                return Ok(Ok(
                    <[u8; 4]>::try_from(bytes.as_slice()).map_or(255, i32::from_be_bytes)
                ));
            }
            Some((Kind::Failed, bytes)) => {
                return Ok(Err(exec::failure(&bytes)));
            }
            Some((Kind::Stdin | Kind::Resize, _)) => {}
            None => bail!("{endpoint} went away before the program ended"),
        }
    }
}

type Frame = (Kind, Vec<u8>);

/// Our input, then its end; its end at once where none was asked for. Stays: the end of the connection's half would end
/// the program.
async fn input(to: mpsc::Sender<Frame>, wanted: bool) {
    if wanted {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; INPUT_BYTES];
        while let Ok(n @ 1..) = stdin.read(&mut buffer).await {
            let bytes = buffer.get(..n).unwrap_or_default().to_vec();
            if to.send((Kind::Stdin, bytes)).await.is_err() {
                return;
            }
        }
    }
    let _ = to.send((Kind::Stdin, Vec::new())).await;
    to.closed().await;
}

/// The size of our terminal, now and whenever it changes.
async fn sizes(to: mpsc::Sender<Frame>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    loop {
        let (columns, rows) = terminal::size();
        let frame = (Kind::Resize, exec::size_bytes(columns, rows).to_vec());
        if to.send(frame).await.is_err() || changed.recv().await.is_none() {
            return;
        }
    }
}

async fn send(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    while let Some((kind, bytes)) = frames.recv().await {
        if exec::write(&mut to, kind, &bytes).await.is_err() {
            return;
        }
    }
}
