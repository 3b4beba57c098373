//! What this machine has: CPUs, memory, the agent's own size, and the clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Memory that pods never get, for the kernel and the agent: 256 MiB or a sixteenth, whichever is less.
const RESERVE_BYTES_MAX: u64 = 256 << 20;
/// Pods on one node where the configuration says nothing; its IPv4 prefix holds 253.
pub const PODS_MAX: u32 = 250;

/// Microseconds on a monotonic clock since this process started, and milliseconds since 1970.
#[derive(Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Monotonic microseconds; never 0.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Milliseconds since 1970; 0 if the machine's clock is before.
    pub fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Thousandths of all CPUs that this process may use.
pub fn cpu_milli() -> u64 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u64::try_from(cpus).unwrap_or(1).saturating_mul(1000)
}

/// Bytes of memory for pods: all there is less a reserve.
pub fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = field_kib(&text, "MemTotal:").unwrap_or(0) << 10;
    total - RESERVE_BYTES_MAX.min(total / 16)
}

/// Resident memory of this process, in bytes; 0 where /proc does not tell.
pub fn rss_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    field_kib(&text, "VmRSS:").unwrap_or(0) << 10
}

pub(crate) fn field_kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// CPU time of this process since its start, in microseconds; 0 where the kernel does not tell.
pub fn own_cpu_us() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let us = |t: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000).saturating_add(u64::try_from(t.tv_usec()).unwrap_or(0))
    };
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |u| us(u.user_time()) + us(u.system_time()))
}

/// The kernel's release; empty where it does not tell.
pub fn kernel() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// When the kernel started, in milliseconds since 1970 by the clock of now; 0 where it does not tell.
pub fn booted_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = text.split_ascii_whitespace().next().and_then(|s| s.parse::<f64>().ok());
    seconds.map_or(0, |s| Clock::start().wall_ms().saturating_sub((s * 1000.0) as u64))
}

/// The architecture as OCI images name it.
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        assert!(cpu_milli() >= 1000);
        assert!(memory_bytes() > 64 << 20);
        assert!(rss_bytes() > 100 << 10);
        assert_eq!(field_kib("VmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
    }
}
