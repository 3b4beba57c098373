//! Where a machine keeps what outlives a boot: its disk, or not at all.

use super::{Outcome, limits, operator::*, passed};
use crate::{
    Cluster, Disk, Env,
    ctl::Ctl,
    disk::{self, Bus},
    env::GUEST,
    figures::Figure,
    pace::eventually,
    vm::Vm,
};
use anyhow::{Context as _, Result, ensure};
use std::path::Path;

/// The label of our disks.
const LABEL: &str = "quelea-state";
/// Of disks in these tests, in MiB; the smallest that is formatted has 128.
const SMALL: u64 = 128;
/// After they have grown.
const LARGE: u64 = 512;
/// Formats the only blank disk there is.
const FORMAT: &str = "quelea.state=format:auto";
/// Where state is.
const STATE_DIR: &str = "/var/lib/quelea";

/// Where PID 1 says that state is: `disk` or `memory`.
fn state_of(ctl: &mut Ctl) -> Result<String> {
    let boot = ctl.read("/run/quelea/boot")?;
    let line = boot.lines().find_map(|line| line.strip_prefix("state=")).context("no state=")?;
    Ok(line.to_owned())
}

/// Size of the file system that state is on, in MiB.
fn state_mib(ctl: &mut Ctl, device: &str) -> Result<u64> {
    let mounts = ctl.read("/proc/1/mounts")?;
    let line =
        mounts.lines().find(|l| l.contains(&format!(" {STATE_DIR} "))).context("no mount")?;
    ensure!(line.starts_with(&format!("/dev/{device} {STATE_DIR} ext4 rw")), "{line:?}");
    let sectors = ctl.read(&format!("/sys/class/block/{device}/size"))?;
    Ok(sectors.trim().parse::<u64>()? >> 11)
}

const BUSES: [(Bus, &str); 3] = [(Bus::Virtio, "vda"), (Bus::Nvme, "nvme0n1"), (Bus::Ahci, "sda")];

fn blank_disks(disk: impl Fn(Bus) -> Disk) -> impl Fn(usize, &mut crate::Machine) {
    move |n, machine| machine.disks.push(disk(BUSES[n].0))
}

/// One flock, one machine a bus. All lose power at once.
pub(super) fn first_boot_grow_persist(env: &Env, test: &str) -> Result<Outcome> {
    let builder = flock!(env, test, 3).args(FORMAT);
    let mut cluster = builder.each(blank_disks(|bus| Disk::new(bus, SMALL))).start()?;
    let mut ctls = up(&mut cluster)?;
    let mut boots = Vec::new();
    for (n, (_, device)) in BUSES.iter().enumerate() {
        let vm = &mut cluster.vms[n];
        vm.line(&format!("state: {device} was blank and is formatted now"), seconds(5))?;
        ensure!(state_of(&mut ctls[n])? == "disk", "{}", vm.tail());
        boots.push(ask(&mut ctls[n], &["status"])?["boot"].as_u64().context("boot")?);
    }
    import(&mut ctls[0], "hello", &hello_dir(), "/hello")?;
    submit(&mut ctls[0], "hello", &hello(3))?;
    ready(&mut ctls[0], "hello", 3, seconds(60))?;
    drop(ctls);

    for n in 0..3 {
        cluster.vms[n].kill()?;
        cluster.vms[n].plan().disks[0].grow(LARGE)?;
    }
    for n in 0..3 {
        cluster.power_on(n)?;
    }
    let mut ctls = up(&mut cluster)?;
    for (n, (_, device)) in BUSES.iter().enumerate() {
        let vm = &mut cluster.vms[n];
        vm.line(
            &format!("state: {device} was not unmounted; its journal is replayed"),
            seconds(5),
        )?;
        vm.line(&format!("state: {device} grown from {SMALL} to {LARGE} MiB"), seconds(20))?;
        ensure!(!vm.said("is formatted now"), "{device} was formatted again");
        ensure!(state_mib(&mut ctls[n], device)? == LARGE, "{device} is not larger");
        let boot = ask(&mut ctls[n], &["status"])?["boot"].as_u64().context("boot")?;
        ensure!(boot > boots[n], "boot counter {boot} after {}", boots[n]);
    }
    let known = ask(&mut ctls[0], &["nodes"])?;
    let members = known["nodes"].as_array().map_or(0, Vec::len);
    ensure!(members == 3, "other nodes than before the power cut: {known}");
    // Nobody has imported or submitted anything in this life of theirs.
    ready(&mut ctls[0], "hello", 3, seconds(90))?;
    let back = cluster.vms[0].age().as_secs_f64();
    layer_is_bounded(&mut ctls)?;
    drop(ctls);
    for n in 0..3 {
        cluster.vms[n].kill()?;
        let disk = &cluster.vms[n].plan().disks[0];
        let found = disk.ext4()?;
        ensure!(found.label == LABEL && found.size_bytes == LARGE << 20, "{found:?}");
    }
    let figures =
        vec![Figure::lower("qemu_state", "power_cut_to_apps_ready_s", back, "s", Some(40.0))];
    Ok(passed(env, cluster, figures))
}

