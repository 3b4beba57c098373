//! What every test shares: kernel, image, helper binaries; built once a run.

use anyhow::{Context as _, Result, bail};
use images::{Extra, Initramfs, Kernel, Set};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The helper's place in a guest.
pub const GUEST: &str = "usr/lib/quelea-guest";

/// The example workload's place in a guest, in a directory of its own: the root of an image.
pub const HELLO: &str = "usr/lib/quelea-hello/hello";

/// What to run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The node binary; built when absent.
    pub quelead: Option<PathBuf>,
    /// The operator's binary; built when absent.
    pub quelea: Option<PathBuf>,
    /// The example workload; built when absent.
    pub hello: Option<PathBuf>,
    /// Cargo profile for what is built.
    pub profile: Option<String>,
    /// Where kernels are kept.
    pub cache: Option<PathBuf>,
    /// Seed of losses in the fabric.
    pub seed: u64,
    /// Keep every test's directory.
    pub keep: bool,
    /// The helper is PID 1 in place of quelead, and keeps its agent running.
    pub stand_in: bool,
}

/// Shared by the tests of a run.
#[derive(Debug)]
pub struct Env {
    /// The uncompressed kernel: boots without unpacking itself.
    pub vmlinux: PathBuf,
    /// The kernel as racks get it.
    pub vmlinuz: PathBuf,
    /// The initramfs as machines get it, without test helpers.
    pub product: Vec<u8>,
    /// Kernel release.
    pub release: String,
    /// The helper as `/init`: the machine half without an agent.
    pub bare: Vec<u8>,
    /// quelead as `/init`, with the helper in front; `None`: it does not build.
    pub node: Option<Vec<u8>>,
    /// Why there is no node image.
    pub node_missing: String,
    /// Bytes of the product's initramfs, without test helpers.
    pub initramfs_bytes: u64,
    /// Bytes of quelead.
    pub quelead_bytes: u64,
    /// The node binary, where there is one.
    pub quelead: Option<PathBuf>,
    /// Where unpacked packages are kept.
    pub cache: PathBuf,
    /// The operator's binary on this machine.
    pub quelea: Option<PathBuf>,
    /// Seed of losses.
    pub seed: u64,
    /// Keep every test's directory.
    pub keep: bool,
}

impl Env {
    /// Builds binaries and images.
    ///
    /// # Errors
    /// When there is no kernel, or the helper cannot be built. A quelead that cannot be built is no error: the
    /// tests that need it are skipped by name.
    pub fn prepare(options: &Options) -> Result<Self> {
        let bin_dir = bin_dir()?;
        let target = bin_dir.parent().context("target directory")?;
        let cache = options.cache.clone().unwrap_or_else(|| target.join("kernels"));
        let kernel = Kernel::fetch(Set::Qemu.flavour(), &cache)?;
        let profile = options.profile.as_deref().unwrap_or("release");
        let guest = built(&bin_dir, "quelea-guest", "qemu-tests", profile)?;
        let find = |given: &Option<PathBuf>, name: &str, package: &str| match given {
            Some(path) => Ok(path.clone()),
            None => built(&bin_dir, name, package, profile),
        };
        let quelead = find(&options.quelead, "quelead", "agent");
        let quelea = find(&options.quelea, "quelea", "tools");

        let bare = Initramfs::build(Set::Qemu, &kernel, &guest, &[])?;
        let out = target.join("qemu-image");
        // The helper stands in until there is a quelead to measure.
        let product = |program: &Path| -> Result<_> {
            let image = Initramfs::build(Set::Qemu, &kernel, program, &[])?;
            Ok((image.write(&kernel, &out, true)?, image.quelead_bytes))
        };
        let (product, quelead_bytes) = product(quelead.as_ref().unwrap_or(&guest))?;
        let mut node_missing = String::new();
        let node = match &quelead {
            Ok(quelead) => {
                let mut extra =
                    vec![Extra { path: GUEST.into(), mode: 0o755, source: guest.clone() }];
                if let Ok(quelea) = &quelea {
                    extra.push(Extra {
                        path: "usr/bin/quelea".into(),
                        mode: 0o755,
                        source: quelea.clone(),
                    });
                }
                if let Ok(hello) = find(&options.hello, "hello", "hello") {
                    extra.push(Extra { path: HELLO.into(), mode: 0o755, source: hello });
                }
                let mut image = Initramfs::build(Set::Qemu, &kernel, quelead, &extra)?;
                if options.stand_in {
                    image.archive.symlink("init", &format!("/{GUEST}"))?;
                }
                Some(image.archive.to_bytes())
            }
            Err(why) => {
                node_missing = format!("no quelead: {why:#}");
                None
            }
        };
        Ok(Self {
            vmlinux: product.vmlinux.context("vmlinux")?,
            vmlinuz: product.vmlinuz,
            product: std::fs::read(&product.initramfs).context("read the product")?,
            release: kernel.release,
            bare: with_helper(bare, &guest)?,
            node,
            node_missing,
            initramfs_bytes: product.initramfs_bytes,
            quelead_bytes,
            quelead: quelead.ok(),
            cache,
            quelea: quelea.ok(),
            seed: options.seed,
            keep: options.keep,
        })
    }
}

fn with_helper(mut image: Initramfs, guest: &Path) -> Result<Vec<u8>> {
    image.archive.file_from(GUEST, 0o755, guest)?;
    Ok(image.archive.to_bytes())
}

/// Where cargo puts binaries of this profile.
fn bin_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("own path")?;
    let dir = exe.parent().context("own directory")?;
    // Test executables live one deeper.
    let dir = if dir.ends_with("deps") { dir.parent().context("own directory")? } else { dir };
    Ok(dir.to_owned())
}

/// Builds a binary and returns its path.
fn built(bin_dir: &Path, name: &str, package: &str, profile: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, "--bin", name, "--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("start cargo")?;
    let dir = if profile == "dev" { "debug" } else { profile };
    let path = bin_dir.with_file_name(dir).join(name);
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("cargo build -p {package} --bin {name}: {}", text.lines().next().unwrap_or("failed"));
    }
    if !path.exists() {
        bail!("cargo left no {}", path.display());
    }
    Ok(path)
}
