//! Printing: tables for people, JSON and names for programs; colours on a terminal only.

use std::io::IsTerminal as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::cli::Format;

/// One column: its heading, whether it is for `-o wide` only, and what a row has in it.
pub struct Column<T> {
    heading: &'static str,
    wide: bool,
    cell: fn(&T) -> String,
}

/// A column of every table.
pub const fn column<T>(heading: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { heading, wide: false, cell }
}

/// A column of wide tables.
pub const fn wide<T>(heading: &'static str, cell: fn(&T) -> String) -> Column<T> {
    Column { heading, wide: true, cell }
}

/// Prints a list as asked. `name` is what `-o name` prints of a row.
///
/// # Errors
/// Standard output cannot be written.
pub fn list<T: Serialize>(
    format: Format,
    rows: &[T],
    columns: &[Column<T>],
    name: fn(&T) -> String,
) -> Result<()> {
    use std::io::Write as _;
    let text = match format {
        Format::Json => serde_json::to_string_pretty(rows)? + "\n",
        Format::Name => rows.iter().map(|row| name(row) + "\n").collect(),
        Format::Table | Format::Wide => table(rows, columns, format == Format::Wide) + "\n",
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A table without borders.
pub fn table<T>(rows: &[T], columns: &[Column<T>], all: bool) -> String {
    let columns: Vec<&Column<T>> = columns.iter().filter(|c| all || !c.wide).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|c| c.heading));
    for row in rows {
        table.add_row(columns.iter().map(|c| (c.cell)(row)));
    }
    let last = columns.len().saturating_sub(1);
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if at == last { 0 } else { 2 }));
    }
    // Trailing blanks only confuse those who cut and paste.
    table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect::<String>()
        .trim_end()
        .into()
}

/// Prints one JSON value.
///
/// # Errors
/// Standard output cannot be written.
pub fn json(value: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Whether people are looking: standard error is a terminal and no wish for plain text was stated (<https://no-color.org>).
pub fn fancy() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// `12.3 MiB`.
pub fn bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{value:.1} {}", units.get(unit).unwrap_or(&"")),
    }
}

/// How long ago a moment was: `42s`, `5m`, `3h`, `2d`; `-` for none.
pub fn age(at_ms: u64) -> String {
    if at_ms == 0 {
        return "-".into();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs().saturating_sub(at_ms / 1000);
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `2025-11-20T17:03:11Z`, UTC.
pub fn time(at_ms: u64) -> String {
    // Civil date from days since 1970, proleptic Gregorian (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let seconds = at_ms / 1000;
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(1_709_210_096_000), "2024-02-29T12:34:56Z");
        assert_eq!(time(1_763_658_191_000), "2025-11-20T17:03:11Z");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
        assert_eq!(age(0), "-");
    }

    #[test]
    fn wide_columns_are_hidden_and_blanks_trimmed() {
        let columns = [column("A", |n: &u8| n.to_string()), wide("B", |_| "b".into())];
        assert_eq!(table(&[1, 22], &columns, false), "A\n1\n22");
        assert_eq!(table(&[1], &columns, true), "A  B\n1  b");
    }
}
