//! The crate's one error type.

use std::fmt;
use std::path::PathBuf;

/// What went wrong, on what, and with which errno.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed. Nothing that the operation's documentation promises has been done;
    /// what was half made has been taken back.
    Sys {
        /// What was attempted, as a verb: `mkdir`, `clone3`, `bind`.
        op: &'static str,
        /// The path, peer, pid or name it was attempted on.
        what: String,
        /// The errno.
        errno: i32,
    },
    /// A spec cannot be run as written. Nothing was started.
    Spec {
        /// The field, as a path: `containers[web].argv`.
        field: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Bytes that should be ours are not: a cut message, a foreign peer, a later version.
    Format {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name that should be in the container's own `/etc/passwd` or `/etc/group` is not there.
    NoSuchUser {
        /// As the spec says it.
        user: String,
        /// The file that was looked into, below the root file system.
        file: PathBuf,
    },
    /// The node's owner has not granted it. Nothing was started.
    NotGranted {
        /// What kind of thing: `device`, `host program`, `host network`, `seccomp profile`.
        what: &'static str,
        /// Its name; empty where there is only one.
        name: String,
    },
    /// A bounded table is full; the request was refused and nothing was changed.
    Full {
        /// Which table.
        what: &'static str,
        /// How much it holds.
        max: usize,
    },
    /// The shim is not there (any more).
    Gone {
        /// The pod's directory.
        dir: PathBuf,
    },
}

impl Error {
    /// The errno, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Sys { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    pub(crate) fn sys(op: &'static str, what: impl fmt::Display, errno: rustix::io::Errno) -> Self {
        Self::Sys { op, what: what.to_string(), errno: errno.raw_os_error() }
    }

    pub(crate) fn io(op: &'static str, what: impl fmt::Display, e: &std::io::Error) -> Self {
        Self::Sys { op, what: what.to_string(), errno: e.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sys { op, what, errno } => {
                write!(f, "{op} {what}: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Spec { field, why } => write!(f, "pod spec: {field}: {why}"),
            Self::Format { what, why } => write!(f, "{what}: {why}"),
            Self::NoSuchUser { user, file } => {
                write!(f, "user \"{user}\" is not in the image's {}", file.display())
            }
            Self::NotGranted { what, name } if name.is_empty() => {
                write!(f, "{what}: not granted on this node")
            }
            Self::NotGranted { what, name } => {
                write!(f, "{what} \"{name}\": not granted on this node")
            }
            Self::Full { what, max } => write!(f, "{what}: full ({max})"),
            Self::Gone { dir } => write!(f, "no shim answers for {}", dir.display()),
        }
    }
}

impl std::error::Error for Error {}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;
