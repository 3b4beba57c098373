//! What the tests run: as a shim, as PID 1, and inside containers. Static, so that a root file system needs nothing
//! else.

use std::io::{Read as _, Write as _};

#[path = "initd-probe/load.rs"]
mod load;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(code) = initd::machine::personality(args.iter().map(AsRef::as_ref)) {
        std::process::exit(code);
    }
    // In a container it is PID 1 as well, under another name.
    let machine_init = std::process::id() == 1 && args.first().is_some_and(|me| me == "/init");
    if machine_init && args.get(1).is_none_or(|role| role != "init") {
        std::process::exit(machine(args.get(1).map_or("speaks", String::as_str)));
    }
    let word = |i: usize| args.get(i).map_or("", String::as_str);
    let code = match word(1) {
        "shim" => initd::shim::main(),
        "init" => {
            let agent = args.get(2..).unwrap_or_default().iter().map(Into::into).collect();
            let mode = initd::init::Mode::Namespace;
            initd::init::main(&initd::init::Config {
                mode,
                agent,
                node_config: None,
                grace_ms: 2000,
                drain_ms: 3000,
                first_word_ms: None,
            })
        }
        "stub-agent" => stub_agent(word(2), std::path::Path::new(word(3)), args.get(4..)),
        "stub-workload" => {
            std::thread::sleep(std::time::Duration::from_secs(600));
            0
        }
        // An agent that is killed in the middle: `spawn-pod SPEC-FILE`, in the node's own network, without user namespace.
        "spawn-pod" => spawn_pod(word(2)),
        "true" => 0,
        "exit" => word(2).parse().unwrap_or(255),
        "echo" => {
            println!("{}", args.get(2..).unwrap_or_default().join(" "));
            0
        }
        "warn" => {
            eprintln!("{}", args.get(2..).unwrap_or_default().join(" "));
            0
        }
        "cat" => {
            for path in args.get(2..).unwrap_or_default() {
                match std::fs::read_to_string(path) {
                    Ok(text) => print!("{text}"),
                    Err(e) => println!("{path}: {e}"),
                }
            }
            0
        }
        "sh" => {
            for line in args.get(2..).unwrap_or_default() {
                let (command, path) = line.split_once(' ').unwrap_or((line, ""));
                match command {
                    "write" => match std::fs::write(path, "x") {
                        Ok(()) => println!("{line}: ok"),
                        Err(e) => println!("{line}: {}", e.raw_os_error().unwrap_or(0)),
                    },
                    _ => {
                        let _ = std::io::stdout().flush();
                        let me = std::env::current_exe().unwrap_or_default();
                        let _ = std::process::Command::new(me).args([command, path]).status();
                    }
                }
            }
            0
        }
        "ls" => {
            let mut names: Vec<_> = std::fs::read_dir(word(2))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            println!("{}", names.join(" "));
            0
        }
        "env" => {
            for (k, v) in std::env::vars() {
                println!("{k}={v}");
            }
            println!("cwd={}", std::env::current_dir().unwrap_or_default().display());
            0
        }
        "raise" => {
            let signal = word(2).parse().ok().and_then(rustix::process::Signal::from_named_raw);
            if let Some(signal) = signal {
                let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
            }
            1
        }
        "chatter" => {
            for i in 0..word(2).parse().unwrap_or(0) {
                println!("line {i}");
            }
            0
        }
        "sleep" => {
            std::thread::sleep(std::time::Duration::from_millis(word(2).parse().unwrap_or(0)));
            0
        }
        "upper" => {
            let mut text = String::new();
            let _ = std::io::stdin().read_to_string(&mut text);
            print!("{}", text.to_uppercase());
            0
        }
        "open" => {
            // What each path gives: `ok` or the errno, for reading and then for writing.
            for path in args.get(2..).unwrap_or_default() {
                let tried = |write: bool| {
                    let opened = std::fs::OpenOptions::new().read(!write).write(write).open(path);
                    opened
                        .map_or_else(|e| e.raw_os_error().unwrap_or(0).to_string(), |_| "ok".into())
                };
                println!("{path} {} {}", tried(false), tried(true));
            }
            0
        }
        "pids" => {
            let mut pids: Vec<u32> = std::fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| e.file_name().to_string_lossy().parse().ok())
                .collect();
            pids.sort_unstable();
            println!("{pids:?} of {}", std::process::id());
            0
        }
        "lines" => {
            // Says each line that comes, until there are no more.
            for line in std::io::stdin().lines().map_while(Result::ok) {
                println!("got {line}");
                if line == "leave" {
                    break;
                }
            }
            println!("end");
            0
        }
        "call" => {
            // A system call by its number, without arguments.
            // SAFETY: the test names calls that do nothing with zeroes.
            #[allow(unsafe_code)]
            let r = unsafe { libc::syscall(word(2).parse().unwrap_or(-1), 0, 0, 0, 0, 0, 0) };
            let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            println!("{}", if r == -1 { errno.to_string() } else { "ok".into() });
            0
        }
        "fill" => fill(word(2)),
        "hold" => load::hold(word(2)),
        "huge-pages" => load::huge_pages(word(2)),
        "direct" => load::direct(word(2), word(3), word(4)),
        "direct-read" => load::direct("read", word(2), "256"),
        "spin" => load::spin(word(2)),
        "unshare" => load::unshare(word(2)),
        "make-user-namespaces" => load::user_namespaces(),
        "eat" => {
            let mut eaten = Vec::new();
            for _ in 0..word(2).parse().unwrap_or(0) {
                // Written, so that it is there.
                eaten.push(vec![1u8; 1 << 20]);
            }
            println!("ate {}", eaten.len());
            0
        }
        "flood" => {
            let line = "x".repeat(200);
            for _ in 0..word(2).parse().unwrap_or(0) {
                println!("{line}");
            }
            0
        }
        "deaf" => {
            // Hears no SIGTERM, and neither does what it leaves behind.
            // SAFETY: the disposition runs no code.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGTERM, libc::SIG_IGN)
            };
            println!("deaf");
            let _ = std::io::stdout().flush();
            std::thread::sleep(std::time::Duration::from_secs(600));
            0
        }
        "daemon" => {
            // Leaves a grandchild that nobody waits for, and ends (or stays).
            let me = std::env::current_exe().unwrap_or_default();
            let left = std::process::Command::new(&me).args(["spawn-sleep", "599996"]).status();
            println!("left {}", left.is_ok());
            if word(2) == "stay" {
                let _ = std::io::stdout().flush();
                std::thread::sleep(std::time::Duration::from_secs(600));
            }
            0
        }
        "echo-server" => echo_server(word(2)),
        "grpc" => grpc(word(2), word(3)),
        "http" => http(word(2), word(3)),
        "forks" => {
            // A child that outlives its parent: what a mini-init has to reap.
            let me = std::env::current_exe().unwrap_or_default();
            for _ in 0..3 {
                let spawned = std::process::Command::new(&me).args(["spawn-sleep", "50"]).spawn();
                let _ = spawned.and_then(|mut c| c.wait());
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            println!("zombies={}", zombies());
            0
        }
        "terminal" => {
            // Waits for a line, so that the size has been set.
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
                println!("{} rows {} columns", size.ws_row, size.ws_col);
            }
            let tty = std::fs::OpenOptions::new().read(true).write(true).open("/dev/tty");
            println!("/dev/tty {}", tty.map_or_else(|e| e.to_string(), |_| "ok".to_owned()));
            let name = std::fs::read_link("/proc/self/fd/0").unwrap_or_default();
            println!("name {}", name.display());
            0
        }
        "bomb" => {
            let me = std::env::current_exe().unwrap_or_default();
            let mut children = Vec::new();
            loop {
                match std::process::Command::new(&me).args(["sleep", "599997"]).spawn() {
                    Ok(child) => children.push(child),
                    Err(e) => {
                        let errno = e.raw_os_error().unwrap_or(0);
                        println!("refused {errno} after {}", children.len());
                        std::thread::sleep(std::time::Duration::from_secs(600));
                    }
                }
            }
        }
        "spawn-sleep" => {
            let me = std::env::current_exe().unwrap_or_default();
            let _ = std::process::Command::new(&me).args(["sleep", word(2)]).spawn();
            0
        }
        other => {
            eprintln!("initd-probe: no such command: {other}");
            2
        }
    };
    let _ = std::io::stdout().flush();
    std::process::exit(code);
}

