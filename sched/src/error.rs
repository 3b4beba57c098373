//! What can be wrong with bytes from outside.

use std::fmt;

/// Why bytes were not accepted. Nothing was changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A record body or message ended inside a field.
    Truncated {
        /// What was decoded: `node record`, `offer`, ...
        what: &'static str,
    },
    /// A field is there but does not hold what its tag says.
    Field {
        /// What was decoded.
        what: &'static str,
        /// The field's tag.
        tag: u16,
    },
    /// More bytes or fields than the named bound allows.
    TooLarge {
        /// What was decoded or encoded.
        what: &'static str,
        /// Its size.
        size: usize,
        /// The bound.
        max: usize,
    },
    /// A version this build does not speak.
    Version {
        /// What was decoded.
        what: &'static str,
        /// The version found.
        found: u8,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Truncated { what } => write!(f, "{what}: ends inside a field"),
            Error::Field { what, tag } => write!(f, "{what}: field {tag} does not decode"),
            Error::TooLarge { what, size, max } => {
                write!(f, "{what}: {size} is more than the {max} allowed")
            }
            Error::Version { what, found } => {
                write!(f, "{what}: version {found} is not spoken here")
            }
        }
    }
}

impl std::error::Error for Error {}
