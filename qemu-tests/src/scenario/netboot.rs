//! Blank machines that boot over the network from a running node, beside the site's own DHCP server.

use super::{Outcome, operator::*, passed};
use crate::{
    Cluster, Env,
    cluster::{Files, address},
    fabric::Loader,
    figures::Figure,
    firmware::Firmware,
    pace,
    pace::eventually,
    vm,
};
use anyhow::{Context as _, Result, ensure};
use images::{Build, Set, bootdir, cpio::Archive};
use std::time::{Duration, Instant};

/// The boot directory on the serving machine.
const DIR: &str = "/srv/boot";
const LOG: &str = "/run/boot-serve.log";
/// For the agent, and for what it serves: 20 MB, once as files and once in memory.
const SERVER_MIB: u32 = 384;

pub(super) fn bios(env: &Env, test: &str) -> Result<Outcome> {
    netboot(env, test, Firmware::Bios)
}

pub(super) fn bios_undi(env: &Env, test: &str) -> Result<Outcome> {
    netboot(env, test, Firmware::BiosUndi)
}

pub(super) fn uefi_pxe(env: &Env, test: &str) -> Result<Outcome> {
    netboot(env, test, Firmware::UefiPxe)
}

pub(super) fn uefi_http(env: &Env, test: &str) -> Result<Outcome> {
    netboot(env, test, Firmware::UefiHttp)
}

fn mac_text(n: usize) -> String {
    vm::mac(n).map(|byte| format!("{byte:02x}")).join(":")
}

/// What the blank machine is to become. Its rack is not the one that the site's DHCP server says.
fn rack_toml() -> String {
    format!(
        "[defaults]\njoin = [\"{}\"]\nlabels = {{ row = \"b\" }}\n\
         [[machine]]\nmac = \"{}\"\nname = \"blank\"\nlabels = {{ rack = \"b7\" }}\naddress = \"{}\"\n",
        address(0),
        mac_text(1),
        address(1)
    )
}

/// As [`rack_toml`], but its address is whatever the site's DHCP server gives, and its state is on its blank disk.
fn rack_toml_without_address() -> String {
    format!(
        "[defaults]\njoin = [\"{}\"]\nlabels = {{ row = \"b\" }}\n\
         [[machine]]\nmac = \"{}\"\nname = \"blank\"\nlabels = {{ rack = \"b7\" }}\nstate = \"format:auto\"\n",
        address(0),
        mac_text(1),
    )
}

/// The boot directory as files of the serving machine.
fn boot_dir(env: &Env, test: &str, rack: String) -> Result<Archive> {
    let out = vm::test_dir(&format!("{test}-boot"))?;
    Build {
        set: Set::Qemu,
        kernel: None,
        quelead: env.quelead.clone().context("no quelead")?,
        cache: env.cache.clone(),
        // What costs time under emulation and changes nothing that is tested.
        cmdline: "quiet mitigations=off no_timer_check tsc=reliable".into(),
        extra: Vec::new(),
        out: out.clone(),
    }
    .run()?;
    let mut archive = Archive::new();
    for name in bootdir::FILES.iter().chain(&[bootdir::MANIFEST]) {
        archive.file_from(&format!("{DIR}/{name}"), 0o644, &out.join(name))?;
    }
    archive.file(&format!("{DIR}/rack.toml"), 0o644, rack)?;
    vm::remove_dir(&out);
    Ok(archive)
}