/// PID 1 of a whole machine, with a stub for an agent: what follows `--` on the kernel's command line.
fn machine(mode: &str) -> i32 {
    let agent = ["/init", "stub-agent", mode, "/run"].iter().map(Into::into).collect();
    initd::init::main(&initd::init::Config {
        mode: initd::init::Mode::Machine,
        agent,
        node_config: None,
        grace_ms: 2000,
        drain_ms: 5000,
        first_word_ms: Some(60_000),
    })
}

/// A line of `/proc/1/status`.
fn rss_of_pid_1() -> String {
    let status = std::fs::read_to_string("/proc/1/status").unwrap_or_default();
    let lines = status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("RssAnon"));
    lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

/// Speaks with PID 1 as an agent does, and notes what it is told. What it does next is in its name:
/// `speaks`, `deaf` (never drains), `late` (as `deaf`, but speaks only once the file `speak` is there), `hangs` (says a word and no more), `powers` (asks for the end), `stages` and
/// `kexecs` (another kernel, which is not there or is).
fn speaking_agent(mode: &str, dir: &std::path::Path, note: &dyn Fn(&str, &str)) -> i32 {
    use initd::init::link::{AgentEnd, ToAgent, ToInit};
    let Ok(Some(link)) = AgentEnd::from_env() else {
        note("told", "no link");
        return 1;
    };
    let say = |message: &ToInit| link.send(message).unwrap_or(false);
    if mode == "late" {
        note("silent", "");
        while !dir.join("speak").exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
    say(&ToInit::Alive);
    say(&ToInit::Ready);
    match mode {
        "late" => note("spoken", ""),
        "powers" => _ = say(&ToInit::Power(initd::machine::Power::Off)),
        "stages" => _ = say(&ToInit::Kexec("/nonexistent".into())),
        "kexecs" => _ = say(&ToInit::Kexec("/boot".into())),
        _ => {}
    }
    loop {
        match link.receive() {
            Ok(Some(message)) => {
                note("told", &message.to_string());
                if matches!(message, ToAgent::Drain { .. }) && !["deaf", "late"].contains(&mode) {
                    say(&ToInit::Drained);
                }
            }
            Ok(None) => {
                let mut fds = [rustix::event::PollFd::new(&link, rustix::event::PollFlags::IN)];
                let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
                let _ = rustix::event::poll(&mut fds, Some(&second));
                if mode != "hangs" {
                    say(&ToInit::Alive);
                }
                if mode == "measures" {
                    eprintln!("quelea: PID 1: {}", rss_of_pid_1());
                }
            }
            Err(e) => {
                note("told", &e.to_string());
                return 1;
            }
        }
    }
}

/// Leaves so many children a second to PID 1, for so many seconds. Returns how many.
#[allow(unsafe_code)]
fn orphans(rate: u64, seconds: u64) -> u64 {
    const BATCH: u64 = 10;
    let start = std::time::Instant::now();
    for n in 0..rate * seconds / BATCH {
        let due = std::time::Duration::from_micros(n * BATCH * 1_000_000 / rate.max(1));
        std::thread::sleep(due.saturating_sub(start.elapsed()));
        // SAFETY: this process has one thread; the children do nothing but fork and _exit.
        unsafe {
            let middle = libc::fork();
            if middle == 0 {
                for _ in 0..BATCH {
                    if libc::fork() == 0 {
                        libc::_exit(0);
                    }
                }
                libc::_exit(0);
            }
            libc::waitpid(middle, std::ptr::null_mut(), 0);
        }
    }
    rate * seconds / BATCH * BATCH
}

/// Stands for an agent under PID 1: notes that it ran, starts a workload once, leaves an orphan, and falls or stays.
fn stub_agent(mode: &str, dir: &std::path::Path, more: Option<&[String]>) -> i32 {
    let me = std::env::current_exe().unwrap_or_default();
    let note = |file: &str, line: &str| {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(dir.join(file));
        let _ = file.and_then(|mut f| writeln!(f, "{line}"));
    };
    if !dir.join("workload").exists() {
        let child = std::process::Command::new(&me).arg("stub-workload").arg(dir).spawn();
        note("workload", &child.map(|c| c.id()).unwrap_or_default().to_string());
    }
    note("agents", &format!("pid={} zombies={}", std::process::id(), zombies()));
    let more = more.unwrap_or_default();
    match mode {
        "speaks" | "deaf" | "late" | "hangs" | "powers" | "stages" | "kexecs" | "measures" => {
            return speaking_agent(mode, dir, &note);
        }
        "panics" if !std::path::Path::new("/var/lib/quelea/pstore").exists() => {
            let _ = std::fs::write("/proc/sysrq-trigger", "c");
        }
        "floods" => {
            let Ok(Some(link)) = initd::init::link::AgentEnd::from_env() else { return 1 };
            note("up", "up");
            loop {
                let _ = link.send(&initd::init::link::ToInit::Alive);
            }
        }
        "crashes" => {
            note("arguments", &more.join(" "));
            if more.is_empty() {
                return 7;
            }
        }
        "orphans" => {
            let seconds = std::env::var("QUELEA_ORPHAN_SECONDS").ok();
            let seconds = seconds.and_then(|s| s.parse().ok()).unwrap_or(10);
            // The first thousand are not counted: everything has been used once then.
            orphans(1000, 1);
            note("warm", "warm");
            note("made", &orphans(1000, seconds).to_string());
        }
        _ => {}
    }
    if matches!(mode, "crashes" | "orphans" | "panics") {
        std::thread::sleep(std::time::Duration::from_secs(600));
    }
    if mode == "stays" {
        // SIGTERM ends it; the shell says so.
        let script = "trap 'echo agent >>\"$0/ended\"; exit 0' TERM; echo up >\"$0/up\"; while :; do sleep 1 & wait; done";
        let e = std::os::unix::process::CommandExt::exec(
            std::process::Command::new("sh").args(["-c", script]).arg(dir),
        );
        eprintln!("sh: {e}");
        return 1;
    }
    let _ = std::process::Command::new(&me).args(["spawn-sleep", "1"]).spawn();
    1
}

fn zombies() -> usize {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok())
        .filter(|s| s.rsplit(')').next().is_some_and(|r| r.trim_start().starts_with('Z')))
        .count()
}

