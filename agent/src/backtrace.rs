//! Backtraces, which binaries without unwind tables cannot take.

/// Makes `RUST_BACKTRACE` without effect in release builds: they are linked without unwind tables, where an attempt to
/// take a backtrace (each `anyhow` error makes one) aborts the process before it has said what failed.
///
/// Called first in `main`, before any thread.
pub fn forbid() {
    if !cfg!(debug_assertions) {
        for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"] {
            remove(name);
        }
    }
}

#[allow(unsafe_code)]
fn remove(name: &str) {
    // SAFETY: `main` calls this before it starts a thread, so nobody reads the environment at the same time.
    unsafe { std::env::remove_var(name) };
}
