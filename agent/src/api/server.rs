//! Serves the API: one thread, one tokio runtime. Every question about the flock is a closure run on the core thread.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use crossbeam_channel::Sender;
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use imagefs::{BlobKind, BlobRef, Store};
use initd::log::Tail;
use rustls::ServerConfig;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::exec::{self, Kind};
use super::types::{Exec, Failure};
use crate::node::{ExecNews, ExecRequest, Node};
use crate::tls::{self, Caller};
use crate::trust::Signed;

/// Connections from the network served at once; more wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 512;
/// Connections from this machine served at once; more wait in the listen queue.
pub const LOCAL_CONNECTIONS_MAX: usize = 128;
/// Blobs sent at once; more wait.
pub const UPLOADS_MAX: usize = 8;
/// The largest request body but for images, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A submission that is not on disk by then is not acknowledged.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: out of descriptors, for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two looks at a followed log.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Bytes of a log sent in one go, about.
const LOG_CHUNK_BYTES: usize = 64 * 1024;
/// Bytes of a blob read and sent in one go.
const BLOB_CHUNK_BYTES: usize = 256 * 1024;

/// Something to be done on the core thread.
pub type Call = Box<dyn FnOnce(&mut Node) + Send>;

/// The way to the core thread.
#[derive(Clone)]
pub struct Core {
    calls: Sender<Call>,
    waker: Arc<mio::Waker>,
}

impl Core {
    /// A way through this channel, waking that loop.
    pub fn new(calls: Sender<Call>, waker: Arc<mio::Waker>) -> Self {
        Self { calls, waker }
    }

    /// Runs a closure on the core thread and returns what it returns.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (sender, receiver) = oneshot::channel();
        let call: Call = Box::new(move |node| {
            // Who asked may have gone away.
            let _ = sender.send(run(node));
        });
        let gone = || Refused(503, "the agent is stopping".into());
        self.calls.send(call).map_err(|_| gone())?;
        self.waker.wake().map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }
}

/// What the server needs.
#[derive(Clone)]
pub struct Shared {
    /// The core thread.
    pub core: Core,
    /// The node's images.
    pub store: Arc<Store>,
    /// Where images being imported are kept meanwhile.
    pub uploads: PathBuf,
    /// Bounds [`UPLOADS_MAX`].
    pub slots: Arc<Semaphore>,
}

/// An answer that is no success.
pub(super) struct Refused(pub(super) u16, pub(super) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(Failure { error: self.1 })).into_response()
    }
}

pub(super) type Answer<T> = Result<Json<T>, Refused>;

/// The path of a blob.
pub fn blob_path(blob: &BlobRef) -> String {
    format!("/v1/blobs/{}/{}/{}", blob.kind, blob.digest, blob.size_bytes)
}

/// Serves until the process ends.
///
/// # Errors
/// A socket that cannot be bound: which, and why.
pub async fn serve(
    shared: Shared,
    socket: PathBuf,
    tcp: std::net::SocketAddr,
    tls: Arc<ServerConfig>,
    ready: oneshot::Sender<anyhow::Result<()>>,
) {
    let listeners = bind(&socket, tcp).await;
    let (unix, tcp) = match listeners {
        Ok(listeners) => listeners,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    let app = router(shared);
    tokio::join!(serve_local(unix, app.clone()), serve_network(tcp, app, tls));
}

/// Root on this machine. Strangers on the network cannot take its connections away: they are counted apart.
async fn serve_local(listener: UnixListener, app: Router) {
    let connections = Arc::new(Semaphore::new(LOCAL_CONNECTIONS_MAX));
    // Never closed, so acquiring cannot fail.
    while let Ok(slot) = connections.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if !stream.peer_cred().is_ok_and(|cred| cred.uid() == 0) {
            continue;
        }
        let app = app.clone();
        tokio::spawn(async move {
            connection(stream, app, Caller::Root).await;
            drop(slot);
        });
    }
}

