//! Mistakes in a spec, shown where they are.

use std::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// As given to [`Spec::parse`](crate::Spec::parse).
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// The line's text.
    pub source: String,
    /// What is wrong.
    pub message: String,
    /// What to do, when there is something to say.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake at a byte range of the text.
    pub(crate) fn at(
        file: &str,
        text: &str,
        span: std::ops::Range<usize>,
        message: String,
        help: Option<String>,
    ) -> Self {
        let start = floor(text, span.start);
        let end = floor(text, span.end).max(start);
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let source = text[line_start..line_end].trim_end_matches('\r');
        Self {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end.min(line_end).max(start)].chars().count().max(1),
            source: source.to_owned(),
            message,
            help,
        }
    }
}

/// The nearest character boundary at or before a byte offset inside the text.
fn floor(text: &str, mut at: usize) -> usize {
    at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs become one space in both lines, so that the caret stays under its text.
        let source = self.source.replace('\t', " ");
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{margin}--> {}:{}:{}", self.file, self.line, self.column)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {source}")?;
        write!(f, "{margin} | {}{}", " ".repeat(self.column - 1), "^".repeat(self.width))?;
        if let Some(help) = &self.help {
            write!(f, "\n{margin} = help: {help}")?;
        }
        Ok(())
    }
}

/// The known word nearest to a mistyped one, if it is near at all.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let bound = (word.chars().count().max(3)) / 3;
    known
        .iter()
        .map(|k| (distance(&word.to_lowercase(), k), *k))
        .filter(|(d, k)| *d <= bound || k.starts_with(&word.to_lowercase()) && word.len() > 2)
        .min()
        .map(|(_, k)| k)
}

/// Edit distance with adjacent transpositions counted once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let swap = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + swap);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typos_only() {
        let known = ["replicas", "container", "place", "update"];
        assert_eq!(nearest("replcias", &known), Some("replicas"));
        assert_eq!(nearest("replica", &known), Some("replicas"));
        assert_eq!(nearest("containers", &known), Some("container"));
        assert_eq!(nearest("banana", &known), None);
    }

    #[test]
    fn caret_stands_under_the_text() {
        let text = "a = 1\nb\u{e9} = 22\n";
        let at = text.find("22").unwrap();
        let d = Diagnostic::at("f.toml", text, at..at + 2, "no".into(), None);
        assert_eq!((d.line, d.column, d.width), (2, 6, 2));
        assert!(d.to_string().ends_with("2 | b\u{e9} = 22\n  |      ^^"), "{d}");
    }

    #[test]
    fn any_span_is_survived() {
        let text = "\u{e9}\u{e9}";
        for (a, b) in [(0, 0), (1, 3), (4, 4), (9, 12), (3, 1)] {
            let _ = Diagnostic::at("f", text, a..b, "m".into(), None).to_string();
        }
    }
}
