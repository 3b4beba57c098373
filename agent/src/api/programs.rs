//! Programs in a pod over the API: run one, attach to one, connect to one. For operators, on the node that has the pod.

use std::os::fd::OwnedFd;

use axum::extract::{Path, Query, Request, State};
use axum::http::HeaderValue;
use axum::response::Response;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::exec::{self, Kind};
use super::pods::PodPath;
use super::relay::upgraded;
use super::server::{Refused, Shared, small_body};
use super::types::Exec;
use crate::node::{Attached, ExecNews, ExecRequest, Running};

/// The protocol's name in the `Upgrade` header of a forwarded port: bytes of the connection, nothing else.
pub const FORWARD: &str = "quelea-forward/1";
/// The header that says that an attached program runs on a terminal.
pub const TERMINAL_HEADER: &str = "quelea-terminal";
/// The header that says that an attached program takes no input.
pub const NO_INPUT_HEADER: &str = "quelea-no-input";
/// Bytes carried in one go.
const CHUNK_BYTES: usize = 16 * 1024;

/// What of a program is carried.
struct Streams {
    input: Option<OwnedFd>,
    output: OwnedFd,
    errors: Option<OwnedFd>,
    /// Where its size is set.
    terminal: Option<OwnedFd>,
}

pub(super) async fn exec_in(
    State(shared): State<Shared>,
    Path((namespace, pod)): PodPath,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgrade = hyper::upgrade::on(&mut request);
    let bytes = small_body(request.into_body()).await?;
    let exec: Exec = serde_json::from_slice(&bytes)
        .map_err(|error| Refused(400, format!("the request is not an exec: {error}")))?;
    if exec.argv.is_empty() {
        return Err(Refused(400, "no program to run: give one after `--`".into()));
    }
    let failed = |e: std::io::Error| Refused(500, format!("cannot make a pipe: {e}"));
    let (ours, stdio) = if exec.terminal {
        (None, None)
    } else {
        let (stdin_read, stdin) = std::io::pipe().map_err(failed)?;
        let (stdout, stdout_write) = std::io::pipe().map_err(failed)?;
        let (stderr, stderr_write) = std::io::pipe().map_err(failed)?;
        let ours = Streams {
            input: Some(stdin.into()),
            output: stdout.into(),
            errors: Some(stderr.into()),
            terminal: None,
        };
        (Some(ours), Some([stdin_read.into(), stdout_write.into(), stderr_write.into()]))
    };
    let request = ExecRequest {
        namespace,
        pod,
        container: exec.container,
        argv: exec.argv,
        env: exec.env,
        stdio,
    };
    let started = shared.core.call(move |node| node.exec(request)).await?;
    let Running { claim, exec: id, news } = started.map_err(|message| Refused(404, message))?;
    tokio::spawn(async move {
        let carried = match upgrade.await {
            Ok(upgraded) => carry_exec(TokioIo::new(upgraded), ours, news).await,
            Err(error) => Err(std::io::Error::other(error)),
        };
        // Nobody is there to see what it does: it goes with who asked for it.
        if carried.is_err() {
            let _ = shared.core.insist(move |node| node.exec_kill(&claim, id)).await;
        }
    });
    Ok(upgraded(exec::PROTOCOL))
}

async fn carry_exec(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    pipes: Option<Streams>,
    mut news: mpsc::Receiver<ExecNews>,
) -> std::io::Result<()> {
    let (from, mut to) = tokio::io::split(stream);
    let streams = match pipes {
        Some(streams) => streams,
        None => match news.recv().await.unwrap_or_else(pod_gone) {
            ExecNews::Terminal(fd) => Streams {
                input: Some(fd.try_clone()?),
                output: fd.try_clone()?,
                errors: None,
                terminal: Some(fd),
            },
            ended => return finish(&mut to, ended).await,
        },
    };
    carry(from, to, streams, Some(news), None).await
}

#[derive(Deserialize)]
pub(super) struct AttachQuery {
    container: Option<String>,
}

pub(super) async fn attach(
    State(shared): State<Shared>,
    Path((namespace, pod)): PodPath,
    Query(query): Query<AttachQuery>,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgrade = hyper::upgrade::on(&mut request);
    let asked = move |node: &mut crate::node::Node| {
        node.attach(&namespace, &pod, query.container.as_deref())
    };
    let (claim, container, answer) =
        shared.core.call(asked).await?.map_err(|message| Refused(404, message))?;
    let gone = || Refused(409, "the pod is gone".into());
    let attached = answer.await.map_err(|_| gone())?.map_err(|message| Refused(409, message))?;
    let Attached { input, output, errors, terminal } = attached;
    let mut response = upgraded(exec::PROTOCOL);
    let yes = HeaderValue::from_static("1");
    if terminal {
        response.headers_mut().insert(TERMINAL_HEADER, yes.clone());
    }
    if input.is_none() {
        response.headers_mut().insert(NO_INPUT_HEADER, yes);
    }
    let failed = |e: std::io::Error| Refused(500, format!("cannot attach: {e}"));
    let size = if terminal { input.as_ref().map(OwnedFd::try_clone) } else { None };
    let streams = Streams { input, output, errors, terminal: size.transpose().map_err(failed)? };
    let (ended, over) = oneshot::channel();
    tokio::spawn(async move {
        if over.await.is_ok() {
            let _ = shared.core.insist(move |node| node.close_stdin(&claim, &container)).await;
        }
    });
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let (from, to) = tokio::io::split(TokioIo::new(upgraded));
            // The program stays when its watcher goes.
            let _ = carry(from, to, streams, None, Some(ended)).await;
        }
    });
    Ok(response)
}

