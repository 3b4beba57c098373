//! The compiled programs against a plain reading of the table.

use super::table::{NUMBERS, Verdict, profile};
use super::*;

/// What the kernel does, for the instructions that we use.
fn run(program: &Program, arch: u32, nr: u32, args: [u32; 2]) -> u32 {
    let insns = program.insns();
    let (mut pc, mut acc) = (0usize, 0u32);
    for _ in 0..insns.len() + 1 {
        let i = insns[pc];
        pc += 1;
        match i.code {
            LD_W_ABS => {
                acc = match i.k {
                    OFF_NR => nr,
                    OFF_ARCH => arch,
                    16 => args[0],
                    24 => args[1],
                    k => panic!("load of {k}"),
                }
            }
            JEQ => pc += usize::from(if acc == i.k { i.jt } else { i.jf }),
            JGE => pc += usize::from(if acc >= i.k { i.jt } else { i.jf }),
            JSET => pc += usize::from(if acc & i.k != 0 { i.jt } else { i.jf }),
            JA => pc += i.k as usize,
            RET => return i.k,
            c => panic!("code {c}"),
        }
    }
    panic!("no end");
}

fn expected(v: Verdict, args: [u32; 2]) -> u32 {
    let when = |ok| if ok { RET_ALLOW } else { RET_EPERM };
    match v {
        Verdict::Allow => RET_ALLOW,
        Verdict::Eperm => RET_EPERM,
        Verdict::Enosys => RET_ENOSYS,
        Verdict::CloneWithoutNamespaces => when(args[0] & CLONE_NS == 0),
        Verdict::SafeSocket => when(!matches!(args[0], 38 | 40)),
        Verdict::SafeIoctl => when(!matches!(args[1], 0x5412 | 0x541c)),
        Verdict::SafePersonality => when(PERSONALITIES.contains(&args[0])),
    }
}

#[test]
fn every_number_gets_the_verdict_of_the_table() {
    let arguments = [
        0,
        1,
        2,
        8,
        17,
        38,
        40,
        0x11,
        0x5401,
        0x5412,
        0x541c,
        0x0002_0000,
        0x0002_0008,
        0xffff_ffff,
    ];
    for (program, table) in [(&DEFAULT, profile(false)), (&COMPAT, profile(true))] {
        for nr in 0..NUMBERS as u32 + 50 {
            let v = table.get(nr as usize).copied().unwrap_or(Verdict::Enosys);
            for a in arguments {
                for b in arguments {
                    assert_eq!(
                        run(program, ARCH, nr, [a, b]),
                        expected(v, [a, b]),
                        "nr {nr} args {a:#x} {b:#x}"
                    );
                }
            }
        }
        // x32 numbers, and i386.
        assert_eq!(run(program, ARCH, 0x4000_0000 | 1, [0; 2]), RET_ENOSYS);
        assert_eq!(run(program, 0x4000_0003, 1, [0; 2]), RET_ENOSYS);
    }
}

#[test]
fn each_namespace_flag_alone_is_refused() {
    for bit in 0..32u32 {
        let flags = 1 << bit;
        let want = if CLONE_NS & flags != 0 { RET_EPERM } else { RET_ALLOW };
        assert_eq!(run(&DEFAULT, ARCH, libc::SYS_clone as u32, [flags, 0]), want, "{flags:#x}");
    }
}

#[test]
fn dangerous_calls_are_refused() {
    for nr in [
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
        libc::SYS_setns,
        libc::SYS_unshare,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_open_by_handle_at,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_chroot,
        libc::SYS_pidfd_getfd,
        libc::SYS_kcmp,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_fanotify_init,
        libc::SYS_move_pages,
        libc::SYS_mbind,
        libc::SYS_process_vm_readv + 1000,
    ] {
        assert_ne!(run(&DEFAULT, ARCH, nr as u32, [0; 2]), RET_ALLOW, "{nr}");
    }
    assert_eq!(run(&COMPAT, ARCH, libc::SYS_chroot as u32, [0; 2]), RET_ALLOW);
    assert_eq!(run(&DEFAULT, ARCH, libc::SYS_clone3 as u32, [0; 2]), RET_ENOSYS);
}

#[test]
fn programs_stay_small() {
    assert!(DEFAULT.insns().len() <= 200, "{}", DEFAULT.insns().len());
}
