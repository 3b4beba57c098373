//! PID 1's half of a real machine: from the kernel's first call to a node on the network, and off again.
//!
//! ```text
//! kernel ─▶ init::main ─▶ machine::boot ─▶ [the agent runs, init reaps] ─▶ machine::halt ─▶ off
//!                           │ Early     root, mounts, cgroup v2, limits
//!                           │ Coldplug  modules by modalias and modules-load.d
//!                           │ NetUp     quelea-netd: carrier, DHCP or a given address
//!                           └ State     host name, clock floor, entropy, memory for /var/lib/quelea
//! ```
//!
//! - [`phase`]: the life of a machine, pure. - [`cmdline`], [`modules`]: what text says, pure.
//! - [`netd`]: the network and the clock, a process of its own. - [`coldplug`]: drivers.
//! - [`uevent`]: drivers of what is plugged in later, a process of its own. - [`smbios`]: what the firmware says, pure.
//!
//! Invariants: nothing here panics or exits on what it finds; a phase that fails is said on the console, remembered
//! and passed; no byte of the network is parsed in PID 1; no disk is written.
//!
//! Refused: configuration of the node. The files in `/etc/quelea` come with the boot and are the agent's to read.

pub mod cmdline;
pub mod coldplug;
mod console;
mod dhcp;
mod helpers;
mod identity;
mod missing;
pub mod modules;
mod mounts;
pub mod netd;
mod netlink;
pub mod phase;
mod power;
pub mod smbios;
mod sntp;
mod state;
mod sys;
pub mod uevent;

use cmdline::{Cmdline, Ip};
use console::say;
use helpers::Helper;
use phase::{Action, Event, Machine, Phase};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
};
use std::{
    ffi::OsStr,
    io::Read as _,
    path::Path,
    process::ChildStdout,
    time::{Duration, Instant},
};

pub use phase::Power;
pub use power::halt;

/// The node's configuration, as the agent names it; its absence means Maintenance.
pub const NODE_CONFIG: &str = "/etc/quelea/node.toml";
/// What the boot found, for the agent: `key=value` lines.
pub const BOOT_FILE: &str = "/run/quelea/boot";
/// Longest report line of `quelea-netd`; the rest is ignored.
const REPORT_BYTES_MAX: usize = 4096;

/// A machine that is up.
#[derive(Debug)]
pub struct Booted {
    /// Where it stands; further events are its owner's to feed.
    pub machine: Machine,
    netd: Helper,
    plugd: Helper,
}

/// Brings the machine up. For PID 1 of a real machine, first thing, before any thread and any child.
///
/// Takes as long as the network takes, at most `quelea.net.wait`; a machine without network is returned
/// all the same, with the fault in [`Booted::machine`].
#[must_use]
pub fn boot() -> Booted {
    let mut boot = Boot {
        cmdline: Cmdline::default(),
        netd: None,
        plugd: None,
        hostname: None,
        times: String::new(),
    };
    let mut machine = Machine::new(phase::DRAIN_US);
    let mut phase = Some(Phase::Early);
    let mut actions = Vec::new();
    while let Some(current) = phase.take() {
        let start = uptime_us();
        let ok = boot.run(current, &mut machine);
        boot.times +=
            &format!("phase={} start_us={start} end_us={} ok={ok}\n", current.name(), uptime_us());
        machine.step(uptime_us(), Event::Done { ok }, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Enter(next) => phase = Some(next),
                Action::Report(at) => say!("{} after {} ms", at.name(), uptime_us() / 1000),
            }
        }
    }
    let _ = std::fs::create_dir_all("/run/quelea");
    let _ = std::fs::write(BOOT_FILE, boot.times + &identity::boot_lines(&boot.cmdline));
    Booted {
        machine,
        netd: boot.netd.unwrap_or_else(|| Helper::new(netd::NETD)),
        plugd: boot.plugd.unwrap_or_else(|| Helper::new(uevent::PLUGD)),
    }
}

impl Booted {
    /// To be told of every child that PID 1 reaped and does not know. True when it was ours; it runs again then.
    pub fn reaped(&mut self, pid: i32) -> bool {
        let network = Cmdline::parse(&read("/proc/cmdline")).ip != Ip::Off;
        self.netd.reaped(pid, network) || self.plugd.reaped(pid, true)
    }
}

