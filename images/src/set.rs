//! The two module sets: what QEMU shows a guest, and what racks are built of.

use crate::{kernel::Flavour, modules::Want};

/// Which machines an image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Virtio devices on the cloud kernel: small, boots fastest.
    Qemu,
    /// Server NICs, disks, watchdogs and consoles on the generic kernel.
    Rack,
}

use Want::{Dir, Module};

/// What every node needs to run pods, whatever it runs on. Loaded at boot, in this order; `quota_v2` before a disk with quotas is
/// mounted, which the kernel refuses without it.
pub const ALWAYS: [&str; 5] = ["tun", "loop", "erofs", "overlay", "quota_v2"];

const BASE: &[Want] = &[
    Module("tun"),
    Module("loop"),
    Module("erofs"),
    Module("overlay"),
    Module("quota_v2"),
    Module("ext4"),
    Module("button"),
    Module("virtio_pci"),
    Module("virtio_net"),
    Module("virtio_blk"),
    Module("virtio_console"),
    Module("virtio_rng"),
    // State disks: what QEMU, hypervisors and most servers have.
    Module("virtio_scsi"),
    Module("nvme"),
    Module("ahci"),
    Module("sd_mod"),
    // QEMU's watchdog, the one firmware describes, and the kernel's own where there is none.
    Module("i6300esb"),
    Module("wdat_wdt"),
    Module("softdog"),
    // Firmware variables and what is kept of a crash. ERST is built in.
    Module("efivarfs"),
    Module("efi_pstore"),
    Module("ramoops"),
];

/// Left out: bnx2, bnx2x and qed, which do nothing without firmware that is not in Debian's kernel package.
const RACK: &[Want] = &[
    Dir("drivers/net/ethernet/amazon"),
    Dir("drivers/net/ethernet/amd/xgbe"),
    Dir("drivers/net/ethernet/aquantia"),
    Dir("drivers/net/ethernet/broadcom/bnxt"),
    Module("tg3"),
    Dir("drivers/net/ethernet/chelsio/cxgb4"),
    Dir("drivers/net/ethernet/cisco"),
    Dir("drivers/net/ethernet/emulex"),
    Dir("drivers/net/ethernet/google"),
    Dir("drivers/net/ethernet/intel"),
    Dir("drivers/net/ethernet/mellanox"),
    Dir("drivers/net/ethernet/pensando"),
    Dir("drivers/net/ethernet/realtek"),
    Module("sfc"),
    Dir("drivers/net/vmxnet3"),
    Module("hv_netvsc"),
    Module("bonding"),
    Module("8021q"),
    Module("ata_piix"),
    Module("mpt3sas"),
    Module("mpi3mr"),
    Module("megaraid_sas"),
    Module("hpsa"),
    Module("smartpqi"),
    Module("aacraid"),
    Module("vmw_pvscsi"),
    Module("hv_storvsc"),
    Module("usb_storage"),
    Module("uas"),
    Module("xhci_pci"),
    Module("ehci_pci"),
    Module("usbhid"),
    Module("hid_generic"),
    Module("ipmi_si"),
    Module("ipmi_devintf"),
    Module("ipmi_watchdog"),
    Module("iTCO_wdt"),
    Module("sp5100_tco"),
    Module("hpwdt"),
    Module("vfat"),
    Module("nls_ascii"),
    Module("nls_cp437"),
    Module("zram"),
];

impl Set {
    /// Both sets.
    pub const ALL: [Self; 2] = [Self::Qemu, Self::Rack];

    /// `qemu` or `rack`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Rack => "rack",
        }
    }

    /// The set of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }

    /// The kernel build it goes with.
    #[must_use]
    pub fn flavour(self) -> Flavour {
        match self {
            Self::Qemu => Flavour::Cloud,
            Self::Rack => Flavour::Generic,
        }
    }

    /// What it asks of the kernel's modules.
    #[must_use]
    pub fn wants(self) -> Vec<Want> {
        let mut wants = BASE.to_vec();
        match self {
            Self::Qemu => {}
            Self::Rack => wants.extend_from_slice(RACK),
        }
        wants
    }

    /// Whether modules go into the image bare: not as `.ko.xz`, and without Debian's signature.
    ///
    /// Of the time that loading one takes, the signature is nine tenths (44 million instructions) and xz is most of what
    /// a virtual machine, which loads most of its few modules, would still feel; the whole is compressed better than the
    /// parts, too. A kernel that insists on signatures (Secure Boot's lockdown, `module.sig_enforce`) refuses such
    /// modules: it wants the set for racks. There a machine loads a tenth of a hundred, and all of them bare would take
    /// 29 MB of its memory.
    #[must_use]
    pub fn bares_modules(self) -> bool {
        self == Self::Qemu
    }

    /// Largest initramfs this project allows, without the kernel.
    #[must_use]
    pub fn initramfs_bytes_max(self) -> u64 {
        match self {
            Self::Qemu => 4_000_000,
            Self::Rack => 12_000_000,
        }
    }
}
