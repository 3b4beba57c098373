//! The PID 1 role in a PID namespace of its own.
#![allow(missing_docs)]

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{PROBE, eventually, root_or_skip};
use rustix::process::{Pid, Signal, kill_process};

/// `unshare` as our child, PID 1 as its child.
struct Node {
    unshare: Child,
    dir: std::path::PathBuf,
}

impl Node {
    fn start(name: &str, agent: &[&str]) -> Self {
        let dir = std::env::temp_dir().join(format!("quelea-init-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let unshare = Command::new("unshare")
            .args(["--pid", "--fork", "--mount", "--kill-child", PROBE, "init", PROBE])
            .args(agent)
            .arg(&dir)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("unshare");
        Self { unshare, dir }
    }

    fn init(&self) -> Pid {
        let file = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        let mut pid = None;
        eventually("PID 1", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            pid = text.split_whitespace().next().and_then(|p| Pid::from_raw(p.parse().ok()?));
            pid.is_some()
        });
        pid.expect("found")
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn end(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the end of PID 1", || {
            code = self.unshare.try_wait().expect("wait");
            code.is_some()
        });
        code.and_then(|c| c.code())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn the_agent_is_restarted_while_workloads_go_on_and_orphans_are_reaped() {
    if !root_or_skip("init_restarts") {
        return;
    }
    // Each agent notes its PID and the PIDs it sees, starts an orphan that lives on, and ends.
    let mut node = Node::start("restarts", &["stub-agent", "falls"]);
    eventually("four agents", || node.lines("agents").len() >= 4);
    let agents = node.lines("agents");
    let seen = agents.last().expect("a line").clone();
    let (_, zombies) = seen.split_once("zombies=").expect("count");
    assert_eq!(zombies, "0", "{seen}");
    let living = node.lines("workload");
    assert_eq!(living.len(), 1, "the workload was started once and goes on");
    let init = node.init();
    kill_process(init, Signal::TERM).expect("signal");
    assert_eq!(node.end(), Some(0));
}

#[test]
fn a_stop_lets_the_agent_end_and_then_everything_else() {
    if !root_or_skip("init_stops") {
        return;
    }
    let mut node = Node::start("stops", &["stub-agent", "stays"]);
    eventually("the agent", || !node.lines("up").is_empty());
    kill_process(node.init(), Signal::INT).expect("signal");
    assert_eq!(node.end(), Some(0));
    assert_eq!(node.lines("ended"), ["agent"]);
}

#[test]
fn a_killed_pid_1_takes_everything_with_it() {
    if !root_or_skip("init_killed") {
        return;
    }
    let mut node = Node::start("killed", &["stub-agent", "falls"]);
    eventually("the workload", || !node.lines("workload").is_empty());
    let init = node.init();
    let ours = || {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        text.matches(" - proc ").count()
    };
    let mounts = ours();
    kill_process(init, Signal::KILL).expect("signal");
    assert_ne!(node.end(), Some(0));
    let dir = node.dir.to_string_lossy().into_owned();
    let left = || {
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        processes
            .filter_map(|e| std::fs::read_to_string(e.path().join("cmdline")).ok())
            .any(|c| c.contains(&dir) && c.contains("stub"))
    };
    eventually("the end of all", || !left());
    assert_eq!(ours(), mounts, "its /proc was never ours");
    assert!(Path::new("/proc/self").exists());
}
