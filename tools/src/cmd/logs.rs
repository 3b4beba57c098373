//! `quelea logs`: what containers wrote, of one replica or of all of an app.
//!
//! Of several, each line says whose it is. Without `--follow` they come in the order of their times; with it each comes when it is
//! written, and replicas that come later are followed, too.

use std::collections::{BTreeSet, VecDeque};
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent::api::client::{Endpoint, empty};
use agent::api::types::{Pod, PodDetail};
use anyhow::{Context as _, Result, bail};
use http_body_util::BodyExt as _;
use hyper::Method;
use hyper::body::Incoming;
use tokio::sync::mpsc;

use super::run::escape;
use crate::cli;
use crate::context::Context;
use crate::output;

/// A line longer than this is printed in parts.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Logs read at once; an app with more containers is asked for one replica.
const SOURCES_MAX: usize = 256;
/// Pause between two looks for new replicas while following.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Lines that wait to be printed.
const WAITING_MAX: usize = 64;

/// One container's log.
struct Source {
    endpoint: Endpoint,
    pod: Pod,
    container: String,
}

/// Prints logs as their nodes send them.
pub(super) async fn logs(context: &Context, args: &cli::Logs) -> Result<()> {
    let since = args.since.as_deref().map(|text| moment(text, now_ms())).transpose()?;
    let pods = context.find_pods(&args.pod).await?;
    if pods.is_empty() {
        let (namespace, name) = crate::context::split_namespace(&args.pod);
        bail!("no replica {namespace}/{name}; see `quelea ps`");
    }
    let mut sources = Vec::new();
    for pod in &pods {
        sources.extend(containers(context, pod, args.container.as_deref()).await?);
    }
    if sources.len() > SOURCES_MAX {
        bail!(
            "{} logs are too many at once: name one replica, {}.0 for example",
            sources.len(),
            args.pod
        );
    }
    if args.follow {
        return follow(context, args, sources, since).await;
    }
    let several = sources.len() > 1;
    let mut lines = Vec::new();
    for source in sources {
        let prefix = prefix(&source, several);
        lines.push(Lines::open(&source, args, since.as_deref(), prefix).await?);
    }
    in_order(lines, args.timestamps).await
}

fn prefix(source: &Source, several: bool) -> String {
    if several { format!("{}/{} ", source.pod.name, source.container) } else { String::new() }
}

/// The logs of one replica: of the container named, or of all.
async fn containers(context: &Context, pod: &Pod, only: Option<&str>) -> Result<Vec<Source>> {
    let endpoint = context.reach(&pod.node).await?;
    let names: Vec<String> = match only {
        Some(name) => vec![name.to_owned()],
        None => {
            let path = format!("/v1/pods/{}/{}", pod.namespace, pod.name);
            let detail: PodDetail = endpoint.get(&path).await?;
            detail.containers.into_iter().map(|c| c.name).collect()
        }
    };
    let source = |container| Source { endpoint: endpoint.clone(), pod: pod.clone(), container };
    Ok(names.into_iter().map(source).collect())
}

/// Whole lines of one log.
struct Lines {
    name: String,
    prefix: String,
    body: Incoming,
    pending: Vec<u8>,
    ready: VecDeque<Vec<u8>>,
}

impl Lines {
    async fn open(
        source: &Source,
        args: &cli::Logs,
        since: Option<&str>,
        prefix: String,
    ) -> Result<Self> {
        let Source { endpoint, pod, container } = source;
        let mut path = format!(
            "/v1/pods/{}/{}/logs?follow={}&container={}",
            pod.namespace,
            pod.name,
            args.follow,
            escape(container)
        );
        if let Some(tail) = args.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        if let Some(since) = since {
            path.push_str(&format!("&since={}", escape(since)));
        }
        let response = endpoint.send(Method::GET, &path, empty()).await?;
        Ok(Self {
            name: format!("{}/{container}", pod.name),
            prefix,
            body: response.into_body(),
            pending: Vec::new(),
            ready: VecDeque::new(),
        })
    }

    /// The next line, its end included; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else {
                let rest = std::mem::take(&mut self.pending);
                return Ok(Some(rest).filter(|rest| !rest.is_empty()));
            };
            let frame = frame.with_context(|| format!("the log of {} broke off", self.name))?;
            if let Some(bytes) = frame.data_ref() {
                self.pending.extend_from_slice(bytes);
            }
            while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                self.ready.push_back(self.pending.drain(..=end).collect());
            }
            if self.pending.len() > LINE_BYTES_MAX {
                self.ready.push_back(std::mem::take(&mut self.pending));
            }
        }
    }
}