/// Spawns a pod as an agent does, and stays.
fn spawn_pod(file: &str) -> i32 {
    let spec = std::fs::read(file).ok().and_then(|b| initd::pod::PodSpec::decode(&b).ok());
    let (Some(spec), Ok(me)) = (spec, std::env::current_exe()) else { return 2 };
    let mut zygote = initd::shim::Zygote::new(&me);
    let shim = zygote.spawn(&spec, initd::shim::PodFds::default());
    println!("{}", shim.map_or_else(|e| e.to_string(), |_| "spawned".to_owned()));
    let _ = std::io::stdout().flush();
    std::thread::sleep(std::time::Duration::from_secs(600));
    0
}

/// Writes until the disk is full.
fn fill(path: &str) -> i32 {
    let Ok(mut file) = std::fs::File::create(path) else { return 1 };
    let block = vec![0u8; 64 << 10];
    let mut written = 0usize;
    loop {
        match file.write(&block) {
            Ok(n) => written += n,
            Err(e) => {
                println!("full after {written}: {}", e.raw_os_error().unwrap_or(0));
                return 0;
            }
        }
    }
}

/// Sends back what comes, on every address.
fn echo_server(address: &str) -> i32 {
    let Ok(listener) = std::net::TcpListener::bind(address) else { return 1 };
    println!("listening");
    let _ = std::io::stdout().flush();
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut to = stream.try_clone()?;
            std::io::copy(&mut &stream, &mut to)
        });
    }
    0
}

