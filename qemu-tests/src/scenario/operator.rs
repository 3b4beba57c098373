//! What an operator does with a flock in a test, by the operator's own program.

use super::Outcome;
use crate::{
    Cluster, Env,
    cluster::{Builder, Files, address, name},
    ctl::Ctl,
    env::HELLO,
    pace::eventually,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};

/// Megabytes a machine with an agent and pods is given.
pub(super) const MEMORY_MIB: u32 = 192;

pub(super) const fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Makes a flock's keys and every machine's files by the operator's own program. The first machine also gets the
/// operator's bundle, so that specs are signed and submitted there.
pub(super) fn credentials(quelea: &Path, dir: &Path, nodes: usize) -> Result<Vec<Files>> {
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

pub(super) fn node_toml(n: usize, nodes: usize) -> String {
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

pub(super) fn read_dir(dir: &Path, prefix: &str) -> Result<Files> {
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

/// Machines with agents of one flock, ready to be switched on; or why the test must be skipped.
pub(super) fn describe<'e>(
    env: &'e Env,
    test: &str,
    nodes: usize,
) -> Result<Result<Builder<'e>, Outcome>> {
    if env.node.is_none() {
        return Ok(Err(Outcome::Skipped(env.node_missing.clone())));
    }
    let Some(quelea) = &env.quelea else {
        return Ok(Err(Outcome::Skipped("no quelea to make a flock's keys with".into())));
    };
    let keys = crate::vm::test_dir(&format!("{test}-keys"))?;
    let files = credentials(quelea, &keys, nodes);
    crate::vm::remove_dir(&keys);
    Ok(Ok(Cluster::builder(env, test).nodes(nodes).memory_mib(MEMORY_MIB).agent(files?)))
}

/// A builder of a flock, or the scenario ends as skipped.
macro_rules! flock {
    ($env:expr, $test:expr, $nodes:expr) => {
        match $crate::scenario::operator::describe($env, $test, $nodes)? {
            Ok(builder) => builder,
            Err(skipped) => return Ok(skipped),
        }
    };
}
pub(super) use flock;

/// Until all machines have an address and see each other; their control channels.
pub(super) fn up(cluster: &mut Cluster) -> Result<Vec<Ctl>> {
    cluster.network_up()?;
    let mut ctls = controls(cluster)?;
    let nodes = ctls.len();
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), nodes, seconds(30))?;
    Ok(ctls)
}

/// Asks the agent of one machine.
pub(super) fn ask(ctl: &mut Ctl, args: &[&str]) -> Result<Value> {
    let mut argv = vec!["/usr/bin/quelea", "-o", "json"];
    argv.extend_from_slice(args);
    let out = ctl.run(&argv)?;
    serde_json::from_str(&out).with_context(|| format!("quelea {args:?} printed {out:?}"))
}

/// Members that a machine sees in this state.
pub(super) fn seen(ctl: &mut Ctl, state: &str) -> Result<Vec<String>> {
    let view = ask(ctl, &["nodes"])?;
    let nodes = view["nodes"].as_array().context("nodes")?;
    let of_state = nodes.iter().filter(|n| n["state"] == state);
    Ok(of_state.filter_map(|n| n["name"].as_str().map(str::to_owned)).collect())
}

/// Until every one of these machines sees `alive` members alive.
pub(super) fn one_view(ctls: &mut [&mut Ctl], alive: usize, timeout: Duration) -> Result<()> {
    for ctl in ctls {
        eventually(timeout, "one view", || {
            let names = seen(ctl, "alive")?;
            ensure!(names.len() == alive, "{alive} should be alive, seen are {names:?}");
            Ok(())
        })?;
    }
    Ok(())
}

pub(super) fn controls(cluster: &Cluster) -> Result<Vec<Ctl>> {
    cluster.vms.iter().map(crate::vm::Vm::ctl).collect()
}

/// Packs a directory of the guest into an image and imports it there.
pub(super) fn import(ctl: &mut Ctl, tag: &str, dir: &str, entrypoint: &str) -> Result<()> {
    let layout = format!("/tmp/{tag}");
    let pack = ["image", "pack", dir, "--out", &layout, "--tag", tag, "--entrypoint", entrypoint];
    ask(ctl, &pack)?;
    ctl.run(&["/usr/bin/quelea", "image", "import", &layout])?;
    Ok(())
}

/// Submits a spec and does not wait.
pub(super) fn submit(ctl: &mut Ctl, name: &str, spec: &str) -> Result<()> {
    let path = format!("/tmp/{name}.toml");
    ctl.ask(crate::wire::Op::Write { path: path.clone(), text: spec.into() })?;
    ctl.run(&["/usr/bin/quelea", "run", "--detach", &path]).map(drop)
}

/// Replicas of an app, as one machine knows them.
pub(super) fn pods(ctl: &mut Ctl, app: &str) -> Result<Vec<Value>> {
    let view = ask(ctl, &["ps", app])?;
    let list = view["pods"].as_array().or_else(|| view.as_array()).context("pods")?;
    Ok(list.iter().filter(|p| p["app"] == app).cloned().collect())
}

/// Until so many replicas are ready on live machines; their machines.
pub(super) fn ready(
    ctl: &mut Ctl,
    app: &str,
    count: usize,
    timeout: Duration,
) -> Result<Vec<String>> {
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

pub(super) fn hello(replicas: usize) -> String {
    format!(
        "app = \"hello\"\nkind = \"service\"\nreplicas = {replicas}\n[[container]]\nname = \"hello\"\nimage = \"hello\"\n\
         cpu = 0.1\nmemory = \"24Mi\"\nports = {{ http = 8080 }}\nready = {{ http = \":8080/healthz\", every = \"1s\" }}\n"
    )
}

pub(super) fn hello_dir() -> String {
    Path::new("/").join(HELLO).parent().map(|p| p.display().to_string()).unwrap_or_default()
}

/// A one-replica app of the helper, which misbehaves as told.
pub(super) fn tool(app: &str, args: &[&str], limits: &str) -> String {
    let args: Vec<String> = args.iter().map(|a| format!("\"{a}\"")).collect();
    format!(
        "app = \"{app}\"\nkind = \"service\"\nreplicas = 1\n[[container]]\nname = \"{app}\"\nimage = \"tool\"\n\
         args = [{}]\n{limits}\n",
        args.join(", ")
    )
}

/// PID of the agent in its full form, however PID 1 calls its own binary.
pub(super) fn agent(ctl: &mut Ctl) -> Result<i32> {
    for program in ["/usr/bin/quelead", "/init"] {
        if let Some(pid) = ctl.find(&format!("{program} agent --config"))?.first() {
            return Ok(*pid);
        }
    }
    anyhow::bail!("no agent runs")
}
