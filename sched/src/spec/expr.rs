//! Expressions over a node's labels: `arch == amd64`, `gen >= 3`, `disk in [ssd, nvme]`, `gpu`, `!gpu`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One expression of `place.require`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expr {
    /// Label.
    pub key: String,
    /// How it is compared.
    pub op: Op,
    /// With what; several for [`Op::In`], none for [`Op::Has`] and [`Op::HasNot`].
    pub values: Vec<String>,
}

/// Comparison of a label. An absent label satisfies only `!=` and `!key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `>=`, both sides as integers.
    Ge,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `<`
    Lt,
    /// `in [a, b]`
    In,
    /// `key`
    Has,
    /// `!key`
    HasNot,
}

impl Expr {
    /// Reads one expression.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn parse(text: &str) -> Result<Expr, String> {
        let text = text.trim();
        if let Some(key) = text.strip_prefix('!').filter(|k| !k.starts_with('=')) {
            return Ok(Expr { key: label(key)?, op: Op::HasNot, values: Vec::new() });
        }
        // Two-character operators first: `>=` also holds `>`.
        let ops = [("==", Op::Eq), ("!=", Op::Ne), (">=", Op::Ge), ("<=", Op::Le)];
        let ops = ops.into_iter().chain([(">", Op::Gt), ("<", Op::Lt)]);
        for (word, op) in ops {
            if let Some((key, value)) = text.split_once(word) {
                let value = unquote(value)?;
                let ordered = matches!(op, Op::Ge | Op::Le | Op::Gt | Op::Lt);
                if ordered && value.parse::<i64>().is_err() {
                    return Err(format!("`{word}` compares whole numbers, and `{value}` is none"));
                }
                return Ok(Expr { key: label(key)?, op, values: vec![value] });
            }
        }
        if let Some((key, list)) = text.split_once(" in ") {
            let inner = list.trim().strip_prefix('[').and_then(|l| l.strip_suffix(']'));
            let inner = inner.ok_or("`in` wants a list: `disk in [ssd, nvme]`")?;
            let values = inner.split(',').map(unquote).collect::<Result<Vec<_>, _>>()?;
            return Ok(Expr { key: label(key)?, op: Op::In, values });
        }
        if text.contains('=') {
            return Err("to compare, write `==`".to_owned());
        }
        Ok(Expr { key: label(text)?, op: Op::Has, values: Vec::new() })
    }

    /// Whether a node with these labels satisfies it.
    #[must_use]
    pub fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let have = labels.get(&self.key);
        let first = || self.values.first().map_or("", String::as_str);
        let number = |f: fn(i64, i64) -> bool| match (have.map(|h| h.parse()), first().parse()) {
            (Some(Ok(h)), Ok(v)) => f(h, v),
            _ => false,
        };
        match self.op {
            Op::Eq => have.is_some_and(|h| h == first()),
            Op::Ne => have.is_none_or(|h| h != first()),
            Op::Ge => number(|h, v| h >= v),
            Op::Le => number(|h, v| h <= v),
            Op::Gt => number(|h, v| h > v),
            Op::Lt => number(|h, v| h < v),
            Op::In => have.is_some_and(|h| self.values.contains(h)),
            Op::Has => have.is_some(),
            Op::HasNot => have.is_none(),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = match self.op {
            Op::Has => return write!(f, "{}", self.key),
            Op::HasNot => return write!(f, "!{}", self.key),
            Op::In => return write!(f, "{} in [{}]", self.key, self.values.join(", ")),
            Op::Eq => "==",
            Op::Ne => "!=",
            Op::Ge => ">=",
            Op::Le => "<=",
            Op::Gt => ">",
            Op::Lt => "<",
        };
        write!(f, "{} {op} {}", self.key, self.values.join(", "))
    }
}

fn label(text: &str) -> Result<String, String> {
    let key = text.trim();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if key.is_empty() || key.len() > 63 || !key.chars().all(fine) {
        return Err(format!("`{key}` is no label; an expression reads `arch == amd64`"));
    }
    Ok(key.to_owned())
}

fn unquote(text: &str) -> Result<String, String> {
    let text = text.trim();
    let quoted = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(text);
    if value.is_empty() || value.len() > 63 || value.contains(['=', '<', '>', '[', ']', ',']) {
        return Err(format!("`{text}` is no label value"));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn all_forms_hold_and_fail() {
        let node = labels(&[("arch", "amd64"), ("gen", "3"), ("disk", "ssd")]);
        for yes in [
            "arch == amd64",
            "arch==\"amd64\"",
            "arch != arm64",
            "gen >= 3",
            "gen <= 3",
            "gen > 2",
            "gen < 4",
            "disk in [ssd, nvme]",
            "disk",
            "!gpu",
            "gpu != a100",
        ] {
            let e = Expr::parse(yes).unwrap();
            assert!(e.holds(&node), "{yes}");
            assert_eq!(Expr::parse(&e.to_string()).unwrap(), e, "{yes} prints as it reads");
        }
        for no in
            ["arch == arm64", "gen > 3", "arch > 3", "gpu", "!disk", "disk in [hdd]", "gpu < 1"]
        {
            assert!(!Expr::parse(no).unwrap().holds(&node), "{no}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "arch = amd64", "gen > three", "a b", "disk in ssd", "arch ==", "== x"] {
            assert!(Expr::parse(bad).is_err(), "{bad}");
        }
    }
}
