//! What a cgroup has used and how much it had to wait, for metrics.

use std::path::Path;

/// Largest `io.stat` that is summed up, in lines: one a disk.
const DISKS_MAX: usize = 256;

/// What a cgroup has used. A field is `None` where the machine lacks the file (or the kernel the line).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time: `cpu.stat` `usage_usec`.
    pub cpu_us: Option<u64>,
    /// Of that in user mode.
    pub cpu_user_us: Option<u64>,
    /// Of that in the kernel.
    pub cpu_system_us: Option<u64>,
    /// Periods in which it was held back by `cpu.max`.
    pub cpu_throttled: Option<u64>,
    /// Time for which it was.
    pub cpu_throttled_us: Option<u64>,
    /// `memory.current`, page cache included.
    pub memory_bytes: Option<u64>,
    /// The most it ever was (`memory.peak`, since Linux 5.19).
    pub memory_peak_bytes: Option<u64>,
    /// Anonymous memory: what does not go away by itself.
    pub memory_anon_bytes: Option<u64>,
    /// Page cache.
    pub memory_file_bytes: Option<u64>,
    /// `memory.swap.current`.
    pub swap_bytes: Option<u64>,
    /// Times that it was slowed down at `memory.high`.
    pub memory_high_events: Option<u64>,
    /// Times that it met `memory.max`.
    pub memory_max_events: Option<u64>,
    /// Processes killed for memory in it and below. Read it before the directory goes.
    pub oom_kills: Option<u64>,
    /// `pids.current`.
    pub pids: Option<u64>,
    /// Forks refused at `pids.max`.
    pub pids_max_events: Option<u64>,
    /// Bytes read from disks.
    pub read_bytes: Option<u64>,
    /// Bytes written to disks.
    pub written_bytes: Option<u64>,
    /// Reads from disks.
    pub reads: Option<u64>,
    /// Writes to disks.
    pub writes: Option<u64>,
    /// Waiting for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Waiting for disks.
    pub io_pressure: Option<Pressure>,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureTimes,
    /// All tasks waited.
    pub full: PressureTimes,
}

/// One line of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PressureTimes {
    /// Share of the last 10 s, in hundredths of a percent.
    pub avg10_permyriad: u32,
    /// Share of the last minute.
    pub avg60_permyriad: u32,
    /// Share of the last five minutes.
    pub avg300_permyriad: u32,
    /// In total.
    pub total_us: u64,
}

/// Reads what the files give.
#[must_use]
pub fn usage(dir: &Path) -> Usage {
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let number = |file: &str| read(file).trim().parse().ok();
    let (cpu, memory, events) = (read("cpu.stat"), read("memory.stat"), read("memory.events"));
    let io = io_totals(&read("io.stat"));
    Usage {
        cpu_us: keyed(&cpu, "usage_usec"),
        cpu_user_us: keyed(&cpu, "user_usec"),
        cpu_system_us: keyed(&cpu, "system_usec"),
        cpu_throttled: keyed(&cpu, "nr_throttled"),
        cpu_throttled_us: keyed(&cpu, "throttled_usec"),
        memory_bytes: number("memory.current"),
        memory_peak_bytes: number("memory.peak"),
        memory_anon_bytes: keyed(&memory, "anon"),
        memory_file_bytes: keyed(&memory, "file"),
        swap_bytes: number("memory.swap.current"),
        memory_high_events: keyed(&events, "high"),
        memory_max_events: keyed(&events, "max"),
        oom_kills: keyed(&events, "oom_kill"),
        pids: number("pids.current"),
        pids_max_events: keyed(&read("pids.events"), "max"),
        read_bytes: io.map(|io| io[0]),
        written_bytes: io.map(|io| io[1]),
        reads: io.map(|io| io[2]),
        writes: io.map(|io| io[3]),
        cpu_pressure: pressure(&read("cpu.pressure")),
        memory_pressure: pressure(&read("memory.pressure")),
        io_pressure: pressure(&read("io.pressure")),
    }
}

/// Only the count of [`Usage::oom_kills`].
pub(crate) fn oom_kills(dir: &Path) -> u64 {
    std::fs::read_to_string(dir.join("memory.events"))
        .ok()
        .and_then(|t| keyed(&t, "oom_kill"))
        .unwrap_or(0)
}

/// The number behind a name in a flat keyed file.
fn keyed(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Sums over all disks: rbytes, wbytes, rios, wios. `None` for a file without a line.
fn io_totals(text: &str) -> Option<[u64; 4]> {
    let mut total: Option<[u64; 4]> = None;
    for line in text.lines().take(DISKS_MAX) {
        let sums = total.get_or_insert_default();
        for word in line.split(' ').skip(1) {
            let Some((key, value)) = word.split_once('=') else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            let at = match key {
                "rbytes" => 0,
                "wbytes" => 1,
                "rios" => 2,
                "wios" => 3,
                _ => continue,
            };
            sums[at] = sums[at].saturating_add(value);
        }
    }
    total
}

/// What a pressure file says, of a cgroup or of the machine (`/proc/pressure`); before Linux 5.13 `cpu.pressure` has no `full`.
#[must_use]
pub fn pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    Some(Pressure {
        some: times(line("some")?)?,
        full: line("full").and_then(times).unwrap_or_default(),
    })
}

fn times(line: &str) -> Option<PressureTimes> {
    let field = |name: &str| line.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
    Some(PressureTimes {
        avg10_permyriad: hundredths(field("avg10")?)?,
        avg60_permyriad: hundredths(field("avg60")?)?,
        avg300_permyriad: hundredths(field("avg300")?)?,
        total_us: field("total")?.parse().ok()?,
    })
}

/// `12.34` as 1234.
fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != 2 {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files() {
        assert_eq!(keyed("oom 3\noom_kill 2\noom_group_kill 1\n", "oom_kill"), Some(2));
        assert_eq!(keyed("oom_kill x\n", "oom_kill"), None);
    }

    #[test]
    fn traffic_of_all_disks() {
        let text = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n\
                    254:16 rbytes=5 wbytes=x rios=1 wios=1\n";
        assert_eq!(io_totals(text), Some([15, 20, 2, 3]));
        assert_eq!(io_totals(""), None);
    }

    #[test]
    fn pressure_lines() {
        let text = "some avg10=1.50 avg60=0.02 avg300=100.00 total=123\n\
                    full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let p = pressure(text).expect("lines");
        assert_eq!((p.some.avg10_permyriad, p.some.avg300_permyriad), (150, 10_000));
        assert_eq!((p.some.total_us, p.full.total_us), (123, 7));
        assert_eq!(pressure("some avg10=1.5 avg60=0 avg300=0 total=1\n"), None);
        assert_eq!(pressure(""), None);
        let old = pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n").expect("a line");
        assert_eq!((old.some.total_us, old.full), (9, PressureTimes::default()));
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_file_says(text: String) {
            let _ = (keyed(&text, "max"), io_totals(&text), pressure(&text));
        }
    }
}
