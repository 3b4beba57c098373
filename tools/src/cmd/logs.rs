//! `quelea logs`.

use agent::api::client::empty;
use anyhow::{Context as _, Result};
use http_body_util::BodyExt as _;
use hyper::Method;

use super::run::escape;
use crate::cli;
use crate::context::Context;

/// A line longer than this is printed in parts.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Prints a replica's log as its node sends it.
pub(super) async fn logs(context: &Context, args: &cli::Logs) -> Result<()> {
    use std::io::Write as _;
    let (endpoint, pod) = context.find_pod(&args.pod).await?;
    let mut path = format!("/v1/pods/{}/{}/logs?follow={}", pod.namespace, pod.name, args.follow);
    if let Some(container) = &args.container {
        path.push_str(&format!("&container={}", escape(container)));
    }
    if let Some(tail) = args.tail {
        path.push_str(&format!("&tail={tail}"));
    }
    let response = endpoint.send(Method::GET, &path, empty()).await?;
    let mut body = response.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.with_context(|| format!("the log of {} broke off", pod.name))?;
        let Some(bytes) = frame.data_ref() else { continue };
        pending.extend_from_slice(bytes);
        let mut out = std::io::stdout().lock();
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            out.write_all(&shown(&line, args.timestamps))?;
        }
        if pending.len() > LINE_BYTES_MAX {
            out.write_all(&pending)?;
            pending.clear();
        }
        out.flush()?;
    }
    std::io::stdout().write_all(&pending)?;
    Ok(())
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
}
