//! Apps come, move, change and go; nodes and agents die.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Flock, eventually, hello_spec, pids_with};

fn by_node(pods: &[Value]) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for pod in pods {
        *count.entry(pod["node"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    count
}

fn ready(pods: &[Value]) -> usize {
    pods.iter().filter(|pod| pod["ready"] == true && pod["node_alive"] == true).count()
}

const SPREAD: &str = "[place]\nspread = [{ by = \"rack\", max_skew = 1, mode = \"hard\" }]\n";

#[test]
fn replicas_answer_across_nodes_and_move_off_a_dead_one() {
    let flock = Flock::up("life", 3);
    let spec = flock.file("hello.toml", &hello_spec(6, SPREAD));
    flock.ok(&["--node", "n1", "run", &spec]);
    // Every node tells the same, though only n1 was told.
    eventually("n3 knows what n1 knows", || ready(&flock.pods("n3", "hello")) == 6);
    let pods = flock.pods("n2", "hello");
    assert_eq!(
        by_node(&pods),
        [("n1", 2), ("n2", 2), ("n3", 2)].map(|(n, c)| (n.into(), c)).into()
    );
    let addresses: BTreeSet<&str> = pods.iter().map(|pod| pod["ip"].as_str().unwrap()).collect();
    assert_eq!(addresses.len(), 6);

    let on = |node: &str| pods.iter().find(|pod| pod["node"] == node).unwrap();
    let (from, to) = (on("n1"), on("n3"));
    let url = format!("http://{}:8080/", to["ip"].as_str().unwrap());
    let answer = flock.ok(&["exec", from["name"].as_str().unwrap(), "--", "/hello", "get", &url]);
    assert!(answer.starts_with(&format!("hello from {} on n3", to["name"].as_str().unwrap())));

    flock.ok(&["dev", "kill", "n3"]);
    eventually("six are ready on n1 and n2", || {
        let pods = flock.pods("n1", "hello");
        let elsewhere: Vec<Value> = pods.into_iter().filter(|pod| pod["node"] != "n3").collect();
        ready(&elsewhere) == 6
    });
    // It comes back with its disk; nothing runs twice in the end.
    flock.ok(&["dev", "start", "n3"]);
    eventually("six replicas, one a slot, n3 alive", || {
        let pods = flock.pods("n1", "hello");
        let names: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["name"].as_str()).collect();
        let nodes = flock.json(&["nodes"]);
        let alive = nodes["nodes"].as_array().unwrap().iter().all(|node| node["state"] == "alive");
        pods.len() == 6 && names.len() == 6 && ready(&pods) == 6 && alive
    });

    flock.ok(&["--node", "n3", "stop", "hello"]);
    assert_eq!(flock.pods("n1", "hello").len(), 0);
}

#[test]
fn pods_outlive_their_agent() {
    let flock = Flock::up("agent", 1);
    let spec = flock.file("hello.toml", &hello_spec(2, ""));
    flock.ok(&["run", &spec]);
    let before = flock.pods("n1", "hello");
    let agent = format!("agent --config {}", flock.run_dir().join("nodes/n1/node.toml").display());
    let pids = pids_with(&agent);
    assert_eq!(pids.len(), 1, "one agent");
    kill(Pid::from_raw(pids[0]), Signal::SIGKILL).unwrap();
    eventually("another agent answers", || {
        pids_with(&agent).first().is_some_and(|pid| *pid != pids[0])
            && flock.say(&["status"]).code == 0
    });
    eventually("the same pods are ready", || ready(&flock.pods("n1", "hello")) == 2);
    let after = flock.pods("n1", "hello");
    let identity = |pods: &[Value]| -> Vec<(Value, Value, Value)> {
        pods.iter().map(|p| (p["claim"].clone(), p["ip"].clone(), p["restarts"].clone())).collect()
    };
    assert_eq!(identity(&before), identity(&after));
    // Their network still works, through the new agent's data thread.
    let url = format!("http://{}:8080/", after[1]["ip"].as_str().unwrap());
    flock.ok(&["exec", "hello.0", "--", "/hello", "get", &url]);
    flock.ok(&["stop", "hello"]);
}

/// Does something while n1 has no agent.
fn without_agent(flock: &Flock, meanwhile: impl FnOnce()) {
    let node = flock.run_dir().join("nodes/n1");
    let init = std::fs::read_to_string(node.join("pid")).unwrap();
    let init = Pid::from_raw(init.trim().parse().unwrap());
    let agent = format!("agent --config {}", node.join("node.toml").display());
    // PID 1 stands still, so that no other agent comes.
    kill(init, Signal::SIGSTOP).unwrap();
    kill(Pid::from_raw(pids_with(&agent)[0]), Signal::SIGKILL).unwrap();
    eventually("no agent", || pids_with(&agent).is_empty());
    meanwhile();
    kill(init, Signal::SIGCONT).unwrap();
    eventually("another agent answers", || flock.say(&["status"]).code == 0);
}

#[test]
fn what_has_a_cgroup_and_no_directory_is_ended() {
    let flock = Flock::up("lost", 1);
    let spec = flock.file("hello.toml", &hello_spec(1, ""));
    flock.ok(&["run", &spec]);
    let claim = flock.pods("n1", "hello")[0]["claim"].as_str().unwrap().to_owned();
    let shim = format!("quelea-shim shim {claim}");
    assert!(!pids_with(&shim).is_empty());
    let node = flock.run_dir().join("nodes/n1");
    without_agent(&flock, || {
        std::fs::rename(node.join("run/pods").join(&claim), node.join("away")).unwrap();
    });
    eventually("its shim is gone", || pids_with(&shim).is_empty());
    eventually("another is ready", || {
        let pods = flock.pods("n1", "hello");
        ready(&pods) == 1 && pods.iter().all(|pod| pod["claim"] != claim)
    });
}

#[test]
fn a_pod_that_ended_while_there_was_no_agent_says_how() {
    let flock = Flock::up("unheard", 1);
    flock.import_tools();
    let spec = "app = \"brief\"\n[[container]]\nname = \"c\"\nimage = \"tools\"\ncommand = [\"/bin/sh\", \"-c\", \"sleep 98317; exit 3\"]\ncpu = 0.02\nmemory = \"16Mi\"\nrestart = \"never\"\n";
    let file = flock.file("brief.toml", spec);
    flock.ok(&["run", &file]);
    let claim = flock.pods("n1", "brief")[0]["claim"].as_str().unwrap().to_owned();
    without_agent(&flock, || {
        let sleeps = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line == b"sleep\x0098317\x00"
        };
        let pid = pids_with("sleep 98317").into_iter().find(sleeps).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let dir = flock.run_dir().join("nodes/n1/run/pods").join(&claim);
        eventually("its shim has stopped", || initd::shim::last_status(&dir).is_ok());
    });
    let said = flock.reason("brief", &["the pod ended", "exited with code 3"]);
    assert!(said.starts_with("failed"), "{said}");
    flock.ok(&["stop", "brief"]);
}

