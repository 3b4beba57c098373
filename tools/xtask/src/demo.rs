//! `cargo xtask demo`: the main job, shown on a flock of three nodes on this machine. Each step checks what it shows; the
//! first one that is not so ends the demo with an error.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::flock::{self, Flock};
use crate::run::{self, Built};

/// With one node killed the replacements must be ready by then.
const REPLACED_WITHIN: Duration = Duration::from_secs(10);
/// The agent's resident memory at most.
const AGENT_BYTES_MAX: u64 = 12 << 20;

#[derive(Deserialize)]
struct Ps {
    apps: Vec<App>,
    pods: Vec<Pod>,
}

#[derive(Deserialize)]
struct App {
    ready: u32,
    desired: u32,
}

#[derive(Deserialize, Clone)]
struct Pod {
    name: String,
    node: String,
    node_alive: bool,
    ready: bool,
    ip: String,
}

#[derive(Deserialize)]
struct Status {
    name: String,
    rss_bytes: u64,
    map_root: String,
}

#[derive(Deserialize)]
struct Asked {
    answer: Option<Answer>,
    error: Option<String>,
    ms: f64,
}

#[derive(Deserialize)]
struct Answer {
    pod: String,
    node: String,
}

struct Steps {
    number: u32,
    began: Instant,
    times: Vec<(String, Duration)>,
    title: String,
}

impl Steps {
    fn new() -> Self {
        Self { number: 0, began: Instant::now(), times: Vec::new(), title: String::new() }
    }

    fn next(&mut self, title: &str) {
        self.done();
        self.number += 1;
        println!("\n== {}. {title}", self.number);
        self.began = Instant::now();
        self.title = title.into();
    }

    fn done(&mut self) {
        if self.number > 0 {
            let took = self.began.elapsed();
            println!("   ({:.2} s)", took.as_secs_f64());
            self.times.push((self.title.clone(), took));
        }
    }
}

