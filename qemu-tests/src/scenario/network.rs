//! How a machine gets onto its network, with the faults a rack has.

use super::{Outcome, operator::*, passed};
use crate::{
    Cluster, Env,
    ctl::Ctl,
    fabric::{Mood, SECOND, Telling},
    figures::Figure,
    vm::Vm,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const SECONDS_30: Duration = Duration::from_secs(30);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const READY: &str = "quelea-guest: ready";
const PREFIX: &str = "fd77::";

/// The place of a line among those so far.
fn place(vm: &Vm, text: &str) -> Result<usize> {
    let at = vm.serial().iter().position(|line| line.contains(text));
    at.with_context(|| format!("no line with {text:?}:\n{}", vm.tail()))
}

pub(super) fn two_dhcp_servers(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name)
        .args("quelea.join=10.77.0.9:7400 quelea.label=row=7")
        .each(|_, machine| {
            machine.uuid = Some("03000200-0400-0500-0006-000700080009".into());
            let oem = "type=11,value=quelea:label=rack=dmi,value=quelea:label=height=12";
            machine.qemu = vec!["-smbios".into(), oem.into()];
        })
        .start()?;
    cluster.fabric.dhcp(Mood::TwoServers);
    cluster.fabric.change_dhcp(|dhcp| dhcp.seeds = "10.77.0.9:7400 10.77.0.8:7400".into());
    let vm = &mut cluster.vms[0];
    vm.line("net: eth0 servers 10.77.0.1 and 10.77.0.2 answer: taking 10.77.0.1", SECONDS_30)?;
    let (_, line) = vm.line("net: up ", SECONDS_30)?;
    ensure!(line.contains("address=10.77.0.10/24 via=dhcp:10.77.0.1"), "{line}");
    vm.line(READY, SECONDS_30)?;
    ensure!(!vm.said(&format!("dhcp:{SECOND}")), "{}", vm.tail());
    let mut ctl = vm.ctl()?;
    let net = ctl.read("/run/quelea/net")?;
    for line in [
        "address=10.77.0.10/24",
        "seed=10.77.0.9:7400\nseed=10.77.0.8:7400",
        // DHCP before the firmware.
        "label=rack=r1\nlabel=height=12",
    ] {
        ensure!(net.contains(&format!("{line}\n")), "{line:?} is not in\n{net}");
    }
    let boot = ctl.read("/run/quelea/boot")?;
    ensure!(boot.contains("label=row=7\n"), "{boot}");
    ensure!(boot.contains("uuid=7175656c-6561-8000-8000-5254"), "not from the MAC:\n{boot}");
    vm.line("refused (a maker's placeholder); a hardware address instead", SECONDS_30)?;
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn late_link(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name).args("quelea.net.wait=3").start()?;
    let vm = &mut cluster.vms[0];
    vm.link(false)?;
    vm.line("net: no address after 3 s; still waiting for a carrier", SECONDS_30)?;
    vm.line(READY, SECONDS_30)?;
    ensure!(!vm.said("asking for an address"), "asked without a carrier:\n{}", vm.tail());
    let before = vm.age();
    vm.link(true)?;
    vm.line("net: eth0 carrier up", SECONDS_30)?;
    let (at, _) = vm.line("net: up device=eth0 address=10.77.0.10/24", SECONDS_30)?;
    let took = at.saturating_sub(before).as_secs_f64();
    let figure = Figure::lower("qemu_boot", "late_link_to_address_s", took, "s", Some(1.0));
    Ok(passed(env, cluster, vec![figure]))
}

