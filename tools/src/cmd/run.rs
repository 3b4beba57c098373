//! `quelea run` and `quelea stop`: sign, submit, and wait until it is so.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent::api::client::full;
use agent::api::types::{Accepted, App, AppDetail, Image, Pod, Why};
use agent::trust::{IMAGES_MAX, Submission};
use anyhow::{Context as _, Result, bail};
use hyper::Method;
use indicatif::{ProgressBar, ProgressStyle};
use sched::Spec;

use crate::cli;
use crate::context::{Context, split_namespace};
use crate::output;

/// Pause between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A spec larger than this is not read at all.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// `quelea run`.
pub(super) async fn run(context: &Context, args: &cli::Run) -> Result<()> {
    let document = read_spec(&args.file)?;
    let spec = parse(&document, &args.file.display().to_string())?;
    let operator = context.operator()?;
    let mut images = BTreeMap::new();
    for container in spec.containers.iter().filter(|c| c.exec.is_none()) {
        let path = format!("/v1/images/resolve?reference={}", escape(&container.image));
        let image: Image = context.endpoint.get(&path).await?;
        images.insert(container.image.clone(), image.digest);
    }
    if images.len() > IMAGES_MAX {
        bail!("the spec names {} images, {IMAGES_MAX} are allowed", images.len());
    }
    let generation =
        current(context, &spec.namespace, &spec.app).await?.map_or(0, |a| a.generation);
    let submission = Submission {
        namespace: spec.namespace.clone(),
        app: spec.app.clone(),
        generation: generation + 1,
        at_ms: now_ms(),
        stopped: false,
        images,
        document,
    };
    let accepted = submit(context, &operator.sign(&submission)?, &submission).await?;
    eprintln!(
        "{}/{} generation {} accepted by {}",
        spec.namespace, spec.app, accepted.generation, accepted.node
    );
    if args.detach {
        return Ok(());
    }
    let timeout = Duration::from_secs(args.timeout);
    wait(context, &spec.namespace, &spec.app, accepted.generation, timeout).await
}

/// `quelea stop`.
pub(super) async fn stop(context: &Context, args: &cli::Stop) -> Result<()> {
    let (namespace, app) = split_namespace(&args.app);
    let path = format!("/v1/apps/{namespace}/{app}");
    let detail: AppDetail = context.endpoint.get(&path).await?;
    let generation = detail.summary.generation;
    if !detail.summary.stopped {
        let submission = Submission {
            namespace: namespace.to_owned(),
            app: app.to_owned(),
            generation: generation + 1,
            at_ms: now_ms(),
            stopped: true,
            images: detail.images,
            document: detail.document,
        };
        submit(context, &context.operator()?.sign(&submission)?, &submission).await?;
        eprintln!("{namespace}/{app} is being stopped");
    }
    if args.detach {
        return Ok(());
    }
    let deadline = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let left = replicas(context, namespace, app).await?;
        if left.iter().all(|pod| !pod.node_alive) {
            eprintln!("{namespace}/{app} is stopped");
            return Ok(());
        }
        if Instant::now() >= deadline {
            let names: Vec<&str> = left.iter().map(|pod| pod.name.as_str()).collect();
            bail!(
                "{namespace}/{app}: still there after {} s: {}; see `quelea events`",
                args.timeout,
                names.join(", ")
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn read_spec(file: &Path) -> Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let name = file.display();
    let reader: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(|| format!("cannot read the spec {name}"))?)
    };
    reader
        .take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read the spec {name}"))?;
    Ok(text)
}

fn parse(document: &str, name: &str) -> Result<Spec> {
    Spec::parse(document, name).map_err(|diagnostics| {
        let count = diagnostics.len();
        for diagnostic in diagnostics {
            eprintln!("{diagnostic}\n");
        }
        let errors = if count == 1 { "error" } else { "errors" };
        anyhow::anyhow!("{name}: {count} {errors}; nothing was submitted")
    })
}

async fn current(context: &Context, namespace: &str, app: &str) -> Result<Option<App>> {
    let apps: Vec<App> = context.endpoint.get("/v1/apps").await?;
    Ok(apps.into_iter().find(|a| a.namespace == namespace && a.app == app))
}

async fn submit(
    context: &Context,
    signed: &agent::trust::Signed,
    submission: &Submission,
) -> Result<Accepted> {
    let path = format!("/v1/apps/{}/{}", submission.namespace, submission.app);
    Ok(context.endpoint.json(Method::PUT, &path, full(signed.to_bytes()?)).await?)
}

async fn replicas(context: &Context, namespace: &str, app: &str) -> Result<Vec<Pod>> {
    let mut pods: Vec<Pod> = context.endpoint.get("/v1/pods").await?;
    pods.retain(|pod| pod.namespace == namespace && pod.app == app);
    Ok(pods)
}

/// Waits until all replicas are ready; shows a bar on a terminal, one line a change elsewhere.
async fn wait(
    context: &Context,
    namespace: &str,
    app: &str,
    generation: u64,
    timeout: Duration,
) -> Result<()> {
    let start = Instant::now();
    let bar = output::fancy().then(|| {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} ready  {wide_msg}");
        ProgressBar::new(1).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let status = current(context, namespace, app).await?;
        let pods = replicas(context, namespace, app).await?;
        for pod in &pods {
            let state = if pod.ready { "ready" } else { pod.state.as_str() };
            let text = format!("{} {state} on {} {}", pod.name, pod.node, pod.ip);
            if seen.insert(pod.claim.clone(), text.clone()).as_ref() != Some(&text) {
                match &bar {
                    Some(bar) => bar.set_message(text),
                    None => {
                        eprintln!("{:7.3} s  {}", start.elapsed().as_secs_f64(), text.trim_end())
                    }
                }
            }
        }
        if let Some(status) = &status {
            if status.generation > generation {
                bail!("{namespace}/{app}: generation {} replaced this one", status.generation);
            }
            if let Some(bar) = &bar {
                bar.set_length(u64::from(status.desired));
                bar.set_position(u64::from(status.ready));
            }
            if status.generation == generation
                && status.ready >= status.desired
                && status.desired > 0
            {
                if let Some(bar) = &bar {
                    bar.finish_and_clear();
                }
                eprintln!(
                    "{namespace}/{app}: {} of {} ready after {:.2} s",
                    status.ready,
                    status.desired,
                    start.elapsed().as_secs_f64()
                );
                return Ok(());
            }
        }
        if start.elapsed() >= timeout {
            if let Some(bar) = &bar {
                bar.abandon();
            }
            let path = format!("/v1/apps/{namespace}/{app}/why");
            let why: Why = context.endpoint.get(&path).await.unwrap_or_default();
            bail!(
                "{namespace}/{app} is not ready after {} s\n{}",
                timeout.as_secs(),
                why.text.trim_end()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Percent-encodes what a query may not hold as it is (RFC 3986, section 2.3).
pub(super) fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        assert_eq!(escape("reg/a:1@sha256:0"), "reg/a:1@sha256:0");
        assert_eq!(escape("a b&c=\u{fc}"), "a%20b%26c%3D%C3%BC");
    }
}
