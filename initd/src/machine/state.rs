//! State: who the machine is, what time it is at least, randomness, and memory where no disk is.

use super::{
    cmdline::{Cmdline, hostname_is_valid},
    console::say,
    netd, read,
};
use rustix::{
    rand::{GetRandomFlags, getrandom},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};
use std::time::{Duration, Instant};

/// `floor_s=<unix seconds>`: when the kernel in this image was built. No clock may be before that.
const IMAGE_FILE: &str = "/etc/quelea/image";
/// A host name given with the node's files.
const HOSTNAME_FILE: &str = "/etc/quelea/hostname";
/// How long the boot waits for randomness. Keys are made after this; a machine without any says so.
const ENTROPY_MS: u64 = 5_000;

/// Does all of it. Returns what failed, a sentence each.
pub(super) fn settle(cmdline: &Cmdline, from_network: Option<&str>) -> Vec<String> {
    hostname(cmdline, from_network);
    clock_floor(&read(IMAGE_FILE));
    let mut faults = Vec::new();
    if !entropy() {
        faults.push(format!("no randomness after {ENTROPY_MS} ms; keys will wait for it"));
    }
    faults
}

fn hostname(cmdline: &Cmdline, from_network: Option<&str>) {
    let file = read(HOSTNAME_FILE);
    let given = [cmdline.hostname.as_deref(), Some(file.trim()), from_network];
    let name = given
        .into_iter()
        .flatten()
        .find(|name| hostname_is_valid(name))
        .map_or_else(fallback_hostname, str::to_owned);
    if let Err(e) = rustix::system::sethostname(name.as_bytes()) {
        say!("state: host name {name}: {e}");
    }
}

/// `node-525400123456` after the first device, or `node`.
fn fallback_hostname() -> String {
    netd::first_mac().map_or_else(
        || "node".into(),
        |mac| mac.iter().fold("node-".to_owned(), |name, byte| name + &format!("{byte:02x}")),
    )
}

/// Certificates and records are dated: a clock with a flat battery must not start in 1970.
fn clock_floor(image: &str) {
    let Some(floor_s) = floor(image) else { return };
    let now = clock_gettime(ClockId::Realtime);
    if now.tv_sec < floor_s {
        say!(
            "state: the clock stands {} s before this image was made; set to that",
            floor_s - now.tv_sec
        );
        if let Err(e) = clock_settime(ClockId::Realtime, Timespec { tv_sec: floor_s, tv_nsec: 0 }) {
            say!("state: set the clock: {e}");
        }
    }
}

/// The day the image was made, in seconds since 1970; 0 when it does not say.
pub(super) fn image_floor_s() -> i64 {
    floor(&read(IMAGE_FILE)).unwrap_or(0)
}

fn floor(image: &str) -> Option<i64> {
    image.lines().find_map(|line| line.strip_prefix("floor_s=")?.trim().parse().ok())
}

/// Waits until the kernel's generator is seeded (getrandom(2)).
fn entropy() -> bool {
    let start = Instant::now();
    loop {
        let mut byte = [0; 1];
        if getrandom(&mut byte[..], GetRandomFlags::NONBLOCK).is_ok() {
            return true;
        }
        if start.elapsed() >= Duration::from_millis(ENTROPY_MS) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_one_line_among_others() {
        assert_eq!(floor("set=qemu\nfloor_s=1763078165\n"), Some(1_763_078_165));
        assert_eq!(floor("set=qemu\nfloor_s=soon\n"), None);
        assert_eq!(floor(""), None);
    }
}
