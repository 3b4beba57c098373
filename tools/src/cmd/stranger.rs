//! Machines that no flock knows: `strangers` finds them, `adopt ADDRESS --fingerprint F` makes one a node.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use agent::api::client::Endpoint;
use agent::api::relay::STRANGERS_PATH;
use agent::api::types::{Adopt, AdoptAnswer, Node, Nodes};
use agent::config::GOSSIP_PORT;
use agent::flock::Bundle;
use agent::stranger::server::{ADOPT_PATH, CARD_PATH};
use agent::stranger::{Card, Fingerprint, client, search};
use anyhow::{Context as _, Result, bail};

use super::node;
use crate::cli::{self, Format, Global};
use crate::context::{Context, parse_address};
use crate::output::{self, Column, column, wide};

/// Running nodes that an adopted machine is told of.
const JOIN_MAX: usize = 8;

const COLUMNS: &[Column<Card>] = &[
    column("ADDRESS", |c| c.address.clone()),
    column("MAC", |c| c.mac.clone()),
    column("FINGERPRINT", |c| c.fingerprint.clone()),
    column("CPUS", |c| c.cpus.to_string()),
    column("MEMORY", |c| output::bytes(c.memory_mib << 20)),
    column("DISKS", |c| c.disks.to_string()),
    wide("UUID", |c| c.uuid.clone()),
    wide("KERNEL", |c| c.kernel.clone()),
    wide("VERSION", |c| c.version.clone()),
];

/// `quelea strangers`.
pub(super) async fn list(global: &Global, args: &cli::Strangers) -> Result<()> {
    let found: Vec<Card> = if args.here {
        search::search().await.context("cannot search from here")?
    } else {
        let context = Context::find(global).context("which node searches? or give --here")?;
        context.endpoint.get(STRANGERS_PATH).await?
    };
    output::list(global.output, &found, COLUMNS, |c| c.address.clone())
}

/// A running flock to adopt into, where one was named or this machine is in it; a dev flock is not meant.
fn flock(global: &Global) -> Result<Option<Context>> {
    let own = Path::new(crate::context::LOCAL_SOCKET).exists();
    if global.node.is_none() && !own { Ok(None) } else { Context::find(global).map(Some) }
}

/// `quelea adopt ADDRESS --fingerprint F`.
pub(super) async fn adopt(global: &Global, args: &cli::Adopt, fingerprint: &str) -> Result<()> {
    let fingerprint = Fingerprint::parse(fingerprint).with_context(|| {
        format!(
            "{fingerprint:?} is no fingerprint: 32 hex digits, as the machine's console shows them"
        )
    })?;
    let addr = parse_address(&args.target)?;
    let labels = node::labels(&args.labels)?;
    let context = flock(global)?;
    let bundle = match (&context, &global.flock) {
        (Some(context), _) => context.bundle()?,
        (None, Some(dir)) => {
            Bundle::open(dir).with_context(|| format!("{} holds no flock", dir.display()))?
        }
        (None, None) => bail!(
            "which flock? give its bundle by --flock DIR, and a node of it by --node if one runs"
        ),
    };
    let mut join = args.join.iter().map(|text| gossip(text)).collect::<Result<Vec<_>>>()?;
    if let Some(context) = &context {
        let nodes: Nodes = context.endpoint.get("/v1/nodes").await?;
        node::is_free(&nodes, &args.name)?;
        let alive = nodes.nodes.iter().filter(|n| n.state == "alive");
        join.extend(alive.filter_map(|n| n.address.parse::<SocketAddr>().ok()));
    }
    join.truncate(JOIN_MAX);
    let through = match &context {
        Some(context) if !args.here => {
            // Only who answers there can be reached through it.
            let _: Vec<Card> = context.endpoint.get(STRANGERS_PATH).await?;
            Some(Box::new(context.endpoint.clone()))
        }
        _ => None,
    };
    let machine = Endpoint::Stranger { addr, tls: client::tls(fingerprint)?, through };
    // Whoever it is: nothing is sent before it has proved to hold that key.
    let card: Card = machine.get(CARD_PATH).await.with_context(|| {
        format!("{addr} is no machine that waits to be adopted with fingerprint {fingerprint}: compare with its console")
    })?;
    let files = node::issue(&bundle, &args.name)?;
    let given = Adopt { name: args.name.clone(), labels, join, files };
    let answer: AdoptAnswer = machine.post(ADOPT_PATH, &given).await?;
    let Some(context) = context else {
        return node::said(
            global.output,
            &args.name,
            &format!("is adopted; {}", answer.kept),
            &answer,
        );
    };
    let timeout = Duration::from_secs(args.timeout);
    let up = |n: &Node| n.state == "alive" && !n.version.is_empty();
    match node::until(&context, &args.name, timeout, up).await? {
        Some(_) => {
            let words = format!("is up; {}", answer.kept);
            node::said(global.output, &args.name, &words, &answer)
        }
        None => bail!(
            "the machine {} was adopted as {} ({}), but is not up after {} s; see its console and `quelea nodes -o wide`",
            card.mac,
            args.name,
            answer.kept,
            args.timeout
        ),
    }
}

fn gossip(text: &str) -> Result<SocketAddr> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let ip = text.parse().with_context(|| format!("--join {text:?} is no address"))?;
    Ok(SocketAddr::new(ip, GOSSIP_PORT))
}

/// Where `adopt` goes: with a fingerprint to a machine, without to a node of the flock.
pub(super) async fn adopt_any(global: &Global, args: &cli::Adopt, format: Format) -> Result<()> {
    match &args.fingerprint {
        Some(fingerprint) => adopt(global, args, fingerprint).await,
        None => node::adopt(&Context::find(global)?, format, args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_to_join_have_a_port_or_the_usual_one() {
        assert_eq!(gossip("10.0.0.1").unwrap(), "10.0.0.1:7400".parse().unwrap());
        assert_eq!(gossip("[fd00::1]:9").unwrap(), "[fd00::1]:9".parse().unwrap());
        assert!(gossip("n1").is_err());
    }
}
