//! Typed reading of TOML tables that collects every mistake with its place.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diag::nearest;
use super::{Diagnostic, ENTRIES_MAX};

/// Mistakes reported of one spec; the rest would be noise.
pub(super) const DIAGNOSTICS_MAX: usize = 50;

/// Collects the mistakes of one text.
pub(super) struct Cx<'t> {
    pub(super) file: &'t str,
    pub(super) text: &'t str,
    /// The text was accepted before: keys that are not known are passed over.
    pub(super) stored: bool,
    errors: Vec<(usize, Diagnostic)>,
}

/// A value and where it stands.
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

impl<'t> Cx<'t> {
    pub(super) fn new(file: &'t str, text: &'t str, stored: bool) -> Self {
        Self { file, text, stored, errors: Vec::new() }
    }

    pub(super) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.report(span, message.into(), None);
    }

    pub(super) fn error_help(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.report(span, message.into(), Some(help.into()));
    }

    fn report(&mut self, span: Range<usize>, message: String, help: Option<String>) {
        let at = span.start;
        self.errors.push((at, Diagnostic::at(self.file, self.text, span, message, help)));
    }

    /// The mistakes in the order of the text.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        self.errors.sort_by_key(|(at, _)| *at);
        self.errors.truncate(DIAGNOSTICS_MAX);
        self.errors.into_iter().map(|(_, d)| d).collect()
    }
}

/// One table of the spec.
pub(super) struct Table<'a, 'i> {
    /// As a person would name it: `[update]`.
    pub(super) name: &'static str,
    pub(super) span: Range<usize>,
    entries: &'a DeTable<'i>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// Takes a table whose keys must be among `known`; those in `later` are of a version to come.
    pub(super) fn new(
        cx: &mut Cx<'_>,
        name: &'static str,
        span: Range<usize>,
        entries: &'a DeTable<'i>,
        known: &[&str],
        later: &[&str],
    ) -> Self {
        for (key, _) in entries {
            let word: &str = key.get_ref();
            if cx.stored || known.contains(&word) {
                continue;
            }
            if later.contains(&word) {
                cx.error(
                    key.span(),
                    format!("`{word}` in {name} is not supported yet by this version"),
                );
                continue;
            }
            let all: Vec<&str> = known.iter().chain(later).copied().collect();
            let help = match nearest(word, &all) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            cx.error_help(key.span(), format!("unknown key `{word}` in {name}"), help);
        }
        Self { name, span, entries }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        self.entries.iter().find(|(k, _)| k.get_ref() == key).map(|(_, v)| v)
    }

    /// A mistake of type: what was wanted, what is there.
    fn wrong(&self, cx: &mut Cx<'_>, key: &str, value: &Spanned<DeValue<'_>>, want: &str) {
        let found = kind(value.get_ref());
        cx.error(value.span(), format!("`{key}` in {} wants {want}, not {found}", self.name));
    }

    pub(super) fn string(&self, cx: &mut Cx<'_>, key: &str) -> Option<At<String>> {
        let value = self.get(key)?;
        match value.get_ref().as_str() {
            Some(s) => Some(At { value: s.to_owned(), span: value.span() }),
            None => {
                self.wrong(cx, key, value, "a string");
                None
            }
        }
    }

    pub(super) fn boolean(&self, cx: &mut Cx<'_>, key: &str) -> Option<bool> {
        let value = self.get(key)?;
        if value.get_ref().as_bool().is_none() {
            self.wrong(cx, key, value, "true or false");
        }
        value.get_ref().as_bool()
    }

    /// A whole number in a range.
    pub(super) fn integer(&self, cx: &mut Cx<'_>, key: &str, min: u64, max: u64) -> Option<u64> {
        let value = self.get(key)?;
        let Some(n) = integer(value.get_ref()) else {
            self.wrong(cx, key, value, "a whole number");
            return None;
        };
        if n < i128::from(min) || n > i128::from(max) {
            let message = format!("`{key}` in {} must be between {min} and {max}", self.name);
            cx.error(value.span(), message);
            return None;
        }
        u64::try_from(n).ok()
    }

