//! `[[container]]`: what runs, and its part in the pod.

use toml::Spanned;
use toml::de::DeValue;

use super::super::fields::{At, Cx, Table, integer};
use super::super::{
    Backoff, CONTAINERS_MAX, Container, Log, MOUNTS_MAX, Mount, Restart, Role, Stdin, Stop, Tmpfs,
    Volume, template,
};
use super::{
    DAY_MS, duration, limits, name, path, plain, probe, required, security, size, strings,
};

const SIGNALS: [&str; 9] = ["TERM", "QUIT", "INT", "HUP", "USR1", "USR2", "WINCH", "KILL", "PWR"];

const KNOWN: [&str; 37] = [
    "name",
    "image",
    "exec",
    "role",
    "command",
    "args",
    "env",
    "user",
    "workdir",
    "init",
    "stdin",
    "restart",
    "backoff",
    "stop",
    "ports",
    "ready",
    "live",
    "start",
    "cpu",
    "cpu_max",
    "memory",
    "memory_high",
    "pids",
    "disk",
    "io",
    "cpuset",
    "hugepages",
    "rlimits",
    "read_only",
    "tmpfs",
    "mounts",
    "devices",
    "profile",
    "caps",
    "seccomp",
    "log",
    "files",
];
/// Of [`KNOWN`], that at its end is of a version to come.
const LATER: usize = 1;

pub(super) fn containers(
    cx: &mut Cx<'_>,
    top: &Table<'_, '_>,
    volumes: &[Volume],
) -> Vec<Container> {
    if top.get("container").is_none() {
        cx.error_help(0..0, "there is no `[[container]]`", "add one with `name` and `image`");
        return Vec::new();
    }
    let (known, later) = KNOWN.split_at(KNOWN.len() - LATER);
    let tables = top.tables(cx, "container", "[[container]]", known, later).unwrap_or_default();
    if let Some(extra) = tables.get(CONTAINERS_MAX) {
        cx.error(extra.span.clone(), format!("a pod has at most {CONTAINERS_MAX} containers"));
    }
    let mut list: Vec<Container> = Vec::new();
    for table in &tables {
        let Some(container) = container(cx, table) else { continue };
        if list.iter().any(|c| c.name == container.name) {
            let span = table.get("name").map_or(table.span.clone(), Spanned::span);
            cx.error(span, format!("two containers are named `{}`", container.name));
        }
        for (port_name, port) in &container.ports {
            let clash = |c: &&Container| c.ports.iter().any(|(n, p)| n == port_name || p == port);
            if let Some(other) = list.iter().find(clash) {
                let span = table.get("ports").map_or(table.span.clone(), Spanned::span);
                let message = format!(
                    "port `{port_name} = {port}` is also of container `{}`: they share one network",
                    other.name
                );
                cx.error(span, message);
            }
        }
        known_volumes(cx, table, &container, volumes);
        list.push(container);
    }
    if !list.is_empty() && !list.iter().any(|c| c.role == Role::Main) {
        let help = "leave `role` out of the one that the pod is for";
        cx.error_help(top.span.clone(), "none of the containers has the role `main`", help);
    }
    list
}

fn known_volumes(cx: &mut Cx<'_>, table: &Table<'_, '_>, of: &Container, volumes: &[Volume]) {
    let known: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
    let span = || table.get("mounts").map_or(table.span.clone(), Spanned::span);
    for mount in of.mounts.iter().filter(|m| !known.contains(&m.volume.as_str())) {
        let message = format!("there is no volume named `{}`", mount.volume);
        let help = match super::super::diag::nearest(&mount.volume, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("add [[volume]] with name = \"{}\"", mount.volume),
        };
        cx.error_help(span(), message, help);
    }
    let paths = of.mounts.iter().map(|m| &m.path).chain(of.tmpfs.iter().map(|t| &t.path));
    let mut seen: Vec<&str> = Vec::new();
    for path in paths.map(|p| p.trim_end_matches('/')) {
        if seen.contains(&path) {
            cx.error(span(), format!("two mounts of `{}` are at `{path}`", of.name));
        }
        seen.push(path);
    }
}

