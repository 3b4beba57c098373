//! Where a test cuts an agent off: an agent of a debug build that comes to the step named in `RUN/fall` is gone there, as by
//! SIGKILL, once. In other builds nothing of this exists.
//!
//! The steps of a pod's life, in order: `admitted`, `fetching`, `fetched`, `directory`, `files`, `userns`, `root`, `network`,
//! `overlay`, `shim`, `prepared`, `running`; and of its end: `teardown`, `killed`, `unmounted`.

#[cfg(debug_assertions)]
static FILE: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// The file's name in the node's `run` directory.
pub const FILE_NAME: &str = "fall";

/// Says where the file is.
pub fn watch(run: &std::path::Path) {
    #[cfg(debug_assertions)]
    let _ = FILE.set(run.join(FILE_NAME));
    #[cfg(not(debug_assertions))]
    let _ = run;
}

/// The agent has come this far.
#[inline]
pub fn step(name: &str) {
    #[cfg(debug_assertions)]
    if let Some(file) = FILE.get()
        && std::fs::read_to_string(file).is_ok_and(|text| text.trim() == name)
        // Once: the next agent gets past it.
        && std::fs::remove_file(file).is_ok()
    {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::Signal::SIGKILL);
        // The signal is on its way to every thread; this one goes no further.
        loop {
            std::thread::park();
        }
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
