//! Machines that are given no kernel: SeaBIOS with iPXE in the network card's ROM, or OVMF with its own network stack.

use anyhow::{Context as _, Result, ensure};
use std::path::Path;

const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// In the arguments of a device that says itself which ROM it has.
pub(crate) const ROM: &str = "rombar=1";

/// What boots a blank machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS; the card's ROM is iPXE.
    Bios,
    /// SeaBIOS; the site's DHCP server has the ROM load iPXE once more, as `undionly.kpxe`, which reaches the network through the
    /// ROM's PXE functions alone.
    BiosUndi,
    /// UEFI, by PXE.
    UefiPxe,
    /// UEFI, by HTTP.
    UefiHttp,
}

impl Firmware {
    /// Not UEFI.
    #[must_use]
    pub fn is_bios(self) -> bool {
        matches!(self, Self::Bios | Self::BiosUndi)
    }

    /// The package whose firmware is missing here, if one is.
    #[must_use]
    pub fn missing(self) -> Option<&'static str> {
        (!self.is_bios() && !Path::new(CODE).exists()).then_some("ovmf")
    }

    /// The network device, and which ROM it has.
    pub(crate) fn nic(self) -> &'static str {
        match self {
            // QEMU fits the device's own ROM, which is iPXE, to it only where none is named.
            Self::Bios | Self::BiosUndi => "virtio-net-pci,bootindex=1,rombar=1",
            // Without a ROM it is OVMF's stack that boots.
            Self::UefiPxe | Self::UefiHttp => "virtio-net-pci,bootindex=1,rombar=1,romfile=",
        }
    }

    /// QEMU's arguments; the machine waits until it is let go. `variables` is where its own UEFI variables are kept.
    pub(crate) fn arguments(self, variables: &Path) -> Result<Vec<String>> {
        let mut arguments = vec!["-S".to_owned()];
        if self.is_bios() {
            return Ok(arguments);
        }
        ensure!(self.missing().is_none(), "{CODE} is not there: apt-get install ovmf");
        std::fs::copy(VARIABLES, variables).with_context(|| format!("copy {VARIABLES}"))?;
        let drive = |unit: u8, rest: String| format!("if=pflash,format=raw,unit={unit},{rest}");
        let no = |what: &str| format!("name=opt/org.tianocore/{what},string=n");
        arguments.extend(["-drive".into(), drive(0, format!("readonly=on,file={CODE}"))]);
        arguments.extend(["-drive".into(), drive(1, format!("file={}", variables.display()))]);
        arguments.extend(["-fw_cfg".into(), no("IPv6PXESupport")]);
        if self == Self::UefiHttp {
            arguments.extend(["-fw_cfg".into(), no("IPv4PXESupport")]);
        }
        Ok(arguments)
    }
}
