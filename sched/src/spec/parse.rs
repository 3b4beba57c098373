//! TOML to [`Spec`].

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diag::Diagnostic;
use super::fields::{At, Cx, Table, integer};
use super::{
    Amount, CONTAINERS_MAX, Check, Container, Expr, Kind, Partition, Place, Probe, REPLICAS_MAX,
    Restart, Spec, Spread, Stop, TEXT_MAX, Update, template, units,
};

/// Value sizes of one string.
const STRING_MAX: usize = 4096;
const CPU_MILLI_MAX: u64 = 1_024_000;
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_MAX: u64 = 1 << 46;
const DAY_MS: u64 = 86_400_000;

const SIGNALS: [&str; 9] = ["TERM", "QUIT", "INT", "HUP", "USR1", "USR2", "WINCH", "KILL", "PWR"];

/// Every capability of Linux 6.12, without `CAP_`.
const CAPS: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Reads a spec; every mistake at once.
pub(super) fn parse(text: &str, file: &str) -> Result<Spec, Vec<Diagnostic>> {
    let mut cx = Cx::new(file, text);
    if text.len() > TEXT_MAX {
        let message = format!("the spec has {} bytes; at most {TEXT_MAX} are allowed", text.len());
        cx.error(0..0, message);
        return Err(cx.finish());
    }
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What a broken line did to its neighbours would be noise: syntax first.
        for e in errors {
            cx.error(e.span().unwrap_or(0..0), e.message().trim());
        }
        return Err(cx.finish());
    }
    let spec = whole(&mut cx, root.get_ref());
    let errors = cx.finish();
    match spec {
        Some(spec) if errors.is_empty() => Ok(spec),
        _ => Err(errors),
    }
}

fn whole(cx: &mut Cx<'_>, root: &DeTable<'_>) -> Option<Spec> {
    const KNOWN: [&str; 8] =
        ["app", "kind", "replicas", "labels", "container", "place", "update", "partition"];
    const LATER: [&str; 9] = [
        "volume",
        "service",
        "scale",
        "metrics",
        "completions",
        "parallelism",
        "retries",
        "schedule",
        "exec",
    ];
    let top = Table::new(cx, "the spec", 0..0, root, &KNOWN, &LATER);
    let name = app_name(cx, &top);
    let kinds = [("service", Kind::Service), ("daemon", Kind::Daemon)];
    let kind = top.word(cx, "kind", &kinds, &["batch", "cron", "singleton"]).unwrap_or_default();
    let replicas = top.integer(cx, "replicas", 0, u64::from(REPLICAS_MAX)).unwrap_or(1);
    if kind == Kind::Daemon
        && let Some(value) = top.get("replicas")
    {
        cx.error(value.span(), "a daemon has no `replicas`: it runs once on every node");
    }
    let labels = top.map(cx, "labels", |cx, key, value| {
        let text = value.get_ref().as_str();
        if !label(key) || !text.is_some_and(label) {
            cx.error(
                value.span(),
                format!("label `{key}` wants a string of letters, digits, `-_./`"),
            );
        }
        text.map(str::to_owned)
    });
    let containers = containers(cx, &top);
    let place = place(cx, &top, kind);
    let update = update(cx, &top, &place);
    let partition = partition(cx, &top);
    let (namespace, app) = name?;
    // In range: REPLICAS_MAX fits.
    let replicas = replicas as u32;
    Some(Spec { namespace, app, kind, replicas, labels, containers, place, update, partition })
}

fn app_name(cx: &mut Cx<'_>, top: &Table<'_, '_>) -> Option<(String, String)> {
    if top.get("app").is_none() {
        cx.error_help(0..0, "`app` is missing", "name it: app = \"shop/web\"");
        return None;
    }
    let At { value, span } = top.string(cx, "app")?;
    let (namespace, app) = value.split_once('/').unwrap_or(("default", &value));
    if !name(namespace) || !name(app) {
        let help = "each of the two is 1 to 63 of a-z, 0-9 and -, neither first nor last a -";
        cx.error_help(span, format!("`{value}` is no app name; write `web` or `shop/web`"), help);
        return None;
    }
    Some((namespace.to_owned(), app.to_owned()))
}

