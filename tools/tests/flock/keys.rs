//! A new gossip key while the flock runs, and a node that does not get it.

use agent::api::client::Endpoint;
use hyper::Method;

use crate::support::{Flock, eventually, hello_spec};
use crate::trust::{beside_n1, https, status_of};

fn states(flock: &Flock, node: &str) -> Vec<(String, String)> {
    let nodes = flock.json(&["--node", node, "nodes"]);
    let field = |n: &serde_json::Value, name: &str| n[name].as_str().unwrap().to_owned();
    let nodes = nodes["nodes"].as_array().unwrap();
    nodes.iter().map(|n| (field(n, "name"), field(n, "state"))).collect()
}

fn all_alive(flock: &Flock, count: usize) -> bool {
    let states = states(flock, "n1");
    states.len() == count && states.iter().all(|(_, state)| state == "alive")
}

/// Files below a directory that hold some bytes.
fn files_with(dir: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_with(&entry.path(), bytes));
        } else if kind.is_file() {
            let content = std::fs::read(entry.path()).unwrap();
            if content.windows(bytes.len()).any(|window| window == bytes) {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn a_flock_gets_a_new_key_while_it_runs_and_an_evicted_node_is_out() {
    let flock = Flock::up("keys", 4);
    let spec = flock.file("hello.toml", &hello_spec(2, ""));
    flock.ok(&["run", &spec]);
    let pids = crate::support::pids_with(&flock.name).len();
    let said = flock.ok(&["--node", "n2", "keys", "rotate"]);
    assert!(said.contains("key 2 is used by 4 nodes"), "{said}");
    for stand in flock.json(&["keys"]).as_array().unwrap() {
        assert_eq!((stand["accepts"][0].as_u64(), stand["uses"].as_u64()), (Some(2), Some(2)));
        assert_eq!(stand["accepts"].as_array().unwrap().len(), 1);
    }
    // Nobody fell, nothing moved.
    assert!(all_alive(&flock, 4));
    for node in ["n1", "n2", "n3", "n4"] {
        let events = flock.ok(&["--node", node, "events", "-o", "json"]);
        assert!(events.contains("gossip key 2 is used; accepted: 2"), "{events}");
        let fell = |message: &str| message == "dead" || message == "suspect";
        for event in events.lines() {
            let event: serde_json::Value = serde_json::from_str(event).unwrap();
            assert!(!fell(event["message"].as_str().unwrap()), "{events}");
        }
    }
    assert_eq!(crate::support::pids_with(&flock.name).len(), pids);
    assert_eq!(flock.pods("n1", "hello").len(), 2);
    assert!(flock.pods("n1", "hello").iter().all(|pod| pod["restarts"] == 0));

    // A node that restarts has the new key; one that is down would be left behind.
    flock.ok(&["dev", "kill", "n4"]);
    eventually("n4 is dead", || !all_alive(&flock, 4));
    eventually("n4 is seen as dead", || {
        states(&flock, "n1").contains(&("n4".into(), "dead".into()))
    });
    let refused = flock.say(&["keys", "rotate"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("n4 is down and would be left behind"), "{}", refused.err);
    flock.ok(&["dev", "start", "n4"]);
    eventually("n4 is back", || all_alive(&flock, 4));

    // Broken off after one node was told: the same command goes on, and whom it may have told cannot be evicted by it.
    let bundle = flock.run_dir().join("flock");
    let next = agent::flock::Bundle::open(&bundle).unwrap().keys().unwrap().next([]).unwrap();
    next.write(&bundle.join(agent::keys::NEXT_FILE)).unwrap();
    let n2 = Endpoint::Unix(flock.run_dir().join("nodes/n2/run/api.sock"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let [accept, ..] = next.steps().unwrap();
    let told = n2.post::<agent::keys::Stand>("/v1/keys", &accept);
    assert_eq!(runtime.block_on(told).unwrap().accepts.len(), 2);
    let late = flock.say(&["keys", "rotate", "--evict", "n3"]);
    assert!(late.err.contains("may have given n3 the new key"), "{}", late.err);
    let on = flock.ok(&["keys", "rotate"]);
    assert!(on.contains("going on"), "{on}");

    let said = flock.ok(&["--node", "n1", "keys", "rotate", "--evict", "n3"]);
    assert!(said.contains("n3 is out"), "{said}");
    let names = |node: &str| -> Vec<String> {
        states(&flock, node).into_iter().map(|(name, _)| name).collect()
    };
    eventually("n3 is no member any more", || {
        ["n1", "n2", "n4"].iter().all(|node| names(node) == ["n1", "n2", "n4"])
    });
    eventually("n3 sees nobody", || {
        states(&flock, "n3").iter().filter(|(_, state)| state == "alive").count() == 1
    });
    // What it writes reaches nobody, and what others write does not reach it.
    flock.ok(&["stop", "hello", "--detach"]);
    eventually("the others know", || {
        flock.json(&["--node", "n2", "ps"])["apps"][0]["stopped"] == true
    });
    assert_eq!(flock.json(&["--node", "n3", "ps"])["apps"][0]["stopped"], false);

    // The newest key is in three nodes' own files and the bundle: not with n3, and in nobody's map.
    let ring = std::fs::read_to_string(flock.run_dir().join("flock/gossip.ring")).unwrap();
    let key = ring.lines().find(|line| line.ends_with(" used")).unwrap();
    let key = key.split_whitespace().nth(2).unwrap();
    let raw = agent::hex::decode_array::<32>(key).unwrap();
    for node in ["n1", "n2", "n3", "n4"] {
        let dir = flock.run_dir().join("nodes").join(node);
        let state = std::path::Path::new("/var/lib/quelea-dev").join(&flock.name).join(node);
        let mut holders = files_with(&dir, key.as_bytes());
        holders.extend(files_with(&state, key.as_bytes()));
        let expected = usize::from(node != "n3");
        assert_eq!(holders.len(), expected, "{holders:?}");
        assert!(holders.iter().all(|path| path.ends_with("gossip.ring")), "{holders:?}");
        assert!(files_with(&state, &raw).is_empty(), "{node}");
    }
    // Nor does its certificate open anything.
    let stolen = flock.run_dir().join("nodes/n3/credentials");
    let fellow = flock.run_dir().join("nodes/n2/credentials");
    beside_n1(&flock, |runtime| {
        let ask = |dir: &std::path::Path| {
            let peer = https(dir, "node", "n1");
            runtime.block_on(peer.send(Method::GET, "/v1/status", agent::api::client::empty()))
        };
        assert_eq!(status_of(&ask(&stolen).unwrap_err()), 403);
        assert!(ask(&fellow).is_ok());
    });
}
