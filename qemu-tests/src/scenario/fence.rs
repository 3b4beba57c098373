//! A node that stood still while the others went on: what it runs has been replaced, and it must stop before that shows.

use super::{Outcome, operator::*, passed};
use crate::{Cluster, Env, ctl::Ctl, figures::Figure, pace, pace::eventually, vm::Vm};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long the node stands still.
const STILL: Duration = seconds(30);
/// A slot may have two ready replicas for so long at most, and a replaced one must be gone by then.
const DOUBLE_S_MAX: f64 = 2.0;

/// Slots with more than one ready replica on live nodes.
fn doubled(ctl: &mut Ctl) -> Result<Vec<String>> {
    let mut by_slot: BTreeMap<String, u32> = BTreeMap::new();
    for pod in pods(ctl, "hello")? {
        if pod["ready"] == true && pod["node_alive"] == true {
            let name = pod["name"].as_str().unwrap_or_default().to_owned();
            *by_slot.entry(name).or_default() += 1;
        }
    }
    Ok(by_slot.into_iter().filter(|(_, n)| *n > 1).map(|(slot, _)| slot).collect())
}

/// How long the duplicates ran on, and the longest time that a slot was doubled in some view, in seconds.
fn after_resume(cluster: &Cluster, ctls: &mut [Ctl], victim: usize) -> Result<(f64, f64)> {
    let resumed = Instant::now();
    let (mut gone, mut since, mut longest) = (None, None::<Instant>, 0.0f64);
    let patience = seconds(30).mul_f64(pace::stretch());
    // Until it is over, and a while longer: what was stopped must not come back.
    let mut quiet = None::<Instant>;
    loop {
        if gone.is_none() && ctls[victim].find("/hello")?.is_empty() {
            gone = Some(resumed.elapsed().as_secs_f64());
        }
        let mut now = Vec::new();
        for viewer in [0, victim] {
            now.extend(doubled(&mut ctls[viewer])?);
        }
        match (now.is_empty(), since) {
            (false, None) => since = Some(Instant::now()),
            (false, Some(at)) => longest = longest.max(at.elapsed().as_secs_f64()),
            (true, Some(at)) => {
                longest = longest.max(at.elapsed().as_secs_f64());
                since = None;
            }
            (true, None) => {}
        }
        let view =
            seen(&mut ctls[0], "alive")?.len() == 3 && seen(&mut ctls[victim], "alive")?.len() == 3;
        if gone.is_some() && since.is_none() && view {
            if quiet.get_or_insert_with(Instant::now).elapsed() > seconds(3) {
                break;
            }
        } else {
            quiet = None;
        }
        ensure!(
            resumed.elapsed() < patience,
            "duplicates gone: {gone:?}, doubled: {now:?}, one view: {view}\n{}",
            cluster.vms[victim].tail()
        );
    }
    Ok((gone.context("duplicates")?, longest))
}

fn frozen(
    env: &Env,
    test: &str,
    metric: &str,
    still: fn(&Vm, bool) -> Result<()>,
) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 3).start()?;
    let mut ctls = up(&mut cluster)?;
    import(&mut ctls[0], "hello", &hello_dir(), "/hello")?;
    submit(&mut ctls[0], "hello", &hello(3))?;
    let on = ready(&mut ctls[0], "hello", 3, seconds(60))?;
    let victim = (1..3).find(|n| on.contains(&crate::cluster::name(*n))).context("all on one")?;
    let name = crate::cluster::name(victim);

    still(&cluster.vms[victim], true)?;
    let start = Instant::now();
    eventually(seconds(60), "replicas elsewhere", || {
        let on = ready(&mut ctls[0], "hello", 3, Duration::ZERO)?;
        ensure!(!on.contains(&name), "the frozen machine is said to run one: {on:?}");
        Ok(())
    })?;
    let replaced = start.elapsed().as_secs_f64();
    std::thread::sleep(STILL.saturating_sub(start.elapsed()));
    still(&cluster.vms[victim], false)?;
    let (gone, longest) = after_resume(&cluster, &mut ctls, victim)?;
    // Three, nowhere four, and the resumed machine is as good as any.
    ready(&mut ctls[0], "hello", 3, seconds(30))?;
    one_view(&mut ctls.iter_mut().collect::<Vec<_>>(), 3, seconds(10))?;
    let limit = DOUBLE_S_MAX * pace::stretch();
    ensure!(gone <= limit, "duplicates ran {gone:.2} s after the machine went on");
    ensure!(longest <= limit, "a slot had two ready replicas for {longest:.2} s");
    let figure = |what: &str, value, goal| {
        Figure::lower("qemu_flock", &format!("{metric}_{what}_s"), value, "s", Some(goal))
    };
    let figures = vec![
        figure("replaced", replaced, 20.0),
        figure("duplicates_gone", gone, DOUBLE_S_MAX),
        figure("slot_doubled", longest, DOUBLE_S_MAX),
    ];
    Ok(passed(env, cluster, figures))
}

/// The guest's clock stands still with it.
pub(super) fn frozen_then_resumed_node_fenced(env: &Env, test: &str) -> Result<Outcome> {
    frozen(env, test, "frozen", Vm::freeze)
}

/// The guest's clock jumps when it goes on.
pub(super) fn stopped_then_resumed_node_fenced(env: &Env, test: &str) -> Result<Outcome> {
    frozen(env, test, "stopped", Vm::pause)
}