    /// A string that `read` understands.
    pub(super) fn read<T>(
        &self,
        cx: &mut Cx<'_>,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let at = self.string(cx, key)?;
        match read(&at.value) {
            Ok(value) => Some(value),
            Err(message) => {
                cx.error(at.span, format!("`{key}` in {}: {message}", self.name));
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        cx: &mut Cx<'_>,
        key: &str,
        words: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let at = self.string(cx, key)?;
        if let Some((_, value)) = words.iter().find(|(w, _)| *w == at.value) {
            return Some(*value);
        }
        let known: Vec<&str> = words.iter().map(|(w, _)| *w).collect();
        if later.contains(&at.value.as_str()) {
            let message =
                format!("`{key} = \"{}\"` is not supported yet by this version", at.value);
            cx.error_help(at.span, message, format!("this version knows {}", known.join(", ")));
            return None;
        }
        let help = match nearest(&at.value, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("one of {}", known.join(", ")),
        };
        cx.error_help(at.span, format!("`{key}` in {} cannot be `{}`", self.name, at.value), help);
        None
    }

    /// A list of strings.
    pub(super) fn strings(&self, cx: &mut Cx<'_>, key: &str) -> Option<Vec<At<String>>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(cx, key, value, "a list of strings");
            return None;
        };
        if array.len() > ENTRIES_MAX {
            cx.error(
                value.span(),
                format!("`{key}` in {} has more than {ENTRIES_MAX} entries", self.name),
            );
            return None;
        }
        let mut list = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_str() {
                Some(s) => list.push(At { value: s.to_owned(), span: item.span() }),
                None => self.wrong(cx, key, item, "strings"),
            }
        }
        Some(list)
    }

    /// A table whose keys are the operator's own; `read` takes each value.
    pub(super) fn map<T>(
        &self,
        cx: &mut Cx<'_>,
        key: &str,
        mut read: impl FnMut(&mut Cx<'_>, &str, &Spanned<DeValue<'_>>) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        let Some(value) = self.get(key) else { return map };
        let Some(table) = value.get_ref().as_table() else {
            self.wrong(cx, key, value, "a table like { name = … }");
            return map;
        };
        if table.len() > ENTRIES_MAX {
            cx.error(
                value.span(),
                format!("`{key}` in {} has more than {ENTRIES_MAX} entries", self.name),
            );
            return map;
        }
        for (name, item) in table {
            if let Some(v) = read(cx, name.get_ref(), item) {
                map.insert(name.get_ref().to_string(), v);
            }
        }
        map
    }

    /// A table of this table.
    pub(super) fn table(
        &self,
        cx: &mut Cx<'_>,
        key: &str,
        name: &'static str,
        known: &[&str],
        later: &[&str],
    ) -> Option<Table<'a, 'i>> {
        let value = self.get(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Table::new(cx, name, value.span(), table, known, later)),
            None => {
                self.wrong(cx, key, value, "a table");
                None
            }
        }
    }

    /// A list of tables.
    pub(super) fn tables(
        &self,
        cx: &mut Cx<'_>,
        key: &str,
        name: &'static str,
        known: &[&str],
        later: &[&str],
    ) -> Option<Vec<Table<'a, 'i>>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else {
            let want = format!("a list of tables: write `[[{key}]]`");
            self.wrong(cx, key, value, &want);
            return None;
        };
        let mut list = Vec::new();
        for item in array.iter() {
            match item.get_ref().as_table() {
                Some(table) => list.push(Table::new(cx, name, item.span(), table, known, later)),
                None => self.wrong(cx, key, item, "tables"),
            }
        }
        Some(list)
    }
}

/// A TOML integer in any radix.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    // The parser keeps sign and digits as written; underscores are gone in neither.
    let digits: String = number.as_str().chars().filter(|c| *c != '_').collect();
    let digits = digits.strip_prefix('+').unwrap_or(&digits);
    i128::from_str_radix(digits, number.radix()).ok()
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