/// Operators and nodes, by their certificates.
async fn serve_network(listener: TcpListener, app: Router, tls: Arc<ServerConfig>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(slot) = connections.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (app, acceptor) = (app.clone(), acceptor.clone());
        tokio::spawn(async move {
            // Latency only.
            let _ = stream.set_nodelay(true);
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
            if let Ok(Ok(stream)) = handshake.await {
                let certs = stream.get_ref().1.peer_certificates();
                let caller = certs.and_then(|certs| tls::caller(certs.first()?));
                if let Some(caller) = caller {
                    connection(stream, app, caller).await;
                }
            }
            drop(slot);
        });
    }
}

async fn bind(
    socket: &std::path::Path,
    tcp: std::net::SocketAddr,
) -> anyhow::Result<(UnixListener, TcpListener)> {
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", socket.display()));
        }
        _ => {}
    }
    let unix = UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", socket.display()))?;
    let tcp = TcpListener::bind(tcp).await.with_context(|| {
        format!("cannot listen on TCP {tcp}: is another agent running, or is the address not this machine's? See `ports.api` and `address` in node.toml")
    })?;
    Ok((unix, tcp))
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    caller: Caller,
) {
    let app = app.layer(axum::Extension(caller));
    // A client that goes away in mid-request is its own affair.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(hyper_util::rt::TokioTimer::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
        .with_upgrades()
        .await;
}

fn router(shared: Shared) -> Router {
    // Other nodes may fetch blobs and look at the status; everything else is for operators.
    let for_nodes = Router::new()
        .route("/v1/blobs/{kind}/{digest}/{size}", get(blob))
        .route("/v1/status", get(status))
        .layer(middleware::from_fn_with_state(shared.clone(), super::keys::not_evicted));
    let for_operators = Router::new()
        .route("/v1/nodes", get(nodes))
        .merge(super::machine::routes())
        .route("/v1/pods", get(pods))
        .route("/v1/apps", get(apps))
        .route("/v1/apps/{namespace}/{app}", get(app).put(put_app))
        .route("/v1/apps/{namespace}/{app}/why", get(why))
        .route("/v1/images", get(images).post(import))
        .route("/v1/images/resolve", get(resolve))
        .route("/v1/events", get(events))
        .route("/v1/pods/{namespace}/{pod}/logs", get(logs))
        .route("/v1/pods/{namespace}/{pod}/exec", post(exec_in))
        .merge(super::keys::routes())
        .layer(middleware::from_fn(operators_only));
    for_nodes
        .merge(for_operators)
        .fallback(|request: Request| async move {
            Refused(404, format!("{} {}: no such call", request.method(), request.uri().path()))
        })
        .with_state(shared)
}

async fn operators_only(request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(Caller::Root | Caller::Operator(_)) => next.run(request).await,
        Some(Caller::Node(name)) => {
            Refused(403, format!("{name} is a node: this call is for operators")).into_response()
        }
        None => Refused(403, "who is calling?".into()).into_response(),
    }
}

async fn status(State(shared): State<Shared>) -> Answer<super::types::Status> {
    shared.core.call(|node| node.status_view()).await.map(Json)
}

async fn nodes(State(shared): State<Shared>) -> Answer<super::types::Nodes> {
    shared.core.call(|node| node.nodes_view()).await.map(Json)
}

async fn pods(State(shared): State<Shared>) -> Answer<Vec<super::types::Pod>> {
    shared.core.call(|node| node.pods_view()).await.map(Json)
}

async fn apps(State(shared): State<Shared>) -> Answer<Vec<super::types::App>> {
    shared.core.call(|node| node.apps_view()).await.map(Json)
}

fn no_such_app(namespace: &str, app: &str) -> Refused {
    Refused(404, format!("no app {namespace}/{app} in this flock; see `quelea ps`"))
}

