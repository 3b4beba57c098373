//! A machine that is up: what PID 1 keeps of it, and looks after while the agent runs.

use super::button::Button;
use super::cmdline::{Cmdline, Ip};
use super::helpers::Helper;
use super::kexec::{LOAD_MS_MAX, Loading};
use super::phase::{Machine, Phase};
use super::watchdog::Watchdog;
use super::{Power, monotonic_ms, netd::NET_FILE, power};
use crate::init::core::Input;
use rustix::fd::{AsFd as _, BorrowedFd};
use std::{collections::VecDeque, path::Path};

/// A machine that is up.
#[derive(Debug)]
pub struct Booted {
    /// Where it stands; further events are its owner's to feed.
    pub machine: Machine,
    /// What the command line says.
    pub cmdline: Cmdline,
    /// What failed on the way up, a sentence each.
    pub faults: Vec<String>,
    netd: Helper,
    plugd: Helper,
    watchdog: Watchdog,
    button: Option<Button>,
    loading: Option<Loading>,
    /// The network came up without an address: when it is looked at again.
    address_at_ms: Option<u64>,
}

/// How often an address that is late is looked for.
const ADDRESS_EVERY_MS: u64 = 1_000;

impl Booted {
    pub(super) fn new(
        machine: Machine,
        cmdline: Cmdline,
        faults: Vec<String>,
        (netd, plugd): (Helper, Helper),
        watchdog: Watchdog,
    ) -> Self {
        // ENOENT: a machine without ACPI has no such button.
        let button = Button::open().ok();
        if cmdline.trial_s.is_some() {
            // A kernel on trial that panics must go back to the last good one, whoever staged it.
            let panic_s = super::read("/proc/sys/kernel/panic");
            if panic_s.trim() == "0" {
                let _ = std::fs::write("/proc/sys/kernel/panic", "10");
            }
        }
        let address_at_ms = machine.faults().any(|phase| phase == Phase::NetUp).then_some(0);
        Self {
            address_at_ms,
            machine,
            cmdline,
            faults,
            netd,
            plugd,
            watchdog,
            button,
            loading: None,
        }
    }

    /// To be told of every child that PID 1 reaped and does not know. True when it was ours; it runs again then.
    pub fn reaped(&mut self, pid: i32) -> bool {
        let network = self.cmdline.ip != Ip::Off;
        self.netd.reaped(pid, network) || self.plugd.reaped(pid, true)
    }

    /// The same for `init::main`. On the way down nothing is started again.
    pub(crate) fn reaped_with(
        &mut self,
        pid: u32,
        status: i32,
        way_down: bool,
        inputs: &mut VecDeque<Input>,
    ) {
        if let Some(loading) = self.loading.take_if(|l| l.pid == pid) {
            inputs.push_back(Input::Loaded(loading.result(status)));
        } else if !way_down {
            let _ = i32::try_from(pid).map(|pid| self.reaped(pid));
        }
    }

    /// Looks after the watchdog and the button. `fresh`: the agent is well, or PID 1 knows what it waits for.
    pub(crate) fn tend(&mut self, fresh: bool, inputs: &mut VecDeque<Input>) {
        self.watchdog.tend(monotonic_ms(), fresh);
        let now_ms = monotonic_ms();
        if let Some(late) = self.loading.take_if(|l| l.until_ms <= now_ms) {
            // Nobody hears of its end any more.
            let _ = i32::try_from(late.pid).map(|pid| crate::sys::kill(pid, libc::SIGKILL));
            let why = format!("loading the kernel took longer than {LOAD_MS_MAX} ms");
            inputs.push_back(Input::Loaded(Err(why)));
        }
        if self.address_at_ms.is_some_and(|at| at <= now_ms) {
            if Path::new(NET_FILE).exists() {
                self.address_at_ms = None;
                forget_faults(Path::new(super::BOOT_FILE), Phase::NetUp);
                inputs.push_back(Input::Mended(Phase::NetUp));
            } else {
                self.address_at_ms = Some(now_ms + ADDRESS_EVERY_MS);
            }
        }
        if self.button.as_ref().is_some_and(Button::pressed) {
            inputs.push_back(Input::Stop(Power::Off, "the power button"));
        }
    }

    /// What to wake up for.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.button.iter().map(|button| button.as_fd())
    }

    /// When to wake up at the latest.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        let load = self.loading.as_ref().map(|l| l.until_ms);
        self.watchdog.next_ms().into_iter().chain(self.address_at_ms).chain(load).min()
    }

    /// Starts to load the kernel in a directory; [`Input::Loaded`] comes when its loader is reaped.
    pub(crate) fn load_kernel(&mut self, dir: &Path) -> Result<(), String> {
        self.loading = Some(Loading::start(dir)?);
        Ok(())
    }

    /// The last thing: nothing runs, nothing is mounted.
    pub(crate) fn end(&mut self, power: Power) -> ! {
        self.watchdog.disarm();
        power::end(power)
    }
}

/// Takes what failed in a phase out of [`super::BOOT_FILE`], for it has come right.
fn forget_faults(file: &Path, phase: Phase) {
    let gone = format!("fault={}: ", phase.name());
    let Ok(text) = std::fs::read_to_string(file) else { return };
    let lines = text.lines().filter(|line| !line.starts_with(&gone));
    let left: String = lines.flat_map(|line| [line, "\n"]).collect();
    let beside = file.with_extension("new");
    // As a whole: the agent may be reading it.
    let _ = std::fs::write(&beside, left).and_then(|()| std::fs::rename(&beside, file));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_right_is_no_fault_any_more() {
        let file = std::env::temp_dir().join(format!("quelea-boot-{}", std::process::id()));
        let text = "state=memory\nfault=net-up: no address after 3 s\nfault=state: net-up: no disk\nuuid=x\n";
        std::fs::write(&file, text).expect("write");
        forget_faults(&file, Phase::NetUp);
        let left = std::fs::read_to_string(&file).expect("read");
        assert_eq!(left, "state=memory\nfault=state: net-up: no disk\nuuid=x\n");
        std::fs::remove_file(&file).expect("remove");
        forget_faults(&file, Phase::NetUp);
        assert!(!file.exists(), "nothing is made where nothing was");
    }
}
