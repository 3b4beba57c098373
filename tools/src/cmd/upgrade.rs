//! `quelea upgrade`: another kernel and initramfs on a node, and what became of them.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::api::client::full;
use agent::api::types::{Node, Upgrading};
use agent::upgrade::{Order, Part};
use anyhow::{Context as _, Result, bail};
use hyper::Method;

use super::node::{look, until};
use crate::cli::{Format, Upgrade};
use crate::context::Context;
use crate::output;

/// Signs, sends, and waits until the node is back.
pub(super) async fn upgrade(context: &Context, format: Format, args: &Upgrade) -> Result<()> {
    let key = context.operator()?;
    let (kernel, initramfs) = (read(&args.kernel)?, read(&args.initramfs)?);
    let before = look(context, &args.target).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let order = Order {
        node: args.target.clone(),
        kernel: Part::of(&kernel),
        initramfs: Part::of(&initramfs),
        cmdline: args.cmdline.clone(),
        trial_s: args.trial,
        at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
    };
    let body = [order.sign(&key)?, kernel, initramfs].concat();
    let endpoint = context.reach(&args.target).await?;
    let started: Upgrading = endpoint.json(Method::POST, "/v1/node/upgrade", full(body)).await?;
    eprintln!("{}: the boot image {} is verified and started", args.target, started.image);
    // A node on trial is done when it is healthy, or when it has gone back.
    let trial = args.trial > 0;
    let done = |node: &Node| {
        let back = node.boot > started.boot && node.state == "alive";
        let new = node.image == started.image;
        back && (!new || !trial || node.kept)
    };
    let timeout = Duration::from_secs(args.timeout);
    let Some(node) = until(context, &args.target, timeout, done).await? else {
        bail!(
            "{} is not back after {} s; see `quelea node {}` and `quelea console {}`",
            args.target,
            args.timeout,
            args.target,
            args.target
        );
    };
    if format == Format::Json {
        output::json(&node)?;
    }
    if node.image != started.image {
        bail!(
            "{} rolled back: it runs kernel {} and quelead {} as before",
            args.target,
            node.kernel,
            node.version
        );
    }
    if format != Format::Json {
        println!(
            "{} runs kernel {} (was {}) and quelead {} (was {})",
            args.target, node.kernel, before.kernel, node.version, before.version
        );
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
