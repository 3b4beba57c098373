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
pub(super) fn find_process(ctl: &mut Ctl, starts: &str) -> Result<String> {
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
