//! `hello`: a small static web workload. It tells which pod, node and rack it is, and asks its peers the same.
//!
//! | path       | answer                                                                  |
//! |------------|-------------------------------------------------------------------------|
//! | `/`        | one line of text: pod, node, rack, address                              |
//! | `/info`    | the same as JSON                                                        |
//! | `/peers`   | JSON: every other replica, what it answered to `/info`, and in how long |
//! | `/healthz` | `ok`                                                                    |
//!
//! `hello get URL` makes one request and prints the body, for images that hold nothing else.
//! Peers are read at each request from `/run/quelea/peers.json`, which the node keeps up to date.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

/// Where the node writes the replicas of this app: a JSON list of [`Peer`].
const PEERS_PATH: &str = "/run/quelea/peers.json";
/// A peer that has not answered by then is reported as an error.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest answer read from a peer, in bytes; a longer one is an error.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Connections served at once; more wait in the listen queue.
const CONNECTIONS_MAX: usize = 256;

/// Who this replica is, from the environment that the node sets.
#[derive(Clone, Serialize, Deserialize)]
struct Info {
    pod: String,
    node: String,
    rack: String,
    ip: String,
}

/// One line of the peers file.
#[derive(Deserialize)]
struct Peer {
    pod: String,
    ip: String,
}

/// What became of asking one peer.
#[derive(Serialize)]
struct Asked {
    pod: String,
    ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Info>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    ms: f64,
}

impl Info {
    fn from_env() -> Self {
        let var = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
        Self {
            pod: var("QUELEA_POD"),
            node: var("QUELEA_NODE"),
            rack: var("QUELEA_RACK"),
            ip: var("QUELEA_POD_IP"),
        }
    }

    fn line(&self) -> String {
        format!("hello from {} on {} (rack {}), {}\n", self.pod, self.node, self.rack, self.ip)
    }
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["serve"] => runtime.block_on(serve(Info::from_env())),
        ["get", url] => {
            let (status, body) = runtime.block_on(get(url))?;
            print!("{}", String::from_utf8_lossy(&body));
            if !status.is_success() {
                bail!("{url} answered {status}");
            }
            Ok(())
        }
        _ => bail!("usage: hello [serve] | hello get http://ADDRESS:PORT/PATH"),
    }
}

async fn serve(info: Info) -> Result<()> {
    let port: u16 = match std::env::var("PORT") {
        Ok(text) => text.parse().with_context(|| format!("PORT={text:?} is not a port number"))?,
        Err(_) => 8080,
    };
    // One socket for both families: `::` takes IPv4 too.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", port))
            .await
            .with_context(|| format!("cannot listen on port {port}"))?,
    };
    log(&format!("listening on port {port} as {} on {}", info.pod, info.node));
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await?;
        let (stream, from) = listener.accept().await?;
        let info = info.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let info = info.clone();
                async move { Ok::<_, Infallible>(answer(&request, from, &info).await) }
            });
            // A client that goes away in mid-request is its own affair.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(slot);
        });
    }
}

async fn answer(
    request: &Request<Incoming>,
    from: SocketAddr,
    info: &Info,
) -> Response<Full<Bytes>> {
    // Probes come every second and would drown the rest.
    if request.uri().path() != "/healthz" {
        log(&format!("{} {} from {}", request.method(), request.uri().path(), from.ip()));
    }
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => (StatusCode::OK, "text/plain", info.line()),
        (&Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".into()),
        (&Method::GET, "/info") => (StatusCode::OK, "application/json", json(info)),
        (&Method::GET, "/peers") => match ask_peers(info).await {
            Ok(asked) => (StatusCode::OK, "application/json", json(&asked)),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("{error:#}\n")),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "try /, /info, /peers or /healthz\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

/// A line on standard output; nobody reading it is no reason to stop serving.
fn log(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn json(value: &impl Serialize) -> String {
    // Strings and numbers only: serialising them cannot fail.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

/// Asks every other replica who it is, all at once.
async fn ask_peers(info: &Info) -> Result<Vec<Asked>> {
    let text = std::fs::read(PEERS_PATH).with_context(|| format!("cannot read {PEERS_PATH}"))?;
    let peers: Vec<Peer> = serde_json::from_slice(&text)
        .with_context(|| format!("{PEERS_PATH} is not a peer list"))?;
    let port = std::env::var("PORT").unwrap_or_else(|_| "8080".into());
    let tasks: Vec<_> = peers
        .into_iter()
        .filter(|peer| peer.ip != info.ip)
        .map(|peer| {
            let url = format!("http://{}:{port}/info", peer.ip);
            tokio::spawn(async move {
                let start = Instant::now();
                let result =
                    get(&url).await.and_then(|(_, body)| Ok(serde_json::from_slice(&body)?));
                let ms = (start.elapsed().as_secs_f64() * 1e5).round() / 100.0;
                let (answer, error) = match result {
                    Ok(answer) => (Some(answer), None),
                    Err(error) => (None, Some(format!("{error:#}"))),
                };
                Asked { pod: peer.pod, ip: peer.ip, answer, error, ms }
            })
        })
        .collect();
    let mut asked = Vec::with_capacity(tasks.len());
    for task in tasks {
        asked.push(task.await?);
    }
    Ok(asked)
}

/// One GET to a numeric address; no names, as there is no resolver in a static binary without a libc.
async fn get(url: &str) -> Result<(StatusCode, Bytes)> {
    let uri: hyper::Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
    let authority = uri.authority().with_context(|| format!("{url:?} has no address"))?.clone();
    let port = authority.port_u16().unwrap_or(80);
    let host = authority.host().trim_matches(['[', ']']);
    let address: std::net::IpAddr =
        host.parse().with_context(|| format!("{host:?} is not a numeric address"))?;
    let ask = async {
        let stream = TcpStream::connect((address, port))
            .await
            .with_context(|| format!("cannot connect to {address} port {port}"))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get(uri.path_and_query().map_or("/", |p| p.as_str()))
            .header(hyper::header::HOST, authority.as_str())
            .body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
        Ok((status, body.to_bytes()))
    };
    tokio::time::timeout(ASK_TIMEOUT, ask)
        .await
        .map_err(|_| anyhow::anyhow!("{url} did not answer within {ASK_TIMEOUT:?}"))?
}
