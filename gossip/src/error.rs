//! What can go wrong, with what was attempted and on what.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::map::Rev;

/// Errors of the gossip crate. Unless a variant says otherwise nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A node name is not `[a-z0-9-]{1,63}`.
    Name {
        /// The name as given.
        name: String,
    },
    /// A map key is empty, too long, or holds a byte outside printable ASCII.
    Key {
        /// The key as given.
        key: String,
    },
    /// A map body is longer than [`crate::BODY_MAX_BYTES`].
    Body {
        /// The key that was to be written.
        key: String,
        /// Length of the body.
        len_bytes: usize,
    },
    /// A conditional put found another version than the caller had read.
    Stale {
        /// The key that was to be written.
        key: String,
        /// What the map holds now (`None`: nothing).
        found: Option<Rev>,
    },
    /// The revision counter of a key cannot grow further.
    Exhausted {
        /// The key that was to be written.
        key: String,
    },
    /// A writer (or the whole map) holds as much as the limits allow.
    Quota {
        /// The key that was refused.
        key: String,
        /// Who wrote it.
        writer: String,
    },
    /// A unicast payload is longer than [`crate::UNICAST_MAX_BYTES`].
    Payload {
        /// The addressee.
        to: String,
        /// Length of the payload.
        len_bytes: usize,
    },
    /// No member of that name is known.
    NoSuchMember {
        /// The name as given.
        name: String,
    },
    /// The member is not dead or gone, so it cannot be forgotten or is no place to send to.
    WrongState {
        /// The member.
        name: String,
        /// What was attempted.
        operation: &'static str,
    },
    /// The key ring has no such key, is full, or the key is the one in use.
    KeyRing {
        /// The key's id.
        id: u8,
        /// What was attempted.
        operation: &'static str,
    },
    /// A file operation failed. After a failed write or fsync the log counts as broken and is not written again: a new one
    /// takes its place as soon as that works.
    File {
        /// The call that failed.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error number (0 when the library gave none).
        errno: i32,
    },
    /// A file is not what was written; it is left untouched for inspection.
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Offset of the first bad byte range.
        offset_bytes: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// Another process has the directory of the log.
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// A socket operation failed.
    Socket {
        /// The call that failed.
        operation: &'static str,
        /// The local address.
        addr: SocketAddr,
        /// The system's error number.
        errno: i32,
    },
    /// The operating system gave no random bytes.
    Random,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Name { name } => {
                write!(f, "node name {name:?} is not 1 to 63 characters of a-z, 0-9 and -")
            }
            Error::Key { key } => {
                write!(f, "map key {key:?} is not 1 to 255 printable ASCII characters")
            }
            Error::Body { key, len_bytes } => {
                let max = crate::BODY_MAX_BYTES;
                write!(f, "body of {key} has {len_bytes} bytes, the limit is {max}")
            }
            Error::Stale { key, found: Some(rev) } => {
                write!(f, "{key} was changed meanwhile and is now at revision {}", rev.rev)
            }
            Error::Stale { key, found: None } => write!(f, "{key} does not exist (any more)"),
            Error::Exhausted { key } => write!(f, "the revision counter of {key} is exhausted"),
            Error::Quota { key, writer } => {
                write!(f, "{key} refused: {writer} holds as many records or bytes as allowed")
            }
            Error::Payload { to, len_bytes } => {
                let max = crate::UNICAST_MAX_BYTES;
                write!(f, "message of {len_bytes} bytes to {to}, the limit is {max}")
            }
            Error::NoSuchMember { name } => write!(f, "no member is called {name}"),
            Error::WrongState { name, operation } => {
                write!(f, "cannot {operation} {name} in its present state")
            }
            Error::KeyRing { id, operation } => write!(f, "cannot {operation} gossip key {id}"),
            Error::File { operation, path, errno } => {
                let cause = std::io::Error::from_raw_os_error(*errno);
                write!(f, "{operation} {}: {cause}", path.display())
            }
            Error::Corrupt { path, offset_bytes, reason } => write!(
                f,
                "{} cannot be used from byte {offset_bytes} on ({reason}); move it away to start this \
                 node without its memory, its peers will give it back",
                path.display()
            ),
            Error::InUse { path } => write!(
                f,
                "{} is in use by another process: end that one first, or give this node another \
                 directory",
                path.display()
            ),
            Error::Socket { operation, addr, errno } => {
                let cause = std::io::Error::from_raw_os_error(*errno);
                write!(f, "{operation} on UDP {addr}: {cause}")
            }
            Error::Random => write!(f, "the operating system gave no random bytes"),
        }
    }
}

impl std::error::Error for Error {}