fn containers(cx: &mut Cx<'_>, top: &Table<'_, '_>) -> Vec<Container> {
    const KNOWN: [&str; 16] = [
        "name",
        "image",
        "command",
        "args",
        "cpu",
        "memory",
        "pids",
        "env",
        "ports",
        "ready",
        "stop",
        "caps",
        "user",
        "workdir",
        "read_only",
        "restart",
    ];
    const LATER: [&str; 6] = ["disk", "mounts", "live", "sidecar", "init", "exec"];
    if top.get("container").is_none() {
        cx.error_help(0..0, "there is no `[[container]]`", "add one with `name` and `image`");
        return Vec::new();
    }
    let tables = top.tables(cx, "container", "[[container]]", &KNOWN, &LATER).unwrap_or_default();
    if tables.len() > CONTAINERS_MAX
        && let Some(extra) = tables.get(CONTAINERS_MAX)
    {
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
        list.push(container);
    }
    list
}

fn container(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Container> {
    let named = required(cx, table, "name").filter(|at| {
        let fine = name(&at.value);
        if !fine {
            cx.error(at.span.clone(), format!("`{}` is no container name: a-z, 0-9, -", at.value));
        }
        fine
    });
    let image = required(cx, table, "image").filter(|at| {
        let fine = image(&at.value);
        if !fine {
            cx.error(at.span.clone(), format!("`{}` is no image reference", at.value));
        }
        fine
    });
    let command = strings(cx, table, "command");
    if let (Some(c), Some(value)) = (&command, table.get("command"))
        && c.is_empty()
    {
        cx.error(value.span(), "`command` in [[container]] is empty; leave it out for the image's");
    }
    let cpu_milli = cpu(cx, table).unwrap_or(100);
    let memory_bytes = memory(cx, table).unwrap_or(128 << 20);
    // In range by the bounds given.
    let pids = table.integer(cx, "pids", 1, 4_194_304).unwrap_or(1024) as u32;
    let container = Container {
        name: named.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        image: image.as_ref().map(|at| at.value.clone()).unwrap_or_default(),
        command,
        args: strings(cx, table, "args"),
        cpu_milli,
        memory_bytes,
        pids,
        env: table.map(cx, "env", env_value),
        ports: table.map(cx, "ports", port_value),
        ready: ready(cx, table),
        stop: stop(cx, table),
        caps: caps(cx, table),
        user: user(cx, table),
        workdir: workdir(cx, table),
        read_only: table.boolean(cx, "read_only").unwrap_or(false),
        restart: restart(cx, table),
    };
    (named.is_some() && image.is_some()).then_some(container)
}

fn restart(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Restart {
    let words = [
        ("always", Restart::Always),
        ("on-failure", Restart::OnFailure),
        ("never", Restart::Never),
    ];
    table.word(cx, "restart", &words, &[]).unwrap_or_default()
}

fn required(cx: &mut Cx<'_>, table: &Table<'_, '_>, key: &str) -> Option<At<String>> {
    if table.get(key).is_none() {
        cx.error(table.span.clone(), format!("`{key}` is missing in {}", table.name));
        return None;
    }
    table.string(cx, key)
}

fn strings(cx: &mut Cx<'_>, table: &Table<'_, '_>, key: &str) -> Option<Vec<String>> {
    let list = table.strings(cx, key)?;
    for item in &list {
        plain(cx, key, item);
    }
    Some(list.into_iter().map(|at| at.value).collect())
}

/// A string that can be an argument or a path: no NUL, bounded.
fn plain(cx: &mut Cx<'_>, key: &str, at: &At<String>) -> bool {
    let fine = at.value.len() <= STRING_MAX && !at.value.contains('\0');
    if !fine {
        let message = format!("`{key}`: at most {STRING_MAX} bytes and no NUL");
        cx.error(at.span.clone(), message);
    }
    fine
}

fn cpu(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<u64> {
    let value = table.get("cpu")?;
    let text = match value.get_ref() {
        DeValue::Integer(n) => n.as_str().to_owned(),
        DeValue::Float(n) => n.as_str().to_owned(),
        DeValue::String(s) => s.to_string(),
        _ => String::new(),
    };
    let text = text.replace('_', "");
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse().ok(),
        None => units::cpu_milli(&text),
    };
    match milli {
        Some(milli) if (1..=CPU_MILLI_MAX).contains(&milli) => Some(milli),
        _ => {
            let message = "`cpu` in [[container]] wants CPUs from 0.001 to 1024: `0.5`, `2`";
            cx.error(value.span(), message);
            None
        }
    }
}

fn memory(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<u64> {
    if let Some(value) = table.get("memory")
        && let Some(n) = integer(value.get_ref())
    {
        let help = format!("with a unit: memory = \"{n}Mi\"");
        cx.error_help(value.span(), "`memory` in [[container]] wants a size in quotes", help);
        return None;
    }
    let bytes = table.read(cx, "memory", units::size)?;
    if !(MEMORY_MIN..=MEMORY_MAX).contains(&bytes) {
        let span = table.get("memory").map_or(table.span.clone(), Spanned::span);
        cx.error(span, "`memory` in [[container]] must be between 1Mi and 64Ti");
        return None;
    }
    Some(bytes)
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
        let help = if secret { "secrets are not supported yet by this version" } else { "" };
        if help.is_empty() {
            cx.error(value.span(), message);
        } else {
            cx.error_help(value.span(), message, help);
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

fn ready(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Probe> {
    let known = ["http", "tcp", "every", "timeout", "fail"];
    let probe = table.table(cx, "ready", "`ready`", &known, &["exec", "start_grace"])?;
    let http = probe.read(cx, "http", |text| {
        let (port, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        let path = if path.is_empty() { "/" } else { path };
        let clean = path.len() <= 1024 && path.chars().all(|c| c.is_ascii_graphic());
        if !clean {
            return Err("a path of printable ASCII, at most 1024 bytes".to_owned());
        }
        Ok(Check::Http { port: probe_port(port)?, path: path.to_owned() })
    });
    let tcp = probe.read(cx, "tcp", |text| Ok(Check::Tcp { port: probe_port(text)? }));
    let every_ms = duration(cx, &probe, "every", 100, DAY_MS).unwrap_or(2_000);
    let timeout_ms = duration(cx, &probe, "timeout", 10, 600_000).unwrap_or(1_000);
    // In range by the bounds given.
    let fail = probe.integer(cx, "fail", 1, 1000).unwrap_or(3) as u32;
    let both = (probe.get("http").is_some(), probe.get("tcp").is_some());
    if both == (true, true) || both == (false, false) {
        cx.error(
            probe.span.clone(),
            "`ready` wants one of `http = \":80/path\"` or `tcp = \":80\"`",
        );
    }
    let check = http.or(tcp)?;
    Some(Probe { check, every_ms, timeout_ms, fail })
}

fn probe_port(text: &str) -> Result<u16, String> {
    let port = text.strip_prefix(':').and_then(|p| p.parse().ok()).filter(|p| *p > 0);
    port.ok_or_else(|| format!("`{text}` is no port; write `:80`"))
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

fn caps(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Vec<String>> {
    let mut caps = Vec::new();
    for at in table.strings(cx, "caps")? {
        let upper = at.value.to_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if CAPS.contains(&bare) {
            caps.push(bare.to_owned());
            continue;
        }
        let message = format!("`{}` is no capability", at.value);
        match near_cap(bare) {
            Some(near) => cx.error_help(at.span, message, format!("did you mean `{near}`?")),
            None => cx.error(at.span, message),
        }
    }
    caps.sort();
    caps.dedup();
    Some(caps)
}

fn near_cap(bare: &str) -> Option<String> {
    let lower: Vec<String> = CAPS.iter().map(|c| c.to_lowercase()).collect();
    let refs: Vec<&str> = lower.iter().map(String::as_str).collect();
    super::diag::nearest(bare, &refs).map(str::to_uppercase)
}

fn user(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.read(cx, "user", |text| {
        let part = |p: &str| {
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !p.is_empty() && p.len() <= 64 && p.chars().all(fine)
        };
        let (user, group) = text.split_once(':').unwrap_or((text, "0"));
        if part(user) && part(group) {
            Ok(text.to_owned())
        } else {
            Err(format!("`{text}` is no user; write `1000`, `www` or `1000:1000`"))
        }
    })
}

fn workdir(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.read(cx, "workdir", |text| {
        let fine = text.starts_with('/') && text.len() <= STRING_MAX && !text.contains('\0');
        fine.then(|| text.to_owned()).ok_or_else(|| format!("`{text}` is no absolute path"))
    })
}

fn place(cx: &mut Cx<'_>, top: &Table<'_, '_>, kind: Kind) -> Place {
    let later = ["prefer", "near", "avoid"];
    let table = top.table(cx, "place", "[place]", &["require", "spread", "unique"], &later);
    let default_spread =
        || ["row", "rack"].map(|by| Spread { by: by.into(), max_skew: 1, hard: false });
    let Some(table) = table else {
        return Place { spread: default_spread().into(), ..Place::default() };
    };
    let mut require = Vec::new();
    for at in table.strings(cx, "require").unwrap_or_default() {
        match Expr::parse(&at.value) {
            Ok(expr) => require.push(expr),
            Err(message) => cx.error(at.span, message),
        }
    }
    let spread = match table.tables(cx, "spread", "`spread`", &["by", "max_skew", "mode"], &[]) {
        None => default_spread().into(),
        Some(tables) => tables.iter().filter_map(|t| spread(cx, t)).collect(),
    };
    let unique_host =
        table.word(cx, "unique", &[("host", true), ("none", false)], &["rack", "row"]);
    if kind == Kind::Daemon {
        for key in ["spread", "unique"] {
            if let Some(value) = table.get(key) {
                cx.error(
                    value.span(),
                    format!("a daemon has no `{key}`: it runs once on every node"),
                );
            }
        }
    }
    Place { require, spread, unique_host: unique_host.unwrap_or(false) }
}

fn spread(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<Spread> {
    let by = required(cx, table, "by")?;
    if !label(&by.value) {
        cx.error(by.span, format!("`{}` is no label", by.value));
        return None;
    }
    // In range by the bounds given.
    let max_skew = table.integer(cx, "max_skew", 1, 1000).unwrap_or(1) as u32;
    let hard = table.word(cx, "mode", &[("hard", true), ("soft", false)], &[]).unwrap_or(false);
    Some(Spread { by: by.value, max_skew, hard })
}

fn update(cx: &mut Cx<'_>, top: &Table<'_, '_>, place: &Place) -> Update {
    let known = ["max_unavailable", "max_surge"];
    let table = top.table(cx, "update", "[update]", &known, &["canary", "auto_rollback"]);
    let default = Amount::Percent(10);
    let Some(table) = table else {
        return Update { max_unavailable: default, max_surge: default };
    };
    let update = Update {
        max_unavailable: amount(cx, &table, "max_unavailable").unwrap_or(default),
        max_surge: amount(cx, &table, "max_surge").unwrap_or(default),
    };
    let none = |a: Amount| matches!(a, Amount::Count(0) | Amount::Percent(0));
    if none(update.max_unavailable) && none(update.max_surge) {
        let message =
            "with neither `max_unavailable` nor `max_surge` nothing could ever be updated";
        cx.error(table.span.clone(), message);
    }
    if none(update.max_unavailable) && place.unique_host {
        let message =
            "`unique = \"host\"` with `max_unavailable = 0` can only update onto spare nodes";
        cx.error_help(table.span.clone(), message, "allow max_unavailable = 1");
    }
    update
}

fn amount(cx: &mut Cx<'_>, table: &Table<'_, '_>, key: &str) -> Option<Amount> {
    if table.get(key).is_some_and(|v| v.get_ref().as_integer().is_some()) {
        let n = table.integer(cx, key, 0, u64::from(REPLICAS_MAX))?;
        // In range: REPLICAS_MAX fits.
        return Some(Amount::Count(n as u32));
    }
    table.read(cx, key, units::amount)
}

fn partition(cx: &mut Cx<'_>, top: &Table<'_, '_>) -> Partition {
    let floor = 1_500;
    let known = ["replace_after", "minority", "reconcile"];
    let Some(table) = top.table(cx, "partition", "[partition]", &known, &[]) else {
        return Partition { replace_after_ms: floor };
    };
    let replace_after_ms = duration(cx, &table, "replace_after", floor, DAY_MS).unwrap_or(floor);
    table.word(cx, "minority", &[("keep", ())], &["stop"]);
    table.word(cx, "reconcile", &[("oldest", ())], &["newest"]);
    Partition { replace_after_ms }
}

fn duration(
    cx: &mut Cx<'_>,
    table: &Table<'_, '_>,
    key: &str,
    min_ms: u64,
    max_ms: u64,
) -> Option<u64> {
    table.read(cx, key, |text| {
        let ms = units::duration_ms(text)?;
        if (min_ms..=max_ms).contains(&ms) {
            return Ok(ms);
        }
        Err(format!("must be between {min_ms}ms and {max_ms}ms"))
    })
}

/// A DNS label.
fn name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = !text.starts_with('-') && !text.ends_with('-');
    !text.is_empty() && text.len() <= 63 && text.chars().all(fine) && ends
}

fn label(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    !text.is_empty() && text.len() <= 63 && text.chars().all(fine)
}

fn image(text: &str) -> bool {
    let fine =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    let dots = text.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    !text.is_empty() && text.len() <= 255 && text.chars().all(fine) && !dots
}
