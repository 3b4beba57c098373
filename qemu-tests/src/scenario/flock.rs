//! Several machines as one flock: the mesh, an app, a power cut.

use super::{Outcome, passed};
use crate::{
    Cluster, Env,
    cluster::{Files, address, name},
    ctl::Ctl,
    env::{GUEST, HELLO},
    figures::Figure,
    pace::eventually,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};

/// Megabytes a machine with an agent and pods is given.
const MEMORY_MIB: u32 = 192;

const fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Makes a flock's keys and every machine's files by the operator's own program. The first machine also gets the
/// operator's bundle, so that specs are signed and submitted there.
fn credentials(quelea: &Path, dir: &Path, nodes: usize) -> Result<Vec<Files>> {
    let bundle = dir.join("bundle");
    let run = |args: &[&str]| -> Result<()> {
        let out = Command::new(quelea).args(args).output().context("start quelea")?;
        ensure!(out.status.success(), "quelea {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    };
    let text = |path: &Path| path.to_str().map(str::to_owned).context("path is not UTF-8");
    run(&["init", "flock", &text(&bundle)?, "--name", "test"])?;
    (0..nodes)
        .map(|n| {
            let own = dir.join(format!("etc{n}"));
            run(&["--flock", &text(&bundle)?, "init", "node", &name(n), "--out", &text(&own)?])?;
            let mut files = vec![("node.toml".into(), node_toml(n, nodes).into_bytes())];
            files.extend(read_dir(&own, "")?);
            if n == 0 {
                files.extend(read_dir(&bundle, "flock/")?);
            }
            Ok(files)
        })
        .collect()
}

fn node_toml(n: usize, nodes: usize) -> String {
    let join: Vec<String> =
        (0..nodes).filter(|m| *m != n).map(|m| format!("\"{}:7400\"", address(m))).collect();
    format!(
        "name = \"{}\"\naddress = \"{}\"\njoin = [{}]\n[labels]\nrack = \"r{}\"\n",
        name(n),
        address(n),
        join.join(", "),
        n + 1
    )
}

fn read_dir(dir: &Path, prefix: &str) -> Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() {
            let name = path.file_name().and_then(|n| n.to_str()).context("file name")?;
            files.push((format!("{prefix}{name}"), std::fs::read(&path)?));
        }
    }
    Ok(files)
}

/// What a flock test needs, or why it must be skipped.
fn start(env: &Env, test: &str, nodes: usize) -> Result<Result<Cluster, Outcome>> {
    if env.node.is_none() {
        return Ok(Err(Outcome::Skipped(env.node_missing.clone())));
    }
    let Some(quelea) = &env.quelea else {
        return Ok(Err(Outcome::Skipped("no quelea to make a flock's keys with".into())));
    };
    let keys = crate::vm::test_dir(&format!("{test}-keys"))?;
    let files = credentials(quelea, &keys, nodes);
    crate::vm::remove_dir(&keys);
    let cluster = Cluster::builder(env, test).nodes(nodes).memory_mib(MEMORY_MIB).agent(files?);
    cluster.start().map(Ok)
}

macro_rules! start {
    ($env:expr, $test:expr, $nodes:expr) => {
        match start($env, $test, $nodes)? {
            Ok(cluster) => cluster,
            Err(skipped) => return Ok(skipped),
        }
    };
}

/// Asks the agent of one machine.
fn ask(ctl: &mut Ctl, args: &[&str]) -> Result<Value> {
    let mut argv = vec!["/usr/bin/quelea", "-o", "json"];
    argv.extend_from_slice(args);
    let out = ctl.run(&argv)?;
    serde_json::from_str(&out).with_context(|| format!("quelea {args:?} printed {out:?}"))
}

