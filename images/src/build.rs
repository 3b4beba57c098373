//! Builds a boot directory: kernel and loaders from Debian's packages, the initramfs around `quelead`, the UKI.

use crate::{
    Error, Extra, Flavour, Initramfs, Kernel, Result, Set,
    bootdir::{self, MANIFEST, Manifest, hex},
    deb,
    image::put,
    ipxe,
    uki::{Parts, Uki},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Debian packages of the loaders, and what is taken of each.
const LOADERS: [(&str, &str); 3] = [
    ("systemd-boot-efi", "usr/lib/systemd/boot/efi/linuxx64.efi.stub"),
    ("ipxe", "usr/lib/ipxe/undionly.kpxe"),
    ("ipxe", "usr/lib/ipxe/snponly.efi"),
];

/// What to build.
#[derive(Debug, Clone)]
pub struct Build {
    /// For which machines.
    pub set: Set,
    /// A kernel package: a `.deb`, or a directory into which one was unpacked. `None`: Debian's, by apt.
    pub kernel: Option<PathBuf>,
    /// The node binary.
    pub quelead: PathBuf,
    /// Where unpacked packages are kept.
    pub cache: PathBuf,
    /// Kernel arguments after the set's own.
    pub cmdline: String,
    /// Further files of the initramfs.
    pub extra: Vec<Extra>,
    /// The directory to write.
    pub out: PathBuf,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Built {
    /// `qemu` or `rack`.
    pub set: String,
    /// `uname -r` of the kernel.
    pub release: String,
    /// Kernel arguments.
    pub cmdline: String,
    /// Modules inside, all their dependencies with them.
    pub modules: usize,
    /// Their bytes.
    pub modules_bytes: u64,
    /// Bytes of quelead.
    pub quelead_bytes: u64,
    /// Bytes of each file.
    pub files: BTreeMap<String, u64>,
    /// sha256 of each file, hex.
    pub sha256: BTreeMap<String, String>,
    /// Most bytes this project allows the initramfs of the set.
    pub initramfs_bytes_max: u64,
}

impl Set {
    /// Kernel arguments that every machine of the set is given. A rack has no `console=`: a serial port that is not
    /// there costs minutes, and firmware says which there is (SPCR).
    #[must_use]
    pub fn cmdline(self) -> &'static str {
        match self {
            Self::Qemu => "console=ttyS0 panic=30",
            Self::Rack => "panic=30",
        }
    }
}

impl Build {
    /// Builds and writes everything; `boot.toml` last.
    ///
    /// # Errors
    /// As [`Kernel::fetch`] and [`Initramfs::build`]; [`Error::Pe`]; [`Error::Io`].
    pub fn run(&self) -> Result<Built> {
        let kernel = self.kernel()?;
        let image = Initramfs::build(self.set, &kernel, &self.quelead, &self.extra)?;
        let read = |path: &Path| std::fs::read(path).map_err(Error::io("read", path));
        let vmlinuz = read(&kernel.vmlinuz)?;
        let initramfs = image.to_bytes()?;
        let mut loaders = Vec::new();
        for (package, path) in LOADERS {
            loaders.push(read(&deb::unpacked(package, &self.cache)?.join(path))?);
        }
        let [stub, undionly, snponly] = <[Vec<u8>; 3]>::try_from(loaders).unwrap_or_default();
        let cmdline = bootdir::join(self.set.cmdline(), &self.cmdline);
        let uki = Uki::new(&Parts {
            stub: stub.clone().into(),
            release: kernel.release.clone(),
            cmdline: cmdline.clone(),
            linux: vmlinuz.clone().into(),
            initrds: vec![initramfs.clone().into()],
        })?;
        let files: [(&str, Vec<u8>); 7] = [
            ("vmlinuz", vmlinuz),
            ("initramfs.cpio", initramfs),
            ("uki.efi", uki.to_bytes()),
            ("boot.ipxe", ipxe::for_any_server(&cmdline).into_bytes()),
            ("linuxx64.efi.stub", stub),
            ("undionly.kpxe", undionly),
            ("snponly.efi", snponly),
        ];
        let sums =
            files.iter().map(|(name, bytes)| ((*name).to_owned(), hex(&Sha256::digest(bytes))));
        let manifest = Manifest {
            set: self.set.name().into(),
            release: kernel.release.clone(),
            cmdline,
            sha256: sums.collect(),
        };
        std::fs::create_dir_all(&self.out).map_err(Error::io("create", &self.out))?;
        for (name, bytes) in &files {
            put(&self.out.join(name), bytes)?;
        }
        // Strings and a table of strings: serialising them cannot fail.
        put(&self.out.join(MANIFEST), toml::to_string(&manifest).unwrap_or_default().as_bytes())?;
        Ok(Built {
            set: manifest.set,
            release: manifest.release,
            cmdline: manifest.cmdline,
            modules: image.closure.modules.len(),
            modules_bytes: image.module_bytes,
            quelead_bytes: image.quelead_bytes,
            files: files.iter().map(|(name, b)| ((*name).to_owned(), b.len() as u64)).collect(),
            sha256: manifest.sha256,
            initramfs_bytes_max: self.set.initramfs_bytes_max(),
        })
    }

    fn kernel(&self) -> Result<Kernel> {
        match &self.kernel {
            None => Kernel::fetch(self.flavour(), &self.cache),
            Some(path) if path.is_dir() => Kernel::open(path),
            Some(path) => Kernel::open(&deb::unpack(path, &self.cache)?),
        }
    }

    fn flavour(&self) -> Flavour {
        self.set.flavour()
    }
}
