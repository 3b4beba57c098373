//! `quelea top`: what nodes and replicas use now, from two readings of each node's counters.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use agent::api::client::Endpoint;
use agent::api::types::{NodeUsage, Nodes, PodUsage, Stall, Traffic, Usage};
use anyhow::{Result, bail};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::cli::{self, Format, SortBy};
use crate::context::{Context, split_namespace};
use crate::output::{self, Column, column, wide};
use crate::terminal;

/// Between the two readings of what is printed once.
const ONCE: Duration = Duration::from_secs(1);
/// Nodes that are asked at once.
const ASKED_MAX: usize = 32;
/// A node that does not answer by then is passed over this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// One node's line.
#[derive(Debug, Serialize)]
struct NodeLine {
    name: String,
    /// Thousandths of a CPU.
    cpu_milli: f64,
    cpus_milli: u64,
    memory_bytes: u64,
    memory_total_bytes: u64,
    pressure: Stall,
    received_bytes_per_s: Option<f64>,
    sent_bytes_per_s: Option<f64>,
    pods: usize,
    agent_cpu_milli: f64,
    agent_rss_bytes: u64,
}

/// One replica's line.
#[derive(Debug, Serialize)]
struct PodLine {
    namespace: String,
    app: String,
    name: String,
    node: String,
    /// Thousandths of a CPU.
    cpu_milli: Option<f64>,
    cpu_claimed_milli: u64,
    memory_bytes: Option<u64>,
    memory_limit_bytes: u64,
    pids: Option<u64>,
    pressure: Stall,
    received_bytes_per_s: Option<f64>,
    sent_bytes_per_s: Option<f64>,
    read_bytes_per_s: Option<f64>,
    written_bytes_per_s: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Table {
    nodes: Vec<NodeLine>,
    pods: Vec<PodLine>,
    /// Nodes that did not answer, and what they said instead.
    missing: BTreeMap<String, String>,
}

fn cpu(milli: f64) -> String {
    format!("{:.3}", milli / 1e3)
}

fn of(part: u64, all: u64) -> String {
    format!("{} / {}", output::bytes(part), output::bytes(all))
}

fn percent(permyriad: Option<u32>) -> String {
    permyriad.map_or_else(|| "-".into(), |p| format!("{:.0}%", f64::from(p) / 100.0))
}

fn stall(s: &Stall) -> String {
    let all = [s.cpu_permyriad, s.memory_permyriad, s.io_permyriad];
    if all.iter().all(Option::is_none) {
        return "-".into();
    }
    all.map(percent).join(" ")
}

fn rates(one: Option<f64>, other: Option<f64>) -> String {
    let rate = |r: f64| format!("{}/s", output::bytes(r as u64));
    match (one, other) {
        (Some(one), Some(other)) => format!("{} {}", rate(one), rate(other)),
        _ => "-".into(),
    }
}

const NODES: &[Column<NodeLine>] = &[
    column("NODE", |n| n.name.clone()),
    column("CPU", |n| format!("{} / {:.1}", cpu(n.cpu_milli), n.cpus_milli as f64 / 1e3)),
    column("MEMORY", |n| of(n.memory_bytes, n.memory_total_bytes)),
    column("WAITS CPU MEM IO", |n| stall(&n.pressure)),
    column("NET IN OUT", |n| rates(n.received_bytes_per_s, n.sent_bytes_per_s)),
    column("PODS", |n| n.pods.to_string()),
    wide("AGENT CPU", |n| cpu(n.agent_cpu_milli)),
    wide("AGENT MEMORY", |n| output::bytes(n.agent_rss_bytes)),
];

const PODS: &[Column<PodLine>] = &[
    column("REPLICA", |p| format!("{}/{}", p.namespace, p.name)),
    column("NODE", |p| p.node.clone()),
    column("CPU", |p| p.cpu_milli.map_or_else(|| "-".into(), cpu)),
    column("MEMORY", |p| {
        p.memory_bytes.map_or_else(|| "-".into(), |m| of(m, p.memory_limit_bytes))
    }),
    column("WAITS CPU MEM IO", |p| stall(&p.pressure)),
    column("NET IN OUT", |p| rates(p.received_bytes_per_s, p.sent_bytes_per_s)),
    column("DISK READ WRITE", |p| rates(p.read_bytes_per_s, p.written_bytes_per_s)),
    column("PIDS", |p| p.pids.map_or_else(|| "-".into(), |n| n.to_string())),
    wide("CPU CLAIMED", |p| cpu(p.cpu_claimed_milli as f64)),
];

/// `quelea top`.
pub(super) async fn top(context: &Context, format: Format, args: &cli::Top) -> Result<()> {
    let people = matches!(format, Format::Table | Format::Wide);
    let refresh = people && !args.once && std::io::stdout().is_terminal();
    let every = Duration::from_secs_f64(args.every);
    let (mut before, _) = readings(context, args).await?;
    loop {
        tokio::time::sleep(if refresh { every } else { ONCE }).await;
        let (now, missing) = readings(context, args).await?;
        let table = compare(&before, &now, missing, args)?;
        match format {
            Format::Json => return output::json(&table),
            Format::Name => {
                return output::list(format, &table.pods, PODS, |p| p.name.clone());
            }
            Format::Table | Format::Wide => {}
        }
        let text = render(&table, format == Format::Wide);
        let mut out = std::io::stdout().lock();
        if !refresh {
            writeln!(out, "{text}")?;
            return Ok(());
        }
        out.write_all(screen(&text, terminal::size()).as_bytes())?;
        out.flush()?;
        before = now;
    }
}

/// The text from the upper left corner on, cut to the window, and nothing below it (ECMA-48: CUP, EL, ED).
fn screen(text: &str, (columns, rows): (u16, u16)) -> String {
    let mut out = String::from("\x1b[H");
    for line in text.lines().take(usize::from(rows.saturating_sub(1))) {
        out.extend(line.chars().take(usize::from(columns)));
        out.push_str("\x1b[K\n");
    }
    out.push_str("\x1b[J");
    out
}

fn render(table: &Table, all: bool) -> String {
    let mut text = output::table(&table.nodes, NODES, all);
    if !table.pods.is_empty() {
        text.push_str("\n\n");
        text.push_str(&output::table(&table.pods, PODS, all));
    }
    for (node, why) in &table.missing {
        text.push_str(&format!("\n{node}: {why}"));
    }
    text
}

type Readings = BTreeMap<String, Usage>;

/// Each live node's counters; and who did not answer.
async fn readings(
    context: &Context,
    args: &cli::Top,
) -> Result<(Readings, BTreeMap<String, String>)> {
    let flock: Nodes = context.endpoint.get("/v1/nodes").await?;
    let mut names: Vec<String> = Vec::new();
    for node in flock.nodes {
        let wanted = args.on.is_empty() || args.on.contains(&node.name);
        if wanted && matches!(node.state.as_str(), "alive" | "suspect") {
            names.push(node.name);
        } else if !args.on.is_empty() && wanted {
            bail!("{} is {}: it does not tell what it uses", node.name, node.state);
        }
    }
    if let Some(unknown) = args.on.iter().find(|on| !names.contains(on)) {
        bail!("no node {unknown} in this flock; see `quelea nodes`");
    }
    let (mut readings, mut missing) = (Readings::new(), BTreeMap::new());
    let mut asked = JoinSet::new();
    let mut names = names.into_iter();
    loop {
        while asked.len() < ASKED_MAX
            && let Some(name) = names.next()
        {
            match context.way_to(&flock.answered_by, &name) {
                Ok(endpoint) => drop(asked.spawn(read(endpoint, name))),
                Err(error) => drop(missing.insert(name, format!("{error:#}"))),
            }
        }
        match asked.join_next().await {
            None => return Ok((readings, missing)),
            Some(Ok((name, Ok(usage)))) => drop(readings.insert(name, usage)),
            Some(Ok((name, Err(why)))) => drop(missing.insert(name, why)),
            Some(Err(error)) => bail!("asking a node: {error}"),
        }
    }
}

async fn read(endpoint: Endpoint, name: String) -> (String, Result<Usage, String>) {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, endpoint.get::<Usage>("/v1/usage")).await;
    let usage = match answer {
        Ok(Ok(usage)) => Ok(usage),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}")),
    };
    (name, usage)
}