/// Roles of the node binary by the name it is called under. `None`: none of ours, or `init`.
///
/// - `modprobe`: what the kernel calls for a file system or protocol it lacks.
/// - `poweroff`, `reboot`: tell PID 1.
/// - [`netd::NETD`], [`uevent::PLUGD`]: started by [`boot`].
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
        netd::NETD | uevent::PLUGD => {
            let pause_ms = args.next().and_then(OsStr::to_str).and_then(|ms| ms.parse().ok());
            let pause_ms: u64 = pause_ms.unwrap_or(0);
            std::thread::sleep(Duration::from_millis(pause_ms.min(helpers::PAUSE_MS_MAX)));
            Some(if name == netd::NETD { netd::main(pause_ms > 0) } else { uevent::main() })
        }
        _ => None,
    }
}

struct Boot {
    cmdline: Cmdline,
    netd: Option<Helper>,
    plugd: Option<Helper>,
    /// From the network.
    hostname: Option<String>,
    times: String,
}

impl Boot {
    fn run(&mut self, phase: Phase, machine: &mut Machine) -> bool {
        match phase {
            Phase::Early => self.early(),
            Phase::Coldplug => {
                let report = coldplug::Coldplug::open().run();
                let coldplug::Report { loaded, failed, took_ms } = report;
                say!("coldplug: {loaded} modules in {took_ms} ms, {failed} failed");
                failed == 0
            }
            Phase::NetUp => self.network(),
            Phase::State => {
                let ok = state::settle(&self.cmdline, self.hostname.as_deref());
                let configured = Path::new(NODE_CONFIG).exists();
                if !configured {
                    say!("no {NODE_CONFIG}: waiting for an operator");
                }
                self.plugd = Some(Helper::plugd());
                machine.step(uptime_us(), Event::Configured(configured), &mut Vec::new());
                ok
            }
            _ => true,
        }
    }

    fn early(&mut self) -> bool {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        // The first line, before anything can fail.
        say!("{} is PID 1 on Linux {release}", env!("CARGO_PKG_VERSION"));
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let mut ok = true;
        if let Err(e) = mounts::leave_rootfs() {
            ok = false;
            say!("early: {e}");
        }
        ok &= mounts::mount_all();
        mounts::open_console();
        match mounts::cgroups() {
            Ok(lacking) if lacking.is_empty() => {}
            Ok(lacking) => {
                say!("early: this kernel has no cgroup controller {}", lacking.join(", "));
            }
            Err(e) => {
                ok = false;
                say!("early: {e}");
            }
        }
        mounts::limits();
        self.cmdline = Cmdline::parse(&read("/proc/cmdline"));
        for warning in &self.cmdline.warnings {
            say!("cmdline: {warning}");
        }
        ok
    }

    fn network(&mut self) -> bool {
        // Index 1 is the loopback device of every network namespace.
        let lo = netlink::request("link up", "lo", netlink::Message::link_up(1));
        if let Err(e) = &lo {
            say!("net: {e}");
        }
        let (netd, stdout) = Helper::netd();
        self.netd = Some(netd);
        let Some(stdout) = stdout else { return false };
        let wait = Duration::from_secs(u64::from(self.cmdline.net_wait_s));
        match read_line(stdout, wait) {
            Some(line) if line == "off" => {
                say!("net: off, as told");
                lo.is_ok()
            }
            Some(line) => {
                let name = line.split(' ').find_map(|word| word.strip_prefix("hostname="));
                self.hostname = name.map(str::to_owned);
                lo.is_ok()
            }
            None => {
                let (s, mode) = (self.cmdline.net_wait_s, &self.cmdline.ip);
                let what =
                    if *mode == Ip::Dhcp { "a carrier and a DHCP answer" } else { "a carrier" };
                say!("net: no address after {s} s; still waiting for {what}, going on without");
                false
            }
        }
    }
}

/// The first line, `None` when it does not come in time or the other side falls.
fn read_line(mut from: ChildStdout, wait: Duration) -> Option<String> {
    let start = Instant::now();
    let mut line = Vec::new();
    loop {
        let left = wait.checked_sub(start.elapsed())?;
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout));
        if matches!(ready, Err(rustix::io::Errno::INTR)) {
            continue;
        }
        if ready.ok()? == 0 {
            return None;
        }
        let mut bytes = [0; 256];
        let len = from.read(&mut bytes).ok().filter(|len| *len > 0)?;
        line.extend_from_slice(bytes.get(..len)?);
        if let Some(end) = line.iter().position(|b| *b == b'\n') {
            return String::from_utf8(line.get(..end)?.to_vec()).ok();
        }
        if line.len() > REPORT_BYTES_MAX {
            return None;
        }
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
