//! The helper inside a test machine, under several names.
//!
//! - as PID 1 (`rdinit=/usr/lib/quelea-guest`): starts itself as `ctl`, then becomes the real `/init`.
//! - `ctl`: answers the host on the virtio serial port named `ctl`.
//! - as `/init` itself, where a test wants the machine half alone: boots it and reaps; where there are a quelead and
//!   a node configuration it keeps the agent running.
//! - as `ip`: all of ip(8) that test programs of other crates call, which is `ip link set lo up`.
//! - `eat MIB`, `fork N`, `spin`: what a badly behaved workload does, for tests of limits.
//! - `term MS`: what a well behaved one does: at SIGTERM it takes its time and ends with 0.

#[path = "../wire.rs"]
#[allow(dead_code, unreachable_pub)]
mod wire;

use initd::machine;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{net::UnixStream, process::CommandExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use wire::{Answer, Op, Request};

const SELF: &str = "/usr/lib/quelea-guest";
/// Our own view of processes, from before the real `/init` mounts its own.
const PROC: &str = "/usr/lib/quelea-proc";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|a| Path::new(a).file_name()).and_then(OsStr::to_str);
    if let Some(code) = machine::personality(args.iter().map(OsString::as_os_str)) {
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    match (name, args.get(1).and_then(|a| a.to_str()), std::process::id()) {
        (Some("init"), _, 1) => bare(),
        (Some("ip"), _, _) => lo_up(),
        (_, Some("ctl"), _) => ctl(),
        (_, Some("copy"), _) => copy(args.get(2)),
        (_, Some("eat"), _) => eat(number(args.get(2))),
        (_, Some("fork"), _) => fork(number(args.get(2))),
        (_, Some("fill"), _) => fill(),
        (_, Some("term"), _) => term(number(args.get(2))),
        (_, Some("spin"), _) => loop {
            std::hint::black_box(number(None));
        },
        (_, _, 1) => front(),
        _ => ExitCode::FAILURE,
    }
}

/// PID 1 for a moment.
fn front() -> ExitCode {
    let _ = std::fs::create_dir_all(PROC);
    let _ = rustix::mount::mount("proc", PROC, "proc", rustix::mount::MountFlags::empty(), None);
    // No /dev/null yet: it inherits the console.
    if let Err(e) = Command::new(SELF).arg("ctl").spawn() {
        eprintln!("quelea-guest: ctl: {e}");
    }
    let why = Command::new("/init").exec();
    eprintln!("quelea-guest: /init: {why}");
    ExitCode::FAILURE
}

