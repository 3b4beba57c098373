//! `quelea init`: a flock's keys, and one node's credentials.

use std::path::Path;

use agent::flock::Bundle;
use anyhow::{Context as _, Result};

/// Makes a flock.
pub(super) fn flock(dir: &Path, name: &str, operator: &str) -> Result<()> {
    let bundle = Bundle::create(dir, name, operator)?;
    println!("flock {name} ({}) made in {}", bundle.info.id, dir.display());
    println!("keep that directory safe: whoever has it can run anything on the flock");
    println!("next: quelea --flock {} init node NAME --out DIR", dir.display());
    Ok(())
}

/// Makes a node's credentials.
pub(super) fn node(flock: Option<&Path>, name: &str, out: &Path) -> Result<()> {
    let dir = flock.context("which flock? give its bundle by --flock DIR or $QUELEA_FLOCK")?;
    Bundle::open(dir)
        .with_context(|| {
            format!("{} holds no flock; make one with `quelea init flock`", dir.display())
        })?
        .issue_node(name, out)?;
    println!("credentials of {name} written to {}", out.display());
    println!("next: copy them to the node's /etc/quelea (mode 0700) beside its node.toml");
    Ok(())
}