async fn app(
    State(shared): State<Shared>,
    Path((namespace, app)): Path<(String, String)>,
) -> Answer<super::types::AppDetail> {
    let asked = (namespace.clone(), app.clone());
    let view = shared.core.call(move |node| node.app_view(&asked.0, &asked.1)).await?;
    view.map(Json).ok_or_else(|| no_such_app(&namespace, &app))
}

async fn why(
    State(shared): State<Shared>,
    Path((namespace, app)): Path<(String, String)>,
) -> Answer<super::types::Why> {
    let asked = (namespace.clone(), app.clone());
    let view = shared.core.call(move |node| node.why_view(&asked.0, &asked.1)).await?;
    view.map(Json).ok_or_else(|| no_such_app(&namespace, &app))
}

async fn put_app(
    State(shared): State<Shared>,
    Path((namespace, app)): Path<(String, String)>,
    body: Body,
) -> Answer<super::types::Accepted> {
    let bytes = small_body(body).await?;
    let signed = Signed::from_bytes(&bytes).map_err(|e| Refused(400, e.to_string()))?;
    let submit = move |node: &mut Node| node.submit(&namespace, &app, &signed);
    let taken = shared.core.call(submit).await?;
    let (accepted, durable) = taken.map_err(|(status, message)| Refused(status, message))?;
    match tokio::time::timeout(DURABLE_TIMEOUT, durable).await {
        Ok(Ok(())) => Ok(Json(accepted)),
        _ => Err(Refused(
            503,
            format!(
                "{} has taken it but cannot say that it is on disk after {DURABLE_TIMEOUT:?}: look at `quelea ps` before submitting again",
                accepted.node
            ),
        )),
    }
}

pub(super) async fn small_body(body: Body) -> Result<Bytes, Refused> {
    axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|error| Refused(413, format!("the request's body: {error}")))
}

async fn images(State(shared): State<Shared>) -> Answer<Vec<super::types::Image>> {
    shared.core.call(|node| node.images_view()).await.map(Json)
}

#[derive(Deserialize)]
struct Reference {
    reference: Option<String>,
}

async fn resolve(
    State(shared): State<Shared>,
    Query(query): Query<Reference>,
) -> Answer<super::types::Image> {
    let reference = query.reference.unwrap_or_default();
    let found = shared.core.call(move |node| node.resolve_image(&reference)).await?;
    found.map(Json).map_err(|(status, message)| Refused(status, message))
}

/// Takes an OCI layout or a `docker save`, as a tar, into the store, and tells the flock.
async fn import(
    State(shared): State<Shared>,
    Query(query): Query<Reference>,
    mut body: Body,
) -> Answer<super::types::Image> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Refused(500, format!("{what}: {error}"));
    std::fs::create_dir_all(&shared.uploads).map_err(|e| failed("cannot keep the upload", &e))?;
    // Unlinked at once: nothing remains of an import that breaks off.
    let file = unnamed_file(&shared.uploads).map_err(|e| failed("cannot keep the upload", &e))?;
    while let Some(frame) = body.frame().await {
        use std::io::Write as _;
        let frame = frame.map_err(|e| Refused(400, format!("the upload broke off: {e}")))?;
        if let Some(chunk) = frame.data_ref() {
            (&file).write_all(chunk).map_err(|e| failed("cannot keep the upload", &e))?;
        }
    }
    let store = shared.store.clone();
    let (sender, receiver) = oneshot::channel();
    // Hashing takes seconds for a large image: on a thread of its own.
    std::thread::spawn(move || {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let from = std::path::Path::new(&path);
        let result = store.import(from, query.reference.as_deref(), &mut |_| {});
        // People know what they sent, not by which descriptor it is read.
        let _ = sender.send(result.map_err(|error| error.to_string().replace(&path, "the upload")));
    });
    let record = receiver
        .await
        .map_err(|_| Refused(500, "the import was interrupted".into()))?
        .map_err(|error| Refused(422, format!("the image cannot be imported: {error}")))?;
    let told = shared.core.call(move |node| node.announce(&record)).await?;
    told.map(Json).map_err(|(status, message)| Refused(status, message))
}

