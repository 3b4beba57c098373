//! PID 1's half of a real machine: from the kernel's first call to a node on the network, and off again.
//!
//! ```text
//! kernel ─▶ init::main ─▶ machine::boot ─▶ [the agent runs, init reaps] ─▶ Booted::end ─▶ off
//!                           │ Early     root, mounts, cgroup v2, limits
//!                           │ Coldplug  modules by modalias, of network devices first, and modules-load.d; watchdog;
//!                           │           quelea-netd and quelea-disk begin their work as soon as theirs are there
//!                           │ NetUp     waits for quelea-netd: carrier, DHCP or a given address
//!                           └ State     host name, clock floor, entropy, disk or memory for /var/lib/quelea
//! ```
//!
//! - [`phase`]: the life of a machine, pure. - [`cmdline`], [`modules`]: what text says, pure.
//! - [`netd`]: the network and the clock, a process of its own. - [`coldplug`]: drivers.
//! - [`uevent`]: drivers of what is plugged in later, a process of its own. - [`smbios`]: what the firmware says, pure.
//! - [`disk`]: what outlives a reboot, a process of its own as well.
//! - `watchdog`, `button`, `kexec`: what resets, ends and replaces a machine.
//!
//! Invariants: nothing here panics or exits on what it finds; a phase that fails is said on the console, remembered
//! and passed; no byte of the network or of a disk is parsed in PID 1; no disk is written
//! unless it is labelled as ours, or blank and the boot was told to format it.
//!
//! Refused: configuration of the node. The files in `/etc/quelea` come with the boot and are the agent's to read.

mod boot;
mod booted;
mod button;
pub mod cmdline;
pub mod coldplug;
pub(crate) mod console;
mod dhcp;
pub mod disk;
mod helpers;
mod identity;
mod kexec;
mod missing;
pub mod modules;
mod mounts;
pub mod netd;
mod netlink;
pub mod phase;
mod power;
mod pstore;
pub mod smbios;
mod sntp;
mod state;
mod sys;
pub mod uevent;
mod watchdog;

use rustix::process::{Pid, Signal, kill_process};
use std::{ffi::OsStr, path::Path, time::Duration};

pub use boot::boot;
pub use booted::Booted;
pub use phase::Power;
pub use power::halt;
pub(crate) use power::{kill_cgroups, let_file_systems_go};

/// The node's configuration, as the agent names it; its absence means Maintenance.
pub const NODE_CONFIG: &str = "/etc/quelea/node.toml";
/// What the boot found, for the agent: `key=value` lines.
pub const BOOT_FILE: &str = "/run/quelea/boot";

/// Roles of the node binary by the name it is called under. `None`: none of ours, or `init`.
///
/// - `modprobe`: what the kernel calls for a file system or protocol it lacks.
/// - `poweroff`, `reboot`: tell PID 1.
/// - [`netd::NETD`], [`uevent::PLUGD`], `quelea-disk`, `quelea-kexec`: started by PID 1.
#[must_use]
pub fn personality<'a>(mut args: impl Iterator<Item = &'a OsStr>) -> Option<i32> {
    let name = Path::new(args.next()?).file_name()?.to_str()?;
    let tell =
        |signal| Pid::from_raw(1).map_or(1, |pid| i32::from(kill_process(pid, signal).is_err()));
    match name {
        "modprobe" => {
            let alias = args.filter_map(OsStr::to_str).find(|arg| !arg.starts_with('-'))?;
            let report = coldplug::Coldplug::open().modprobe(alias);
            Some(i32::from(report.failed > 0))
        }
        "poweroff" => Some(tell(Signal::POWER)),
        "reboot" => Some(tell(Signal::INT)),
        disk::DISK => Some(disk::main(args)),
        kexec::LOADER => Some(kexec::main(args.next().map(Path::new))),
        netd::NETD | uevent::PLUGD => {
            let pause_ms = args.next().and_then(OsStr::to_str).and_then(|ms| ms.parse().ok());
            let pause_ms: u64 = pause_ms.unwrap_or(0);
            std::thread::sleep(Duration::from_millis(pause_ms.min(helpers::PAUSE_MS_MAX)));
            Some(if name == netd::NETD { netd::main(pause_ms > 0) } else { uevent::main() })
        }
        _ => None,
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Microseconds since the kernel started, sleep included.
fn uptime_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// Milliseconds of the clock that deadlines are kept on; it stands still while the machine sleeps.
pub(crate) fn monotonic_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
