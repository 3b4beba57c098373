//! The products: initramfs, kernel, iPXE script, and a node's own small archive.

use crate::{
    Error, Result,
    bootdir::hex,
    cpio::Archive,
    ipxe,
    kernel::Kernel,
    modinfo,
    modules::{Closure, Tree},
    set::{ALWAYS, Set},
    vmlinux,
};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where the node binary lives in the image; `/init` and the personalities point at it.
pub const QUELEAD: &str = "usr/bin/quelead";
/// Names under which PID 1, the kernel and operators call the node binary.
pub const PERSONALITIES: [&str; 4] = ["init", "sbin/modprobe", "sbin/poweroff", "sbin/reboot"];

/// The highest that needs no more than 8 MiB of the machine that unpacks it.
const ZSTD_LEVEL: i32 = 19;

/// A file that goes into an image besides quelead and the modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Path inside, e.g. `usr/bin/quelea`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// File on the build machine.
    pub source: PathBuf,
}

/// An initramfs in memory with what is in it.
#[derive(Debug, Clone)]
pub struct Initramfs {
    /// The set it was made for.
    pub set: Set,
    /// Kernel release its modules belong to.
    pub release: String,
    /// The tree.
    pub archive: Archive,
    /// Modules with their resolved dependencies.
    pub closure: Closure,
    /// Bytes of the module files, as they are in the tree.
    pub module_bytes: u64,
    /// Bytes of quelead.
    pub quelead_bytes: u64,
}

/// Files written by [`Initramfs::write`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// The compressed kernel.
    pub vmlinuz: PathBuf,
    /// The uncompressed kernel for a PVH boot, when asked for.
    pub vmlinux: Option<PathBuf>,
    /// The cpio archive, what compresses of it compressed.
    pub initramfs: PathBuf,
    /// A script for iPXE that boots both over HTTP, relative to where it was loaded from.
    pub ipxe: PathBuf,
    /// Size of `vmlinuz`.
    pub vmlinuz_bytes: u64,
    /// Size of `initramfs`.
    pub initramfs_bytes: u64,
    /// sha256 of `initramfs`, hex.
    pub initramfs_sha256: String,
}

impl Initramfs {
    /// Builds the tree: `quelead`, the set's modules with all they need, and the index PID 1 reads.
    ///
    /// # Errors
    /// [`Error::NoModule`], [`Error::Incomplete`], [`Error::BadModule`], [`Error::Cpio`], [`Error::Io`].
    pub fn build(set: Set, kernel: &Kernel, quelead: &Path, extra: &[Extra]) -> Result<Self> {
        let tree = Tree::open(&kernel.modules)?;
        let mut closure = tree.closure(&set.wants())?;
        let mut archive = Archive::new();
        for dir in ["dev", "proc", "sys", "run", "etc/quelea", "var/lib/quelea", "root"] {
            archive.dir(dir, 0o755)?;
        }
        archive.dir("root", 0o700)?.dir("tmp", 0o1777)?;
        // Without it a kernel that lost its built-in archive gives PID 1 no stdio.
        archive.char_dev("dev/console", 0o600, 5, 1)?;
        archive.file_from(QUELEAD, 0o755, quelead)?;
        for name in PERSONALITIES {
            archive.symlink(name, &format!("/{QUELEAD}"))?;
        }
        let dir = format!("lib/modules/{}", kernel.release);
        let mut module_bytes = 0;
        for module in closure.modules.values_mut() {
            let source = tree.file(module);
            let bytes = if set.bares_modules() {
                module.path.truncate(module.path.trim_end_matches(".xz").len());
                modinfo::without_signature(modinfo::unpacked(&source)?)
            } else {
                std::fs::read(&source).map_err(Error::io("read", &source))?
            };
            module_bytes += bytes.len() as u64;
            archive.file(&format!("{dir}/{}", module.path), 0o644, bytes)?;
        }
        let builtin = kernel.modules.join("modules.builtin");
        archive
            .file(&format!("{dir}/modules.dep"), 0o644, closure.modules_dep())?
            .file(&format!("{dir}/modules.alias"), 0o644, closure.modules_alias())?
            .file(&format!("{dir}/modules.softdep"), 0o644, closure.modules_softdep())?
            .file_from(&format!("{dir}/modules.builtin"), 0o644, &builtin)?
            .file("etc/modules-load.d/quelea.conf", 0o644, ALWAYS.join("\n") + "\n")?
            .file("etc/quelea/image", 0o644, facts(set, kernel)?)?;
        for Extra { path, mode, source } in extra {
            archive.file_from(path, *mode, source)?;
        }
        let quelead_bytes = archive.get(QUELEAD).map_or(0, |b| b.len() as u64);
        let release = kernel.release.clone();
        let made = Self { set, release, archive, closure, module_bytes, quelead_bytes };
        made.verify()?;
        Ok(made)
    }

