//! Images against the real kernel package. Skips, by name, where neither cache nor apt has one.

use images::{Initramfs, Kernel, Set};
use std::path::{Path, PathBuf};

fn cache() -> PathBuf {
    // target/<profile-triple>/… → target/kernels, shared by everything that builds images.
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../kernels")
}

fn kernel(test: &str, set: Set) -> Option<Kernel> {
    match Kernel::fetch(set.flavour(), &cache()) {
        Ok(kernel) => Some(kernel),
        Err(why) => {
            skip::because(test, why);
            None
        }
    }
}

/// Disks, watchdogs, power button and crash records: in both sets, as modules or built in.
const MACHINE: [&str; 13] = [
    "nvme",
    "ahci",
    "sd_mod",
    "virtio_blk",
    "virtio_scsi",
    "ext4",
    "button",
    "i6300esb",
    "wdat_wdt",
    "softdog",
    "efivarfs",
    "efi_pstore",
    "ramoops",
];

/// The first segment of an initramfs, and what follows it.
fn unpacked(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let mut zstd = zstd::stream::read::Decoder::with_buffer(bytes).expect("zstd").single_frame();
    let mut first = Vec::new();
    std::io::Read::read_to_end(&mut zstd, &mut first).expect("unpack");
    (first, zstd.finish())
}

#[test]
fn qemu_set_is_complete_small_and_reproducible() {
    let Some(kernel) = kernel("qemu_set", Set::Qemu) else { return };
    let quelead = std::env::current_exe().unwrap();
    let build = || Initramfs::build(Set::Qemu, &kernel, &quelead, &[]).unwrap();
    let (one, two) = (build(), build());
    let bytes = one.to_bytes().unwrap();
    assert_eq!(bytes, two.to_bytes().unwrap());
    // One segment with everything, filled up so that another archive can follow.
    let (tree, left) = unpacked(&bytes);
    assert!(tree.starts_with(b"070701") && tree == one.archive.to_bytes());
    assert!(left.iter().all(|byte| *byte == 0) && bytes.len() % 512 == 0);
    for name in
        ["virtio_net", "net_failover", "failover", "erofs", "overlay", "tun", "loop", "quota_v2"]
    {
        assert!(one.closure.modules.contains_key(name), "{name} is missing");
    }
    for name in MACHINE {
        assert!(one.closure.has(name), "{name} is missing");
    }
    assert!(one.module_bytes < 5_000_000, "{} B of modules", one.module_bytes);
    let dep = one.closure.modules_dep();
    let line = dep.lines().find(|l| l.contains("/virtio_net.ko:")).unwrap();
    assert!(line.ends_with("kernel/net/core/failover.ko"), "{line}");
    let path = format!("lib/modules/{}/{}", one.release, one.closure.modules["tun"].path);
    let module = one.archive.get(&path).unwrap();
    assert!(module.starts_with(b"\x7fELF"));
    assert!(!module.ends_with(b"~Module signature appended~\n"), "it kept its signature");
}

#[test]
fn rack_set_has_its_soft_dependencies() {
    let Some(kernel) = kernel("rack_set", Set::Rack) else { return };
    let image = Initramfs::build(Set::Rack, &kernel, Path::new("/bin/true"), &[]).unwrap();
    for name in ["e1000e", "ixgbe", "ice", "bnxt_en", "mlx5_core", "tg3", "mpt3sas", "nvme"] {
        assert!(image.closure.modules.contains_key(name), "{name} is missing");
    }
    for name in MACHINE.iter().chain(&["iTCO_wdt", "ipmi_watchdog", "hpwdt", "sp5100_tco"]) {
        assert!(image.closure.has(name), "{name} is missing");
    }
    // Two segments: everything else, then the modules at a multiple of four.
    let bytes = image.to_bytes().unwrap();
    let (rest, left) = unpacked(&bytes);
    assert!(rest.starts_with(b"070701"));
    let plain = left.iter().position(|b| *b != 0).unwrap();
    assert!(left[plain..].starts_with(b"070701"));
    assert_eq!((bytes.len() - left.len() + plain) % 4, 0);
    // Without it mounting erofs or ext4 fails with ENOENT: libcrc32c asks for `crc32c`, an alias.
    assert!(image.closure.modules.contains_key("crc32c_generic"));
    assert!(image.closure.modules_softdep().contains("softdep libcrc32c pre:"));
    assert!(image.module_bytes < 9_000_000, "{} B of modules", image.module_bytes);
}

