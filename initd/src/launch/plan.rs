//! What the shim prepares before it clones, so that the child only attaches, drops and executes.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

use super::attach::{Attach, Owner, attachments, open_root};
use super::empty::Empty;
use super::mounts::RDONLY;
use super::volumes::Volumes;
use super::{Failure, Step, user};
use crate::error::Error;
use crate::pod::{ContainerSpec, Seccomp, Stdin};
use crate::shim::Condition;
use crate::sys::{self, Strings};
use crate::userns::IdMap;

/// Where programs without `/` are looked for when the environment has no `PATH`.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What lowering `oom_score_adj` needs.
const CAP_SYS_RESOURCE: u64 = 1 << 24;
/// Where each container's terminals are.
const PTS: &CStr = c"dev/pts";
/// Descriptors that the child keeps live above those that it gives away (0..=4).
const FD_FLOOR: RawFd = 10;

/// What a pod's containers have in common.
pub(crate) struct Context<'a> {
    pub(crate) userns: Option<(BorrowedFd<'a>, IdMap)>,
    /// The containers have cgroups: they get a cgroup namespace and a read-only view of it.
    pub(crate) cgroup: bool,
    /// PID 1 of the PID namespace that they share, if they do.
    pub(crate) pids: Option<BorrowedFd<'a>>,
    pub(crate) volumes: Option<&'a Volumes>,
    /// The cgroup lets only devices of the spec through.
    pub(crate) device_filter: bool,
    /// What mount namespaces of containers begin as.
    pub(crate) empty: &'a Empty,
}

/// A running container that a program joins.
pub(crate) struct Joining<'a> {
    /// Of its PID 1.
    pub(crate) pidfd: BorrowedFd<'a>,
    /// Whether it runs in the pod's user namespace.
    pub(crate) in_userns: bool,
}

/// How the child gets its mount, PID and cgroup namespaces.
pub(super) enum Space<'a> {
    /// New ones, around this root; but for the PID namespace when the pod has one.
    New {
        empty: &'a Empty,
        root: OwnedFd,
        attach: Vec<Attach>,
        cgroup: bool,
        pids: Option<(BorrowedFd<'a>, OwnedFd)>,
    },
    /// Those of a running container.
    Join { pidfd: BorrowedFd<'a>, own: OwnedFd },
}

/// Everything that a child needs; reading it allocates nothing.
pub(crate) struct Plan<'a> {
    pub(super) space: Space<'a>,
    pub(super) userns: Option<BorrowedFd<'a>>,
    pub(super) rlimits: Vec<(u32, u64, u64)>,
    pub(super) oom_score_adj: Option<CString>,
    /// The host's own `/proc`.
    pub(super) proc: OwnedFd,
    pub(super) caps: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    /// Each directory on the way, and the last.
    pub(super) workdir: Vec<CString>,
    /// `None`: the container's own `/dev/null`.
    pub(super) stdio: Stdio,
    /// Standard input is a terminal, which becomes the session's own.
    pub(super) terminal: bool,
    pub(super) seccomp: Option<&'a [crate::seccomp::Insn]>,
    pub(super) init: bool,
    pub(super) programs: Vec<CString>,
    pub(super) argv: Strings,
    pub(super) envp: Strings,
    /// As the spec says it, for messages.
    program: String,
    /// What the machine could not give.
    pub(crate) conditions: Vec<Condition>,
    /// Our end of the program's terminal, if it has one.
    pub(crate) master: Option<OwnedFd>,
}

/// Standard input, output and error of a program; `None` is the container's own `/dev/null`, so that no device of the
/// host is handed in.
pub(crate) type Stdio = [Option<OwnedFd>; 3];

/// What is left of a plan once the child is on its way: enough to explain where it stopped.
pub(crate) struct Told {
    pub(super) root: Option<OwnedFd>,
    pub(super) targets: Vec<CString>,
    pub(super) program: String,
    pub(super) programs: Vec<CString>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) workdir: Option<CString>,
    /// The container's devpts.
    pub(crate) pts: Option<OwnedFd>,
}

