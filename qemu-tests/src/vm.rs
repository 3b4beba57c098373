//! One machine: a QEMU process, its serial line with the time of every line, its monitor and its control channel.

use crate::{
    ctl::Ctl,
    disk::Disk,
    fabric,
    firmware::{self, Firmware},
    pace,
    qmp::Qmp,
    sys,
};
use anyhow::{Context as _, Result, anyhow};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Serial lines kept in memory; later ones go to the log file only.
const LINES_MAX: usize = 20_000;
/// All that QEMU can emulate but a fifth level of page tables, which costs a fifth of a boot: each access that is not in its
/// table of translations walks them.
const CPU: &str = "max,la57=off";

/// Kernel arguments of every test machine: what costs time under emulation and changes nothing we test is off. The last
/// takes a quarter of the kernel's own instructions: a source of randomness that tries itself out, and names of tracing.
pub const KERNEL_ARGS: &str = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=reliable \
    lsm=capability audit=0 rodata=off cryptomgr.notests \
    initcall_blacklist=jent_mod_init,trace_eval_init,tracer_init_tracefs,init_kprobe_trace";

/// What a machine is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Number in its cluster: port of the switch, last byte of the MAC.
    pub index: usize,
    /// Bzimage or vmlinux.
    pub kernel: PathBuf,
    /// Initramfs, then further archives; given to the kernel as one.
    pub initrds: Vec<Vec<u8>>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// After [`KERNEL_ARGS`].
    pub args: String,
    /// Sockets and logs go here.
    pub dir: PathBuf,
    /// SMBIOS system UUID.
    pub uuid: String,
    /// Made by [`crate::cluster`]; they keep what is written over power cycles.
    pub disks: Vec<Disk>,
    /// Nothing is given to it: its firmware boots it. Kernel, archives and arguments are not used.
    pub firmware: Option<Firmware>,
    /// A reset boots the same kernel again; otherwise it ends QEMU.
    pub reboots: bool,
    /// Its network device.
    pub nic: &'static str,
    /// Further QEMU arguments: another clock, a watchdog.
    pub qemu: Vec<String>,
}

/// The system UUID of machine `n`, unless told otherwise.
#[must_use]
pub fn uuid(n: usize) -> String {
    format!("00000000-0000-4000-8000-{:012x}", n + 1)
}

/// One serial line.
#[derive(Debug, Clone)]
struct Line {
    /// Time since the machine was switched on.
    at: Duration,
    /// CPU time QEMU had used by then: what it takes on an idle machine, told on any.
    cpu: Duration,
    text: String,
}

type Lines = Arc<Mutex<Vec<Line>>>;

/// A running machine. Dropping it is a power cut.
#[derive(Debug)]
pub struct Vm {
    plan: Plan,
    child: Child,
    started: Instant,
    lines: Lines,
    /// Ends with the serial line.
    reader: Option<JoinHandle<()>>,
}

