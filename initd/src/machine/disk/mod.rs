//! The disk that outlives a reboot: found by its label, formatted when told to and blank, mounted, grown.
//!
//! ```text
//! PID 1 ──spawns──▶ quelea-disk: look at /sys/class/block ─▶ choose ─▶ format ─▶ mount at STAGE ─▶ say so ─▶ grow
//!   └── moves STAGE to /var/lib/quelea, or takes memory
//! ```
//!
//! A process of its own, because a dying disk holds whoever reads it, and because PID 1 parses nobody's bytes. When it
//! does not answer in time, the machine goes on with memory; should the mount still come, it stays aside.
//!
//! Never formatted: a disk with anything on it, whatever is told. Never repaired: there is no fsck on a node, only the
//! journal's replay when it is mounted.

mod choose;
mod ext4;
mod scan;
mod template;

pub use choose::{Candidate, Decision, FORMAT_BYTES_MIN, Holds, Selector, Wish, choose};
pub use ext4::{Found, LABEL, Superblock};

use super::console::say;
use super::{mounts, sys};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The name the process goes by.
pub(super) const DISK: &str = "quelea-disk";
/// Where it mounts.
const STAGE: &str = "/run/quelea/disk";
/// How long mounting may take once the disk is chosen: a journal is replayed in it.
const MOUNT_MS_MAX: u64 = 60_000;
/// How long an expected disk is waited for, where nobody says otherwise.
const WAIT_S: u32 = 15;
/// The same for one that nobody expects, while a controller is still looking for its disks.
const AUTO_WAIT_S: u32 = 5;
/// No disk has appeared for this long: all are there.
const SETTLED_MS: u64 = 3_000;
const LOOK_EVERY_MS: u64 = 100;
/// A disk that has grown by less is left as it is.
const GROW_BYTES_MIN: u64 = 8 << 20;
/// A disk with less free is full: nothing could be kept on it.
const FREE_BYTES_MIN: u64 = 1 << 20;
/// A file with the same words as `quelea.state=`, which goes before it.
pub(super) const FILE: &str = "/etc/quelea/state";

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// This device is mounted on the state directory.
    Disk(String),
    /// Memory, as wished or because there is no disk.
    Memory,
    /// Memory, because of this.
    Fault(String),
}

/// What is wished: the command line's word, else the file's, else [`Wish::Auto`].
pub(super) fn wish(cmdline: Option<&Wish>) -> Wish {
    if let Some(wish) = cmdline {
        return wish.clone();
    }
    let text = super::read(FILE);
    if text.trim().is_empty() {
        return Wish::default();
    }
    Wish::parse(text.trim()).unwrap_or_else(|why| {
        say!("state: ignored {FILE}: {why}");
        Wish::default()
    })
}

/// Starts the process. Its first line is for [`arrived`].
pub(super) fn start(wish: &Wish, wait_s: Option<u32>) -> Result<(ChildStdout, Duration), String> {
    let wait_s = wait_s.unwrap_or(if wish.expects() { WAIT_S } else { AUTO_WAIT_S });
    let mut child = Command::new("/proc/self/exe")
        .arg0(DISK)
        .arg(text(wish))
        .arg(wait_s.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("start {DISK}: {e}"))?;
    let wait_ms = u64::from(wait_s) * 1000;
    let limit = Duration::from_millis(wait_ms + SETTLED_MS + MOUNT_MS_MAX);
    Ok((child.stdout.take().ok_or("no pipe")?, limit))
}

/// Takes the process's first line; `None`: there was none in time. Puts the disk in its place.
pub(super) fn arrived(line: Option<&str>) -> Outcome {
    let Some(line) = line else {
        return Outcome::Fault("the disk does not answer".into());
    };
    match line.split_once(' ').unwrap_or((line, "")) {
        ("disk", name) => match mounts::move_to_state(STAGE) {
            Ok(()) => Outcome::Disk(name.to_owned()),
            Err(e) => Outcome::Fault(e.to_string()),
        },
        ("memory", _) => Outcome::Memory,
        (_, why) => Outcome::Fault(why.to_owned()),
    }
}

