//! The one call that std has no safe form for.
#![allow(unsafe_code)]

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::{os::unix::process::CommandExt as _, process::Command};

/// Makes the program end with the thread that starts it, however that ends: no machine outlives its test.
pub(crate) fn die_with_us(command: &mut Command) {
    let us = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The end may have come before the question.
        if getppid() == Some(us) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec this makes two system calls; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    #[test]
    fn what_a_thread_started_ends_with_it() {
        let start = || {
            let mut command = Command::new("sleep");
            command.arg("1000");
            die_with_us(&mut command);
            command.spawn().expect("sleep")
        };
        let mut child = std::thread::spawn(start).join().expect("thread");
        assert_eq!(child.wait().expect("wait").signal(), Some(9));
    }
}
