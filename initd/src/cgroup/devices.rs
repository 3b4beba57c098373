//! Which device nodes a cgroup may open: a filter in eBPF, attached to the container's cgroup.
//!
//! The program is a list of comparisons, written here by hand: every rule is a few instructions that either say yes or
//! go on, and after the last comes no. (`BPF_PROG_TYPE_CGROUP_DEVICE`: cgroup-v2.rst, "Device controller".)
//!
//! Loading one takes the kernel half a millisecond, so the node's directory of pods has one for all, which a container with
//! devices of its own overrides.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::error::{Error, Result};
use crate::pod::Device;
use crate::sys;

/// One instruction, laid out as `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register in the low four bits, source in the high.
    pub registers: u8,
    /// Jump or memory offset.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// Character or block; numbers as in `include/uapi/linux/bpf.h` (`BPF_DEVCG_DEV_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Block = 1,
    /// Character device.
    Character = 2,
}

/// Makes a node. (`BPF_DEVCG_ACC_*`.)
pub const MKNOD: u32 = 1;
/// Opens for reading.
pub const READ: u32 = 2;
/// Opens for writing.
pub const WRITE: u32 = 4;

/// A device that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What it is.
    pub kind: Kind,
    /// Major number.
    pub major: u32,
    /// Minor number; `None` for all.
    pub minor: Option<u32>,
    /// [`READ`] and [`WRITE`].
    pub access: u32,
}

const fn character(major: u32, minor: Option<u32>) -> Rule {
    Rule { kind: Kind::Character, major, minor, access: READ | WRITE }
}

/// What every container has: null, zero, full, random, urandom, tty, ptmx and its terminals
/// (admin-guide/devices.txt: 136 to 143 are the slaves of Unix98 terminals).
pub const ALWAYS: [Rule; 15] = [
    character(1, Some(3)),
    character(1, Some(5)),
    character(1, Some(7)),
    character(1, Some(8)),
    character(1, Some(9)),
    character(5, Some(0)),
    character(5, Some(2)),
    character(136, None),
    character(137, None),
    character(138, None),
    character(139, None),
    character(140, None),
    character(141, None),
    character(142, None),
    character(143, None),
];

// Operations (instruction-set.rst).
const LDX_W: u8 = 0x61;
const AND32_IMM: u8 = 0x54;
const RSH32_IMM: u8 = 0x74;
const MOV32_REG: u8 = 0xbc;
const MOV64_IMM: u8 = 0xb7;
const JNE_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

const fn insn(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: to | from << 4, offset, immediate }
}

/// The filter that lets these through and refuses all others, and making nodes.
///
/// r2 is the kind, r3 what is wanted, r4 and r5 the numbers; r1 is scratch.
#[must_use]
pub fn program(rules: &[Rule]) -> Vec<Insn> {
    let mut p = vec![
        // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }: kind in the low half, access in the high.
        insn(LDX_W, 2, 1, 0, 0),
        insn(MOV32_REG, 3, 2, 0, 0),
        insn(AND32_IMM, 2, 0, 0, 0xffff),
        insn(RSH32_IMM, 3, 0, 0, 16),
        insn(LDX_W, 4, 1, 4, 0),
        insn(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = vec![
            insn(JNE_IMM, 2, 0, 0, rule.kind as i32),
            insn(JNE_IMM, 4, 0, 0, rule.major as i32),
        ];
        tests.extend(rule.minor.map(|minor| insn(JNE_IMM, 5, 0, 0, minor as i32)));
        // What is wanted beyond what is granted must be nothing.
        tests.push(insn(MOV32_REG, 1, 3, 0, 0));
        tests.push(insn(AND32_IMM, 1, 0, 0, !rule.access as i32));
        tests.push(insn(JNE_IMM, 1, 0, 0, 0));
        tests.push(insn(MOV64_IMM, 0, 0, 0, 1));
        tests.push(insn(EXIT, 0, 0, 0, 0));
        let len = tests.len();
        for (at, test) in tests.iter_mut().enumerate() {
            if test.code == JNE_IMM {
                // To the next rule; a rule has at most eight instructions.
                test.offset = (len - at - 1) as i16;
            }
        }
        p.append(&mut tests);
    }
    p.push(insn(MOV64_IMM, 0, 0, 0, 0));
    p.push(insn(EXIT, 0, 0, 0, 0));
    p
}

/// What a device node of the host is.
///
/// # Errors
/// [`Error::Sys`]: `ENOENT`, or `ENODEV` when it is no device.
pub fn rule_of(device: &Device) -> Result<Rule> {
    let fail = |e| Error::sys("device", device.source.display(), e);
    let stat = rustix::fs::stat(&device.source).map_err(fail)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Kind::Block,
        FileType::CharacterDevice => Kind::Character,
        _ => return Err(fail(rustix::io::Errno::NODEV)),
    };
    Ok(Rule {
        kind,
        major: rustix::fs::major(stat.st_rdev),
        minor: Some(rustix::fs::minor(stat.st_rdev)),
        access: if device.read_only { READ } else { READ | WRITE },
    })
}

