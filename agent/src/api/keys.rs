//! The calls by which an operator rotates the gossip keys, node by node.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, body::Body};

use super::server::{Answer, Refused, Shared, small_body};
use crate::keys::{Stand, Step};
use crate::tls::Caller;

/// One step at a time: it is planned on the core thread, written by this one, and taken over on the core thread.
static STEP: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The calls, for operators.
pub(super) fn routes() -> Router<Shared> {
    Router::new().route("/v1/keys", get(stand).post(step))
}

async fn stand(State(shared): State<Shared>) -> Answer<Stand> {
    shared.core.call(|node| node.keys_view()).await.map(Json)
}

async fn step(State(shared): State<Shared>, body: Body) -> Answer<Stand> {
    let bytes = small_body(body).await?;
    // The error would show what was sent, and that holds a key.
    let step: Step = serde_json::from_slice(&bytes)
        .map_err(|_| Refused(400, "the request is not a step of a key rotation".into()))?;
    let _one = STEP.lock().await;
    let planned = shared.core.call(move |node| node.keys_plan(&step)).await?;
    let (ring, path) = planned.map_err(|(status, message)| Refused(status, message))?;
    let written = ring.clone();
    tokio::task::spawn_blocking(move || written.write(&path))
        .await
        .map_err(|error| Refused(500, format!("the keys were not written: {error}")))?
        .map_err(|error| Refused(500, format!("the keys stay as they were: {error}")))?;
    let applied = shared.core.call(move |node| node.keys_apply(ring)).await?;
    applied.map(Json).map_err(|(status, message)| Refused(status, message))
}

/// Refuses nodes that were evicted.
pub(super) async fn not_evicted(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(Caller::Node(name)) = request.extensions().get::<Caller>() {
        let asked = name.clone();
        match shared.core.call(move |node| node.has_evicted(&asked)).await {
            Ok(false) => {}
            Ok(true) => return Refused(403, format!("{name} was evicted")).into_response(),
            Err(refused) => return refused.into_response(),
        }
    }
    next.run(request).await
}
