//! What can fail towards the caller. Packets that are refused are no errors: they are counted, see [`crate::DropReason`].

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// An operation of this crate that failed. Every variant says what was attempted and on what.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened or written (`/dev/net/tun`, a sysctl). Nothing was changed by this step.
    File {
        /// What was attempted.
        op: &'static str,
        /// On which path.
        path: String,
        /// What the kernel said.
        errno: io::Error,
    },
    /// A TUN device refused an ioctl: no privilege, no `tun` module, or the name belongs to another device.
    Tun {
        /// The ioctl.
        op: &'static str,
        /// The device.
        device: String,
        /// What the kernel said.
        errno: io::Error,
    },
    /// The kernel refused an rtnetlink request. Steps before it stay done; `podnet` drops the whole netns then.
    Netlink {
        /// What was attempted.
        op: &'static str,
        /// On which device, address or route.
        object: String,
        /// What the kernel said.
        errno: io::Error,
    },
    /// A network namespace could not be made or opened.
    Netns {
        /// What was attempted.
        op: &'static str,
        /// What the kernel said.
        errno: io::Error,
    },
    /// The overlay's UDP socket could not be bound: port in use or address not ours.
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the kernel said.
        errno: io::Error,
    },
    /// The data thread could not be set up (epoll, waker, thread).
    Thread {
        /// What was attempted.
        op: &'static str,
        /// What the kernel said.
        errno: io::Error,
    },
    /// A configuration that cannot work. Nothing was changed.
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No free address: every host number of the node's prefix is in use or was released less than
    /// [`crate::ipam::REUSE_AFTER_US`] ago.
    AddressesExhausted {
        /// When the next one becomes free, in the caller's microseconds; `None` if all are in use.
        free_at_us: Option<u64>,
    },
    /// A table is full: the limit is named. Nothing was changed.
    Full {
        /// The `*_MAX` that was met.
        limit: &'static str,
    },
    /// The data thread has ended; the overlay must be spawned again.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File { op, path, errno } => {
                write!(f, "cannot {op} {path}: {errno}")?;
                // The one file that a kernel may lack.
                let no_tun = path == crate::podnet::TUN_PATH && errno.kind() != DENIED;
                hint(f, no_tun, "load the module with `modprobe tun`")?;
                hint(f, errno.kind() == DENIED, "run as root")
            }
            Error::Tun { op, device, errno } => {
                write!(f, "TUN device {device}: {op} failed: {errno}")?;
                let busy = errno.kind() == io::ErrorKind::ResourceBusy;
                hint(f, busy, "another agent of this node, or its data thread, holds it")?;
                hint(f, errno.kind() == DENIED, "run as root")
            }
            Error::Netlink { op, object, errno } => write!(f, "cannot {op} {object}: {errno}"),
            Error::Netns { op, errno } => {
                write!(f, "network namespace: cannot {op}: {errno}")?;
                hint(f, errno.kind() == DENIED, "run as root")
            }
            Error::Bind { addr, errno } => {
                write!(f, "cannot bind UDP {addr}: {errno}")?;
                let used = errno.kind() == io::ErrorKind::AddrInUse;
                hint(f, used, "another agent on this machine? `ss -ulpn` names it")
            }
            Error::Thread { op, errno } => write!(f, "data thread: cannot {op}: {errno}"),
            Error::Config { field, why } => write!(f, "bad overlay configuration: {field} {why}"),
            Error::AddressesExhausted { free_at_us: Some(_) } => {
                write!(f, "no free pod address: the last ones were released too recently")
            }
            Error::AddressesExhausted { free_at_us: None } => {
                write!(f, "no free pod address: all of the node's prefix are in use")
            }
            Error::Full { limit } => write!(f, "table full: {limit}"),
            Error::Stopped => write!(f, "the overlay's data thread has ended"),
        }
    }
}

const DENIED: io::ErrorKind = io::ErrorKind::PermissionDenied;

/// What the operator can do.
fn hint(f: &mut fmt::Formatter<'_>, applies: bool, text: &str) -> fmt::Result {
    if applies { write!(f, " ({text})") } else { Ok(()) }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File { errno, .. }
            | Error::Tun { errno, .. }
            | Error::Netlink { errno, .. }
            | Error::Netns { errno, .. }
            | Error::Bind { errno, .. }
            | Error::Thread { errno, .. } => Some(errno),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_told_what_to_do() {
        let errno = |code| io::Error::from_raw_os_error(code);
        let text = Error::File {
            op: "open",
            path: crate::podnet::TUN_PATH.into(),
            errno: errno(libc::ENODEV),
        };
        assert!(text.to_string().contains("modprobe tun"), "{text}");
        let addr: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let text = Error::Bind { addr, errno: errno(libc::EADDRINUSE) };
        assert!(text.to_string().contains("127.0.0.1:1") && text.to_string().contains("ss -ulpn"));
        let text = Error::Netns { op: "unshare", errno: errno(libc::EPERM) };
        assert!(text.to_string().contains("root"), "{text}");
        let text =
            Error::Tun { op: "TUNSETIFF", device: "mesh0".into(), errno: errno(libc::EBUSY) };
        assert!(text.to_string().contains("holds it"), "{text}");
    }
}
