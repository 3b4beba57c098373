//! Several machines as one flock: the mesh, faults of its network, a power cut.

use super::{Outcome, operator::*, passed};
use crate::{Env, cluster::name, figures::Figure, pace::eventually};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

fn mesh(env: &Env, test: &str, nodes: usize, goal_s: f64) -> Result<Outcome> {
    let mut cluster = flock!(env, test, nodes).start()?;
    cluster.network_up()?;
    let mut ctls = controls(&cluster)?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), nodes, seconds(30))?;
    let took = cluster.vms[0].age().as_secs_f64();
    let mut figures =
        vec![Figure::lower("qemu_mesh", &format!("one_view_{nodes}_s"), took, "s", Some(goal_s))];
    // What all of them took until the last had joined; a console tells it later than the API may.
    let mut cpu = 0.0;
    for vm in &mut cluster.vms {
        vm.line(" joined: ", seconds(10))?;
        cpu += vm.cpu_at(" joined: ").context("no line of joining")?.as_secs_f64();
    }
    figures.push(Figure::lower("qemu_mesh", &format!("joined_{nodes}_cpu_s"), cpu, "s", None));
    let status = ask(&mut ctls[0], &["status"])?;
    if let Some(rss) = status["rss_bytes"].as_f64() {
        let mib = rss / f64::from(1 << 20);
        figures.push(Figure::lower("qemu_mesh", "agent_rss_mib", mib, "MiB", Some(12.0)));
    }
    // While it has just been busy, and as it is all day: a second after the last thing it did it lets go of its program,
    // whose pages the initramfs holds anyway.
    for (state, wait, goal) in [("busy_", Duration::ZERO, None), ("", seconds(3), Some(2048.0))] {
        std::thread::sleep(wait);
        let status = ctls[0].read("/proc/1/status")?;
        for (key, metric, goal) in [("VmRSS", "rss", goal), ("RssAnon", "anon", None)] {
            let kib = super::boot::status_kib(&status, key).context("memory of PID 1")?;
            let metric = format!("pid1_{state}{metric}_kib");
            figures.push(Figure::lower("qemu_mesh", &metric, kib as f64, "KiB", goal));
        }
    }
    Ok(passed(env, cluster, figures))
}

pub(super) fn mesh_forms_3(env: &Env, test: &str) -> Result<Outcome> {
    mesh(env, test, 3, 6.0)
}

pub(super) fn mesh_forms_5(env: &Env, test: &str) -> Result<Outcome> {
    mesh(env, test, 5, 16.0)
}

pub(super) fn partition_minority_heals(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 3).start()?;
    let mut ctls = up(&mut cluster)?;
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
    let mut cluster = flock!(env, test, 3).start()?;
    let mut ctls = up(&mut cluster)?;
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

pub(super) fn kill9_reschedules_and_rejoins(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 3).start()?;
    let mut ctls = up(&mut cluster)?;
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

pub(super) fn orderly_shutdown(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1).start()?;
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
