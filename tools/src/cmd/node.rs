//! Commands about one node and its machine: `node`, `cordon`, `uncordon`, `drain`, `reboot`, `poweroff`, `console`, `adopt`, `retry`,
//! `forget`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use agent::adopt::files_of;
use agent::api::client::full;
use agent::api::types::{Adopt, AdoptAnswer, Console, Node, Nodes, Pod, PowerOrder, Wish};
use agent::flock::Bundle;
use anyhow::{Context as _, Result, bail};
use hyper::Method;
use sched::record::{CORDON, DRAIN};
use serde::Serialize;

use crate::cli::{self, Format};
use crate::context::Context;
use crate::output;

/// Pause between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a node is beside its membership, for people: `, draining`.
pub(super) fn states(node: &Node) -> String {
    let mut text = String::new();
    if node.wish == DRAIN || node.draining && !in_maintenance(node) {
        text.push_str(", draining");
    } else if node.wish == CORDON {
        text.push_str(", cordoned");
    }
    if in_maintenance(node) {
        text.push_str(", maintenance");
    }
    text
}

fn in_maintenance(node: &Node) -> bool {
    node.conditions.iter().any(|c| c.starts_with("maintenance: "))
}

/// A node as the node asked sees it.
pub(super) async fn look(context: &Context, name: &str) -> Result<Node> {
    Ok(context.endpoint.get(&format!("/v1/nodes/{name}")).await?)
}