fn netboot(env: &Env, test: &str, firmware: Firmware) -> Result<Outcome> {
    if let Some(package) = firmware.missing() {
        return Ok(Outcome::Skipped(format!("{package} is not installed")));
    }
    let mut cluster = flock!(env, test, 1)
        .nodes(2)
        .extra(boot_dir(env, test, rack_toml())?)
        .each(|n, machine| {
            machine.memory_mib = Some(SERVER_MIB);
            if n == 1 {
                machine.firmware = Some(firmware);
                machine.memory_mib = Some(if firmware.is_bios() { 256 } else { 512 });
            }
        })
        .start()?;
    let (first, _) = cluster.vms[0].line("is PID 1", seconds(30))?;
    pace::booted(first);
    cluster.vms[0].line("net: up ", seconds(20))?;
    let mut ctl = cluster.vms[0].ctl()?;
    one_view(&mut [&mut ctl], 1, seconds(30))?;

    // The one command.
    let rack = format!("{DIR}/rack.toml");
    let serve = ["--flock", "/etc/quelea/flock", "boot", "serve", DIR, "--rack", &rack];
    let argv: Vec<&str> = ["/usr/bin/quelea", "-o", "json"]
        .into_iter()
        .chain(serve)
        .chain(["--interface", "eth0"])
        .collect();
    let server = ctl.spawn(&argv, LOG)?;
    eventually(seconds(20), "boot serve listens", || {
        let sockets = ctl.read("/proc/net/udp")?;
        // Ports 67 and 69.
        ensure!(sockets.contains(":0043 ") && sockets.contains(":0045 "), "{}", ctl.read(LOG)?);
        Ok(())
    })?;

    if firmware == Firmware::BiosUndi {
        let (mac, server, file) = (vm::mac(1), address(0), "undionly.kpxe".to_owned());
        let loader = Loader { mac, server, file, leases: 1 };
        cluster.fabric.change_dhcp(|dhcp| dhcp.loader = Some(loader.clone()));
    }
    cluster.vms[1].freeze(false)?;
    let on = Instant::now();
    let joined = joined(&mut cluster, &mut ctl, on);
    let log = ctl.read(LOG)?;
    let took = joined.with_context(|| format!("boot serve said:\n{log}"))?;
    check_labels(&mut ctl)?;
    check_log(&log, firmware)?;
    ensure!(log.contains("\"event\":\"configured\""), "{log}");
    cluster.vms[1].line("net: up device=eth0 address=10.77.0.11/24", seconds(10))?;

    // Ctrl-C ends it cleanly; the machine that it booted does not notice.
    ctl.kill(server, 2)?;
    eventually(seconds(10), "boot serve ends", || {
        let left =
            ctl.ask(crate::wire::Op::Find { starts: "/usr/bin/quelea -o json --flock".into() })?;
        ensure!(left.out.is_empty(), "still there: {}", left.out);
        Ok(())
    })?;
    one_view(&mut [&mut ctl], 2, seconds(5))?;
    let metric = match firmware {
        Firmware::Bios => "pxe_bios_power_to_joined_s",
        Firmware::BiosUndi => "pxe_bios_undi_power_to_joined_s",
        Firmware::UefiPxe => "pxe_uefi_power_to_joined_s",
        Firmware::UefiHttp => "uefi_http_power_to_joined_s",
    };
    let figures = vec![Figure::lower("qemu_netboot", metric, took.as_secs_f64(), "s", Some(30.0))];
    Ok(passed(env, cluster, figures))
}

