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
            .stderr(std::fs::File::create(dir.join("console")).expect("console"))
            .spawn()
            .expect("unshare");
        Self { unshare, dir }
    }

    fn init(&self) -> Pid {
        let mut pid = None;
        eventually("PID 1", || {
            pid = self.child();
            pid.is_some()
        });
        pid.expect("found")
    }

    /// PID 1, once `unshare` has started it.
    fn child(&self) -> Option<Pid> {
        let file = format!("/proc/{0}/task/{0}/children", self.unshare.id());
        let text = std::fs::read_to_string(file).ok()?;
        Pid::from_raw(text.split_whitespace().next()?.parse().ok()?)
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What the console shows of this.
    fn console(&self, text: &str) -> Option<String> {
        self.lines("console").into_iter().find(|line| line.contains(text))
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
        // PID 1 first: `unshare` collects it when all of its namespace is gone, so that no process outlives the test.
        match self.child() {
            Some(init) => _ = kill_process(init, Signal::KILL),
            None => _ = self.unshare.kill(),
        }
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
    // More of them come while we look: at some moment all have been reaped.
    let init = node.init();
    eventually("no zombie", || zombies_of(init.as_raw_nonzero().get()) == 0);
    let living = node.lines("workload");
    assert_eq!(living.len(), 1, "the workload was started once and goes on");
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

#[test]
fn an_agent_that_speaks_is_drained_before_it_ends() {
    if !root_or_skip("init_drains") {
        return;
    }
    let mut node = Node::start("drains", &["stub-agent", "speaks"]);
    eventually("the agent", || node.lines("told").contains(&"phase running".to_owned()));
    kill_process(node.init(), Signal::TERM).expect("signal");
    assert_eq!(node.end(), Some(0));
    let told = node.lines("told");
    let drain = told.iter().position(|line| line == "drain 3000 off").expect("drain");
    assert_eq!(told[drain - 1], "phase draining SIGTERM");
    assert!(node.console("the agent was too slow").is_none());
}

#[test]
fn an_agent_that_does_not_drain_has_its_time_and_no_more() {
    if !root_or_skip("init_deaf") {
        return;
    }
    let mut node = Node::start("deaf", &["stub-agent", "deaf"]);
    eventually("the agent", || !node.lines("told").is_empty());
    let start = std::time::Instant::now();
    kill_process(node.init(), Signal::TERM).expect("signal");
    assert_eq!(node.end(), Some(0));
    assert!(start.elapsed() >= std::time::Duration::from_millis(3000), "{:?}", start.elapsed());
    assert!(node.console("drain: the agent was too slow").is_some());
}

#[test]
fn what_an_agent_said_before_a_stop_counts_before_it() {
    if !root_or_skip("init_late") {
        return;
    }
    let mut node = Node::start("late", &["stub-agent", "late"]);
    eventually("the agent", || !node.lines("silent").is_empty());
    let init = node.init();
    // PID 1 finds the first word and the stop when it looks next, both at once.
    kill_process(init, Signal::STOP).expect("signal");
    std::fs::write(node.dir.join("speak"), "").expect("file");
    eventually("its word", || !node.lines("spoken").is_empty());
    kill_process(init, Signal::TERM).expect("signal");
    kill_process(init, Signal::CONT).expect("signal");
    assert_eq!(node.end(), Some(0));
    assert!(node.console("drain: the agent was too slow").is_some(), "it was asked to drain");
}

#[test]
fn the_agent_ends_the_node_and_a_kernel_is_refused_in_a_namespace() {
    if !root_or_skip("init_powers") {
        return;
    }
    let mut node = Node::start("powers", &["stub-agent", "powers"]);
    assert_eq!(node.end(), Some(0));
    assert!(node.console("draining: the agent asks for it").is_some());
    let node = Node::start("stages", &["stub-agent", "stages"]);
    let refused = "refused this is no machine of its own".to_owned();
    eventually("a refusal", || node.lines("told").contains(&refused));
}

#[test]
fn an_agent_that_falls_at_once_is_started_for_maintenance() {
    if !root_or_skip("init_crashes") {
        return;
    }
    // The directory comes first, so what PID 1 adds is what follows it.
    let node = Node::start("crashes", &["stub-agent", "crashes"]);
    let expected = "--maintenance --reason the agent fell 5 times in 60 s; last, it ended: code 7";
    eventually("maintenance", || node.lines("arguments").len() >= 6);
    assert_eq!(node.lines("arguments"), ["", "", "", "", "", expected]);
    let line = node.console("maintenance: the agent fell 5 times").expect("the reason");
    assert!(line.contains("code 7"), "{line}");
}

#[test]
fn a_silent_agent_is_killed_and_started_again() {
    if !root_or_skip("init_hangs") {
        return;
    }
    let node = Node::start("hangs", &["stub-agent", "hangs"]);
    eventually("the first", || !node.lines("agents").is_empty());
    let start = std::time::Instant::now();
    eventually("the second", || node.lines("agents").len() >= 2);
    assert!(start.elapsed() >= std::time::Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(node.console("the agent is silent: killed").is_some());
}

#[test]
fn an_agent_that_floods_the_link_stops_nothing() {
    if !root_or_skip("init_floods") {
        return;
    }
    let mut node = Node::start("floods", &["stub-agent", "floods"]);
    eventually("the agent", || !node.lines("up").is_empty());
    kill_process(node.init(), Signal::TERM).expect("signal");
    assert_eq!(node.end(), Some(0));
}

/// `QUELEA_ORPHAN_SECONDS=60` for the whole minute of the specification; ten seconds otherwise.
#[test]
fn a_thousand_orphans_a_second_leave_nothing() {
    if !root_or_skip("init_orphans") {
        return;
    }
    let node = Node::start("orphans", &["stub-agent", "orphans"]);
    let init = node.init().as_raw_nonzero().get();
    eventually("the first thousand", || !node.lines("warm").is_empty());
    let rss = || {
        let text = std::fs::read_to_string(format!("/proc/{init}/status")).expect("status");
        let line = text.lines().find(|l| l.starts_with("RssAnon")).expect("RssAnon").to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB")
    };
    let fds = || std::fs::read_dir(format!("/proc/{init}/fd")).expect("fds").count();
    let before = (rss(), fds());
    let mut worst = 0;
    loop {
        worst = worst.max(zombies_of(init));
        if !node.lines("made").is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    eventually("no zombie", || zombies_of(init) == 0);
    let (made, after) = (node.lines("made"), (rss(), fds()));
    println!("orphans={made:?} worst_zombies={worst} anon_kib={before:?}->{after:?}");
    assert!(made[0].parse::<u64>().expect("count") >= 10_000, "{made:?}");
    assert_eq!(after.1, before.1, "descriptors");
    assert!(after.0 <= before.0 + 64, "anonymous memory of PID 1 grew: {before:?} {after:?} KiB");
    assert!(worst < 500, "{worst} zombies at once: half a second behind");
}

/// Children of PID 1 that nobody has reaped.
fn zombies_of(init: i32) -> usize {
    let children = std::fs::read_to_string(format!("/proc/{init}/task/{init}/children"));
    let children = children.unwrap_or_default();
    let stat = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let state = |stat: &String| {
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    };
    children.split_whitespace().filter_map(stat).filter(state).count()
}
