//! A machine's way down and up again: in order, by its watchdog, by a new kernel; and an agent that will not stay up.

use super::{Outcome, operator::*, passed};
use crate::{Disk, Env, ctl::Ctl, env::GUEST, figures::Figure, pace::eventually};
use anyhow::{Context as _, Result, bail, ensure};
use images::cpio::Archive;
use std::time::Duration;

/// How long the tidy workload takes to end once it is told, in milliseconds.
const TIDY_MS: u64 = 1500;
const SIGKILL: i32 = 9;
const SIGSTOP: i32 = 19;

/// A daemon of the helper that ends in order when it is told to.
fn tidy() -> String {
    tool("tidy", &["term", &TIDY_MS.to_string()], "memory = \"16Mi\"")
        .replace("kind = \"service\"\nreplicas = 1\n", "kind = \"daemon\"\n")
}

pub(super) fn power_button_orderly_shutdown(env: &Env, test: &str) -> Result<Outcome> {
    let builder = flock!(env, test, 2).each(|n, machine| {
        if n == 1 {
            machine.disks.push(Disk::virtio(128));
            machine.args = "quelea.state=format:auto".into();
        }
    });
    let mut cluster = builder.start()?;
    let mut ctls = up(&mut cluster)?;
    let tool_dir = "/tmp/tool-root";
    ctls[0].run(&[&format!("/{GUEST}"), "copy", tool_dir])?;
    import(&mut ctls[0], "tool", tool_dir, "/tool")?;
    submit(&mut ctls[0], "tidy", &tidy())?;
    eventually(seconds(60), "the daemon on both machines", || {
        let pid = *ctls[1].find("/tool term")?.first().context("not on n2 yet")?;
        let status = ctls[1].read(&format!("/proc/{pid}/status"))?;
        let caught =
            status.lines().find_map(|line| line.strip_prefix("SigCgt:")).context("SigCgt")?;
        let caught = u64::from_str_radix(caught.trim(), 16)?;
        // A program that has only just started does not tidy up.
        ensure!(caught & 1 << (15 - 1) != 0, "it does not handle SIGTERM yet: {caught:x}");
        Ok(())
    })?;

    let vm = &mut cluster.vms[1];
    let mark = vm.mark();
    vm.power_button()?;
    let (pressed, _) = vm.line_after(mark, "draining: ", seconds(10))?;
    let off = vm.ended(seconds(30))?;
    let down = ["draining: ", "the agent ", "killing", "unmounting", "power-off: now"];
    vm.in_order(mark, &down, seconds(1))?;
    let (ended, _) = vm.line_after(mark, "the agent ", seconds(1))?;
    let drained = (ended - pressed).as_secs_f64();
    // Both lines are timed here, where they arrive: a little less than the machine took is possible.
    ensure!(
        drained >= TIDY_MS as f64 / 1000.0 * 0.8,
        "the pod was not given its time: {drained:.2} s\n{}",
        vm.tail()
    );
    let disk = &vm.plan().disks[0];
    ensure!(disk.ext4()?.clean, "not unmounted in order: {:?}", disk.ext4()?);
    disk.check()?;
    eventually(seconds(10), "n2 has left, in the other's view", || {
        let (left, dead) = (seen(&mut ctls[0], "left")?, seen(&mut ctls[0], "dead")?);
        ensure!(
            left == [crate::cluster::name(1)] && dead.is_empty(),
            "left {left:?}, dead {dead:?}"
        );
        Ok(())
    })?;
    let figures = vec![
        Figure::lower("qemu_power", "button_to_drained_s", drained, "s", Some(5.0)),
        Figure::lower("qemu_power", "button_to_off_s", off.as_secs_f64(), "s", Some(8.0)),
    ];
    Ok(passed(env, cluster, figures))
}

pub(super) fn watchdog_resets_hung_agent(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1).watchdog().reboots().start()?;
    let mut ctls = up(&mut cluster)?;
    cluster.vms[0].line("watchdog: i6300ESB timer", seconds(5))?;

    // The agent hangs: PID 1 ends it and starts another.
    let hung = agent(&mut ctls[0])?;
    let mark = cluster.vms[0].mark();
    ctls[0].kill(hung, SIGSTOP)?;
    let (from, start) = (cluster.vms[0].age(), std::time::Instant::now());
    let (killed, _) =
        cluster.vms[0].line_after(mark, "the agent is silent: killed", seconds(30))?;
    let ctl = &mut ctls[0];
    eventually(seconds(20), "another agent", || {
        ensure!(agent(ctl)? != hung, "it is still the same");
        ask(ctl, &["status"])
    })?;
    let again = start.elapsed().as_secs_f64();
    ensure!(!cluster.vms[0].said("watchdog: not petted"), "{}", cluster.vms[0].tail());

    // PID 1 itself stands still: the hardware resets the machine.
    let mark = cluster.vms[0].mark();
    ctls[0].write("/sys/fs/cgroup/init/cgroup.freeze", "1")?;
    let (frozen, vm) = (cluster.vms[0].age(), &mut cluster.vms[0]);
    drop(ctls);
    let (reset, _) = vm.line_after(mark, "is PID 1 on Linux", seconds(60))?;
    vm.line_after(mark, "net: up ", seconds(30))?;
    one_view(&mut [&mut vm.ctl()?], 1, seconds(30))?;
    let figures = vec![
        Figure::lower(
            "qemu_power",
            "hung_agent_killed_s",
            (killed - from).as_secs_f64(),
            "s",
            Some(15.0),
        ),
        Figure::lower("qemu_power", "hung_agent_answers_again_s", again, "s", Some(20.0)),
        Figure::lower(
            "qemu_power",
            "hung_pid1_reset_s",
            (reset - frozen).as_secs_f64(),
            "s",
            Some(45.0),
        ),
    ];
    Ok(passed(env, cluster, figures))
}