/// Whether a filter is on the cgroup itself.
pub(crate) fn is_restricted(cgroup: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(cgroup, flags, Mode::empty())
        .and_then(|dir| sys::device_filters(dir.as_fd()))
        .is_ok_and(|n| n > 0)
}

/// Puts the filter on a cgroup, where it stays until that goes; below it, too, but where there is another.
///
/// # Errors
/// [`Error::Sys`]: `EPERM` without CAP_BPF or CAP_SYS_ADMIN, `EINVAL` or `ENOSYS` where the kernel has no such filters.
pub fn restrict(cgroup: &Path, rules: &[Rule]) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(cgroup, flags, Mode::empty())
        .map_err(|e| Error::sys("open", cgroup.display(), e))?;
    load(rules)
        .and_then(|program| attach(dir.as_fd(), &program))
        .map_err(|e| Error::sys("attach device filter to", cgroup.display(), e))
}

fn load(rules: &[Rule]) -> rustix::io::Result<OwnedFd> {
    sys::load_device_filter(&program(rules))
}

fn attach(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> rustix::io::Result<()> {
    sys::attach_device_filter(cgroup, program.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does, for the instructions that we use.
    fn run(p: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0u64; 11];
        let mut pc = 0;
        for _ in 0..=p.len() {
            let i = p[pc];
            pc += 1;
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            match i.code {
                LDX_W => {
                    assert_eq!(from, 1, "the context is in r1");
                    r[to] = context[usize::try_from(i.offset).expect("offset") / 4].into();
                }
                MOV32_REG => r[to] = r[from] & 0xffff_ffff,
                AND32_IMM => r[to] = u64::from(r[to] as u32 & i.immediate as u32),
                RSH32_IMM => r[to] = u64::from(r[to] as u32 >> i.immediate),
                MOV64_IMM => r[to] = i64::from(i.immediate) as u64,
                JNE_IMM => {
                    if r[to] != i64::from(i.immediate) as u64 {
                        pc += usize::try_from(i.offset).expect("forward");
                    }
                }
                EXIT => return r[0],
                c => panic!("code {c:#x}"),
            }
        }
        panic!("no end");
    }

    fn expected(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> u64 {
        let yes = rules.iter().any(|r| {
            r.kind as u32 == kind
                && r.major == major
                && r.minor.is_none_or(|m| m == minor)
                && access & !r.access == 0
        });
        u64::from(yes)
    }

    #[test]
    fn every_device_gets_the_answer_of_the_rules() {
        let granted = [
            Rule { kind: Kind::Character, major: 10, minor: Some(229), access: READ | WRITE },
            Rule { kind: Kind::Block, major: 254, minor: Some(0), access: READ },
            Rule { kind: Kind::Character, major: 195, minor: None, access: READ | WRITE },
        ];
        for rules in [&ALWAYS[..], &[ALWAYS.as_slice(), &granted].concat(), &[]] {
            let p = program(rules);
            for kind in 0..4 {
                for access in 0..8 {
                    for major in (0..260).chain([511, 4095, 1 << 20]) {
                        for minor in [0, 1, 2, 3, 5, 7, 8, 9, 11, 229, 255, 256, 1 << 20] {
                            assert_eq!(
                                run(&p, kind, access, major, minor),
                                expected(rules, kind, access, major, minor),
                                "{kind} {access} {major}:{minor}"
                            );
                        }
                    }
                }
            }
        }
        // Nobody makes nodes, and kmsg and the disks are nobody's.
        let p = program(&ALWAYS);
        assert_eq!(run(&p, 2, MKNOD, 1, 3), 0);
        assert_eq!(run(&p, 2, READ, 1, 11), 0);
        assert_eq!(run(&p, 1, READ, 254, 0), 0);
    }

    #[test]
    fn only_devices_are_devices() {
        let of = |path: &str| {
            rule_of(&Device { name: "x".into(), source: path.into(), read_only: true })
        };
        let null = Rule { kind: Kind::Character, major: 1, minor: Some(3), access: READ };
        assert_eq!(of("/dev/null"), Ok(null));
        assert_eq!(of("/etc").map_err(|e| e.errno()), Err(Some(libc::ENODEV)));
        assert_eq!(of("/dev/nope").map_err(|e| e.errno()), Err(Some(libc::ENOENT)));
    }
}
