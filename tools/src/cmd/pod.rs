//! `quelea pod`: one replica and its containers, as its node sees them now.

use agent::api::types::{Container, Pod, PodDetail};
use anyhow::{Result, bail};
use serde::Serialize;

use crate::cli::Format;
use crate::context::{Context, split_namespace};
use crate::output::{self, Column, column};

const COLUMNS: &[Column<Container>] = &[
    column("CONTAINER", |c| c.name.clone()),
    column("STATE", |c| c.state.clone()),
    column("RESTARTS", |c| c.restarts.to_string()),
    column("LOG DROPPED", |c| output::bytes(c.log_dropped_bytes)),
    column("REASON", |c| c.reason.clone()),
];

#[derive(Serialize)]
struct Replica {
    #[serde(flatten)]
    pod: Pod,
    containers: Vec<Container>,
}

pub(super) async fn show(context: &Context, format: Format, target: &str) -> Result<()> {
    let (namespace, name) = split_namespace(target);
    let mut pods: Vec<Pod> = context.endpoint.get("/v1/pods").await?;
    pods.retain(|p| p.namespace == namespace && p.name == name);
    // Of a replica that is replaced there are two; the one on a live node is asked.
    pods.sort_by_key(|p| !p.node_alive);
    let Some(pod) = pods.into_iter().next() else {
        bail!("no replica {namespace}/{name} in this flock; `quelea ps` lists them all");
    };
    if !pod.node_alive {
        bail!(
            "{namespace}/{name} was on {}, which is lost; see `quelea why {}`",
            pod.node,
            pod.app
        );
    }
    let path = format!("/v1/pods/{namespace}/{name}");
    let detail: PodDetail = context.reach(&pod.node).await?.get(&path).await?;
    let replica = Replica { pod, containers: detail.containers };
    match format {
        Format::Json => output::json(&replica),
        Format::Name => output::list(format, &replica.containers, COLUMNS, |c| c.name.clone()),
        Format::Table | Format::Wide => {
            print(&replica, format == Format::Wide);
            Ok(())
        }
    }
}

fn print(replica: &Replica, wide: bool) {
    let pod = &replica.pod;
    let line = |what: &str, text: &str| {
        if !text.is_empty() {
            println!("{what:<11} {text}");
        }
    };
    let ready = if pod.ready { ", ready" } else { "" };
    line("replica", &format!("{}/{} ({}{ready})", pod.namespace, pod.name, pod.state));
    line("node", &pod.node);
    line("address", &pod.ip);
    line("generation", &pod.generation.to_string());
    line("claim", &pod.claim);
    if pod.started_ms > 0 {
        line("started", &output::time(pod.started_ms));
    }
    line("reason", &pod.reason);
    println!("\n{}", output::table(&replica.containers, COLUMNS, wide));
}