/// Prints several logs as one, in the order of the lines' times.
async fn in_order(mut logs: Vec<Lines>, timestamps: bool) -> Result<()> {
    let mut heads = Vec::new();
    for log in &mut logs {
        heads.push(log.next().await?);
    }
    let mut out = std::io::stdout().lock();
    // Lines begin with their times, which compare as text.
    while let Some(at) = (0..heads.len())
        .filter(|at| heads.get(*at).is_some_and(Option::is_some))
        .min_by(|a, b| heads.get(*a).cmp(&heads.get(*b)))
    {
        let (Some(log), Some(head)) = (logs.get_mut(at), heads.get_mut(at)) else { break };
        let next = log.next().await?;
        if let Some(line) = std::mem::replace(head, next) {
            out.write_all(log.prefix.as_bytes())?;
            out.write_all(&shown(&line, timestamps))?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Prints lines as they come, until interrupted or nothing of it is left.
async fn follow(
    context: &Context,
    args: &cli::Logs,
    sources: Vec<Source>,
    since: Option<String>,
) -> Result<()> {
    let one = sources.len() == 1 && args.pod.contains('.');
    let (sender, mut lines) = mpsc::channel::<Result<Vec<u8>>>(WAITING_MAX);
    let mut seen = BTreeSet::new();
    let timestamps = args.timestamps;
    let mut start = sources;
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A replica that is there has a log that does not end.
    let mut going = 0_usize;
    loop {
        for source in start.drain(..) {
            if !seen.insert((source.pod.claim.clone(), source.container.clone())) {
                continue;
            }
            let prefix = prefix(&source, !one);
            let opened = Lines::open(&source, args, since.as_deref(), prefix).await;
            let mut log = match opened {
                Ok(log) => log,
                // Between two looks it may have gone again.
                Err(error) if seen.len() > 1 => {
                    eprintln!("{}: {error:#}", source.pod.name);
                    continue;
                }
                Err(error) => return Err(error),
            };
            going += 1;
            let sender = sender.clone();
            tokio::spawn(async move {
                loop {
                    let line = match log.next().await {
                        Ok(Some(line)) => {
                            Ok([log.prefix.as_bytes(), &shown(&line, timestamps)].concat())
                        }
                        Ok(None) => Ok(Vec::new()),
                        Err(error) => Err(error),
                    };
                    let last = !matches!(&line, Ok(line) if !line.is_empty());
                    if sender.send(line).await.is_err() || last {
                        return;
                    }
                }
            });
        }
        tokio::select! {
            line = lines.recv() => match line {
                Some(Ok(line)) if !line.is_empty() => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&line)?;
                    out.flush()?;
                }
                Some(Ok(_)) => going -= 1,
                Some(Err(error)) => {
                    eprintln!("{error:#}");
                    going -= 1;
                }
                None => return Ok(()),
            },
            _ = look.tick(), if !one => {
                for pod in context.find_pods(&args.pod).await? {
                    let known = seen.iter().any(|(claim, _)| *claim == pod.claim);
                    // It has a log once it has started.
                    if !known && pod.started_ms > 0 {
                        let found = containers(context, &pod, args.container.as_deref()).await;
                        start.extend(found.unwrap_or_default());
                    }
                }
            }
        }
        if going == 0 && one {
            return Ok(());
        }
    }
}

/// A log line is `TIME STREAM F|P TEXT` (the format of the Kubernetes CRI); a partial one has no end of its own.
fn shown(line: &[u8], timestamps: bool) -> Vec<u8> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(_stream), Some(tag), Some(text)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return line.to_vec();
    };
    let text = if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    if timestamps { [time, b" ", text].concat() } else { text.to_vec() }
}

/// `10m` before now, or the moment itself, as log lines have it.
fn moment(text: &str, now_ms: u64) -> Result<String> {
    if let Ok(ago_ms) = sched::spec::units::duration_ms(text) {
        return Ok(output::time(now_ms.saturating_sub(ago_ms)));
    }
    let shape = |text: &str| {
        text.bytes().zip(b"0000-00-00T00:00:00".iter()).all(|(byte, want)| match want {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
    };
    if text.len() >= 20 && text.ends_with('Z') && shape(text) {
        return Ok(text.to_owned());
    }
    bail!("--since {text:?} is no time: write 90s, 10m, 2h, or 2026-01-31T12:00:00Z")
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_their_prefix_and_parts_are_joined() {
        let time = b"2026-11-20T17:00:00.000000001Z";
        let line = [time.as_slice(), b" stdout F a b\n"].concat();
        assert_eq!(shown(&line, false), b"a b\n");
        assert_eq!(shown(&line, true), [time.as_slice(), b" a b\n"].concat());
        assert_eq!(shown(b"t stdout P part\n", false), b"part");
        assert_eq!(shown(b"odd\n", false), b"odd\n");
    }

    #[test]
    fn moments_are_ago_or_absolute() {
        assert_eq!(moment("1m", 1_763_658_191_000).unwrap(), "2025-11-20T17:02:11Z");
        let at = "2026-01-31T12:00:00Z";
        assert_eq!(moment(at, 0).unwrap(), at);
        assert_eq!(moment("2026-01-31T12:00:00.5Z", 0).unwrap(), "2026-01-31T12:00:00.5Z");
        for bad in ["yesterday", "10", "2026-01-31", "2026-01-31T12:00:00", "2026x01-31T12:00:00Z"]
        {
            assert!(moment(bad, 0).is_err(), "{bad}");
        }
    }
}
