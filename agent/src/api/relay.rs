//! Bytes between a caller and another node: the answer to a caller who reaches this node but not that one.
//!
//! The caller speaks TLS with the owner through it, with its own certificate: this node sees ciphertext, and its own authority is
//! never used. It connects to the API of nodes of the flock and to nothing else.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::server::{Refused, Shared};

/// The protocol's name in the `Upgrade` header.
pub const PROTOCOL: &str = "quelea-relay/1";
/// Relays at once through one node; more are refused.
pub const RELAYS_MAX: usize = 64;
/// How long the other node may take to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes carried in one go, each way.
const BUFFER_BYTES: usize = 32 * 1024;

/// The call that opens a relay to a node.
#[must_use]
pub fn path(node: &str) -> String {
    format!("/v1/relay/{node}")
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
    let slot = shared.relays.clone().try_acquire_owned().map_err(|_| {
        Refused(503, format!("this node carries {RELAYS_MAX} connections already: ask another one"))
    })?;
    let upgrade = hyper::upgrade::on(&mut request);
    let asked = node.clone();
    let addr = shared.core.call(move |core| core.api_of(&asked)).await?;
    let addr = addr.map_err(|message| Refused(404, message))?;
    let failed = |why: String| Refused(502, format!("cannot reach {node} at {addr}: {why}"));
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
