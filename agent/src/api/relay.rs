//! Bytes between a caller and another node: the answer to a caller who reaches this node but not that one.
//!
//! The caller speaks TLS with the owner through it, with its own certificate: this node sees ciphertext, and its own authority is
//! never used. It connects to the API of nodes of the flock, to strangers that answered `strangers` a moment ago, and to nothing else.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::server::{Answer, Refused, Shared};
use crate::config::API_PORT;
use crate::stranger::{Card, search};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "quelea-relay/1";
/// Relays at once through one node; more are refused.
pub const RELAYS_MAX: usize = 64;
/// The call that searches for strangers.
pub const STRANGERS_PATH: &str = "/v1/node/strangers";
/// How long a stranger that answered can be reached through this node.
const SEEN_FOR: Duration = Duration::from_secs(600);
/// How long the other node may take to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes carried in one go, each way.
const BUFFER_BYTES: usize = 32 * 1024;

/// The call that opens a relay to a node.
#[must_use]
pub fn path(node: &str) -> String {
    format!("/v1/relay/{node}")
}

/// The call that opens a relay to a stranger.
#[must_use]
pub fn stranger_path(address: IpAddr) -> String {
    format!("{STRANGERS_PATH}/{address}")
}

/// Bounds [`RELAYS_MAX`].
#[must_use]
pub fn slots() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(RELAYS_MAX))
}

pub(super) async fn relay(
    State(shared): State<Shared>,
    Path(node): Path<String>,
    mut request: Request,
) -> Result<Response, Refused> {
    let asked = node.clone();
    let addr = shared.core.call(move |core| core.api_of(&asked)).await?;
    let addr = addr.map_err(|message| Refused(404, message))?;
    carry(&shared, &node, addr, &mut request).await
}

/// Who is there that no flock knows, on the links of this node.
pub(super) async fn strangers(State(shared): State<Shared>) -> Answer<Vec<Card>> {
    let failed = |e: std::io::Error| Refused(500, format!("cannot search: {e}"));
    let found = search::search().await.map_err(failed)?;
    let now = Instant::now();
    let mut seen = shared.strangers.lock().unwrap_or_else(PoisonError::into_inner);
    seen.retain(|_, at| now.duration_since(*at) <= SEEN_FOR);
    let room = search::STRANGERS_MAX.saturating_sub(seen.len());
    seen.extend(found.iter().take(room).filter_map(|c| Some((c.address.parse().ok()?, now))));
    Ok(Json(found))
}

/// The way to one of them.
pub(super) async fn stranger(
    State(shared): State<Shared>,
    Path(address): Path<IpAddr>,
    mut request: Request,
) -> Result<Response, Refused> {
    let seen =
        shared.strangers.lock().unwrap_or_else(PoisonError::into_inner).get(&address).copied();
    if seen.is_none_or(|at| at.elapsed() > SEEN_FOR) {
        return Err(Refused(
            404,
            format!("{address} did not answer here within {SEEN_FOR:?}; see `quelea strangers`"),
        ));
    }
    let addr = SocketAddr::new(address, API_PORT);
    carry(&shared, "that machine", addr, &mut request).await
}

async fn carry(
    shared: &Shared,
    whom: &str,
    addr: SocketAddr,
    request: &mut Request,
) -> Result<Response, Refused> {
    let slot = shared.relays.clone().try_acquire_owned().map_err(|_| {
        Refused(503, format!("this node carries {RELAYS_MAX} connections already: ask another one"))
    })?;
    let upgrade = hyper::upgrade::on(request);
    let failed = |why: String| Refused(502, format!("cannot reach {whom} at {addr}: {why}"));
    let mut stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(addr))
        .await
        .map_err(|_| failed(format!("no answer within {CONNECT_TIMEOUT:?}")))?
        .map_err(|error| failed(error.to_string()))?;
    // Latency only.
    let _ = stream.set_nodelay(true);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let mut caller = TokioIo::new(upgraded);
            // Who goes away first ends it for both.
            let _ = tokio::io::copy_bidirectional_with_sizes(
                &mut caller,
                &mut stream,
                BUFFER_BYTES,
                BUFFER_BYTES,
            )
            .await;
        }
        drop(slot);
    });
    Ok(upgraded(PROTOCOL))
}

/// The answer that leaves HTTP.
pub(super) fn upgraded(protocol: &'static str) -> Response {
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [(header::CONNECTION, "upgrade"), (header::UPGRADE, protocol)],
    )
        .into_response()
}