/// A gRPC health server that knows the service `there`, and says of it what the file says.
fn grpc(port: &str, status_file: &str) -> i32 {
    let Ok(listener) = std::net::TcpListener::bind(format!("127.0.0.1:{port}")) else { return 1 };
    for mut stream in listener.incoming().flatten() {
        let mut request = Vec::new();
        let mut chunk = [0u8; 1024];
        // The last frame is DATA with the service's name.
        while !request.ends_with(b"there") && !request.ends_with(&[0, 0, 0, 0, 0]) {
            match stream.read(&mut chunk) {
                Ok(n @ 1..) => request.extend_from_slice(&chunk[..n]),
                _ => break,
            }
        }
        let status = std::fs::read_to_string(status_file).unwrap_or_default();
        let status = status.trim().parse().unwrap_or(1u8);
        // SETTINGS, its acknowledgement, then HEADERS `:status 200`.
        let mut answer = vec![0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
        if request.ends_with(b"there") {
            answer.extend([0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]);
            answer.extend([0, 0, 7, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 8, status]);
        } else {
            // Trailers only.
            answer.extend([0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]);
        }
        let _ = stream.write_all(&answer);
        // Until the client has read it.
        let _ = stream.read(&mut chunk);
    }
    0
}

/// Serves 200 (or the status in the file) on a port until it is killed.
fn http(port: &str, status_file: &str) -> i32 {
    let Ok(listener) = std::net::TcpListener::bind(format!("127.0.0.1:{port}")) else { return 1 };
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut buffer = [0u8; 1024];
        let _ = stream.read(&mut buffer);
        let status = std::fs::read_to_string(status_file).unwrap_or_else(|_| "200".to_owned());
        let _ = write!(stream, "HTTP/1.1 {} X\r\nContent-Length: 0\r\n\r\n", status.trim());
    }
    0
}