fn compare(
    before: &Readings,
    now: &Readings,
    missing: BTreeMap<String, String>,
    args: &cli::Top,
) -> Result<Table> {
    let mut table = Table { nodes: Vec::new(), pods: Vec::new(), missing };
    let wanted = args.app.as_deref().map(split_namespace);
    for (name, now) in now {
        // One that has only just come, or whose agent has started again, has no rate yet.
        let Some(old) = before.get(name).filter(|old| old.at_us < now.at_us) else { continue };
        let seconds = (now.at_us - old.at_us) as f64 / 1e6;
        table.nodes.push(node_line(name, &old.machine, now, seconds));
        let olds: BTreeMap<&str, &PodUsage> =
            old.pods.iter().map(|p| (p.claim.as_str(), p)).collect();
        for pod in &now.pods {
            let meant = |(ns, app): (&str, &str)| {
                pod.namespace == ns && (pod.app == app || pod.name == app)
            };
            if wanted.is_none_or(meant) {
                table.pods.push(pod_line(name, olds.get(pod.claim.as_str()), pod, seconds));
            }
        }
    }
    if let Some((namespace, app)) = wanted
        && table.pods.is_empty()
    {
        bail!("no replica of {namespace}/{app} runs; see `quelea ps`");
    }
    let name = |p: &PodLine| (p.namespace.clone(), p.app.clone(), p.name.len(), p.name.clone());
    table.pods.sort_by_key(name);
    match args.sort {
        SortBy::Cpu => {
            table
                .pods
                .sort_by(|a, b| b.cpu_milli.unwrap_or(0.0).total_cmp(&a.cpu_milli.unwrap_or(0.0)));
            table.nodes.sort_by(|a, b| b.cpu_milli.total_cmp(&a.cpu_milli));
        }
        SortBy::Memory => {
            table.pods.sort_by_key(|p| Reverse(p.memory_bytes));
            table.nodes.sort_by_key(|n| Reverse(n.memory_bytes));
        }
        SortBy::Name => {}
    }
    Ok(table)
}