fn text(wish: &Wish) -> String {
    // As `Wish::parse` reads it.
    match wish {
        Wish::Auto => "auto".into(),
        Wish::Memory => "memory".into(),
        Wish::Disk => "disk".into(),
        Wish::Format(Selector::Only(bytes)) => format!("format:min:{}M", bytes >> 20),
        Wish::Format(Selector::Serial(serial)) => format!("format:serial:{serial}"),
        Wish::Format(Selector::Name(name)) => format!("format:{name}"),
    }
}

/// The process's role: one line on stdout, then it may go on growing the disk.
pub(super) fn main<'a>(mut args: impl Iterator<Item = &'a OsStr>) -> i32 {
    let wish = args.next().and_then(OsStr::to_str).and_then(|w| Wish::parse(w).ok());
    let wait_s = args.next().and_then(OsStr::to_str).and_then(|s| s.parse().ok()).unwrap_or(0);
    let chosen = look(&wish.unwrap_or_default(), Duration::from_secs(wait_s));
    let mounted = chosen.and_then(|chosen| match chosen {
        Some(name) => mount(&name).map(|(superblock, root)| Some((name, superblock, root))),
        None => Ok(None),
    });
    match mounted {
        Ok(Some((name, superblock, root))) => {
            println!("disk {name}");
            grow(&name, &superblock, root);
            0
        }
        Ok(None) => {
            println!("memory");
            0
        }
        Err(why) => {
            println!("fault {why}");
            1
        }
    }
}

/// Which device is to be mounted; formats it when that is what was decided.
fn look(wish: &Wish, wait: Duration) -> Result<Option<String>, String> {
    let start = Instant::now();
    let (mut names, mut changed) = (Vec::new(), start);
    let mut told = false;
    loop {
        let now = scan::names(None);
        if now != names {
            (names, changed) = (now, Instant::now());
        }
        let settled = start.elapsed() >= wait
            || !names.is_empty() && changed.elapsed() >= Duration::from_millis(SETTLED_MS);
        let there: Vec<Candidate> =
            names.iter().filter_map(|name| scan::candidate(name, &names)).collect();
        // A labelled disk may come as late as it likes, one to format only after the others.
        let settled = match wish {
            Wish::Disk => start.elapsed() >= wait,
            Wish::Auto => has_all(wait.saturating_sub(start.elapsed()), &mut told),
            _ => settled,
        };
        match choose(wish, &there, settled) {
            Decision::Memory => return Ok(None),
            Decision::Wait => std::thread::sleep(Duration::from_millis(LOOK_EVERY_MS)),
            Decision::Mount(name) => return Ok(Some(name)),
            Decision::Refuse(why) => return Err(why),
            Decision::Format(name) => {
                format(&name).map_err(|e| format!("format {name}: {e}"))?;
                return Ok(Some(name));
            }
        }
    }
}

/// Whether no more disks are to be expected, or the time `left` for them is over. Says once for what it waits, and at the end that
/// it did in vain.
fn has_all(left: Duration, told: &mut bool) -> bool {
    let searching = scan::searching(Path::new("/sys"));
    if searching.is_empty() {
        return true;
    }
    let whom = searching.join(", ");
    if left.is_zero() {
        say!("state: no disk has come of {whom}");
        return true;
    }
    if !std::mem::replace(told, true) {
        let s = left.as_secs_f64().ceil();
        say!("state: waiting up to {s} s for disks of {whom} (quelea.state=memory does not)");
    }
    false
}

fn format(name: &str) -> std::io::Result<()> {
    let path = Path::new("/dev").join(name);
    // O_EXCL: refused while anybody else has it mounted or in a volume.
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let device = File::from(rustix::fs::open(&path, flags, Mode::empty())?);
    let (mut uuid, mut seed) = (random()?, random()?);
    for id in [&mut uuid, &mut seed] {
        // Version 4 (RFC 9562, 5.4).
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
    }
    template::write(&device, knows_quotas(), uuid, seed)?;
    say!("state: {name} was blank and is formatted now");
    Ok(())
}

