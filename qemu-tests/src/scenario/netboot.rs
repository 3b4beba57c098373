//! Blank machines that boot over the network from a running node, beside the site's own DHCP server.

use super::{Outcome, operator::*, passed};
use crate::{
    Cluster, Env, cluster::address, figures::Figure, firmware::Firmware, pace, pace::eventually, vm,
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

/// The boot directory as files of the serving machine.
fn boot_dir(env: &Env, test: &str) -> Result<Archive> {
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
    archive.file(&format!("{DIR}/rack.toml"), 0o644, rack_toml())?;
    vm::remove_dir(&out);
    Ok(archive)
}

fn netboot(env: &Env, test: &str, firmware: Firmware) -> Result<Outcome> {
    if let Some(package) = firmware.missing() {
        return Ok(Outcome::Skipped(format!("{package} is not installed")));
    }
    let mut cluster = flock!(env, test, 1)
        .nodes(2)
        .extra(boot_dir(env, test)?)
        .each(|n, machine| {
            machine.memory_mib = Some(SERVER_MIB);
            if n == 1 {
                machine.firmware = Some(firmware);
                machine.memory_mib = Some(if firmware == Firmware::Bios { 256 } else { 512 });
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
        Firmware::UefiPxe => "pxe_uefi_power_to_joined_s",
        Firmware::UefiHttp => "uefi_http_power_to_joined_s",
    };
    let figures = vec![Figure::lower("qemu_netboot", metric, took.as_secs_f64(), "s", Some(30.0))];
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
