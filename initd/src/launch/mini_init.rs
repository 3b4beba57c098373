//! PID 1 of a container whose program does not want to be one: forwards signals, reaps, ends with the program.
//!
//! It stays the shim's code (nothing is executed), has the program's ids, capabilities and filter, and is not dumpable,
//! so nothing in the container can look into it or at its executable.

use std::os::fd::RawFd;

use crate::sys;

/// Runs until `program` ends; writes its raw wait status to `report`, and one byte more where it leaves processes behind.
/// *child*: nothing here allocates.
pub(super) fn run(program: u32, report: RawFd) -> ! {
    // Signals are blocked already: what came before this line is pending.
    loop {
        let Some(signal) = sys::wait_signal() else { continue };
        if signal != libc::SIGCHLD {
            let _ = sys::kill(program as i32, signal);
            continue;
        }
        while let Ok(Some((pid, status))) = sys::reap_any() {
            if pid == program {
                let [a, b, c, d] = status.to_le_bytes();
                if leaves_others() {
                    sys::write_raw(report, &[a, b, c, d, 1]);
                } else {
                    sys::write_raw(report, &[a, b, c, d]);
                }
                // The kernel kills and reaps what is left in the PID namespace.
                sys::exit(exit_code(status));
            }
        }
    }
}

/// Whether anything still runs here: what the program has left was given to this process before its end was told.
fn leaves_others() -> bool {
    loop {
        match sys::reap_any() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// As a shell says it.
fn exit_code(status: i32) -> i32 {
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}