pub(super) async fn forward(
    State(shared): State<Shared>,
    Path((namespace, pod, port)): Path<(String, String, u16)>,
    mut request: Request,
) -> Result<Response, Refused> {
    let upgrade = hyper::upgrade::on(&mut request);
    let asked = pod.clone();
    let answer = shared.core.call(move |node| node.connect_to(&namespace, &asked, port)).await?;
    let answer = answer.map_err(|message| Refused(404, message))?;
    let gone = || Refused(409, format!("{pod} is gone"));
    let socket = answer.await.map_err(|_| gone())?.map_err(|message| Refused(502, message))?;
    let failed = |e: std::io::Error| Refused(500, format!("the connection to {pod}: {e}"));
    let socket = std::net::TcpStream::from(socket);
    socket.set_nonblocking(true).map_err(failed)?;
    let mut socket = tokio::net::TcpStream::from_std(socket).map_err(failed)?;
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let mut caller = TokioIo::new(upgraded);
            let _ = tokio::io::copy_bidirectional(&mut caller, &mut socket).await;
        }
    });
    Ok(upgraded(FORWARD))
}

/// The last frame, from what the shim told.
async fn finish(to: &mut (impl AsyncWrite + Unpin), ended: ExecNews) -> std::io::Result<()> {
    match ended {
        ExecNews::Exited(exit) => {
            exec::write(to, Kind::Exit, &exit.shell_code().to_be_bytes()).await?;
        }
        ExecNews::Failed { reason, code } => {
            exec::write(to, Kind::Failed, &exec::failure_bytes(code, &reason)).await?;
        }
        ExecNews::Terminal(_) => {}
    }
    to.shutdown().await
}

fn pod_gone() -> ExecNews {
    ExecNews::Failed { reason: "the pod is gone".into(), code: 125 }
}

fn left() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::BrokenPipe, "the caller went away")
}

fn nonblocking(fd: OwnedFd) -> std::io::Result<OwnedFd> {
    nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// A terminal is read and written as a pipe is.
fn reader(fd: OwnedFd) -> std::io::Result<pipe::Receiver> {
    pipe::Receiver::from_owned_fd_unchecked(nonblocking(fd)?)
}

/// Frames of the caller, to the program. Ends with the caller.
async fn carry_input(
    mut from: impl AsyncRead + Unpin,
    input: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    mut ended: Option<oneshot::Sender<()>>,
) -> std::io::Result<()> {
    let keys = input.map(nonblocking).transpose()?;
    let mut keys = keys.map(pipe::Sender::from_owned_fd_unchecked).transpose()?;
    while let Ok(Some((kind, bytes))) = exec::read(&mut from).await {
        match kind {
            Kind::Resize => {
                if let (Some(terminal), Some((columns, rows))) = (&terminal, exec::size(&bytes)) {
                    resize(terminal, columns, rows);
                }
            }
            // A terminal has no end of its own: a key says so.
            Kind::Stdin if bytes.is_empty() && terminal.is_none() => {
                keys = None;
                if let Some(ended) = ended.take() {
                    let _ = ended.send(());
                }
            }
            Kind::Stdin => {
                if let Some(pipe) = &mut keys
                    && pipe.write_all(&bytes).await.is_err()
                {
                    keys = None;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let (ws_xpixel, ws_ypixel) = (0, 0);
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel, ws_ypixel };
    // The program may have ended.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// Carries a program's streams until it has ended and they are empty; without news of it, until they end. An error: the
/// caller went away before.
async fn carry(
    from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    streams: Streams,
    mut news: Option<mpsc::Receiver<ExecNews>>,
    stdin_ended: Option<oneshot::Sender<()>>,
) -> std::io::Result<()> {
    let Streams { input, output, errors, terminal } = streams;
    let own_terminal = terminal.is_some() && news.is_some();
    let mut output = reader(output)?;
    let mut errors = errors.map(reader).transpose()?;
    // Input has a task of its own, as reading a frame must not be interrupted half-way.
    let mut input = tokio::spawn(carry_input(from, input, terminal, stdin_ended));
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut open = true;
    let mut ended = None;
    while open || errors.is_some() || news.is_some() {
        tokio::select! {
            read = output.read(&mut out), if open => match read {
                // EIO of a terminal: nobody has the other end open any more.
                Ok(0) | Err(_) => open = false,
                Ok(n) => exec::write(&mut to, Kind::Stdout, out.get(..n).unwrap_or_default()).await?,
            },
            read = read_or_wait(&mut errors, &mut err), if errors.is_some() => match read {
                Ok(0) | Err(_) => errors = None,
                Ok(n) => exec::write(&mut to, Kind::Stderr, err.get(..n).unwrap_or_default()).await?,
            },
            said = said_or_wait(&mut news), if news.is_some() => {
                ended = Some(said.unwrap_or_else(pod_gone));
                news = None;
                // What it left running may hold its terminal for ever: what is there now is all that is shown.
                while own_terminal && let Ok(n @ 1..) = output.try_read(&mut out) {
                    exec::write(&mut to, Kind::Stdout, out.get(..n).unwrap_or_default()).await?;
                }
                open &= !own_terminal;
            }
            _ = &mut input => return Err(left()),
        }
    }
    let over = ExecNews::Exited(initd::shim::Exit { code: Some(0), signal: None, oom: false });
    finish(&mut to, ended.unwrap_or(over)).await?;
    input.abort();
    Ok(())
}

async fn read_or_wait(
    from: &mut Option<pipe::Receiver>,
    bytes: &mut [u8],
) -> std::io::Result<usize> {
    match from {
        Some(pipe) => pipe.read(bytes).await,
        None => std::future::pending().await,
    }
}

async fn said_or_wait(news: &mut Option<mpsc::Receiver<ExecNews>>) -> Option<ExecNews> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}
