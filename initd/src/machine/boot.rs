//! The way up, phase by phase.

use super::cmdline::{Cmdline, Ip};
use super::console::say;
use super::disk::{self, Outcome, Wish};
use super::helpers::Helper;
use super::phase::{self, Action, Event, Machine, Phase};
use super::watchdog::Watchdog;
use super::{
    BOOT_FILE, Booted, NODE_CONFIG, coldplug, identity, monotonic_ms, mounts, netd, netlink,
    pstore, read, state, uevent, uptime_us,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use std::{
    io::Read as _,
    path::Path,
    process::ChildStdout,
    time::{Duration, Instant},
};

/// Longest report line of a child; the rest is ignored.
const REPORT_BYTES_MAX: usize = 4096;
/// How often the watchdog is thought of while a child is waited for.
const PET_SLICE: Duration = Duration::from_secs(1);

/// Brings the machine up. For PID 1 of a real machine, first thing, before any thread and any child.
///
/// Takes as long as the network takes, at most `quelea.net.wait`; a machine without network is returned
/// all the same, with the fault in [`Booted::machine`].
#[must_use]
pub fn boot() -> Booted {
    let mut boot = Boot {
        cmdline: Cmdline::default(),
        netd: Helper::new(netd::NETD),
        plugd: Helper::new(uevent::PLUGD),
        netd_says: None,
        disk: None,
        hostname: None,
        watchdog: Watchdog::none(),
        facts: String::new(),
        faults: Vec::new(),
    };
    let mut machine = Machine::new(phase::DRAIN_US);
    let mut phase = Some(Phase::Early);
    let mut actions = Vec::new();
    while let Some(current) = phase.take() {
        let start = uptime_us();
        let ok = boot.run(current, &mut machine);
        boot.facts +=
            &format!("phase={} start_us={start} end_us={} ok={ok}\n", current.name(), uptime_us());
        machine.step(uptime_us(), Event::Done { ok }, &mut actions);
        for action in actions.drain(..) {
            match action {
                Action::Enter(next) => phase = Some(next),
                Action::Report(at) => say!("{} after {} ms", at.name(), uptime_us() / 1000),
            }
        }
    }
    boot.write_facts();
    Booted::new(machine, boot.cmdline, boot.faults, (boot.netd, boot.plugd), boot.watchdog)
}

struct Boot {
    cmdline: Cmdline,
    netd: Helper,
    plugd: Helper,
    /// Where its first line comes.
    netd_says: Option<ChildStdout>,
    /// The same of the disk, with how long it may take; or why there is none. Empty: state is to be in memory.
    disk: Option<std::result::Result<(ChildStdout, Duration), String>>,
    /// From the network.
    hostname: Option<String>,
    watchdog: Watchdog,
    /// Lines of [`BOOT_FILE`].
    facts: String,
    /// What failed, a sentence each.
    faults: Vec<String>,
}

impl Boot {
    fn run(&mut self, phase: Phase, machine: &mut Machine) -> bool {
        match phase {
            Phase::Early => self.early(),
            Phase::Coldplug => {
                let mut coldplug = coldplug::Coldplug::open();
                let first = coldplug.run_network();
                // A server, a switch and a disk take their time while we load the rest.
                self.begin_network();
                let report = coldplug.run().and(&first);
                let coldplug::Report { loaded, failed, took_ms } = report;
                say!("coldplug: {loaded} modules in {took_ms} ms, {failed} failed");
                // A disk that comes late needs its driver.
                self.plugd = Helper::plugd();
                self.begin_disk();
                self.watchdog = Watchdog::open(self.cmdline.watchdog);
                self.watchdog.tend(monotonic_ms(), true);
                if failed > 0 {
                    self.fault(phase, format!("{failed} modules could not be loaded"));
                }
                failed == 0
            }
            Phase::NetUp => self.network(),
            Phase::State => {
                let mut faults = state::settle(&self.cmdline, self.hostname.as_deref());
                faults.extend(self.place_for_state());
                let now_s = clock_gettime(ClockId::Realtime).tv_sec;
                pstore::harvest(Path::new(mounts::STATE_DIR), u64::try_from(now_s).unwrap_or(0));
                let ok = faults.is_empty();
                for fault in faults {
                    self.fault(phase, fault);
                }
                let configured = Path::new(NODE_CONFIG).exists();
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
            self.fault(Phase::Early, e.to_string());
        }
        for fault in mounts::mount_all() {
            ok = false;
            self.fault(Phase::Early, fault);
        }
        mounts::open_console();
        match mounts::cgroups() {
            Ok(lacking) if lacking.is_empty() => {}
            Ok(lacking) => {
                say!("early: this kernel has no cgroup controller {}", lacking.join(", "));
            }
            Err(e) => {
                ok = false;
                self.fault(Phase::Early, e.to_string());
            }
        }
        mounts::limits();
        self.cmdline = Cmdline::parse(&read("/proc/cmdline"));
        for warning in &self.cmdline.warnings {
            say!("cmdline: {warning}");
        }
        ok
    }

    fn begin_network(&mut self) {
        (self.netd, self.netd_says) = Helper::netd();
    }

    fn begin_disk(&mut self) {
        let wish = disk::wish(self.cmdline.state.as_ref());
        self.disk = (wish != Wish::Memory).then(|| disk::start(&wish, self.cmdline.state_wait_s));
    }

    fn network(&mut self) -> bool {
        // Index 1 is the loopback device of every network namespace.
        let lo = netlink::request("link up", "lo", netlink::Message::link_up(1));
        if let Err(e) = &lo {
            self.fault(Phase::NetUp, e.to_string());
        }
        let Some(stdout) = self.netd_says.take() else {
            self.fault(Phase::NetUp, format!("{} could not be started", netd::NETD));
            return false;
        };
        let wait = Duration::from_secs(u64::from(self.cmdline.net_wait_s));
        match read_line(stdout, wait, &mut self.watchdog) {
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
                self.faults.push(format!("{}: no address after {s} s", Phase::NetUp.name()));
                false
            }
        }
    }

    /// Disk or memory at `/var/lib/quelea`. Returns what failed.
    fn place_for_state(&mut self) -> Vec<String> {
        let outcome = match self.disk.take() {
            None => Outcome::Memory,
            Some(Ok((stdout, limit))) => {
                let line = read_line(stdout, limit, &mut self.watchdog);
                disk::arrived(line.as_deref())
            }
            Some(Err(why)) => Outcome::Fault(why),
        };
        let mut faults = Vec::new();
        if let Outcome::Disk(name) = &outcome {
            say!("state: on {name}");
            self.facts += "state=disk\n";
            return faults;
        }
        self.facts += "state=memory\n";
        if let Outcome::Fault(why) = outcome {
            faults.push(why);
        }
        say!("state: in memory only: what is kept there ends with this boot");
        if let Err(e) = mounts::mount_state_in_memory() {
            faults.push(e.to_string());
        }
        faults
    }

    /// On the console, and kept for whoever asks.
    fn fault(&mut self, phase: Phase, why: String) {
        say!("{}: {why}", phase.name());
        self.faults.push(format!("{}: {why}", phase.name()));
    }

    fn write_facts(&mut self) {
        for fault in &self.faults {
            self.facts += &format!("fault={}\n", one_line(fault));
        }
        self.facts += &identity::boot_lines(&self.cmdline);
        let _ = std::fs::create_dir_all("/run/quelea");
        let _ = std::fs::write(BOOT_FILE, &self.facts);
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first line, `None` when it does not come in time or the other side falls. The watchdog is petted meanwhile.
fn read_line(mut from: ChildStdout, wait: Duration, watchdog: &mut Watchdog) -> Option<String> {
    let start = Instant::now();
    let mut line = Vec::new();
    loop {
        watchdog.tend(monotonic_ms(), true);
        let left = wait.checked_sub(start.elapsed())?.min(PET_SLICE);
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let ready = poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&timeout));
        if matches!(ready, Err(rustix::io::Errno::INTR)) {
            continue;
        }
        if ready.ok()? == 0 {
            continue;
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