#[test]
fn a_new_generation_replaces_the_old_and_scales() {
    let flock = Flock::up("update", 2);
    let spec = flock.file("hello.toml", &hello_spec(2, ""));
    flock.ok(&["run", &spec]);
    let first: BTreeSet<String> =
        flock.pods("n1", "hello").iter().map(|p| p["claim"].to_string()).collect();
    // Scaling touches no running pod.
    let spec = flock.file("hello.toml", &hello_spec(4, ""));
    flock.ok(&["run", &spec]);
    let second: BTreeSet<String> =
        flock.pods("n1", "hello").iter().map(|p| p["claim"].to_string()).collect();
    assert!(second.len() == 4 && second.is_superset(&first), "{first:?} {second:?}");
    // Another environment is another pod.
    let text = hello_spec(4, "").replace("cpu = 0.05", "cpu = 0.05\nenv = { COLOUR = \"red\" }");
    let spec = flock.file("hello.toml", &text);
    flock.ok(&["run", &spec]);
    eventually("only new pods", || {
        let pods = flock.pods("n1", "hello");
        pods.len() == 4 && pods.iter().all(|p| !second.contains(&p["claim"].to_string()))
    });
}

#[test]
fn a_program_that_exits_is_started_again_and_told_of() {
    let flock = Flock::up("exit", 1);
    let text = hello_spec(1, "").replace("ready =", "command = [\"/hello\", \"nonsense\"]\n#");
    let spec = flock.file("hello.toml", &text);
    flock.ok(&["run", "--detach", &spec]);
    eventually("a restart is counted", || {
        let pods = flock.pods("n1", "hello");
        pods.first().is_some_and(|pod| pod["restarts"].as_u64() > Some(0))
    });
    let logs = flock.ok(&["logs", "hello.0"]);
    assert!(logs.contains("usage: hello"), "{logs}");
    let why = flock.ok(&["why", "hello"]);
    assert!(why.contains("exited with code 1"), "{why}");
    flock.ok(&["stop", "hello"]);
}

#[test]
fn a_killed_supervisor_takes_its_nodes_along_and_the_next_one_cleans_up() {
    let flock = Flock::up("crash", 2);
    let spec = flock.file("hello.toml", &hello_spec(2, ""));
    flock.ok(&["run", &spec]);
    let pid = std::fs::read_to_string(flock.run_dir().join("supervisor.pid")).unwrap();
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let marker = flock.run_dir().display().to_string();
    eventually("no process of the flock is left", || pids_with(&marker).is_empty());
    // A process that is being killed may still have its socket for a moment.
    eventually("`quelea nodes` says what to do", || {
        let said = flock.say(&["nodes"]);
        said.code == 1 && said.err.contains("no node with power")
    });
    flock.ok(&["dev", "--nodes", "1", "--detach"]);
    assert_eq!(flock.json(&["nodes"])["nodes"].as_array().unwrap().len(), 1);
    flock.ok(&["dev", "stop"]);
    assert!(!flock.run_dir().exists());
    assert!(!std::path::Path::new("/var/lib/quelea-dev").join(&flock.name).exists());
}

#[test]
fn ctrl_c_removes_everything() {
    let flock = Flock::named("ctrlc");
    let mut child = flock.command(&["dev", "--nodes", "2"]).spawn().unwrap();
    eventually("the flock is up", || flock.run_dir().join("control.sock").exists());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!flock.run_dir().exists());
    assert!(pids_with(&flock.run_dir().display().to_string()).is_empty());
}