/// Puts itself as `tool` into a new directory: the root of an image.
fn copy(dir: Option<&OsString>) -> ExitCode {
    let Some(dir) = dir.map(Path::new) else { return ExitCode::FAILURE };
    let done = std::fs::create_dir_all(dir).and_then(|()| std::fs::copy(SELF, dir.join("tool")));
    if done.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Brings the loopback device of this network namespace up: rtnetlink(7), RTM_NEWLINK of index 1.
fn lo_up() -> ExitCode {
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};
    let mut message = [0u8; 32];
    // Length; type and flags (request); after pid, family and type: index, flags and change (IFF_UP).
    for (at, word) in [(0, 32u32), (4, 16 | 1 << 16), (20, 1), (24, 1), (28, 1)] {
        message[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
    let kind = (AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(kind.0, kind.1, kind.2, None);
    let sent = socket.and_then(|socket| send(&socket, &message, SendFlags::empty()));
    if sent.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn number(arg: Option<&OsString>) -> usize {
    arg.and_then(|a| a.to_str()?.parse().ok()).unwrap_or(0)
}

/// Takes memory and keeps it.
fn eat(mib: usize) -> ExitCode {
    let mut kept = Vec::new();
    for n in 0..mib {
        kept.push(vec![1u8; 1 << 20]);
        println!("ate {} MiB", n + 1);
    }
    std::thread::sleep(Duration::from_secs(3600));
    drop(kept);
    ExitCode::SUCCESS
}

/// Waits for SIGTERM, needs that long to put its things in order, and ends.
fn term(ms: usize) -> ExitCode {
    if let Err(why) = sys::on_sigterm() {
        eprintln!("SIGTERM: {why}");
        return ExitCode::FAILURE;
    }
    println!("waiting");
    while !sys::told_to_end() {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(ms as u64));
    println!("ended in order");
    ExitCode::SUCCESS
}

/// Starts children that stay; says how many it got.
fn fork(wanted: usize) -> ExitCode {
    let mut kept = Vec::new();
    for _ in 0..wanted {
        match Command::new("/proc/self/exe").arg("eat").arg("0").stdout(Stdio::null()).spawn() {
            Ok(child) => kept.push(child),
            Err(why) => {
                println!("forked {} of {wanted}: {why}", kept.len());
                break;
            }
        }
    }
    println!("forked {}", kept.len());
    std::thread::sleep(Duration::from_secs(3600));
    ExitCode::SUCCESS
}

/// Writes until that fails, and goes on without.
fn fill() -> ExitCode {
    use std::io::Write as _;
    let piece = [1; 16 << 10];
    let mut kib = 0;
    match std::fs::File::create("/big") {
        Err(why) => println!("filled nothing: {why}"),
        Ok(mut file) => loop {
            if let Err(why) = file.write_all(&piece).and_then(|()| file.sync_data()) {
                println!("filled {kib} KiB: {why}");
                break;
            }
            kib += 16;
        },
    }
    std::thread::sleep(Duration::from_secs(3600));
    ExitCode::SUCCESS
}

/// The agent, where there is one to run; its pid.
fn start_agent() -> Option<u32> {
    let quelead = Path::new("/usr/bin/quelead");
    if !Path::new(machine::NODE_CONFIG).exists() || !quelead.exists() {
        return None;
    }
    let config = ["agent", "--config", machine::NODE_CONFIG];
    Command::new(quelead).args(config).spawn().map(|child| child.id()).ok()
}

/// The machine half without `initd::init`. PID 1 must not end.
fn bare() -> ExitCode {
    let mut booted = machine::boot();
    eprintln!("quelea-guest: ready phase={}", booted.machine.phase().name());
    let mut agent = start_agent();
    loop {
        match waitpid(None, WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let pid = pid.as_raw_nonzero().get();
                if agent.is_some_and(|own| u32::try_from(pid) == Ok(own)) {
                    eprintln!("quelea-guest: agent ended: {status:?}");
                    std::thread::sleep(Duration::from_secs(1));
                    agent = start_agent();
                } else {
                    let _ = booted.reaped(pid);
                }
            }
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
        match std::fs::read_to_string("/run/power").as_deref() {
            Ok("off") => machine::halt(machine::Power::Off),
            Ok("reboot") => machine::halt(machine::Power::Reboot),
            _ => {}
        }
    }
}

/// Finds the root that PID 1 has made by now, and answers for ever.
fn ctl() -> ExitCode {
    let root = Path::new(PROC).join("1/root");
    let port = loop {
        if let Some(port) = find_port(&root) {
            break port;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let entered = rustix::process::chdir(&root).and_then(|()| rustix::process::chroot("."));
    if let Err(e) = entered {
        eprintln!("quelea-guest: enter {}: {e}", root.display());
    }
    // The port can be opened once only; both directions share it.
    let Ok(from) = File::options().read(true).write(true).open(&port) else {
        return ExitCode::FAILURE;
    };
    let Ok(writer) = from.try_clone() else { return ExitCode::FAILURE };
    let writer = Arc::new(Mutex::new(writer));
    let mut from = BufReader::new(from);
    let mut line = String::new();
    loop {
        line.clear();
        // No host on the other end reads as end of file.
        if !from.read_line(&mut line).is_ok_and(|len| len > 0) {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        let Ok(Request { id, op }) = serde_json::from_str(&line) else { continue };
        let writer = Arc::clone(&writer);
        // A program that runs long must not keep the next question waiting.
        std::thread::spawn(move || {
            let answer = match run(op) {
                Ok(answer) => Answer { id, ..answer },
                Err(e) => Answer { id, error: Some(e.to_string()), ..Answer::default() },
            };
            let Ok(mut text) = serde_json::to_string(&answer) else { return };
            text.push('\n');
            if let Ok(mut writer) = writer.lock() {
                let _ = writer.write_all(text.as_bytes());
            }
        });
    }
}

/// The device of the port named `ctl`, as a path from the new root.
fn find_port(root: &Path) -> Option<PathBuf> {
    for entry in std::fs::read_dir(root.join("sys/class/virtio-ports")).ok()?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        if name.trim() == "ctl" {
            let device = Path::new("dev").join(entry.file_name());
            return root.join(&device).exists().then(|| Path::new("/").join(device));
        }
    }
    None
}

fn run(op: Op) -> std::io::Result<Answer> {
    let text = |out: String| Ok(Answer { out, ..Answer::default() });
    match op {
        Op::Ping => text(String::new()),
        Op::Exec { argv, timeout_ms } => exec(&argv, Duration::from_millis(timeout_ms)),
        Op::Spawn { argv, log } => {
            let missing = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
            let log = File::create(log)?;
            let child = Command::new(argv.first().ok_or_else(missing)?)
                .args(&argv[1..])
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            text(child.id().to_string())
        }
        Op::Read { path } => text(String::from_utf8_lossy(&std::fs::read(path)?).into_owned()),
        Op::List { path } => {
            let mut names: Vec<String> = std::fs::read_dir(path)?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            text(names.join("\n"))
        }
        Op::Find { starts } => text(find(&starts)),
        Op::Write { path, text: bytes } => {
            std::fs::write(path, bytes).and_then(|()| text(String::new()))
        }
        Op::Kill { pid, signal } => {
            let missing = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
            let pid = Pid::from_raw(pid).ok_or_else(missing)?;
            let signal = Signal::from_named_raw(signal).ok_or_else(missing)?;
            kill_process(pid, signal)?;
            text(String::new())
        }
        Op::Http { socket, request } => {
            let mut stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(60)))?;
            stream.write_all(request.as_bytes())?;
            let mut bytes = Vec::new();
            stream.take(wire::LINE_BYTES_MAX as u64 / 2).read_to_end(&mut bytes)?;
            text(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

/// PIDs by command line, one a line.
fn find(starts: &str) -> String {
    let mut found = String::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line: Vec<u8> = line.iter().map(|b| if *b == 0 { b' ' } else { *b }).collect();
        if line.starts_with(starts.as_bytes()) {
            found += &pid;
            found.push('\n');
        }
    }
    found
}

fn exec(argv: &[String], timeout: Duration) -> std::io::Result<Answer> {
    let program =
        argv.first().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let mut child = Command::new(program)
        .args(&argv[1..])
        .env("PATH", "/usr/bin:/sbin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let reader = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(from) = from {
                let _ = from.take(wire::LINE_BYTES_MAX as u64 / 4).read_to_end(&mut bytes);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let out = reader(child.stdout.take().map(|s| Box::new(s) as _));
    let err = reader(child.stderr.take().map(|s| Box::new(s) as _));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > timeout {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
    Ok(Answer {
        code,
        out: out.join().unwrap_or_default(),
        err: err.join().unwrap_or_default(),
        ..Answer::default()
    })
}

/// The one call that no crate here wraps.
mod sys {
    #![allow(unsafe_code)]

    use std::sync::atomic::{AtomicBool, Ordering};

    static TOLD: AtomicBool = AtomicBool::new(false);

    extern "C" fn note(_: libc::c_int) {
        TOLD.store(true, Ordering::Relaxed);
    }

    /// Notes SIGTERM from now on.
    pub(super) fn on_sigterm() -> std::io::Result<()> {
        let handler = note as extern "C" fn(libc::c_int);
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        let old = unsafe { libc::signal(libc::SIGTERM, handler as libc::sighandler_t) };
        if old == libc::SIG_ERR { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn told_to_end() -> bool {
        TOLD.load(Ordering::Relaxed)
    }
}
