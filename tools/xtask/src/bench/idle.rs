//! What a node costs while nothing happens: a hundred pods that idle on a dev node of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::{Better, Figure, Options, Report};
use crate::run;

/// Pods of the one node.
const PODS: u32 = 100;
/// The agent's CPU time, in percent of one CPU.
const AGENT_PERCENT: f64 = 0.5;
/// Private memory of a shim, in kB.
const SHIM_KB: f64 = 250.0;
/// After the last pod is ready, until it counts.
const SETTLE: Duration = Duration::from_secs(10);
const MEASURED: Duration = Duration::from_secs(30);
const MEASURED_QUICK: Duration = Duration::from_secs(10);
/// All of its figures begin so.
pub(crate) const PREFIX: &str = "idle_";

/// A dev flock of one node that is removed whatever happens.
struct Node {
    quelea: PathBuf,
    name: String,
    dir: PathBuf,
}

impl Node {
    fn start(built: &Path) -> Result<Self> {
        let name = format!("bench-{}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(dir.join("root"))?;
        let node = Self { quelea: built.join("quelea"), name, dir };
        node.quelea(&["dev", "--nodes", "1", "--detach"])?;
        std::fs::copy(built.join("hello"), node.dir.join("root/hello"))?;
        let (root, layout) = (node.path("root"), node.path("hello.oci"));
        let entrypoint = ["--tag", "hello", "--entrypoint", "/hello"];
        node.quelea(&[&["image", "pack", &root, "--out", &layout], &entrypoint[..]].concat())?;
        node.quelea(&["image", "import", &layout])?;
        Ok(node)
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn quelea(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.quelea);
        command.args(args).env("QUELEA_DEV", &self.name);
        run::output(command.env_remove("QUELEA_NODE").env_remove("QUELEA_FLOCK"))
    }

    /// Runs the pods; their probes are the shims' affair.
    fn fill(&self) -> Result<()> {
        let spec = format!(
            "app = \"idle\"\nreplicas = {PODS}\n[[container]]\nname = \"c\"\nimage = \"hello\"\ncpu = 0.01\nmemory = \"16Mi\"\nready = {{ http = \":8080/healthz\", every = \"10s\" }}\n"
        );
        std::fs::write(self.dir.join("idle.toml"), spec)?;
        self.quelea(&["run", "--timeout", "300", &self.path("idle.toml")]).map(drop)
    }

    /// The node's PID 1, and its children: the agent, and shims whose agent is gone.
    fn children(&self) -> Result<Vec<u32>> {
        let file = Path::new("/run/quelea-dev").join(&self.name).join("nodes/n1/pid");
        let init = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(children(init.trim().parse().context("the node's pid")?))
    }

    fn agent(&self) -> Result<u32> {
        let is_agent = |pid: &u32| command_line(*pid).contains(" agent ");
        self.children()?.into_iter().find(is_agent).context("the node has no agent")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Nothing to be done about one that does not stop.
        let _ = self.quelea(&["dev", "stop"]);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn command_line(pid: u32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// Children of all threads of a process.
fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let all: Vec<String> = lists.collect();
    all.iter().flat_map(|l| l.split_ascii_whitespace()).filter_map(|w| w.parse().ok()).collect()
}

/// CPU time of all threads of a process: what `utime` and `stime` are scaled from, but to the nanosecond (sched-stats.rst).
fn cpu_ns(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok());
    texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum()
}

fn field_kb(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    number.unwrap_or(0.0)
}

/// Memory that nobody else has a part in.
fn private_kb(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(field_kb(&text, "Private_Clean:") + field_kb(&text, "Private_Dirty:"))
}

/// Builds, fills a node, waits and measures.
pub(crate) fn run(options: &Options, report: &mut Report) -> Result<()> {
    let args =
        ["--profile", "fast", "--quiet", "--locked", "-p", "agent", "-p", "tools", "-p", "hello"];
    run::check(run::cargo(&["build"]).args(args))?;
    let built = run::built(run::cargo(&["build"]).args(args))?;
    let node = Node::start(&built.dir)?;
    node.fill()?;
    std::thread::sleep(SETTLE);
    let agent = node.agent()?;
    let shims: Vec<u32> = children(agent)
        .into_iter()
        .filter(|pid| command_line(*pid).starts_with("quelea-shim "))
        .collect();
    if shims.len() != PODS as usize {
        bail!("{} shims for {PODS} pods", shims.len());
    }
    let all_shims = || shims.iter().map(|pid| cpu_ns(*pid)).sum::<u64>();
    let (began, agent_ns, shims_ns) = (Instant::now(), cpu_ns(agent), all_shims());
    std::thread::sleep(if options.quick { MEASURED_QUICK } else { MEASURED });
    let ns = began.elapsed().as_nanos() as f64;
    let percent = |from: u64, to: u64| Some(to.saturating_sub(from) as f64 / ns * 100.0);
    let figure = |name: &str, value, unit: &str| {
        Figure::new("container", format!("{PREFIX}{name}"), value, unit, Better::Lower)
    };
    let cpu = percent(agent_ns, cpu_ns(agent));
    report.add(figure("agent_cpu", cpu, "% of a CPU").goal(AGENT_PERCENT))?;
    report.add(figure("shims_cpu", percent(shims_ns, all_shims()), "% of a CPU"))?;
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap_or_default();
    report.add(figure("agent_rss", Some(field_kb(&status, "VmRSS:")), "kB"))?;
    let mut private: Vec<f64> = shims.iter().filter_map(|pid| private_kb(*pid)).collect();
    private.sort_by(f64::total_cmp);
    let median = private.get(private.len() / 2).copied();
    report.add(figure("shim_private", median, "kB").goal(SHIM_KB))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id();
        let before = cpu_ns(pid);
        assert!((0..1_000_000_u64).map(std::hint::black_box).sum::<u64>() > 0);
        assert!(cpu_ns(pid) > before);
        assert!(private_kb(pid).is_some_and(|kb| kb > 0.0));
        assert_eq!(field_kb("VmRSS:\t 12 kB\n", "VmRSS:"), 12.0);
    }
}
