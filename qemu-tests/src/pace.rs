//! How fast this machine is today: deadlines are written for an idle one and stretched for a slow or shared one.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Stretch at most: what takes longer is broken, not slow.
pub const STRETCH_MAX: f64 = 8.0;
/// From QEMU's start to PID 1's first line on the machine the deadlines were written on.
const FIRST_LINE: Duration = Duration::from_millis(3000);

/// In hundredths.
static STRETCH: AtomicU32 = AtomicU32::new(100);

/// Measures how much of a CPU a busy loop gets, and stretches by what others take.
pub fn probe() {
    let (wall, cpu) = (Instant::now(), cpu_time());
    let mut x = 1u64;
    while wall.elapsed() < Duration::from_millis(60) {
        for _ in 0..1000 {
            x = std::hint::black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    let used = cpu_time().saturating_sub(cpu).as_secs_f64().max(0.001);
    raise(wall.elapsed().as_secs_f64() / used);
}

/// Takes a boot as a measure: emulation is what is slow here.
pub fn booted(first_line: Duration) {
    raise(first_line.as_secs_f64() / FIRST_LINE.as_secs_f64());
}

fn raise(stretch: f64) {
    let hundredths = (stretch.clamp(1.0, STRETCH_MAX) * 100.0) as u32;
    STRETCH.fetch_max(hundredths, Ordering::Relaxed);
}

/// The factor deadlines are multiplied by, 1 to [`STRETCH_MAX`].
#[must_use]
pub fn stretch() -> f64 {
    f64::from(STRETCH.load(Ordering::Relaxed)) / 100.0
}

/// Asks until the answer is there, for `timeout` times [`stretch`].
///
/// # Errors
/// The last refusal, with the time waited.
pub fn eventually<T>(
    timeout: Duration,
    what: &str,
    mut ask: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    let timeout = timeout.mul_f64(stretch());
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(why) if start.elapsed() > timeout => {
                return Err(
                    why.context(format!("{what}: not within {:.1} s", timeout.as_secs_f64()))
                );
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}