/// Waits until `so` says so of a node, asking whoever answers.
pub(super) async fn until(
    context: &Context,
    name: &str,
    timeout: Duration,
    mut so: impl FnMut(&Node) -> bool,
) -> Result<Option<Node>> {
    let start = Instant::now();
    loop {
        // The node asked may be the very one that is away.
        if let Ok(node) = look(context, name).await
            && so(&node)
        {
            return Ok(Some(node));
        }
        if start.elapsed() > timeout {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Sends one JSON body to a node and reads the answer.
async fn tell<A: serde::de::DeserializeOwned>(
    context: &Context,
    node: &str,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<A> {
    let endpoint = context.reach(node).await?;
    Ok(endpoint.json(method, path, full(serde_json::to_vec(body)?)).await?)
}

/// `quelea node NAME`.
pub(super) async fn show(context: &Context, format: Format, name: &str) -> Result<()> {
    let node = look(context, name).await?;
    match format {
        Format::Json => return output::json(&node),
        Format::Name => {
            println!("{}", node.name);
            return Ok(());
        }
        Format::Table | Format::Wide => {}
    }
    let line = |what: &str, text: &str| {
        if !text.is_empty() {
            println!("{what:<11} {text}");
        }
    };
    line("node", &format!("{} ({}{})", node.name, node.state, states(&node)));
    line("version", &format!("{} (boot {})", node.version, node.boot));
    line("address", &node.address);
    line("api", &node.api);
    line("pods", &format!("{}, addresses from {}", node.pods, node.prefix));
    line("kernel", &node.kernel);
    line("image", &node.image);
    line("phase", &node.phase);
    line("state", &node.boot_state);
    if node.booted_ms > 0 {
        line("up since", &output::time(node.booted_ms));
    }
    line("uuid", &node.uuid);
    for (key, value) in &node.labels {
        let from = node.label_from.get(key).map_or("unknown", String::as_str);
        line("label", &format!("{key}={value} (from {from})"));
    }
    for condition in &node.conditions {
        line("condition", condition);
    }
    Ok(())
}

pub(super) fn said(format: Format, name: &str, words: &str, answer: &impl Serialize) -> Result<()> {
    match format {
        Format::Json => output::json(answer)?,
        Format::Name => println!("{name}"),
        Format::Table | Format::Wide => println!("{name} {words}"),
    }
    Ok(())
}

async fn set_wish(context: &Context, name: &str, wish: &str) -> Result<Wish> {
    let wish = Wish { wish: wish.into() };
    tell(context, name, Method::PUT, "/v1/node/wish", &wish).await
}

/// `quelea cordon`, `quelea uncordon`.
pub(super) async fn wish(context: &Context, format: Format, name: &str, wish: &str) -> Result<()> {
    let answer = set_wish(context, name, wish).await?;
    let words = match wish {
        "" => "takes new pods again",
        _ => "takes no new pods; end that by `quelea uncordon`",
    };
    said(format, name, words, &answer)
}

/// `quelea drain`.
pub(super) async fn drain(context: &Context, format: Format, args: &cli::Drain) -> Result<()> {
    let answer = set_wish(context, &args.target, DRAIN).await?;
    if !args.wait {
        return said(format, &args.target, "is being drained", &answer);
    }
    let start = Instant::now();
    loop {
        let left = left_on(context, &args.target).await?;
        if left.is_empty() {
            return said(
                format,
                &args.target,
                "is drained; end that by `quelea uncordon`",
                &answer,
            );
        }
        if start.elapsed() > Duration::from_secs(args.timeout) {
            let pod = |p: &Pod| format!("{}/{} ({})", p.namespace, p.name, p.state);
            let pods: Vec<String> = left.iter().map(pod).collect();
            bail!(
                "{} still has {} after {} s; the drain goes on. `quelea why APP` says what a replica waits for, `quelea uncordon {}` ends the drain",
                args.target,
                pods.join(", "),
                args.timeout,
                args.target
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Pods on a node that a drain moves: all but daemons.
async fn left_on(context: &Context, name: &str) -> Result<Vec<Pod>> {
    let pods: Vec<Pod> = context.endpoint.get("/v1/pods").await?;
    let daemon = |p: &Pod| p.name == format!("{}.{}", p.app, p.node);
    Ok(pods.into_iter().filter(|p| p.node == name && !daemon(p) && p.state != "failed").collect())
}

/// `quelea reboot`, `quelea poweroff`.
pub(super) async fn end(
    context: &Context,
    format: Format,
    args: &cli::End,
    power: &str,
) -> Result<()> {
    let before = look(context, &args.target).await?;
    let order = PowerOrder { power: power.into() };
    let answer: PowerOrder =
        tell(context, &args.target, Method::POST, "/v1/node/power", &order).await?;
    let reboot = power == "reboot";
    if !args.wait {
        let words = if reboot { "is drained and rebooted" } else { "is drained and powered off" };
        return said(format, &args.target, words, &answer);
    }
    let timeout = Duration::from_secs(args.timeout);
    let done = |node: &Node| match reboot {
        true => node.boot > before.boot && node.state == "alive",
        false => node.state == "left" || node.state == "dead",
    };
    match until(context, &args.target, timeout, done).await? {
        Some(node) if reboot => {
            said(format, &args.target, &format!("is back, kernel {}", node.kernel), &node)
        }
        Some(node) => said(format, &args.target, &format!("is off ({})", node.state), &node),
        None => bail!(
            "{} is not done after {} s; see `quelea node {}`",
            args.target,
            args.timeout,
            args.target
        ),
    }
}

/// `quelea console`.
pub(super) async fn console(context: &Context, format: Format, name: &str) -> Result<()> {
    let endpoint = context.reach(name).await?;
    let console: Console = endpoint.get("/v1/node/console").await?;
    if format == Format::Json {
        return output::json(&console);
    }
    print!("{}", console.text);
    Ok(())
}

/// `quelea retry`.
pub(super) async fn retry(context: &Context, format: Format, name: &str) -> Result<()> {
    let nothing = BTreeMap::<String, String>::new();
    let answer: Wish = tell(context, name, Method::POST, "/v1/node/retry", &nothing).await?;
    said(format, name, "starts its agent again", &answer)
}

/// `quelea forget`.
pub(super) async fn forget(context: &Context, format: Format, name: &str) -> Result<()> {
    if !agent::flock::name_is_valid(name) {
        bail!("no node is named {name:?}: a name has a-z, 0-9 and `-`; see `quelea nodes`");
    }
    let path = format!("/v1/nodes/{name}/forget");
    let answer: Wish = context.endpoint.post(&path, &BTreeMap::<String, String>::new()).await?;
    said(format, name, "is forgotten", &answer)
}

/// `KEY=VALUE`, each.
pub(super) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let pairs = texts.iter().map(|label| {
        let pair =
            label.split_once('=').filter(|(key, value)| !key.is_empty() && !value.is_empty());
        let (key, value) = pair.with_context(|| format!("label {label:?} is not KEY=VALUE"))?;
        Ok((key.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

/// Whether no node has this name.
pub(super) fn is_free(nodes: &Nodes, name: &str) -> Result<()> {
    if nodes.nodes.iter().any(|n| n.name == name) {
        bail!(
            "the flock has a node {name} already; choose another name, or forget it by `quelea forget {name}`"
        );
    }
    Ok(())
}

/// `quelea adopt NODE`.
pub(super) async fn adopt(context: &Context, format: Format, args: &cli::Adopt) -> Result<()> {
    let labels = labels(&args.labels)?;
    let nodes: Nodes = context.endpoint.get("/v1/nodes").await?;
    if args.name != args.target {
        is_free(&nodes, &args.name)?;
    }
    let files = issue(&context.bundle()?, &args.name)?;
    let given = Adopt { name: args.name.clone(), labels, join: Vec::new(), files };
    let answer: AdoptAnswer =
        tell(context, &args.target, Method::POST, "/v1/node/adopt", &given).await?;
    let timeout = Duration::from_secs(args.timeout);
    // Its record comes a moment after itself.
    let up = |n: &Node| n.state == "alive" && !n.version.is_empty() && !in_maintenance(n);
    match until(context, &args.name, timeout, up).await? {
        Some(_) => said(format, &args.name, &format!("is up; {}", answer.kept), &answer),
        None => bail!(
            "{} was adopted as {} ({}), but is not up after {} s; see `quelea nodes -o wide`",
            args.target,
            args.name,
            answer.kept,
            args.timeout
        ),
    }
}

/// New credentials, as `quelea init node` makes them. They touch this machine's memory only.
pub(super) fn issue(bundle: &Bundle, name: &str) -> Result<BTreeMap<String, String>> {
    let dir = std::path::Path::new("/dev/shm").join(format!("quelea-{}", std::process::id()));
    let issued = bundle.issue_node(name, &dir).and_then(|()| files_of(&dir));
    let removed = std::fs::remove_dir_all(&dir);
    let files = issued.with_context(|| format!("cannot issue credentials for {name}"))?;
    removed.with_context(|| format!("cannot remove {}", dir.display()))?;
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_for_people() {
        let node = |wish: &str, draining, condition: &str| Node {
            wish: wish.into(),
            draining,
            conditions: vec![condition.into()],
            ..Node::default()
        };
        assert_eq!(states(&node("", false, "no cgroup")), "");
        assert_eq!(states(&node(CORDON, false, "")), ", cordoned");
        assert_eq!(states(&node(DRAIN, true, "")), ", draining");
        assert_eq!(states(&node("", true, "")), ", draining", "its machine ends");
        assert_eq!(states(&node("", true, "maintenance: it fell")), ", maintenance");
        assert_eq!(states(&node(CORDON, true, "maintenance: x")), ", cordoned, maintenance");
    }
}