fn unnamed_file(dir: &std::path::Path) -> std::io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::fcntl::OFlag::O_TMPFILE.bits())
        .mode(0o600)
        .open(dir)
}

async fn blob(
    State(shared): State<Shared>,
    Path((kind, digest, size)): Path<(String, String, u64)>,
) -> Result<Response, Refused> {
    let kind = match kind.as_str() {
        "manifest" => BlobKind::Manifest,
        "config" => BlobKind::Config,
        "layer" => BlobKind::Layer,
        other => return Err(Refused(400, format!("no such kind of blob: {other}"))),
    };
    let digest = digest.parse().map_err(|e| Refused(400, format!("{digest}: {e}")))?;
    let blob = BlobRef { kind, digest, size_bytes: size };
    let slot = shared.slots.clone().acquire_owned().await;
    let slot = slot.map_err(|_| Refused(503, "the agent is stopping".into()))?;
    let (mut file, length) = shared
        .store
        .open_blob(&blob)
        .map_err(|error| Refused(404, format!("{kind} {digest} is not here: {error}")))?;
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(2);
    // Reads may wait for the disk: on a thread of its own, bounded by the slots.
    std::thread::spawn(move || {
        use std::io::Read as _;
        let _slot = slot;
        loop {
            let mut chunk = Vec::with_capacity(BLOB_CHUNK_BYTES);
            let read = (&mut file).take(BLOB_CHUNK_BYTES as u64).read_to_end(&mut chunk);
            let end = matches!(read, Ok(0) | Err(_));
            let item = read.map(|_| Bytes::from(chunk));
            if matches!(item, Ok(ref bytes) if bytes.is_empty())
                || sender.blocking_send(item).is_err()
                || end
            {
                return;
            }
        }
    });
    Ok((
        [
            (header::CONTENT_LENGTH, length.to_string()),
            (header::CONTENT_TYPE, "application/octet-stream".into()),
        ],
        streamed(receiver),
    )
        .into_response())
}

/// A body of what comes through a channel.
fn streamed(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
    struct Stream(mpsc::Receiver<std::io::Result<Bytes>>);
    impl hyper::body::Body for Stream {
        type Data = Bytes;
        type Error = std::io::Error;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            self.0.poll_recv(context).map(|item| item.map(|item| item.map(Frame::data)))
        }
    }
    Body::new(Stream(receiver))
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

async fn events(
    State(shared): State<Shared>,
    Query(query): Query<Since>,
) -> Answer<Vec<super::types::Event>> {
    shared.core.call(move |node| node.events.since(query.since)).await.map(Json)
}

#[derive(Deserialize)]
struct LogQuery {
    container: Option<String>,
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

async fn logs(
    State(shared): State<Shared>,
    Path((namespace, pod)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Refused> {
    let asked = pod.clone();
    let found = shared.core.call(move |node| node.logs_of(&namespace, &asked)).await?;
    let (dir, containers) = found.map_err(|message| Refused(404, message))?;
    let container = match query.container {
        Some(name) if containers.contains(&name) => name,
        Some(name) => {
            let known = containers.join(", ");
            return Err(Refused(404, format!("{pod} has no container {name}; it has {known}")));
        }
        None => containers.into_iter().next().unwrap_or_default(),
    };
    let opened = match query.tail {
        Some(lines) => Tail::last(&dir, &container, lines),
        None => Tail::oldest(&dir, &container),
    };
    let mut tail = opened.map_err(|e| Refused(500, format!("the log of {pod}: {e}")))?;
    let (sender, receiver) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let mut bytes = Vec::new();
            let item = match tail.read(LOG_CHUNK_BYTES, &mut bytes) {
                Ok(true) => Ok(Bytes::from(bytes)),
                // The pod's directory goes when the pod goes.
                Ok(false) if !query.follow || sender.is_closed() || !dir.exists() => return,
                Ok(false) => {
                    tokio::time::sleep(FOLLOW_EVERY).await;
                    continue;
                }
                Err(error) => Err(std::io::Error::other(error.to_string())),
            };
            let failed = item.is_err();
            if sender.send(item).await.is_err() || failed {
                return;
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "text/plain")], streamed(receiver)).into_response())
}

