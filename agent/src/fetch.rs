//! The fetch thread: images from the peers that hold them, blob by blob, each verified before it counts.
//!
//! A peer is asked over TLS and must be the node that it is asked as; what it sends must hash to the digest that the signed spec names,
//! so a lying peer costs time and nothing else. Peers are tried in the order given; one that fails is not asked again for this
//! image.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::Method;
use imagefs::{BlobRef, ImageRecord, Store};
use rustls::ClientConfig;

use crate::api::client::{Endpoint, empty};
use crate::api::server::blob_path;
use crate::reserve;

/// A peer that sends nothing for this long is given up.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// Orders that may wait.
pub const ORDERS_MAX: usize = 128;

/// One image to get.
#[derive(Clone, Debug)]
pub struct Order {
    /// What it consists of.
    pub record: ImageRecord,
    /// Who should have it, and the address of its API; the nearest first.
    pub holders: Vec<(String, SocketAddr)>,
}

/// What became of an order.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The image's manifest digest.
    pub digest: String,
    /// Its bytes were received from others; 0 if all of it was here.
    pub received_bytes: u64,
    /// Bytes that had to be given back first, where that is why it is not here.
    pub lacks_bytes: u64,
    /// Where it came from, or where it was looked for and what happened there.
    pub result: Result<String, String>,
}

/// Gets images into a store.
pub struct Fetcher {
    store: Arc<Store>,
    tls: Arc<ClientConfig>,
    runtime: tokio::runtime::Runtime,
}

impl Fetcher {
    /// A fetcher that calls peers with the node's certificate.
    pub fn new(store: Arc<Store>, tls: Arc<ClientConfig>) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { store, tls, runtime })
    }

    /// Gets one image; returns when all of it is here and linked, or nobody could give it.
    pub fn run(&self, order: &Order) -> Fetched {
        let digest = order.record.manifest_digest.to_string();
        let missing = self.store.missing(&order.record);
        let wanted = missing.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size_bytes));
        // What is all here takes no more room.
        if !missing.is_empty()
            && let Err(lacks) = reserve::check(self.store.root(), reserve::image_bytes(wanted))
        {
            let result = Err(format!("image {}: {lacks}", order.record.reference));
            return Fetched { digest, received_bytes: 0, lacks_bytes: lacks.bytes(), result };
        }
        let mut received_bytes = 0;
        let result = self.runtime.block_on(self.fetch(order, &mut received_bytes));
        Fetched { digest, received_bytes, lacks_bytes: 0, result }
    }

    async fn fetch(&self, order: &Order, received: &mut u64) -> Result<String, String> {
        // Nothing that is half here may be collected as garbage in the meantime.
        let _pin = self.store.pin(&order.record);
        let mut tried = Vec::new();
        let mut source = "this node".to_owned();
        for (name, addr) in &order.holders {
            let missing = self.store.missing(&order.record);
            if missing.is_empty() {
                break;
            }
            match self.fetch_from(name, *addr, &missing, received).await {
                Ok(()) => source.clone_from(name),
                Err(error) => tried.push(format!("{name} ({addr}): {error}")),
            }
        }
        if !self.store.missing(&order.record).is_empty() {
            let reference = &order.record.reference;
            return Err(if tried.is_empty() {
                format!(
                    "image {reference}: no live node holds it; import it again with `quelea image import`"
                )
            } else {
                format!("image {reference}: looked for it at {}", tried.join("; "))
            });
        }
        let linked = self.store.link(&order.record);
        linked.map(|_| source).map_err(|e| format!("image {}: {e}", order.record.reference))
    }

    async fn fetch_from(
        &self,
        node: &str,
        addr: SocketAddr,
        blobs: &[BlobRef],
        received: &mut u64,
    ) -> Result<(), String> {
        let endpoint = Endpoint::Https { addr, node: node.to_owned(), tls: self.tls.clone() };
        for blob in blobs {
            let mut ingest = self.store.ingest(*blob).map_err(|e| e.to_string())?;
            let response = endpoint
                .send(Method::GET, &blob_path(blob), empty())
                .await
                .map_err(|e| e.to_string())?;
            let mut body = response.into_body();
            loop {
                let frame = tokio::time::timeout(SILENCE, body.frame())
                    .await
                    .map_err(|_| format!("silent for {SILENCE:?}"))?;
                let Some(frame) = frame else { break };
                let frame = frame.map_err(|e| e.to_string())?;
                if let Some(bytes) = frame.data_ref() {
                    *received += u64::try_from(bytes.len()).unwrap_or(0);
                    ingest.write(bytes).map_err(|e| e.to_string())?;
                }
            }
            ingest.commit().map_err(|e| e.to_string())?;
            crate::fall::step("fetching");
        }
        Ok(())
    }
}
