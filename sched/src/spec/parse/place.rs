//! Where pods go and how they change: `[place]`, `[update]`, `[partition]`.

use super::super::fields::{Cx, Table};
use super::super::{Amount, Expr, Kind, Partition, Place, REPLICAS_MAX, Spread, Update, units};
use super::{DAY_MS, duration, label, required};

pub(super) fn place(cx: &mut Cx<'_>, top: &Table<'_, '_>, kind: Kind) -> Place {
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

pub(super) fn update(cx: &mut Cx<'_>, top: &Table<'_, '_>, place: &Place) -> Update {
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

pub(super) fn partition(cx: &mut Cx<'_>, top: &Table<'_, '_>) -> Partition {
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
