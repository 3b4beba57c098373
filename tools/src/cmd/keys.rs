//! `quelea keys`: which gossip keys the nodes hold, and giving the flock a new one while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use agent::api::types::Nodes;
use agent::keys::{FILE, NEXT_FILE, Ring, Stand, Step};
use anyhow::{Context as _, Result, bail};

use crate::cli::{Format, Rotate};
use crate::context::Context;
use crate::output::{self, Column, column, wide};

fn ids(ids: &[u8]) -> String {
    ids.iter().map(u8::to_string).collect::<Vec<_>>().join(", ")
}

const COLUMNS: &[Column<Stand>] = &[
    column("NODE", |s| s.node.clone()),
    column("USES", |s| s.uses.to_string()),
    column("ACCEPTS", |s| ids(&s.accepts)),
    column("ROTATIONS", |s| s.epoch.to_string()),
    wide("FRAMES", |s| {
        let frames = s.frames.iter().map(|(id, n)| format!("key {id}: {n}"));
        frames.collect::<Vec<_>>().join(", ")
    }),
    wide("EVICTED", |s| s.evicted.iter().cloned().collect::<Vec<_>>().join(", ")),
];

/// `quelea keys`.
pub(super) async fn list(context: &Context, format: Format) -> Result<()> {
    let mut stands = Vec::new();
    for node in flock(context).await?.live {
        stands.push(context.reach(&node).await?.get::<Stand>("/v1/keys").await?);
    }
    output::list(format, &stands, COLUMNS, |s| s.node.clone())
}

/// `quelea keys rotate`.
pub(super) async fn rotate(context: &Context, args: &Rotate) -> Result<()> {
    let bundle = context.bundle()?;
    let dir = bundle.dir();
    let members = flock(context).await?;
    for name in args.evict.iter().chain(&args.without) {
        if !members.live.contains(name) && !members.gone.contains(name) {
            bail!("no node {name} in this flock; see `quelea nodes`");
        }
    }
    if args.evict.contains(&members.asked) {
        bail!("{} is the node that is asked: name another by --node", members.asked);
    }
    let begun = begun(dir, &args.evict)?;
    let mut out: BTreeSet<String> = args.evict.iter().chain(&args.without).cloned().collect();
    if let Some(next) = &begun {
        out.extend(next.stand("").evicted);
    }
    // Nothing begins while one cannot be reached: it would be left behind.
    let last = bundle.keys()?.stand("").epoch;
    for node in staying(context, &out).await? {
        let stand: Stand = context.reach(&node).await?.get("/v1/keys").await?;
        if stand.epoch != last && (begun.is_none() || stand.epoch != last + 1) {
            bail!(
                "{node} has finished {} rotations and {} {last}: {node} missed one, or that is not this flock's newest bundle",
                stand.epoch,
                dir.display()
            );
        }
    }
    let next = match begun {
        Some(next) => {
            println!("going on with the rotation that was begun");
            next
        }
        None => {
            // On disk before any node hears of it: who has given it to half of a flock must be able to go on.
            let next = bundle.keys()?.next(args.evict.iter().cloned())?;
            next.write(&dir.join(NEXT_FILE))?;
            next
        }
    };
    let steps = next.steps().context("the rotation that was begun holds no key")?;
    let mut rotation = Rotation { context, out: &out, told: BTreeMap::new() };
    let id = next.stand("").uses;
    for (done, word) in (1..).zip(["accepted", "used"]) {
        let nodes = rotation.everywhere(&steps[..done]).await?;
        println!("key {id} is {word} by {nodes} nodes");
    }
    let nodes = rotation.everywhere(&steps).await?;
    println!("the old key is dropped by {nodes} nodes");
    next.write(&dir.join(FILE))?;
    std::fs::remove_file(dir.join(NEXT_FILE))
        .with_context(|| format!("cannot remove {}", dir.join(NEXT_FILE).display()))?;
    for name in &args.evict {
        println!(
            "{name} is out: it neither hears the flock nor is heard, and its certificate is refused"
        );
    }
    for name in &args.without {
        println!("{name} was left behind: give it new credentials by `quelea init node {name}`");
    }
    Ok(())
}

struct Members {
    asked: String,
    live: BTreeSet<String>,
    gone: BTreeSet<String>,
}

async fn flock(context: &Context) -> Result<Members> {
    let nodes: Nodes = context.endpoint.get("/v1/nodes").await?;
    let is_live = |state: &str| matches!(state, "alive" | "suspect");
    let (live, gone) = nodes.nodes.into_iter().partition::<Vec<_>, _>(|n| is_live(&n.state));
    let names = |nodes: Vec<agent::api::types::Node>| nodes.into_iter().map(|n| n.name).collect();
    Ok(Members { asked: nodes.answered_by, live: names(live), gone: names(gone) })
}

/// The rotation under way, if there is one.
fn begun(dir: &Path, evict: &[String]) -> Result<Option<Ring>> {
    let next = Ring::read(&dir.join(NEXT_FILE))?;
    if let Some(next) = &next
        && let Some(name) = evict.iter().find(|name| !next.has_evicted(name))
    {
        bail!(
            "a rotation is under way that may have given {name} the new key: finish it by `quelea keys rotate`, then evict {name} by another"
        );
    }
    Ok(next)
}

/// Whom the new key is for: all but who is named to be out.
///
/// # Errors
/// Somebody would be left behind who was not named.
async fn staying(context: &Context, out: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let Members { mut live, gone, .. } = flock(context).await?;
    if let Some(name) = gone.iter().find(|name| !out.contains(*name)) {
        bail!(
            "{name} is down and would be left behind: bring it back, or name it by --evict {name} or --without {name}"
        );
    }
    live.retain(|name| !out.contains(name));
    Ok(live)
}

struct Rotation<'a> {
    context: &'a Context,
    out: &'a BTreeSet<String>,
    /// How many steps each node has done.
    told: BTreeMap<String, usize>,
}

impl Rotation<'_> {
    /// Sees to it that everybody has done these steps, nodes that came meanwhile too.
    async fn everywhere(&mut self, steps: &[Step]) -> Result<usize> {
        let staying = staying(self.context, self.out).await?;
        for name in &staying {
            let endpoint = self.context.reach(name).await?;
            let done = self.told.entry(name.clone()).or_default();
            for step in steps.iter().skip(*done) {
                endpoint.post::<Stand>("/v1/keys", step).await.with_context(|| {
                    format!("{name} did not take the step; `quelea keys rotate` goes on from here")
                })?;
                *done += 1;
            }
        }
        Ok(staying.len())
    }
}
