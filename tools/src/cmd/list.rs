//! Commands that ask and print: `nodes`, `ps`, `why`, `events`, `status`.

use agent::api::types::{App, Event, Node, Nodes, Pod, Status, Why};
use anyhow::Result;
use serde::Serialize;

use crate::cli::Format;
use crate::context::{Context, split_namespace};
use crate::output::{self, Column, column, wide};

/// Pause between two looks at the events.
const FOLLOW_EVERY: std::time::Duration = std::time::Duration::from_millis(300);

fn cpus(milli: u64) -> String {
    format!("{:.1}", milli as f64 / 1000.0)
}

fn label(node: &Node, name: &str) -> String {
    node.labels.get(name).cloned().unwrap_or_else(|| "-".into())
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

const NODE_COLUMNS: &[Column<Node>] = &[
    column("NODE", |n| n.name.clone()),
    column("STATE", |n| {
        let more = super::node::states(n);
        format!("{}{more}", n.state)
    }),
    column("ROW", |n| label(n, "row")),
    column("RACK", |n| label(n, "rack")),
    column("POWER", |n| label(n, "power")),
    column("PODS", |n| n.pods.to_string()),
    column("CPU FREE", |n| format!("{}/{}", cpus(n.cpu_free_milli), cpus(n.cpu_milli))),
    column("MEMORY FREE", |n| {
        format!("{}/{}", output::bytes(n.memory_free_bytes), output::bytes(n.memory_bytes))
    }),
    column("PREFIX", |n| n.prefix.clone()),
    wide("RTT", |n| match n.rtt_us {
        0 => "-".into(),
        us => format!("{:.2} ms", us as f64 / 1000.0),
    }),
    wide("ADDRESS", |n| n.address.clone()),
    wide("VERSION", |n| n.version.clone()),
    wide("KERNEL", |n| n.kernel.clone()),
    wide("PHASE", |n| or_dash(&n.phase)),
    wide("BOOT STATE", |n| or_dash(&n.boot_state)),
    wide("UP", |n| output::age(n.booted_ms)),
    wide("CONDITIONS", |n| n.conditions.join("; ")),
];

/// `quelea nodes`.
pub(super) async fn nodes(context: &Context, format: Format) -> Result<()> {
    let nodes: Nodes = context.endpoint.get("/v1/nodes").await?;
    if format == Format::Json {
        return output::json(&nodes);
    }
    output::list(format, &nodes.nodes, NODE_COLUMNS, |n| n.name.clone())
}

const APP_COLUMNS: &[Column<App>] = &[
    column("APP", |a| format!("{}/{}", a.namespace, a.app)),
    column("KIND", |a| a.kind.clone()),
    column("READY", |a| format!("{}/{}", a.ready, a.desired)),
    column("PHASE", |a| a.phase.clone()),
    column("GENERATION", |a| a.generation.to_string()),
    column("COORDINATOR", |a| a.coordinator.clone()),
    wide("SIGNED BY", |a| a.operator.clone()),
];

const POD_COLUMNS: &[Column<Pod>] = &[
    column("REPLICA", |p| format!("{}/{}", p.namespace, p.name)),
    column("NODE", |p| p.node.clone()),
    column("STATE", |p| match (p.node_alive, p.ready) {
        (false, _) => "lost".into(),
        (true, true) => "ready".into(),
        (true, false) => p.state.clone(),
    }),
    column("IP", |p| p.ip.clone()),
    column("RESTARTS", |p| p.restarts.to_string()),
    column("AGE", |p| output::age(p.started_ms)),
    wide("GENERATION", |p| p.generation.to_string()),
    wide("CLAIM", |p| p.claim.clone()),
    column("REASON", |p| p.reason.clone()),
];

#[derive(Serialize)]
struct Everything {
    apps: Vec<App>,
    pods: Vec<Pod>,
}

/// `quelea ps`.
pub(super) async fn ps(context: &Context, format: Format, app: Option<&str>) -> Result<()> {
    let mut apps: Vec<App> = context.endpoint.get("/v1/apps").await?;
    let mut pods: Vec<Pod> = context.endpoint.get("/v1/pods").await?;
    if let Some(wanted) = app {
        let (namespace, name) = split_namespace(wanted);
        apps.retain(|a| a.namespace == namespace && a.app == name);
        pods.retain(|p| p.namespace == namespace && p.app == name);
        if apps.is_empty() && pods.is_empty() {
            anyhow::bail!("no app {namespace}/{name} in this flock; `quelea ps` lists them all");
        }
    }
    match format {
        Format::Json => return output::json(&Everything { apps, pods }),
        Format::Name => return output::list(format, &pods, POD_COLUMNS, |p| p.name.clone()),
        Format::Table | Format::Wide => {}
    }
    if apps.is_empty() {
        println!("no apps; submit one with `quelea run FILE`");
        return Ok(());
    }
    println!("{}", output::table(&apps, APP_COLUMNS, format == Format::Wide));
    if !pods.is_empty() {
        println!("\n{}", output::table(&pods, POD_COLUMNS, format == Format::Wide));
    }
    Ok(())
}

/// `quelea why`.
pub(super) async fn why(context: &Context, format: Format, app: &str) -> Result<()> {
    let (namespace, name) = split_namespace(app);
    let path = format!("/v1/apps/{namespace}/{name}/why");
    let mut why: Why = context.endpoint.get(&path).await?;
    // The coordinator knows what it tried; others know what it wrote.
    if let Ok(endpoint) = context.reach(&why.coordinator).await
        && let Ok(better) = endpoint.get(&path).await
    {
        why = better;
    }
    if format == Format::Json {
        return output::json(&why);
    }
    println!("{}", why.text.trim_end());
    Ok(())
}

const EVENT_COLUMNS: &[Column<Event>] = &[
    column("TIME", |e| output::time(e.at_ms)),
    column("ABOUT", |e| e.about.clone()),
    column("WHAT", |e| e.message.clone()),
];

/// `quelea events`.
pub(super) async fn events(context: &Context, format: Format, follow: bool) -> Result<()> {
    let mut since = 0;
    loop {
        let events: Vec<Event> = context.endpoint.get(&format!("/v1/events?since={since}")).await?;
        if follow || format == Format::Json {
            for event in &events {
                match format {
                    // One object a line, as `--follow` has no end.
                    Format::Json => println!("{}", serde_json::to_string(event)?),
                    _ => println!(
                        "{}  {}  {}",
                        output::time(event.at_ms),
                        event.about,
                        event.message
                    ),
                }
            }
        } else {
            output::list(format, &events, EVENT_COLUMNS, |e| e.about.clone())?;
        }
        if !follow {
            return Ok(());
        }
        since = events.last().map_or(since, |event| event.cursor + 1);
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// `quelea status`.
pub(super) async fn status(context: &Context, format: Format) -> Result<()> {
    let status: Status = context.endpoint.get("/v1/status").await?;
    if format == Format::Json {
        return output::json(&status);
    }
    println!("node        {} (quelead {}, boot {})", status.name, status.version, status.boot);
    println!("flock       {}: {} nodes alive", status.flock, status.alive);
    println!("joined      {}", if status.joined { "yes" } else { "not yet" });
    println!("network     {}", if status.network_ready { "ready" } else { "not ready yet" });
    println!("map         {} records, root {}", status.records, status.map_root);
    println!("memory      {} resident", output::bytes(status.rss_bytes));
    println!("up          {} s", status.uptime_ms / 1000);
    if !status.layers.is_empty() {
        println!("layers      {}", status.layers);
    }
    for condition in &status.conditions {
        println!("condition   {condition}");
    }
    for (name, count) in &status.overlay {
        println!("overlay     {name} {count}");
    }
    Ok(())
}
