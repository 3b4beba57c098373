//! The system call filter, compiled to classic BPF at build time.
//!
//! [`table`] says what is done with each system call number. The compiler turns that into ranges of equal verdict
//! and those into a balanced tree of comparisons: about nine instructions to a verdict instead of a walk over
//! hundreds, and a program small enough that the kernel checks and loads it in under 50 µs.
//!
//! Verdicts: allowed; EPERM for what is known and refused; ENOSYS for numbers that no kernel we know has, for
//! `clone3` (whose flags lie behind a pointer, so that a C library falls back to `clone`) and for calls of another
//! architecture; a few are allowed by their first arguments.

pub mod names;
pub mod own;
pub mod table;

use serde::{Deserialize, Serialize};
use table::{Profile, Verdict};

/// Largest program. The built-in ones are compiled, and this checked, when this crate is.
pub const INSNS_MAX: usize = 544;

/// One instruction, laid out as `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Insn {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

/// A compiled filter.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    insns: [Insn; INSNS_MAX],
    len: usize,
}

impl Program {
    /// The instructions.
    #[must_use]
    pub fn insns(&self) -> &[Insn] {
        self.insns.get(..self.len).unwrap_or_default()
    }
}

/// What containers get.
pub static DEFAULT: &[Insn] = &cut::<{ DEFAULT_PROGRAM.len }>(&DEFAULT_PROGRAM);
/// What containers get that ask for `compat`.
pub static COMPAT: &[Insn] = &cut::<{ COMPAT_PROGRAM.len }>(&COMPAT_PROGRAM);

const DEFAULT_PROGRAM: Program = built_in(false);
const COMPAT_PROGRAM: Program = built_in(true);

const fn built_in(compat: bool) -> Program {
    match compile(&table::profile(compat)) {
        Ok(program) => program,
        Err(_) => panic!("a built-in profile does not fit"),
    }
}

/// Without the unused end.
const fn cut<const N: usize>(program: &Program) -> [Insn; N] {
    let mut insns = [program.insns[0]; N];
    let mut i = 0;
    while i < N {
        insns[i] = program.insns[i];
        i += 1;
    }
    insns
}

const LD_W_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const RET: u16 = 0x06;

/// `offsetof(struct seccomp_data, nr)` and friends.
const OFF_NR: u32 = 0;
const OFF_ARCH: u32 = 4;
const OFF_ARG0_LOW: u32 = 16;

const RET_ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const RET_EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const RET_ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
// The low half of an argument lies first only there.
#[cfg(not(target_endian = "little"))]
compile_error!("the filter reads the low halves of arguments in little-endian order");

/// Flags of `clone` that make a namespace. CLONE_NEWTIME overlaps the exit signal and is only known to `clone3`.
const CLONE_NS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
/// `personality(2)` values that change nothing that matters: none, UNAME26, PER_LINUX32 and both, and the query.
const PERSONALITIES: [u32; 5] = [0, 0x0002_0000, 0x0008, 0x0002_0008, 0xffff_ffff];

/// A run of numbers with one verdict, from `from` up to the next range's.
#[derive(Clone, Copy)]
struct Range {
    from: u32,
    verdict: Verdict,
}

/// A tree over more would need a jump of more than one byte.
const RANGES_MAX: usize = 256;

struct Emitter {
    program: Program,
    /// Where the block of each conditional verdict is wanted: instruction index, for patching.
    wanted: [(usize, Verdict); 16],
    wanted_len: usize,
}

impl Emitter {
    const fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) {
        assert!(self.program.len < INSNS_MAX, "INSNS_MAX is too small");
        self.program.insns[self.program.len] = Insn { code, jt, jf, k };
        self.program.len += 1;
    }

    const fn leaf(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Allow => self.push(RET, 0, 0, RET_ALLOW),
            Verdict::Eperm => self.push(RET, 0, 0, RET_EPERM),
            Verdict::Enosys => self.push(RET, 0, 0, RET_ENOSYS),
            conditional => {
                self.wanted[self.wanted_len] = (self.program.len, conditional);
                self.wanted_len += 1;
                self.push(JA, 0, 0, 0);
            }
        }
    }

    /// The subtree for `ranges[lo..hi]`: `2 n - 1` instructions.
    const fn tree(&mut self, ranges: &[Range; RANGES_MAX], lo: usize, hi: usize) {
        if hi - lo == 1 {
            self.leaf(ranges[lo].verdict);
            return;
        }
        let mid = lo + (hi - lo) / 2;
        let left = 2 * (mid - lo) - 1;
        assert!(left <= 255, "a jump is one byte");
        self.push(JGE, left as u8, 0, ranges[mid].from);
        self.tree(ranges, lo, mid);
        self.tree(ranges, mid, hi);
    }

    /// Points every jump that waits for this verdict here.
    const fn land(&mut self, verdict: Verdict) {
        let mut i = 0;
        while i < self.wanted_len {
            let (at, v) = self.wanted[i];
            if v as u8 == verdict as u8 {
                self.program.insns[at].k = (self.program.len - at - 1) as u32;
            }
            i += 1;
        }
    }

    const fn load_arg(&mut self, n: u32) {
        self.push(LD_W_ABS, 0, 0, OFF_ARG0_LOW + 8 * n);
    }
}

