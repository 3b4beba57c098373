//! What holds inside an app: its limits, on a kernel that has them all.

use super::{Outcome, operator::*, passed};
use crate::{
    Env,
    ctl::Ctl,
    env::{GUEST, HELLO},
    figures::Figure,
    pace::eventually,
};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

/// The files of every container's cgroup of an app: `name=value` per line, read inside the guest.
pub(super) fn cgroup_of(ctl: &mut Ctl, pid: &str) -> Result<String> {
    let line = ctl.read(&format!("/proc/{pid}/cgroup"))?;
    let path = line.trim().strip_prefix("0::").context("no cgroup v2")?.to_owned();
    Ok(format!("/sys/fs/cgroup{path}"))
}

/// The first process whose command line starts so.
fn find_process(ctl: &mut Ctl, starts: &str) -> Result<String> {
    let found = ctl.find(starts)?;
    found.first().map(ToString::to_string).with_context(|| format!("no process {starts:?}"))
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

/// CPU time the larger of two spinning apps gets for each second of the smaller, over ten seconds.
fn cpu_share(ctl: &mut Ctl) -> Result<f64> {
    let spinning = eventually(seconds(10), "two that spin", || {
        let pids = ctl.find("/tool spin")?;
        ensure!(pids.len() == 2, "there are {pids:?}");
        pids.iter().map(|pid| cgroup_of(ctl, &pid.to_string())).collect::<Result<Vec<_>>>()
    })?;
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
    std::thread::sleep(seconds(10).mul_f64(crate::pace::stretch().min(3.0)));
    let after = used(ctl)?;
    let mut spent: Vec<f64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    spent.sort_by(f64::total_cmp);
    Ok(spent[1] / spent[0].max(1.0))
}

/// 64 MiB in a container of 24: killed by the kernel, and said to be, by `ps` and by `why`.
fn out_of_memory(ctl: &mut Ctl) -> Result<()> {
    submit(ctl, "hog", &tool("hog", &["eat", "64"], "memory = \"24Mi\""))?;
    eventually(seconds(60), "an OOM kill that is called one", || {
        let pods = pods(ctl, "hog")?;
        let reason = pods.first().and_then(|p| p["reason"].as_str()).unwrap_or_default();
        ensure!(names_memory(reason), "{pods:?}");
        says(ctl, "hog", &["it used all of its memory (OOM)", "raise `memory`"])
    })?;
    eventually(seconds(10), "its last words", || {
        let log = ctl.run(&["/usr/bin/quelea", "logs", "hog.0"])?;
        ensure!(log.contains("ate 1 MiB") && !log.contains("ate 24 MiB"), "{log:?}");
        Ok(())
    })?;
    ctl.run(&["/usr/bin/quelea", "stop", "hog"]).map(drop)
}

/// What an operator reads of an app, in `ps` and in `why`.
pub(super) fn says(ctl: &mut Ctl, app: &str, words: &[&str]) -> Result<()> {
    for command in ["ps", "why"] {
        let said = ctl.run(&["/usr/bin/quelea", command, app])?;
        let all = words.iter().all(|word| said.contains(word));
        ensure!(all && said.contains("container "), "{command} does not say {words:?}: {said}");
    }
    Ok(())
}

fn names_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("memory") || text.contains("oom")
}

