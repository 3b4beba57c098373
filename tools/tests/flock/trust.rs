//! What a stolen node or a stranger may not do.

use std::net::SocketAddr;
use std::path::Path;

use agent::api::client::{Endpoint, empty, full};
use agent::api::types::Status;
use agent::flock::Bundle;
use agent::trust::{OperatorKey, Submission};
use hyper::Method;
use nix::sched::{CloneFlags, setns};

use crate::support::{Flock, hello_spec};

/// Runs on a thread in the network namespace of the flock's n1.
pub(crate) fn beside_n1<T: Send>(
    flock: &Flock,
    run: impl FnOnce(tokio::runtime::Runtime) -> T + Send,
) -> T {
    let pid = std::fs::read_to_string(flock.run_dir().join("nodes/n1/pid")).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let netns = std::fs::File::open(format!("/proc/{}/ns/net", pid.trim())).unwrap();
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            run(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap())
        });
        thread.join().unwrap()
    })
}

pub(crate) fn https(dir: &Path, who: &str, node: &str) -> Endpoint {
    let addr: SocketAddr = "10.77.0.1:7402".parse().unwrap();
    Endpoint::Https { addr, node: node.into(), tls: agent::tls::client(dir, who).unwrap() }
}

pub(crate) fn status_of(error: &agent::Error) -> u16 {
    match error {
        agent::Error::Refused { status, .. } => *status,
        other => panic!("not an answer of the node: {other}"),
    }
}

#[test]
fn operators_nodes_and_strangers_over_https() {
    let flock = Flock::up("https", 1);
    let bundle = flock.run_dir().join("flock");
    let node = flock.run_dir().join("nodes/n1/credentials");
    let foreign = flock.dir.join("foreign");
    Bundle::create(&foreign, "foreign", "mallory").unwrap();
    beside_n1(&flock, |runtime| {
        let operator = https(&bundle, "operator", "n1");
        let status: Status = runtime.block_on(operator.get("/v1/status")).unwrap();
        assert_eq!(status.name, "n1");
        runtime.block_on(operator.send(Method::GET, "/v1/nodes", empty())).unwrap();

        // A node may ask for its peers' state and blobs, and for nothing else.
        let peer = https(&node, "node", "n1");
        runtime.block_on(peer.send(Method::GET, "/v1/status", empty())).unwrap();
        for path in ["/v1/nodes", "/v1/pods", "/v1/events", "/v1/images"] {
            let error = runtime.block_on(peer.send(Method::GET, path, empty())).unwrap_err();
            assert_eq!(status_of(&error), 403, "{path}");
        }
        // Nor does it carry a node's bytes to another one, nor an operator's to where no node is.
        let relayed = |who: &Endpoint, node: &str| {
            let path = agent::api::relay::path(node);
            let sent = who.upgrade(&path, empty(), agent::api::relay::PROTOCOL);
            runtime.block_on(sent).map(drop).map_err(|error| status_of(&error))
        };
        assert_eq!(relayed(&peer, "n1"), Err(403));
        assert_eq!(relayed(&operator, "n9"), Err(404));
        assert_eq!(relayed(&operator, "127.0.0.1:22"), Err(404));
        // What goes through a relay is the operator's own TLS: the far end knows the operator, or nobody.
        let via = |dir: &Path, who: &str| Endpoint::Via {
            through: Box::new(https(&bundle, "operator", "n1")),
            node: "n1".into(),
            tls: agent::tls::client(dir, who).unwrap(),
        };
        runtime.block_on(via(&bundle, "operator").send(Method::GET, "/v1/nodes", empty())).unwrap();
        let as_node = runtime.block_on(via(&node, "node").send(Method::GET, "/v1/nodes", empty()));
        assert_eq!(status_of(&as_node.unwrap_err()), 403);
        assert!(runtime.block_on(via(&foreign, "operator").get::<Status>("/v1/status")).is_err());
        // Whom another authority vouches for is not talked to, nor is a node that is not who it should be.
        let stranger = https(&foreign, "operator", "n1");
        assert!(runtime.block_on(stranger.send(Method::GET, "/v1/status", empty())).is_err());
        let wrong = https(&bundle, "operator", "n2");
        assert!(runtime.block_on(wrong.send(Method::GET, "/v1/status", empty())).is_err());
    });
}

#[test]
fn a_spec_that_no_operator_signed_changes_nothing() {
    let flock = Flock::up("signed", 1);
    let foreign = flock.dir.join("foreign");
    Bundle::create(&foreign, "foreign", "mallory").unwrap();
    let mallory = OperatorKey::open(&foreign).unwrap();
    let ours = OperatorKey::open(&flock.run_dir().join("flock")).unwrap();
    let submission = |generation| Submission {
        namespace: "default".into(),
        app: "hello".into(),
        generation,
        at_ms: 0,
        stopped: false,
        images: [("hello".into(), digest(&flock))].into(),
        document: hello_spec(1, ""),
    };
    let node = Endpoint::Unix(flock.run_dir().join("nodes/n1/run/api.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let put = |key: &OperatorKey, generation| {
        let body = full(key.sign(&submission(generation)).unwrap().to_bytes().unwrap());
        let sent = node.json::<serde_json::Value>(Method::PUT, "/v1/apps/default/hello", body);
        runtime.block_on(sent).map_err(|error| status_of(&error))
    };
    assert_eq!(put(&mallory, 1), Err(403), "root on the node holds no operator's key");
    assert_eq!(flock.json(&["ps"])["apps"].as_array().unwrap().len(), 0);
    assert!(put(&ours, 1).is_ok());
    assert_eq!(put(&ours, 1), Err(409), "a replay");
}

fn digest(flock: &Flock) -> String {
    let images = flock.json(&["image", "ls"]);
    images[0]["digest"].as_str().unwrap().to_owned()
}