/// A pipe whose ends are above the numbers that the child gives away.
pub(super) fn pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((raise(read)?, raise(write)?))
}

fn raise(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    if fd.as_raw_fd() >= FD_FLOOR { Ok(fd) } else { rustix::io::fcntl_dupfd_cloexec(&fd, FD_FLOOR) }
}

pub(super) fn cstring(s: &OsStr) -> Result<CString, Failure> {
    CString::new(s.as_bytes())
        .map_err(|_| Failure::new(Step::Spec, Errno::INVAL, "a NUL byte in a path"))
}

impl<'a> Plan<'a> {
    /// For a new container. `stdio` are its standard input, output and error.
    pub(crate) fn container(
        context: &Context<'a>,
        spec: &'a ContainerSpec,
        mut stdio: Stdio,
    ) -> Result<Self, Failure> {
        let mut conditions = Vec::new();
        let (root, userns) = open_root(context, spec, &mut conditions)?;
        let owner = Owner {
            outside: userns.map_or(0, |(_, map)| map.outside),
            userns: userns.map(|u| u.0),
        };
        let outside = owner.outside;
        let attach = attachments(context, spec, &root, owner, &mut conditions)?;
        if spec.read_only {
            sys::mount_setattr(root.as_fd(), false, RDONLY, None)
                .map_err(|e| Failure::new(Step::Rootfs, e, "making the root read-only"))?;
        }
        if spec.oom_score_adj < 0 && sys::permitted_caps().is_ok_and(|c| c & CAP_SYS_RESOURCE == 0)
        {
            conditions.push(Condition::NotPermitted {
                container: spec.name.clone(),
                what: "oom_score_adj".to_owned(),
                errno: libc::EPERM,
            });
        }
        if spec.seccomp == Seccomp::Unconfined {
            conditions.push(Condition::Unconfined { container: spec.name.clone() });
        }
        let mut master = None;
        if spec.stdin == Stdin::Terminal {
            (master, stdio) = new_terminal(&attach)?;
        }
        let user = user::resolve(root.as_fd(), &spec.user).map_err(|e| user_failure(&e))?;
        for fd in stdio.iter().flatten() {
            // A program that is not root may want to open /dev/stdout again, as web servers do.
            let owner = |id: u32| Some(outside.saturating_add(id));
            let _ = rustix::fs::fchown(
                fd,
                owner(user.uid).map(rustix::fs::Uid::from_raw),
                owner(user.gid).map(rustix::fs::Gid::from_raw),
            );
        }
        let pids = context.pids.map(|fd| Ok((fd, own_pids()?))).transpose()?;
        let empty = context.empty;
        let space = Space::New { empty, root, attach, cgroup: context.cgroup, pids };
        let run = Run {
            argv: &spec.argv,
            env: spec.env.clone(),
            workdir: &spec.workdir,
            init: spec.init,
            terminal: master.is_some(),
        };
        let plan = Self::assemble(spec, space, owner.userns, user, run, stdio, conditions)?;
        Ok(Self { master, ..plan })
    }