/// Three machines: a node that has its image and its credentials and nothing else; a blank one; and the operator's, which is
/// no node and is not asked by anybody but that node.
pub(super) fn through_a_node(env: &Env, test: &str) -> Result<Outcome> {
    let extra = boot_dir(env, test, rack_toml_without_address())?;
    let builder = flock!(env, test, 1);
    // The flock's bundle is the operator's; the node keeps what `quelea init node` gave it.
    let (node, bundle): (Files, Files) =
        builder.files(0).iter().cloned().partition(|(name, _)| !name.starts_with("flock/"));
    let mut cluster = builder
        .nodes(3)
        .files_of(0, node)
        .files_of(1, Files::new())
        .files_of(2, bundle)
        .extra_of(2, extra)
        .each(|n, machine| match n {
            0 => machine.product = true,
            1 => {
                machine.firmware = Some(Firmware::Bios);
                machine.memory_mib = Some(256);
                machine.disks = vec![crate::disk::Disk::virtio(256)];
            }
            _ => {
                machine.memory_mib = Some(SERVER_MIB);
                machine.args = "quelea.adopt=off".into();
            }
        })
        .start()?;
    let (first, _) = cluster.vms[0].line("is PID 1", seconds(30))?;
    pace::booted(first);
    cluster.vms[0].line("the agent runs", seconds(40))?;
    cluster.vms[2].line("nobody can adopt this machine", seconds(40))?;
    let mut ctl = cluster.vms[2].ctl()?;

    // The one command, and the flock as the operator sees it.
    let at = format!("n1@{}", address(0));
    let rack = format!("{DIR}/rack.toml");
    let serve = ["boot", "serve", DIR, "--rack", &rack, "--on", &at];
    let argv: Vec<&str> = ["/usr/bin/quelea", "-o", "json", "--flock", "/etc/quelea/flock"]
        .into_iter()
        .chain(serve)
        .collect();
    let server = ctl.spawn(&argv, LOG)?;
    let view = |ctl: &mut crate::ctl::Ctl| {
        ask(ctl, &["--flock", "/etc/quelea/flock", "--node", &at, "nodes"])
    };
    let events = |ctl: &mut crate::ctl::Ctl| {
        let flock = ["--flock", "/etc/quelea/flock", "--node", &at, "events"];
        let argv: Vec<&str> = ["/usr/bin/quelea"].into_iter().chain(flock).collect();
        ctl.run(&argv)
    };
    eventually(seconds(30), "the node serves", || {
        let told = events(&mut ctl)?;
        ensure!(told.contains("boots machines through eth0"), "{told}: {}", ctl.read(LOG)?);
        Ok(())
    })?;

    cluster.vms[1].freeze(false)?;
    let on = Instant::now();
    let came = (|| {
        cluster.vms[1].line("is PID 1", seconds(90))?;
        eventually(seconds(60), "the blank machine joins", || {
            let nodes = view(&mut ctl)?;
            let list = nodes["nodes"].as_array().context("nodes")?;
            let blank = list.iter().find(|n| n["name"] == "blank").context("not there")?;
            ensure!(blank["state"] == "alive" && blank["labels"]["rack"] == "b7", "{blank}");
            ensure!(blank["labels"]["row"] == "b" && blank["boot_state"] == "disk", "{blank}");
            // What the site's server gave it.
            ensure!(blank["address"] == format!("{}:7400", address(1)).as_str(), "{blank}");
            Ok(())
        })
        .with_context(|| cluster.vms[1].tail())
    })();
    let log = ctl.read(LOG)?;
    came.with_context(|| format!("boot serve said:\n{log}"))?;
    let took = on.elapsed();
    check_log(&log, Firmware::Bios)?;
    ensure!(log.contains("\"event\":\"configured\""), "{log}");

    // Ctrl-C closes the node's ports: another operator can open them.
    ctl.kill(server, 2)?;
    eventually(seconds(15), "the node's ports are closed", || {
        let told = events(&mut ctl)?;
        ensure!(told.contains("boots no more machines"), "{told}");
        Ok(())
    })?;
    let figures = vec![Figure::lower(
        "qemu_netboot",
        "pxe_bios_through_a_node_s",
        took.as_secs_f64(),
        "s",
        Some(45.0),
    )];
    Ok(passed(env, cluster, figures))
}

/// Waits until the first machine sees the blank one alive.
fn joined(cluster: &mut Cluster, ctl: &mut crate::ctl::Ctl, on: Instant) -> Result<Duration> {
    cluster.vms[1].line("is PID 1", seconds(60))?;
    eventually(seconds(40), "the blank machine joins", || {
        let names = seen(ctl, "alive")?;
        ensure!(names.iter().any(|name| name == "blank"), "alive are {names:?}");
        Ok(())
    })
    .with_context(|| cluster.vms[1].tail())?;
    Ok(on.elapsed())
}

/// The labels are those of rack.toml.
fn check_labels(ctl: &mut crate::ctl::Ctl) -> Result<()> {
    eventually(seconds(20), "labels", || {
        let view = ask(ctl, &["nodes"])?;
        let nodes = view["nodes"].as_array().context("nodes")?;
        let node = nodes.iter().find(|node| node["name"] == "blank").context("no such node")?;
        let label = |key: &str| node["labels"][key].as_str().unwrap_or_default().to_owned();
        ensure!((label("rack"), label("row")) == ("b7".into(), "b".into()), "{node}");
        Ok(())
    })
}

/// It came the way its firmware goes.
fn check_log(log: &str, firmware: Firmware) -> Result<()> {
    let wanted: &[&str] = match firmware {
        Firmware::Bios => &["\"event\":\"ipxe\"", "\"event\":\"script\"", "\"detail\":\"vmlinuz\""],
        Firmware::BiosUndi => &[
            "\"detail\":\"has undionly.kpxe\"",
            "\"event\":\"ipxe\"",
            "\"event\":\"script\"",
            "\"detail\":\"vmlinuz\"",
        ],
        Firmware::UefiPxe => &[
            "\"event\":\"pxe\"",
            "\"detail\":\"has snponly.efi\"",
            "\"event\":\"ipxe\"",
            "\"event\":\"script\"",
        ],
        Firmware::UefiHttp => &["\"event\":\"http-boot\""],
    };
    for text in wanted {
        ensure!(log.contains(text), "boot serve did not say {text}:\n{log}");
    }
    let refused = log.contains("\"event\":\"refused\"") || log.contains("\"event\":\"error\"");
    ensure!(!refused, "boot serve refused something:\n{log}");
    Ok(())
}
