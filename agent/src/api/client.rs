//! A client of the API: over TLS to any address, or over the unix socket of a node on this machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::relay;
use super::types::Failure;
use crate::error::Error;
use crate::flock::NODE_SUFFIX;

/// How long a connection may take to come up, one through another node included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest JSON answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A request's body.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Where a node's API is.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// The unix socket of a node on this machine.
    Unix(PathBuf),
    /// A node on the network. Its certificate must name `node`.
    Https {
        /// Address and port.
        addr: SocketAddr,
        /// The node's name.
        node: String,
        /// Who is calling, and whom it trusts.
        tls: Arc<ClientConfig>,
    },
    /// A node behind another one, which carries the bytes and cannot read them.
    Via {
        /// The node that is reached.
        through: Box<Endpoint>,
        /// The node that is spoken with; its certificate must name it.
        node: String,
        /// Who is calling, and whom it trusts.
        tls: Arc<ClientConfig>,
    },
    /// A machine that no flock knows, by the fingerprint of its key; see [`crate::stranger::client::tls`].
    Stranger {
        /// Address and port.
        addr: SocketAddr,
        /// Which key it must have.
        tls: Arc<ClientConfig>,
        /// A node on its link that carries the bytes, where it is out of reach from here.
        through: Option<Box<Endpoint>>,
    },
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Https { addr, node, .. } => write!(f, "https://{addr} ({node})"),
            Self::Via { through, node, .. } => write!(f, "{node} through {through}"),
            Self::Stranger { addr, through: None, .. } => write!(f, "the machine at {addr}"),
            Self::Stranger { addr, through: Some(through), .. } => {
                write!(f, "the machine at {addr} through {through}")
            }
        }
    }
}

/// An empty body.
pub fn empty() -> Body {
    full(Vec::new())
}

/// A body held in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

impl Endpoint {
    /// Sends one request on a connection of its own and returns the answer's head; the body can be streamed. An answer that
    /// is no success becomes [`Error::Refused`] with the node's words.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<Incoming>, Error> {
        self.send_with(method, path, body, None).await
    }

    /// Sends a `POST` whose answer leaves HTTP for another protocol.
    pub async fn upgrade(
        &self,
        path: &str,
        body: Body,
        protocol: &'static str,
    ) -> Result<Response<Incoming>, Error> {
        self.send_with(Method::POST, path, body, Some(protocol)).await
    }

    async fn send_with(
        &self,
        method: Method,
        path: &str,
        body: Body,
        protocol: Option<&'static str>,
    ) -> Result<Response<Incoming>, Error> {
        let what = format!("{method} {path}");
        let fail = |reason: String| Error::Request {
            endpoint: self.to_string(),
            what: what.clone(),
            reason,
        };
        let unreachable =
            |reason: String| Error::Unreachable { endpoint: self.to_string(), reason };
        let connect = tokio::time::timeout(CONNECT_TIMEOUT, self.connect());
        let stream = connect
            .await
            .map_err(|_| unreachable(format!("no connection within {CONNECT_TIMEOUT:?}")))?
            .map_err(|error| unreachable(error.to_string()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream))
                .await
                .map_err(|error| fail(error.to_string()))?;
        // Ends with the connection; a failure shows up in the request as well.
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let mut request =
            Request::builder().method(method).uri(path).header(hyper::header::HOST, "quelea");
        if let Some(protocol) = protocol {
            request = request
                .header(hyper::header::CONNECTION, "upgrade")
                .header(hyper::header::UPGRADE, protocol);
        }
        let request = request.body(body).map_err(|error| fail(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|error| fail(error.to_string()))?;
        let status = response.status();
        if status.is_success() || status == hyper::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(response);
        }
        let bytes = read_all(response).await.map_err(fail)?;
        let message = serde_json::from_slice::<Failure>(&bytes).map_or_else(
            |_| format!("{what}: {status}: {}", String::from_utf8_lossy(&bytes).trim()),
            |failure| failure.error,
        );
        Err(Error::Refused { status: status.as_u16(), message })
    }

    /// Sends a request and reads a JSON answer.
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<T, Error> {
        let what = format!("{method} {path}");
        let fail = |reason: String| Error::Request { endpoint: self.to_string(), what, reason };
        let response = self.send(method, path, body).await?;
        let bytes = match read_all(response).await {
            Ok(bytes) => bytes,
            Err(reason) => return Err(fail(reason)),
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| fail(format!("the answer is not what was asked for: {error}")))
    }

    /// `GET` with a JSON answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.json(Method::GET, path, empty()).await
    }

    /// Sends a JSON body and reads a JSON answer.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let bytes = serde_json::to_vec(body)
            .map_err(|e| Error::Malformed { what: "request", reason: e.to_string() })?;
        self.json(Method::POST, path, full(bytes)).await
    }

    /// A connection that this node carries on.
    async fn relayed(&self, path: &str) -> std::io::Result<TokioIo<hyper::upgrade::Upgraded>> {
        let sent = self.upgrade(path, empty(), relay::PROTOCOL).await;
        let response = sent.map_err(std::io::Error::other)?;
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(std::io::Error::other)
    }

    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            match self {
                Self::Unix(path) => {
                    Ok(Box::new(UnixStream::connect(path).await?) as Box<dyn Stream>)
                }
                Self::Https { addr, node, tls } => {
                    let stream = TcpStream::connect(addr).await?;
                    stream.set_nodelay(true)?;
                    shake_hands(stream, format!("{node}{NODE_SUFFIX}"), tls).await
                }
                Self::Via { through, node, tls } => {
                    let carried = through.relayed(&relay::path(node)).await?;
                    shake_hands(carried, format!("{node}{NODE_SUFFIX}"), tls).await
                }
                Self::Stranger { addr, tls, through } => {
                    let name = crate::stranger::client::SERVER_NAME.to_owned();
                    match through {
                        None => shake_hands(TcpStream::connect(addr).await?, name, tls).await,
                        Some(node) => {
                            let path = relay::stranger_path(addr.ip());
                            shake_hands(node.relayed(&path).await?, name, tls).await
                        }
                    }
                }
            }
        })
    }
}

type Connecting<'a> = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn Stream>>> + Send + 'a>>;

async fn shake_hands(
    stream: impl Stream + 'static,
    name: String,
    tls: &Arc<ClientConfig>,
) -> std::io::Result<Box<dyn Stream>> {
    let name = ServerName::try_from(name).map_err(std::io::Error::other)?;
    let connector = tokio_rustls::TlsConnector::from(tls.clone());
    Ok(Box::new(connector.connect(name, stream).await?))
}

async fn read_all(response: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
}

/// What a request can run over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