    /// For a program that joins a running container.
    pub(crate) fn join(
        userns: Option<(BorrowedFd<'a>, IdMap)>,
        spec: &'a ContainerSpec,
        joining: &Joining<'a>,
        exec: &crate::shim::ExecSpec,
        stdio: Stdio,
        terminal: bool,
    ) -> Result<Self, Failure> {
        let path = format!("/proc/{}/root", pid_of(joining.pidfd)?);
        let root = rustix::fs::open(
            &path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .map_err(|e| Failure::new(Step::Rootfs, e, "opening the container's root"))?;
        let name = if exec.user.is_empty() { &spec.user } else { &exec.user };
        let user = user::resolve(root.as_fd(), name).map_err(|e| user_failure(&e))?;
        if let Some(fd) = stdio.first().and_then(Option::as_ref).filter(|_| terminal) {
            let outside = userns.filter(|_| joining.in_userns).map_or(0, |(_, m)| m.outside);
            let owner = rustix::fs::Uid::from_raw(outside.saturating_add(user.uid));
            let _ = rustix::fs::fchown(fd, Some(owner), None);
        }
        let own = own_pids()?;
        let userns = userns.filter(|_| joining.in_userns).map(|u| u.0);
        let mut env = spec.env.clone();
        for (k, v) in &exec.env {
            env.retain(|(name, _)| name != k);
            env.push((k.clone(), v.clone()));
        }
        let workdir = if exec.workdir.is_empty() { &spec.workdir } else { &exec.workdir };
        let run = Run { argv: &exec.argv, env, workdir, init: false, terminal };
        let space = Space::Join { pidfd: joining.pidfd, own };
        Self::assemble(spec, space, userns, user, run, stdio, Vec::new())
    }

    fn assemble(
        spec: &'a ContainerSpec,
        space: Space<'a>,
        userns: Option<BorrowedFd<'a>>,
        user: user::User,
        run: Run<'_>,
        stdio: Stdio,
        conditions: Vec<Condition>,
    ) -> Result<Self, Failure> {
        let mut env = run.env;
        if let Some(home) = user.home.filter(|_| !env.iter().any(|(k, _)| k == "HOME")) {
            env.push(("HOME".to_owned(), home));
        }
        let program = run.argv.first().cloned().unwrap_or_default();
        let path = env.iter().find(|(k, _)| k == "PATH").map_or(PATH_DEFAULT, |(_, v)| v.as_str());
        let programs = candidates(&program, path);
        let stdio = {
            let [i, o, e] = stdio;
            let up = |fd: Option<OwnedFd>| {
                fd.map(raise).transpose().map_err(|e| Failure::new(Step::Stdio, e, "dup"))
            };
            [up(i)?, up(o)?, up(e)?]
        };
        Ok(Self {
            space,
            userns,
            rlimits: spec.rlimits.iter().map(|r| (r.resource, r.soft, r.hard)).collect(),
            // Always written: the shim's own is low and would be inherited.
            oom_score_adj: CString::new(spec.oom_score_adj.to_string()).ok(),
            proc: host_proc()?,
            caps: spec.caps.0,
            uid: user.uid,
            gid: user.gid,
            groups: user.groups,
            workdir: prefixes(run.workdir),
            stdio,
            terminal: run.terminal,
            seccomp: match &spec.seccomp {
                Seccomp::Default => Some(crate::seccomp::DEFAULT),
                Seccomp::Compat => Some(crate::seccomp::COMPAT),
                Seccomp::Unconfined => None,
                Seccomp::Own { program, .. } => Some(program),
            },
            init: run.init,
            programs,
            argv: Strings::new(run.argv.iter().cloned()),
            envp: Strings::new(env.into_iter().map(|(k, v)| format!("{k}={v}"))),
            program,
            conditions,
            master: None,
        })
    }

    /// Closes everything that the child has its own copies of.
    pub(crate) fn told(self) -> Told {
        let mut pts = None;
        let (root, targets) = match self.space {
            Space::New { root, attach, .. } => {
                let target = |a: Attach| {
                    if a.target.as_c_str() == PTS {
                        pts = Some(a.tree);
                    }
                    a.target
                };
                (Some(root), attach.into_iter().map(target).collect())
            }
            Space::Join { .. } => (None, Vec::new()),
        };
        Told {
            root,
            targets,
            program: self.program,
            programs: self.programs,
            uid: self.uid,
            gid: self.gid,
            workdir: self.workdir.into_iter().next_back(),
            pts,
        }
    }

    /// Whether the child stays as a mini-init.
    pub(super) fn mini_init(&self) -> bool {
        self.init
    }

    /// Whether the child gets namespaces of its own.
    pub(super) fn is_new(&self) -> bool {
        matches!(self.space, Space::New { .. })
    }

    /// Whether the program runs in the pod's user namespace.
    pub(crate) fn in_userns(&self) -> bool {
        self.userns.is_some()
    }

    /// Calls `clone` with the flags that put the child into its mount and PID namespaces; the shim itself stays where it is.
    pub(super) fn in_namespaces<T>(
        &self,
        clone: impl FnOnce(u64) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match &self.space {
            Space::New { empty, pids: None, .. } => {
                empty.within(|| clone((libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64))
            }
            Space::New { empty, pids: Some((pidfd, own)), .. } => {
                within(*pidfd, own, || empty.within(|| clone(libc::CLONE_NEWNS as u64)))
            }
            Space::Join { pidfd, own } => within(*pidfd, own, || clone(0)),
        }
    }
}

/// Clones into the PID namespace of a pidfd's process. Children of later launches belong into ones of their own.
fn within<T>(
    pidfd: BorrowedFd<'_>,
    own: &OwnedFd,
    clone: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    sys::setns(pidfd, libc::CLONE_NEWPID)?;
    let cloned = clone();
    sys::setns(own.as_fd(), libc::CLONE_NEWPID)?;
    cloned
}

/// The shim's PID namespace.
fn own_pids() -> Result<OwnedFd, Failure> {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/ns/pid", flags, rustix::fs::Mode::empty())
        .map_err(|e| Failure::new(Step::Setns, e, "/proc/self/ns/pid"))
}

/// Where a child that sees nothing of the host finds itself.
fn host_proc() -> Result<OwnedFd, Failure> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/proc", flags, rustix::fs::Mode::empty())
        .map_err(|e| Failure::new(Step::Proc, e, "/proc"))
}

/// A terminal in the container's own `/dev/pts`: our end, and the program's three descriptors of the other.
fn new_terminal(attach: &[Attach]) -> Result<(Option<OwnedFd>, Stdio), Failure> {
    let fail = |e| Failure::new(Step::Stdio, e, "a new terminal");
    let pts =
        attach.iter().find(|a| a.target.as_c_str() == PTS).ok_or_else(|| fail(Errno::NODEV))?;
    let (ours, theirs) = sys::terminal(pts.tree.as_fd()).map_err(fail)?;
    let again = || theirs.try_clone().map_err(|_| fail(Errno::MFILE));
    Ok((Some(ours), [Some(again()?), Some(again()?), Some(again()?)]))
}

struct Run<'a> {
    argv: &'a [String],
    env: Vec<(String, String)>,
    workdir: &'a str,
    init: bool,
    terminal: bool,
}

fn user_failure(e: &Error) -> Failure {
    let errno = e.errno().map_or(Errno::NOENT, Errno::from_raw_os_error);
    Failure::new(Step::User, errno, e.to_string())
}

/// The PID that a pidfd refers to.
fn pid_of(pidfd: BorrowedFd<'_>) -> Result<u32, Failure> {
    let gone = || Failure::new(Step::Setns, Errno::SRCH, "the container has just ended");
    sys::pid_of(pidfd).ok_or_else(gone)
}

/// The paths that a program is looked for at.
fn candidates(program: &str, path: &str) -> Vec<CString> {
    if program.contains('/') {
        return CString::new(program).into_iter().collect();
    }
    let dirs = path.split(':').map(|d| if d.is_empty() { "." } else { d });
    dirs.filter_map(|d| CString::new(format!("{d}/{program}")).ok()).collect()
}

/// `/a/b/c` as `/a`, `/a/b`, `/a/b/c`; `/` for nothing.
fn prefixes(path: &str) -> Vec<CString> {
    let mut so_far = String::new();
    let mut list = Vec::new();
    for c in path.split('/').filter(|c| !c.is_empty() && *c != ".") {
        so_far.push('/');
        so_far.push_str(c);
        list.extend(CString::new(so_far.clone()));
    }
    if list.is_empty() {
        list.push(c"/".to_owned());
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_where_path_says() {
        assert_eq!(candidates("./x", "/bin"), [c"./x".to_owned()]);
        assert_eq!(
            candidates("x", "/bin::/y"),
            [c"/bin/x".to_owned(), c"./x".to_owned(), c"/y/x".to_owned()]
        );
    }

    #[test]
    fn working_directories_are_made_from_the_top() {
        assert_eq!(prefixes(""), [c"/".to_owned()]);
        assert_eq!(prefixes("/a//b/./"), [c"/a".to_owned(), c"/a/b".to_owned()]);
    }
}
