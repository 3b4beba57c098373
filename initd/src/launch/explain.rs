//! Turns a step and an errno into what an operator wants to know.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::Step;
use super::mounts::RESOLVE;
use super::plan::Told;

/// Most bytes of a program that are looked at.
const HEAD_BYTES: usize = 4096;

/// What was being done, on what, and what the errno means there.
pub(super) fn text(plan: &Told, step: Step, index: usize, errno: Errno) -> String {
    let errno_text = std::io::Error::from(errno);
    match step {
        Step::Exec => exec(plan, index, errno),
        Step::Workdir => {
            let dir = plan.workdir.as_ref().map_or_else(|| "/".into(), |w| w.to_string_lossy());
            match errno {
                // Made new where it is not there: a link is in the way, which leads nowhere in the image.
                Errno::EXIST | Errno::LOOP | Errno::XDEV | Errno::NOENT => format!(
                    "working directory {dir} leads through a link out of the image or to nowhere ({errno_text}); \
                     no link is followed out of it"
                ),
                Errno::NOTDIR => format!("working directory {dir} is no directory in the image"),
                _ => format!("working directory {dir}: {errno_text}"),
            }
        }
        Step::Ids => format!("becoming {}:{}: {errno_text}", plan.uid, plan.gid),
        Step::Mount | Step::Dev | Step::Sys => {
            let target = plan.targets.get(index).map(|t| t.to_string_lossy());
            let hint = if errno == Errno::LOOP { " (a link in the image)" } else { "" };
            format!("mounting /{}: {errno_text}{hint}", target.unwrap_or_default())
        }
        step => format!("{step:?} ({index}): {errno_text}"),
    }
}

fn exec(plan: &Told, index: usize, errno: Errno) -> String {
    let name = &plan.program;
    match errno {
        Errno::NOENT if !name.contains('/') => {
            format!("no program \"{name}\" in PATH of the image")
        }
        Errno::NOENT => match head(plan, name) {
            None => format!("no program \"{name}\" in the image"),
            Some(bytes) => missing_interpreter(name, &bytes),
        },
        Errno::ACCESS => format!("\"{name}\" is not executable by uid {}", plan.uid),
        Errno::NOEXEC => {
            let place = plan.programs.get(index).map(|p| p.to_string_lossy().into_owned());
            match head(plan, &place.unwrap_or_default()).and_then(|b| foreign(&b)) {
                Some(machine) => format!(
                    "\"{name}\" is built for {machine}, this node is {}",
                    std::env::consts::ARCH
                ),
                None => {
                    format!("\"{name}\" is neither a program of this machine nor a script with #!")
                }
            }
        }
        Errno::TOOBIG => {
            format!("\"{name}\": arguments and environment are larger than the kernel takes")
        }
        Errno::NOTDIR => format!("\"{name}\": part of the path is no directory"),
        Errno::LOOP => format!("\"{name}\": too many links or interpreters"),
        e => format!("\"{name}\": {}", std::io::Error::from(e)),
    }
}

/// The beginning of a file in the container's root.
fn head(plan: &Told, path: &str) -> Option<Vec<u8>> {
    let fd: OwnedFd = rustix::fs::openat2(
        plan.root.as_ref()?,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
        Mode::empty(),
        RESOLVE,
    )
    .ok()?;
    let mut bytes = vec![0; HEAD_BYTES];
    let n = rustix::io::read(&fd, &mut bytes).ok()?;
    bytes.truncate(n);
    Some(bytes)
}

/// `#!/x` or an ELF interpreter that is not there.
fn missing_interpreter(name: &str, bytes: &[u8]) -> String {
    if let Some(line) = bytes.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let text = String::from_utf8_lossy(line);
        let interpreter = text.split_whitespace().next().unwrap_or_default();
        return format!(
            "\"{name}\" is a script whose interpreter {interpreter} is not in the image"
        );
    }
    match elf_interpreter(bytes) {
        Some(i) => format!("\"{name}\" needs the loader {i}, which is not in the image"),
        None => format!("\"{name}\": something that it needs is not in the image"),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// `PT_INTERP` of a 64-bit little-endian ELF file, when it lies in the part that was read.
fn elf_interpreter(bytes: &[u8]) -> Option<String> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(u64_at(bytes, 32)?).ok()?;
    let (size, count) = (usize::from(u16_at(bytes, 54)?), usize::from(u16_at(bytes, 56)?));
    for i in 0..count.min(64) {
        let header = table.checked_add(i.checked_mul(size)?)?;
        // p_type 3 is PT_INTERP; p_offset at 8, p_filesz at 32.
        if u16_at(bytes, header)? == 3 {
            let from = usize::try_from(u64_at(bytes, header.checked_add(8)?)?).ok()?;
            let len = usize::try_from(u64_at(bytes, header.checked_add(32)?)?).ok()?;
            let path = bytes.get(from..from.checked_add(len)?)?;
            let path = path.split(|b| *b == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(path).into_owned());
        }
    }
    None
}

/// The machine of an ELF file, when it is not ours.
fn foreign(bytes: &[u8]) -> Option<String> {
    if !bytes.starts_with(b"\x7fELF") {
        return None;
    }
    let name = match u16_at(bytes, 18)? {
        3 => "i386",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv",
        other => return Some(format!("machine number {other}")),
    };
    (name != std::env::consts::ARCH).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_and_foreign_files_do_not_confuse_it() {
        for len in 0..64 {
            let mut bytes = b"\x7fELF\x02\x01".to_vec();
            bytes.resize(len.max(6), 0xff);
            assert_eq!(elf_interpreter(&bytes), None);
            let _ = foreign(&bytes);
        }
        let mut arm = b"\x7fELF\x02\x01".to_vec();
        arm.resize(64, 0);
        arm[18] = 40;
        assert_eq!(foreign(&arm).as_deref(), Some("arm"));
        assert!(missing_interpreter("x", b"#!/bin/nope -e\n").contains("/bin/nope"));
    }
}
