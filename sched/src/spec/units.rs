//! Sizes, durations, CPUs and amounts as people write them.

use super::Amount;

/// `"256Mi"`, `"1.5Gi"`, `"500M"`, `"1024"`: bytes.
///
/// # Errors
/// What is wrong, for people.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor: u64 = match unit {
        "" | "B" => 1,
        "K" | "k" | "KB" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        "Ti" | "TiB" => 1 << 40,
        _ => return Err(format!("`{text}` is no size; write `256Mi`, `1.5Gi` or `500M`")),
    };
    scaled(number, factor)
        .ok_or_else(|| format!("`{text}` is no size; write `256Mi`, `1.5Gi` or `500M`"))
}

/// `"1500ms"`, `"2s"`, `"5m"`, `"1h"`, `"1m30s"`: milliseconds.
///
/// # Errors
/// What is wrong, for people.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no duration; write `1500ms`, `2s`, `5m` or `1m30s`");
    let mut rest = text.trim();
    let mut total = 0_u64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            _ => return Err(wrong()),
        };
        let part = scaled(number, factor).ok_or_else(wrong)?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    Ok(total)
}

/// `"0.5"`, `"2"`: thousandths of a CPU; what is finer is cut off.
pub(super) fn cpu_milli(text: &str) -> Option<u64> {
    scaled(text.trim(), 1000)
}

/// `"10%"` or `"2"`.
///
/// # Errors
/// What is wrong, for people.
pub fn amount(text: &str) -> Result<Amount, String> {
    let wrong = || format!("`{text}` is neither a number of replicas nor a share like `10%`");
    match text.trim().strip_suffix('%') {
        Some(share) => match share.trim().parse() {
            Ok(percent) if percent <= 100 => Ok(Amount::Percent(percent)),
            _ => Err(wrong()),
        },
        None => text.trim().parse().map(Amount::Count).map_err(|_| wrong()),
    }
}

/// `256Mi`: bytes for people, in the largest binary unit that keeps it short.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")] {
        if bytes >> shift != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
        // Large and not even: one decimal is enough.
        if bytes >> shift >= 1 && shift >= 20 {
            return format!("{:.1}{unit}", bytes as f64 / (1_u64 << shift) as f64);
        }
    }
    format!("{bytes}B")
}

/// `0.5`: CPUs for people.
#[must_use]
pub fn show_cpu(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim())
}

/// A decimal number times a factor, exactly; `None` when it is no number, does not fit, or has more than
/// nine decimals.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || part.len() > 9 || number.ends_with('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let part = if part.is_empty() {
        0
    } else {
        let value = u128::from(part.parse::<u64>().ok()?) * u128::from(factor);
        u64::try_from(value / 10_u128.pow(part.len() as u32)).ok()?
    };
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("256Mi", 256 << 20),
            ("1.5Gi", 3 << 29),
            ("500M", 500_000_000),
            ("12", 12),
            ("1 KiB", 1024),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in
            ["", "Mi", "12X", "-1Mi", "1.", ".5Gi", "99999999999Ti", "1.0000000000Gi", "1,5Gi"]
        {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(show_size(256 << 20), "256Mi");
        assert_eq!(show_size(3 << 29), "1.5Gi");
        assert_eq!(show_size(1000), "1000B");
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("1500ms", 1500), ("2s", 2000), ("1.5s", 1500), ("1m30s", 90_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration_ms(text), Ok(ms), "{text}");
        }
        for bad in ["", "2", "s", "2 fortnights", "-1s", "1s2"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts() {
        assert_eq!(amount("10%"), Ok(Amount::Percent(10)));
        assert_eq!(amount("2"), Ok(Amount::Count(2)));
        assert!(amount("110%").is_err() && amount("x").is_err() && amount("-1").is_err());
        assert_eq!(Amount::Percent(10).of(6), 1, "rounded up");
        assert_eq!(Amount::Percent(0).of(6), 0);
    }

    #[test]
    fn cpus() {
        assert_eq!(show_cpu(500), "0.5");
        assert_eq!(show_cpu(2000), "2");
        assert_eq!(show_cpu(1), "0.001");
    }
}
