//! The stranger's end: two calls over TLS, and the answer to who is there.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Json;
use axum::routing::{get, post};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};

use super::{Card, Identity, search};
use crate::adopt;
use crate::api::server::{Answer, Refused, connection, small_body};
use crate::api::types::{Adopt, AdoptAnswer};
use crate::config::{API_PORT, NodeFile};
use crate::found::Boot;

/// The call that asks for its card.
pub const CARD_PATH: &str = "/v1/stranger";
/// The call that adopts it.
pub const ADOPT_PATH: &str = "/v1/adopt";
/// Connections at a time; more wait.
const CONNECTIONS_MAX: usize = 4;
/// Longest that one lasts.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an adopted machine listens on, so that its answer arrives.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// The least time between two answers to who is there.
const ANSWER_PAUSE: Duration = Duration::from_millis(20);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections share.
struct Desk {
    card: Card,
    file: NodeFile,
    path: std::path::PathBuf,
    taken: AtomicBool,
    adopted: Notify,
}

/// Listens until it is adopted.
pub(super) async fn serve(
    identity: Identity,
    card: Card,
    file: &NodeFile,
    path: &Path,
) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, API_PORT));
    let listener =
        TcpListener::bind(any).await.with_context(|| format!("cannot listen on TCP {any}"))?;
    let socket =
        UdpSocket::bind(any).await.with_context(|| format!("cannot listen on UDP {any}"))?;
    tracing::info!(
        "no configuration: to adopt this machine, type: quelea adopt {} --fingerprint {} --name NAME",
        card.address,
        card.fingerprint
    );
    let desk = Arc::new(Desk {
        card,
        file: file.clone(),
        path: path.into(),
        taken: AtomicBool::new(false),
        adopted: Notify::new(),
    });
    let tls = tokio_rustls::TlsAcceptor::from(identity.tls);
    let app = router(Arc::clone(&desk));
    tokio::select! {
        () = desk.adopted.notified() => {}
        () = answer(&socket, &desk.card) => {}
        () = accept(&listener, &tls, &app) => {}
    }
    Ok(())
}

/// Who is there?
async fn answer(socket: &UdpSocket, card: &Card) {
    let mut buffer = [0; search::DATAGRAM_BYTES + 1];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await
            && let Some(bytes) = buffer.get(..length).and_then(|b| search::answer(b, card))
        {
            // Who asks asks again.
            let _ = socket.send_to(&bytes, from).await;
        }
        tokio::time::sleep(ANSWER_PAUSE).await;
    }
}

async fn accept(listener: &TcpListener, tls: &tokio_rustls::TlsAcceptor, app: &Router) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Never closed, so acquiring cannot fail.
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let talking = talk(stream, tls.clone(), app.clone());
        tokio::spawn(async move {
            // Who is slow or goes away has lost nothing but time.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, talking).await;
            drop(place);
        });
    }
}

async fn talk(stream: TcpStream, tls: tokio_rustls::TlsAcceptor, app: Router) {
    let Ok(stream) = tls.accept(stream).await else { return };
    // The agent's own server, which is in the program anyway.
    connection(stream, app).await;
}

fn router(desk: Arc<Desk>) -> Router {
    Router::new()
        .route(CARD_PATH, get(card))
        .route(ADOPT_PATH, post(adopt))
        .fallback(|request: Request| async move {
            let (method, path) = (request.method(), request.uri().path());
            let why = "this machine belongs to no flock; adopt it by `quelea adopt`";
            Refused(404, format!("{method} {path}: {why}"))
        })
        .with_state(desk)
}

async fn card(State(desk): State<Arc<Desk>>) -> Json<Card> {
    Json(desk.card.clone())
}

