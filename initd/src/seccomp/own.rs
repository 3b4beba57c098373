//! Filters that a node's owner writes. Lines of words, compiled when the node reads them:
//!
//! ```text
//! # what follows a # is for people
//! base default          # or compat, or none: everything refused
//! allow keyctl bpf
//! deny ptrace           # EPERM
//! absent io_uring_setup # ENOSYS
//! ```
//!
//! Later lines win. `allow` of a call that the base allows by its arguments (`clone`, `socket`, `ioctl`, `personality`)
//! allows it whole.

use std::fmt;

use super::table::{self, NUMBERS, Profile, Verdict};
use super::{Insn, names};

/// Longest text of a profile.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Calls without which nothing starts: a filter is loaded before the program is executed.
const NEEDED: [&str; 2] = ["execve", "exit_group"];

/// What is wrong with a profile. Nothing was compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrong {
    /// Larger than [`TEXT_BYTES_MAX`].
    TooLong,
    /// A line that begins with another word.
    Word {
        /// From 1.
        line: usize,
        /// The word.
        word: String,
    },
    /// `base` of something else, or twice, or after other lines.
    Base {
        /// From 1.
        line: usize,
    },
    /// A name that is no system call of this machine.
    Call {
        /// From 1.
        line: usize,
        /// The name.
        name: String,
    },
    /// Without this call nothing could start.
    Needs(&'static str),
    /// Allowed and refused numbers alternate more often than a filter has room for.
    TooScattered,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than 64 KiB"),
            Self::Word { line, word } => {
                write!(f, "line {line}: \"{word}\" is none of base, allow, deny, absent")
            }
            Self::Base { line } => {
                write!(f, "line {line}: base comes first, once, and is default, compat or none")
            }
            Self::Call { line, name } => {
                write!(f, "line {line}: \"{name}\" is no system call of this machine")
            }
            Self::Needs(call) => write!(f, "{call} must be allowed, or nothing starts"),
            Self::TooScattered => write!(f, "more rules than a filter has room for"),
        }
    }
}

impl std::error::Error for Wrong {}

/// Reads and compiles a profile.
///
/// # Errors
/// [`Wrong`], with the line.
pub fn compile(text: &str) -> Result<Vec<Insn>, Wrong> {
    let profile = parse(text)?;
    let program = super::compile(&profile).map_err(|_| Wrong::TooScattered)?;
    Ok(program.insns().to_vec())
}

/// What a profile says about each number.
pub(super) fn parse(text: &str) -> Result<Profile, Wrong> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Wrong::TooLong);
    }
    let mut profile: Option<Profile> = None;
    for (i, line) in text.lines().enumerate() {
        let line_number = i + 1;
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(word) = words.next() else { continue };
        if word == "base" {
            let base = match (words.next(), words.next(), &profile) {
                (Some("default"), None, None) => table::profile(false),
                (Some("compat"), None, None) => table::profile(true),
                (Some("none"), None, None) => none(),
                _ => return Err(Wrong::Base { line: line_number }),
            };
            profile = Some(base);
            continue;
        }
        let verdict = match word {
            "allow" => Verdict::Allow,
            "deny" => Verdict::Eperm,
            "absent" => Verdict::Enosys,
            other => return Err(Wrong::Word { line: line_number, word: short(other) }),
        };
        let profile = profile.get_or_insert_with(|| table::profile(false));
        for name in words {
            let slot = names::number(name).and_then(|nr| profile.get_mut(nr));
            *slot.ok_or_else(|| Wrong::Call { line: line_number, name: short(name) })? = verdict;
        }
    }
    let profile = profile.unwrap_or_else(|| table::profile(false));
    for call in NEEDED {
        if names::number(call).and_then(|nr| profile.get(nr)) != Some(&Verdict::Allow) {
            return Err(Wrong::Needs(call));
        }
    }
    Ok(profile)
}

/// Everything refused; what no kernel has is absent, as in the built-in profile.
fn none() -> Profile {
    let mut profile: Profile = [Verdict::Eperm; NUMBERS];
    let known: Vec<usize> = names::all().map(|(_, nr)| nr).collect();
    for (nr, verdict) in profile.iter_mut().enumerate() {
        if !known.contains(&nr) {
            *verdict = Verdict::Enosys;
        }
    }
    profile
}

/// Enough of a word to find it.
fn short(word: &str) -> String {
    word.chars().take(64).collect()
}