/// Shows it.
pub(crate) fn demo(keep: bool, json: bool) -> Result<()> {
    let mut figures = Vec::new();
    ensure!(
        run::output(Command::new("id").arg("-u"))?.trim() == "0",
        "the demo makes namespaces and mounts and needs root; run\n  sudo -E $(which cargo) xtask demo"
    );
    println!(
        "The demo builds Quelea, runs a flock of three nodes on this machine, and removes it again."
    );
    println!("It installs, if missing: iproute2. It touches no network but its own namespaces.");
    run::install(&[("ip", "iproute2")])?;

    let mut steps = Steps::new();
    steps.next("build");
    let built = run::build()?;
    // A former run may have been killed.
    run::output(flock::named(&mut Command::new(built.quelea())).args(["dev", "stop"]))?;
    let before = Remains::look()?;

    steps.next("three nodes in three racks");
    let start = Instant::now();
    let flock = Flock::start(built.quelea(), keep)?;
    figures.push(Figure::new("dev_up", start.elapsed().as_secs_f64(), "s", 2.0));
    for node in ["n1", "n2", "n3"] {
        flock.show(&["--node", node, "nodes"])?;
    }
    let roots = ["n1", "n2", "n3"]
        .map(|node| flock.json::<Status>(&["--node", node, "status"]).map(|s| s.map_root));
    println!("map roots: {}", roots.into_iter().collect::<Result<Vec<_>>>()?.join(" "));

    steps.next("an image: packed, imported on n1 alone");
    let layout = pack(&flock, &built)?;
    flock.show(&["--node", "n1", "image", "import", &layout.display().to_string()])?;

    steps.next("six replicas, submitted to n1");
    let spec = run::root().join("images/examples/hello.toml");
    let start = Instant::now();
    flock.show(&["--node", "n1", "run", &spec.display().to_string()])?;
    figures.push(Figure::new("submit_to_6_ready", start.elapsed().as_secs_f64(), "s", 2.0));
    flock.show(&["--node", "n2", "ps"])?;
    let pods = ready_pods(&flock, "n3")?;
    check_spread(&pods)?;
    flock.show(&["image", "ls"])?;

    steps.next("a pod on one node asks a pod on another");
    cross_request(&flock, &pods)?;
    everyone_asks_everyone(&flock, &pods)?;
    flock.show(&["logs", "hello.0", "--tail", "3"])?;

    steps.next("memory of the agents");
    for node in ["n1", "n2", "n3"] {
        let status: Status = flock.json(&["--node", node, "status"])?;
        println!("{} agent: {:.1} MiB resident", status.name, mib(status.rss_bytes));
        figures.push(Figure::new("agent_rss", mib(status.rss_bytes), "MiB", mib(AGENT_BYTES_MAX)));
        ensure!(status.rss_bytes <= AGENT_BYTES_MAX, "more than {:.0} MiB", mib(AGENT_BYTES_MAX));
    }

    steps.next("the power of n3 is cut");
    let lost: Vec<&Pod> = pods.iter().filter(|pod| pod.node == "n3").collect();
    println!("lost: {}", lost.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(" "));
    let took = kill_and_wait(&flock, pods.len())?;
    let goal = REPLACED_WITHIN.as_secs_f64();
    figures.push(Figure::new("kill_to_all_ready", took.as_secs_f64(), "s", goal));
    println!(
        "all {} replicas are ready on n1 and n2 {:.2} s after the kill",
        pods.len(),
        took.as_secs_f64()
    );
    flock.show(&["--node", "n1", "nodes"])?;
    flock.show(&["--node", "n1", "ps"])?;
    let pods = ready_pods(&flock, "n1")?;
    everyone_asks_everyone(&flock, &pods)?;

    if keep {
        steps.done();
        summary(&steps.times, &figures, json);
        keep_words(&built);
        return Ok(());
    }
    steps.next("stop the app, stop the flock, look what remains");
    flock.show(&["--node", "n2", "stop", "hello"])?;
    no_zombies()?;
    flock.stop()?;
    before.compare(&Remains::look()?)?;
    println!("nothing of ours remains: no process, namespace, mount, link, cgroup or file");
    steps.done();
    summary(&steps.times, &figures, json);
    Ok(())
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A figure as all our measurements print it; the lower the better.
struct Figure {
    metric: &'static str,
    value: f64,
    unit: &'static str,
    goal: f64,
}

impl Figure {
    fn new(metric: &'static str, value: f64, unit: &'static str, goal: f64) -> Self {
        Self { metric, value: (value * 1000.0).round() / 1000.0, unit, goal }
    }

    fn line(&self) -> String {
        let Self { metric, value, unit, goal } = self;
        let pass = value <= goal;
        serde_json::json!({
            "bench": "demo", "metric": metric, "value": value, "unit": unit,
            "goal": goal, "better": "lower", "pass": pass,
        })
        .to_string()
    }
}

fn summary(times: &[(String, Duration)], figures: &[Figure], json: bool) {
    println!("\ntimes:");
    for (title, took) in times {
        println!("  {:6.2} s  {title}", took.as_secs_f64());
    }
    if json {
        figures.iter().for_each(|figure| println!("{}", figure.line()));
    }
}

fn keep_words(built: &Built) {
    let quelea = built.quelea();
    let quelea = quelea.display();
    println!(
        "\nthe flock is up; n3 has no power. Try\n  export QUELEA_DEV=demo\n  {quelea} nodes\n  {quelea} dev start n3\n  {quelea} ps\n  {quelea} logs -f hello.0\n  {quelea} exec hello.0 -- /hello get http://127.0.0.1:8080/peers\n  {quelea} why hello\n  {quelea} stop hello\nand remove it with\n  {quelea} dev stop"
    );
}

fn pack(flock: &Flock, built: &Built) -> Result<PathBuf> {
    let dir = run::root().join("target/demo");
    let _ = std::fs::remove_dir_all(&dir);
    let rootfs = dir.join("root");
    std::fs::create_dir_all(&rootfs)?;
    std::fs::copy(built.dir.join("hello"), rootfs.join("hello"))?;
    let layout = dir.join("hello.oci");
    let (rootfs, out) = (rootfs.display().to_string(), layout.display().to_string());
    flock.show(&[
        "image",
        "pack",
        &rootfs,
        "--out",
        &out,
        "--tag",
        "hello",
        "--entrypoint",
        "/hello",
    ])?;
    Ok(layout)
}

fn ready_pods(flock: &Flock, node: &str) -> Result<Vec<Pod>> {
    let ps: Ps = flock.json(&["--node", node, "ps", "hello"])?;
    let pods: Vec<Pod> = ps.pods.into_iter().filter(|p| p.node_alive && p.ready).collect();
    let wanted = ps.apps.first().map_or(0, |app| app.desired);
    ensure!(u32::try_from(pods.len())? == wanted, "{} of {wanted} are ready", pods.len());
    Ok(pods)
}

fn check_spread(pods: &[Pod]) -> Result<()> {
    let mut by_node: BTreeMap<&str, u32> = BTreeMap::new();
    for pod in pods {
        *by_node.entry(&pod.node).or_default() += 1;
    }
    // Each node is a rack of its own.
    println!("replicas by rack: {by_node:?}");
    ensure!(by_node.values().all(|n| *n == 2) && by_node.len() == 3, "not spread evenly");
    let addresses: BTreeSet<&str> = pods.iter().map(|pod| pod.ip.as_str()).collect();
    ensure!(addresses.len() == pods.len(), "two replicas share an address");
    Ok(())
}

fn cross_request(flock: &Flock, pods: &[Pod]) -> Result<()> {
    let from = pods.first().context("no replica")?;
    let to = pods.iter().find(|pod| pod.node != from.node).context("all on one node")?;
    let url = format!("http://{}:8080/", to.ip);
    let args = ["exec", &from.name, "--", "/hello", "get", &url];
    println!("{} runs on {}, {} on {}", from.name, from.node, to.name, to.node);
    println!("$ quelea {}", args.join(" "));
    let answer = run::output(&mut flock.quelea(&args))?;
    print!("{answer}");
    let expected = format!("hello from {} on {}", to.name, to.node);
    ensure!(answer.starts_with(&expected), "that is not {expected:?}");
    Ok(())
}

/// What a change is given to come to every pod: it is told of in batches, 150 ms apart.
const PEERS_KNOWN: Duration = Duration::from_secs(2);

fn everyone_asks_everyone(flock: &Flock, pods: &[Pod]) -> Result<()> {
    let start = Instant::now();
    let mut answers = 0;
    let mut slowest: f64 = 0.0;
    for pod in pods {
        let others: BTreeSet<&str> =
            pods.iter().map(|p| p.name.as_str()).filter(|name| *name != pod.name).collect();
        loop {
            let asked = ask_peers(flock, pod)?;
            let mut answered = BTreeSet::new();
            for one in &asked {
                if let Some(answer) = &one.answer {
                    let right = pods.iter().any(|p| p.name == answer.pod && p.node == answer.node);
                    ensure!(right, "{} on {} is not where it should be", answer.pod, answer.node);
                    answered.insert(answer.pod.as_str());
                    slowest = slowest.max(one.ms);
                }
            }
            if answered == others {
                answers += answered.len();
                break;
            }
            let errors: Vec<&String> = asked.iter().filter_map(|a| a.error.as_ref()).collect();
            let late = start.elapsed() > PEERS_KNOWN;
            ensure!(!late, "{} heard {answered:?} of {others:?}: {errors:?}", pod.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    println!(
        "every replica asked every other: {answers} answers, the slowest in {slowest:.1} ms ({:.2} s in all)",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Has a replica ask all others that it knows of.
fn ask_peers(flock: &Flock, pod: &Pod) -> Result<Vec<Asked>> {
    let url = "http://127.0.0.1:8080/peers";
    let text = run::output(&mut flock.quelea(&["exec", &pod.name, "--", "/hello", "get", url]))?;
    serde_json::from_str(&text).context("odd answer from hello")
}

fn kill_and_wait(flock: &Flock, wanted: usize) -> Result<Duration> {
    flock.show(&["dev", "kill", "n3"])?;
    let start = Instant::now();
    loop {
        let ps: Ps = flock.json(&["--node", "n1", "ps", "hello"])?;
        let ready = ps.pods.iter().filter(|p| p.node != "n3" && p.ready).count();
        let counted = ps.apps.first().map_or(0, |app| app.ready);
        if ready == wanted && usize::try_from(counted)? == wanted {
            return Ok(start.elapsed());
        }
        if start.elapsed() > REPLACED_WITHIN {
            flock.show(&["--node", "n1", "why", "hello"])?;
            bail!("{ready} of {wanted} are ready on n1 and n2 {REPLACED_WITHIN:?} after the kill");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a flock could leave behind.
struct Remains {
    processes: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Remains {
    fn look() -> Result<Self> {
        let links = run::output(
            Command::new("ip").args(["-o", "link"]).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin"),
        )?;
        let link_name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
        Ok(Self {
            processes: processes()?,
            namespaces: namespaces()?,
            mounts: std::fs::read_to_string("/proc/self/mounts")?
                .lines()
                .map(str::to_owned)
                .collect(),
            links: links.lines().filter_map(link_name).collect(),
            cgroups: find_cgroups(Path::new("/sys/fs/cgroup"), 0),
            files: ["/run/quelea-dev/demo", "/var/lib/quelea-dev/demo"]
                .into_iter()
                .filter(|path| Path::new(path).exists())
                .map(str::to_owned)
                .collect(),
        })
    }

    fn compare(&self, after: &Self) -> Result<()> {
        let pairs = [
            ("processes", &self.processes, &after.processes),
            ("network namespaces", &self.namespaces, &after.namespaces),
            ("mounts", &self.mounts, &after.mounts),
            ("links", &self.links, &after.links),
            ("cgroups", &self.cgroups, &after.cgroups),
            ("files", &self.files, &after.files),
        ];
        for (what, before, after) in pairs {
            let left: Vec<&String> = after.difference(before).collect();
            ensure!(left.is_empty(), "{what} left behind: {left:?}");
        }
        Ok(())
    }
}

/// Agents collect their dead children, within the time that one of their turns may take.
fn no_zombies() -> Result<()> {
    let start = Instant::now();
    loop {
        let left = zombies()?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < Duration::from_secs(5), "agents left zombies: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// PIDs of dead children of this flock's agents that nobody has collected.
fn zombies() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // `PID (COMM) STATE PPID ...`, and COMM may hold anything.
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let (Some("Z"), Some(parent)) = (fields.next(), fields.next()) else { continue };
        let words = std::fs::read(format!("/proc/{parent}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains("/run/quelea-dev/demo/") {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// PIDs and names of our processes.
fn processes() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if ["quelead", "quelea-shim", "hello"].contains(&name.trim()) {
            found.insert(format!("{} {}", entry.file_name().to_string_lossy(), name.trim()));
        }
    }
    Ok(found)
}

/// Network namespaces that a process is in.
fn namespaces() -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir("/proc")?.flatten();
    let links = entries.filter_map(|e| std::fs::read_link(e.path().join("ns/net")).ok());
    Ok(links.map(|link| link.display().to_string()).collect())
}

fn find_cgroups(dir: &Path, depth: u32) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with("quelea-") {
            found.insert(path.display().to_string());
        } else if depth < 3 {
            found.extend(find_cgroups(&path, depth + 1));
        }
    }
    found
}
