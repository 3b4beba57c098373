//! What the tests run: as a shim, as PID 1, and inside containers. Static, so that a root file system needs nothing
//! else.

use std::io::{Read as _, Write as _};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let word = |i: usize| args.get(i).map_or("", String::as_str);
    let code = match word(1) {
        "shim" => initd::shim::main(),
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
        "http" => http(word(2), word(3)),
        "forks" => {
            // A child that outlives its parent: what a mini-init has to reap.
            let me = std::env::current_exe().unwrap_or_default();
            for _ in 0..3 {
                let spawned = std::process::Command::new(&me).args(["spawn-sleep", "50"]).spawn();
                let _ = spawned.and_then(|mut c| c.wait());
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            let zombies = std::fs::read_dir("/proc")
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok())
                .filter(|s| s.rsplit(')').next().is_some_and(|r| r.trim_start().starts_with('Z')))
                .count();
            println!("zombies={zombies}");
            0
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
