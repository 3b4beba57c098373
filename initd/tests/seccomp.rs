//! The compiled filters against libseccomp's: the same rules, its own names and its own compiler, run by one interpreter
//! for every number and the arguments that matter.
#![allow(missing_docs)]

use std::io::Write as _;
use std::process::{Command, Stdio};

use initd::seccomp::table::{NUMBERS, Verdict, profile};
use initd::seccomp::{COMPAT, DEFAULT, Insn, names};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
const NAMESPACES: [u64; 7] =
    [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
const PERSONALITIES: [u64; 5] = [0, 0x2_0000, 0x8, 0x2_0008, 0xffff_ffff];

/// Classic BPF as the kernel takes it from either compiler (Documentation/networking/filter.rst).
fn run(program: &[Insn], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let load = |at: u32| match at {
        0 => nr,
        4 => arch,
        16..64 => {
            (args[(at as usize - 16) / 8] >> if at.is_multiple_of(8) { 0 } else { 32 }) as u32
        }
        _ => panic!("load of {at}"),
    };
    let (mut pc, mut a, mut memory) = (0usize, 0u32, [0u32; 16]);
    loop {
        let i = program[pc];
        pc += 1;
        let jump = |yes: bool| usize::from(if yes { i.jt } else { i.jf });
        match i.code {
            0x20 => a = load(i.k),
            0x60 => a = memory[i.k as usize],
            0x02 => memory[i.k as usize] = a,
            0x54 => a &= i.k,
            0x05 => pc += i.k as usize,
            0x15 => pc += jump(a == i.k),
            0x25 => pc += jump(a > i.k),
            0x35 => pc += jump(a >= i.k),
            0x45 => pc += jump(a & i.k != 0),
            0x06 => return i.k,
            code => panic!("code {code:#x}"),
        }
    }
}

/// The rules of a profile, for libseccomp. Calls that it does not know by name it gets by number.
fn rules(compat: bool) -> String {
    let table = profile(compat);
    let named: std::collections::BTreeMap<usize, &str> =
        names::all().map(|(n, nr)| (nr, n)).collect();
    let mut text = String::new();
    for (nr, verdict) in table.iter().enumerate() {
        // Names newer than Debian's libseccomp (2.5.4: Linux 5.17).
        let name = match named.get(&nr) {
            Some(name) if nr < 450 => (*name).to_owned(),
            _ => nr.to_string(),
        };
        match verdict {
            Verdict::Allow => text += &format!("{name} allow\n"),
            Verdict::Eperm => text += &format!("{name} eperm\n"),
            Verdict::Enosys => {}
            Verdict::CloneWithoutNamespaces => {
                let all: u64 = NAMESPACES.iter().sum();
                text += &format!("{name} allow 0 masked 0 {all}\n");
                for bit in NAMESPACES {
                    text += &format!("{name} eperm 0 masked {bit} {bit}\n");
                }
            }
            Verdict::SafeSocket => {
                // Families are small numbers; the rest of the low byte's values say no as well as yes.
                for family in 0..=50 {
                    let verdict = if [38, 40].contains(&family) { "eperm" } else { "allow" };
                    text += &format!("{name} {verdict} 0 eq {family}\n");
                }
            }
            Verdict::SafeIoctl => {
                for request in [0x5401u64, 0x5412, 0x5413, 0x541c, 0x5421] {
                    let verdict =
                        if [0x5412, 0x541c].contains(&request) { "eperm" } else { "allow" };
                    text += &format!("{name} {verdict} 1 eq {request}\n");
                }
            }
            Verdict::SafePersonality => {
                for value in PERSONALITIES {
                    text += &format!("{name} allow 0 eq {value}\n");
                }
                for value in [0x4_0000u64, 0x40_0000, 1] {
                    text += &format!("{name} eperm 0 eq {value}\n");
                }
            }
        }
    }
    text
}

/// What libseccomp makes of the rules; `None` (and says so) where it cannot be built.
fn oracle(compat: bool) -> Option<Vec<Insn>> {
    let dir = std::env::temp_dir().join(format!("quelea-seccomp-{}-{compat}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("directory");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/seccomp_oracle.c");
    let exe = dir.join("oracle");
    let built = Command::new("cc").arg("-o").arg(&exe).args([source, "-lseccomp"]).output();
    if !built.as_ref().is_ok_and(|o| o.status.success()) {
        skip::because("libseccomp", "cc and libseccomp-dev are needed");
        return None;
    }
    let mut child = Command::new(&exe)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("oracle");
    child.stdin.take().expect("piped").write_all(rules(compat).as_bytes()).expect("rules");
    let out = child.wait_with_output().expect("oracle");
    assert!(out.status.success(), "{:?} {}", out.status, String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "a name that libseccomp does not know");
    let _ = std::fs::remove_dir_all(&dir);
    let insn = |b: &[u8]| Insn {
        code: u16::from_le_bytes([b[0], b[1]]),
        jt: b[2],
        jf: b[3],
        k: u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
    };
    Some(out.stdout.chunks_exact(8).map(insn).collect())
}

#[test]
fn libseccomp_says_the_same_of_every_call() {
    for (ours, compat) in [(DEFAULT, false), (COMPAT, true)] {
        let Some(theirs) = oracle(compat) else { return };
        let table = profile(compat);
        let mut compared = 0;
        // x32 numbers have bit 30; libseccomp takes them for another architecture.
        let numbers = (0..=600).chain([1000, 4000, 65_535, 0x3fff_ffff, 0x4000_0000, 0x4000_0001]);
        for nr in numbers {
            let first: Vec<u64> = match table.get(nr as usize) {
                Some(Verdict::CloneWithoutNamespaces) => (0..32)
                    .map(|b| 1u64 << b)
                    .chain([0, 17, 0x11 | 0x2000_0000, 0x7e02_0000])
                    .collect(),
                Some(Verdict::SafeSocket) => (0..=50).collect(),
                Some(Verdict::SafePersonality) => {
                    PERSONALITIES.into_iter().chain([0x4_0000, 0x40_0000, 1]).collect()
                }
                _ => vec![0, 1, u64::from(u32::MAX), u64::MAX],
            };
            let second: Vec<u64> = match table.get(nr as usize) {
                Some(Verdict::SafeIoctl) => vec![0x5401, 0x5412, 0x5413, 0x541c, 0x5421],
                _ => vec![0, 1, 0x5412, u64::MAX],
            };
            for a in &first {
                for b in &second {
                    let args = [*a, *b, 0, 0, 0, 0];
                    let (us, them) = (run(ours, ARCH, nr, args), run(&theirs, ARCH, nr, args));
                    assert_eq!(us, them, "compat {compat} number {nr} arguments {a:#x} {b:#x}");
                    compared += 1;
                }
            }
        }
        // i386, arm, aarch64 or x86-64: whatever is not ours.
        for arch in [0x4000_0003, 0x4000_0028, ARCH ^ 1, 0] {
            for nr in 0..600 {
                let args = [0; 6];
                assert_eq!(run(ours, arch, nr, args), ENOSYS);
                assert_eq!(run(&theirs, arch, nr, args), ENOSYS);
            }
        }
        println!(
            "compat {compat}: {compared} calls, {} and {} instructions",
            ours.len(),
            theirs.len()
        );
        assert!(compared > 9000);
    }
}

#[test]
fn what_libseccomp_cannot_say_is_as_the_table_says() {
    let nr = |name: &str| names::number(name).expect(name) as u32;
    let first = |name: &str, a: u64| run(DEFAULT, ARCH, nr(name), [a, 0, 0, 0, 0, 0]);
    // Families and requests that are in no list.
    assert_eq!(first("socket", 200), ALLOW);
    assert_eq!(run(DEFAULT, ARCH, nr("ioctl"), [0, 0xdead, 0, 0, 0, 0]), ALLOW);
    assert_eq!(first("personality", 0x1234), EPERM);
    // The kernel takes 32 bits: what is above changes nothing (CVE-2019-10063 was a filter that looked at it).
    assert_eq!(run(DEFAULT, ARCH, nr("ioctl"), [0, 0x1_0000_5412, 0, 0, 0, 0]), EPERM);
    assert_eq!(first("clone", 0x1_1000_0000), EPERM);
    assert_eq!(first("socket", 0x1_0000_0026), EPERM);
    assert_eq!(run(DEFAULT, ARCH, NUMBERS as u32, [0; 6]), ENOSYS);
    assert_eq!(run(DEFAULT, ARCH, u32::MAX, [0; 6]), ENOSYS);
}