/// A container writes until its disk refuses it at its bound, goes on, and is said to be full.
fn layer_is_bounded(ctls: &mut [Ctl]) -> Result<()> {
    for ctl in &mut *ctls {
        let status = ask(ctl, &["status"])?;
        ensure!(status["layers"] == "on disk, bounded by project quotas", "{status}");
    }
    let ctl = &mut ctls[0];
    let tool_dir = "/tmp/tool-root";
    ctl.run(&[&format!("/{GUEST}"), "copy", tool_dir])?;
    import(ctl, "tool", tool_dir, "/tool")?;
    submit(ctl, "fill", &tool("fill", &["fill"], "memory = \"16Mi\"\ndisk = \"4Mi\""))?;
    let log = eventually(seconds(60), "a write that is refused", || {
        let log = ctl.run(&["/usr/bin/quelea", "logs", "fill.0"])?;
        ensure!(log.contains("KiB: "), "{log:?}");
        Ok(log)
    })?;
    ensure!(log.contains("Disk quota exceeded"), "{log:?}");
    let filled = log.lines().find_map(|line| line.split_once("filled ")?.1.split(' ').next());
    let kib: u64 = filled.context("how much")?.parse()?;
    ensure!((3 << 10..=4 << 10).contains(&kib), "{kib} KiB of 4 MiB");
    eventually(seconds(25), "that it is full", || {
        limits::says(ctl, "fill", &["its layer is full (4Mi)", "raise `disk`"])
    })?;
    let pods = pods(ctl, "fill")?;
    ensure!(pods[0]["restarts"] == 0 && pods[0]["ready"] == true, "it should go on: {pods:?}");
    ctl.run(&["/usr/bin/quelea", "stop", "fill"]).map(drop)
}

/// A disk of ours that a node has used, as far as its label tells.
fn ours(path: &Path) -> Result<()> {
    disk::ext4(path, LABEL)
}

fn someones(path: &Path) -> Result<()> {
    disk::ext4(path, "accounts")
}

/// What is damaged keeps its label.
fn corrupt(path: &Path) -> Result<()> {
    ours(path)?;
    disk::corrupt(path)
}

/// Filled to the last block, the part that is root's included.
fn full(path: &Path) -> Result<()> {
    ours(path)?;
    disk::fill(path)
}

struct Bad {
    what: &'static str,
    args: &'static str,
    disks: fn() -> Vec<Disk>,
    /// What its console says.
    line: &'static str,
}

/// One machine each, all at once.
const BAD: &[Bad] = &[
    Bad {
        what: "blank, and nobody said format",
        args: "",
        disks: || vec![Disk::virtio(SMALL)],
        line: "state: in memory only",
    },
    Bad {
        what: "someone else's",
        args: FORMAT,
        disks: || vec![Disk::virtio(SMALL).filled(someones)],
        line: "nothing was formatted: no blank disk of 128 MiB or more: \
               vda holds an ext file system labelled \"accounts\"",
    },
    Bad {
        what: "damaged",
        args: FORMAT,
        disks: || vec![Disk::virtio(SMALL).filled(corrupt)],
        line: "state: vda: ",
    },
    Bad {
        what: "read-only",
        args: "quelea.state=disk quelea.state.wait=2",
        disks: || vec![Disk::virtio(SMALL).filled(ours).read_only()],
        line: "vda is read-only",
    },
    Bad {
        what: "full",
        args: "quelea.state=disk",
        disks: || vec![Disk::virtio(SMALL).filled(full)],
        line: "vda is full: nothing is free of",
    },
    Bad {
        what: "two with our label",
        args: FORMAT,
        disks: || vec![Disk::virtio(SMALL).filled(ours), Disk::virtio(SMALL).filled(ours)],
        line: "vda, vdb are all labelled quelea-state: none is used",
    },
];

/// Every one of them boots, says why its state is in memory, and no disk is written.
pub(super) fn bad_disks(env: &Env, test: &str) -> Result<Outcome> {
    let builder = Cluster::builder(env, test).nodes(BAD.len()).each(|n, machine| {
        machine.args = BAD[n].args.into();
        machine.disks = (BAD[n].disks)();
    });
    let mut cluster = builder.start()?;
    let marks =
        |vm: &Vm| -> Result<Vec<u64>> { vm.plan().disks.iter().map(Disk::fingerprint).collect() };
    let before: Vec<Vec<u64>> = cluster.vms.iter().map(marks).collect::<Result<_>>()?;
    cluster.network_up()?;
    for (n, bad) in BAD.iter().enumerate() {
        let vm = &mut cluster.vms[n];
        vm.line(bad.line, seconds(30)).with_context(|| bad.what)?;
        vm.line("state: in memory only", seconds(10)).with_context(|| bad.what)?;
        vm.line("quelea-guest: ready", seconds(10))?;
        let mut ctl = vm.ctl()?;
        ensure!(state_of(&mut ctl)? == "memory", "{}: {}", bad.what, vm.tail());
        // It is of use: what is written there can be read there.
        ctl.write(&format!("{STATE_DIR}/probe"), "x")?;
        let fault = ctl.read("/run/quelea/boot")?.contains("fault=state");
        ensure!(fault == (n > 0), "{}: fault={fault}", bad.what);
    }
    for (n, bad) in BAD.iter().enumerate() {
        // A journal of our own disk may be replayed to see whether it is full; that is not somebody's data.
        if bad.what != "full" {
            cluster.vms[n].kill()?;
            ensure!(marks(&cluster.vms[n])? == before[n], "{}: the disk was written", bad.what);
        }
    }
    Ok(passed(env, cluster, Vec::new()))
}

