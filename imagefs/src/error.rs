//! The one error of this crate.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::digest::Digest;
use crate::record::BlobKind;
use crate::tarfmt::TarFault;

/// Short form used everywhere in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, on what, and whether anything was changed.
///
/// Unless a variant says otherwise nothing durable was changed: half-written files live below `ingest/` and go with the
/// value that was writing them, or at the next [`Store::open`](crate::Store::open).
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call on a path failed. `op` is the call or the step.
    Io {
        /// What was attempted.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        errno: Errno,
    },
    /// A step of mounting failed; the mounts of this call made before it were taken down again.
    Mount {
        /// Which step of the mount API.
        step: &'static str,
        /// Mount point or source.
        path: PathBuf,
        /// Why it failed.
        errno: Errno,
        /// The kernel's own words from the filesystem context, often empty.
        log: String,
    },
    /// Bytes do not have the digest they were named by: a broken source or a lying peer.
    DigestMismatch {
        /// What the bytes were to be.
        kind: BlobKind,
        /// The name.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// More or fewer bytes than announced.
    SizeMismatch {
        /// What the bytes were to be.
        kind: BlobKind,
        /// Its digest.
        digest: Digest,
        /// Announced, bytes.
        expected: u64,
        /// Seen so far, bytes.
        found: u64,
    },
    /// A piece of a layer does not hash to the entry of the piece list: the peer that sent it lies or is broken.
    PieceMismatch {
        /// The layer.
        diff_id: Digest,
        /// Which piece, from 0; a piece is [`PIECE_BYTES`](crate::PIECE_BYTES) long.
        index: u64,
    },
    /// A layer's tar is malformed or hostile.
    Tar {
        /// Offset of the header in the uncompressed tar, bytes.
        offset: u64,
        /// The member's path as written, lossy.
        path: String,
        /// What is wrong with it.
        fault: TarFault,
    },
    /// A compressed stream is corrupt or cut short.
    Compression {
        /// The file or blob.
        what: String,
        /// What the decoder said.
        detail: String,
    },
    /// A size or ratio limit was exceeded.
    TooBig {
        /// What was measured.
        what: &'static str,
        /// The limit, in the unit `what` names (bytes where it names none).
        limit: u64,
        /// What was found, at least.
        found: u64,
    },
    /// Not enough free space for what is being written, keeping the reserve.
    NoSpace {
        /// The store.
        path: PathBuf,
        /// Bytes free for us now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// JSON of an image does not parse.
    Json {
        /// Which document.
        what: String,
        /// The parser's message.
        detail: String,
    },
    /// A media type that this crate does not know.
    MediaType {
        /// As written.
        found: String,
    },
    /// A path that holds no image in a format known here.
    NotAnImage {
        /// What was given.
        path: PathBuf,
        /// What was looked for and missed.
        why: &'static str,
    },
    /// The index has nothing for this machine.
    NoPlatform {
        /// `os/arch` wanted.
        wanted: String,
        /// `os/arch` on offer.
        have: Vec<String>,
    },
    /// The source holds several images, or none of that name.
    WhichImage {
        /// The name asked for, if any.
        wanted: Option<String>,
        /// The names on offer.
        have: Vec<String>,
    },
    /// A blob that an image needs is not here.
    MissingBlob {
        /// What it is.
        kind: BlobKind,
        /// Its digest.
        digest: Digest,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Manifest, config and record of one image contradict each other.
    Inconsistent {
        /// The manifest.
        manifest: Digest,
        /// How.
        why: &'static str,
    },
    /// Not a usable image reference.
    BadReference {
        /// As given.
        reference: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// Not a `sha256:` digest.
    BadDigest {
        /// As given.
        text: String,
    },
    /// A container directory already has a root filesystem assembled.
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Another process has the store open.
    StoreInUse {
        /// The store.
        path: PathBuf,
    },
    /// The kernel lacks something this crate needs.
    Kernel {
        /// What is missing.
        feature: &'static str,
        /// What an operator can do.
        hint: &'static str,
    },
    /// A layer has a file below a directory it does not declare, where a lower layer has a symlink. Overlay would hide the
    /// link (`lib -> usr/lib` and with it the loader), so the image is refused rather than silently broken.
    ThroughSymlink {
        /// The layer with the undeclared directory.
        layer: Digest,
        /// The directory.
        path: String,
    },
    /// The user namespace does not map an id the image needs.
    Unmapped {
        /// The id inside the image.
        id: u32,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl AsRef<Path>, e: impl IntoErrno) -> Error {
        Error::Io { op, path: path.as_ref().to_path_buf(), errno: e.into_errno() }
    }

    pub(crate) fn json(what: impl Into<String>, e: &serde_json::Error) -> Error {
        Error::Json { what: what.into(), detail: e.to_string() }
    }

    /// Whether the source of the bytes (a peer, a registry, a file) is to blame rather than this machine.
    pub fn is_source_fault(&self) -> bool {
        matches!(
            self,
            Error::DigestMismatch { .. }
                | Error::SizeMismatch { .. }
                | Error::PieceMismatch { .. }
                | Error::Tar { .. }
                | Error::Compression { .. }
                | Error::TooBig { .. }
                | Error::Json { .. }
                | Error::MediaType { .. }
                | Error::Inconsistent { .. }
        )
    }
}

/// What can become an errno.
pub(crate) trait IntoErrno {
    fn into_errno(self) -> Errno;
}

impl IntoErrno for Errno {
    fn into_errno(self) -> Errno {
        self
    }
}

impl IntoErrno for std::io::Error {
    fn into_errno(self) -> Errno {
        // Errors without an errno come from std itself (short reads, writes of zero bytes).
        Errno::from_io_error(&self).unwrap_or(Errno::IO)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { op, path, errno } => write!(f, "{op} {}: {errno}", path.display()),
            Error::Mount { step, path, errno, log } => {
                write!(f, "mount {}: {step}: {errno}", path.display())?;
                if log.is_empty() { Ok(()) } else { write!(f, " (kernel: {log})") }
            }
            Error::DigestMismatch { kind, expected, found } => {
                write!(f, "{kind} {expected}: the bytes hash to {found}")
            }
            Error::SizeMismatch { kind, digest, expected, found } => {
                write!(f, "{kind} {digest}: {expected} bytes announced, {found} found")
            }
            Error::PieceMismatch { diff_id, index } => {
                write!(f, "layer {diff_id}: piece {index} does not match the piece list")
            }
            Error::Tar { offset, path, fault } => {
                write!(f, "layer tar, header at byte {offset}, member {path:?}: {fault}")
            }
            Error::Compression { what, detail } => write!(f, "decompress {what}: {detail}"),
            Error::TooBig { what, limit, found } => {
                write!(f, "{what}: {found} is over the limit of {limit}")
            }
            Error::NoSpace { path, free, reserve } => write!(
                f,
                "store {}: {free} bytes free, {reserve} must stay free; remove images or make room",
                path.display()
            ),
            Error::Json { what, detail } => write!(f, "{what}: {detail}"),
            Error::MediaType { found } => write!(f, "media type {found:?} is not supported"),
            Error::NotAnImage { path, why } => write!(f, "{}: not an image: {why}", path.display()),
            Error::NoPlatform { wanted, have } => {
                write!(f, "no image for {wanted}; there is {}", have.join(", "))
            }
            Error::WhichImage { wanted: Some(w), have } => {
                write!(f, "no image named {w:?} here; there is {}", have.join(", "))
            }
            Error::WhichImage { wanted: None, have } => {
                write!(f, "several images here, name one of {}", have.join(", "))
            }
            Error::MissingBlob { kind, digest, path } => {
                write!(f, "{kind} {digest} is not in {}", path.display())
            }
            Error::Inconsistent { manifest, why } => write!(f, "image {manifest}: {why}"),
            Error::BadReference { reference, why } => {
                write!(f, "image reference {reference:?}: {why}")
            }
            Error::BadDigest { text } => {
                write!(f, "digest {text:?}: want sha256: and 64 lower-case hex digits")
            }
            Error::Busy { path } => {
                write!(f, "{}: a root filesystem is already assembled here", path.display())
            }
            Error::StoreInUse { path } => {
                write!(f, "store {}: another process has it open", path.display())
            }
            Error::Kernel { feature, hint } => {
                write!(f, "this kernel does not have {feature}: {hint}")
            }
            Error::ThroughSymlink { layer, path } => write!(
                f,
                "layer {layer}: writes below {path:?}, which a lower layer has as a symlink; \
                 rebuild the layer with the directory declared"
            ),
            Error::Unmapped { id } => {
                write!(f, "the user namespace does not map id {id}, which the image needs")
            }
        }
    }
}

impl std::error::Error for Error {}