pub(super) fn agent_crash_loop_maintenance(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 2).start()?;
    let mut ctls = up(&mut cluster)?;
    let mark = cluster.vms[1].mark();
    // Five falls within a minute; PID 1 takes longer between them each time.
    let start = std::time::Instant::now();
    let mut falls = 0;
    while !cluster.vms[1].said("maintenance: ") {
        if let Ok(pid) = agent(&mut ctls[1]) {
            falls += u32::from(ctls[1].kill(pid, SIGKILL).is_ok());
        }
        ensure!(start.elapsed() < seconds(55), "{falls} falls\n{}", cluster.vms[1].tail());
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, line) = cluster.vms[1].line_after(mark, "maintenance: ", seconds(5))?;
    ensure!(line.contains("fell") || line.contains("signal 9"), "no reason in {line:?}");
    ensure!(falls >= 5, "after {falls} falls only");
    // The other node sees it, alive, with the reason; and it answers.
    let phase = eventually(seconds(30), "n2 in Maintenance, in n1's view", || {
        let view = ask(&mut ctls[0], &["nodes"])?;
        let nodes = view["nodes"].as_array().context("nodes")?;
        let n2 = nodes.iter().find(|n| n["name"] == "n2").context("no n2")?;
        let phase = n2["phase"].as_str().unwrap_or_default().to_owned();
        ensure!(n2["state"] == "alive" && phase.starts_with("maintenance: "), "{n2}");
        Ok(phase)
    })?;
    let text = ctls[0].run(&["/usr/bin/quelea", "nodes"])?;
    ensure!(text.to_lowercase().contains("maintenance"), "{phase:?} is not in:\n{text}");
    Ok(passed(env, cluster, Vec::new()))
}

/// Two boot images for `quelea upgrade` of the second machine, as files of the first: one for any machine, without a
/// word about who it is, and one that brings a configuration which no agent takes.
fn upgrades(env: &Env) -> Result<Archive> {
    let node = env.node.as_ref().context("no quelead")?;
    let mut files = Archive::new();
    files.file_from("usr/lib/upgrade/kernel", 0o644, &env.vmlinuz)?;
    let broken = images::node_archive(&[("node.toml".into(), b"name = ".to_vec())])?.to_bytes();
    for (name, config) in [("good", &[][..]), ("broken", &broken)] {
        files.file(&format!("usr/lib/upgrade/{name}"), 0o644, [node, config].concat())?;
    }
    Ok(files)
}

pub(super) fn kexec_upgrade_rolls_back(env: &Env, test: &str) -> Result<Outcome> {
    let builder = flock!(env, test, 2).memory_mib(512).reboots();
    let mut cluster = builder.extra_of(0, upgrades(env)?).start()?;
    let mut ctls = up(&mut cluster)?;
    let n1 = &mut ctls.remove(0);
    drop(ctls);
    let upgrade = |n1: &mut Ctl, initramfs: &str| {
        let kernel = "--kernel=/usr/lib/upgrade/kernel";
        let initramfs = format!("--initramfs=/usr/lib/upgrade/{initramfs}");
        n1.exec_for(
            &["/usr/bin/quelea", "upgrade", "n2", kernel, &initramfs, "--trial=60"],
            300_000,
        )
    };

    let mark = cluster.vms[1].mark();
    let done = upgrade(n1, "good")?;
    if done.code != 0 {
        bail!("the good one: {}{}\n{}", done.out, done.err, cluster.vms[1].tail());
    }
    let vm = &mut cluster.vms[1];
    vm.line_after(mark, "trial: this kernel is kept", seconds(5))?;
    let off = vm.line_after(mark, "draining: a new kernel is loaded", seconds(5))?.0;
    let on = vm.line_after(mark, "is PID 1 on Linux", seconds(5))?.0;
    let up = vm.line_after(mark, "net: up ", seconds(5))?.0;
    one_view(&mut [n1], 2, seconds(30))?;

    let mark = vm.mark();
    let done = upgrade(n1, "broken")?;
    let said = format!("{}{}", done.out, done.err);
    ensure!(done.code != 0 && said.contains("rolled back"), "{} {said}\n{}", done.code, vm.tail());
    vm.in_order(
        mark,
        &[
            "draining: a new kernel is loaded",
            "is PID 1 on Linux",
            "trial: this kernel was not kept in time",
            "reboot: now",
            "is PID 1 on Linux",
            "net: up ",
        ],
        seconds(10),
    )?;
    one_view(&mut [n1], 2, seconds(30))?;
    let figures = vec![
        Figure::lower("qemu_power", "kexec_down_s", (on - off).as_secs_f64(), "s", Some(8.0)),
        Figure::lower(
            "qemu_power",
            "kexec_to_network_s",
            (up - off).as_secs_f64(),
            "s",
            Some(10.0),
        ),
    ];
    Ok(passed(env, cluster, figures))
}

/// A vendor that gave every board the same UUID.
pub(super) fn duplicate_smbios_uuid(env: &Env, test: &str) -> Result<Outcome> {
    let uuid = "deadbeef-0000-4000-8000-000000000001";
    let builder = flock!(env, test, 2).each(|_, machine| machine.uuid = Some(uuid.into()));
    let mut cluster = builder.start()?;
    up(&mut cluster)?;
    for (n, other) in [(0, "n2"), (1, "n1")] {
        cluster.vms[n].line(&format!("uuid {uuid} is also that of {other}"), seconds(20))?;
    }
    Ok(passed(env, cluster, Vec::new()))
}
