//! Debian's kernel package as a source: taken by name with apt, unpacked with dpkg-deb into a cache.

use crate::{
    Error, Result,
    deb::{self, run},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Which of Debian's builds of the 6.12 kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `linux-image-6.12-cloud-amd64`: virtio, NVMe and ext4 built in, few drivers. Boots fastest in QEMU.
    Cloud,
    /// `linux-image-6.12-amd64`: every server NIC and disk as a module. What racks boot.
    Generic,
}

impl Flavour {
    /// The meta package, which depends on the newest image of the series.
    #[must_use]
    pub fn meta_package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-6.12-cloud-amd64",
            Self::Generic => "linux-image-6.12-amd64",
        }
    }

    fn is_image(self, package: &str) -> bool {
        package.starts_with("linux-image-6.12.")
            && package.ends_with("-amd64")
            && package.ends_with("-cloud-amd64") == (self == Self::Cloud)
    }
}

/// An unpacked kernel package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// `uname -r` of it, e.g. `6.12.117+deb12-cloud-amd64`.
    pub release: String,
    /// The compressed bzImage.
    pub vmlinuz: PathBuf,
    /// `…/lib/modules/<release>`.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of that flavour: from the cache when it holds one, otherwise by apt.
    ///
    /// # Errors
    /// [`Error::NoKernel`] when neither has it, [`Error::Tool`] when apt or dpkg-deb fail, [`Error::Io`].
    pub fn fetch(flavour: Flavour, cache: &Path) -> Result<Self> {
        if let Some(kernel) = Self::cached(flavour, cache)? {
            return Ok(kernel);
        }
        let meta = flavour.meta_package();
        let no_kernel = || Error::NoKernel { package: meta.into(), cache: cache.into() };
        let depends =
            run(Command::new("apt-cache").args(["depends", meta])).map_err(|e| match e {
                Error::Tool { status, .. } if status.starts_with("exit") => no_kernel(),
                other => other,
            })?;
        let package = depends
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| flavour.is_image(name))
            .ok_or_else(no_kernel)?
            .to_owned();
        Self::open(&deb::unpacked(&package, cache)?)
    }

    /// The newest unpacked package of that flavour in `cache`.
    ///
    /// # Errors
    /// [`Error::Io`] when the cache is there but cannot be listed; [`Error::BadKernel`].
    pub fn cached(flavour: Flavour, cache: &Path) -> Result<Option<Self>> {
        let entries = match std::fs::read_dir(cache) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(Error::io("list", cache))?,
        };
        let newest = entries
            .filter_map(|entry| {
                let entry = entry.ok().filter(|e| e.path().is_dir())?;
                let name = entry.file_name().into_string().ok()?;
                flavour.is_image(&name).then(|| (version_key(&name), entry.path()))
            })
            .max();
        newest.map(|(_, path)| Self::open(&path)).transpose()
    }

    /// Finds kernel and modules in an unpacked package (`dpkg-deb -x`).
    ///
    /// # Errors
    /// [`Error::BadKernel`] when there is not exactly one of each.
    pub fn open(root: &Path) -> Result<Self> {
        let bad = |what| Error::BadKernel { path: root.into(), what };
        let only = |dir: PathBuf, prefix: &str| {
            let mut found = std::fs::read_dir(dir).ok()?.filter_map(|entry| {
                let path = entry.ok()?.path();
                path.file_name()?.to_str()?.starts_with(prefix).then_some(path)
            });
            let first = found.next()?;
            found.next().is_none().then_some(first)
        };
        let vmlinuz =
            only(root.join("boot"), "vmlinuz-").ok_or_else(|| bad("no single vmlinuz"))?;
        // bookworm has /lib, trixie /usr/lib.
        let modules = ["lib/modules", "usr/lib/modules"]
            .into_iter()
            .find_map(|dir| only(root.join(dir), ""))
            .ok_or_else(|| bad("no single module directory"))?;
        let release = modules
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| bad("release is not UTF-8"))?
            .to_owned();
        Ok(Self { release, vmlinuz, modules })
    }
}

/// Orders `6.12.9` before `6.12.10`: digits compare as numbers.
fn version_key(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours_do_not_mix_and_versions_order_by_number() {
        assert!(Flavour::Cloud.is_image("linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(!Flavour::Generic.is_image("linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(Flavour::Generic.is_image("linux-image-6.12.117+deb12-amd64"));
        assert!(!Flavour::Generic.is_image("linux-image-6.12-amd64"));
        assert!(
            version_key("linux-image-6.12.9+deb12") < version_key("linux-image-6.12.117+deb12")
        );
    }

    #[test]
    fn an_empty_cache_is_no_error() {
        let gone = Path::new("/nonexistent/quelea-kernels");
        assert_eq!(Kernel::cached(Flavour::Cloud, gone).unwrap(), None);
    }
}