impl Vm {
    /// Switches it on.
    ///
    /// # Errors
    /// When files cannot be written or QEMU does not start.
    pub fn start(plan: Plan) -> Result<Self> {
        let n = plan.index;
        let path = |name: &str| plan.dir.join(format!("{name}{n}"));
        let initrd = path("initrd");
        let mut file =
            File::create(&initrd).with_context(|| format!("create {}", initrd.display()))?;
        for archive in &plan.initrds {
            file.write_all(archive)?;
        }
        drop(file);
        for stale in [fabric::machine_path(&plan.dir, n), path("qmp"), path("ctl")] {
            let _ = std::fs::remove_file(stale);
        }
        // A blank machine's firmware speaks on the serial line.
        let machine = if plan.firmware.is_some() { "q35,graphics=off" } else { "q35" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,tb-size=64", "-M", machine, "-cpu", CPU, "-nodefaults"])
            .args(["-no-user-config", "-display", "none"])
            .args(if plan.reboots { &[][..] } else { &["-no-reboot"] })
            .args(["-m", &plan.memory_mib.to_string(), "-serial", "stdio"])
            .args(["-uuid", &plan.uuid])
            .args(nic(plan.nic, "n0", &plan.dir, n, mac(n)))
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .args([
                "-chardev",
                &format!("socket,id=c0,path={},server=on,wait=off", path("ctl").display()),
            ])
            .args(["-device", "virtserialport,chardev=c0,name=ctl"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp").display())])
            .args(plan.disks.iter().enumerate().flat_map(|(n, disk)| disk.arguments(n)))
            .args(&plan.qemu)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(path("qemu.err"))?);
        if let Some(firmware) = plan.firmware {
            command.args(firmware.arguments(&path("vars"))?);
        } else {
            command.arg("-kernel").arg(&plan.kernel).arg("-initrd").arg(&initrd);
            command.args(["-append", &format!("{KERNEL_ARGS} {}", plan.args)]);
        }
        sys::die_with_us(&mut command);
        let started = Instant::now();
        let mut child = command.spawn().context("start qemu-system-x86_64")?;
        let lines = Lines::default();
        let serial = child.stdout.take().context("QEMU has no stdout")?;
        let log = File::options().create(true).append(true).open(path("serial"))?;
        let into = Arc::clone(&lines);
        let pid = child.id();
        let reader = std::thread::Builder::new()
            .name(format!("serial{n}"))
            .spawn(move || read_serial(serial, log, (started, pid), &into))?;
        Ok(Self { plan, child, started, lines, reader: Some(reader) })
    }

    /// The plan it was started from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// CPU time QEMU had used when the first line that contains `text` came.
    #[must_use]
    pub fn cpu_at(&self, text: &str) -> Option<Duration> {
        self.lines().iter().find(|line| line.text.contains(text)).map(|line| line.cpu)
    }

    /// Time since it was switched on.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the first serial line that contains `text` came; waits up to `timeout` times the pace.
    ///
    /// # Errors
    /// When it does not come, or QEMU ends; with the last lines.
    pub fn line(&mut self, text: &str, timeout: Duration) -> Result<(Duration, String)> {
        self.line_after(0, text, timeout)
    }

    /// How many serial lines there are, for [`Vm::line_after`].
    #[must_use]
    pub fn mark(&self) -> usize {
        self.lines().len()
    }

    /// As [`Vm::line`], of the lines since `mark`.
    ///
    /// # Errors
    /// As [`Vm::line`].
    pub fn line_after(
        &mut self,
        mark: usize,
        text: &str,
        timeout: Duration,
    ) -> Result<(Duration, String)> {
        self.wait_for(mark, text, timeout).map(|(_, line)| (line.at, line.text))
    }

    /// Waits until lines with these texts have come since `mark`, each after the one before it.
    ///
    /// # Errors
    /// As [`Vm::line`], of the first that does not come in its place within `timeout`.
    pub fn in_order(&mut self, mark: usize, texts: &[&str], timeout: Duration) -> Result<()> {
        let mut from = mark;
        for text in texts {
            from = self.wait_for(from, text, timeout)?.0 + 1;
        }
        Ok(())
    }

    fn wait_for(&mut self, mark: usize, text: &str, timeout: Duration) -> Result<(usize, Line)> {
        let start = Instant::now();
        let timeout = timeout.mul_f64(pace::stretch());
        loop {
            if let Some(found) = self.find_after(mark, text) {
                return Ok(found);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() {
                self.hear_out();
            }
            // One more look: the last words may have come between the two.
            if let Some(found) = self.find_after(mark, text) {
                return Ok(found);
            }
            if ended.is_some() || start.elapsed() > timeout {
                let why = if ended.is_some() { "QEMU ended" } else { "timed out" };
                let (n, s) = (self.plan.index, timeout.as_secs_f64());
                return Err(anyhow!(
                    "machine {n}: no line with {text:?} ({why}, {s:.1} s):\n{}",
                    self.tail()
                ));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn find_after(&self, mark: usize, text: &str) -> Option<(usize, Line)> {
        let lines = self.lines();
        let mut later = lines.iter().enumerate().skip(mark);
        let (place, line) = later.find(|(_, line)| line.text.contains(text))?;
        Some((place, line.clone()))
    }

    /// Takes the last words of a QEMU that has ended: they are in the pipe when it is gone, and may not be in `lines` yet.
    fn hear_out(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }

    /// Whether a line with `text` has come.
    #[must_use]
    pub fn said(&self, text: &str) -> bool {
        self.find_after(0, text).is_some()
    }

    /// All serial lines so far.
    #[must_use]
    pub fn serial(&self) -> Vec<String> {
        self.lines().iter().map(|line| line.text.clone()).collect()
    }

    /// The last serial lines, for an error.
    #[must_use]
    pub fn tail(&self) -> String {
        let lines = self.serial();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its monitor.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn qmp(&self) -> Result<Qmp> {
        let path = self.plan.dir.join(format!("qmp{}", self.plan.index));
        pace::eventually(Duration::from_secs(5), "QMP", || Qmp::connect(&path))
    }

    /// Its control channel, once the guest answers on it.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn ctl(&self) -> Result<Ctl> {
        Ctl::connect(&self.plan.dir.join(format!("ctl{}", self.plan.index)))
    }

    /// A power cut.
    ///
    /// # Errors
    /// When the process cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.hear_out();
        Ok(())
    }

    /// Stops the QEMU process: the guest's clock jumps when it goes on.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn pause(&self, stop: bool) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("pid")?;
        kill_process(pid, if stop { Signal::STOP } else { Signal::CONT })?;
        Ok(())
    }

    /// Stops the guest's CPUs: its clock freezes with them.
    ///
    /// # Errors
    /// When QMP refuses.
    pub fn freeze(&self, stop: bool) -> Result<()> {
        self.qmp()?.command(if stop { "stop" } else { "cont" }, serde_json::json!({}))?;
        Ok(())
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// When QMP refuses.
    pub fn power_button(&self) -> Result<()> {
        self.qmp()?.command("system_powerdown", serde_json::json!({})).map(drop)
    }

    /// Plugs the network cable in or pulls it.
    ///
    /// # Errors
    /// When QMP refuses.
    pub fn link(&self, up: bool) -> Result<()> {
        self.qmp()?.command("set_link", serde_json::json!({"name": "n0", "up": up})).map(drop)
    }

    /// Waits until QEMU ends by itself (power off, or reboot under `-no-reboot`); all its lines have come then.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn ended(&mut self, timeout: Duration) -> Result<Duration> {
        let start = Instant::now();
        let done = pace::eventually(timeout, "QEMU ends", || {
            self.child.try_wait()?.map(|_| start.elapsed()).ok_or_else(|| anyhow!("still running"))
        });
        if done.is_ok() {
            self.hear_out();
        }
        done.with_context(|| self.tail())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hardware address of machine `n`.
#[must_use]
pub fn mac(n: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0x71, 0, n as u8]
}

/// QEMU's arguments for a network device on a port of the switch.
pub(crate) fn nic(device: &str, id: &str, dir: &Path, port: usize, mac: [u8; 6]) -> [String; 4] {
    let (ours, theirs) = (fabric::machine_path(dir, port), fabric::switch_path(dir, port));
    let (ours, theirs) = (ours.display(), theirs.display());
    let sockets =
        format!("local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}");
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    // A ROM costs time and boots nothing that has a kernel.
    let rom = if device.contains(firmware::ROM) { "" } else { ",romfile=" };
    [
        "-netdev".into(),
        format!("dgram,id={id},{sockets}"),
        "-device".into(),
        format!("{device},netdev={id},mac={mac}{rom}"),
    ]
}

/// User and system time of a process and its threads (proc_pid_stat(5), fields 14 and 15, in 1/100 s).
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

/// Log lines begin with both times: `[wall cpu]`.
fn read_serial(
    from: impl std::io::Read,
    mut log: File,
    (started, pid): (Instant, u32),
    into: &Lines,
) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while from.read_until(b'\n', &mut bytes).is_ok_and(|len| len > 0) {
        let at = started.elapsed();
        let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        let cpu = cpu_time(pid).unwrap_or_default();
        let _ = writeln!(log, "[{:9.3} {:7.2}] {text}", at.as_secs_f64(), cpu.as_secs_f64());
        let mut lines = into.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            lines.push(Line { at, cpu, text });
        }
        bytes.clear();
    }
}

/// QEMU's version, `None` when it is not installed.
#[must_use]
pub fn qemu_version() -> Option<(u32, u32)> {
    let out = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let version = text.split_whitespace().nth(3)?;
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// A test's directory for sockets and logs: short, because a socket's path has at most 107 bytes.
#[must_use]
pub fn test_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("quelea-qemu-{}", std::process::id())).join(name)
}

/// The same, made anew and empty.
///
/// # Errors
/// When it cannot be made.
pub fn test_dir(name: &str) -> Result<PathBuf> {
    let dir = test_path(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Removes a test's directory.
pub fn remove_dir(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    let _ = dir.parent().map(std::fs::remove_dir);
}
