//! Limits of a container: CPU, memory, disk, CPUs, huge pages, and those of its processes.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeValue;

use super::super::diag::nearest;
use super::super::fields::{Cx, Table, integer};
use super::super::{Io, RLIMITS, Rlimit, units};
use super::size;

const CPU_MILLI_MAX: u64 = 1_024_000;
const MEMORY_MIN: u64 = 1 << 20;
const MEMORY_MAX: u64 = 1 << 46;
const DISK_MIN: u64 = 1 << 20;
const DISK_MAX: u64 = 1 << 46;
/// CPUs that a kernel can number.
const CPUS_MAX: u64 = 8192;
const RATE_MAX: u64 = 1 << 50;

pub(super) fn cpu(cx: &mut Cx<'_>, table: &Table<'_, '_>, key: &str) -> Option<u64> {
    let value = table.get(key)?;
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
            let message =
                format!("`{key}` in [[container]] wants CPUs from 0.001 to 1024: `0.5`, `2`");
            cx.error(value.span(), message);
            None
        }
    }
}

pub(super) fn cpu_max(cx: &mut Cx<'_>, table: &Table<'_, '_>, cpu_milli: u64) -> Option<u64> {
    let max = cpu(cx, table, "cpu_max")?;
    if max < cpu_milli.min(10) || max < cpu_milli {
        let span = table.get("cpu_max").map_or(table.span.clone(), Spanned::span);
        cx.error(span, "`cpu_max` in [[container]] is less than its `cpu`");
        return None;
    }
    Some(max)
}

pub(super) fn memory(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<u64> {
    size(cx, table, "memory", MEMORY_MIN..=MEMORY_MAX)
}

pub(super) fn memory_high(cx: &mut Cx<'_>, table: &Table<'_, '_>, memory: u64) -> Option<u64> {
    let high = size(cx, table, "memory_high", MEMORY_MIN..=MEMORY_MAX)?;
    if high > memory {
        let span = table.get("memory_high").map_or(table.span.clone(), Spanned::span);
        let message =
            "`memory_high` in [[container]] is more than its `memory`: it would never be reached";
        cx.error(span, message);
        return None;
    }
    Some(high)
}

pub(super) fn disk(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<u64> {
    size(cx, table, "disk", DISK_MIN..=DISK_MAX)
}

pub(super) fn io(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Io {
    let known = ["read", "write", "read_ops", "write_ops", "weight"];
    let Some(table) = table.table(cx, "io", "`io`", &known, &[]) else { return Io::default() };
    Io {
        read_bytes_per_s: size(cx, &table, "read", 4096..=RATE_MAX),
        write_bytes_per_s: size(cx, &table, "write", 4096..=RATE_MAX),
        read_ops_per_s: table.integer(cx, "read_ops", 1, 1 << 32),
        write_ops_per_s: table.integer(cx, "write_ops", 1, 1 << 32),
        // In range by the bounds given.
        weight: table.integer(cx, "weight", 1, 10_000).map(|n| n as u32),
    }
}

pub(super) fn cpuset(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> Option<String> {
    table.read(cx, "cpuset", |text| {
        let wrong = || format!("`{text}` is no list of CPUs; write `0-3,8`");
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |n: &str| {
                let digits = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
                n.parse::<u64>().ok().filter(|n| digits && *n < CPUS_MAX)
            };
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => {}
                _ => return Err(wrong()),
            }
        }
        Ok(text.to_owned())
    })
}

pub(super) fn hugepages(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> BTreeMap<String, u64> {
    let pages = ["2Mi", "1Gi"];
    table.map(cx, "hugepages", |cx, page, value| {
        let Ok(page_bytes) = units::size(page).map_err(drop) else {
            cx.error(
                value.span(),
                format!("`{page}` is no size of huge pages; there are 2Mi, 1Gi"),
            );
            return None;
        };
        if !pages.contains(&page) {
            cx.error(value.span(), format!("no huge pages have {page}; there are 2Mi, 1Gi"));
            return None;
        }
        let text = value.get_ref().as_str().unwrap_or_default();
        match units::size(text) {
            Ok(bytes) if bytes > 0 && bytes % page_bytes == 0 && bytes <= MEMORY_MAX => Some(bytes),
            _ => {
                let help = format!("hugepages = {{ \"{page}\" = \"{page}\" }}");
                let message = format!("`hugepages.{page}` wants a multiple of {page} in quotes");
                cx.error_help(value.span(), message, help);
                None
            }
        }
    })
}

pub(super) fn rlimits(cx: &mut Cx<'_>, table: &Table<'_, '_>) -> BTreeMap<String, Rlimit> {
    let names = RLIMITS.map(|(name, _)| name);
    table.map(cx, "rlimits", |cx, name, value| {
        if !names.contains(&name) {
            let message = format!("`{name}` is no limit of processes");
            let help = match nearest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("one of {}", names.join(", ")),
            };
            cx.error_help(value.span(), message, help);
            return None;
        }
        let limit = match value.get_ref() {
            DeValue::Integer(_) => integer(value.get_ref())
                .and_then(|n| u64::try_from(n).ok())
                .map(|n| Rlimit { soft: n, hard: n }),
            DeValue::String(text) => rlimit(text),
            _ => None,
        };
        if limit.is_none() {
            let message = format!(
                "`rlimits.{name}` wants a number, \"unlimited\" or \"SOFT:HARD\" with SOFT not above HARD"
            );
            cx.error(value.span(), message);
        }
        limit
    })
}

fn rlimit(text: &str) -> Option<Rlimit> {
    let one = |t: &str| match t {
        "unlimited" => Some(u64::MAX),
        _ => t.parse().ok(),
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let limit = Rlimit { soft: one(soft)?, hard: one(hard)? };
    (limit.soft <= limit.hard).then_some(limit)
}
