//! The image that racks get, on what racks have: the generic kernel with drivers of server NICs and disk controllers.

use super::{Outcome, operator::*, passed};
use crate::{
    Env,
    disk::{Bus, Disk},
    figures::Figure,
    pace, vm,
};
use anyhow::{Context as _, Result, ensure};
use images::{Build, Set};

/// A network device, its driver, and what a state disk is behind.
const MACHINES: [(&str, &str, Bus); 5] = [
    ("e1000e", "e1000e", Bus::Nvme),
    ("vmxnet3", "vmxnet3", Bus::Pvscsi),
    ("e1000", "e1000", Bus::Megasas),
    ("rtl8139", "8139cp", Bus::Ahci),
    ("virtio-net-pci", "virtio_net", Bus::Virtio),
];
/// As racks boot, but for a console that a test can read.
const ARGS: &str = "quelea.state=format:auto";

pub(super) fn image_boots(env: &Env, test: &str) -> Result<Outcome> {
    let out = vm::test_dir(&format!("{test}-boot"))?;
    let built = Build {
        set: Set::Rack,
        kernel: None,
        quelead: env.quelead.clone().context("no quelead")?,
        cache: env.cache.clone(),
        cmdline: String::new(),
        extra: Vec::new(),
        out: out.clone(),
    }
    .run()?;
    let bytes = built.files["initramfs.cpio"];
    ensure!(bytes <= built.initramfs_bytes_max, "the initramfs has {bytes} bytes");
    let (kernel, image) =
        (out.join("vmlinuz"), std::fs::read(out.join("initramfs.cpio")).context("initramfs")?);
    let mut cluster = flock!(env, test, MACHINES.len())
        .memory_mib(256)
        .args(ARGS)
        .each(|n, machine| {
            let (nic, _, bus) = MACHINES[n];
            machine.nic = Some(nic);
            machine.disks = vec![Disk::new(bus, 256)];
            machine.image = Some((kernel.clone(), image.clone()));
        })
        .start()?;
    for (vm, (nic, driver, bus)) in cluster.vms.iter_mut().zip(MACHINES) {
        let told = || format!("{nic} ({driver}) with {bus:?}");
        let (first, _) = vm.line("is PID 1 on Linux", seconds(60)).with_context(told)?;
        pace::booted(first);
        let (_, coldplug) = vm.line("coldplug: ", seconds(30)).with_context(told)?;
        ensure!(!coldplug.contains("no driver"), "{}: {coldplug}", told());
        vm.line("net: up device=", seconds(30)).with_context(told)?;
        let (_, line) = vm.line("state: ", seconds(30)).with_context(told)?;
        let lost = vm.serial().iter().any(|l| l.contains("no driver in this image"));
        ensure!(!lost, "{}: {}", told(), vm.tail());
        ensure!(!line.contains("in memory"), "{}: {line}", told());
        vm.line("state: on ", seconds(30)).with_context(told)?;
    }
    let mut joined = 0f64;
    for vm in &mut cluster.vms {
        joined = joined.max(vm.line(" joined: ", seconds(60))?.0.as_secs_f64());
    }
    vm::remove_dir(&out);
    let figures = vec![
        Figure::lower("image", "initramfs_rack_bytes", bytes as f64, "B", Some(12e6)),
        Figure::lower("qemu_rack", "joined_5_s", joined, "s", None),
    ];
    Ok(passed(env, cluster, figures))
}