/// What was a fault of the boot is none any more once it has come right: for the console, the agent and the file.
pub(super) fn mends(env: &Env, test: &str) -> Result<Outcome> {
    let mut cluster = flock!(env, test, 1).args("quelea.net.wait=3").start()?;
    let vm = &mut cluster.vms[0];
    vm.link(false)?;
    vm.line("net: no address after 3 s; still waiting for a carrier", SECONDS_30)?;
    let mut ctl = vm.ctl()?;
    let fault = "\nfault=net-up: no address after 3 s\n";
    crate::pace::eventually(SECONDS_30, "the fault in the file", || {
        let boot = ctl.read("/run/quelea/boot")?;
        ensure!(boot.contains(fault), "{boot}");
        Ok(())
    })?;
    let mark = vm.mark();
    vm.link(true)?;
    vm.line_after(mark, "net: up device=eth0 address=10.77.0.10/24", SECONDS_30)?;
    vm.line_after(mark, "quelea: running", SECONDS_30)?;
    let boot = ctl.read("/run/quelea/boot")?;
    ensure!(!boot.contains("fault=") && boot.contains("\nuuid="), "{boot}");
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn several_nics(env: &Env, name: &str) -> Result<Outcome> {
    const SECOND_NIC: [u8; 6] = [0x52, 0x54, 0, 0x71, 2, 1];
    let start = |args: &str| -> Result<Cluster> {
        let cluster = Cluster::builder(env, name)
            .args(args)
            .each(|_, machine| machine.second_nic = Some(SECOND_NIC))
            .start()?;
        cluster.fabric.change_dhcp(|dhcp| {
            if let Some(mut grant) = dhcp.grants.values().next().cloned() {
                grant.address = Ipv4Addr::new(10, 77, 0, 30);
                dhcp.grants.insert(SECOND_NIC, grant);
            }
        });
        Ok(cluster)
    };
    let mut cluster = start("")?;
    let vm = &mut cluster.vms[0];
    vm.line("address=10.77.0.10/24", SECONDS_30)?;
    vm.line("address=10.77.0.30/24", SECONDS_30)?;
    vm.line(READY, SECONDS_30)?;
    let mut ctl = vm.ctl()?;
    let net = crate::pace::eventually(SECONDS_30, "the other device", || {
        let net = ctl.read("/run/quelea/net")?;
        ensure!(net.contains("\nother=eth"), "{net}");
        Ok(net)
    })?;
    let primary = net.lines().find_map(|line| line.strip_prefix("device=")).context("device")?;
    let routes = ctl.read("/proc/net/route")?;
    let default = routes.lines().filter(|line| line.contains("\t00000000\t01004D0A\t"));
    let devices: Vec<_> = default.filter_map(|line| line.split('\t').next()).collect();
    ensure!(devices == [primary], "default routes by {devices:?}:\n{net}\n{routes}");
    passed(env, cluster, Vec::new());

    let mut cluster = start("quelea.ip=dhcp,dev=52:54:00:71:02:01")?;
    let vm = &mut cluster.vms[0];
    let (_, line) = vm.line("net: up ", SECONDS_30)?;
    ensure!(line.contains("address=10.77.0.30/24"), "{line}");
    vm.line(READY, SECONDS_30)?;
    ensure!(!vm.said("address=10.77.0.10/24"), "{}", vm.tail());
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn lease_lost(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name).start()?;
    cluster.fabric.change_dhcp(|dhcp| dhcp.lease_s = 12);
    let vm = &mut cluster.vms[0];
    let (up, _) = vm.line("net: up device=eth0 address=10.77.0.10/24", SECONDS_30)?;
    vm.line(READY, SECONDS_30)?;
    cluster.fabric.dhcp(Mood::Silent);
    let (lost, _) = vm.line("net: eth0 lease ended: address 10.77.0.10 removed", SECONDS_30)?;
    let kept = lost.saturating_sub(up);
    ensure!(kept >= Duration::from_secs(11), "kept for {kept:?} of 12 s");
    let mut ctl = vm.ctl()?;
    // It says so, and then takes everything back.
    crate::pace::eventually(SECONDS_30, "no network", || {
        ensure!(ctl.read("/run/quelea/net").is_err(), "the file is still there");
        Ok(())
    })?;
    let addresses = ctl.read("/proc/net/fib_trie")?;
    ensure!(!addresses.contains("10.77.0.10"), "{addresses}");
    let routes = ctl.read("/proc/net/route")?;
    ensure!(!routes.contains("01004D0A"), "{routes}");
    cluster.fabric.dhcp(Mood::Normal);
    crate::pace::eventually(SECONDS_30, "the address again", || ctl.read("/run/quelea/net"))?;
    Ok(passed(env, cluster, Vec::new()))
}

/// The guest's time minus ours, in seconds: the least that it can be, as an answer takes its time.
fn clock_error(ctl: &mut Ctl) -> Result<f64> {
    let now =
        || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
    let stat = ctl.read("/proc/stat")?;
    let booted: f64 =
        stat.lines().find_map(|line| line.strip_prefix("btime ")?.parse().ok()).context("btime")?;
    let asked = now()?;
    let uptime: f64 = ctl
        .read("/proc/uptime")?
        .split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .context("uptime")?;
    let told = booted + uptime;
    Ok(told - told.clamp(asked, now()?))
}

/// A machine whose clock stands an hour late.
fn an_hour_late(env: &Env, name: &str, telling: Telling) -> Result<Cluster> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() - 3600;
    let base = format!("base={}", date(seconds));
    let cluster = Cluster::builder(env, name).qemu(&["-rtc", &base]).start()?;
    cluster.fabric.change_dhcp(|dhcp| dhcp.ntp = vec![SERVER]);
    cluster.fabric.time(SERVER, telling);
    Ok(cluster)
}

