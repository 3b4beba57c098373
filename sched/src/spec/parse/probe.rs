//! Probes: `ready`, `live` and `start`.

use toml::Spanned;

use super::super::fields::{Cx, Table};
use super::super::{Check, Container, Probe, Role};
use super::{DAY_MS, duration, strings};

/// Longest name of a gRPC service; a pod's shim takes no more.
const SERVICE_BYTES_MAX: usize = 256;
const CHECKS: [&str; 4] = ["http", "tcp", "grpc", "exec"];

/// One probe of a container; `key` is `ready`, `live` or `start`.
pub(super) fn probe(cx: &mut Cx<'_>, table: &Table<'_, '_>, key: &'static str) -> Option<Probe> {
    let known = ["http", "tcp", "grpc", "exec", "every", "timeout", "fail", "pass", "start_grace"];
    let name = match key {
        "ready" => "`ready`",
        "live" => "`live`",
        _ => "`start`",
    };
    let probe = table.table(cx, key, name, &known, &[])?;
    let found: Vec<&str> = CHECKS.into_iter().filter(|c| probe.get(c).is_some()).collect();
    if found.len() != 1 {
        let message = format!(
            "{name} wants one of `http = \":80/path\"`, `tcp = \":80\"`, `grpc = \":80\"` or `exec = [\"/check\"]`"
        );
        cx.error(probe.span.clone(), message);
    }
    let check = match found.first().copied() {
        Some("exec") => exec(cx, &probe),
        Some(kind) => probe.read(cx, kind, |text| network(kind, text)),
        None => None,
    };
    let default = |ready: u64, start: u64| if key == "start" { start } else { ready };
    let every_ms =
        duration(cx, &probe, "every", 100, DAY_MS).unwrap_or_else(|| default(2_000, 1_000));
    let timeout_ms = duration(cx, &probe, "timeout", 10, 600_000).unwrap_or(1_000);
    // In range by the bounds given.
    let fail = probe.integer(cx, "fail", 1, 1000).unwrap_or_else(|| default(3, 60)) as u32;
    let pass = probe.integer(cx, "pass", 1, 1000).unwrap_or(1) as u32;
    let start_grace_ms = duration(cx, &probe, "start_grace", 0, DAY_MS).unwrap_or(0);
    if key != "ready"
        && pass != 1
        && let Some(value) = probe.get("pass")
    {
        let message = format!("{name} has no `pass`: one success is enough");
        cx.error(value.span(), message);
    }
    Some(Probe { check: check?, every_ms, timeout_ms, fail, pass, start_grace_ms })
}

fn exec(cx: &mut Cx<'_>, probe: &Table<'_, '_>) -> Option<Check> {
    let argv = strings(cx, probe, "exec")?;
    if argv.first().is_none_or(String::is_empty) {
        let span = probe.get("exec").map_or(probe.span.clone(), Spanned::span);
        cx.error(span, format!("`exec` in {} is empty: exec = [\"/check\", \"-q\"]", probe.name));
        return None;
    }
    Some(Check::Exec { argv })
}

fn network(kind: &str, text: &str) -> Result<Check, String> {
    let (port, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
    let clean = rest.len() <= 1024 && rest.chars().all(|c| c.is_ascii_graphic());
    if !clean {
        return Err("a path of printable ASCII, at most 1024 bytes".to_owned());
    }
    match kind {
        "http" => {
            let path = if rest.is_empty() { "/" } else { rest };
            Ok(Check::Http { port: self::port(port)?, path: path.to_owned() })
        }
        "grpc" => {
            let service = rest.strip_prefix('/').unwrap_or(rest).to_owned();
            if service.len() > SERVICE_BYTES_MAX {
                return Err(format!("a service of at most {SERVICE_BYTES_MAX} bytes"));
            }
            Ok(Check::Grpc { port: self::port(port)?, service })
        }
        _ => Ok(Check::Tcp { port: self::port(text)? }),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let port = text.strip_prefix(':').and_then(|p| p.parse().ok()).filter(|p| *p > 0);
    port.ok_or_else(|| format!("`{text}` is no port; write `:80`"))
}

/// An init container runs to its end: nobody asks it anything.
pub(super) fn fits_role(cx: &mut Cx<'_>, table: &Table<'_, '_>, container: &Container) {
    if container.role != Role::Init {
        return;
    }
    for key in ["ready", "live", "start"] {
        if let Some(value) = table.get(key) {
            cx.error(
                value.span(),
                format!("an init container has no `{key}`: it has done its part when it ends"),
            );
        }
    }
}
