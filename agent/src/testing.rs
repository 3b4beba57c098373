//! Helpers of this crate's unit tests.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A new directory of this test's own; the test removes it.
pub(crate) fn temp_dir(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("quelea-{name}-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}