/// `2025-11-13T01:02:03` (Howard Hinnant's civil_from_days).
fn date(unix_s: u64) -> String {
    let (days, rest) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (d, m) =
        (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let y = year + era * 400 + u64::from(m <= 2);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

pub(super) fn sntp(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = an_hour_late(env, name, Telling::Truth)?;
    let vm = &mut cluster.vms[0];
    vm.line(READY, SECONDS_30)?;
    let stepped = place(vm, "clock: stepped by 3")?;
    ensure!(stepped < place(vm, READY)?, "stepped after the machine ran");
    let mut ctl = vm.ctl()?;
    let off = clock_error(&mut ctl)?;
    // btime is in whole seconds.
    ensure!(off.abs() < 2.0, "off by {off:.1} s after the step");
    let clock = ctl.read("/run/quelea/clock")?;
    ensure!(
        clock.contains("server=10.77.0.1:123\n") && clock.contains("synchronised=yes"),
        "{clock}"
    );
    ensure!(ctl.read("/run/quelea/net")?.contains("ntp=10.77.0.1:123\n"));
    drop(ctl);
    passed(env, cluster, Vec::new());

    let mut cluster = an_hour_late(env, name, Telling::LastCentury)?;
    let vm = &mut cluster.vms[0];
    vm.line("clock: answer of 10.77.0.1:123 not believed: a time before this image", SECONDS_30)?;
    vm.line(READY, SECONDS_30)?;
    cluster.fabric.time(SERVER, Telling::WithoutEcho);
    crate::pace::eventually(SECONDS_30, "a question", || {
        ensure!(cluster.fabric.time_heard() > 0, "none yet");
        Ok(())
    })?;
    ensure!(!vm.said("clock: stepped"), "{}", vm.tail());
    cluster.fabric.time(SERVER, Telling::Unsynchronised);
    vm.line("not believed: it has no time itself", Duration::from_secs(90))?;
    // Now that the machine runs, one answer is not enough.
    cluster.fabric.time(SERVER, Telling::Truth);
    vm.line("asking once more before it is set", Duration::from_secs(90))?;
    vm.line("clock: stepped by 3", SECONDS_30)?;
    let off = clock_error(&mut vm.ctl()?)?;
    ensure!(off.abs() < 2.0, "off by {off:.1} s after the step");
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn ra_only(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name).start()?;
    cluster.fabric.dhcp(Mood::Silent);
    cluster.fabric.router(PREFIX.parse()?);
    let vm = &mut cluster.vms[0];
    let (_, line) = vm.line("net: address6=", SECONDS_30)?;
    // From the prefix and the hardware address 52:54:00:71:00:00.
    ensure!(line.contains("address6=fd77::5054:ff:fe71:0/64 via=ra"), "{line}");
    vm.line(READY, SECONDS_30)?;
    ensure!(!vm.said("net: no address after"), "the boot waited for IPv4:\n{}", vm.tail());
    let net = vm.ctl()?.read("/run/quelea/net")?;
    ensure!(net.contains("address6=fd77::5054:ff:fe71:0/64\nvia=ra\n"), "{net}");
    ensure!(!net.contains("address="), "{net}");
    // A server that wakes up later is heard all the same.
    cluster.fabric.dhcp(Mood::Normal);
    vm.line("net: up device=eth0 address=10.77.0.10/24", SECONDS_30)?;
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn module_missing(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name)
        .args("quelea.net.wait=4")
        .each(|_, machine| machine.nic = Some("e1000e"))
        .start()?;
    let vm = &mut cluster.vms[0];
    let (_, line) =
        vm.line("coldplug: no driver in this image for network device at ", SECONDS_30)?;
    ensure!(line.contains("(pci:v00008086d000010D3"), "{line}");
    let (_, line) =
        vm.line("net: no network device; without a driver: network device at ", SECONDS_30)?;
    ensure!(line.contains("(pci:v00008086d000010D3"), "{line}");
    vm.line(READY, SECONDS_30)?;
    Ok(passed(env, cluster, Vec::new()))
}

pub(super) fn hotplug(env: &Env, name: &str) -> Result<Outcome> {
    let mut cluster = Cluster::builder(env, name)
        .qemu(&["-device", "pcie-root-port,id=later,chassis=7"])
        .start()?;
    let vm = &mut cluster.vms[0];
    vm.line(READY, SECONDS_30)?;
    let mut ctl = vm.ctl()?;
    let loaded = |ctl: &mut Ctl| -> Result<bool> {
        let modules = ctl.read("/proc/modules")?;
        Ok(modules.lines().any(|line| line.starts_with("virtio_scsi ")))
    };
    ensure!(!loaded(&mut ctl)?, "virtio_scsi is loaded without a device");
    let device = json!({ "driver": "virtio-scsi-pci", "bus": "later", "id": "scsi" });
    vm.qmp()?.command("device_add", device)?;
    // One that comes while hotplug starts is found by its first look at everything.
    let (_, line) = vm.line("hotplug: ", SECONDS_30)?;
    ensure!(line.contains("hotplug: new device: 1") || line.contains("hotplug: late: 1"), "{line}");
    ensure!(loaded(&mut ctl)?, "virtio_scsi is not loaded:\n{}", vm.tail());
    Ok(passed(env, cluster, Vec::new()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn dates() {
        assert_eq!(super::date(0), "1970-01-01T00:00:00");
        assert_eq!(super::date(1_709_208_000), "2024-02-29T12:00:00");
        assert_eq!(super::date(1_763_000_000), "2025-11-13T02:13:20");
    }
}