async fn exec_in(
    State(shared): State<Shared>,
    Path((namespace, pod)): Path<(String, String)>,
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
    let (stdin_read, stdin) = std::io::pipe().map_err(failed)?;
    let (stdout, stdout_write) = std::io::pipe().map_err(failed)?;
    let (stderr, stderr_write) = std::io::pipe().map_err(failed)?;
    let stdio: [OwnedFd; 3] = [stdin_read.into(), stdout_write.into(), stderr_write.into()];
    let request = ExecRequest { namespace, pod, container: exec.container, argv: exec.argv, stdio };
    let started = shared.core.call(move |node| node.exec(request)).await?;
    let news = started.map_err(|message| Refused(404, message))?;
    let fds: [OwnedFd; 3] = [stdin.into(), stdout.into(), stderr.into()];
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // A client that goes away ends the exec's input; its output is dropped.
            let _ = carry_exec(TokioIo::new(upgraded), fds, news).await;
        }
    });
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::CONNECTION, "upgrade"), (header::UPGRADE, exec::PROTOCOL)],
    )
        .into_response())
}

async fn carry_exec(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    mut news: mpsc::UnboundedReceiver<ExecNews>,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::unix::pipe;
    let nonblocking = |fd: OwnedFd| {
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        Ok::<_, std::io::Error>(fd)
    };
    let mut stdin = Some(pipe::Sender::from_owned_fd(nonblocking(stdin)?)?);
    let mut stdout = pipe::Receiver::from_owned_fd(nonblocking(stdout)?)?;
    let mut stderr = pipe::Receiver::from_owned_fd(nonblocking(stderr)?)?;
    let (mut from, mut to) = tokio::io::split(stream);
    // Input has a task of its own, as reading a frame must not be interrupted half-way.
    let input = tokio::spawn(async move {
        while let Ok(Some((Kind::Stdin, bytes))) = exec::read(&mut from).await {
            if bytes.is_empty() {
                stdin = None;
            } else if let Some(pipe) = &mut stdin
                && pipe.write_all(&bytes).await.is_err()
            {
                stdin = None;
            }
        }
    });
    let (mut out, mut err) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let (mut out_open, mut err_open) = (true, true);
    let mut ended = None;
    while out_open || err_open || ended.is_none() {
        tokio::select! {
            read = stdout.read(&mut out), if out_open => match read {
                Ok(0) | Err(_) => out_open = false,
                Ok(n) => exec::write(&mut to, Kind::Stdout, out.get(..n).unwrap_or_default()).await?,
            },
            read = stderr.read(&mut err), if err_open => match read {
                Ok(0) | Err(_) => err_open = false,
                Ok(n) => exec::write(&mut to, Kind::Stderr, err.get(..n).unwrap_or_default()).await?,
            },
            said = news.recv(), if ended.is_none() => {
                ended = Some(said.unwrap_or_else(|| ExecNews::Failed("the pod is gone".into())));
            }
        }
    }
    match ended {
        Some(ExecNews::Exited(exit)) => {
            exec::write(&mut to, Kind::Exit, &exit.shell_code().to_be_bytes()).await?;
        }
        Some(ExecNews::Failed(reason)) => {
            exec::write(&mut to, Kind::Failed, reason.as_bytes()).await?;
        }
        None => {}
    }
    to.shutdown().await?;
    input.abort();
    Ok(())
}