/// Compiles a profile.
///
/// # Errors
/// Verdicts change more than 255 times from one number to the next.
pub const fn compile(profile: &Profile) -> Result<Program, &'static str> {
    // Runs of equal verdicts.
    let mut ranges = [Range { from: 0, verdict: Verdict::Enosys }; RANGES_MAX];
    let mut n = 0;
    let mut nr = 0;
    while nr < profile.len() {
        if n == 0 || ranges[n - 1].verdict as u8 != profile[nr] as u8 {
            if n == RANGES_MAX - 1 {
                return Err("more than 255 ranges");
            }
            ranges[n] = Range { from: nr as u32, verdict: profile[nr] };
            n += 1;
        }
        nr += 1;
    }
    // Everything above, x32 numbers included.
    if !matches!(ranges[n - 1].verdict, Verdict::Enosys) {
        ranges[n] = Range { from: profile.len() as u32, verdict: Verdict::Enosys };
        n += 1;
    }

    let none = Insn { code: RET, jt: 0, jf: 0, k: RET_EPERM };
    let mut e = Emitter {
        program: Program { insns: [none; INSNS_MAX], len: 0 },
        wanted: [(0, Verdict::Allow); 16],
        wanted_len: 0,
    };
    e.push(LD_W_ABS, 0, 0, OFF_ARCH);
    e.push(JEQ, 1, 0, ARCH);
    e.push(RET, 0, 0, RET_ENOSYS);
    e.push(LD_W_ABS, 0, 0, OFF_NR);
    e.tree(&ranges, 0, n);

    // The kernel takes 32 bits of each of these arguments, so the low half says all.
    e.land(Verdict::CloneWithoutNamespaces);
    e.load_arg(0);
    e.push(JSET, 0, 1, CLONE_NS);
    e.push(RET, 0, 0, RET_EPERM);
    e.push(RET, 0, 0, RET_ALLOW);

    e.land(Verdict::SafeSocket);
    e.load_arg(0);
    e.push(JEQ, 2, 0, libc::AF_VSOCK as u32);
    e.push(JEQ, 1, 0, libc::AF_ALG as u32);
    e.push(RET, 0, 0, RET_ALLOW);
    e.push(RET, 0, 0, RET_EPERM);

    e.land(Verdict::SafeIoctl);
    e.load_arg(1);
    e.push(JEQ, 2, 0, TIOCSTI);
    e.push(JEQ, 1, 0, TIOCLINUX);
    e.push(RET, 0, 0, RET_ALLOW);
    e.push(RET, 0, 0, RET_EPERM);

    e.land(Verdict::SafePersonality);
    e.load_arg(0);
    let mut i = 0;
    while i < PERSONALITIES.len() {
        e.push(JEQ, (PERSONALITIES.len() - i) as u8, 0, PERSONALITIES[i]);
        i += 1;
    }
    e.push(RET, 0, 0, RET_EPERM);
    e.push(RET, 0, 0, RET_ALLOW);
    Ok(e.program)
}

/// Whether a program from elsewhere is one that [`compile`] could have made: bounded, forward jumps only, loads of the call's
/// data, verdicts that allow or give an errno, and never another architecture.
///
/// # Errors
/// What is wrong.
pub fn verify(program: &[Insn]) -> Result<(), &'static str> {
    let head = [
        Insn { code: LD_W_ABS, jt: 0, jf: 0, k: OFF_ARCH },
        Insn { code: JEQ, jt: 1, jf: 0, k: ARCH },
        Insn { code: RET, jt: 0, jf: 0, k: RET_ENOSYS },
    ];
    if program.len() > INSNS_MAX {
        return Err("more than 544 instructions");
    }
    if !program.starts_with(&head) {
        return Err("does not begin by refusing other architectures");
    }
    if program.last().is_none_or(|i| i.code != RET) {
        return Err("does not end with a verdict");
    }
    for (at, i) in program.iter().enumerate() {
        let left = program.len() - at - 1;
        let fits = |jump: usize| jump < left;
        let ok = match i.code {
            LD_W_ABS => i.k < 64 && i.k.is_multiple_of(4),
            JEQ | JGE | JSET => fits(i.jt.into()) && fits(i.jf.into()),
            JA => usize::try_from(i.k).is_ok_and(fits),
            RET => i.k == RET_ALLOW || i.k & 0xffff_0000 == libc::SECCOMP_RET_ERRNO,
            _ => false,
        };
        if !ok {
            return Err("an instruction, a jump or a verdict that is not allowed");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