    /// Checks the finished tree: every module of the closure and everything it depends on is a file in it.
    ///
    /// # Errors
    /// [`Error::Incomplete`] with the first that is not.
    pub fn verify(&self) -> Result<()> {
        self.closure.verify()?;
        for (name, module) in &self.closure.modules {
            let path = format!("lib/modules/{}/{}", self.release, module.path);
            if self.archive.get(&path).is_none() {
                return Err(Error::Incomplete { module: name.clone(), needs: path });
            }
        }
        Ok(())
    }

    /// The initramfs as machines load it, in segments that the kernel unpacks one after the other
    /// (`init/initramfs.c`): what compresses by zstd, then the modules that are xz already, in a plain one.
    ///
    /// # Errors
    /// As [`Archive::split`]; [`Error::Io`] when the compressor gets no memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let (rest, modules) = self.archive.split(|path| path.ends_with(".ko.xz"))?;
        // One thread, a version fixed by the lock file and no time inside: the same bytes every time.
        let packed = zstd::bulk::compress(&rest.to_bytes(), ZSTD_LEVEL);
        let mut bytes = packed.map_err(Error::io("compress", "the initramfs"))?;
        // A plain segment must start at a multiple of four; the kernel skips zeros before it.
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        if !self.set.bares_modules() {
            modules.write(&mut bytes).expect("writing to a Vec cannot fail");
        }
        Ok(bytes)
    }

    /// Writes `vmlinuz`, `initramfs.cpio`, `boot.ipxe` (and `vmlinux`) into `dir`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BzImage`] when `unpack` is asked of a kernel that is not zstd.
    pub fn write(&self, kernel: &Kernel, dir: &Path, unpack: bool) -> Result<Product> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let bytes = self.to_bytes()?;
        let bz = std::fs::read(&kernel.vmlinuz).map_err(Error::io("read", &kernel.vmlinuz))?;
        let set_cmdline = self.set.cmdline();
        let product = Product {
            vmlinuz: dir.join("vmlinuz"),
            vmlinux: unpack.then(|| dir.join(format!("vmlinux-{}", kernel.release))),
            initramfs: dir.join("initramfs.cpio"),
            ipxe: dir.join("boot.ipxe"),
            vmlinuz_bytes: bz.len() as u64,
            initramfs_bytes: bytes.len() as u64,
            initramfs_sha256: hex(&Sha256::digest(&bytes)),
        };
        put(&product.initramfs, &bytes)?;
        put(&product.vmlinuz, &bz)?;
        put(&product.ipxe, ipxe::for_any_server(set_cmdline).as_bytes())?;
        // The name holds the release, so one that is there is the right one.
        if let Some(path) = product.vmlinux.as_ref().filter(|path| !path.exists()) {
            put(path, &vmlinux::extract(&bz)?)?;
        }
        Ok(product)
    }
}

/// What PID 1 is told of its image. The floor is the day Debian built the kernel, as the package dates its file:
/// no right clock stands before it, and it is the same for everybody who builds this image.
fn facts(set: Set, kernel: &Kernel) -> Result<String> {
    let path = &kernel.vmlinuz;
    let meta = std::fs::metadata(path).map_err(Error::io("stat", path))?;
    let floor_s = std::os::unix::fs::MetadataExt::mtime(&meta);
    Ok(format!("set={}\nkernel={}\nfloor_s={floor_s}\n", set.name(), kernel.release))
}

pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension(format!("tmp{}", std::process::id()));
    std::fs::write(&beside, bytes).map_err(Error::io("write", &beside))?;
    std::fs::rename(&beside, path).map_err(Error::io("rename", path))
}
