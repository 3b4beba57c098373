//! Disks of machines: sparse raw files that outlive a power cut, and what a test does to them while the power is off.

use anyhow::{Context as _, Result, ensure};
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Where ext4's superblock begins.
const SUPERBLOCK_AT: u64 = 1024;
/// Its length.
const SUPERBLOCK_BYTES: usize = 1024;
/// `s_magic` of ext2, 3 and 4.
const EXT4_MAGIC: u16 = 0xef53;

/// By what a machine sees a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `vda`.
    Virtio,
    /// `nvme0n1`.
    Nvme,
    /// `sda`.
    Ahci,
    /// `sda`, behind a MegaRAID SAS 2108.
    Megasas,
    /// `sda`, behind VMware's adapter.
    Pvscsi,
    /// Not at all, until the test plugs it in.
    Unplugged,
}

/// One disk. Its file is made when its machine is first switched on.
#[derive(Debug, Clone)]
pub struct Disk {
    bus: Bus,
    size_bytes: u64,
    read_only: bool,
    fill: Option<fn(&Path) -> Result<()>>,
    path: PathBuf,
}

impl Disk {
    /// A blank disk of that many MiB.
    #[must_use]
    pub fn new(bus: Bus, size_mib: u64) -> Self {
        Self { bus, size_bytes: size_mib << 20, read_only: false, fill: None, path: PathBuf::new() }
    }

    /// A blank virtio disk.
    #[must_use]
    pub fn virtio(size_mib: u64) -> Self {
        Self::new(Bus::Virtio, size_mib)
    }

    /// A blank NVMe disk.
    #[must_use]
    pub fn nvme(size_mib: u64) -> Self {
        Self::new(Bus::Nvme, size_mib)
    }

    /// A blank SATA disk.
    #[must_use]
    pub fn ahci(size_mib: u64) -> Self {
        Self::new(Bus::Ahci, size_mib)
    }

    /// Refuses every write. AHCI disks cannot be that in QEMU.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Not blank: this writes what is on it before the first boot.
    #[must_use]
    pub fn filled(mut self, fill: fn(&Path) -> Result<()>) -> Self {
        self.fill = Some(fill);
        self
    }

    /// Its file; empty until its cluster is started.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the file.
    ///
    /// # Errors
    /// When it cannot be made or filled.
    pub(crate) fn make(mut self, dir: &Path, machine: usize, index: usize) -> Result<Self> {
        self.path = dir.join(format!("disk{machine}-{index}"));
        let file =
            File::create(&self.path).with_context(|| format!("create {}", self.path.display()))?;
        file.set_len(self.size_bytes)?;
        if let Some(fill) = self.fill {
            fill(&self.path)?;
        }
        Ok(self)
    }

    /// QEMU's arguments for it, the `index`-th of its machine.
    pub(crate) fn arguments(&self, index: usize) -> Vec<String> {
        let read_only = if self.read_only { "on" } else { "off" };
        let drive = format!(
            "if=none,id=disk{index},format=raw,read-only={read_only},file={}",
            self.path.display()
        );
        if self.bus == Bus::Unplugged {
            return vec!["-drive".into(), drive];
        }
        let (device, place) = match self.bus {
            Bus::Virtio => ("virtio-blk-pci", String::new()),
            Bus::Nvme => ("nvme", String::new()),
            Bus::Ahci | Bus::Unplugged => ("ide-hd", format!(",bus=ide.{index}")),
            Bus::Megasas | Bus::Pvscsi => ("scsi-hd", format!(",bus=hba{index}.0")),
        };
        let adapter = match self.bus {
            Bus::Megasas => Some("megasas-gen2"),
            Bus::Pvscsi => Some("pvscsi"),
            Bus::Virtio | Bus::Nvme | Bus::Ahci | Bus::Unplugged => None,
        };
        let adapter = adapter.map(|name| ["-device".into(), format!("{name},id=hba{index}")]);
        let device = format!("{device},drive=disk{index},serial=test{index}{place}");
        let mut arguments: Vec<String> = adapter.into_iter().flatten().collect();
        arguments.extend(["-drive".into(), drive, "-device".into(), device]);
        arguments
    }

    /// Makes it larger, as a volume is grown below a machine that is off.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn grow(&self, size_mib: u64) -> Result<()> {
        Ok(File::options().write(true).open(&self.path)?.set_len(size_mib << 20)?)
    }

    /// Overwrites bytes.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn overwrite(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(File::options().write(true).open(&self.path)?.write_all_at(bytes, at)?)
    }

    /// Makes it blank again.
    ///
    /// # Errors
    /// When the file cannot be changed.
    pub fn wipe(&self) -> Result<()> {
        let file = File::options().write(true).open(&self.path)?;
        let size_bytes = file.metadata()?.len();
        file.set_len(0)?;
        Ok(file.set_len(size_bytes)?)
    }

    /// All bytes that are not holes, summed: has anything been written since?
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fingerprint(&self) -> Result<u64> {
        use std::hash::{DefaultHasher, Hasher as _};
        let mut hasher = DefaultHasher::new();
        let file = File::open(&self.path)?;
        let (mut block, mut at) = (vec![0; 1 << 16], 0);
        loop {
            let len = file.read_at(&mut block, at)?;
            if len == 0 {
                return Ok(hasher.finish());
            }
            if block[..len].iter().any(|byte| *byte != 0) {
                hasher.write_u64(at);
                hasher.write(&block[..len]);
            }
            at += len as u64;
        }
    }

    /// The file system on it.
    ///
    /// # Errors
    /// When there is no ext4 superblock.
    pub fn ext4(&self) -> Result<Ext4> {
        let mut block = [0; SUPERBLOCK_BYTES];
        File::open(&self.path)?.read_exact_at(&mut block, SUPERBLOCK_AT)?;
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| block[at + n]));
        ensure!(word(0x38) as u16 == EXT4_MAGIC, "{}: no ext4", self.path.display());
        let label = block[0x78..0x88].split(|byte| *byte == 0).next().unwrap_or_default();
        let bytes = u64::from(word(0x4)) << (10 + word(0x18).min(6));
        Ok(Ext4 {
            label: String::from_utf8_lossy(label).into_owned(),
            size_bytes: bytes,
            // s_state: 1 is "cleanly unmounted"; INCOMPAT_RECOVER is a journal to replay.
            clean: (word(0x38) >> 16) & 1 == 1 && word(0x60) & 4 == 0,
        })
    }

    /// What e2fsck(8) finds, without repairing.
    ///
    /// # Errors
    /// When it finds a fault; with what it says.
    pub fn check(&self) -> Result<()> {
        let out = run("e2fsck", &["-fn"], &self.path)?;
        ensure!(out.status.success(), "e2fsck: {}", String::from_utf8_lossy(&out.stdout));
        Ok(())
    }
}