/// A hundred processes in a container of sixteen: it gets no more, and the node does not notice.
fn fork_bomb(ctl: &mut Ctl) -> Result<()> {
    submit(ctl, "bomb", &tool("bomb", &["fork", "100"], "memory = \"48Mi\"\npids = 16"))?;
    eventually(seconds(60), "a contained fork bomb", || {
        let log = ctl.run(&["/usr/bin/quelea", "logs", "bomb.0"])?;
        ensure!(log.contains(" of 100: "), "{log:?}");
        Ok(())
    })?;
    let pid = find_process(ctl, "/tool fork")?;
    let dir = cgroup_of(ctl, &pid)?;
    let most = limit(ctl, &dir, "pids.max")?;
    ensure!(most == "16", "pids.max is {most}");
    let (children, status) = (ctl.find("/proc/self/exe eat 0")?, ask(ctl, &["status"])?);
    ensure!(children.len() < 16, "{} children of 16", children.len());
    ensure!(status["alive"] == 1, "the node did notice: {status}");
    eventually(seconds(20), "processes that were refused", || {
        says(ctl, "bomb", &["was refused processes beyond its 16 (`pids`)", "raise `pids`"])
    })?;
    let pods = pods(ctl, "bomb")?;
    ensure!(pods[0]["restarts"] == 0 && pods[0]["ready"] == true, "it should go on: {pods:?}");
    ctl.run(&["/usr/bin/quelea", "stop", "bomb"]).map(drop)
}

pub(super) fn runs_app_with_real_limits(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1).start()?;
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

    out_of_memory(&mut ctl)?;
    fork_bomb(&mut ctl)?;

    // Two that never rest, one asking for four times the other's share of the one CPU.
    for (app, cpu) in [("small", "0.1"), ("large", "0.4")] {
        submit(&mut ctl, app, &tool(app, &["spin"], &format!("memory = \"16Mi\"\ncpu = {cpu}")))?;
        ready(&mut ctl, app, 1, seconds(60))?;
    }
    let share = cpu_share(&mut ctl)?;
    ensure!((share / 4.0 - 1.0).abs() <= 0.1, "4 times the share gave {share:.2} times the time");
    one_view(&mut [&mut ctl], 1, seconds(5))?;
    let figures = vec![
        Figure::lower("qemu_flock", "power_to_app_ready_s", ready_s, "s", Some(20.0)),
        Figure::lower(
            "qemu_flock",
            "cpu_share_error_percent",
            (share / 4.0 - 1.0).abs() * 100.0,
            "%",
            Some(10.0),
        ),
    ];
    Ok(passed(env, cluster, figures))
}

/// 128 MiB, three pods, and what our own processes take of it.
pub(super) fn small_guest_runs_three_pods(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1).memory_mib(128).start()?;
    let ctl = &mut up(&mut cluster)?[0];
    import(ctl, "hello", &hello_dir(), "/hello")?;
    submit(ctl, "hello", &hello(3).replace("24Mi", "8Mi"))?;
    ready(ctl, "hello", 3, seconds(60))?;
    ensure!(ctl.find("/hello")?.len() == 3, "three should run");
    let mut figures = Vec::new();
    let kib = |ctl: &mut Ctl, pid: i32, key: &str| -> Result<f64> {
        let status = ctl.read(&format!("/proc/{pid}/status"))?;
        Ok(super::boot::status_kib(&status, key).context("no VmRSS")? as f64)
    };
    let agent = agent(ctl)?;
    // PID 1 lets go of its program's pages when nothing has happened for a second: what it takes all day is meant.
    std::thread::sleep(seconds(3));
    for (metric, pid, key, goal) in [
        ("small_pid1_rss_kib", 1, "VmRSS", Some(2048.0)),
        ("small_pid1_anon_kib", 1, "RssAnon", None),
        ("small_agent_rss_kib", agent, "VmRSS", Some(12.0 * 1024.0)),
        ("small_agent_anon_kib", agent, "RssAnon", None),
    ] {
        figures.push(Figure::lower("qemu_flock", metric, kib(ctl, pid, key)?, "KiB", goal));
    }
    let memory = ctl.read("/proc/meminfo")?;
    let free = super::boot::status_kib(&memory, "MemAvailable").context("MemAvailable")? as f64;
    figures.push(Figure {
        better: "higher",
        ..Figure::lower("qemu_flock", "small_available_kib", free, "KiB", None)
    });
    ensure!(!cluster.vms[0].said("Out of memory"), "{}", cluster.vms[0].tail());
    Ok(passed(env, cluster, figures))
}
