//! One machine: from power to network, and off.

use super::{Outcome, passed};
use crate::{Cluster, Env, fabric::Mood, figures::Figure, pace, vm::Vm};
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

const SECONDS_20: Duration = Duration::from_secs(20);

/// From the serial line of one VM.
fn first_line(vm: &mut Vm) -> Result<Duration> {
    let (at, line) = vm.line("quelea: ", Duration::from_secs(30))?;
    ensure!(line.contains("is PID 1 on Linux"), "the first line was {line:?}");
    pace::booted(at);
    Ok(at)
}

pub(super) fn first_line_budget(env: &Env, name: &str) -> Result<Outcome> {
    let mut figures = Vec::new();
    for (metric, product, goal) in
        [("first_line_s", false, 3.0), ("first_line_product_s", true, 4.0)]
    {
        let builder = Cluster::builder(env, name);
        let builder = if product { builder.product() } else { builder };
        let mut cluster = builder.start()?;
        let vm = &mut cluster.vms[0];
        let at = first_line(vm)?.as_secs_f64();
        vm.line("net: up device=eth0 address=10.77.0.10/24", SECONDS_20)?;
        figures.push(Figure::lower("qemu_boot", metric, at, "s", Some(goal)));
        let cpu = vm.cpu_at("is PID 1 on Linux").context("CPU time of QEMU")?.as_secs_f64();
        let metric = metric.replace("_s", "_cpu_s");
        figures.push(Figure::lower("qemu_boot", &metric, cpu, "s", None));
        passed(env, cluster, Vec::new());
    }
    let (initramfs, quelead) = (env.initramfs_bytes as f64, env.quelead_bytes as f64);
    if env.node.is_some() {
        figures.push(Figure::lower("image", "initramfs_qemu_bytes", initramfs, "B", Some(4e6)));
        figures.push(Figure::lower("image", "quelead_bytes", quelead, "B", Some(6e6)));
    }
    Ok(Outcome::Passed(figures))
}

pub(super) fn network_up(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name).start()?;
    let up = cluster.network_up()?[0];
    let vm = &mut cluster.vms[0];
    let (_, line) = vm.line("net: up ", SECONDS_20)?;
    ensure!(line.contains("address=10.77.0.10/24 via=dhcp:10.77.0.1"), "{line}");
    let up_cpu = vm.cpu_at("net: up ").context("CPU time of QEMU")?.as_secs_f64();
    vm.line("quelea-guest: ready", SECONDS_20)?;
    for line in vm.serial() {
        ensure!(!line.contains("failed") || line.contains("0 failed"), "{line}");
    }

    let mut ctl = vm.ctl()?;
    ensure!(ctl.read("/proc/sys/kernel/hostname")?.trim() == "n1");
    let net = ctl.read("/run/quelea/net")?;
    ensure!(net.contains("label=rack=r1\n") && net.contains("gateway=10.77.0.1\n"), "{net}");
    let routes = ctl.read("/proc/net/route")?;
    // Destination 0.0.0.0 by 10.77.0.1, little endian.
    ensure!(routes.contains("00000000\t01004D0A"), "{routes}");
    let modules = ctl.read("/proc/modules")?;
    for module in ["virtio_net", "overlay", "erofs", "tun", "loop"] {
        ensure!(
            modules.lines().any(|l| l.split(' ').next() == Some(module)),
            "{module} is not loaded"
        );
    }
    let controllers = ctl.read("/sys/fs/cgroup/cgroup.subtree_control")?;
    for controller in ["cpu", "io", "memory", "pids"] {
        ensure!(controllers.split_whitespace().any(|c| c == controller), "{controllers}");
    }
    ensure!(ctl.read("/proc/1/cgroup")?.trim() == "0::/init");
    let root = ctl.read("/proc/1/mountinfo")?;
    let line = root
        .lines()
        .find(|l| l.split(' ').nth(4) == Some("/") && !l.starts_with("1 "))
        .context("root")?;
    ensure!(line.split(' ').next() != line.split(' ').nth(1), "the root has no parent: {line}");
    ensure!(root.contains(" /var/lib/quelea "), "no place for state:\n{root}");
    let rss_kib = status_kib(&ctl.read("/proc/1/status")?, "VmRSS").context("VmRSS")?;

    ctl.ask(crate::wire::Op::Write { path: "/run/power".into(), text: "off".into() })?;
    let off = vm.ended(SECONDS_20)?;
    ensure!(vm.said("power-off: now"), "{}", vm.tail());
    let figures = vec![
        Figure::lower("qemu_boot", "network_up_s", up.as_secs_f64(), "s", Some(4.0)),
        Figure::lower("qemu_boot", "network_up_cpu_s", up_cpu, "s", None),
        Figure::lower("qemu_boot", "pid1_rss_kib", rss_kib as f64, "KiB", Some(2048.0)),
        Figure::lower("qemu_boot", "power_off_s", off.as_secs_f64(), "s", Some(5.0)),
    ];
    Ok(passed(env, cluster, figures))
}

/// A `VmXyz:   123 kB` line of `/proc/PID/status`.
pub(super) fn status_kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

pub(super) fn given_address(env: &Env, name: &str) -> Result<Outcome> {
    let args = "quelea.colour=red quelea.net.wait=soon";
    let mut cluster = Cluster::builder(env, name).given_addresses().args(args).start()?;
    cluster.network_up()?;
    let vm = &mut cluster.vms[0];
    let (_, line) = vm.line("net: up ", SECONDS_20)?;
    ensure!(line.contains("address=10.77.0.10/24 via=static"), "{line}");
    vm.line("watchdog: no device: a machine that hangs stays so", SECONDS_20)?;
    for warning in ["ignored quelea.colour=red: unknown argument", "ignored quelea.net.wait=soon"] {
        vm.line(warning, SECONDS_20)?;
    }
    vm.line("quelea-guest: ready phase=maintenance", SECONDS_20)?;
    ensure!(vm.ctl()?.read("/proc/sys/kernel/hostname")?.trim() == "n1");
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn dhcp_trouble(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name).args("quelea.net.wait=3").start()?;
    cluster.fabric.dhcp(Mood::Silent);
    let vm = &mut cluster.vms[0];
    first_line(vm)?;
    vm.line("net: no address after 3 s", SECONDS_20)?;
    vm.line("quelea-guest: ready", SECONDS_20)?;
    cluster.fabric.dhcp(Mood::Nak);
    vm.line("net: eth0 server 10.77.0.1 refuses: asking again later", SECONDS_20)?;
    let refused_at = pace::eventually(Duration::from_secs(30), "a refusal", || {
        let (heard, refused) = cluster.fabric.dhcp_counts();
        ensure!(refused > 0, "{heard} messages, none refused");
        Ok(heard)
    })?;
    // Who asks again has heard the refusal.
    pace::eventually(Duration::from_secs(30), "another question", || {
        ensure!(cluster.fabric.dhcp_counts().0 > refused_at, "no question since the refusal");
        Ok(())
    })?;
    ensure!(!vm.said("net: up "), "an address from a refusing server");
    cluster.fabric.dhcp(Mood::Normal);
    vm.line("net: up device=eth0 address=10.77.0.10/24", SECONDS_20)?;
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn wrong_clock(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster =
        Cluster::builder(env, name).qemu(&["-rtc", "base=1999-12-31T23:59:59"]).start()?;
    let vm = &mut cluster.vms[0];
    first_line(vm)?;
    vm.line("s before this image was made; set to that", SECONDS_20)?;
    Ok(passed(env, cluster, Vec::new()))
}
