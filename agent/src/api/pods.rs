//! One pod over the API: what its containers do, and what they wrote. For operators, on the node that has it.

use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Json, Response};
use hyper::body::Bytes;
use initd::log::Tail;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::images::streamed;
use super::server::{Answer, Refused, Shared};
use super::types::PodDetail;

/// Pause between two looks at a followed log.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// Bytes of a log sent in one go, about.
const LOG_CHUNK_BYTES: usize = 64 * 1024;
/// A shim that does not answer by then is shown as it was last seen.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) type PodPath = Path<(String, String)>;

pub(super) async fn detail(
    State(shared): State<Shared>,
    Path((namespace, pod)): PodPath,
) -> Answer<PodDetail> {
    let (space, name) = (namespace.clone(), pod.clone());
    let asked = shared.core.call(move |node| node.look_at(&space, &name)).await?;
    if let Some(answer) = asked.map_err(|message| Refused(404, message))? {
        // One that ended meanwhile, or hangs, has been seen all the same.
        let _ = tokio::time::timeout(LOOK_TIMEOUT, answer).await;
    }
    let found = shared.core.call(move |node| node.pod_detail(&namespace, &pod)).await?;
    found.map(Json).map_err(|message| Refused(404, message))
}

#[derive(Deserialize)]
pub(super) struct LogQuery {
    container: Option<String>,
    tail: Option<usize>,
    /// Lines written earlier are left out: RFC 3339 in UTC, as lines begin.
    since: Option<String>,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn logs(
    State(shared): State<Shared>,
    Path((namespace, pod)): PodPath,
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
        let mut since = query.since;
        loop {
            let mut bytes = Vec::new();
            // Asked first: what was written before the directory went is still read.
            let there = dir.exists();
            let item = match tail.read(LOG_CHUNK_BYTES, &mut bytes) {
                Ok(true) => Ok(Bytes::from(newer(bytes, &mut since))),
                // The pod's directory goes when the pod goes.
                Ok(false) if !query.follow || sender.is_closed() || !there => return,
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

/// Whole lines without those at their beginning that are older than `since`. Times are of one width and zone, so they compare
/// as text; lines are in the order of their writing, so the first newer one ends the search.
fn newer(bytes: Vec<u8>, since: &mut Option<String>) -> Vec<u8> {
    let Some(from) = since else { return bytes };
    let mut at = 0;
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        let time = line.split(|b| *b == b' ').next().unwrap_or_default();
        if time >= from.trim_end_matches('Z').as_bytes() {
            *since = None;
            return bytes.get(at..).unwrap_or_default().to_vec();
        }
        at += line.len();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_before_a_time_are_left_out_once() {
        let log = b"2026-01-01T00:00:00.000000001Z stdout F a\n2026-01-01T00:00:02.000000000Z stdout F b\n2026-01-01T00:00:01.000000000Z stdout F c\n";
        let mut since = Some("2026-01-01T00:00:01Z".to_owned());
        let kept = newer(log.to_vec(), &mut since);
        assert_eq!(kept, log[42..].to_vec());
        assert_eq!(since, None, "a clock that was set back hides nothing later");
        let mut since = Some("2027".to_owned());
        assert!(newer(log.to_vec(), &mut since).is_empty() && since.is_some());
        assert_eq!(newer(log.to_vec(), &mut None), log.to_vec());
    }
}