fn container(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Container> {
    let named = required(cx, table, "name").filter(|at| {
        let fine = name(&at.value);
        if !fine {
            cx.error(at.span.clone(), format!("`{}` is no container name: a-z, 0-9, -", at.value));
        }
        fine
    });
    let exec = exec(cx, table);
    let image = if table.get("exec").is_some() { None } else { image(cx, table) };
    let command = strings(cx, table, "command");
    if let (Some(c), Some(value)) = (&command, table.get("command"))
        && c.is_empty()
    {
        cx.error(value.span(), "`command` in [[container]] is empty; leave it out for the image's");
    }
    let memory_bytes = limits::memory(cx, table).unwrap_or(128 << 20);
    let cpu_milli = limits::cpu(cx, table, "cpu").unwrap_or(100);
    let container = Container {
        name: named.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        image: image.unwrap_or_default(),
        command,
        args: strings(cx, table, "args"),
        cpu_milli,
        memory_bytes,
        // In range by the bounds given.
        pids: table.integer(cx, "pids", 1, 4_194_304).unwrap_or(1024) as u32,
        env: table.map(cx, "env", env_value),
        ports: table.map(cx, "ports", port_value),
        ready: probe::probe(cx, table, "ready"),
        stop: stop(cx, table),
        caps: security::caps(cx, table),
        user: security::user(cx, table),
        workdir: table.read(cx, "workdir", workdir),
        read_only: table.boolean(cx, "read_only").unwrap_or(false),
        restart: restart(cx, table),
        role: role(cx, table),
        backoff: backoff(cx, table),
        live: probe::probe(cx, table, "live"),
        start: probe::probe(cx, table, "start"),
        cpu_max_milli: limits::cpu_max(cx, table, cpu_milli),
        memory_high_bytes: limits::memory_high(cx, table, memory_bytes),
        disk_bytes: limits::disk(cx, table),
        io: limits::io(cx, table),
        cpuset: limits::cpuset(cx, table),
        hugepages: limits::hugepages(cx, table),
        rlimits: limits::rlimits(cx, table),
        tmpfs: tmpfs(cx, table),
        mounts: mounts(cx, table),
        devices: security::devices(cx, table),
        profile: security::profile(cx, table),
        seccomp: security::seccomp(cx, table),
        init: table.boolean(cx, "init").unwrap_or(true),
        exec,
        log: log(cx, table),
        stdin: stdin(cx, table),
    };
    probe::fits_role(cx, table, &container);
    let runs = !container.image.is_empty() || container.exec.is_some();
    (named.is_some() && runs).then_some(container)
}

fn image(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    let at = required(cx, table, "image")?;
    let fine =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    let dots = at.value.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    let text = &at.value;
    if text.is_empty() || text.len() > 255 || !text.chars().all(fine) || dots {
        cx.error(at.span, format!("`{text}` is no image reference"));
        return None;
    }
    Some(at.value)
}

/// A program of the host, absolute, and its arguments: instead of an image.
fn exec(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Vec<String>> {
    let argv = strings(cx, table, "exec")?;
    let span = table.get("exec").map_or(table.span.clone(), Spanned::span);
    let Some(program) = argv.first() else {
        cx.error(
            span,
            "`exec` in [[container]] is empty: exec = [\"/usr/bin/rsync\", \"--daemon\"]",
        );
        return None;
    };
    if let Err(message) = path(program) {
        cx.error(span.clone(), format!("`exec` in [[container]]: {message}"));
    }
    for other in ["image", "command", "args", "init", "disk"] {
        if let Some(value) = table.get(other) {
            let message =
                format!("`{other}` cannot stand beside `exec`, which runs the host's own program");
            cx.error(value.span(), message);
        }
    }
    Some(argv)
}

fn role(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Role {
    let words = [("main", Role::Main), ("init", Role::Init), ("sidecar", Role::Sidecar)];
    table.word(cx, "role", &words, &[]).unwrap_or_default()
}

/// An init container that has ended well has done its part: `always` would never let the pod start, so it means
/// `on-failure` there.
fn restart(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Restart {
    let words = [
        ("always", Restart::Always),
        ("on-failure", Restart::OnFailure),
        ("never", Restart::Never),
    ];
    table.word(cx, "restart", &words, &[]).unwrap_or_default()
}

fn stdin(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Stdin {
    let words = [("none", Stdin::None), ("pipe", Stdin::Pipe), ("terminal", Stdin::Terminal)];
    table.word(cx, "stdin", &words, &[]).unwrap_or_default()
}

fn backoff(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Backoff {
    let default = Backoff::default();
    let known = ["first", "max", "reset"];
    let Some(table) = table.table(cx, "backoff", "`backoff`", &known, &[]) else { return default };
    let backoff = Backoff {
        first_ms: duration(cx, &table, "first", 10, 3_600_000).unwrap_or(default.first_ms),
        max_ms: duration(cx, &table, "max", 10, DAY_MS).unwrap_or(default.max_ms),
        reset_ms: duration(cx, &table, "reset", 0, DAY_MS).unwrap_or(default.reset_ms),
    };
    if backoff.first_ms > backoff.max_ms {
        let message = format!(
            "`backoff`: first ({}ms) is longer than max ({}ms)",
            backoff.first_ms, backoff.max_ms
        );
        cx.error(table.span.clone(), message);
    }
    backoff
}

fn stop(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Stop {
    let default = Stop { signal: None, grace_ms: 10_000 };
    let Some(stop) = table.table(cx, "stop", "`stop`", &["signal", "grace"], &[]) else {
        return default;
    };
    let signal = stop.read(cx, "signal", |text| {
        let bare = text.strip_prefix("SIG").unwrap_or(text);
        let known = SIGNALS.contains(&bare);
        known.then(|| bare.to_owned()).ok_or_else(|| format!("one of {}", SIGNALS.join(", ")))
    });
    let grace_ms = duration(cx, &stop, "grace", 0, DAY_MS).unwrap_or(default.grace_ms);
    Stop { signal, grace_ms }
}

fn workdir(text: &str) -> Result<String, String> {
    let fine = text.starts_with('/') && text.len() <= super::STRING_MAX && !text.contains('\0');
    fine.then(|| text.to_owned()).ok_or_else(|| format!("`{text}` is no absolute path"))
}

fn tmpfs(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Vec<Tmpfs> {
    let known = ["path", "size", "mode"];
    let tables = table.tables(cx, "tmpfs", "`tmpfs`", &known, &[]).unwrap_or_default();
    too_many(cx, "tmpfs", &tables);
    let mut list = Vec::new();
    for at in &tables {
        let size_bytes = size(cx, at, "size", 4096..=1 << 46).unwrap_or(64 << 20);
        let mode = at.read(cx, "mode", |text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777);
            mode.ok_or_else(|| format!("`{text}` is no mode; write `1777` or `0755`"))
        });
        if required(cx, at, "path").is_some()
            && let Some(path) = at.read(cx, "path", path)
        {
            list.push(Tmpfs { path, size_bytes, mode: mode.unwrap_or(0o1777) });
        }
    }
    list
}

fn mounts(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Vec<Mount> {
    let known = ["volume", "path", "read_only"];
    let tables = table.tables(cx, "mounts", "`mounts`", &known, &[]).unwrap_or_default();
    too_many(cx, "mounts", &tables);
    let mut list = Vec::new();
    for at in &tables {
        let volume = required(cx, at, "volume");
        let read_only = at.boolean(cx, "read_only").unwrap_or(false);
        let path = match required(cx, at, "path") {
            Some(_) => at.read(cx, "path", path),
            None => None,
        };
        if let (Some(volume), Some(path)) = (volume, path) {
            list.push(Mount { volume: volume.value, path, read_only });
        }
    }
    list
}

fn too_many(cx: &mut Cx<'_>, key: &str, tables: &[Table<'_, '_>]) {
    if let Some(extra) = tables.get(MOUNTS_MAX) {
        cx.error(extra.span.clone(), format!("`{key}` has more than {MOUNTS_MAX} entries"));
    }
}

fn log(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Log {
    let default = Log::default();
    let Some(table) = table.table(cx, "log", "`log`", &["size", "files", "rate"], &[]) else {
        return default;
    };
    Log {
        size_bytes: size(cx, &table, "size", 64 << 10..=1 << 30).unwrap_or(default.size_bytes),
        // In range by the bounds given.
        files: table.integer(cx, "files", 1, 100).map_or(default.files, |n| n as u32),
        rate_bytes_per_s: size(cx, &table, "rate", 1024..=1 << 40),
    }
}

fn env_value(cx: &mut Cx<'_>, key: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
    let fine_key = !key.is_empty() && !key.contains(['=', '\0']) && key.len() <= 255;
    if !fine_key {
        cx.error(value.span(), format!("`{key}` is no environment variable name"));
    }
    // TOML booleans and integers are taken as written: people expect `DEBUG = 1` to work.
    let text = match value.get_ref() {
        DeValue::String(s) => s.to_string(),
        DeValue::Integer(_) => integer(value.get_ref())?.to_string(),
        DeValue::Boolean(b) => b.to_string(),
        _ => {
            cx.error(value.span(), format!("environment variable `{key}` wants a string"));
            return None;
        }
    };
    if let Err(message) = template::check(&text) {
        let secret = text.contains("{{ secret.") || text.contains("{{secret.");
        if secret {
            let help = "secrets are not supported yet by this version";
            cx.error_help(value.span(), message, help);
        } else {
            cx.error(value.span(), message);
        }
        return None;
    }
    let at = At { value: text, span: value.span() };
    plain(cx, "env", &at).then_some(at.value)
}

fn port_value(cx: &mut Cx<'_>, key: &str, value: &Spanned<DeValue<'_>>) -> Option<u16> {
    if !name(key) {
        cx.error(value.span(), format!("`{key}` is no port name: a-z, 0-9, -"));
    }
    let port = integer(value.get_ref()).and_then(|n| u16::try_from(n).ok()).filter(|p| *p > 0);
    if port.is_none() {
        cx.error(value.span(), format!("port `{key}` wants a number from 1 to 65535"));
    }
    port
}
