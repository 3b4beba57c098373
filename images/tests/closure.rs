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
            println!("SKIP {test}: {why}");
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

#[test]
fn qemu_set_is_complete_small_and_reproducible() {
    let Some(kernel) = kernel("qemu_set", Set::Qemu) else { return };
    let quelead = std::env::current_exe().unwrap();
    let build = || Initramfs::build(Set::Qemu, &kernel, &quelead, &[]).unwrap();
    let (one, two) = (build(), build());
    let bytes = one.to_bytes().unwrap();
    assert_eq!(bytes, two.to_bytes().unwrap());
    // Two segments: gzip with everything else, then the modules at a multiple of four.
    let mut rest = Vec::new();
    let mut gzip = flate2::bufread::GzDecoder::new(&bytes[..]);
    std::io::Read::read_to_end(&mut gzip, &mut rest).unwrap();
    assert!(rest.starts_with(b"070701"));
    let left = gzip.into_inner();
    let plain = left.iter().position(|b| *b != 0).unwrap();
    assert!(left[plain..].starts_with(b"070701"));
    assert_eq!((bytes.len() - left.len() + plain) % 4, 0);
    for name in ["virtio_net", "net_failover", "failover", "erofs", "overlay", "tun", "loop"] {
        assert!(one.closure.modules.contains_key(name), "{name} is missing");
    }
    for name in MACHINE {
        assert!(one.closure.has(name), "{name} is missing");
    }
    assert!(one.module_bytes < 2_000_000, "{} B of modules", one.module_bytes);
    let dep = one.closure.modules_dep();
    let line = dep.lines().find(|l| l.contains("/virtio_net.ko.xz:")).unwrap();
    assert!(line.ends_with("kernel/net/core/failover.ko.xz"), "{line}");
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
