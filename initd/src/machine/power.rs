//! The way down: everything is told to end, then killed; file systems are let go; the machine ends.

use super::{console::say, mounts, phase::Power};
use rustix::{
    process::{Pid, Signal, WaitOptions, kill_process, waitpid},
    system::{RebootCommand, reboot},
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// How long processes have between SIGTERM and SIGKILL.
const TERM_MS: u64 = 2_000;
/// How long killed processes have to be gone; one stuck in the kernel must not keep the machine on.
const KILL_MS: u64 = 3_000;
/// Most processes told in one round; the rest is caught by `cgroup.kill`.
const PROCESSES_MAX: usize = 65_536;

/// Kills, unmounts, ends, in one go. For a PID 1 that is not `init::main`, after pods have been drained.
pub fn halt(power: Power) -> ! {
    say!("{}: ending what still runs", power.name());
    end_processes();
    say!("{}: letting file systems go", power.name());
    // Its own thread of time: sync(2) waits for a dead disk for ever. Memory-only machines have nothing to sync.
    if let Ok(thread) = std::thread::Builder::new().spawn(let_file_systems_go) {
        let start = Instant::now();
        while !thread.is_finished() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    end(power)
}

/// Everything is gone and unmounted: ends the machine.
pub(super) fn end(power: Power) -> ! {
    say!("{}: now", power.name());
    let ended = reboot(match power {
        Power::Off => RebootCommand::PowerOff,
        Power::Reboot => RebootCommand::Restart,
        Power::Halt => RebootCommand::Halt,
        Power::Kexec => RebootCommand::Kexec,
    });
    say!("{}: {}", power.name(), ended.err().map_or_else(String::new, |e| e.to_string()));
    if power == Power::Kexec {
        // Nothing is loaded after all: the firmware still has the last good one.
        let _ = reboot(RebootCommand::Restart);
    }
    // No firmware support for it. PID 1 never exits: the kernel would panic.
    let _ = reboot(RebootCommand::Halt);
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Sync, then everything unmounted or at least read-only.
pub(crate) fn let_file_systems_go() {
    rustix::fs::sync();
    mounts::unmount_all();
}

/// Kills every cgroup but PID 1's own: what forks faster than signals come is caught as well.
pub(crate) fn kill_cgroups() {
    for entry in std::fs::read_dir(mounts::CGROUP_ROOT).into_iter().flatten().flatten() {
        // PID 1 itself is in there.
        if entry.file_name() != "init" {
            let _ = std::fs::write(entry.path().join("cgroup.kill"), "1");
        }
    }
}

fn end_processes() {
    signal_all(Signal::TERM);
    if !gone_within(TERM_MS) {
        kill_cgroups();
        signal_all(Signal::KILL);
        if !gone_within(KILL_MS) {
            say!("{} processes would not end", processes().len());
        }
    }
}

fn signal_all(signal: Signal) {
    for pid in processes() {
        let _ = kill_process(pid, signal);
    }
}

fn gone_within(ms: u64) -> bool {
    let start = Instant::now();
    loop {
        while matches!(waitpid(None, WaitOptions::NOHANG), Ok(Some(_))) {}
        if processes().is_empty() {
            return true;
        }
        if start.elapsed() >= Duration::from_millis(ms) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Everything but PID 1 and the kernel's own threads, which have no command line.
fn processes() -> Vec<Pid> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let user = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
            let ours = user.is_ok_and(|line| !line.is_empty());
            (pid != 1 && ours).then(|| Pid::from_raw(pid)).flatten()
        })
        .take(PROCESSES_MAX)
        .collect()
}
