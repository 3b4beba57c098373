//! Images over the API: what there is, what a name means, import, and blobs for other nodes.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Json, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use imagefs::{BlobKind, BlobRef};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use super::server::{Answer, Refused, Shared};
use crate::reserve;

/// The largest image that is taken in, in bytes of its tar.
const IMPORT_BYTES_MAX: u64 = 64 << 30;
/// An import that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// So many bytes of an upload are taken between two looks at the disk.
const LOOK_BYTES: u64 = 8 << 20;
/// Bytes of a blob read and sent in one go.
const BLOB_CHUNK_BYTES: usize = 256 * 1024;

pub(super) async fn list(State(shared): State<Shared>) -> Answer<Vec<super::types::Image>> {
    shared.core.call(|node| node.images_view()).await.map(Json)
}

#[derive(Deserialize)]
pub(super) struct Reference {
    reference: Option<String>,
}

pub(super) async fn resolve(
    State(shared): State<Shared>,
    Query(query): Query<Reference>,
) -> Answer<super::types::Image> {
    let reference = query.reference.unwrap_or_default();
    let found = shared.core.call(move |node| node.resolve_image(&reference)).await?;
    found.map(Json).map_err(|(status, message)| Refused(status, message))
}

/// Takes a name, or an image, out of the flock.
pub(super) async fn remove(
    State(shared): State<Shared>,
    Query(query): Query<Reference>,
) -> Answer<super::types::Image> {
    let reference = query.reference.unwrap_or_default();
    let removed = shared.core.call(move |node| node.remove_image(&reference)).await?;
    removed.map(Json).map_err(|(status, message)| Refused(status, message))
}

/// Takes an OCI layout or a `docker save`, as a tar, into the store, and tells the flock.
pub(super) async fn import(
    State(shared): State<Shared>,
    Query(query): Query<Reference>,
    mut body: Body,
) -> Answer<super::types::Image> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| Refused(500, format!("{what}: {error}"));
    std::fs::create_dir_all(&shared.uploads).map_err(|e| failed("cannot keep the upload", &e))?;
    // Unlinked at once: nothing remains of an import that breaks off.
    let file = unnamed_file(&shared.uploads).map_err(|e| failed("cannot keep the upload", &e))?;
    let (mut taken, mut looked) = (0, None);
    loop {
        use std::io::Write as _;
        let frame = tokio::time::timeout(SILENCE, body.frame()).await;
        let frame = frame.map_err(|_| {
            Refused(408, format!("the upload was silent for {SILENCE:?}: import it again"))
        })?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Refused(400, format!("the upload broke off: {e}")))?;
        if let Some(chunk) = frame.data_ref() {
            taken += chunk.len() as u64;
            if taken > IMPORT_BYTES_MAX {
                return Err(Refused(
                    413,
                    format!(
                        "the image has more than {IMPORT_BYTES_MAX} bytes: leave out what it does not run"
                    ),
                ));
            }
            if looked.is_none_or(|at| taken - at >= LOOK_BYTES) {
                looked = Some(taken);
                room(&shared, 0).await?;
            }
            (&file).write_all(chunk).map_err(|e| failed("cannot keep the upload", &e))?;
        }
    }
    // What is unpacked takes about as much again, beside the upload.
    room(&shared, reserve::image_bytes(taken)).await?;
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

/// Refuses what the disk has no room for; what nobody needs is given up meanwhile.
async fn room(shared: &Shared, wanted_bytes: u64) -> Result<(), Refused> {
    let Err(lacks) = reserve::check(shared.store.root(), wanted_bytes) else { return Ok(()) };
    let bytes = lacks.bytes();
    shared.core.call(move |node| node.make_room(bytes)).await?;
    Err(Refused(
        507,
        format!(
            "the image is not kept: {lacks}; what nobody needs is removed now: import it again, or on another node"
        ),
    ))
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

pub(super) async fn blob(
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
pub(super) fn streamed(receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> Body {
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
