//! Images go when an operator says so and nothing needs them; and what nodes and replicas use is told.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Flock, eventually, hello_spec};

fn store(flock: &Flock, node: &str) -> PathBuf {
    PathBuf::from("/var/lib/quelea-dev").join(&flock.name).join(node).join("images")
}

fn count(dir: PathBuf) -> usize {
    std::fs::read_dir(dir).into_iter().flatten().flatten().count()
}

fn image(flock: &Flock, node: &str, name: &str) -> Option<Value> {
    let images = flock.json(&["--node", node, "image", "ls"]);
    let all = images.as_array().unwrap();
    all.iter().find(|image| image["reference"] == name).cloned()
}

#[test]
fn an_image_goes_when_nothing_needs_it_and_comes_back() {
    let flock = Flock::up("images", 2);
    let spec = flock.file(
        "hello.toml",
        &hello_spec(2, "[place]\nspread = [{ by = \"rack\", max_skew = 1, mode = \"hard\" }]\n"),
    );
    flock.ok(&["--node", "n1", "run", &spec]);
    let hello = image(&flock, "n2", "hello:latest").unwrap();
    assert_eq!(hello["used_by"][0], "default/hello");
    eventually("both nodes hold it", || {
        image(&flock, "n1", "hello:latest").unwrap()["nodes"].as_array().unwrap().len() == 2
    });
    let said = flock.say(&["--node", "n2", "image", "rm", "hello"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("used by default/hello") && said.err.contains("quelea stop"),
        "{said:?}"
    );

    // A second name of the same bytes: one name may go while an app needs them.
    let layout = flock.dir.join("hello.oci").display().to_string();
    flock.ok(&["--node", "n1", "image", "import", &layout, "--tag", "other:1"]);
    let said = flock.ok(&["--node", "n1", "image", "rm", "other:1"]);
    assert!(said.contains("other names"), "{said}");
    let said = flock.say(&["image", "rm", "nothere", "neither"]);
    assert!(
        said.code == 1 && said.err.contains("nothere") && said.err.contains("neither"),
        "{said:?}"
    );

    flock.ok(&["--node", "n1", "stop", "hello"]);
    // Through any node, by its digest.
    let digest = hello["digest"].as_str().unwrap();
    eventually("n2 knows that it is not used", || {
        image(&flock, "n2", "hello:latest").unwrap()["used_by"].as_array().unwrap().is_empty()
    });
    flock.ok(&["--node", "n2", "image", "rm", digest]);
    for node in ["n1", "n2"] {
        eventually(&format!("{node} gave its bytes back"), || {
            let dir = store(&flock, node);
            count(dir.join("layers")) == 0 && count(dir.join("blobs/sha256")) == 0
        });
        assert!(image(&flock, node, "hello:latest").is_none());
        eventually(&format!("{node} tells of it"), || {
            flock.ok(&["--node", node, "events"]).contains("it was removed from the flock")
        });
    }
    let said = flock.say(&["run", &spec]);
    assert!(said.err.contains("image hello is not there"), "{said:?}");
    flock.import_hello();
    flock.ok(&["--node", "n1", "run", &spec]);
    flock.ok(&["--node", "n1", "stop", "hello"]);
}

#[test]
fn top_tells_of_all_nodes_through_any() {
    let flock = Flock::up("top", 2);
    flock.import_tools();
    let busy = "app = \"busy\"\n[place]\nrequire = [\"rack == r2\"]\n[[container]]\nname = \"c\"\nimage = \"tools\"\ncommand = [\"/bin/sh\", \"-c\", \"while :; do :; done\"]\ncpu = 0.05\nmemory = \"16Mi\"\nstop = { grace = \"1s\" }\n";
    let spec = flock.file("busy.toml", busy);
    flock.ok(&["--node", "n1", "run", &spec]);
    let spec = flock.file("hello.toml", &hello_spec(1, "[place]\nrequire = [\"rack == r1\"]\n"));
    flock.ok(&["--node", "n1", "run", &spec]);
    let top = flock.json(&["--node", "n1", "top"]);
    assert_eq!(top["nodes"].as_array().unwrap().len(), 2, "{top}");
    let pods = top["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 2, "{top}");
    assert_eq!(pods[0]["name"], "busy.0", "most CPU first: {top}");
    assert_eq!(pods[0]["node"], "n2");
    let cpu = pods[0]["cpu_milli"].as_f64().unwrap();
    assert!(cpu > 1.0 && cpu > pods[1]["cpu_milli"].as_f64().unwrap(), "{top}");
    assert!(pods[1]["received_bytes_per_s"].as_f64().is_some(), "{top}");
    let text = flock.ok(&["--node", "n2", "top", "hello", "--on", "n1"]);
    assert!(text.contains("default/hello.0") && !text.contains("busy"), "{text}");
    assert!(!text.contains('\u{1b}'), "no terminal, no control codes: {text:?}");
    let said = flock.say(&["top", "--on", "n9"]);
    assert!(said.code == 1 && said.err.contains("no node n9"), "{said:?}");
    let said = flock.say(&["top", "nothere"]);
    assert!(said.code == 1 && said.err.contains("no replica of default/nothere"), "{said:?}");
    for app in ["busy", "hello"] {
        flock.ok(&["--node", "n1", "stop", app]);
    }
}

#[test]
fn low_ports_need_the_capability() {
    let flock = Flock::up("ports", 1);
    for (app, caps, listens) in [
        ("usual", "", true),
        ("named", "caps = [\"NET_BIND_SERVICE\"]\n", true),
        ("none", "caps = []\n", false),
        ("user", "user = \"1000\"\n", true),
        ("least", "caps = []\nuser = \"1000\"\n", false),
    ] {
        let text = hello_spec(1, caps)
            .replace("app = \"hello\"", &format!("app = \"{app}\""))
            .replace("8080", "80")
            .replace("cpu = 0.05", "cpu = 0.05\nenv = { PORT = \"80\" }\nrestart = \"never\"");
        let spec = flock.file("low.toml", &text);
        if listens {
            flock.ok(&["run", &spec]);
        } else {
            flock.ok(&["run", "--detach", &spec]);
            flock.reason(app, &["exited with code 1"]);
        }
        flock.ok(&["stop", app]);
    }
}