/// An ext4 file system, as its superblock tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ext4 {
    /// Volume label.
    pub label: String,
    /// Size of the file system, which may be less than the disk's.
    pub size_bytes: u64,
    /// Unmounted in order, with nothing in the journal.
    pub clean: bool,
}

/// For [`Disk::filled`]: an ext4 of this label.
///
/// # Errors
/// When mkfs.ext4(8) fails.
pub fn ext4(path: &Path, label: &str) -> Result<()> {
    let out = run("mkfs.ext4", &["-q", "-F", "-L", label], path)?;
    ensure!(out.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

/// For [`Disk::filled`]: damages the primary superblock, whose checksum no longer holds, but not its label.
///
/// # Errors
/// When the file cannot be changed.
pub fn corrupt(path: &Path) -> Result<()> {
    // s_inodes_count, s_blocks_count_lo and the counters after them.
    Ok(File::options().write(true).open(path)?.write_all_at(&[0xa5; 0x30], SUPERBLOCK_AT)?)
}

/// For [`Disk::filled`]: takes every block that is free, by debugfs(8).
///
/// # Errors
/// When it does not end up full.
pub fn fill(path: &Path) -> Result<()> {
    let zeros = path.with_extension("zeros");
    let size_bytes = std::fs::metadata(path)?.len();
    // Not a hole: debugfs keeps those.
    std::fs::write(&zeros, vec![1; usize::try_from(size_bytes)?])?;
    let write = format!("write {} all", zeros.display());
    run("debugfs", &["-w", "-R", &write], path)?;
    std::fs::remove_file(&zeros)?;
    let mut block = [0; SUPERBLOCK_BYTES];
    File::open(path)?.read_exact_at(&mut block, SUPERBLOCK_AT)?;
    let free = u32::from_le_bytes([0, 1, 2, 3].map(|n| block[0xc + n]));
    ensure!(free == 0, "{}: {free} blocks are still free", path.display());
    Ok(())
}

fn run(program: &str, args: &[&str], path: &Path) -> Result<std::process::Output> {
    Command::new(program)
        .args(args)
        .arg(path)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .with_context(|| format!("start {program} (package e2fsprogs)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_sparse_grows_and_tells_what_is_on_it() {
        let dir = crate::vm::test_dir("disk").expect("directory");
        let disk = Disk::virtio(16).make(&dir, 0, 0).expect("disk");
        assert!(disk.ext4().is_err(), "a blank disk has no file system");
        let blank = disk.fingerprint().expect("read");
        disk.grow(32).expect("grow");
        assert_eq!(std::fs::metadata(disk.path()).expect("stat").len(), 32 << 20);
        assert_eq!(disk.fingerprint().expect("read"), blank, "holes are nothing");
        disk.overwrite(12_345, b"x").expect("write");
        assert_ne!(disk.fingerprint().expect("read"), blank);

        let disk = Disk::nvme(16).filled(|path| ext4(path, "someone"));
        let disk = disk.make(&dir, 0, 1).expect("disk");
        let found = disk.ext4().expect("ext4");
        let wanted = Ext4 { label: "someone".into(), size_bytes: 16 << 20, clean: true };
        assert_eq!(found, wanted);
        disk.check().expect("sound");
        corrupt(disk.path()).expect("write");
        assert!(disk.check().is_err(), "a damaged superblock is not sound");
        assert_eq!(disk.ext4().expect("still ext4").label, "someone");
        disk.wipe().expect("wipe");
        assert_eq!(disk.fingerprint().expect("read"), blank);

        Disk::nvme(16).filled(fill_ext4).make(&dir, 0, 2).expect("full");
        crate::vm::remove_dir(&dir);
    }

    fn fill_ext4(path: &Path) -> Result<()> {
        ext4(path, "full")?;
        fill(path)
    }

    #[test]
    fn arguments_name_the_device_of_the_bus() {
        let of = |disk: Disk| disk.arguments(1).join(" ");
        assert!(of(Disk::virtio(1)).contains("virtio-blk-pci,drive=disk1,serial=test1"));
        assert!(of(Disk::ahci(1)).ends_with("ide-hd,drive=disk1,serial=test1,bus=ide.1"));
        assert!(of(Disk::nvme(1).read_only()).contains("read-only=on"));
    }
}
