//! One node of a dev flock: a thread that holds its namespaces and waits for its PID 1.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::registry::DevNode;

/// A running node.
pub(super) struct Running {
    pid: Pid,
    thread: JoinHandle<()>,
}

impl Running {
    /// Cuts its power: everything in its PID namespace is killed.
    pub(super) fn kill(self) {
        // Gone already is as good.
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = self.thread.join();
    }

    /// Whether its PID 1 has ended by itself.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Gives a node its power: namespaces, a cable to the bridge, `quelead init`.
pub(super) fn start(node: &DevNode, quelead: &Path, config: &Path) -> Result<Running> {
    let run = node.dir().join("run");
    // What was in memory is gone after a power cut.
    match std::fs::remove_dir_all(&run) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot clear {}", run.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&run)?;
    std::fs::create_dir_all(node.state())?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(node.dir().join("agent.log"))
        .with_context(|| format!("cannot write the log of {}", node.name))?;
    let (sender, receiver) = mpsc::channel();
    let (node, quelead, config) = (node.clone(), quelead.to_owned(), config.to_owned());
    let thread = std::thread::Builder::new().name(node.name.clone()).spawn(move || {
        let spawned = spawn(&node, &quelead, &config, log);
        match spawned {
            Ok(mut child) => {
                let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
                let _ = std::fs::write(node.pid_path(), pid.to_string());
                let _ = sender.send(Ok(pid));
                // The kernel kills the child when this thread ends, so it stays until then.
                let _ = child.wait();
                let _ = std::fs::remove_file(node.pid_path());
            }
            Err(error) => {
                let _ = sender.send(Err(error));
            }
        }
    })?;
    let pid = receiver.recv().context("the node's thread ended")??;
    Ok(Running { pid, thread })
}

/// On the node's own thread: namespaces are a thread's.
fn spawn(
    node: &DevNode,
    quelead: &Path,
    config: &Path,
    log: std::fs::File,
) -> Result<std::process::Child> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    cable(node)?;
    // From here on the first child is PID 1 of a new PID namespace.
    let flags = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(flags).context("cannot make the node's namespaces")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("cannot make the node's mounts private")?;
    let mut command = Command::new(quelead);
    command
        .args(["init", "--namespace", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0);
    die_with_parent(&mut command);
    command.spawn().with_context(|| format!("cannot start {}", quelead.display()))
}

/// A child that is killed when the thread that started it ends, however that happens.
#[allow(unsafe_code)]
pub(super) fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec and makes one prctl(2), which is async-signal-safe; it allocates nothing.
    unsafe {
        command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
}

/// `eth0` here, its other end on the bridge in the supervisor's namespace.
fn cable(node: &DevNode) -> Result<()> {
    let supervisor = std::process::id();
    let (name, address) = (&node.name, &node.address);
    ip(&format!(
        "link set lo up\n\
         link add eth0 type veth peer name {name} netns {supervisor}\n\
         addr add {address}/16 dev eth0\n\
         link set eth0 up\n"
    ))
    .with_context(|| format!("cannot cable {name} to the bridge"))
}

/// Runs `ip -batch` in the calling thread's network namespace.
pub(super) fn ip(batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .env("PATH", path_with_sbin())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `ip`; it is in the package iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("`ip` refused: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn path_with_sbin() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), "/sbin".into()]);
    std::env::join_paths(dirs).unwrap_or(path)
}