#[test]
fn vmlinux_is_an_elf_with_a_pvh_entry() {
    let Some(kernel) = kernel("vmlinux", Set::Qemu) else { return };
    let elf = images::vmlinux::extract(&std::fs::read(&kernel.vmlinuz).unwrap()).unwrap();
    // The Xen note that names the entry point QEMU jumps to: namesz 4, descsz 8 or 4, type 18, "Xen".
    let note = |descsz: u8| [4, 0, 0, 0, descsz, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0];
    assert!([4, 8].iter().any(|n| elf.windows(16).any(|w| w == note(*n))));
}

/// A boot directory in a place of its own, with its builder's report.
fn boot_dir(test: &str, set: Set) -> Option<(PathBuf, images::Built)> {
    kernel(test, set)?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    let build = images::Build {
        set,
        kernel: None,
        quelead: "/bin/true".into(),
        cache: cache(),
        cmdline: "quelea.label=row=a".into(),
        extra: Vec::new(),
        out: out.clone(),
    };
    match build.run() {
        Ok(built) => Some((out, built)),
        Err(images::Error::Tool { command, stderr, .. }) if command.contains("apt-get") => {
            skip::because(test, format_args!("{command}: {stderr}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn uki_is_what_objcopy_and_objdump_see() {
    let Some((dir, built)) = boot_dir("uki", Set::Rack) else { return };
    let again = boot_dir("uki-again", Set::Rack).unwrap();
    assert_eq!(built, again.1, "two builds differ");
    assert_eq!(
        std::fs::read(dir.join("uki.efi")).unwrap(),
        std::fs::read(again.0.join("uki.efi")).unwrap()
    );
    assert!(!built.cmdline.contains("console="), "{}", built.cmdline);
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let out = std::process::Command::new(program).args(args).output().unwrap();
        assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let uki = dir.join("uki.efi");
    let headers = run("objdump", &["-h".as_ref(), uki.as_ref()]);
    let size = |name: &str| std::fs::metadata(dir.join(name)).unwrap().len();
    for (section, bytes) in [(".linux", size("vmlinuz")), (".initrd", size("initramfs.cpio"))] {
        let line = headers.lines().find(|l| l.split_whitespace().nth(1) == Some(section)).unwrap();
        // binutils shows the padded size of what is not code.
        let shown = u64::from_str_radix(line.split_whitespace().nth(2).unwrap(), 16).unwrap();
        assert!((bytes..bytes + 512).contains(&shown), "{line}");
    }
    let part = dir.join("part");
    for (section, file) in [(".linux", "vmlinuz"), (".initrd", "initramfs.cpio")] {
        run(
            "objcopy",
            &[
                "-O".as_ref(),
                "binary".as_ref(),
                "--only-section".as_ref(),
                section.as_ref(),
                uki.as_ref(),
                part.as_ref(),
            ],
        );
        let (seen, own) = (std::fs::read(&part).unwrap(), std::fs::read(dir.join(file)).unwrap());
        assert!(seen.starts_with(&own) && seen[own.len()..].iter().all(|b| *b == 0), "{section}");
    }
    let opened = images::BootDir::open(&dir).unwrap();
    assert_eq!(
        images::Uki::new(&opened.parts("", None)).unwrap().to_bytes(),
        std::fs::read(&uki).unwrap()
    );
    std::fs::write(dir.join("vmlinuz"), b"other").unwrap();
    let error = images::BootDir::open(&dir).unwrap_err().to_string();
    assert!(error.contains("vmlinuz: is not the file that was built"), "{error}");
    let error = images::BootDir::open(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("quelea boot build --out"), "{error}");
    for dir in [dir, again.0] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}
