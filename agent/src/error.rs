//! What can go wrong in the agent's own work. Errors of the crates that it wires are carried whole.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error of the agent. Each variant says what was attempted, on what, and why it failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed; nothing valid was left behind.
    Io {
        /// What was attempted: `read`, `write`, ...
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A credential file has the wrong content.
    Credential {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or key could not be made or read.
    Certificate {
        /// The library's reason.
        reason: String,
    },
    /// The node's configuration has a wrong key or value.
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where known.
        reason: String,
    },
    /// A name that may not name a node, an operator or a flock.
    Name {
        /// The name.
        name: String,
    },
    /// A directory holds a flock already; it was left as it is.
    FlockExists {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel gave no random bytes.
    Random,
    /// A signature does not verify, or its key belongs to no operator of this flock.
    Untrusted {
        /// What was refused and why.
        reason: String,
    },
    /// A message has more bytes than allowed, or is not what its version says.
    Malformed {
        /// What it was meant to be.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// A TLS configuration was refused.
    Tls(rustls::Error),
    /// No connection to a node's API came up; nothing was asked.
    Unreachable {
        /// The endpoint, as given.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// Talking to a node's API failed.
    Request {
        /// The endpoint, as given.
        endpoint: String,
        /// What was asked: method and path.
        what: String,
        /// Why it failed.
        reason: String,
    },
    /// A node answered with an error.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The node's words.
        message: String,
    },
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    pub(crate) fn cert(error: rcgen::Error) -> Self {
        Self::Certificate { reason: error.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { operation, path, source } => {
                write!(f, "cannot {operation} {}: {source}", path.display())
            }
            Self::Credential { path, reason } => write!(f, "{}: {reason}", path.display()),
            Self::Certificate { reason } => write!(f, "certificate: {reason}"),
            Self::Config { path, reason } => write!(f, "{}: {reason}", path.display()),
            Self::Name { name } => write!(
                f,
                "{name:?} cannot be a name: 1 to 63 of a-z, 0-9 and '-', no '-' at the ends"
            ),
            Self::FlockExists { path } => write!(
                f,
                "{} holds a flock already; choose another directory, or remove it if you mean to lose that flock",
                path.display()
            ),
            Self::Random => write!(f, "the kernel gave no random bytes"),
            Self::Untrusted { reason } => write!(f, "not trusted: {reason}"),
            Self::Malformed { what, reason } => write!(f, "malformed {what}: {reason}"),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Unreachable { endpoint, reason } => {
                write!(f, "cannot reach {endpoint}: {reason}")
            }
            Self::Request { endpoint, what, reason } => {
                write!(f, "{endpoint}: {what} failed: {reason}")
            }
            Self::Refused { message, .. } => write!(f, "{message}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Tls(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}
