//! Why a tar is refused.

use std::fmt;

/// Why a tar was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TarFault {
    /// The header's checksum is wrong: not a tar, or corrupt.
    Checksum,
    /// A number field holds no number, or one out of range.
    Number,
    /// The stream ends inside a header or a member's data.
    Truncated,
    /// Bytes other than zero after the end marker.
    Trailing,
    /// A member type that no image needs (GNU sparse, multi-volume, unknown letters).
    Type(u8),
    /// A PAX record is malformed.
    Pax,
    /// A PAX or GNU long-name header over its limit, or without a member after it.
    Extension,
    /// Empty where a name is needed.
    EmptyName,
    /// A `..` in a path.
    DotDot,
    /// A NUL byte in a name or link.
    Nul,
    /// A path component over 255 bytes.
    NameTooLong,
    /// A path with more than the allowed components.
    TooDeep,
    /// A link target over 4095 bytes, or empty.
    LinkLength,
    /// A path runs through a member of this layer that is no directory.
    ThroughNonDir,
    /// A hard link to nothing in this layer.
    HardlinkMissing,
    /// A hard link to itself.
    HardlinkSelf,
    /// A hard link to a directory.
    HardlinkDir,
    /// A character device 0:0, which is overlayfs' own whiteout.
    RawWhiteout,
    /// A whiteout of nothing, of `.` or of `..`.
    WhiteoutName,
    /// Data where the member's type has none.
    UnexpectedData,
    /// A member that replaces the root directory by something else.
    Root,
    /// An extended attribute over 64 KiB, or too many bytes of them.
    XattrSize,
    /// An extended attribute outside user, security, trusted and the POSIX ACLs, or a malformed ACL.
    XattrName,
    /// More members, names or links than the limits allow.
    TooMany,
    /// The tar is larger than the index format can address.
    TooLarge,
}

impl fmt::Display for TarFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = match self {
            TarFault::Checksum => "bad header checksum",
            TarFault::Number => "bad number in header",
            TarFault::Truncated => "truncated",
            TarFault::Trailing => "bytes after the end",
            TarFault::Type(t) => {
                return write!(f, "member type {:?} is not supported", char::from(*t));
            }
            TarFault::Pax => "malformed PAX record",
            TarFault::Extension => "extension header too long or without a member",
            TarFault::EmptyName => "empty name",
            TarFault::DotDot => "path contains ..",
            TarFault::Nul => "name contains a NUL byte",
            TarFault::NameTooLong => "name longer than 255 bytes",
            TarFault::TooDeep => "path too deep",
            TarFault::LinkLength => "link target empty or longer than 4095 bytes",
            TarFault::ThroughNonDir => "path runs through something that is no directory",
            TarFault::HardlinkMissing => "hard link to nothing in this layer",
            TarFault::HardlinkSelf => "hard link to itself",
            TarFault::HardlinkDir => "hard link to a directory",
            TarFault::RawWhiteout => "character device 0:0",
            TarFault::WhiteoutName => "whiteout of nothing",
            TarFault::UnexpectedData => "data in a member that has none",
            TarFault::Root => "the root is no directory",
            TarFault::XattrSize => "extended attributes too large",
            TarFault::XattrName => "extended attribute not supported",
            TarFault::TooMany => "too many members",
            TarFault::TooLarge => "too large",
        };
        f.write_str(s)
    }
}
