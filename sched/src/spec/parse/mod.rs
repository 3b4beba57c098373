//! TOML to [`Spec`].

mod container;
mod limits;
mod place;
mod probe;
mod security;

use toml::Spanned;
use toml::de::DeTable;

use super::diag::Diagnostic;
use super::fields::{At, Cx, Table};
use super::{Kind, REPLICAS_MAX, Spec, TEXT_MAX, VOLUMES_MAX, Volume, VolumeKind, units};

/// Value sizes of one string.
const STRING_MAX: usize = 4096;
const VOLUME_MIN: u64 = 4096;
const VOLUME_MAX: u64 = 1 << 46;
const DAY_MS: u64 = 86_400_000;

/// Reads a spec; every mistake at once. `stored`: keys of later versions are passed over.
pub(super) fn parse(text: &str, file: &str, stored: bool) -> Result<Spec, Vec<Diagnostic>> {
    let mut cx = Cx::new(file, text, stored);
    if text.len() > TEXT_MAX {
        let message = format!(
            "the spec has {} bytes; at most {TEXT_MAX} are allowed: put what is large (files, a long `env`) into the image",
            text.len()
        );
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
    const KNOWN: [&str; 11] = [
        "share_pid",
        "app",
        "kind",
        "replicas",
        "labels",
        "limits",
        "volume",
        "container",
        "place",
        "update",
        "partition",
    ];
    const LATER: [&str; 8] = [
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
    let limits = [("preferred", false), ("required", true)];
    let limits_required = top.word(cx, "limits", &limits, &[]).unwrap_or(false);
    let share_pid = top.boolean(cx, "share_pid").unwrap_or(false);
    let volumes = volumes(cx, &top);
    let containers = container::containers(cx, &top, &volumes);
    let place = place::place(cx, &top, kind);
    let update = place::update(cx, &top, &place);
    let partition = place::partition(cx, &top);
    let (namespace, app) = name?;
    // In range: REPLICAS_MAX fits.
    let replicas = replicas as u32;
    Some(Spec {
        namespace,
        app,
        kind,
        replicas,
        labels,
        containers,
        place,
        update,
        partition,
        volumes,
        limits_required,
        share_pid,
    })
}

fn volumes(cx: &mut Cx<'_>, top: &Table<'_, '_>) -> Vec<Volume> {
    const KNOWN: [&str; 3] = ["name", "kind", "size"];
    const LATER: [&str; 4] = ["keep", "replicas", "snapshot", "host"];
    let tables = top.tables(cx, "volume", "[[volume]]", &KNOWN, &LATER).unwrap_or_default();
    if let Some(extra) = tables.get(VOLUMES_MAX) {
        cx.error(extra.span.clone(), format!("a pod has at most {VOLUMES_MAX} volumes"));
    }
    let mut list: Vec<Volume> = Vec::new();
    for table in &tables {
        let named = required(cx, table, "name");
        let kinds = [("empty", VolumeKind::Empty)];
        let kind = table.word(cx, "kind", &kinds, &["local", "replicated"]).unwrap_or_default();
        if table.get("size").is_none() {
            let help = "size = \"64Mi\"; it is held in memory";
            cx.error_help(table.span.clone(), "`size` is missing in [[volume]]", help);
        }
        let size_bytes = size(cx, table, "size", VOLUME_MIN..=VOLUME_MAX);
        let (Some(named), Some(size_bytes)) = (named, size_bytes) else { continue };
        if !name(&named.value) {
            cx.error(named.span, format!("`{}` is no volume name: a-z, 0-9, -", named.value));
            continue;
        }
        if list.iter().any(|v| v.name == named.value) {
            cx.error(named.span, format!("two volumes are named `{}`", named.value));
            continue;
        }
        list.push(Volume { name: named.value, kind, size_bytes });
    }
    list
}

/// A size in quotes, within bounds.
fn size(
    cx: &mut Cx<'_>,
    table: &Table<'_, '_>,
    key: &str,
    bounds: std::ops::RangeInclusive<u64>,
) -> Option<u64> {
    if let Some(value) = table.get(key)
        && let Some(n) = super::fields::integer(value.get_ref())
    {
        let help = format!("with a unit: {key} = \"{n}Mi\"");
        let message = format!("`{key}` in {} wants a size in quotes", table.name);
        cx.error_help(value.span(), message, help);
        return None;
    }
    let bytes = table.read(cx, key, units::size)?;
    if !bounds.contains(&bytes) {
        let span = table.get(key).map_or(table.span.clone(), Spanned::span);
        let (min, max) = (units::show_size(*bounds.start()), units::show_size(*bounds.end()));
        let message = format!("`{key}` in {} must be between {min} and {max}", table.name);
        cx.error(span, message);
        return None;
    }
    Some(bytes)
}

/// A path inside a container: absolute, without dots.
fn path(text: &str) -> Result<String, String> {
    let dots = text.split('/').any(|part| part == "." || part == "..");
    let fine = text.starts_with('/') && text.len() <= STRING_MAX && !text.contains('\0');
    if fine && !dots && !text.trim_matches('/').is_empty() {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is no absolute path below / without dots"))
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
