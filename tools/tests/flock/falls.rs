//! An agent is gone at each step of a pod's launch and of its end: the next one finishes or cleans up, says so, and leaves
//! nothing behind.

use std::path::PathBuf;

use crate::support::{Flock, eventually, hello_spec, pids_with};

fn node(flock: &Flock) -> PathBuf {
    flock.run_dir().join("nodes/n2")
}

/// The next agent of n2 that comes to this step is gone.
fn arm(flock: &Flock, step: &str) {
    std::fs::write(node(flock).join("run/fall"), step).unwrap();
}

fn fell(flock: &Flock, step: &str) {
    eventually(&format!("the agent of n2 fell at {step}"), || {
        !node(flock).join("run/fall").exists()
    });
}

/// An app of one replica that only n2 may run.
fn spec(app: &str, image: &str) -> String {
    hello_spec(1, "[place]\nrequire = [\"rack == r2\"]\n")
        .replace("app = \"hello\"", &format!("app = \"{app}\""))
        .replace("image = \"hello\"", &format!("image = \"{image}\""))
}

fn start(flock: &Flock, app: &str, image: &str) {
    let file = flock.file(&format!("{app}.toml"), &spec(app, image));
    flock.ok(&["--node", "n1", "run", "--detach", &file]);
}

fn ready(flock: &Flock, app: &str) {
    eventually(&format!("{app} is ready"), || {
        let pods = flock.pods("n1", app);
        pods.len() == 1 && pods[0]["ready"] == true && pods[0]["node_alive"] == true
    });
}

fn names(dir: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Everything on n2 that belongs to a pod.
fn traces(flock: &Flock) -> Vec<String> {
    let mut found = names(node(flock).join("run/pods"));
    found
        .extend(names(PathBuf::from("/var/lib/quelea-dev").join(&flock.name).join("n2/images/up")));
    let pid = std::fs::read_to_string(node(flock).join("pid")).unwrap();
    let pid = pid.trim();
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let run = node(flock).join("run").display().to_string();
    found.extend(mounts.lines().filter(|line| line.contains(&run)).map(str::to_owned));

    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let mine = namespace(pid);
    let shims = pids_with("quelea-shim shim").into_iter().map(|pid| pid.to_string());
    found.extend(shims.filter(|pid| namespace(pid) == mine).map(|pid| format!("shim {pid}")));
    let state = flock.json(&["--node", "n2", "nodes"]);
    assert_eq!(state["answered_by"], "n2");
    let agents = pids_with(&format!("agent --config {}", node(flock).join("node.toml").display()));
    assert_eq!(agents.len(), 1, "one agent");
    // One TUN is the node's own.
    let fds = std::fs::read_dir(format!("/proc/{}/fd", agents[0])).unwrap().flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    let tuns = links.filter(|link| link.ends_with("net/tun")).count();
    found.extend((1..tuns).map(|n| format!("TUN {n}")));
    for tree in ["pods", "shims"] {
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            for cgroup in names(root.into()) {
                let dir = PathBuf::from(root).join(&cgroup).join(tree);
                if cgroup == own_cgroup(flock) {
                    let dirs = std::fs::read_dir(dir).into_iter().flatten().flatten();
                    let dirs = dirs.filter(|entry| entry.path().is_dir());
                    found.extend(dirs.map(|entry| entry.path().display().to_string()));
                }
            }
        }
    }
    found
}

/// The name of n2's cgroup.
fn own_cgroup(flock: &Flock) -> String {
    let dev: serde_json::Value =
        serde_json::from_slice(&std::fs::read(flock.run_dir().join("flock.json")).unwrap())
            .unwrap();
    let nodes = dev["nodes"].as_array().unwrap();
    let n2 = nodes.iter().find(|node| node["name"] == "n2").unwrap();
    n2["cgroup"].as_str().unwrap().to_owned()
}

fn nothing_is_left(flock: &Flock, step: &str) {
    let mut left = Vec::new();
    eventually(&format!("nothing is left of what fell at {step}: {left:?}"), || {
        left = traces(flock);
        left.is_empty()
    });
}

#[test]
fn a_fetch_that_was_broken_off_is_taken_up_again() {
    let flock = Flock::up("fetches", 2);
    flock.import_tools();
    // The first pod of an image on n2 fetches it. `tools` has no `hello` in it: that it is tried shows that all of it is there.
    for (step, app, image) in [("fetching", "first", "hello"), ("fetched", "second", "tools")] {
        arm(&flock, step);
        start(&flock, app, image);
        fell(&flock, step);
        if image == "hello" {
            ready(&flock, app);
            let why = flock.ok(&["--node", "n1", "why", app]);
            assert!(why.contains("ended while it fetched its image"), "{why}");
        } else {
            flock.reason(app, &["neither the spec nor the image"]);
        }
        flock.ok(&["--node", "n1", "stop", app]);
        nothing_is_left(&flock, step);
    }
}

/// At each of these steps an agent falls; four at most, as after five falls a minute its PID 1 starts it in maintenance.
fn launches(flock: &Flock, steps: &[&str], words: &str) {
    assert!(steps.len() <= 4);
    for step in steps {
        arm(flock, step);
        start(flock, step, "hello");
        fell(flock, step);
        ready(flock, step);
        let why = flock.ok(&["--node", "n1", "why", step]);
        assert!(why.contains(words), "{step}: {why}");
        let events = flock.ok(&["--node", "n2", "events"]);
        let told = events.contains(&format!("pod/{step}.0")) && events.contains(words);
        assert!(told || words.is_empty(), "{step}: {events}");
        if words.is_empty() {
            let pods = flock.pods("n1", step);
            assert!(pods[0]["restarts"] == 0 && !why.contains("ended while"), "{pods:?} {why}");
        }
        flock.ok(&["--node", "n1", "stop", step]);
        nothing_is_left(flock, step);
    }
}

#[test]
fn a_launch_that_was_broken_off_before_its_mounts_is_cleaned_up_and_told_of() {
    let flock = Flock::up("early", 2);
    launches(&flock, &["files", "userns"], "ended while it started it");
}

#[test]
fn a_launch_that_was_broken_off_before_its_shim_is_cleaned_up_and_told_of() {
    let flock = Flock::up("late", 2);
    launches(&flock, &["root", "network", "overlay"], "ended while it started it");
}

#[test]
fn a_pod_whose_shim_lives_goes_on() {
    let flock = Flock::up("lives", 2);
    launches(&flock, &["shim", "prepared", "running"], "");
}

#[test]
fn an_offer_that_was_only_just_taken_is_placed_again() {
    let flock = Flock::up("offer", 2);
    // Whether its claim had come to the disk, or to n1, nobody knows.
    for step in ["admitted", "directory"] {
        arm(&flock, step);
        start(&flock, step, "hello");
        fell(&flock, step);
        ready(&flock, step);
        flock.ok(&["--node", "n1", "stop", step]);
        nothing_is_left(&flock, step);
    }
}

#[test]
fn an_agent_that_is_gone_in_mid_teardown_leaves_nothing_behind() {
    let flock = Flock::up("ends", 2);
    for step in ["teardown", "killed", "unmounted"] {
        start(&flock, step, "hello");
        ready(&flock, step);
        arm(&flock, step);
        flock.ok(&["--node", "n1", "stop", "--detach", step]);
        fell(&flock, step);
        eventually(&format!("{step} is gone"), || flock.pods("n1", step).is_empty());
        nothing_is_left(&flock, step);
    }
}
