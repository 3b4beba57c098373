//! What block devices there are, and what is on them.

use super::choose::{Candidate, Holds};
use super::ext4::{self, Found};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Most devices looked at.
const DEVICES_MAX: usize = 256;
/// What is looked at of either end of a device.
pub(super) const END_BYTES: usize = 1 << 20;
/// Where ext4 keeps its first backup, in the second group: with blocks of 4 KiB, and of 1 KiB.
const BACKUPS_AT: [u64; 2] = [32_768 * 4096, 8_193 * 1024];
/// Devices that are made of others or of memory, or whose medium changes.
const NOT_DISKS: [&str; 9] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "mtd"];

/// Where the kernel lists them.
const CLASS: &str = "/sys/class/block";

/// Names of disks and partitions, sorted. `more`: of this kind as well (`loop`, for tests).
pub(super) fn names(more: Option<&str>) -> Vec<String> {
    let skipped = |name: &str| {
        NOT_DISKS.iter().any(|kind| name.starts_with(kind) && more.is_none_or(|m| m != *kind))
    };
    let mut names: Vec<String> = std::fs::read_dir(CLASS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !skipped(name))
        .take(DEVICES_MAX)
        .collect();
    names.sort();
    names
}

/// Controllers that may still be looking for their disks: SCSI hosts behind which nothing has appeared, or a disk whose
/// driver is not there yet, and USB storage without a host so far. SATA is not among them: its drivers are loaded when every port has been looked at.
pub(super) fn searching(sys: &Path) -> Vec<String> {
    let entries = |dir: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(DEVICES_MAX);
        entries.filter_map(|e| Some((e.file_name().into_string().ok()?, e.path()))).collect()
    };
    let has = |dir: &Path, start: &str| entries(dir).iter().any(|(n, _)| n.starts_with(start));
    let mut found = Vec::new();
    for (name, host) in entries(&sys.join("class/scsi_host")) {
        // …/0000:00:1f.2/ata1/host0/scsi_host/host0
        let sata = std::fs::canonicalize(&host).is_ok_and(|path| {
            path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("ata"))
        });
        // host2/target2:0:0/2:0:0:0: type 0 is a disk (SPC-4, 6.6.2), and has `block` once its driver knows it.
        let targets = entries(&host.join("device"));
        let units =
            targets.iter().filter(|(n, _)| n.starts_with("target")).flat_map(|t| entries(&t.1));
        let known = |unit: &Path| {
            let kind = std::fs::read_to_string(unit.join("type")).unwrap_or_default();
            !kind.is_empty() && (kind.trim() != "0" || has(unit, "block"))
        };
        if !sata && !units.into_iter().any(|(_, unit)| known(&unit)) {
            let driver = std::fs::read_to_string(host.join("proc_name")).unwrap_or_default();
            found.push(format!("{name} ({})", driver.trim()));
        }
    }
    for (name, interface) in entries(&sys.join("bus/usb/devices")) {
        let class = std::fs::read_to_string(interface.join("bInterfaceClass")).unwrap_or_default();
        if class.trim() == "08" && !has(&interface, "host") {
            found.push(format!("usb {name}"));
        }
    }
    found.sort();
    found
}

/// One of them; `None` for a drive without a medium, or one that has just gone.
pub(super) fn candidate(name: &str, all: &[String]) -> Option<Candidate> {
    let sys = Path::new(CLASS).join(name);
    let fact = |file: &str| {
        let text = std::fs::read_to_string(sys.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let bytes = fact("size")?.parse::<u64>().ok()?.checked_mul(512).filter(|bytes| *bytes > 0)?;
    let parts = |other: &&String| **other != name && sys.join(other).join("partition").exists();
    Some(Candidate {
        serial: fact("serial").or_else(|| fact("device/serial")).or_else(|| vpd_serial(&sys)),
        bytes,
        read_only: fact("ro").is_some_and(|ro| ro != "0"),
        whole: !sys.join("partition").exists(),
        partitions: all.iter().filter(parts).count(),
        holds: holds(&Path::new("/dev").join(name), bytes),
        name: name.to_owned(),
    })
}

/// SCSI and SATA: the unit's page of its serial number (SPC-4, 7.8.15).
fn vpd_serial(sys: &Path) -> Option<String> {
    let page = std::fs::read(sys.join("device/vpd_pg80")).ok()?;
    let text = String::from_utf8_lossy(page.get(4..)?).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Reads both ends.
pub(super) fn holds(device: &Path, bytes: u64) -> Holds {
    let read = || -> std::io::Result<Holds> {
        let file = File::open(device)?;
        let end = usize::try_from(bytes).unwrap_or(usize::MAX).min(END_BYTES);
        let (mut first, mut last) = (vec![0; end], vec![0; end]);
        file.read_exact_at(&mut first, 0)?;
        file.read_exact_at(&mut last, bytes.saturating_sub(end as u64))?;
        let mut backups = [[0; ext4::BYTES]; BACKUPS_AT.len()];
        for (backup, at) in backups.iter_mut().zip(BACKUPS_AT) {
            if bytes >= at + ext4::BYTES as u64 {
                file.read_exact_at(backup, at)?;
            }
        }
        Ok(what(&first, &last, &backups, bytes))
    };
    read().unwrap_or_else(|e| Holds::Unreadable(e.to_string()))
}

/// What these bytes are. Pure.
pub(super) fn what(first: &[u8], last: &[u8], backups: &[[u8; ext4::BYTES]], bytes: u64) -> Holds {
    let block = first.get(ext4::OFFSET..ext4::OFFSET + ext4::BYTES).unwrap_or_default();
    match ext4::parse(block, bytes) {
        Found::None => {}
        found => return Holds::Ext(found),
    }
    if let Some(signature) = signature(first, last) {
        return Holds::Other(signature.into());
    }
    let is_ours = |b: &[u8; ext4::BYTES]| {
        matches!(ext4::parse(b, u64::MAX), Found::Ours(_) | Found::Broken(_))
    };
    if backups.iter().any(is_ours) {
        let why = "its superblock is gone and a backup is there: it needs fsck.ext4 elsewhere";
        return Holds::Ext(Found::Broken(why.into()));
    }
    if first.iter().chain(last).all(|byte| *byte == 0) {
        Holds::Blank
    } else {
        Holds::Other("bytes that are not zero and that we do not know".into())
    }
}

/// What others write at the ends of what is theirs (util-linux, libblkid/src).
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a GPT"),
    (4096, b"EFI PART", "a GPT"),
    (0, b"XFSB", "an XFS file system"),
    (0x10040, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (512, b"LABELONE", "an LVM volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "part of a RAID (md)"),
    (0, b"\xfc\x4e\x2b\xa9", "part of a RAID (md)"),
    (4086, b"SWAPSPACE2", "swap space"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS"),
    (510, b"\x55\xaa", "an MBR"),
];

fn signature(first: &[u8], last: &[u8]) -> Option<&'static str> {
    let at_start = SIGNATURES.iter().find(|(at, bytes, _)| {
        first.get(*at..at + bytes.len()).is_some_and(|there| there == *bytes)
    });
    // A GPT's copy outlives an overwritten start. In the last sector of either size.
    let gpt = [512, 4096].iter().any(|back| {
        let from = last.len().saturating_sub(*back);
        last.get(from..).is_some_and(|sector| sector.starts_with(b"EFI PART"))
    });
    at_start.map(|(_, _, what)| *what).or(gpt.then_some("the backup of a GPT"))
}