/// The first that is valid is the only one.
async fn adopt(State(desk): State<Arc<Desk>>, body: Body) -> Answer<AdoptAnswer> {
    let bytes = small_body(body).await?;
    let given: Adopt =
        serde_json::from_slice(&bytes).map_err(|e| Refused(400, format!("no adoption: {e}")))?;
    if desk.taken.load(Ordering::Relaxed) {
        return Err(Refused(409, "this machine has just been adopted".into()));
    }
    let disk = Boot::read(&desk.file.run).state == "disk";
    // Nothing waits in between: two at once are one after the other.
    let adopted = adopt::adopt(&given, &desk.file, &desk.path, None, disk).map_err(|error| {
        let status = if matches!(error, crate::Error::Io { .. }) { 500 } else { 400 };
        Refused(status, error.to_string())
    })?;
    desk.taken.store(true, Ordering::Relaxed);
    let kept = adopted.words(!disk);
    tracing::info!("adopted as {}; {kept}", given.name);
    let ended = Arc::clone(&desk);
    tokio::spawn(async move {
        // Time for the answer to leave.
        tokio::time::sleep(LAST_WORDS).await;
        ended.adopted.notify_one();
    });
    Ok(Json(AdoptAnswer { kept }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::client::Endpoint;
    use crate::flock::{Bundle, Credentials};
    use crate::stranger::{Fingerprint, client};

    #[test]
    fn whoever_knows_the_fingerprint_adopts_it_once() {
        let dir = crate::testing::temp_dir("stranger");
        let bundle = Bundle::create(&dir.join("bundle"), "test", "alice").unwrap();
        bundle.issue_node("n7", &dir.join("n7")).unwrap();
        let etc = dir.join("etc");
        let file = NodeFile {
            credentials: etc.clone(),
            state: dir.join("state"),
            run: dir.join("run"),
            ..NodeFile::default()
        };
        let given = Adopt {
            name: "n7".into(),
            join: vec!["10.0.0.2:7400".parse().unwrap()],
            labels: [("rack".to_owned(), "r1".to_owned())].into(),
            files: adopt::files_of(&dir.join("n7")).unwrap(),
        };
        let identity = Identity::fresh().unwrap();
        let fingerprint = identity.fingerprint;
        let desk = Arc::new(Desk {
            card: Card { fingerprint: fingerprint.to_string(), ..Card::default() },
            file,
            path: etc.join("node.toml"),
            taken: AtomicBool::new(false),
            adopted: Notify::new(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let tls = tokio_rustls::TlsAcceptor::from(identity.tls);
            let app = router(Arc::clone(&desk));
            let accepting = tokio::spawn(async move { accept(&listener, &tls, &app).await });
            let of = |fingerprint| Endpoint::Stranger {
                addr,
                tls: client::tls(fingerprint).unwrap(),
                through: None,
            };
            let wrong = of(Fingerprint([1; 16])).get::<Card>(CARD_PATH).await;
            assert!(wrong.is_err(), "another machine's key");
            let right = of(fingerprint);
            let card: Card = right.get(CARD_PATH).await.unwrap();
            assert_eq!(card, desk.card);
            let said = right.get::<Card>("/v1/nodes").await.unwrap_err().to_string();
            assert!(said.contains("belongs to no flock"), "{said}");
            let mut short = given.clone();
            short.files.remove("node.key");
            let said = right.post::<AdoptAnswer>(ADOPT_PATH, &short).await.unwrap_err().to_string();
            assert!(said.contains("node.key"), "{said}");
            assert!(!etc.join("node.toml").exists(), "nothing has changed");
            let huge =
                Adopt { name: "x".repeat(crate::api::server::BODY_BYTES_MAX), ..given.clone() };
            assert!(right.post::<AdoptAnswer>(ADOPT_PATH, &huge).await.is_err());
            right.post::<AdoptAnswer>(ADOPT_PATH, &given).await.unwrap();
            desk.adopted.notified().await;
            let said = right.post::<AdoptAnswer>(ADOPT_PATH, &given).await.unwrap_err().to_string();
            assert!(said.contains("has just been adopted"), "{said}");
            accepting.abort();
        });
        let now = NodeFile::open(&etc.join("node.toml")).unwrap();
        assert_eq!((now.name.as_deref(), now.labels["rack"].as_str()), (Some("n7"), "r1"));
        assert_eq!(now.join, given.join);
        assert_eq!(Credentials::open(&etc).unwrap().node, "n7");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