/// What came on in each second; a counter that began anew has not come on.
fn per_second(old: u64, now: u64, seconds: f64) -> f64 {
    now.saturating_sub(old) as f64 / seconds
}

fn both(old: Option<u64>, now: Option<u64>, seconds: f64) -> Option<f64> {
    Some(per_second(old?, now?, seconds))
}

fn traffic(old: Option<Traffic>, now: Option<Traffic>, seconds: f64) -> (Option<f64>, Option<f64>) {
    let received = both(old.map(|t| t.received_bytes), now.map(|t| t.received_bytes), seconds);
    (received, both(old.map(|t| t.sent_bytes), now.map(|t| t.sent_bytes), seconds))
}

fn node_line(name: &str, old: &NodeUsage, usage: &Usage, seconds: f64) -> NodeLine {
    let now = &usage.machine;
    let (received_bytes_per_s, sent_bytes_per_s) = traffic(old.net, now.net, seconds);
    NodeLine {
        name: name.to_owned(),
        // A microsecond a second is a thousandth of a thousandth of a CPU.
        cpu_milli: per_second(old.cpu_us, now.cpu_us, seconds) / 1e3,
        cpus_milli: now.cpus_milli,
        memory_bytes: now.memory_bytes,
        memory_total_bytes: now.memory_total_bytes,
        pressure: now.pressure,
        received_bytes_per_s,
        sent_bytes_per_s,
        pods: usage.pods.len(),
        agent_cpu_milli: per_second(old.agent_cpu_us, now.agent_cpu_us, seconds) / 1e3,
        agent_rss_bytes: now.agent_rss_bytes,
    }
}