/// Whether the kernel can mount a file system with quotas: without the module it refuses.
fn knows_quotas() -> bool {
    Path::new("/sys/module/quota_v2").exists()
}

fn random() -> std::io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}

/// Mounts it at [`STAGE`]. The descriptor is of its root, wherever PID 1 moves it.
fn mount(name: &str) -> Result<(Superblock, OwnedFd), String> {
    let device = Path::new("/dev").join(name);
    let bytes = device_bytes(&device).map_err(|e| format!("{name}: {e}"))?;
    // What a format has written, or what has been there.
    let superblock = match scan::holds(&device, bytes) {
        Holds::Ext(Found::Ours(superblock)) => superblock,
        Holds::Ext(Found::Broken(why)) => return Err(format!("{name}: {why}")),
        _ => return Err(format!("{name} is no state disk any more")),
    };
    if superblock.replay {
        say!("state: {name} was not unmounted; its journal is replayed");
    }
    let _ = std::fs::create_dir_all(STAGE);
    let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
    // Without the word they are counted and bound nobody.
    let options =
        if superblock.quota { c"errors=remount-ro,prjquota" } else { c"errors=remount-ro" };
    rustix::mount::mount(&device, STAGE, "ext4", flags, options).map_err(|e| {
        let lacks = superblock.quota && !knows_quotas();
        let hint = if lacks { "; it has quotas, and this kernel lacks quota_v2" } else { "" };
        format!("mount {name}: {e}{hint}")
    })?;
    let refuse = |why: String| {
        let _ = rustix::mount::unmount(STAGE, UnmountFlags::NOFOLLOW);
        Err(why)
    };
    match rustix::fs::statvfs(STAGE) {
        Ok(stat) if stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) => {
            return refuse(format!("{name} could only be mounted read-only"));
        }
        Ok(stat) if usable_bytes(&stat) < FREE_BYTES_MIN => {
            let mib = stat.f_blocks.saturating_mul(stat.f_frsize) >> 20;
            let room = device_bytes(&device).unwrap_or(0).saturating_sub(superblock.bytes);
            if room < GROW_BYTES_MIN {
                return refuse(format!("{name} is full: nothing is free of {mib} MiB"));
            }
        }
        Ok(_) => {}
        Err(e) => return refuse(format!("{name}: {e}")),
    }
    let _ = rustix::fs::chmod(STAGE, Mode::from_raw_mode(0o700));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(STAGE, flags, Mode::empty()) {
        Ok(root) => Ok((superblock, root)),
        Err(e) => Err(format!("open {STAGE}: {e}")),
    }
}

/// What root can still write. The part that is kept for root counts: that is who writes here. What the kernel keeps for
/// its own conversions does not (`ext4_calculate_resv_clusters`): 2 % or 4096 blocks.
fn usable_bytes(stat: &rustix::fs::StatVfs) -> u64 {
    let kept = (stat.f_blocks / 50).min(4096);
    stat.f_bfree.saturating_sub(kept).saturating_mul(stat.f_frsize)
}

fn device_bytes(device: &Path) -> std::io::Result<u64> {
    use std::io::Seek as _;
    File::open(device)?.seek(std::io::SeekFrom::End(0))
}

/// Takes all of a disk that is larger than its file system, while it is in use.
fn grow(name: &str, superblock: &Superblock, root: OwnedFd) {
    let Ok(bytes) = device_bytes(&Path::new("/dev").join(name)) else { return };
    if bytes.saturating_sub(superblock.bytes) < GROW_BYTES_MIN {
        return;
    }
    let start = Instant::now();
    let grown = sys::ext4_resize(&root, bytes / u64::from(superblock.block_bytes));
    let (from, to, ms) = (superblock.bytes >> 20, bytes >> 20, start.elapsed().as_millis());
    match grown {
        Ok(()) => say!("state: {name} grown from {from} to {to} MiB in {ms} ms"),
        Err(e) => say!("state: grow {name} from {from} to {to} MiB: {e}"),
    }
}

#[cfg(test)]
mod tests;
