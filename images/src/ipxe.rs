//! iPXE scripts (<https://ipxe.org/scripting>), as pure text.

use std::fmt::Write as _;

/// What a machine fetches, as URLs or paths relative to the script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script<'a> {
    /// The bzImage.
    pub kernel: &'a str,
    /// The initramfs.
    pub initramfs: &'a str,
    /// The machine's own archive.
    pub node: &'a str,
    /// Boot without the machine's own archive where the server has none.
    pub node_is_optional: bool,
    /// Kernel arguments.
    pub cmdline: &'a str,
}

impl Script<'_> {
    /// The script. UEFI's kernel stub asks for the archives by the names in `initrd=`, so those must be there; BIOS
    /// loads what was fetched, in that order.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { kernel, initramfs, node, node_is_optional, cmdline } = self;
        let mut out = String::from("#!ipxe\n");
        let _ = writeln!(out, "initrd --name initramfs.cpio {initramfs}");
        let or_without = if *node_is_optional { " ||" } else { "" };
        let own = "set own initrd=node.cpio";
        let _ = writeln!(out, "initrd --name node.cpio {node} && {own}{or_without}");
        let _ = writeln!(out, "kernel {kernel} initrd=initramfs.cpio ${{own}} {cmdline}");
        out.push_str("boot\n");
        out
    }
}

/// For any web server that serves a boot directory: each machine's own archive is `node/<mac>.cpio`, if there.
#[must_use]
pub fn for_any_server(cmdline: &str) -> String {
    Script {
        kernel: "vmlinuz",
        initramfs: "initramfs.cpio",
        node: "node/${mac:hexhyp}.cpio",
        node_is_optional: true,
        cmdline,
    }
    .text()
}

/// For a machine that is to go on with its next boot device.
#[must_use]
pub fn nothing(why: &str) -> String {
    format!("#!ipxe\necho {why}\nexit 1\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_archive_fails_the_boot_unless_it_is_optional() {
        let text = for_any_server("panic=30");
        assert!(
            text.contains("node/${mac:hexhyp}.cpio && set own initrd=node.cpio ||\n"),
            "{text}"
        );
        assert!(text.contains("kernel vmlinuz initrd=initramfs.cpio ${own} panic=30\n"), "{text}");
        let own = Script {
            kernel: "http://s/vmlinuz",
            initramfs: "http://s/i",
            node: "http://s/n",
            node_is_optional: false,
            cmdline: "",
        };
        assert!(own.text().contains("http://s/n && set own initrd=node.cpio\n"));
    }
}