fn pod_line(node: &str, old: Option<&&PodUsage>, now: &PodUsage, seconds: f64) -> PodLine {
    let rate = |of: fn(&PodUsage) -> Option<u64>| both(old.and_then(|p| of(p)), of(now), seconds);
    let (received_bytes_per_s, sent_bytes_per_s) =
        traffic(old.and_then(|p| p.net), now.net, seconds);
    PodLine {
        namespace: now.namespace.clone(),
        app: now.app.clone(),
        name: now.name.clone(),
        node: node.to_owned(),
        cpu_milli: rate(|p| p.cpu_us).map(|us| us / 1e3),
        cpu_claimed_milli: now.cpu_milli,
        memory_bytes: now.memory_bytes,
        memory_limit_bytes: now.memory_limit_bytes,
        pids: now.pids,
        pressure: now.pressure,
        received_bytes_per_s,
        sent_bytes_per_s,
        read_bytes_per_s: rate(|p| p.read_bytes),
        written_bytes_per_s: rate(|p| p.written_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(at_us: u64, cpu_us: u64, pods: &[(&str, u64, u64)]) -> Readings {
        let pod = |(claim, cpu_us, memory): &(&str, u64, u64)| PodUsage {
            namespace: "default".into(),
            app: "web".into(),
            name: format!("web.{claim}"),
            claim: (*claim).to_owned(),
            cpu_us: Some(*cpu_us),
            memory_bytes: Some(*memory),
            ..PodUsage::default()
        };
        let machine = NodeUsage { cpu_us, ..NodeUsage::default() };
        let pods = pods.iter().map(pod).collect();
        [("n1".to_owned(), Usage { node: "n1".into(), at_us, machine, pods })].into()
    }

    fn args(sort: SortBy, app: Option<&str>) -> cli::Top {
        cli::Top { app: app.map(str::to_owned), sort, on: Vec::new(), every: 2.0, once: true }
    }

    #[test]
    fn rates_come_from_two_readings_and_lines_are_sorted() {
        let before = usage(1_000_000, 500_000, &[("0", 100_000, 5), ("1", 0, 9)]);
        let now = usage(3_000_000, 3_500_000, &[("0", 1_100_000, 5), ("1", 2_000, 9), ("2", 7, 1)]);
        let by = |sort| compare(&before, &now, BTreeMap::new(), &args(sort, None)).unwrap();
        let table = by(SortBy::Cpu);
        assert!((table.nodes[0].cpu_milli - 1500.0).abs() < 1e-6);
        assert_eq!(table.pods[0].cpu_milli, Some(500.0));
        let names = |t: &Table| t.pods.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&table), ["web.0", "web.1", "web.2"]);
        assert_eq!(table.pods[2].cpu_milli, None, "it has only just come");
        assert_eq!(names(&by(SortBy::Memory)), ["web.1", "web.0", "web.2"]);
        let wrong = compare(&before, &now, BTreeMap::new(), &args(SortBy::Cpu, Some("shop/web")));
        assert!(wrong.unwrap_err().to_string().contains("no replica of shop/web"));
        // An agent that started again counts from its own start.
        let again = usage(10, 4_000_000, &[]);
        assert!(
            compare(&now, &again, BTreeMap::new(), &args(SortBy::Cpu, None))
                .unwrap()
                .nodes
                .is_empty()
        );
    }

    #[test]
    fn a_screen_is_cut_to_the_window() {
        assert_eq!(screen("abcdef\ngh\nij", (3, 3)), "\x1b[Habc\x1b[K\ngh\x1b[K\n\x1b[J");
    }
}
