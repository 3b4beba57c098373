//! A dev flock as the demo uses it: through `quelea`, as a user would.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::run;

/// The flock must be up, and gone, by then.
const TIMEOUT: Duration = Duration::from_secs(40);

/// A flock that ends with this process, unless it is kept.
pub(crate) struct Flock {
    quelea: PathBuf,
    supervisor: Option<Child>,
}

/// Means the demo's flock, whatever else runs on this machine.
pub(crate) fn named(command: &mut Command) -> &mut Command {
    // Errors must be told, not abort, where people ask for backtraces.
    command.env("RUST_BACKTRACE", "1");
    command.env("QUELEA_DEV", "demo").env_remove("QUELEA_NODE").env_remove("QUELEA_FLOCK")
}

impl Flock {
    /// Starts `quelea dev` with three nodes and returns when it says that they are up.
    pub(crate) fn start(quelea: PathBuf, keep: bool) -> Result<Self> {
        if keep {
            let mut dev = Command::new(&quelea);
            run::check(named(&mut dev).args(["dev", "--nodes", "3", "--detach"]))?;
            return Ok(Self { quelea, supervisor: None });
        }
        let mut child = named(&mut Command::new(&quelea))
            .args(["dev", "--nodes", "3", "--with-parent"])
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", quelea.display()))?;
        let start = Instant::now();
        // Made last, once every node is up.
        while !std::path::Path::new("/run/quelea-dev/demo/control.sock").exists() {
            if let Some(status) = child.try_wait()? {
                bail!("`quelea dev` ended: {status}");
            }
            if start.elapsed() > TIMEOUT {
                bail!("`quelea dev` is not up after {TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { quelea, supervisor: Some(child) })
    }

    /// `quelea` with these arguments.
    pub(crate) fn quelea(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.quelea);
        named(&mut command).args(args);
        command
    }

    /// Shows a command and its output.
    pub(crate) fn show(&self, args: &[&str]) -> Result<()> {
        println!("$ quelea {}", args.join(" "));
        run::check(&mut self.quelea(args))
    }

    /// What a command prints, as JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, args: &[&str]) -> Result<T> {
        let text = run::output(self.quelea(args).args(["-o", "json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`quelea {}` printed odd JSON", args.join(" ")))
    }

    /// Ends the flock; returns when everything of it should be gone.
    pub(crate) fn stop(mut self) -> Result<()> {
        run::output(&mut self.quelea(&["dev", "stop"]))?;
        if let Some(mut child) = self.supervisor.take() {
            let status = child.wait()?;
            if !status.success() {
                bail!("`quelea dev` ended with {status}");
            }
        }
        Ok(())
    }
}

impl Drop for Flock {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            // A step failed: the flock goes, as it would on Ctrl-C.
            if run::output(&mut self.quelea(&["dev", "stop"])).is_err() {
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}
