//! Which system call gets which verdict.

/// What is done with a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Goes through.
    Allow,
    /// Known and refused.
    Eperm,
    /// Not there.
    Enosys,
    /// `clone` without a namespace flag.
    CloneWithoutNamespaces,
    /// `socket` of any family but AF_VSOCK and AF_ALG.
    SafeSocket,
    /// `ioctl` of any request but TIOCSTI and TIOCLINUX.
    SafeIoctl,
    /// `personality` with one of five harmless values.
    SafePersonality,
}

/// The numbers from 0; all above are [`Verdict::Enosys`].
pub type Profile = [Verdict; NUMBERS];

/// One more than the highest number that is known: `file_setattr` of Linux 6.17.
pub const NUMBERS: usize = 470;

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// What ordinary programs use: files, memory, processes of one's own, signals, time, sockets, IPC, scheduling.
const ALLOWED: &[libc::c_long] = numbers! {
    // files by descriptor
    SYS_read SYS_write SYS_pread64 SYS_pwrite64 SYS_readv SYS_writev SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_fcntl SYS_flock SYS_fsync SYS_fdatasync SYS_ftruncate
    SYS_fallocate SYS_fadvise64 SYS_readahead SYS_sync_file_range SYS_syncfs SYS_sync SYS_dup SYS_dup3 SYS_pipe2
    SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_copy_file_range SYS_getdents64 SYS_fchmod SYS_fchown SYS_fchdir
    SYS_fsetxattr SYS_fgetxattr SYS_flistxattr SYS_fremovexattr SYS_fstatfs SYS_memfd_create SYS_memfd_secret
    // files by path
    SYS_openat SYS_openat2 SYS_newfstatat SYS_statx SYS_faccessat SYS_faccessat2 SYS_readlinkat SYS_mkdirat
    SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat SYS_symlinkat SYS_fchmodat SYS_fchmodat2 SYS_fchownat
    SYS_utimensat SYS_truncate SYS_statfs SYS_chdir SYS_getcwd SYS_umask SYS_mknodat SYS_execve SYS_execveat
    SYS_setxattr SYS_lsetxattr SYS_getxattr SYS_lgetxattr SYS_listxattr SYS_llistxattr SYS_removexattr
    SYS_lremovexattr SYS_name_to_handle_at SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
    SYS_fanotify_mark SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    // waiting
    SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
    SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
    SYS_io_setup SYS_io_destroy SYS_io_getevents SYS_io_submit SYS_io_cancel
    // memory
    SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_msync SYS_mincore SYS_madvise SYS_brk SYS_mlock SYS_mlock2
    SYS_munlock SYS_mlockall SYS_munlockall SYS_remap_file_pages SYS_membarrier SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_mseal SYS_process_madvise SYS_process_mrelease
    // processes
    SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill SYS_getpid SYS_getppid SYS_gettid
    SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list
    SYS_futex SYS_futex_waitv SYS_rseq SYS_prctl SYS_getrusage SYS_prlimit64 SYS_getrlimit SYS_setrlimit
    SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_yield SYS_sched_setparam
    SYS_sched_getparam SYS_sched_setscheduler SYS_sched_getscheduler SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_getaffinity
    SYS_sched_setattr SYS_sched_getattr SYS_getcpu SYS_pidfd_open SYS_pidfd_send_signal SYS_restart_syscall
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_seccomp
    // signals
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigtimedwait SYS_rt_sigqueueinfo
    SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack
    // ids
    SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid SYS_setgid
    SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid SYS_capget
    SYS_capset
    // time
    SYS_gettimeofday SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_times SYS_getitimer
    SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete
    SYS_adjtimex SYS_clock_adjtime
    // sockets; socket itself by family
    SYS_socketpair SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername
    SYS_setsockopt SYS_getsockopt SYS_shutdown SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg
    SYS_recvmmsg
    // IPC
    SYS_shmget SYS_shmat SYS_shmctl SYS_shmdt SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd
    SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
    SYS_mq_getsetattr
    // the system
    SYS_uname SYS_sysinfo SYS_getrandom
};

/// What only old numbering has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[libc::c_long] = numbers! {
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_readlink SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link
    SYS_symlink SYS_chmod SYS_chown SYS_lchown SYS_mknod SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2
    SYS_pipe SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_epoll_ctl_old SYS_epoll_wait_old SYS_eventfd
    SYS_signalfd SYS_inotify_init SYS_alarm SYS_pause SYS_time SYS_getpgrp SYS_fork SYS_vfork SYS_arch_prctl
    SYS_modify_ldt SYS_set_thread_area SYS_get_thread_area
};
/// What only old numbering has.
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[libc::c_long] = &[];

#[cfg(target_arch = "x86_64")]
const IO_PGETEVENTS: libc::c_long = 333;
#[cfg(not(target_arch = "x86_64"))]
const IO_PGETEVENTS: libc::c_long = 292;

/// Newer than the constants of the libc crate; one number on every architecture.
const ALLOWED_NEW: &[libc::c_long] = &[
    IO_PGETEVENTS,
    451, // cachestat
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
    463, // setxattrat
    464, // getxattrat
    465, // listxattrat
    466, // removexattrat
    468, // file_getattr
    469, // file_setattr
];

const CONDITIONAL: &[(libc::c_long, Verdict)] = &[
    (libc::SYS_clone, Verdict::CloneWithoutNamespaces),
    (libc::SYS_clone3, Verdict::Enosys),
    (libc::SYS_socket, Verdict::SafeSocket),
    (libc::SYS_ioctl, Verdict::SafeIoctl),
    (libc::SYS_personality, Verdict::SafePersonality),
];

/// Numbers between these belong to no system call.
#[cfg(target_arch = "x86_64")]
const GAP: (usize, usize) = (337, 424);
/// Numbers between these belong to no system call.
#[cfg(not(target_arch = "x86_64"))]
const GAP: (usize, usize) = (295, 424);

const fn allow(profile: &mut Profile, numbers: &[libc::c_long]) {
    let mut i = 0;
    while i < numbers.len() {
        profile[numbers[i] as usize] = Verdict::Allow;
        i += 1;
    }
}

/// The built-in profile; `compat` adds `chroot`, for images that expect what Docker gives.
#[must_use]
pub const fn profile(compat: bool) -> Profile {
    let mut p = [Verdict::Eperm; NUMBERS];
    let mut nr = GAP.0;
    while nr < GAP.1 {
        p[nr] = Verdict::Enosys;
        nr += 1;
    }
    allow(&mut p, ALLOWED);
    allow(&mut p, ALLOWED_HERE);
    allow(&mut p, ALLOWED_NEW);
    if compat {
        allow(&mut p, &[libc::SYS_chroot]);
    }
    let mut i = 0;
    while i < CONDITIONAL.len() {
        p[CONDITIONAL[i].0 as usize] = CONDITIONAL[i].1;
        i += 1;
    }
    p
}
