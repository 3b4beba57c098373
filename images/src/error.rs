//! The errors of this crate.

use std::{fmt, io, path::PathBuf};

/// Why an image could not be made. Nothing that existed before was changed: products are written beside
/// their final name and renamed into place last.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    Io {
        /// What was attempted, e.g. `read`.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A program of the build machine (apt, dpkg-deb) could not be run or said no.
    Tool {
        /// The command line.
        command: String,
        /// Its exit status or the reason it did not start.
        status: String,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// Neither apt nor the cache has such a kernel package.
    NoKernel {
        /// The package that was asked for.
        package: String,
        /// Where a cached copy was looked for.
        cache: PathBuf,
    },
    /// The package does not hold what a kernel package must hold.
    BadKernel {
        /// The unpacked package.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A module file is not an xz-compressed ELF64 relocatable with a `.modinfo`.
    BadModule {
        /// The module file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A set names a module that this kernel neither has nor builds in.
    NoModule {
        /// The module.
        module: String,
        /// The set, or the module that needs it.
        needed_by: String,
    },
    /// A finished image lacks something a module in it depends on.
    Incomplete {
        /// The module.
        module: String,
        /// What it needs and the image lacks.
        needs: String,
    },
    /// A name or a size does not fit the cpio format.
    Cpio {
        /// The path inside the archive.
        path: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An EFI program that cannot take further sections.
    Pe {
        /// What is wrong.
        what: &'static str,
    },
    /// A boot directory that is not one, or is damaged.
    BootDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The interface to serve on cannot be told or used.
    Interface {
        /// Why, and what to do.
        what: String,
    },
    /// A port cannot be had.
    Port {
        /// `udp` or `tcp`.
        protocol: &'static str,
        /// Which.
        port: u16,
        /// Who has it, where that is known.
        holder: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// The network went away under a server.
    Serve {
        /// Which of its parts.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A bzImage that cannot be turned into a vmlinux.
    BzImage {
        /// What is wrong.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { op, path, source }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { op, path, source } => write!(f, "{op} {}: {source}", path.display()),
            Self::Tool { command, status, stderr } => {
                write!(f, "`{command}`: {status}: {}", stderr.trim())
            }
            Self::NoKernel { package, cache } => write!(
                f,
                "no kernel package {package}: apt does not offer it and {} holds no copy",
                cache.display()
            ),
            Self::BadKernel { path, what } => write!(f, "kernel in {}: {what}", path.display()),
            Self::BadModule { path, what } => write!(f, "module {}: {what}", path.display()),
            Self::NoModule { module, needed_by } => {
                write!(f, "module {module}, needed by {needed_by}, is not in this kernel")
            }
            Self::Incomplete { module, needs } => {
                write!(f, "image is incomplete: {module} needs {needs}")
            }
            Self::Cpio { path, what } => write!(f, "cpio entry {path}: {what}"),
            Self::Pe { what } => write!(f, "unified kernel image: {what}"),
            Self::BootDir { path, what } => write!(
                f,
                "{}: {what}; make a boot directory with `quelea boot build --out {}`",
                path.display(),
                path.display()
            ),
            Self::Interface { what } => write!(f, "{what}"),
            Self::Port { protocol, port, holder: Some(who), .. } => {
                write!(
                    f,
                    "{protocol} port {port} is taken by {who}: stop it, or serve from another machine"
                )
            }
            Self::Port { protocol, port, source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                write!(f, "{protocol} port {port}: {source}; serving needs root")
            }
            Self::Port { protocol, port, source, .. } => {
                write!(f, "{protocol} port {port} cannot be had: {source}")
            }
            Self::Serve { what, source } => write!(f, "{what} ended: {source}"),
            Self::BzImage { what } => write!(f, "bzImage: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } | Self::Port { source, .. } | Self::Serve { source, .. } => {
                Some(source)
            }
            _ => None,
        }
    }
}

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
