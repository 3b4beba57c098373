//! The compiled programs against a plain reading of the table.

use super::table::{NUMBERS, Verdict, profile};
use super::*;

/// What the kernel does, for the instructions that we use.
fn run(insns: &[Insn], arch: u32, nr: u32, args: [u32; 2]) -> u32 {
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
    for (program, table) in [(DEFAULT, profile(false)), (COMPAT, profile(true))] {
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
        assert_eq!(run(DEFAULT, ARCH, libc::SYS_clone as u32, [flags, 0]), want, "{flags:#x}");
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
        assert_ne!(run(DEFAULT, ARCH, nr as u32, [0; 2]), RET_ALLOW, "{nr}");
    }
    assert_eq!(run(COMPAT, ARCH, libc::SYS_chroot as u32, [0; 2]), RET_ALLOW);
    assert_eq!(run(DEFAULT, ARCH, libc::SYS_clone3 as u32, [0; 2]), RET_ENOSYS);
}

#[test]
fn programs_stay_small() {
    assert!(DEFAULT.len() <= 200, "{}", DEFAULT.len());
}

#[test]
fn own_profiles_change_what_they_name_and_nothing_else() {
    let text = "base default # as ever\n\nallow keyctl chroot\ndeny ptrace\nabsent fsync\n";
    let own_program = own::compile(text).expect("compiles");
    assert_eq!(verify(&own_program), Ok(()));
    for nr in 0..NUMBERS as u32 + 50 {
        let want = match i64::from(nr) {
            libc::SYS_keyctl | libc::SYS_chroot => RET_ALLOW,
            libc::SYS_ptrace => RET_EPERM,
            libc::SYS_fsync => RET_ENOSYS,
            _ => run(DEFAULT, ARCH, nr, [0; 2]),
        };
        assert_eq!(run(&own_program, ARCH, nr, [0; 2]), want, "{nr}");
    }
    let none = own::compile("base none\nallow execve exit_group read").expect("compiles");
    let allowed: Vec<u32> =
        (0..600).filter(|nr| run(&none, ARCH, *nr, [0; 2]) == RET_ALLOW).collect();
    let want = [libc::SYS_read, libc::SYS_execve, libc::SYS_exit_group].map(|nr| nr as u32);
    assert_eq!(allowed, want);
    // `allow` of a call with conditions takes them away.
    let whole = own::compile("allow clone socket").expect("compiles");
    assert_eq!(run(&whole, ARCH, libc::SYS_clone as u32, [CLONE_NS, 0]), RET_ALLOW);
    assert_eq!(own::compile(""), Ok(DEFAULT.to_vec()));
}

#[test]
fn what_is_wrong_with_a_profile_is_said() {
    use own::Wrong;
    let wrong = |text: &str| own::compile(text).expect_err(text);
    assert_eq!(wrong("permit x"), Wrong::Word { line: 1, word: "permit".into() });
    assert_eq!(wrong("\nallow reed"), Wrong::Call { line: 2, name: "reed".into() });
    assert_eq!(wrong("base odd"), Wrong::Base { line: 1 });
    assert_eq!(wrong("base none\nbase none"), Wrong::Base { line: 2 });
    assert_eq!(wrong("allow read\nbase none"), Wrong::Base { line: 2 });
    assert_eq!(wrong("base none"), Wrong::Needs("execve"));
    assert_eq!(wrong("deny exit_group"), Wrong::Needs("exit_group"));
    assert_eq!(wrong(&"#".repeat(own::TEXT_BYTES_MAX + 1)), Wrong::TooLong);
}

#[test]
fn a_profile_that_alternates_for_ever_is_refused_or_right() {
    // Every second number, whatever it is.
    let odd: Vec<&str> = names::all().filter(|(_, nr)| nr % 2 == 1).map(|(n, _)| n).collect();
    let text = format!("base none\nallow {}\nallow execve exit_group", odd.join(" "));
    match own::compile(&text) {
        Ok(p) => {
            assert_eq!(verify(&p), Ok(()));
            for (name, nr) in names::all().filter(|(n, _)| !["execve", "exit_group"].contains(n)) {
                let want = if nr % 2 == 1 { RET_ALLOW } else { RET_EPERM };
                assert_eq!(run(&p, ARCH, nr as u32, [0; 2]), want, "{name}");
            }
        }
        Err(e) => assert_eq!(e, own::Wrong::TooScattered),
    }
}

#[test]
fn foreign_programs_are_not_loaded() {
    for program in [DEFAULT, COMPAT] {
        assert_eq!(verify(program), Ok(()));
        for at in 0..3 {
            let mut other = program.to_vec();
            other[at].k ^= 1;
            assert!(verify(&other).is_err(), "{at}");
        }
    }
    assert!(verify(&[]).is_err());
    assert!(verify(&DEFAULT[..DEFAULT.len() - 1].repeat(10)).is_err());
    let mut traced = DEFAULT.to_vec();
    traced[4] = Insn { code: RET, jt: 0, jf: 0, k: libc::SECCOMP_RET_TRACE };
    assert!(verify(&traced).is_err());
    let mut far = DEFAULT.to_vec();
    far[4] = Insn { code: JA, jt: 0, jf: 0, k: u32::MAX };
    assert!(verify(&far).is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_compiled_or_refused(lines: Vec<String>, picks: Vec<(u8, usize)>) {
        let _ = own::compile(&lines.join("\n"));
        let list: Vec<_> = names::all().collect();
        let mut text = String::new();
        for (word, pick) in &picks {
            let (name, _) = list[pick % list.len()];
            text += &format!("{} {name}\n", ["allow", "deny", "absent"][usize::from(word % 3)]);
        }
        if let Ok(p) = own::compile(&text) {
            let profile = own::parse(&text).expect("compiled before");
            proptest::prop_assert_eq!(verify(&p), Ok(()));
            for nr in 0..NUMBERS as u32 {
                let want = expected(profile[nr as usize], [0; 2]);
                proptest::prop_assert_eq!(run(&p, ARCH, nr, [0; 2]), want);
            }
        }
    }
}