/// Two machines with a SCSI controller, and nobody expects a disk. One is plugged in while the first still waits; the other
/// waits in vain.
pub(super) fn comes_late(env: &Env, test: &str) -> Result<Outcome> {
    let builder = Cluster::builder(env, test).nodes(2).each(|n, machine| {
        machine.qemu = vec!["-device".into(), "virtio-scsi-pci,id=scsi".into()];
        if n == 0 {
            machine.disks.push(Disk::new(Bus::Unplugged, SMALL).filled(ours));
            machine.args = "quelea.state.wait=100".into();
        }
    });
    let mut cluster = builder.start()?;
    let [first, other] = cluster.vms.as_mut_slice() else { anyhow::bail!("two machines") };
    first.line("s for disks of host", seconds(30))?;
    let device = serde_json::json!({ "driver": "scsi-hd", "drive": "disk0", "bus": "scsi.0" });
    first.qmp()?.command("device_add", device)?;
    first.line("state: on sda", seconds(30))?;
    first.line("quelea-guest: ready", seconds(10))?;
    ensure!(state_of(&mut first.ctl()?)? == "disk", "{}", first.tail());
    other.line("state: waiting up to 5 s for disks of host", seconds(30))?;
    other.line("state: no disk has come of host", seconds(30))?;
    other.line("state: in memory only", seconds(10))?;
    other.line("quelea-guest: ready", seconds(10))?;
    let boot = other.ctl()?.read("/run/quelea/boot")?;
    ensure!(boot.contains("state=memory\n") && !boot.contains("fault="), "{boot}");
    Ok(passed(env, cluster, Vec::new()))
}

/// All machines of a rack lose power at once, and only one of them has a disk; then all again, with none.
pub(super) fn diskless_rack_power_cycle(env: &Env, test: &str) -> Result<Outcome> {
    let builder = flock!(env, test, 3).each(|n, machine| {
        if n == 0 {
            machine.disks.push(Disk::virtio(SMALL));
            machine.args = FORMAT.into();
        }
    });
    let mut cluster = builder.start()?;
    let mut ctls = up(&mut cluster)?;
    import(&mut ctls[0], "hello", &hello_dir(), "/hello")?;
    submit(&mut ctls[0], "hello", &hello(3))?;
    ready(&mut ctls[0], "hello", 3, seconds(60))?;
    // What a machine without a disk will lose is said before it is lost.
    for (vm, ctl) in cluster.vms.iter_mut().zip(&mut ctls).skip(1) {
        vm.line("state: in memory only", seconds(5))?;
        ensure!(state_of(ctl)? == "memory", "{}", vm.tail());
    }
    drop(ctls);
    power_cut(&mut cluster)?;
    let mut ctls = up(&mut cluster)?;
    ready(&mut ctls[1], "hello", 3, seconds(90))?;
    let back = cluster.vms[0].age().as_secs_f64();
    drop(ctls);

    // The one disk dies with the machines.
    for vm in &mut cluster.vms {
        vm.kill()?;
    }
    let disk = cluster.vms[0].plan().disks[0].clone();
    disk.wipe()?;
    for n in 0..3 {
        cluster.power_on(n)?;
    }
    let mut ctls = up(&mut cluster)?;
    let view = eventually(seconds(20), "an empty flock", || ask(&mut ctls[2], &["ps"]))?;
    let apps = view["apps"].as_array().map_or(0, Vec::len);
    ensure!(apps == 0, "apps that nobody can remember: {view}");
    // The flock is of use again as soon as somebody tells it what to do.
    import(&mut ctls[0], "hello", &hello_dir(), "/hello")?;
    submit(&mut ctls[0], "hello", &hello(3))?;
    ready(&mut ctls[0], "hello", 3, seconds(90))?;
    let figures =
        vec![Figure::lower("qemu_state", "rack_power_cut_to_apps_ready_s", back, "s", Some(40.0))];
    Ok(passed(env, cluster, figures))
}

/// Everything off, then everything on.
fn power_cut(cluster: &mut Cluster) -> Result<()> {
    for vm in &mut cluster.vms {
        vm.kill()?;
    }
    (0..cluster.vms.len()).try_for_each(|n| cluster.power_on(n))
}