/// Members that a machine sees in this state.
fn seen(ctl: &mut Ctl, state: &str) -> Result<Vec<String>> {
    let view = ask(ctl, &["nodes"])?;
    let nodes = view["nodes"].as_array().context("nodes")?;
    let of_state = nodes.iter().filter(|n| n["state"] == state);
    Ok(of_state.filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

/// Until every one of these machines sees `alive` members alive.
fn one_view(ctls: &mut [&mut Ctl], alive: usize, timeout: Duration) -> Result<()> {
    for ctl in ctls {
        eventually(timeout, "one view", || {
            let names = seen(ctl, "alive")?;
            ensure!(names.len() == alive, "{alive} should be alive, seen are {names:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn controls(cluster: &Cluster) -> Result<Vec<Ctl>> {
    cluster.vms.iter().map(crate::vm::Vm::ctl).collect()
}

fn mesh(env: &Env, test: &str, nodes: usize, goal_s: f64) -> Result<Outcome> {
    let mut cluster = start!(env, test, nodes);
    cluster.network_up()?;
    let mut ctls = controls(&cluster)?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), nodes, seconds(30))?;
    let took = cluster.vms[0].age().as_secs_f64();
    let mut figures =
        vec![Figure::lower("qemu_mesh", &format!("one_view_{nodes}_s"), took, "s", Some(goal_s))];
    let status = ask(&mut ctls[0], &["status"])?;
    if let Some(rss) = status["rss_bytes"].as_f64() {
        let mib = rss / f64::from(1 << 20);
        figures.push(Figure::lower("qemu_mesh", "agent_rss_mib", mib, "MiB", Some(12.0)));
    }
    if let Ok(status) = ctls[0].read("/proc/1/status") {
        // The rest is the binary's own pages, which the initramfs holds anyway.
        for (key, metric, goal) in
            [("VmRSS", "pid1_rss_kib", Some(2048)), ("RssAnon", "pid1_anon_kib", None)]
        {
            if let Some(kib) = super::boot::status_kib(&status, key) {
                let goal = goal.map(f64::from);
                figures.push(Figure::lower("qemu_mesh", metric, kib as f64, "KiB", goal));
            }
        }
    }
    Ok(passed(env, cluster, figures))
}

pub(super) fn mesh_forms_3(env: &Env, test: &str) -> Result<Outcome> {
    mesh(env, test, 3, 10.0)
}

pub(super) fn mesh_forms_5(env: &Env, test: &str) -> Result<Outcome> {
    mesh(env, test, 5, 16.0)
}

pub(super) fn partition_minority_heals(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = start!(env, test, 3);
    cluster.network_up()?;
    let mut ctls = controls(&cluster)?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(30))?;
    cluster.fabric.cut(&[2], &[0, 1]);
    let cut = std::time::Instant::now();
    one_view(&mut ctls[..2].iter_mut().collect::<Vec<_>>(), 2, seconds(20))?;
    let detected = cut.elapsed().as_secs_f64();
    one_view(&mut ctls[2..].iter_mut().collect::<Vec<_>>(), 1, seconds(20))?;
    cluster.fabric.heal();
    let heal = std::time::Instant::now();
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(30))?;
    let figures = vec![
        Figure::lower("qemu_mesh", "partition_detected_s", detected, "s", Some(6.0)),
        Figure::lower(
            "qemu_mesh",
            "partition_healed_s",
            heal.elapsed().as_secs_f64(),
            "s",
            Some(10.0),
        ),
    ];
    Ok(passed(env, cluster, figures))
}

pub(super) fn asymmetric_link_no_flap(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = start!(env, test, 3);
    cluster.network_up()?;
    let mut ctls = controls(&cluster)?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(30))?;
    cluster.fabric.one_way(&[0], &[1]);
    // Long enough for several probe rounds and a whole suspicion.
    let start = std::time::Instant::now();
    while start.elapsed() < seconds(10) {
        for ctl in &mut ctls {
            let dead = seen(ctl, "dead")?;
            ensure!(dead.is_empty(), "declared dead: {dead:?}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    cluster.fabric.heal();
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(20))?;
    Ok(passed(env, cluster, Vec::new()))
}

/// Packs a directory of the guest into an image and imports it there.
fn import(ctl: &mut Ctl, tag: &str, dir: &str, entrypoint: &str) -> Result<()> {
    let layout = format!("/tmp/{tag}");
    let pack = ["image", "pack", dir, "--out", &layout, "--tag", tag, "--entrypoint", entrypoint];
    ask(ctl, &pack)?;
    ctl.run(&["/usr/bin/quelea", "image", "import", &layout])?;
    Ok(())
}

/// Submits a spec and does not wait.
fn submit(ctl: &mut Ctl, name: &str, spec: &str) -> Result<()> {
    let path = format!("/tmp/{name}.toml");
    ctl.ask(crate::wire::Op::Write { path: path.clone(), text: spec.into() })?;
    ctl.run(&["/usr/bin/quelea", "run", "--detach", &path]).map(drop)
}

/// Replicas of an app, as one machine knows them.
fn pods(ctl: &mut Ctl, app: &str) -> Result<Vec<Value>> {
    let view = ask(ctl, &["ps", app])?;
    let list = view["pods"].as_array().or_else(|| view.as_array()).context("pods")?;
    Ok(list.iter().filter(|p| p["app"] == app).cloned().collect())
}

/// Until so many replicas are ready on live machines; their machines.
fn ready(ctl: &mut Ctl, app: &str, count: usize, timeout: Duration) -> Result<Vec<String>> {
    eventually(timeout, "replicas ready", || {
        let pods = pods(ctl, app)?;
        let ready: Vec<String> = pods
            .iter()
            .filter(|p| p["ready"] == true && p["node_alive"] != false)
            .filter_map(|p| p["node"].as_str().map(str::to_owned))
            .collect();
        ensure!(ready.len() == count, "{} of {count} are ready: {pods:?}", ready.len());
        Ok(ready)
    })
}

fn hello(replicas: usize) -> String {
    format!(
        "app = \"hello\"\nkind = \"service\"\nreplicas = {replicas}\n[[container]]\nname = \"hello\"\nimage = \"hello\"\n\
         cpu = 0.1\nmemory = \"24Mi\"\nports = {{ http = 8080 }}\nready = {{ http = \":8080/healthz\", every = \"1s\" }}\n"
    )
}

fn hello_dir() -> String {
    Path::new("/").join(HELLO).parent().map(|p| p.display().to_string()).unwrap_or_default()
}

pub(super) fn kill9_reschedules_and_rejoins(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = start!(env, test, 3);
    cluster.network_up()?;
    let mut ctls = controls(&cluster)?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(30))?;
    import(&mut ctls[0], "hello", &hello_dir(), "/hello")?;
    submit(&mut ctls[0], "hello", &hello(3))?;
    let on = ready(&mut ctls[0], "hello", 3, seconds(60))?;
    let victim = on.iter().find(|node| **node != name(0)).context("all replicas on one machine")?;
    let index = (1..3).find(|n| name(*n) == *victim).context("unknown machine")?;

    cluster.vms[index].kill()?;
    let killed = std::time::Instant::now();
    // Until it is missed, its replicas count as ready.
    eventually(seconds(60), "replicas elsewhere", || {
        let on = ready(&mut ctls[0], "hello", 3, Duration::ZERO)?;
        ensure!(!on.contains(victim), "the dead machine is said to run one: {on:?}");
        Ok(())
    })?;
    let back = killed.elapsed().as_secs_f64();

    cluster.power_cycle(index)?;
    let cycled = std::time::Instant::now();
    one_view(&mut [&mut ctls[0]], 3, seconds(60))?;
    let rejoined = cycled.elapsed().as_secs_f64();
    ready(&mut ctls[0], "hello", 3, seconds(30))?;
    let figures = vec![
        Figure::lower("qemu_flock", "kill9_replicas_back_s", back, "s", Some(20.0)),
        Figure::lower("qemu_flock", "kill9_rejoined_s", rejoined, "s", Some(15.0)),
    ];
    Ok(passed(env, cluster, figures))
}

/// A one-replica app of the helper, which misbehaves as told.
fn tool(app: &str, args: &[&str], limits: &str) -> String {
    let args: Vec<String> = args.iter().map(|a| format!("\"{a}\"")).collect();
    format!(
        "app = \"{app}\"\nkind = \"service\"\nreplicas = 1\n[[container]]\nname = \"{app}\"\nimage = \"tool\"\n\
         args = [{}]\n{limits}\n",
        args.join(", ")
    )
}

/// The files of every container's cgroup of an app: `name=value` per line, read inside the guest.
fn cgroup_of(ctl: &mut Ctl, pid: &str) -> Result<String> {
    let line = ctl.read(&format!("/proc/{pid}/cgroup"))?;
    let path = line.trim().strip_prefix("0::").context("no cgroup v2")?.to_owned();
    Ok(format!("/sys/fs/cgroup{path}"))
}

/// The first process whose command line starts so.
fn find_process(ctl: &mut Ctl, starts: &str) -> Result<String> {
    for pid in ctl.list("/proc")? {
        if pid.bytes().all(|b| b.is_ascii_digit()) {
            let line = ctl.read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if line.replace('\0', " ").starts_with(starts) {
                return Ok(pid);
            }
        }
    }
    anyhow::bail!("no process {starts:?}")
}

/// A limit of the nearest cgroup upwards that sets it.
fn limit(ctl: &mut Ctl, dir: &str, file: &str) -> Result<String> {
    let mut dir = Path::new(dir).to_path_buf();
    loop {
        let value = ctl.read(&format!("{}/{file}", dir.display())).unwrap_or_default();
        let value = value.trim();
        if !value.is_empty() && !value.starts_with("max") {
            return Ok(value.to_owned());
        }
        ensure!(dir.pop() && dir.starts_with("/sys/fs/cgroup"), "{file} is nowhere limited");
    }
}

/// CPU time the larger of two spinning apps gets for each second of the smaller, over five seconds.
fn cpu_share(ctl: &mut Ctl) -> Result<f64> {
    let mut spinning = Vec::new();
    for pid in ctl.list("/proc")? {
        let line = ctl.read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.replace('\0', " ").trim_end() == "/tool spin" {
            spinning.push(cgroup_of(ctl, &pid)?);
        }
    }
    ensure!(spinning.len() == 2, "two should spin: {spinning:?}");
    let used = |ctl: &mut Ctl| -> Result<Vec<f64>> {
        let of = |dir: &String| -> Result<f64> {
            let stat = ctl.read(&format!("{dir}/cpu.stat"))?;
            let usage =
                stat.lines().find_map(|l| l.strip_prefix("usage_usec ")).context("usage_usec")?;
            Ok(usage.trim().parse()?)
        };
        spinning.iter().map(of).collect()
    };
    let before = used(ctl)?;
    std::thread::sleep(seconds(5).mul_f64(crate::pace::stretch().min(3.0)));
    let after = used(ctl)?;
    let mut spent: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    spent.sort_by(f64::total_cmp);
    Ok(spent[1] / spent[0].max(1.0))
}

pub(super) fn orderly_shutdown(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = start!(env, test, 1);
    cluster.network_up()?;
    let mut ctl = cluster.vms[0].ctl()?;
    one_view(&mut [&mut ctl], 1, seconds(30))?;
    ctl.run(&["/sbin/poweroff"])?;
    let vm = &mut cluster.vms[0];
    let off = vm.ended(seconds(20))?;
    let lines = vm.serial();
    let at = |text: &str| lines.iter().position(|l| l.contains(text));
    let (agent, end) = (at("the agent ended: "), at("power-off: now"));
    ensure!(agent.is_some() && end > agent, "not in order:\n{}", vm.tail());
    let figures =
        vec![Figure::lower("qemu_flock", "poweroff_s", off.as_secs_f64(), "s", Some(5.0))];
    Ok(passed(env, cluster, figures))
}

pub(super) fn runs_app_with_real_limits(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = start!(env, test, 1);
    cluster.network_up()?;
    let mut ctl = cluster.vms[0].ctl()?;
    one_view(&mut [&mut ctl], 1, seconds(30))?;

    import(&mut ctl, "hello", &hello_dir(), "/hello")?;
    submit(&mut ctl, "hello", &hello(1))?;
    ready(&mut ctl, "hello", 1, seconds(60))?;
    let ready_s = cluster.vms[0].age().as_secs_f64();
    let pid = eventually(seconds(5), "hello's process", || find_process(&mut ctl, "/hello"))?;
    let dir = cgroup_of(&mut ctl, &pid)?;
    let memory = limit(&mut ctl, &dir, "memory.max")?;
    ensure!(memory == (24u64 << 20).to_string(), "memory.max is {memory} in {dir}");
    let answer = eventually(seconds(10), "an answer", || {
        let pods = pods(&mut ctl, "hello")?;
        let ip = pods.first().and_then(|p| p["ip"].as_str()).context("no address")?.to_owned();
        ctl.run(&[&format!("/{HELLO}"), "get", &format!("http://{ip}:8080/")])
    })?;
    ensure!(answer.contains("hello"), "{answer:?}");

    ctl.run(&["/usr/bin/quelea", "stop", "hello"])?;
    let tool_dir = "/tmp/tool-root";
    ctl.run(&[&format!("/{GUEST}"), "copy", tool_dir])?;
    import(&mut ctl, "tool", tool_dir, "/tool")?;

    // 64 MiB in a container of 24: killed, and said to be.
    submit(&mut ctl, "hog", &tool("hog", &["eat", "64"], "memory = \"24Mi\""))?;
    eventually(seconds(60), "an OOM kill that is called one", || {
        let pods = pods(&mut ctl, "hog")?;
        let reason =
            pods.first().and_then(|p| p["reason"].as_str()).unwrap_or_default().to_lowercase();
        ensure!(reason.contains("memory") || reason.contains("oom"), "{pods:?}");
        Ok(())
    })?;
    ctl.run(&["/usr/bin/quelea", "stop", "hog"])?;

    // A hundred processes in a container of sixteen.
    submit(&mut ctl, "bomb", &tool("bomb", &["fork", "100"], "memory = \"48Mi\"\npids = 16"))?;
    eventually(seconds(60), "a contained fork bomb", || {
        let log = ctl.run(&["/usr/bin/quelea", "logs", "bomb.0"])?;
        ensure!(log.contains(" of 100: "), "{log:?}");
        Ok(())
    })?;
    ctl.run(&["/usr/bin/quelea", "stop", "bomb"])?;

    // Two that never rest, one asking for four times the other's share of the one CPU.
    for (app, cpu) in [("small", "0.1"), ("large", "0.4")] {
        submit(&mut ctl, app, &tool(app, &["spin"], &format!("memory = \"16Mi\"\ncpu = {cpu}")))?;
        ready(&mut ctl, app, 1, seconds(60))?;
    }
    let share = cpu_share(&mut ctl)?;
    ensure!((2.5..6.0).contains(&share), "4 times the share gave {share:.2} times the time");
    one_view(&mut [&mut ctl], 1, seconds(5))?;
    let figures =
        vec![Figure::lower("qemu_flock", "power_to_app_ready_s", ready_s, "s", Some(20.0))];
    Ok(passed(env, cluster, figures))
}
