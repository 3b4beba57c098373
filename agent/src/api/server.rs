//! Serves the API: one thread, one tokio runtime. Every question about the flock is a closure run on the core thread.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use imagefs::{BlobRef, Store};
use rustls::ServerConfig;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, oneshot};

use super::core::Core;
use super::types::Failure;
use super::{images, pods, programs, relay};
use crate::node::Node;
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
    /// Bounds [`relay::RELAYS_MAX`].
    pub relays: Arc<Semaphore>,
    /// Strangers that answered, and when.
    pub strangers: Arc<Mutex<BTreeMap<IpAddr, Instant>>>,
    /// The provisioning network, for one operator at a time.
    pub netboot: Arc<super::netboot::Desk>,
}

/// An answer that is no success.
pub(crate) struct Refused(pub(crate) u16, pub(crate) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(Failure { error: self.1 })).into_response()
    }
}

pub(crate) type Answer<T> = Result<Json<T>, Refused>;

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
            connection(stream, app.layer(axum::Extension(Caller::Root))).await;
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
                    connection(stream, app.layer(axum::Extension(caller))).await;
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

/// Serves one connection until its client is done.
pub(crate) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
) {
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
        .route("/v1/blobs/{kind}/{digest}/{size}", get(images::blob))
        .route("/v1/status", get(status))
        .layer(middleware::from_fn_with_state(shared.clone(), super::keys::not_evicted));
    let for_operators = Router::new()
        .route("/v1/nodes", get(nodes))
        .merge(super::machine::routes())
        .merge(super::netboot::routes())
        .route("/v1/pods", get(all_pods))
        .route("/v1/apps", get(apps))
        .route("/v1/apps/{namespace}/{app}", get(app).put(put_app))
        .route("/v1/apps/{namespace}/{app}/why", get(why))
        .route("/v1/images", get(images::list).post(images::import).delete(images::remove))
        .route("/v1/images/resolve", get(images::resolve))
        .route("/v1/events", get(events))
        .route("/v1/usage", get(super::usage::usage))
        .merge(super::keys::routes())
        .route("/v1/pods/{namespace}/{pod}", get(pods::detail))
        .route("/v1/pods/{namespace}/{pod}/logs", get(pods::logs))
        .route("/v1/pods/{namespace}/{pod}/exec", post(programs::exec_in))
        .route("/v1/pods/{namespace}/{pod}/attach", post(programs::attach))
        .route("/v1/pods/{namespace}/{pod}/forward/{port}", post(programs::forward))
        .route("/v1/relay/{node}", post(relay::relay))
        .route(relay::STRANGERS_PATH, get(relay::strangers))
        .route("/v1/node/strangers/{address}", post(relay::stranger))
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

async fn all_pods(State(shared): State<Shared>) -> Answer<Vec<super::types::Pod>> {
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

pub(crate) async fn small_body(body: Body) -> Result<Bytes, Refused> {
    axum::body::to_bytes(body, BODY_BYTES_MAX)
        .await
        .map_err(|error| Refused(413, format!("the request's body: {error}")))
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
