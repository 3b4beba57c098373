//! Calls about machines: one node's view, cordon and drain, power, console, adoption, upgrades.
//!
//! `/v1/nodes/NAME` may be asked of any node; `/v1/node/…` is about the node that is asked.

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Json;
use axum::routing::{get, post, put};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::server::{Answer, Refused, Shared, small_body};
use super::types;
use crate::node::Node;
use crate::upgrade::Staging;

/// Bytes of the console that are told.
const CONSOLE_BYTES_MAX: usize = 64 * 1024;
/// The largest record of the kernel's log, in bytes (`PRINTK_MESSAGE_MAX` with its dictionary).
const RECORD_BYTES_MAX: usize = 8192;
/// PID 1 refuses within this time, or it does as it was told.
const REFUSAL: Duration = Duration::from_millis(700);
/// An upload that sends nothing for this long is given up.
const SILENCE: Duration = Duration::from_secs(20);

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/nodes/{name}", get(node))
        .route("/v1/nodes/{name}/forget", post(forget))
        .route("/v1/node/wish", put(wish))
        .route("/v1/node/power", post(power))
        .route("/v1/node/retry", post(retry))
        .route("/v1/node/console", get(console))
        .route("/v1/node/adopt", post(adopt))
        .route("/v1/node/upgrade", post(upgrade))
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let bytes = small_body(body).await?;
    serde_json::from_slice(&bytes).map_err(|e| Refused(400, format!("the request's body: {e}")))
}

fn refused((status, message): (u16, String)) -> Refused {
    Refused(status, message)
}

async fn node(State(shared): State<Shared>, Path(name): Path<String>) -> Answer<types::Node> {
    let asked = name.clone();
    let nodes = shared.core.call(|node| node.nodes_view()).await?;
    let found = nodes.nodes.into_iter().find(|node| node.name == asked);
    found.map(Json).ok_or_else(|| no_such_node(&name))
}

fn no_such_node(name: &str) -> Refused {
    Refused(404, format!("no node {name} in this flock; see `quelea nodes`"))
}

async fn forget(State(shared): State<Shared>, Path(name): Path<String>) -> Answer<types::Wish> {
    let done = shared.core.call(move |node| node.forget(&name)).await?;
    done.map_err(refused)?;
    Ok(Json(types::Wish { wish: String::new() }))
}

async fn wish(State(shared): State<Shared>, body: Body) -> Answer<types::Wish> {
    let wanted: types::Wish = read(body).await?;
    let wish = wanted.wish.clone();
    shared.core.call(move |node| node.wish(&wish)).await?.map_err(refused)?;
    Ok(Json(wanted))
}

async fn power(State(shared): State<Shared>, body: Body) -> Answer<types::PowerOrder> {
    let order: types::PowerOrder = read(body).await?;
    let power = order.power.clone();
    let told = shared.core.call(move |node| node.power(&power)).await?;
    unrefused(told.map_err(refused)?).await?;
    Ok(Json(order))
}

/// Whether PID 1 does as it was told.
async fn unrefused(refusal: oneshot::Receiver<String>) -> Result<(), Refused> {
    match tokio::time::timeout(REFUSAL, refusal).await {
        Ok(Ok(reason)) => Err(Refused(409, format!("PID 1 refused: {reason}"))),
        // Nothing was said: it is under way.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

async fn retry(State(shared): State<Shared>) -> Answer<types::Wish> {
    shared.core.call(Node::retry).await?.map_err(refused)?;
    Ok(Json(types::Wish { wish: String::new() }))
}

async fn console() -> Answer<types::Console> {
    let (sender, receiver) = oneshot::channel();
    // The kernel's log is not a file: reading it may take a while.
    std::thread::spawn(move || sender.send(read_console()));
    let read = receiver.await.map_err(|_| Refused(500, "the console's reader ended".into()))?;
    read.map(Json).map_err(|error| Refused(500, format!("cannot read /dev/kmsg: {error}")))
}

fn read_console() -> std::io::Result<types::Console> {
    let mut kmsg = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open("/dev/kmsg")?;
    let mut ring = Ring::default();
    let mut record = [0; RECORD_BYTES_MAX];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => break,
            Ok(len) => ring.take(record.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            // Overwritten while it was read: the next read is at what is left (kernel, Documentation/ABI/testing/dev-kmsg).
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ring.cut = true,
            Err(error) => return Err(error),
        }
    }
    Ok(ring.finish())
}

/// The newest lines, at most [`CONSOLE_BYTES_MAX`] bytes of them.
#[derive(Default)]
struct Ring {
    lines: std::collections::VecDeque<String>,
    bytes: usize,
    cut: bool,
}

impl Ring {
    /// One record: `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS[,…];TEXT`, then lines of a dictionary that begin with a blank.
    fn take(&mut self, record: &[u8]) {
        let text = String::from_utf8_lossy(record);
        let Some((head, message)) = text.split_once(';') else { return };
        let at_us: u64 = head.split(',').nth(2).and_then(|us| us.parse().ok()).unwrap_or(0);
        let message = message.lines().next().unwrap_or_default();
        let line = format!("[{:5}.{:06}] {message}\n", at_us / 1_000_000, at_us % 1_000_000);
        self.bytes += line.len();
        self.lines.push_back(line);
        while self.bytes > CONSOLE_BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
            self.cut = true;
        }
    }

    fn finish(self) -> types::Console {
        types::Console { text: self.lines.into_iter().collect(), cut: self.cut }
    }
}

async fn adopt(State(shared): State<Shared>, body: Body) -> Answer<types::AdoptAnswer> {
    let given: types::Adopt = read(body).await?;
    let kept = shared.core.call(move |node| node.become_node(&given)).await?.map_err(refused)?;
    Ok(Json(types::AdoptAnswer { kept }))
}

async fn upgrade(State(shared): State<Shared>, mut body: Body) -> Answer<types::Upgrading> {
    let bad = |error: crate::Error| match error {
        crate::Error::Untrusted { .. } => Refused(403, error.to_string()),
        crate::Error::Io { .. } => Refused(507, error.to_string()),
        _ => Refused(400, error.to_string()),
    };
    let mut staging: Staging = shared.core.call(|node| node.staging()).await?.map_err(refused)?;
    loop {
        let frame = tokio::time::timeout(SILENCE, body.frame())
            .await
            .map_err(|_| Refused(408, format!("the upload was silent for {SILENCE:?}")))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|e| Refused(400, format!("the upload broke off: {e}")))?;
        if let Some(bytes) = frame.data_ref() {
            staging.write(bytes).map_err(bad)?;
        }
    }
    let (dir, order, by) = staging.finish().map_err(bad)?;
    let image = order.image();
    let told = shared.core.call(move |node| node.start_upgrade(dir, &order, &by)).await?;
    let (boot, refusal) = told.map_err(refused)?;
    unrefused(refusal).await?;
    Ok(Json(types::Upgrading { image, boot }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_keeps_the_newest_lines() {
        let mut ring = Ring::default();
        ring.take(b"6,1,1234567,-;quelea: running after 900 ms\n SUBSYSTEM=pci\n");
        ring.take(b"no record");
        assert_eq!(ring.lines[0], "[    1.234567] quelea: running after 900 ms\n");
        for n in 0..2000 {
            ring.take(format!("6,{n},{n},-;{}", "x".repeat(100)).as_bytes());
        }
        let console = ring.finish();
        assert!(console.cut && console.text.len() <= CONSOLE_BYTES_MAX);
        assert!(console.text.len() > CONSOLE_BYTES_MAX - 200 && !console.text.contains("900 ms"));
    }
}
